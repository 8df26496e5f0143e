//! From the answers of Vonage to outcomes (Vonage: SMS API, "SMS error codes").

use std::{borrow::Cow, time::Duration};

use serde::Deserialize;

use crate::providers::Outcome;

/// The minimum wait after Vonage refused a message because there are too many in a second; it names no time.
const THROTTLED_PAUSE: Duration = Duration::from_secs(1);

/// The body of every answer: one message for each segment.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    messages: Vec<Part<'a>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    /// A number in quotes; 0 is success.
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow, default, rename = "message-id")]
    id: Option<Cow<'a, str>>,
}

/// Judges an answer. Vonage answers 200 also when it refuses; the statuses of the parts decide. `body` is absent if it was
/// cut.
pub(super) fn judge(http: u16, body: Option<&[u8]>, retry_after: Option<Duration>) -> Outcome {
    let parts = body.and_then(|body| serde_json::from_slice::<Body<'_>>(body).ok());
    let parts = parts.map(|body| body.messages).unwrap_or_default();
    let accepted = parts.iter().filter(|part| part.status == "0").count();
    match parts.iter().find(|part| part.status != "0") {
        Some(_) if accepted > 0 => Outcome::ambiguous("partly_accepted"),
        Some(refused) => by_status(&refused.status, retry_after),
        None if accepted > 0 => Outcome::Accepted {
            provider_id: parts.first().and_then(|part| part.id.as_deref()).map(str::to_owned),
        },
        None => by_http(http, retry_after),
    }
}

fn by_status(status: &str, retry_after: Option<Duration>) -> Outcome {
    let throttled = Some(retry_after.unwrap_or_default().max(THROTTLED_PAUSE));
    match status {
        "1" => Outcome::retry_later("throttled", throttled),
        "2" => Outcome::rejected("missing_parameters"),
        "3" => Outcome::rejected("invalid_parameters"),
        "4" => Outcome::credential("invalid_credentials", None),
        "5" => Outcome::retry_later("internal_error", retry_after),
        "6" => Outcome::rejected("invalid_message"),
        // The number is on a list of those that may not be sent to. It may leave the list again.
        "7" => Outcome::rejected("number_barred"),
        "8" => Outcome::credential("account_barred", None),
        // The account has no credit left.
        "9" => Outcome::credential("quota_violation", None),
        "10" => Outcome::retry_later("too_many_binds", throttled),
        "11" => Outcome::credential("account_not_enabled", None),
        "12" => Outcome::rejected("message_too_long"),
        "14" => Outcome::credential("invalid_signature", None),
        "15" => Outcome::rejected("invalid_sender"),
        "22" => Outcome::rejected("invalid_network_code"),
        "23" => Outcome::rejected("invalid_callback"),
        // An account on trial sends to listed numbers only.
        "29" => Outcome::rejected("not_whitelisted"),
        "32" => Outcome::credential("signature_and_secret", None),
        "33" => Outcome::gone("number_deactivated"),
        other if other.len() <= 4 && other.bytes().all(|byte| byte.is_ascii_digit()) => {
            Outcome::rejected(format!("status_{other}"))
        }
        _ => Outcome::rejected("unknown"),
    }
}

/// For answers without statuses.
fn by_http(http: u16, retry_after: Option<Duration>) -> Outcome {
    match http {
        // It may have been accepted.
        200..=299 => Outcome::ambiguous("not_vonage"),
        401 | 403 => Outcome::credential(format!("http_{http}"), retry_after),
        429 => Outcome::retry_later("http_429", Some(retry_after.unwrap_or_default().max(THROTTLED_PAUSE))),
        // RFC 9110, section 15.6.4: the server cannot handle the request now.
        503 => Outcome::retry_later("http_503", retry_after),
        500..=599 => Outcome::ambiguous(format!("http_{http}")),
        _ => Outcome::endpoint("not_vonage", retry_after),
    }
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &http::HeaderMap, now: jiff::Timestamp, body: &[u8]) -> Outcome {
    let retry_after = crate::providers::transport::retry_after::retry_after(headers, now);
    judge(status, Some(body), retry_after)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn part(status: &str, id: &str) -> Value {
        match status {
            "0" => json!({ "to": "41791234567", "message-id": id, "status": "0", "remaining-balance": "3.1" }),
            _ => json!({ "status": status, "error-text": "content" }),
        }
    }

    fn answered(parts: &[&str]) -> Outcome {
        let parts: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(index, status)| part(status, &format!("M{index}")))
            .collect();
        let body = json!({ "message-count": parts.len().to_string(), "messages": parts });
        judge(200, Some(body.to_string().as_bytes()), None)
    }

    #[test]
    fn every_documented_status_has_an_outcome() {
        let pause = Some(Duration::from_secs(1));
        let gone = Outcome::gone("number_deactivated");
        for (status, outcome) in [
            ("1", Outcome::retry_later("throttled", pause)),
            ("2", Outcome::rejected("missing_parameters")),
            ("3", Outcome::rejected("invalid_parameters")),
            ("4", Outcome::credential("invalid_credentials", None)),
            ("5", Outcome::retry_later("internal_error", None)),
            ("6", Outcome::rejected("invalid_message")),
            ("7", Outcome::rejected("number_barred")),
            ("8", Outcome::credential("account_barred", None)),
            ("9", Outcome::credential("quota_violation", None)),
            ("10", Outcome::retry_later("too_many_binds", pause)),
            ("11", Outcome::credential("account_not_enabled", None)),
            ("12", Outcome::rejected("message_too_long")),
            ("14", Outcome::credential("invalid_signature", None)),
            ("15", Outcome::rejected("invalid_sender")),
            ("22", Outcome::rejected("invalid_network_code")),
            ("23", Outcome::rejected("invalid_callback")),
            ("29", Outcome::rejected("not_whitelisted")),
            ("32", Outcome::credential("signature_and_secret", None)),
            ("33", gone),
            ("99", Outcome::rejected("status_99")),
            ("a number", Outcome::rejected("unknown")),
        ] {
            assert_eq!(answered(&[status]), outcome, "{status}");
        }
    }

    #[test]
    fn all_parts_decide() {
        let accepted = Outcome::Accepted {
            provider_id: Some("M0".into()),
        };
        assert_eq!(answered(&["0"]), accepted);
        assert_eq!(answered(&["0", "0", "0"]), accepted);
        assert_eq!(answered(&["0", "1"]), Outcome::ambiguous("partly_accepted"));
        assert_eq!(answered(&["1", "0"]), Outcome::ambiguous("partly_accepted"));
        assert_eq!(answered(&["6", "6"]), Outcome::rejected("invalid_message"));
    }

    #[test]
    fn an_answer_without_statuses_is_in_doubt_if_it_may_have_accepted() {
        for (http, outcome) in [
            (200, Outcome::ambiguous("not_vonage")),
            (401, Outcome::credential("http_401", None)),
            (429, Outcome::retry_later("http_429", Some(Duration::from_secs(1)))),
            (404, Outcome::endpoint("not_vonage", None)),
            (302, Outcome::endpoint("not_vonage", None)),
            (500, Outcome::ambiguous("http_500")),
            (503, Outcome::retry_later("http_503", None)),
        ] {
            for body in [None, Some(b"<html>".as_slice()), Some(b"{\"messages\":[]}")] {
                assert_eq!(judge(http, body, None), outcome, "{http}");
            }
        }
    }
}
