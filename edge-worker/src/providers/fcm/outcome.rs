//! From the answers of FCM to outcomes (Google: FCM error codes; Best practices when sending FCM messages at scale).

use std::{borrow::Cow, time::Duration};

use serde::Deserialize;

use crate::providers::{
    outcome::{Outcome, Reason, foreign_reason},
    transport::access_token::Verdict,
};

/// Google's default for a 429 without `Retry-After`.
const DEFAULT_QUOTA_PAUSE: Duration = Duration::from_mins(1);

/// The minimum wait after a server error, as Google asks.
const MIN_ERROR_PAUSE: Duration = Duration::from_secs(10);

/// `google.firebase.fcm.v1.FcmError.errorCode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum FcmCode {
    UnspecifiedError,
    InvalidArgument,
    Unregistered,
    SenderIdMismatch,
    QuotaExceeded,
    Unavailable,
    Internal,
    ThirdPartyAuthError,
}

/// `google.rpc.Status`, the body of every refusal.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    error: Status<'a>,
}

#[derive(Deserialize)]
struct Status<'a> {
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    details: Vec<Detail<'a>>,
}

#[derive(Deserialize)]
struct Detail<'a> {
    #[serde(borrow, rename = "@type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "errorCode")]
    code: Option<Cow<'a, str>>,
}

/// The body of an acceptance.
#[derive(Deserialize)]
struct Accepted {
    name: String,
}

/// The name that FCM gave an accepted message.
pub(super) fn message_name(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Accepted>(body)
        .ok()
        .map(|accepted| accepted.name)
}

/// Judges an answer that is not 200.
pub(super) fn judge(status: u16, body: &[u8], retry_after: Option<Duration>) -> Verdict {
    let Ok(Body { error }) = serde_json::from_slice::<Body<'_>>(body) else {
        // The body is not FCM's, so an intermediary answered, and Google refused nothing.
        return match status {
            429 | 500..=599 => by_status("unknown".into(), status, retry_after),
            _ => Outcome::endpoint("not_fcm", retry_after).into(),
        };
    };
    let is_fcm = |kind: &str| kind.ends_with("/google.firebase.fcm.v1.FcmError");
    let code = error
        .details
        .iter()
        .find(|detail| detail.kind.as_deref().is_some_and(is_fcm));
    match (code.and_then(|detail| detail.code.as_deref()), error.status.as_deref()) {
        (Some(text), _) => match parse(text) {
            Some(code) => by_code(code, status, retry_after),
            None => by_status(foreign_reason(text, "unknown"), status, retry_after),
        },
        (None, Some(text)) => by_status(foreign_reason(text, "unknown"), status, retry_after),
        (None, None) => by_status("unknown".into(), status, retry_after),
    }
}

fn parse(code: &str) -> Option<FcmCode> {
    use serde::de::{IntoDeserializer, value};
    FcmCode::deserialize(IntoDeserializer::<value::Error>::into_deserializer(code)).ok()
}

fn by_code(code: FcmCode, status: u16, retry_after: Option<Duration>) -> Verdict {
    match code {
        FcmCode::InvalidArgument => Outcome::rejected("INVALID_ARGUMENT").into(),
        FcmCode::Unregistered => Outcome::gone("UNREGISTERED").into(),
        // The token belongs to another project, so this app can never reach it.
        FcmCode::SenderIdMismatch => Outcome::gone("SENDER_ID_MISMATCH").into(),
        FcmCode::QuotaExceeded => quota("QUOTA_EXCEEDED".into(), retry_after).into(),
        FcmCode::Unavailable => server_error("UNAVAILABLE".into(), retry_after).into(),
        FcmCode::Internal => server_error("INTERNAL".into(), retry_after).into(),
        // The project's own credential for APNs or web push is invalid, so every such push of this app fails.
        FcmCode::ThirdPartyAuthError => Outcome::credential("THIRD_PARTY_AUTH_ERROR", None).into(),
        FcmCode::UnspecifiedError => by_status("UNSPECIFIED_ERROR".into(), status, retry_after),
    }
}

/// For answers without an [`FcmCode`], by the class of the status.
fn by_status(reason: Reason, status: u16, retry_after: Option<Duration>) -> Verdict {
    match status {
        401 => Verdict {
            outcome: Outcome::credential(reason, None),
            renew_token: true,
        },
        // Without a code these concern the project: the API is disabled, the account lacks permission, no such project.
        403 | 404 => Outcome::credential(reason, None).into(),
        429 => quota(reason, retry_after).into(),
        400..=499 => Outcome::rejected(reason).into(),
        500..=599 => server_error(reason, retry_after).into(),
        _ => Outcome::endpoint(reason, retry_after).into(),
    }
}

fn quota(reason: Reason, retry_after: Option<Duration>) -> Outcome {
    Outcome::retry_later(reason, Some(retry_after.unwrap_or(DEFAULT_QUOTA_PAUSE)))
}

fn server_error(reason: Reason, retry_after: Option<Duration>) -> Outcome {
    Outcome::retry_later(reason, Some(retry_after.unwrap_or_default().max(MIN_ERROR_PAUSE)))
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &http::HeaderMap, now: jiff::Timestamp, body: &[u8]) -> Outcome {
    let retry_after = crate::providers::transport::retry_after::retry_after(headers, now);
    judge(status, body, retry_after).outcome
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(status: u16, code: Option<&str>, rpc: &str) -> Verdict {
        let detail = code
            .map(|code| json!({ "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code }));
        let other = json!({ "@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [] });
        let details: Vec<_> = [Some(other), detail].into_iter().flatten().collect();
        let error = json!({ "code": status, "message": "content", "status": rpc, "details": details });
        judge(status, json!({ "error": error }).to_string().as_bytes(), None)
    }

    #[test]
    fn every_documented_code_has_an_outcome() {
        let pause = |seconds| Some(Duration::from_secs(seconds));
        for (status, code, rpc, outcome) in [
            (
                400,
                "INVALID_ARGUMENT",
                "INVALID_ARGUMENT",
                Outcome::rejected("INVALID_ARGUMENT"),
            ),
            (404, "UNREGISTERED", "NOT_FOUND", Outcome::gone("UNREGISTERED")),
            (
                403,
                "SENDER_ID_MISMATCH",
                "PERMISSION_DENIED",
                Outcome::gone("SENDER_ID_MISMATCH"),
            ),
            (
                429,
                "QUOTA_EXCEEDED",
                "RESOURCE_EXHAUSTED",
                Outcome::retry_later("QUOTA_EXCEEDED", pause(60)),
            ),
            (
                503,
                "UNAVAILABLE",
                "UNAVAILABLE",
                Outcome::retry_later("UNAVAILABLE", pause(10)),
            ),
            (500, "INTERNAL", "INTERNAL", Outcome::retry_later("INTERNAL", pause(10))),
            (
                401,
                "THIRD_PARTY_AUTH_ERROR",
                "UNAUTHENTICATED",
                Outcome::credential("THIRD_PARTY_AUTH_ERROR", None),
            ),
            (
                500,
                "UNSPECIFIED_ERROR",
                "UNKNOWN",
                Outcome::retry_later("UNSPECIFIED_ERROR", pause(10)),
            ),
            (
                400,
                "INVENTED_LATER",
                "INVALID_ARGUMENT",
                Outcome::rejected("INVENTED_LATER"),
            ),
        ] {
            assert_eq!(judged(status, Some(code), rpc), outcome.into(), "{code}");
        }
    }

    #[test]
    fn without_a_code_the_status_decides() {
        let refused = judged(401, None, "UNAUTHENTICATED");
        assert_eq!(refused.outcome, Outcome::credential("UNAUTHENTICATED", None));
        assert!(refused.renew_token);
        assert!(!judged(401, Some("THIRD_PARTY_AUTH_ERROR"), "UNAUTHENTICATED").renew_token);
        for (status, rpc) in [(403, "PERMISSION_DENIED"), (404, "NOT_FOUND")] {
            assert_eq!(
                judged(status, None, rpc),
                Outcome::credential(rpc, None).into(),
                "no address is to blame"
            );
        }
        assert_eq!(
            judged(400, None, "INVALID_ARGUMENT"),
            Outcome::rejected("INVALID_ARGUMENT").into()
        );
    }

    #[test]
    fn retries_wait_as_long_as_google_asks() {
        let quota = |asked: u64| {
            let body = json!({ "error": { "status": "RESOURCE_EXHAUSTED" } }).to_string();
            judge(429, body.as_bytes(), Some(Duration::from_secs(asked))).outcome
        };
        assert_eq!(
            quota(8),
            Outcome::retry_later("RESOURCE_EXHAUSTED", Some(Duration::from_secs(8)))
        );
        let error = judge(503, b"", Some(Duration::from_secs(2))).outcome;
        assert_eq!(
            error,
            Outcome::retry_later("unknown", Some(MIN_ERROR_PAUSE)),
            "never sooner than ten seconds"
        );
    }

    #[test]
    fn an_answer_that_is_not_of_fcm_rejects_nothing() {
        for status in [301, 400, 403, 404] {
            assert_eq!(
                judge(status, b"<html>", None),
                Outcome::endpoint("not_fcm", None).into()
            );
        }
    }

    #[test]
    fn an_acceptance_has_the_name_of_the_message() {
        assert_eq!(
            message_name(br#"{"name":"projects/p/messages/1"}"#).as_deref(),
            Some("projects/p/messages/1")
        );
        assert_eq!(message_name(b""), None);
    }
}
