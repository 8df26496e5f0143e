//! From the answers of receivers to outcomes (Standard Webhooks 1.0, "Deliverability and reliability").

use std::time::Duration;

use crate::providers::Outcome;

/// Judges the status of an answer. Only 2xx accepts, and only 410 says that the receiver wants no more. Everything else may be
/// the mistake of a moment, such as a deployment or a changed route, so it is retried, also what a client usually is to blame
/// for.
pub(super) fn judge(status: u16, retry_after: Option<Duration>) -> Outcome {
    match status {
        200..=299 => Outcome::Accepted { provider_id: None },
        410 => Outcome::gone("http_410"),
        _ => Outcome::retry_later(format!("http_{status}"), retry_after),
    }
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &http::HeaderMap, now: jiff::Timestamp) -> Outcome {
    judge(
        status,
        crate::providers::transport::retry_after::retry_after(headers, now),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_2xx_accepts_and_only_410_removes() {
        let asked = Some(Duration::from_secs(7));
        for status in 100..=599 {
            let expected = match status {
                200..=299 => Outcome::Accepted { provider_id: None },
                410 => Outcome::gone("http_410"),
                _ => Outcome::retry_later(format!("http_{status}"), asked),
            };
            assert_eq!(judge(status, asked), expected, "{status}");
        }
    }

    #[test]
    fn a_receiver_may_say_when_to_come_again() {
        let headers = [("retry-after", "120")].map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let outcome = judged(503, &headers.into_iter().collect(), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(outcome, Outcome::retry_later("http_503", Some(Duration::from_mins(2))));
    }
}
