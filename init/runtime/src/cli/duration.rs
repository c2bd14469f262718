//! Durations as Go programs take them on the command line: `5s`, `1m30s`, `0.5s`, `100ms`.

use std::time::Duration;

use crate::error::{Error, Result};

/// Unit and its nanoseconds; longer names before their own endings.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

/// Reads one that is longer than nothing.
///
/// # Errors
/// What is right instead.
pub(super) fn parse(text: &str) -> Result<Duration> {
    let wrong = || {
        Error::Usage(format!(
            "{text:?} is no duration greater than 0, such as 5s or 1m30s"
        ))
    };
    let mut rest = text;
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let letters = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let (_, size) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(wrong)?;
        nanos += number * size;
        rest = after;
    }
    // More than 292 years do not fit into Go's own type, nor into a clock.
    if nanos >= 9.2e18 {
        return Err(wrong());
    }
    let duration = Duration::from_secs_f64(nanos / 1e9);
    if duration.is_zero() {
        return Err(wrong());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_go() {
        for (text, millis) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("0.5s", 500),
            ("1h", 3_600_000),
            ("100ms", 100),
        ] {
            assert_eq!(
                parse(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
        for text in [
            "",
            "0",
            "0s",
            "5",
            "s",
            "5x",
            "-1s",
            "1.2.3s",
            "99999999999999h",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("no duration"), "{text}: {error}");
        }
    }
}
