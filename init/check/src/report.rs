//! What was found, for people and for scripts.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Worth knowing; nothing has to be done.
    Note,
    /// It will hurt under some circumstances.
    Warning,
    /// It hurts already, or will with certainty.
    Problem,
}

/// One thing about the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its stable name, for scripts.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What is so, in a sentence.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub todo: String,
    /// The particulars, a line each: processes, mounts, files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

/// Everything about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is not as it should be, and what is worth knowing.
    pub findings: Vec<Finding>,
    /// What is in order, in a sentence each.
    pub in_order: Vec<String>,
}

/// The most lines of evidence that a person is shown for one finding.
const MAX_SHOWN: usize = 12;

impl Report {
    pub(crate) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub(crate) fn fine(&mut self, what: impl Into<String>) {
        self.in_order.push(what.into());
    }

    /// The worst there is; none when nothing was found.
    #[must_use]
    pub fn worst(&self) -> Option<Level> {
        self.findings.iter().map(|finding| finding.level).max()
    }

    /// 0: nothing, or notes alone; 2: warnings; 3: problems. 1 is left to a command that could not run.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.worst() {
            None | Some(Level::Note) => 0,
            Some(Level::Warning) => 2,
            Some(Level::Problem) => 3,
        }
    }

    /// For a person: the worst first.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        for finding in &findings {
            let level = match finding.level {
                Level::Note => "note",
                Level::Warning => "WARNING",
                Level::Problem => "PROBLEM",
            };
            let _ = writeln!(
                text,
                "{level} [{}] {}",
                finding.check,
                visible(&finding.what)
            );
            for line in finding.evidence.iter().take(MAX_SHOWN) {
                let _ = writeln!(text, "    - {}", visible(line));
            }
            if finding.evidence.len() > MAX_SHOWN {
                let more = finding.evidence.len() - MAX_SHOWN;
                let _ = writeln!(text, "    - … {more} more with --json");
            }
            let _ = writeln!(text, "    why: {}", finding.why);
            let _ = writeln!(text, "    do:  {}\n", finding.todo);
        }
        for line in &self.in_order {
            let _ = writeln!(text, "ok  {}", visible(line));
        }
        let count = |level| {
            findings
                .iter()
                .filter(|finding| finding.level == level)
                .count()
        };
        let _ = writeln!(
            text,
            "\n{} problems, {} warnings, {} notes; {} in order",
            count(Level::Problem),
            count(Level::Warning),
            count(Level::Note),
            self.in_order.len()
        );
        text
    }

    /// For a program.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Names of processes and of mounts must not steer the reader's terminal.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
