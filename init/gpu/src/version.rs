//! Semantic versions, read loosely: a `v` in front, and missing minor and patch numbers, are fine. So the original reads
//! both the version of a specification and that of a CUDA image.

use std::cmp::Ordering;

/// A version without its build part, which takes no part in comparisons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// Major, minor, patch.
    pub numbers: [u64; 3],
    pre: Vec<&'a str>,
}

impl<'a> Version<'a> {
    /// Reads `1.0.2`, `v1`, `10.2-rc1+x`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (text, build) = split(text, '+');
        let (text, pre) = split(text, '-');
        let mut numbers = [0; 3];
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() > numbers.len() {
            return None;
        }
        for (number, part) in numbers.iter_mut().zip(parts) {
            *number = part.parse().ok().filter(|_| is_digits(part))?;
        }
        let pre: Vec<&str> = pre.map_or_else(Vec::new, |pre| pre.split('.').collect());
        let zero_in_front = |part: &str| is_digits(part) && part.len() > 1 && part.starts_with('0');
        let mut build = build.iter().flat_map(|build| build.split('.'));
        let valid = pre
            .iter()
            .all(|part| is_identifier(part) && !zero_in_front(part))
            && build.all(is_identifier);
        valid.then_some(Self { numbers, pre })
    }

    /// Whether a specification of this version has one capability set, a plain list: from 1.0.0-rc1 to before 1.0.0-rc5.
    #[must_use]
    pub fn had_one_capability_set(text: &str) -> bool {
        let Some(version) = Version::parse(text) else {
            return false;
        };
        let candidate = |pre| Version {
            numbers: [1, 0, 0],
            pre: vec![pre],
        };
        version.compare(&candidate("rc1")).is_ge() && version.compare(&candidate("rc5")).is_lt()
    }

    fn compare(&self, other: &Version<'_>) -> Ordering {
        let by_number = self.numbers.cmp(&other.numbers);
        by_number.then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
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
            .map(
                |(one, other)| match (one.parse::<u64>(), other.parse::<u64>()) {
                    (Ok(one), Ok(other)) => one.cmp(&other),
                    (Ok(_), Err(_)) => Ordering::Less,
                    (Err(_), Ok(_)) => Ordering::Greater,
                    (Err(_), Err(_)) => one.cmp(other),
                },
            )
            .find(|order| order.is_ne());
        different.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
    }
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
    fn versions_are_read_loosely() {
        let good = [
            ("9", [9, 0, 0]),
            ("11.4.2", [11, 4, 2]),
            ("v10.1", [10, 1, 0]),
            ("10.2-rc1", [10, 2, 0]),
            ("10.02", [10, 2, 0]),
            ("12.4.0+b.007", [12, 4, 0]),
            ("1-a-b.c", [1, 0, 0]),
        ];
        for (text, expected) in good {
            assert_eq!(
                Version::parse(text).map(|version| version.numbers),
                Some(expected),
                "{text}"
            );
        }
        for bad in [
            "",
            "v",
            "foo",
            "10.2.89.1",
            "10.",
            ".1",
            "10.2-",
            "10.2-01",
            "10.2-a..b",
            " 10",
            "10.2+",
            "10.2-ä",
            "vv1",
            "+1.2",
            "99999999999999999999",
        ] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn one_capability_set_was_in_four_candidates() {
        for yes in [
            "1.0.0-rc1",
            "v1.0.0-rc1",
            "1.0-rc1",
            "1-rc4",
            "01.0.0-rc1",
            "1.0.0-rc2-dev",
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
            "1.0.0-rc.01",
            "1.1.0-rc1",
            "1.0.0-9",
        ] {
            assert!(!Version::had_one_capability_set(no), "{no}");
        }
    }
}
