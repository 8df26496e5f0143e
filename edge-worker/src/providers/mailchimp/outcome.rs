//! The outcome of each answer of Mailchimp Transactional.

use std::time::Duration;

use serde::Deserialize;

use crate::providers::{Outcome, outcome::foreign_reason};

/// The wait after a rate limit that names no time.
const RATE_LIMIT_PAUSE: Duration = Duration::from_mins(1);

/// What became of the mail to one recipient.
#[derive(Deserialize)]
struct Sent {
    status: String,
    reject_reason: Option<String>,
    #[serde(rename = "_id")]
    id: Option<String>,
}

/// An error of the request as a whole. Its text is not kept: it may repeat a mailbox.
#[derive(Deserialize)]
struct Refusal {
    name: String,
}

/// The outcome of an answer. The body decides: Mailchimp reports what is the caller's fault with 500 too.
pub(super) fn judge(status: u16, body: Option<&[u8]>, asked: Option<Duration>) -> Outcome {
    let Some(body) = body else {
        // Whether the mail was taken stands in the body.
        return if status == 200 {
            Outcome::ambiguous("answer_incomplete")
        } else {
            Outcome::retry_later("answer_incomplete", asked)
        };
    };
    if status == 200 {
        return match serde_json::from_slice::<Vec<Sent>>(body).as_deref() {
            Ok([sent]) => of_recipient(sent),
            // It may have been taken.
            Ok(_) | Err(_) => Outcome::ambiguous("answer_unreadable"),
        };
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => of_request(status, &refusal.name, asked),
        Err(_) if status == 429 => Outcome::retry_later("rate_limited", Some(asked.unwrap_or(RATE_LIMIT_PAUSE))),
        Err(_) if status >= 500 => Outcome::retry_later(format!("http_{status}"), asked),
        Err(_) => Outcome::endpoint("not_mailchimp", None),
    }
}

fn of_recipient(sent: &Sent) -> Outcome {
    match (sent.status.as_str(), sent.reject_reason.as_deref()) {
        ("sent" | "queued" | "scheduled", _) => Outcome::Accepted {
            provider_id: sent
                .id
                .clone()
                .filter(|id| (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())),
        },
        // On its list of mailboxes that do not exist.
        ("rejected", Some("hard-bounce")) => Outcome::gone("hard_bounce"),
        // The sender's domain is not verified or does not sign; the account is one for tests, or was stopped.
        ("rejected", Some(reason @ ("invalid-sender" | "unsigned" | "test-mode-limit" | "recipient-limit"))) => {
            Outcome::credential(word(reason), None)
        }
        // The recipient complained, unsubscribed or is on a list: spam, unsub, custom, soft-bounce, rule, invalid.
        ("rejected", Some(reason)) => Outcome::rejected(word(reason)),
        ("rejected", None) => Outcome::rejected("rejected"),
        ("invalid", _) => Outcome::rejected("invalid"),
        _ => Outcome::ambiguous("answer_unreadable"),
    }
}

fn of_request(status: u16, name: &str, asked: Option<Duration>) -> Outcome {
    let reason = word(name);
    match name {
        "Invalid_Key" | "PaymentRequired" | "Unknown_Subaccount" | "Paused_Subaccount" | "AccountIsInactive" => {
            Outcome::credential(reason, None)
        }
        "ValidationError" | "Invalid_Template" | "Unknown_Template" => Outcome::rejected(reason),
        "ServiceUnavailable" | "GeneralError" => Outcome::retry_later(reason, asked),
        _ if status == 429 => Outcome::retry_later(reason, Some(asked.unwrap_or(RATE_LIMIT_PAUSE))),
        _ if status >= 500 => Outcome::retry_later(reason, asked),
        _ => Outcome::rejected(reason),
    }
}

/// A reason of Mailchimp's as one word.
fn word(reason: &str) -> crate::providers::Reason {
    foreign_reason(&reason.replace('-', "_"), "unknown")
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &http::HeaderMap, now: jiff::Timestamp, body: &[u8]) -> Outcome {
    let asked = crate::providers::transport::retry_after::retry_after(headers, now);
    judge(status, Some(body), asked)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answered(status: u16, body: &Value) -> Outcome {
        judge(status, Some(body.to_string().as_bytes()), None)
    }

    #[test]
    fn every_status_of_a_recipient_has_an_outcome() {
        let sent = |status: &str, reason: Option<&str>| {
            answered(
                200,
                &json!([{ "email": "a@b.c", "status": status, "reject_reason": reason, "_id": "abc123" }]),
            )
        };
        for status in ["sent", "queued", "scheduled"] {
            let provider_id = Some("abc123".to_owned());
            assert_eq!(sent(status, None), Outcome::Accepted { provider_id });
        }
        let gone = Outcome::gone("hard_bounce");
        for (reason, outcome) in [
            ("hard-bounce", gone),
            ("soft-bounce", Outcome::rejected("soft_bounce")),
            ("spam", Outcome::rejected("spam")),
            ("unsub", Outcome::rejected("unsub")),
            ("custom", Outcome::rejected("custom")),
            ("rule", Outcome::rejected("rule")),
            ("invalid-sender", Outcome::credential("invalid_sender", None)),
            ("unsigned", Outcome::credential("unsigned", None)),
            ("test-mode-limit", Outcome::credential("test_mode_limit", None)),
            ("a new one <a@b.c>", Outcome::rejected("unknown")),
        ] {
            assert_eq!(sent("rejected", Some(reason)), outcome, "{reason}");
        }
        assert_eq!(sent("invalid", None), Outcome::rejected("invalid"));
        assert_eq!(sent("invented", None), Outcome::ambiguous("answer_unreadable"));
    }

    #[test]
    fn every_error_has_an_outcome_whatever_its_status() {
        let error = |name: &str| json!({ "status": "error", "code": -1, "name": name, "message": "a@b.c" });
        for (status, name, outcome) in [
            (401, "Invalid_Key", Outcome::credential("Invalid_Key", None)),
            (500, "Invalid_Key", Outcome::credential("Invalid_Key", None)),
            (500, "PaymentRequired", Outcome::credential("PaymentRequired", None)),
            (
                500,
                "Unknown_Subaccount",
                Outcome::credential("Unknown_Subaccount", None),
            ),
            (500, "ValidationError", Outcome::rejected("ValidationError")),
            (500, "GeneralError", Outcome::retry_later("GeneralError", None)),
            (
                503,
                "ServiceUnavailable",
                Outcome::retry_later("ServiceUnavailable", None),
            ),
            (500, "InventedLater", Outcome::retry_later("InventedLater", None)),
            (400, "InventedLater", Outcome::rejected("InventedLater")),
            (429, "TooMany", Outcome::retry_later("TooMany", Some(RATE_LIMIT_PAUSE))),
        ] {
            assert_eq!(answered(status, &error(name)), outcome, "{status} {name}");
        }
    }

    #[test]
    fn an_answer_that_is_not_of_mailchimp_rejects_nothing() {
        for (status, outcome) in [
            (200, Outcome::ambiguous("answer_unreadable")),
            (404, Outcome::endpoint("not_mailchimp", None)),
            (502, Outcome::retry_later("http_502", None)),
        ] {
            assert_eq!(judge(status, Some(b"<html>"), None), outcome);
        }
        assert_eq!(judge(200, None, None), Outcome::ambiguous("answer_incomplete"));
        assert_eq!(answered(200, &json!([])), Outcome::ambiguous("answer_unreadable"));
    }
}
