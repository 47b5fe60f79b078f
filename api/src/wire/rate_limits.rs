//! Rate limits as clients see them: headers of replies.

use domain::rate_limit::RateStatus;

/// What the limit is, what is left of it, and when all of it will be: header and value.
pub fn headers(status: &RateStatus) -> [(&'static str, String); 6] {
    let (full, left) = (status.limit.per_minute(), status.left);
    let reset = |full: f64, left: f64| go_duration((full - left) * 60.0 / full);
    let whole = |amount: f64| format!("{:.0}", amount.floor());
    [
        ("x-ratelimit-limit-requests", whole(full.requests)),
        ("x-ratelimit-remaining-requests", whole(left.requests)),
        (
            "x-ratelimit-reset-requests",
            reset(full.requests, left.requests),
        ),
        ("x-ratelimit-limit-tokens", whole(full.tokens)),
        ("x-ratelimit-remaining-tokens", whole(left.tokens)),
        ("x-ratelimit-reset-tokens", reset(full.tokens, left.tokens)),
    ]
}

/// A duration as Go writes them, in whole milliseconds, rounded up: `17ms`, `1.5s`, `6m0s`, `1h0m0s`.
pub fn go_duration(seconds: f64) -> String {
    let ms = (seconds.max(0.0) * 1000.0).ceil() as u64;
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let rest = (ms % 60_000) as f64 / 1000.0;
    if hours > 0 {
        format!("{hours}h{minutes}m{rest}s")
    } else if minutes > 0 {
        format!("{minutes}m{rest}s")
    } else {
        format!("{rest}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        let cases = [
            (0.0, "0ms"),
            (0.0169, "17ms"),
            (1.0, "1s"),
            (8.64, "8.64s"),
            (360.0, "6m0s"),
            (3_661.5, "1h1m1.5s"),
        ];
        for (seconds, written) in cases {
            assert_eq!(go_duration(seconds), written);
        }
    }
}
