//! Instants. Nobody in this crate reads a clock; every function that needs the time is given it.

use std::ops::Range;

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveTime};
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
        let first = self
            .date()
            .with_day(1)
            .expect("every month has a first day");
        let next = first.checked_add_months(Months::new(1));
        let starts_at = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc().timestamp();
        starts_at(first)..next.map_or(i64::MAX, starts_at)
    }

    /// The day in UTC, as `2026-12-01`.
    pub fn day(self) -> String {
        self.date().to_string()
    }

    fn date(self) -> NaiveDate {
        let at = DateTime::from_timestamp_micros(self.0);
        at.expect("a clock is not 260,000 years off").date_naive()
    }
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
            let days = (month.end - month.start) / 86_400;
            assert!((28..=31).contains(&days), "{month:?}");
            let next = Timestamp::from_unix_s(month.end);
            assert_eq!(next.month().start, month.end);
            assert!(next.day().ends_with("-01"), "{}", next.day());
            at = next;
        }
    }
}
