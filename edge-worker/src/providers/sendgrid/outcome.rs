//! The outcome of each answer of `SendGrid`.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;

use crate::providers::Outcome;

/// The wait after a rate limit that names no time.
const RATE_LIMIT_PAUSE: Duration = Duration::from_mins(1);

/// The longest wait that is taken from an answer.
const MAX_PAUSE: Duration = Duration::from_hours(1);

/// A refusal. Its texts are not kept: they may repeat a mailbox.
#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "errors")]
    _errors: Vec<serde_json::Value>,
}

/// The outcome of an answer. `SendGrid` says later, by events, what became of a mail that it took.
pub(super) fn judge(status: u16, headers: &HeaderMap, body: &[u8], asked: Option<Duration>, now: Timestamp) -> Outcome {
    let is_own = serde_json::from_slice::<Refusal>(body).is_ok();
    match status {
        // 200 in its sandbox mode.
        200 | 202 => Outcome::Accepted {
            provider_id: message_id(headers),
        },
        429 => Outcome::retry_later(
            "rate_limited",
            Some(asked.or_else(|| reset(headers, now)).unwrap_or(RATE_LIMIT_PAUSE)),
        ),
        500..=599 => Outcome::retry_later(format!("http_{status}"), asked),
        // Anybody on the way may answer so, and then the mail is not to blame.
        _ if !is_own => Outcome::endpoint("not_sendgrid", None),
        401 => Outcome::credential("unauthorized", None),
        // Among others, an author who is no verified sender.
        403 => Outcome::credential("forbidden", None),
        413 => Outcome::rejected("too_large"),
        400..=499 => Outcome::rejected(format!("http_{status}")),
        _ => Outcome::endpoint("not_sendgrid", None),
    }
}

/// How long the limit of the key lasts: `X-RateLimit-Reset`, seconds since 1970.
fn reset(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let at: i64 = headers.get("x-ratelimit-reset")?.to_str().ok()?.parse().ok()?;
    let left = u64::try_from(at.saturating_sub(now.as_second())).unwrap_or_default();
    Some(Duration::from_secs(left).clamp(Duration::from_secs(1), MAX_PAUSE))
}

fn message_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-message-id")?.to_str().ok()?;
    let is_plain = id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (is_plain && (1..=100).contains(&id.len())).then(|| id.to_owned())
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &HeaderMap, now: Timestamp, body: &[u8]) -> Outcome {
    let asked = crate::providers::transport::retry_after::retry_after(headers, now);
    judge(status, headers, body, asked, now)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const OWN: &[u8] = br#"{"errors":[{"message":"The from address does not match","field":"from","help":null}]}"#;

    #[test]
    fn every_documented_status_has_an_outcome() {
        let retry =
            |reason: &'static str, seconds: Option<u64>| Outcome::retry_later(reason, seconds.map(Duration::from_secs));
        for (status, outcome) in [
            (200, Outcome::Accepted { provider_id: None }),
            (202, Outcome::Accepted { provider_id: None }),
            (400, Outcome::rejected("http_400")),
            (401, Outcome::credential("unauthorized", None)),
            (403, Outcome::credential("forbidden", None)),
            (404, Outcome::rejected("http_404")),
            (405, Outcome::rejected("http_405")),
            (413, Outcome::rejected("too_large")),
            (429, retry("rate_limited", Some(60))),
            (500, retry("http_500", None)),
            (503, retry("http_503", None)),
            (301, Outcome::endpoint("not_sendgrid", None)),
        ] {
            assert_eq!(
                judged(status, &HeaderMap::new(), Timestamp::UNIX_EPOCH, OWN),
                outcome,
                "{status}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_not_of_sendgrid_rejects_nothing() {
        for status in [301, 400, 401, 403, 404, 413] {
            let outcome = judged(status, &HeaderMap::new(), Timestamp::UNIX_EPOCH, b"<html>");
            assert_eq!(outcome, Outcome::endpoint("not_sendgrid", None), "{status}");
        }
    }

    #[test]
    fn a_rate_limit_lasts_until_its_reset() {
        let headers: HeaderMap = [("x-ratelimit-reset", "130"), ("x-message-id", "14c5d75ce93.dfd.64b469")]
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let now = Timestamp::from_second(100).unwrap();
        let limited = judged(429, &headers, now, b"");
        assert_eq!(
            limited,
            Outcome::retry_later("rate_limited", Some(Duration::from_secs(30)))
        );
        let provider_id = Some("14c5d75ce93.dfd.64b469".to_owned());
        assert_eq!(judged(202, &headers, now, b""), Outcome::Accepted { provider_id });
    }
}
