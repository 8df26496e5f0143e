//! From the answers of JPush to outcomes (JPush: "Push API v3: error codes", "HTTP status code", "API rate limit").

use std::{borrow::Cow, time::Duration};

use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use crate::providers::{Outcome, Reason};

/// The wait after a rate limit that names no time: its window is a minute.
const RATE_LIMIT_PAUSE: Duration = Duration::from_mins(1);

/// The longest wait that is taken from an answer.
const MAX_PAUSE: Duration = Duration::from_hours(1);

/// A limit of the day does not end sooner.
const DAY_LIMIT_PAUSE: Duration = Duration::from_hours(1);

/// The body of a refusal. Its text is not kept: it may repeat a registration id.
#[derive(Deserialize)]
struct Refusal<'a> {
    #[serde(borrow)]
    error: Fault<'a>,
}

#[derive(Deserialize)]
struct Fault<'a> {
    code: u32,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
}

/// The body of an acceptance. The id is a number, in quotes or without.
#[derive(Deserialize)]
struct Accepted {
    msg_id: Value,
}

/// Whether the request was refused for its `cid`.
pub(super) fn is_about_cid(status: u16, body: Option<&[u8]>) -> bool {
    let refusal = body.and_then(|body| serde_json::from_slice::<Refusal<'_>>(body).ok());
    status == 400 && refusal.is_some_and(|refusal| refusal.error.message.contains("cid"))
}

/// Judges an answer. `body` is absent if it was cut.
pub(super) fn judge(status: u16, headers: &HeaderMap, body: Option<&[u8]>, asked: Option<Duration>) -> Outcome {
    let body = body.unwrap_or_default();
    // JPush: only 200 is success.
    if status == 200 {
        let id = serde_json::from_slice::<Accepted>(body)
            .ok()
            .map(|accepted| accepted.msg_id);
        let id = id.and_then(|id| match id {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let is_id = |id: &String| (1..=32).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit());
        return Outcome::Accepted {
            provider_id: id.filter(is_id),
        };
    }
    match serde_json::from_slice::<Refusal<'_>>(body) {
        Ok(Refusal { error }) => by_code(error.code, status, headers, asked),
        Err(_) => by_status(None, status, headers, asked),
    }
}

fn by_code(code: u32, status: u16, headers: &HeaderMap, asked: Option<Duration>) -> Outcome {
    let reason: Reason = code.to_string().into();
    match code {
        // No device has this registration id, or it was not seen for most of a year.
        1011 => Outcome::gone(reason),
        // Signing in failed; the application is unknown, suspended, or its address is not listed.
        1004 | 1008 | 1009 | 2003 => Outcome::credential(reason, asked),
        1000 | 1030 => Outcome::retry_later(reason, asked),
        2002 => Outcome::retry_later(reason, Some(pause(headers, asked))),
        2008 => Outcome::retry_later(reason, Some(asked.unwrap_or_default().max(DAY_LIMIT_PAUSE))),
        _ => by_status(Some(reason), status, headers, asked),
    }
}

/// By the class of the status. Without a `reason` the body is not of JPush: an intermediary answered.
fn by_status(reason: Option<Reason>, status: u16, headers: &HeaderMap, asked: Option<Duration>) -> Outcome {
    let is_own = reason.is_some();
    let reason = reason.unwrap_or_else(|| format!("http_{status}").into());
    match status {
        429 => Outcome::retry_later(reason, Some(pause(headers, asked))),
        // The `cid` makes a repeat harmless.
        500..=599 => Outcome::retry_later(reason, asked),
        401 | 403 if is_own => Outcome::credential(reason, asked),
        400..=499 if is_own => Outcome::rejected(reason),
        _ => Outcome::endpoint("not_jpush", asked),
    }
}

/// How long the limit lasts: `X-Rate-Limit-Reset`, in seconds.
fn pause(headers: &HeaderMap, asked: Option<Duration>) -> Duration {
    let reset = || {
        let seconds = headers.get("x-rate-limit-reset")?.to_str().ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds).clamp(Duration::from_secs(1), MAX_PAUSE))
    };
    asked.or_else(reset).unwrap_or(RATE_LIMIT_PAUSE)
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &HeaderMap, now: jiff::Timestamp, body: &[u8]) -> Outcome {
    let asked = crate::providers::transport::retry_after::retry_after(headers, now);
    judge(status, headers, Some(body), asked)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn refused(status: u16, code: u32) -> Outcome {
        let body = json!({ "msg_id": 1, "error": { "code": code, "message": "content" } });
        judge(status, &HeaderMap::new(), Some(body.to_string().as_bytes()), None)
    }

    #[test]
    fn every_documented_code_has_an_outcome() {
        let later =
            |reason: &'static str, seconds: Option<u64>| Outcome::retry_later(reason, seconds.map(Duration::from_secs));
        for (status, code, outcome) in [
            (500, 1000, later("1000", None)),
            (405, 1001, Outcome::rejected("1001")),
            (400, 1002, Outcome::rejected("1002")),
            (400, 1003, Outcome::rejected("1003")),
            (401, 1004, Outcome::credential("1004", None)),
            (400, 1005, Outcome::rejected("1005")),
            (400, 1008, Outcome::credential("1008", None)),
            (400, 1009, Outcome::credential("1009", None)),
            (400, 1011, Outcome::gone("1011")),
            (400, 1012, Outcome::rejected("1012")),
            (404, 1020, Outcome::rejected("1020")),
            (503, 1030, later("1030", None)),
            (429, 2002, later("2002", Some(60))),
            (403, 2003, Outcome::credential("2003", None)),
            (400, 2008, later("2008", Some(3600))),
            (400, 9999, Outcome::rejected("9999")),
            (403, 9999, Outcome::credential("9999", None)),
            (502, 9999, later("9999", None)),
        ] {
            assert_eq!(refused(status, code), outcome, "{status} {code}");
        }
    }

    #[test]
    fn an_acceptance_has_the_id_of_the_message() {
        let of = |body: &str| judge(200, &HeaderMap::new(), Some(body.as_bytes()), None);
        let id = |id: Option<&str>| Outcome::Accepted {
            provider_id: id.map(Into::into),
        };
        assert_eq!(of(r#"{"sendno":"0","msg_id":"1828256757"}"#), id(Some("1828256757")));
        assert_eq!(of(r#"{"sendno":0,"msg_id":1828256757}"#), id(Some("1828256757")));
        assert_eq!(of(r#"{"msg_id":"<a>"}"#), id(None));
        assert_eq!(of("<html>"), id(None), "its status accepts");
    }

    #[test]
    fn a_limit_lasts_as_long_as_its_header_says() {
        let headers = [("x-rate-limit-reset", "7")];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        let body = br#"{"error":{"code":2002,"message":"Rate limit exceeded"}}"#;
        let outcome = judge(429, &headers.into_iter().collect(), Some(body), None);
        assert_eq!(outcome, Outcome::retry_later("2002", Some(Duration::from_secs(7))));
    }

    #[test]
    fn a_refused_cid_is_told_from_other_faults() {
        let of = |message: &str| {
            let body = json!({ "error": { "code": 1003, "message": message } }).to_string();
            is_about_cid(400, Some(body.as_bytes()))
        };
        assert!(of("The cid is invalid") && !of("registration_id is invalid"));
        assert!(!is_about_cid(200, Some(br#"{"msg_id":"1"}"#)));
    }

    #[test]
    fn an_answer_that_is_not_of_jpush_rejects_nothing() {
        for status in [202, 301, 400, 401, 404] {
            let outcome = judge(status, &HeaderMap::new(), Some(b"<html>"), None);
            assert_eq!(outcome, Outcome::endpoint("not_jpush", None), "{status}");
        }
        let outcome = judge(502, &HeaderMap::new(), None, None);
        assert_eq!(outcome, Outcome::retry_later("http_502", None));
    }
}
