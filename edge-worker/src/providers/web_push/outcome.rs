//! From the answers of push services to outcomes (RFC 8030, sections 5 and 7.3; RFC 8292, section 4; Apple: Sending web push
//! notifications; Mozilla: autopush error codes; Microsoft: push notification service request and response headers).

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use serde::Deserialize;

use crate::providers::outcome::{Outcome, Reason};

/// Apple's id of a push.
static APNS_ID: HeaderName = HeaderName::from_static("apns-id");

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    /// A push service that the settings name.
    Known,
    /// Another host. A user registered it, so what it says counts for this address only.
    Stranger,
}

/// The members of refusals that Apple and Mozilla send.
#[derive(Deserialize, Default)]
struct Body<'a> {
    #[serde(borrow)]
    reason: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<std::borrow::Cow<'a, str>>,
}

/// Judges an answer. `body` is `None` if it did not arrive; `retry_after` is how long the answer asks to wait.
pub(super) fn judge(
    status: u16,
    headers: &HeaderMap,
    body: Option<&[u8]>,
    retry_after: Option<Duration>,
    party: Party,
) -> Outcome {
    match status {
        // 201 by the RFC, 202 for receipts, 200 by Microsoft. `Location` is not kept: who knows it may read the push.
        200..=299 => Outcome::Accepted {
            provider_id: provider_id(headers),
        },
        401 | 403 => refused_token(status, body.unwrap_or_default(), retry_after, party),
        404 => Outcome::gone("not_found"),
        410 => Outcome::gone("gone"),
        // Microsoft answers 406 for too many pushes to one browser.
        406 | 429 => Outcome::retry_later("too_many_requests", retry_after),
        408 => Outcome::retry_later("request_timeout", retry_after),
        413 => Outcome::rejected("too_large"),
        400 => Outcome::rejected("bad_request"),
        500..=599 => Outcome::retry_later("server_error", retry_after),
        300..=399 => Outcome::rejected("redirected"),
        _ => Outcome::rejected("unexpected_status"),
    }
}

/// The token is refused for this subscription, or for all.
fn refused_token(status: u16, body: &[u8], retry_after: Option<Duration>, party: Party) -> Outcome {
    if is_of_another_key(body) {
        // The browser subscribed with another key. Other subscriptions may be fine, and the app may have its former key
        // back soon, so neither the credential nor the address is given up.
        return Outcome::rejected("vapid_key_mismatch");
    }
    let json = serde_json::from_slice::<Body<'_>>(body).unwrap_or_default();
    let reason: Reason = match (json.reason.as_deref(), status) {
        (Some("BadJwtToken"), _) => "BadJwtToken".into(),
        (Some("BadAuthorizationHeader"), _) => "BadAuthorizationHeader".into(),
        (_, 401) => "unauthorized".into(),
        _ => "forbidden".into(),
    };
    match party {
        // It does not say what it refuses. Microsoft answers so for single subscriptions that are old.
        Party::Known if body.is_empty() => Outcome::retry_later(reason, retry_after),
        Party::Known => Outcome::credential(reason, retry_after),
        Party::Stranger => Outcome::rejected(reason),
    }
}

/// Whether a refusal says that the subscription belongs to another VAPID key, in the words of Apple, Mozilla or Google.
fn is_of_another_key(body: &[u8]) -> bool {
    if let Ok(json) = serde_json::from_slice::<Body<'_>>(body) {
        return json.reason.as_deref() == Some("VapidPkHashMismatch")
            || json.message.as_deref() == Some("VAPID public key mismatch");
    }
    let google = [
        "does not correspond to the sender ID used to subscribe",
        "do not correspond to the credentials used to create the subscription",
    ];
    let text = String::from_utf8_lossy(body);
    google.iter().any(|words| text.contains(words))
}

fn provider_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(&APNS_ID)?.to_str().ok()?;
    uuid::Uuid::parse_str(id).is_ok().then(|| id.to_owned())
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &HeaderMap, now: jiff::Timestamp, body: &[u8]) -> Outcome {
    let retry_after = crate::providers::transport::retry_after::retry_after(headers, now);
    judge(status, headers, Some(body), retry_after, Party::Known)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(status: u16, body: &str, party: Party) -> Outcome {
        judge(status, &HeaderMap::new(), Some(body.as_bytes()), None, party)
    }

    fn accepted(provider_id: Option<&str>) -> Outcome {
        Outcome::Accepted {
            provider_id: provider_id.map(str::to_owned),
        }
    }

    #[test]
    fn every_documented_answer_has_an_outcome() {
        for (status, body, outcome) in [
            (200, "", accepted(None)),
            (201, "", accepted(None)),
            (202, "", accepted(None)),
            (204, "", accepted(None)),
            (301, "", Outcome::rejected("redirected")),
            (307, "", Outcome::rejected("redirected")),
            (400, r#"{"reason":"BadWebPushTopic"}"#, Outcome::rejected("bad_request")),
            (
                400,
                r#"{"errno":110,"message":"Invalid aes128gcm Crypto-Key"}"#,
                Outcome::rejected("bad_request"),
            ),
            (
                401,
                r#"{"errno":109,"message":"Invalid bearer token"}"#,
                Outcome::credential("unauthorized", None),
            ),
            (
                401,
                r#"{"errno":109,"message":"VAPID public key mismatch"}"#,
                Outcome::rejected("vapid_key_mismatch"),
            ),
            (401, "", Outcome::retry_later("unauthorized", None)),
            (
                403,
                r#"{"reason":"BadJwtToken"}"#,
                Outcome::credential("BadJwtToken", None),
            ),
            (
                403,
                r#"{"reason":"BadAuthorizationHeader"}"#,
                Outcome::credential("BadAuthorizationHeader", None),
            ),
            (
                403,
                r#"{"reason":"VapidPkHashMismatch"}"#,
                Outcome::rejected("vapid_key_mismatch"),
            ),
            (
                403,
                "the key in the authorization header does not correspond to the sender ID used to subscribe this user. \
                 Please ensure you are using the correct sender ID and server Key from the Firebase console.\n",
                Outcome::rejected("vapid_key_mismatch"),
            ),
            (
                403,
                "the VAPID credentials in the authorization header do not correspond to the credentials used to create the \
                 subscriptions.\n",
                Outcome::rejected("vapid_key_mismatch"),
            ),
            (
                403,
                "permission denied: invalid JWT provided\n",
                Outcome::credential("forbidden", None),
            ),
            (403, "", Outcome::retry_later("forbidden", None)),
            (404, "", Outcome::gone("not_found")),
            (405, "", Outcome::rejected("unexpected_status")),
            (406, "", Outcome::retry_later("too_many_requests", None)),
            (408, "", Outcome::retry_later("request_timeout", None)),
            (410, r#"{"reason":"Unregistered"}"#, Outcome::gone("gone")),
            (413, r#"{"reason":"PayloadTooLarge"}"#, Outcome::rejected("too_large")),
            (429, "", Outcome::retry_later("too_many_requests", None)),
            (500, "", Outcome::retry_later("server_error", None)),
            (502, "<html>", Outcome::retry_later("server_error", None)),
            (503, r#"{"errno":201}"#, Outcome::retry_later("server_error", None)),
            (600, "", Outcome::rejected("unexpected_status")),
        ] {
            assert_eq!(of(status, body, Party::Known), outcome, "{status} {body}");
        }
    }

    #[test]
    fn a_stranger_cannot_blame_the_credential() {
        for status in 100..=999 {
            let outcome = of(status, "no", Party::Stranger);
            assert!(
                !matches!(
                    outcome,
                    Outcome::CredentialTrouble { .. } | Outcome::EndpointTrouble { .. }
                ),
                "{status}: {outcome:?}"
            );
            let known = of(status, "no", Party::Known);
            if !matches!(status, 401 | 403) {
                assert_eq!(outcome, known, "{status}");
            }
        }
        assert_eq!(of(403, "no", Party::Known), Outcome::credential("forbidden", None));
        assert_eq!(of(403, "", Party::Stranger), Outcome::rejected("forbidden"));
    }

    #[test]
    fn a_wait_that_is_asked_for_is_kept() {
        let asked = Some(Duration::from_secs(30));
        for status in [429, 500, 503] {
            let outcome = judge(status, &HeaderMap::new(), None, asked, Party::Known);
            let Outcome::RetryLater { not_before, .. } = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(not_before, asked);
        }
    }

    #[test]
    fn only_an_id_that_is_no_capability_is_kept() {
        let headers = |name: &'static str, value: &'static str| -> HeaderMap {
            [(HeaderName::from_static(name), HeaderValue::from_static(value))]
                .into_iter()
                .collect()
        };
        let id = "c1b8a0e5-0d1c-4b7e-9a54-6f0f8d2f3a11";
        assert_eq!(
            judge(201, &headers("apns-id", id), None, None, Party::Known),
            accepted(Some(id))
        );
        for headers in [
            headers(
                "location",
                "https://push.example.net/message/qDIYHNcfAIPP_5ITvURr-d6BGt",
            ),
            headers("apns-id", "https://push.example.net/message/qDIYHNcfAIPP_5ITvURr-d6BGt"),
        ] {
            assert_eq!(judge(201, &headers, None, None, Party::Known), accepted(None));
        }
    }
}
