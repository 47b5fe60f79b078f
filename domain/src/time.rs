//! Instants. Nobody in this crate reads a clock; every function that needs the time is given it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC. Databases keep this integer, so no precision is lost on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds since the epoch, as every OpenAI object shows them.
    pub fn unix_s(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    pub fn from_unix_s(seconds: i64) -> Self {
        Self(seconds * 1_000_000)
    }

    pub fn plus_s(self, seconds: i64) -> Self {
        Self(self.0 + seconds * 1_000_000)
    }

    /// Seconds from `earlier` to `self`; negative when `earlier` is later.
    pub fn since_s(self, earlier: Timestamp) -> f64 {
        (self.0 - earlier.0) as f64 / 1e6
    }

    /// The calendar month, in UTC. Unix seconds: where it begins, and where the next one does.
    pub fn month(self) -> Range<i64> {
        let (year, month) = civil(self.unix_s().div_euclid(DAY_S));
        let (next_year, next) = if month == 12 {
            (year + 1, 1)
        } else {
            (year, month + 1)
        };
        first_day(year, month) * DAY_S..first_day(next_year, next) * DAY_S
    }

    /// The day in UTC, as `2026-12-01`.
    pub fn day(self) -> String {
        let days = self.unix_s().div_euclid(DAY_S);
        let (year, month) = civil(days);
        format!(
            "{year:04}-{month:02}-{:02}",
            days - first_day(year, month) + 1
        )
    }
}

const DAY_S: i64 = 86_400;

/// Year, and month from 1, of a day. Days since the Unix epoch, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64) {
    // 400 years have 146,097 days: the guess is off by one year at most.
    let guess = 1970 + (days * 400).div_euclid(146_097);
    let year = (guess - 1..=guess + 1)
        .rev()
        .find(|year| first_day(*year, 1) <= days)
        .expect("a year that began before — a bug in the guess");
    let month = (1..=12)
        .rev()
        .find(|month| first_day(year, *month) <= days)
        .expect("the year has begun");
    (year, month)
}

/// The first day of a month, as days since the Unix epoch.
fn first_day(year: i64, month: i64) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    // Leap days before the year; the epoch's year has 477 of them before it.
    let leaps = |years: i64| years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400);
    let is_leap = leaps(year) > leaps(year - 1);
    let of_month = BEFORE[(month - 1) as usize] + i64::from(is_leap && month > 2);
    (year - 1970) * 365 + leaps(year - 1) - 477 + of_month
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_on_its_first_day_and_ends_where_the_next_one_begins() {
        // As `date -u -d @N` has them.
        for (unix_s, day, month) in [
            (0, "1970-01-01", 0..2_678_400),
            (-1, "1969-12-31", -2_678_400..0),
            (951_782_400, "2000-02-29", 949_363_200..951_868_800),
            (1_709_251_199, "2024-02-29", 1_706_745_600..1_709_251_200),
            (1_709_251_200, "2024-03-01", 1_709_251_200..1_711_929_600),
            (1_798_761_599, "2026-12-31", 1_796_083_200..1_798_761_600),
            (4_107_542_400, "2100-03-01", 4_107_542_400..4_110_220_800),
        ] {
            let at = Timestamp::from_unix_s(unix_s);
            assert_eq!((at.day().as_str(), at.month()), (day, month));
        }
    }

    #[test]
    fn months_follow_each_other_without_a_gap() {
        let mut at = Timestamp::from_unix_s(-5_000_000_000);
        for _ in 0..6_000 {
            let month = at.month();
            let days = (month.end - month.start) / DAY_S;
            assert!((28..=31).contains(&days), "{month:?}");
            let next = Timestamp::from_unix_s(month.end);
            assert_eq!(next.month().start, month.end);
            assert!(next.day().ends_with("-01"), "{}", next.day());
            at = next;
        }
    }
}
