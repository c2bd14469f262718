//! Wall-clock instants as they are written and shown: RFC 3339 in UTC with nanoseconds.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const NANOS: i128 = 1_000_000_000;

/// A point of wall-clock time, in the shape of protobuf's `Timestamp`.
///
/// It serializes as RFC 3339 in UTC with nine digits of fraction, so that text order is time order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

/// Text that is no RFC 3339 time in UTC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: write it as 2026-01-31T12:00:00Z")]
pub struct InvalidTimestamp(String);

impl Timestamp {
    /// Now, by the system's real-time clock.
    #[must_use]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// From seconds and nanoseconds since 1970-01-01T00:00:00Z; surplus nanoseconds are carried over.
    #[must_use]
    pub fn new(seconds: i64, nanos: u32) -> Self {
        Self {
            seconds: seconds.saturating_add(i64::from(nanos / 1_000_000_000)),
            nanos: nanos % 1_000_000_000,
        }
    }

    /// Whole seconds since 1970-01-01T00:00:00Z, rounded down.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`Timestamp::seconds`], below 1,000,000,000.
    #[must_use]
    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// How long after `earlier` this is; zero when it is before (clocks are set back now and then).
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let difference = self.total_nanos() - earlier.total_nanos();
        let Ok(difference) = u128::try_from(difference) else {
            return Duration::ZERO;
        };
        let seconds = u64::try_from(difference / 1_000_000_000).unwrap_or(u64::MAX);
        let nanos = u32::try_from(difference % 1_000_000_000).unwrap_or(0);
        Duration::new(seconds, nanos)
    }

    /// This time less `duration`.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        let total =
            self.total_nanos() - i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / 2);
        Self::from_total_nanos(total)
    }

    fn total_nanos(self) -> i128 {
        i128::from(self.seconds) * NANOS + i128::from(self.nanos)
    }

    fn from_total_nanos(total: i128) -> Self {
        let seconds = total.div_euclid(NANOS);
        let nanos = total.rem_euclid(NANOS);
        Self {
            seconds: i64::try_from(seconds).unwrap_or(if seconds < 0 {
                i64::MIN
            } else {
                i64::MAX
            }),
            nanos: u32::try_from(nanos).unwrap_or(0),
        }
    }

    /// The time of day alone with milliseconds, for lines whose date has been said: `12:00:00.250`.
    #[must_use]
    pub fn clock(self) -> String {
        let second = self.seconds.rem_euclid(86_400);
        format!(
            "{:02}:{:02}:{:02}.{:03}",
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.nanos / 1_000_000
        )
    }

    /// Date and time to the second, as people write it: `2026-01-31 12:00:00 UTC`.
    #[must_use]
    pub fn short(self) -> String {
        let (year, month, day) = civil(self.seconds.div_euclid(86_400));
        let second = self.seconds.rem_euclid(86_400);
        format!(
            "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let total = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
            Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
        };
        Self::from_total_nanos(total)
    }
}

/// Year, month and day of a number of days since 1970-01-01 (proleptic Gregorian calendar).
///
/// Counted in eras of 400 years (146,097 days) that begin on the first of March, so that the leap day is a year's last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The inverse of [`civil`]. `month` is 1 to 12.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.seconds.div_euclid(86_400));
        let second = self.seconds.rem_euclid(86_400);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.nanos
        )
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    /// Takes `YYYY-MM-DD`, `YYYY-MM-DDTHH:MM:SS[.fraction]` with `T` or a space, and an optional `Z`.
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        parse(text).ok_or_else(|| InvalidTimestamp(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    let text = text.trim().trim_end_matches(['Z', 'z']);
    let (date, clock) = match text.split_once(['T', 't', ' ']) {
        Some((date, clock)) => (date, clock),
        None => (text, "00:00:00"),
    };
    let mut parts = date.splitn(3, '-');
    let year = number(parts.next()?, 4)?;
    let month = number(parts.next()?, 2)?;
    let day = number(parts.next()?, 2)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.splitn(3, ':');
    let hour = number(parts.next()?, 2)?;
    let minute = number(parts.next()?, 2)?;
    let second = number(parts.next().unwrap_or("00"), 2)?;
    let valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let nanos = match fraction {
        "" => 0,
        digits if digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{digits:0<9}").parse().ok()?
        }
        _ => return None,
    };
    let midnight = days(year, month, day);
    // The thirty-first of June comes back as another day.
    (valid && civil(midnight) == (year, month, day)).then(|| {
        Timestamp::new(
            midnight * 86_400 + hour * 3600 + minute * 60 + second,
            nanos,
        )
    })
}

fn number(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

impl TryFrom<String> for Timestamp {
    type Error = InvalidTimestamp;
    fn try_from(text: String) -> Result<Self, InvalidTimestamp> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

/// A duration as a person says it: `250 ms`, `3.5 s`, `2 min 5 s`, `3 h 0 min`.
#[must_use]
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        format!("{} ms", duration.as_millis())
    } else if seconds < 60 {
        let tenths = duration.subsec_millis() / 100;
        if tenths == 0 {
            format!("{seconds} s")
        } else {
            format!("{seconds}.{tenths} s")
        }
    } else if seconds < 3600 {
        format!("{} min {} s", seconds / 60, seconds % 60)
    } else {
        format!("{} h {} min", seconds / 3600, seconds / 60 % 60)
    }
}

/// `serde(with)` for `Option<Duration>` as whole milliseconds; name such fields `…_ms`.
pub(crate) mod optional_millis {
    use super::Duration;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            None => s.serialize_none(),
            Some(value) => s.serialize_some(&u64::try_from(value.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_millis))
    }
}

/// `serde(with)` for `Duration` as whole milliseconds; name such fields `…_ms`.
pub(crate) mod millis {
    use super::Duration;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        Ok(Duration::from_millis(u64::deserialize(d)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_instants() {
        assert_eq!(
            Timestamp::new(0, 0).to_string(),
            "1970-01-01T00:00:00.000000000Z"
        );
        assert_eq!(
            Timestamp::new(951_782_400, 5).to_string(),
            "2000-02-29T00:00:00.000000005Z"
        );
        assert_eq!(
            Timestamp::new(1_795_299_951, 0).short(),
            "2026-11-21 22:25:51 UTC"
        );
        assert_eq!(
            Timestamp::new(-1, 999_999_999).to_string(),
            "1969-12-31T23:59:59.999999999Z"
        );
        assert_eq!(Timestamp::new(3_723, 4_000_000).clock(), "01:02:03.004");
    }

    #[test]
    fn reads_what_people_type() {
        let day = "2026-11-21".parse::<Timestamp>().unwrap();
        assert_eq!(day.short(), "2026-11-21 00:00:00 UTC");
        assert_eq!(
            "2026-11-21 22:25".parse::<Timestamp>().unwrap().clock(),
            "22:25:00.000"
        );
        for bad in [
            "",
            "yesterday",
            "2026-02-30",
            "2026-13-01",
            "2026-01-01T25:00:00Z",
            "2026-1-1",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    #[test]
    fn differences_do_not_go_below_zero() {
        let early = Timestamp::new(10, 500_000_000);
        let late = Timestamp::new(12, 0);
        assert_eq!(late.since(early), Duration::from_millis(1500));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.before(Duration::from_millis(1500)), early);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(250)), "250 ms");
        assert_eq!(human(Duration::from_secs(30)), "30 s");
        assert_eq!(human(Duration::from_millis(3500)), "3.5 s");
        assert_eq!(human(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(human(Duration::from_secs(10_800)), "3 h 0 min");
    }

    proptest! {
        #[test]
        fn text_and_time_are_the_same_thing(seconds in -60_000_000_000i64..200_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = Timestamp::new(seconds, nanos);
            prop_assume!(seconds >= -62_135_596_800);
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
    }
}
