//! From the answers of Twilio to outcomes (Twilio: Error and warning dictionary).

use std::time::Duration;

use serde::Deserialize;

use crate::providers::{Outcome, Reason};

/// The minimum wait after Twilio refused a request because there are too many; it names no time.
const TOO_MANY_PAUSE: Duration = Duration::from_secs(1);

/// How long a full queue of a sender takes to empty, about: Twilio queues four hours' worth.
const QUEUE_PAUSE: Duration = Duration::from_mins(1);

/// Twilio blocks a destination for 15 to 30 minutes when it suspects fraud (error 30450).
const FRAUD_PAUSE: Duration = Duration::from_mins(30);

/// An account's limit for a day does not end sooner.
const DAY_LIMIT_PAUSE: Duration = Duration::from_hours(1);

/// The body of an acceptance.
#[derive(Deserialize)]
struct Accepted {
    sid: String,
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Refusal {
    code: u32,
}

/// Judges an answer. `body` is absent if it was cut.
pub(super) fn judge(status: u16, body: Option<&[u8]>, retry_after: Option<Duration>) -> Outcome {
    let body = body.unwrap_or_default();
    if (200..300).contains(&status) {
        let accepted = serde_json::from_slice::<Accepted>(body).ok();
        return Outcome::Accepted {
            provider_id: accepted.map(|accepted| accepted.sid),
        };
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { code }) => by_code(code, status, retry_after),
        Err(_) => by_status(None, status, retry_after),
    }
}

fn by_code(code: u32, status: u16, retry_after: Option<Duration>) -> Outcome {
    let reason: Reason = code.to_string().into();
    let after =
        |least: Duration| Outcome::retry_later(reason.clone(), Some(retry_after.unwrap_or_default().max(least)));
    match code {
        // The number does not exist, or takes no text messages: a landline.
        21211 | 21214 | 21217 | 21614 | 21635 => Outcome::gone(reason),
        // The recipient answered STOP to this sender; START allows it again, so the number stays.
        21610 => Outcome::rejected(reason),
        // Sign-in failed; the account is suspended or closed, on trial, or may not do this; the credential's messaging service
        // does not exist or has no numbers.
        20003 | 20005 | 20006 | 20008 | 20403 | 20404 | 21701..=21705 | 30002 | 90010 => {
            Outcome::credential(reason, retry_after)
        }
        14107 | 20429 | 63017 => after(TOO_MANY_PAUSE),
        21611 | 30001 => after(QUEUE_PAUSE),
        30450 => after(FRAUD_PAUSE),
        63038 => after(DAY_LIMIT_PAUSE),
        _ => by_status(Some(reason), status, retry_after),
    }
}

/// By the class of the status. Without a `reason` the body is not Twilio's: an intermediary answered.
fn by_status(reason: Option<Reason>, status: u16, retry_after: Option<Duration>) -> Outcome {
    let is_twilios = reason.is_some();
    let reason = reason.unwrap_or_else(|| format!("http_{status}").into());
    match status {
        429 => Outcome::retry_later(reason, Some(retry_after.unwrap_or_default().max(TOO_MANY_PAUSE))),
        401 | 403 => Outcome::credential(reason, retry_after),
        // RFC 9110, section 15.6.4: the server cannot handle the request now.
        503 => Outcome::retry_later(reason, retry_after),
        500..=599 => Outcome::ambiguous(reason),
        400..=499 if is_twilios => Outcome::rejected(reason),
        _ => Outcome::endpoint("not_twilio", retry_after),
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
    use serde_json::json;

    use super::*;

    fn refused(status: u16, code: u32) -> Outcome {
        let more = format!("https://www.twilio.com/docs/errors/{code}");
        let body = json!({ "code": code, "message": "content", "more_info": more, "status": status });
        judge(status, Some(body.to_string().as_bytes()), None)
    }

    #[test]
    fn every_documented_code_has_an_outcome() {
        let pause = |seconds| Some(Duration::from_secs(seconds));
        for (status, code, outcome) in [
            (400, 21211, Outcome::gone("21211")),
            (400, 21214, Outcome::gone("21214")),
            (400, 21217, Outcome::gone("21217")),
            (400, 21614, Outcome::gone("21614")),
            (400, 21635, Outcome::gone("21635")),
            (400, 21610, Outcome::rejected("21610")),
            (400, 21212, Outcome::rejected("21212")),
            (400, 21408, Outcome::rejected("21408")),
            (400, 21602, Outcome::rejected("21602")),
            (400, 21603, Outcome::rejected("21603")),
            (400, 21606, Outcome::rejected("21606")),
            (400, 21612, Outcome::rejected("21612")),
            (400, 21617, Outcome::rejected("21617")),
            (400, 21703, Outcome::credential("21703", None)),
            (400, 21705, Outcome::credential("21705", None)),
            (401, 20003, Outcome::credential("20003", None)),
            (403, 20005, Outcome::credential("20005", None)),
            (403, 20008, Outcome::credential("20008", None)),
            (404, 20404, Outcome::credential("20404", None)),
            (429, 20429, Outcome::retry_later("20429", pause(1))),
            (429, 14107, Outcome::retry_later("14107", pause(1))),
            (429, 63017, Outcome::retry_later("63017", pause(1))),
            (429, 63038, Outcome::retry_later("63038", pause(3600))),
            (400, 21611, Outcome::retry_later("21611", pause(60))),
            (400, 30450, Outcome::retry_later("30450", pause(1800))),
            (403, 99_999, Outcome::credential("99999", None)),
            (400, 99_999, Outcome::rejected("99999")),
            (429, 99_999, Outcome::retry_later("99999", pause(1))),
            (500, 20500, Outcome::ambiguous("20500")),
            (503, 20503, Outcome::retry_later("20503", None)),
        ] {
            assert_eq!(refused(status, code), outcome, "{code}");
        }
    }

    #[test]
    fn an_acceptance_has_the_sid_of_the_message() {
        let body = br#"{"sid":"SM1","status":"queued","error_code":null}"#;
        let sid = |id: Option<&str>| Outcome::Accepted {
            provider_id: id.map(Into::into),
        };
        assert_eq!(judge(201, Some(body), None), sid(Some("SM1")));
        assert_eq!(judge(201, None, None), sid(None), "its status accepts");
    }

    #[test]
    fn an_answer_that_is_not_of_twilio_rejects_nothing() {
        for status in [301, 400, 404, 413] {
            assert_eq!(
                judge(status, Some(b"<html>"), None),
                Outcome::endpoint("not_twilio", None)
            );
        }
        assert_eq!(judge(502, Some(b"<html>"), None), Outcome::ambiguous("http_502"));
        assert_eq!(judge(504, None, None), Outcome::ambiguous("http_504"));
    }

    #[test]
    fn a_longer_wait_that_twilio_asks_for_counts() {
        let headers = [(http::header::RETRY_AFTER, http::HeaderValue::from_static("90"))];
        let body = br#"{"code":20429,"message":"Too Many Requests","status":429}"#;
        let outcome = judged(429, &headers.into_iter().collect(), jiff::Timestamp::UNIX_EPOCH, body);
        assert_eq!(outcome, Outcome::retry_later("20429", Some(Duration::from_secs(90))));
    }
}
