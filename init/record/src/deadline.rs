//! Every wait has a limit and a name: [`Deadline`] is both, so that neither can be forgotten.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use crate::time::human;

/// A monotonic point in time after which waiting for `what` is given up.
#[derive(Clone, Debug)]
pub struct Deadline {
    what: Cow<'static, str>,
    started: Instant,
    limit: Duration,
}

/// The wait is over without what was awaited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gave up after {} waiting for {what}", human(*.limit))]
pub struct Expired {
    /// What was awaited, as given to [`Deadline::after`].
    pub what: String,
    /// How long the wait was allowed to take.
    pub limit: Duration,
}

impl Deadline {
    /// `limit` from now. `what` completes the sentence "waiting for …".
    #[must_use]
    pub fn after(limit: Duration, what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what: what.into(),
            started: Instant::now(),
            limit,
        }
    }

    /// As [`Deadline::after`] with the limit of [`limit_from_env`].
    #[must_use]
    pub fn named(name: &str, default: Duration, what: impl Into<Cow<'static, str>>) -> Self {
        Self::after(limit_from_env(name, default), what)
    }

    /// The same instant for another thing that is awaited on the way.
    #[must_use]
    pub fn for_step(&self, what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what: what.into(),
            started: self.started,
            limit: self.limit,
        }
    }

    /// What is awaited.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The whole time allowed.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Time since the wait began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time left; zero when expired.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    /// Whether no time is left.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.remaining().is_zero()
    }

    /// The timeout argument of `poll(2)`: milliseconds, rounded up so that a loop does not spin through the last one.
    #[must_use]
    pub fn poll_timeout(&self) -> i32 {
        let millis = self.remaining().as_nanos().div_ceil(1_000_000);
        i32::try_from(millis).unwrap_or(i32::MAX)
    }

    /// Fails once no time is left.
    ///
    /// # Errors
    /// [`Expired`], naming what was awaited.
    pub fn check(&self) -> Result<(), Expired> {
        if self.is_expired() {
            Err(self.expired())
        } else {
            Ok(())
        }
    }

    /// The error to give when the wait is given up.
    #[must_use]
    pub fn expired(&self) -> Expired {
        Expired {
            what: self.what.clone().into_owned(),
            limit: self.limit,
        }
    }
}

/// The limit of the wait `name`: `HOLDFAST_DEADLINE_<NAME>` (upper case, `-` as `_`) if it is set and can be read, else `default`.
///
/// Values: `250ms`, `30s`, `5m`, or a number of seconds. For tests, and for an operator with one very slow node.
#[must_use]
pub fn limit_from_env(name: &str, default: Duration) -> Duration {
    let variable = format!(
        "HOLDFAST_DEADLINE_{}",
        name.to_ascii_uppercase().replace('-', "_")
    );
    std::env::var(variable)
        .ok()
        .and_then(|text| parse_duration(&text))
        .unwrap_or(default)
}

/// Reads `250ms`, `30s`, `5m`, `2h`, `3d`, or a bare number of seconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let scale = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(scale).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_was_awaited() {
        let deadline = Deadline::after(Duration::ZERO, "hook 2 of 3 (nvidia-container-cli)");
        let error = deadline.check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "gave up after 0 ms waiting for hook 2 of 3 (nvidia-container-cli)"
        );
        assert_eq!(deadline.poll_timeout(), 0);
        let step = deadline.for_step("its output");
        assert!(step.is_expired());
        assert_eq!(step.what(), "its output");
    }

    #[test]
    fn rounds_the_poll_timeout_up() {
        let deadline = Deadline::after(Duration::from_secs(3600), "nothing");
        assert!(deadline.check().is_ok());
        assert!((3_590_000..=3_600_000).contains(&deadline.poll_timeout()));
        let far = Deadline::after(Duration::from_secs(u64::from(u32::MAX)), "nothing");
        assert_eq!(far.poll_timeout(), i32::MAX);
    }

    #[test]
    fn reads_durations() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("30"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(parse_duration("2d"), Some(Duration::from_secs(172_800)));
        for bad in ["", "s", "-1s", "5 weeks", "1.5s", "99999999999999999999d"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
