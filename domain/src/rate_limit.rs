//! Rate limits: how much a project may ask of a model in a minute, and the bucket that keeps count.

use crate::time::Timestamp;

/// What a project may ask of a base model and of all that is tuned from it. Each is at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    pub requests_per_minute: u64,
    pub tokens_per_minute: u64,
}

/// A limit of one project on one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRateLimit {
    /// Name of the base model.
    pub model: String,
    pub limit: RateLimit,
}

/// What of a limit can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    Requests,
    Tokens,
}

/// So much of each dimension.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Amount {
    pub requests: f64,
    pub tokens: f64,
}

/// How a limit stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateStatus {
    pub limit: RateLimit,
    /// Not below 0.
    pub left: Amount,
}

impl RateLimit {
    /// What comes back in a minute, and the most that can be left.
    pub fn per_minute(&self) -> Amount {
        Amount {
            requests: self.requests_per_minute as f64,
            tokens: self.tokens_per_minute as f64,
        }
    }
}

impl Amount {
    /// What `self` lacks of `wanted`, in the dimension that takes longer to come back, and how long that is. Seconds.
    pub fn lacks(self, wanted: Amount, limit: RateLimit) -> Option<(Dimension, f64)> {
        let rate = limit.per_minute();
        let wait_s = |left: f64, wanted: f64, rate: f64| (wanted - left) * 60.0 / rate;
        let requests = wait_s(self.requests, wanted.requests, rate.requests);
        let tokens = wait_s(self.tokens, wanted.tokens, rate.tokens);
        let (dimension, wait) = if tokens > requests {
            (Dimension::Tokens, tokens)
        } else {
            (Dimension::Requests, requests)
        };
        // Less than a microsecond is what rounding leaves.
        (wait > 1e-6).then_some((dimension, wait))
    }

    fn each(self, other: Amount, of: impl Fn(f64, f64) -> f64) -> Amount {
        Amount {
            requests: of(self.requests, other.requests),
            tokens: of(self.tokens, other.tokens),
        }
    }

    /// Where something is needed, at least `share`; where nothing is, nothing.
    pub fn or_share(self, share: Amount) -> Amount {
        self.each(
            share,
            |needed, share| {
                if needed > 0.0 { needed.max(share) } else { 0.0 }
            },
        )
    }

    /// The larger of both, in each dimension.
    pub fn max(self, other: Amount) -> Amount {
        self.each(other, f64::max)
    }
}

impl std::ops::Add for Amount {
    type Output = Amount;

    fn add(self, other: Amount) -> Amount {
        self.each(other, |a, b| a + b)
    }
}

impl std::ops::Sub for Amount {
    type Output = Amount;

    fn sub(self, other: Amount) -> Amount {
        self.each(other, |a, b| a - b)
    }
}

impl std::ops::Mul<f64> for Amount {
    type Output = Amount;

    fn mul(self, factor: f64) -> Amount {
        self.each(self, |a, _| a * factor)
    }
}

/// What is left of a limit: a minute's worth at first and at most, refilled evenly.
/// Below zero where answers turned out longer than was reckoned for them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    pub left: Amount,
    pub at: Timestamp,
}

impl Bucket {
    pub fn full(limit: RateLimit, now: Timestamp) -> Self {
        Self {
            left: limit.per_minute(),
            at: now,
        }
    }

    /// As it is `now`. A clock that went back gives nothing and takes nothing.
    pub fn refilled(self, limit: RateLimit, now: Timestamp) -> Self {
        let minutes = now.since_s(self.at).max(0.0) / 60.0;
        let full = limit.per_minute();
        Self {
            left: (self.left + full * minutes).each(full, f64::min),
            at: self.at.max(now),
        }
    }

    /// Pays `debt` as far as it goes. Then gives `needed`, and of what is needed at least `share` as far as that is left; but
    /// nothing where `needed` is not left: who cannot pass yet takes nothing from those who can.
    pub fn draw(&mut self, debt: Amount, needed: Amount, share: Amount) -> Amount {
        let paid = self.take_up_to(debt);
        let suffices = paid == debt
            && self.left.requests >= needed.requests
            && self.left.tokens >= needed.tokens;
        if !suffices {
            return paid;
        }
        paid + self.take_up_to(needed.or_share(share))
    }

    /// Takes as much of `wanted` as is left; what was taken.
    fn take_up_to(&mut self, wanted: Amount) -> Amount {
        let given = wanted.each(self.left, |wanted, left| wanted.min(left.max(0.0)));
        self.left = self.left - given;
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit {
        requests_per_minute: 60,
        tokens_per_minute: 6_000,
    };

    fn amount(requests: f64, tokens: f64) -> Amount {
        Amount { requests, tokens }
    }

    #[test]
    fn a_bucket_gives_what_is_left_and_refills_evenly() {
        let mut bucket = Bucket::full(LIMIT, Timestamp(0));
        assert_eq!(
            bucket.take_up_to(amount(50.0, 7_000.0)),
            amount(50.0, 6_000.0)
        );
        assert_eq!(bucket.left, amount(10.0, 0.0));
        let later = bucket.refilled(LIMIT, Timestamp::from_unix_s(2));
        assert_eq!(later.left, amount(12.0, 200.0));
        let full = later.refilled(LIMIT, Timestamp::from_unix_s(3_600));
        assert_eq!(full.left, amount(60.0, 6_000.0));
        let back = full.refilled(LIMIT, Timestamp::from_unix_s(5));
        assert_eq!(back, full);
    }

    #[test]
    fn an_empty_bucket_gives_nothing_and_a_debt_has_to_come_back_first() {
        let mut bucket = Bucket {
            left: amount(0.0, -300.0),
            at: Timestamp(0),
        };
        assert_eq!(bucket.take_up_to(amount(1.0, 1.0)), amount(0.0, 0.0));
        let lack = bucket.left.lacks(amount(0.0, 100.0), LIMIT);
        assert_eq!(lack, Some((Dimension::Tokens, 4.0)));
    }

    #[test]
    fn who_cannot_pass_takes_nothing_but_pays_its_debt() {
        let mut bucket = Bucket {
            left: amount(60.0, 5_000.0),
            at: Timestamp(0),
        };
        let none = amount(0.0, 0.0);
        assert_eq!(bucket.draw(none, amount(1.0, 6_000.0), none), none);
        assert_eq!(bucket.left, amount(60.0, 5_000.0));
        let debt = amount(0.0, 300.0);
        let given = bucket.draw(debt, amount(1.0, 100.0), amount(2.0, 150.0));
        assert_eq!(given, amount(2.0, 450.0));
        let debt = amount(0.0, 9_000.0);
        let given = bucket.draw(debt, amount(1.0, 1.0), none);
        assert_eq!(
            given,
            amount(0.0, 4_550.0),
            "a debt beyond the limit is paid in parts"
        );
    }

    #[test]
    fn the_dimension_that_takes_longer_is_named() {
        let left = amount(0.0, 0.0);
        let lacks = |requests, tokens| left.lacks(amount(requests, tokens), LIMIT);
        assert_eq!(lacks(1.0, 50.0), Some((Dimension::Requests, 1.0)));
        assert_eq!(lacks(1.0, 200.0), Some((Dimension::Tokens, 2.0)));
        assert_eq!(lacks(0.0, 0.0), None);
    }
}
