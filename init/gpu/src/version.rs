//! Versions of the runtime specification, compared as Go's `golang.org/x/mod/semver` compares them.

use std::cmp::Ordering;

/// A semantic version without its build part, which takes no part in comparisons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    numbers: [&'a str; 3],
    pre: Vec<&'a str>,
}

impl<'a> Version<'a> {
    /// Reads `1.0.2`, `1.0.0-rc1+x`, and also `1` and `1.0`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (text, build) = split(text, '+');
        let (numbers, pre) = split(text, '-');
        let whole = |part: &str| is_digits(part) && (part == "0" || !part.starts_with('0'));
        let parts: Vec<&str> = numbers.split('.').collect();
        let short = parts.len() < 3;
        if parts.len() > 3 || !parts.iter().all(|part| whole(part)) {
            return None;
        }
        if short && (pre.is_some() || build.is_some()) {
            return None;
        }
        let pre: Vec<&str> = pre.map_or_else(Vec::new, |pre| pre.split('.').collect());
        let mut build = build.iter().flat_map(|build| build.split('.'));
        let valid = pre
            .iter()
            .all(|part| is_identifier(part) && (!is_digits(part) || whole(part)))
            && build.all(is_identifier);
        let number = |at: usize| parts.get(at).copied().unwrap_or("0");
        valid.then(|| Self {
            numbers: [number(0), number(1), number(2)],
            pre,
        })
    }

    /// Whether a specification of this version has one capability set, a plain list: from 1.0.0-rc1 to before 1.0.0-rc5.
    #[must_use]
    pub fn had_one_capability_set(text: &str) -> bool {
        let (Some(version), Some(from), Some(to)) = (
            Version::parse(text),
            Version::parse("1.0.0-rc1"),
            Version::parse("1.0.0-rc5"),
        ) else {
            return false;
        };
        version.compare(&from) != Ordering::Less && version.compare(&to) == Ordering::Less
    }

    fn compare(&self, other: &Version<'_>) -> Ordering {
        let numbers = self.numbers.iter().zip(other.numbers.iter());
        let by_number = numbers
            .map(|(one, other)| by_value(one, other))
            .find(|order| order.is_ne());
        by_number.unwrap_or_else(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            // A version comes after its candidates.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.compare_pre(other),
        })
    }

    fn compare_pre(&self, other: &Version<'_>) -> Ordering {
        let pairs = self.pre.iter().zip(other.pre.iter());
        let different = pairs
            .map(|(one, other)| match (is_digits(one), is_digits(other)) {
                (true, true) => by_value(one, other),
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                (false, false) => one.cmp(other),
            })
            .find(|order| order.is_ne());
        different.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
    }
}

/// Numbers without leading zeros, of any length.
fn by_value(one: &str, other: &str) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_capability_set_was_in_four_candidates() {
        for yes in [
            "1.0.0-rc1",
            "1.0.0-rc2-dev",
            "1.0.0-rc4",
            "1.0.0-rc4+x",
            "1.0.0-rc1.1",
            "1.0.0-rc10",
        ] {
            assert!(Version::had_one_capability_set(yes), "{yes}");
        }
        for no in [
            "",
            "1",
            "1.0",
            "1.0.0",
            "1.0.2",
            "1.0.0-rc5",
            "1.0.0-rc",
            "1.0.0-alpha",
            "0.9.0",
            "x",
            "01.0.0-rc1",
            "1.0-rc1",
            "1.0.0-rc.01",
            "1.1.0-rc1",
            "1.0.0-9",
        ] {
            assert!(!Version::had_one_capability_set(no), "{no}");
        }
    }
}
