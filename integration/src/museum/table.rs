//! The table, wrapped for a wide terminal.

use super::{Outcome, Row, Verdict};

const WIDTHS: [usize; 4] = [22, 42, 42, 46];

/// The whole table with its summary.
#[must_use]
pub fn print(rows: &[Row]) -> String {
    let mut text = line([
        "exhibit",
        "the Go shim with runc",
        "ours",
        "the sentence ours gave",
    ]);
    text += &rule();
    for row in rows {
        text += &print_row(row);
    }
    text + &summary(rows)
}

/// One row.
#[must_use]
fn print_row(row: &Row) -> String {
    let name = format!("{} [{}]", row.name, word(row.verdict()));
    let said = match &row.ours {
        Ok(seen) => seen.said.clone().unwrap_or_else(|| "–".to_owned()),
        Err(_) => "–".to_owned(),
    };
    line([
        name.as_str(),
        &column(&row.theirs),
        &column(&row.ours),
        &said,
    ]) + &rule()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "ours holds",
        Verdict::Guard => "no difference: a guard",
        Verdict::Neither => "NEITHER holds",
        Verdict::Worse => "OURS IS WORSE",
        Verdict::NotShown => "NOT SHOWN",
    }
}

fn column(outcome: &Outcome) -> String {
    match outcome {
        Ok(seen) => format!("{}: {}", if seen.held { "ok" } else { "BAD" }, seen.what),
        Err(why) => format!("not shown: {why}"),
    }
}

fn summary(rows: &[Row]) -> String {
    let count = |verdict| rows.iter().filter(|row| row.verdict() == verdict).count();
    format!(
        "{} exhibits: ours alone holds {}, both hold {} (guards), neither {}, only the Go shim {}, not shown {}\n",
        rows.len(),
        count(Verdict::Better),
        count(Verdict::Guard),
        count(Verdict::Neither),
        count(Verdict::Worse),
        count(Verdict::NotShown),
    )
}

fn rule() -> String {
    WIDTHS.map(|width| "-".repeat(width)).join("-+-") + "\n"
}

fn line(cells: [&str; 4]) -> String {
    let mut cells = [0, 1, 2, 3].map(|at| wrap(cells[at], WIDTHS[at]).into_iter());
    let mut text = String::new();
    loop {
        let parts = [0, 1, 2, 3].map(|at| cells[at].next());
        if parts.iter().all(Option::is_none) {
            return text;
        }
        let padded = [0, 1, 2, 3].map(|at| {
            let part = parts[at].as_deref().unwrap_or_default();
            format!("{part:<width$}", width = WIDTHS[at])
        });
        text += padded.join(" | ").trim_end();
        text.push('\n');
    }
}

/// Words into lines of at most `width` characters; a longer word is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut letters: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + letters.len() > width {
            lines.push(String::new());
            used = 0;
        }
        while letters.len() > width {
            let rest = letters.split_off(width);
            lines.last_mut().expect("a line").extend(letters);
            lines.push(String::new());
            letters = rest;
        }
        let last = lines.last_mut().expect("a line");
        if used > 0 {
            last.push(' ');
            used += 1;
        }
        used += letters.len();
        last.extend(letters);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_long_ones_cut() {
        assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn a_row_says_what_was_seen() {
        let seen = |held| {
            Ok(super::super::Seen {
                held,
                what: "went on".to_owned(),
                said: None,
            })
        };
        let row = |theirs, ours| Row {
            name: "x",
            theirs,
            ours,
            took: std::time::Duration::ZERO,
        };
        assert_eq!(row(seen(false), seen(true)).verdict(), Verdict::Better);
        assert_eq!(row(seen(true), seen(true)).verdict(), Verdict::Guard);
        assert_eq!(row(seen(true), seen(false)).verdict(), Verdict::Worse);
        assert_eq!(row(seen(false), seen(false)).verdict(), Verdict::Neither);
        let not = row(Err("no runc".to_owned()), seen(true));
        assert_eq!(not.verdict(), Verdict::NotShown);
        let text = print(&[not]);
        assert!(text.contains("not shown: no runc"), "{text}");
        assert!(text.contains("not shown 1\n"), "{text}");
    }
}
