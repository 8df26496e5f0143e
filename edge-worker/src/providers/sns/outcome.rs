//! From the answers of Amazon SNS to outcomes (AWS: Publish, Common errors, "Common causes of Amazon SNS delivery failures").

use std::time::Duration;

use crate::providers::{Outcome, Reason, outcome::foreign_reason};

/// The minimum wait after SNS refused a request because there are too many; it names no time.
const THROTTLED_PAUSE: Duration = Duration::from_secs(1);

/// How long a spending limit for text messages lasts at least: it is one of the month, and is raised by hand.
const SPENT_PAUSE: Duration = Duration::from_hours(1);

/// Judges an answer. `body` is absent if it was cut.
pub(super) fn judge(status: u16, body: Option<&[u8]>, retry_after: Option<Duration>) -> Outcome {
    let body = String::from_utf8_lossy(body.unwrap_or_default());
    if (200..300).contains(&status) {
        return Outcome::Accepted {
            provider_id: element(&body, "MessageId").filter(|id| is_id(id)).map(str::to_owned),
        };
    }
    match element(&body, "Code") {
        Some(code) => by_code(code, status, retry_after),
        None => by_status(None, status, retry_after),
    }
}

/// The text of the first element of this name. SNS answers with XML without attributes, references or nesting in these elements.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn by_code(code: &str, status: u16, retry_after: Option<Duration>) -> Outcome {
    let reason = foreign_reason(code, "unknown");
    let after =
        |least: Duration| Outcome::retry_later(reason.clone(), Some(retry_after.unwrap_or_default().max(least)));
    match code {
        // SNS disables an endpoint when APNs or FCM reports its token gone; NotFound: it was deleted.
        "EndpointDisabled" | "NotFound" | "NotFoundException" => Outcome::gone(reason),
        // The key is wrong, inactive or may not do this; the platform's own credential is disabled; the clock is wrong.
        "PlatformApplicationDisabled"
        | "AuthorizationError"
        | "AccessDenied"
        | "AccessDeniedException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "UnrecognizedClientException"
        | "InvalidSecurity"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "NotAuthorized"
        | "OptInRequired"
        | "KMSAccessDenied"
        | "KMSDisabled"
        | "KMSOptInRequired" => Outcome::credential(reason, retry_after),
        "Throttling"
        | "ThrottlingException"
        | "Throttled"
        | "ThrottledException"
        | "RequestLimitExceeded"
        | "KMSThrottling" => after(THROTTLED_PAUSE),
        "QuotaExceeded" | "LimitExceeded" => after(SPENT_PAUSE),
        "InternalError" | "InternalFailure" => Outcome::ambiguous(reason),
        "ServiceUnavailable" => Outcome::retry_later(reason, retry_after),
        _ => by_status(Some(reason), status, retry_after),
    }
}

/// By the class of the status. Without a `reason` the body is not of SNS: an intermediary answered.
fn by_status(reason: Option<Reason>, status: u16, retry_after: Option<Duration>) -> Outcome {
    let is_own = reason.is_some();
    let reason = reason.unwrap_or_else(|| format!("http_{status}").into());
    match status {
        429 => Outcome::retry_later(reason, Some(retry_after.unwrap_or_default().max(THROTTLED_PAUSE))),
        // RFC 9110, section 15.6.4: the server cannot handle the request now.
        503 => Outcome::retry_later(reason, retry_after),
        500..=599 => Outcome::ambiguous(reason),
        401 | 403 if is_own => Outcome::credential(reason, retry_after),
        400..=499 if is_own => Outcome::rejected(reason),
        _ => Outcome::endpoint("not_sns", retry_after),
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
    use super::*;

    fn refused(status: u16, code: &str) -> Outcome {
        let body = format!(
            "<ErrorResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><Error><Type>Sender</Type>\
             <Code>{code}</Code><Message>content</Message></Error><RequestId>1</RequestId></ErrorResponse>"
        );
        judge(status, Some(body.as_bytes()), None)
    }

    #[test]
    fn every_documented_code_has_an_outcome() {
        let pause = |seconds| Some(Duration::from_secs(seconds));
        for (status, code, outcome) in [
            (400, "EndpointDisabled", Outcome::gone("EndpointDisabled")),
            (404, "NotFound", Outcome::gone("NotFound")),
            (
                400,
                "PlatformApplicationDisabled",
                Outcome::credential("PlatformApplicationDisabled", None),
            ),
            (
                403,
                "AuthorizationError",
                Outcome::credential("AuthorizationError", None),
            ),
            (
                403,
                "InvalidClientTokenId",
                Outcome::credential("InvalidClientTokenId", None),
            ),
            (
                403,
                "SignatureDoesNotMatch",
                Outcome::credential("SignatureDoesNotMatch", None),
            ),
            (
                400,
                "IncompleteSignature",
                Outcome::credential("IncompleteSignature", None),
            ),
            (
                403,
                "MissingAuthenticationToken",
                Outcome::credential("MissingAuthenticationToken", None),
            ),
            (403, "InvalidSecurity", Outcome::credential("InvalidSecurity", None)),
            (403, "ExpiredToken", Outcome::credential("ExpiredToken", None)),
            (400, "RequestExpired", Outcome::credential("RequestExpired", None)),
            (403, "OptInRequired", Outcome::credential("OptInRequired", None)),
            (400, "KMSDisabled", Outcome::credential("KMSDisabled", None)),
            (400, "Throttling", Outcome::retry_later("Throttling", pause(1))),
            (429, "Throttled", Outcome::retry_later("Throttled", pause(1))),
            (400, "KMSThrottling", Outcome::retry_later("KMSThrottling", pause(1))),
            (400, "QuotaExceeded", Outcome::retry_later("QuotaExceeded", pause(3600))),
            (400, "InvalidParameter", Outcome::rejected("InvalidParameter")),
            (400, "InvalidParameterValue", Outcome::rejected("InvalidParameterValue")),
            (400, "ValidationError", Outcome::rejected("ValidationError")),
            (500, "InternalError", Outcome::ambiguous("InternalError")),
            (
                503,
                "ServiceUnavailable",
                Outcome::retry_later("ServiceUnavailable", None),
            ),
            (400, "InventedLater", Outcome::rejected("InventedLater")),
            (403, "InventedLater", Outcome::credential("InventedLater", None)),
            (429, "InventedLater", Outcome::retry_later("InventedLater", pause(1))),
            (502, "a sentence", Outcome::ambiguous("unknown")),
        ] {
            assert_eq!(refused(status, code), outcome, "{status} {code}");
        }
    }

    #[test]
    fn an_acceptance_has_the_id_of_the_message() {
        let body = b"<PublishResponse><PublishResult><MessageId>94f20ce6-13c5-43a0-9a9e-ca52d816e90b</MessageId></PublishResult></PublishResponse>";
        let id = |id: Option<&str>| Outcome::Accepted {
            provider_id: id.map(Into::into),
        };
        assert_eq!(
            judge(200, Some(body), None),
            id(Some("94f20ce6-13c5-43a0-9a9e-ca52d816e90b"))
        );
        assert_eq!(judge(200, Some(b"<MessageId>a b</MessageId>"), None), id(None));
        assert_eq!(judge(200, None, None), id(None), "its status accepts");
    }

    #[test]
    fn an_answer_that_is_not_of_sns_rejects_nothing() {
        for status in [301, 400, 403, 404, 413] {
            assert_eq!(judge(status, Some(b"<html>"), None), Outcome::endpoint("not_sns", None));
        }
        assert_eq!(judge(502, Some(b"<html>"), None), Outcome::ambiguous("http_502"));
        assert_eq!(judge(503, None, None), Outcome::retry_later("http_503", None));
    }
}
