//! From the answers of APNs to outcomes (Apple: Handling notification responses from APNs).

use std::time::Duration;

use a2::ErrorReason;
use jiff::Timestamp;
use serde::{
    Deserialize,
    de::{IntoDeserializer, value},
};

use crate::providers::outcome::{Outcome, Reason, foreign_reason};

/// The minimum wait after Apple reports too many pushes to one device.
const MIN_DEVICE_PAUSE: Duration = Duration::from_secs(30);

/// Why APNs refused a push.
#[derive(Debug)]
enum ApnsReason {
    /// A reason that a2 knows.
    Listed(ErrorReason),
    /// A documented reason that a2 lacks.
    Newer(Newer),
    /// A reason that was not documented when this was written.
    Unknown(Reason),
}

/// Reasons that a2 0.10 lacks.
#[derive(Debug, Clone, Copy, Deserialize)]
enum Newer {
    InvalidPushType,
    ExpiredToken,
    /// Apple's page spells it with `Id`; its servers also omit that.
    #[serde(alias = "BadEnvironmentKeyInToken")]
    BadEnvironmentKeyIdInToken,
    UnrelatedKeyIdInToken,
}

impl ApnsReason {
    fn parse(text: &str) -> Self {
        let name = || IntoDeserializer::<value::Error>::into_deserializer(text);
        if let Ok(listed) = ErrorReason::deserialize(name()) {
            Self::Listed(listed)
        } else if let Ok(newer) = Newer::deserialize(name()) {
            Self::Newer(newer)
        } else {
            Self::Unknown(foreign_reason(text, "unknown"))
        }
    }
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    reason: std::borrow::Cow<'a, str>,
    /// Milliseconds since 1970; with 410 only.
    timestamp: Option<i64>,
}

/// The parts of an answer besides its reason, and the state of the token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// How long until Apple accepts the last change of the provider token.
    pub(super) token_wait: Duration,
}

/// A measure that may make a second attempt succeed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// No measure helps.
    None,
    /// Send again with the provider token of a later slot.
    LaterToken,
    /// Send again with the former provider token, on another connection.
    FormerToken,
    /// Do not send again, but return to the provider token that the clock selects.
    TokenByClock,
    /// Send again on another connection.
    Reconnect,
    /// Do not send again, but use another connection for the next push.
    LeaveConnection,
}

/// The meaning of a refusal: a remedy to try first, and the outcome if that does not help.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) remedy: Remedy,
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            remedy: Remedy::None,
        }
    }
}

/// Judges an answer that is not 200.
pub(super) fn judge(body: &[u8], at: &Circumstances) -> Verdict {
    match serde_json::from_slice::<Body<'_>>(body) {
        Ok(body) => {
            let since = body.timestamp.and_then(|ms| Timestamp::from_millisecond(ms).ok());
            match ApnsReason::parse(&body.reason) {
                ApnsReason::Listed(reason) => listed(&reason, since, at),
                ApnsReason::Newer(reason) => newer(reason, since, at),
                ApnsReason::Unknown(reason) => unknown(reason, at).into(),
            }
        }
        Err(_) if at.status == 429 || at.status >= 500 => unknown("unknown".into(), at).into(),
        // The body is not APNs', so an intermediary answered, and Apple refused nothing.
        Err(_) => Outcome::endpoint("not_apns", at.retry_after).into(),
    }
}

fn listed(reason: &ErrorReason, since: Option<Timestamp>, at: &Circumstances) -> Verdict {
    use ErrorReason as R;
    let rejected = |name: &'static str| Outcome::rejected(name).into();
    let credential = |name: &'static str| Outcome::credential(name, None).into();
    let later = |name: &'static str| Outcome::retry_later(name, at.retry_after).into();
    match reason {
        // Apple answers the same for a token of the other environment, so this does not prove that the token is gone.
        R::BadDeviceToken => rejected("BadDeviceToken"),
        R::DeviceTokenNotForTopic => rejected("DeviceTokenNotForTopic"),
        R::BadCollapseId => rejected("BadCollapseId"),
        R::BadExpirationDate => rejected("BadExpirationDate"),
        R::BadMessageId => rejected("BadMessageId"),
        R::BadPriority => rejected("BadPriority"),
        R::BadTopic => rejected("BadTopic"),
        R::DuplicateHeaders => rejected("DuplicateHeaders"),
        R::MissingDeviceToken => rejected("MissingDeviceToken"),
        R::MissingTopic => rejected("MissingTopic"),
        R::PayloadEmpty => rejected("PayloadEmpty"),
        R::TopicDisallowed => rejected("TopicDisallowed"),
        R::BadPath => rejected("BadPath"),
        R::MethodNotAllowed => rejected("MethodNotAllowed"),
        R::PayloadTooLarge => rejected("PayloadTooLarge"),
        R::IdleTimeout => Verdict {
            outcome: later_outcome("IdleTimeout", at),
            remedy: Remedy::Reconnect,
        },
        R::BadCertificate => credential("BadCertificate"),
        R::BadCertificateEnvironment => credential("BadCertificateEnvironment"),
        R::Forbidden => credential("Forbidden"),
        R::InvalidProviderToken => Verdict {
            outcome: Outcome::credential("InvalidProviderToken", None),
            remedy: Remedy::TokenByClock,
        },
        R::MissingProviderToken => credential("MissingProviderToken"),
        R::ExpiredProviderToken => Verdict {
            outcome: Outcome::credential("ExpiredProviderToken", None),
            remedy: Remedy::LaterToken,
        },
        R::TooManyProviderTokenUpdates => {
            let wait = at.token_wait.max(at.retry_after.unwrap_or(MIN_DEVICE_PAUSE));
            Verdict {
                outcome: Outcome::credential("TooManyProviderTokenUpdates", Some(wait)),
                remedy: Remedy::FormerToken,
            }
        }
        R::Unregistered => gone("Unregistered", since, at).into(),
        R::TooManyRequests => device_pause("TooManyRequests".into(), at).into(),
        R::InternalServerError => later("InternalServerError"),
        R::ServiceUnavailable => later("ServiceUnavailable"),
        R::Shutdown => Verdict {
            outcome: later_outcome("Shutdown", at),
            remedy: Remedy::LeaveConnection,
        },
    }
}

fn newer(reason: Newer, since: Option<Timestamp>, at: &Circumstances) -> Verdict {
    match reason {
        Newer::InvalidPushType => Outcome::rejected("InvalidPushType").into(),
        Newer::ExpiredToken => gone("ExpiredToken", since, at).into(),
        Newer::BadEnvironmentKeyIdInToken => Outcome::credential("BadEnvironmentKeyIdInToken", None).into(),
        Newer::UnrelatedKeyIdInToken => Verdict {
            outcome: Outcome::credential("UnrelatedKeyIdInToken", None),
            remedy: Remedy::Reconnect,
        },
    }
}

fn unknown(reason: Reason, at: &Circumstances) -> Outcome {
    match at.status {
        403 => Outcome::credential(reason, at.retry_after),
        429 => device_pause(reason, at),
        400..=499 => Outcome::rejected(reason),
        500..=599 => Outcome::retry_later(reason, at.retry_after),
        _ => Outcome::endpoint(reason, at.retry_after),
    }
}

/// Removing an address cannot be undone, so only status 410 removes it.
fn gone(reason: &'static str, since: Option<Timestamp>, at: &Circumstances) -> Outcome {
    if at.status == 410 {
        Outcome::AddressGone {
            reason: reason.into(),
            since,
        }
    } else {
        Outcome::rejected(reason)
    }
}

fn device_pause(reason: Reason, at: &Circumstances) -> Outcome {
    Outcome::retry_later(reason, Some(at.retry_after.unwrap_or_default().max(MIN_DEVICE_PAUSE)))
}

fn later_outcome(reason: &'static str, at: &Circumstances) -> Outcome {
    Outcome::retry_later(reason, at.retry_after)
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &http::HeaderMap, now: Timestamp, body: &[u8]) -> Outcome {
    let at = Circumstances {
        status,
        retry_after: crate::providers::transport::retry_after::retry_after(headers, now),
        token_wait: Duration::ZERO,
    };
    judge(body, &at).outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Circumstances = Circumstances {
        status: 0,
        retry_after: None,
        token_wait: Duration::from_mins(19),
    };

    fn judged(status: u16, reason: &str) -> Verdict {
        judge(
            format!(r#"{{"reason":"{reason}"}}"#).as_bytes(),
            &Circumstances { status, ..AT },
        )
    }

    #[test]
    fn a_reason_that_blames_the_push_rejects_it() {
        for (status, reason) in [
            (400, "BadCollapseId"),
            (400, "BadDeviceToken"),
            (400, "BadExpirationDate"),
            (400, "BadMessageId"),
            (400, "BadPriority"),
            (400, "BadTopic"),
            (400, "DeviceTokenNotForTopic"),
            (400, "DuplicateHeaders"),
            (400, "InvalidPushType"),
            (400, "MissingDeviceToken"),
            (400, "MissingTopic"),
            (400, "PayloadEmpty"),
            (400, "TopicDisallowed"),
            (404, "BadPath"),
            (405, "MethodNotAllowed"),
            (413, "PayloadTooLarge"),
            (400, "InventedLater"),
        ] {
            assert_eq!(
                judged(status, reason),
                Outcome::rejected(reason.to_owned()).into(),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_reason_that_blames_the_credential_is_credential_trouble() {
        for reason in [
            "BadCertificate",
            "BadCertificateEnvironment",
            "BadEnvironmentKeyIdInToken",
            "Forbidden",
            "MissingProviderToken",
            "InventedLater",
        ] {
            assert_eq!(
                judged(403, reason),
                Outcome::credential(reason.to_owned(), None).into(),
                "{reason}"
            );
        }
        let other_spelling = judged(403, "BadEnvironmentKeyInToken");
        assert_eq!(
            other_spelling,
            Outcome::credential("BadEnvironmentKeyIdInToken", None).into()
        );
    }

    #[test]
    fn some_refusals_have_a_remedy() {
        let expired = judged(403, "ExpiredProviderToken");
        assert_eq!(expired.remedy, Remedy::LaterToken);
        assert_eq!(expired.outcome, Outcome::credential("ExpiredProviderToken", None));
        let updates = judged(429, "TooManyProviderTokenUpdates");
        assert_eq!(updates.remedy, Remedy::FormerToken);
        assert_eq!(
            updates.outcome,
            Outcome::credential("TooManyProviderTokenUpdates", Some(AT.token_wait))
        );
        let invalid = judged(403, "InvalidProviderToken");
        assert_eq!(invalid.remedy, Remedy::TokenByClock);
        assert_eq!(invalid.outcome, Outcome::credential("InvalidProviderToken", None));
        let unrelated = judged(403, "UnrelatedKeyIdInToken");
        assert_eq!(unrelated.remedy, Remedy::Reconnect);
        assert_eq!(unrelated.outcome, Outcome::credential("UnrelatedKeyIdInToken", None));
        let idle = judged(400, "IdleTimeout");
        assert_eq!(
            (idle.remedy, idle.outcome),
            (Remedy::Reconnect, Outcome::retry_later("IdleTimeout", None))
        );
        let shutdown = judged(503, "Shutdown");
        assert_eq!(
            (shutdown.remedy, shutdown.outcome),
            (Remedy::LeaveConnection, Outcome::retry_later("Shutdown", None))
        );
    }

    #[test]
    fn server_errors_are_retried_after_the_time_that_the_server_asks_for() {
        for (status, reason) in [
            (500, "InternalServerError"),
            (503, "ServiceUnavailable"),
            (502, "InventedLater"),
        ] {
            let asked = Some(Duration::from_secs(7));
            let at = Circumstances {
                status,
                retry_after: asked,
                ..AT
            };
            let body = format!(r#"{{"reason":"{reason}"}}"#);
            assert_eq!(
                judge(body.as_bytes(), &at),
                Outcome::retry_later(reason.to_owned(), asked).into()
            );
            assert_eq!(
                judged(status, reason),
                Outcome::retry_later(reason.to_owned(), None).into()
            );
        }
    }

    #[test]
    fn a_device_with_too_many_pushes_gets_none_for_at_least_30_seconds() {
        let outcome_of = |asked: Option<u64>| {
            let retry_after = asked.map(Duration::from_secs);
            judge(
                br#"{"reason":"TooManyRequests"}"#,
                &Circumstances {
                    status: 429,
                    retry_after,
                    ..AT
                },
            )
            .outcome
        };
        let after = |seconds| Outcome::retry_later("TooManyRequests", Some(Duration::from_secs(seconds)));
        assert_eq!(outcome_of(None), after(30));
        assert_eq!(outcome_of(Some(5)), after(30));
        assert_eq!(outcome_of(Some(90)), after(90));
    }

    #[test]
    fn only_a_410_removes_an_address() {
        let body = br#"{"reason":"Unregistered","timestamp":1700000000123}"#;
        let since = Timestamp::from_millisecond(1_700_000_000_123).ok();
        let gone = |reason: &'static str, since| Outcome::AddressGone {
            reason: reason.into(),
            since,
        };
        assert_eq!(
            judge(body, &Circumstances { status: 410, ..AT }),
            gone("Unregistered", since).into()
        );
        assert_eq!(judged(410, "ExpiredToken"), gone("ExpiredToken", None).into());
        assert_eq!(judged(400, "Unregistered"), Outcome::rejected("Unregistered").into());
        assert_eq!(judged(410, "InventedLater"), Outcome::rejected("InventedLater").into());
    }

    #[test]
    fn an_answer_that_is_not_of_apns_rejects_nothing() {
        for body in [&b""[..], b"<html>", b"{}", b"[]"] {
            for status in [301, 400, 403, 404, 410] {
                let verdict = judge(body, &Circumstances { status, ..AT });
                assert_eq!(verdict, Outcome::endpoint("not_apns", None).into(), "{status}");
            }
            let down = judge(body, &Circumstances { status: 503, ..AT });
            assert_eq!(down, Outcome::retry_later("unknown", None).into());
        }
    }
}
