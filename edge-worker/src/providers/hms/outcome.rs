//! From the answers of Huawei Push Kit to outcomes (Huawei: "Response codes" of v3, "Result codes" of v1 and v2).

use std::{borrow::Cow, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};
use shared::provider::hms::Generation;

use crate::providers::{Outcome, Reason, outcome::foreign_reason, transport::access_token::Verdict};

/// The minimum wait after Huawei refused a request because there are too many; it names no time.
const FLOW_CONTROL_PAUSE: Duration = Duration::from_secs(1);

/// The body of every answer. Its text is not kept: it may repeat a token.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    #[serde(borrow, default)]
    msg: Cow<'a, str>,
    #[serde(borrow, default, rename = "requestId")]
    request_id: Option<Cow<'a, str>>,
}

/// The text of an answer about tokens that were refused: the tokens by reason.
#[derive(Deserialize)]
struct Illegal {
    #[serde(alias = "illegal_tokens", rename = "illegalTokens")]
    tokens: Map<String, Value>,
}

/// Judges an answer. The code in the body decides, whatever the status is. `body` is absent if it was cut.
pub(super) fn judge(
    generation: Generation,
    status: u16,
    body: Option<&[u8]>,
    retry_after: Option<Duration>,
) -> Verdict {
    let Some(body) = body else {
        let cut = match status {
            200..=299 => Outcome::ambiguous("answer_incomplete"),
            _ => Outcome::retry_later("answer_incomplete", retry_after),
        };
        return cut.into();
    };
    match serde_json::from_slice::<Body<'_>>(body) {
        Ok(body) => by_code(generation, &body, status, retry_after),
        Err(_) => by_status(None, status, retry_after).into(),
    }
}

fn by_code(generation: Generation, body: &Body<'_>, status: u16, retry_after: Option<Duration>) -> Verdict {
    let reason = || foreign_reason(&body.code, "unknown");
    match &*body.code {
        "80000000" => Outcome::Accepted {
            provider_id: body.request_id.as_deref().filter(|id| is_id(id)).map(str::to_owned),
        }
        .into(),
        // All tokens were refused, or some: there is only one.
        "80300007" | "80100000" => by_token(generation, &body.msg, reason()).into(),
        "80200003" => Verdict {
            outcome: Outcome::credential(reason(), None),
            renew_token: true,
        },
        // The token is another app's; the app may not push, or not this kind.
        "80200001" | "80300002" | "80600003" => Outcome::credential(reason(), None).into(),
        "81000001" | "80300011" => Outcome::retry_later(reason(), retry_after).into(),
        _ => by_status(Some(reason()), status, retry_after).into(),
    }
}

/// Why Huawei refused the only token. v3 says so; that a token is of another project, or that the app lacks a right, is no fault
/// of the token.
fn by_token(generation: Generation, message: &str, code: Reason) -> Outcome {
    let illegal = serde_json::from_str::<Illegal>(message).ok();
    let why = illegal.as_ref().and_then(|illegal| illegal.tokens.keys().next());
    match (why.map(String::as_str), generation) {
        (Some("tokenFormatError"), _) => Outcome::gone("tokenFormatError"),
        (Some("noRight"), _) => Outcome::credential("noRight", None),
        (Some("noPushTypeRight"), _) => Outcome::rejected("noPushTypeRight"),
        (Some("appinfoError"), _) => Outcome::credential("appinfoError", None),
        (Some("disableSendHuaweiMsgBecauseOfPenalty"), _) => Outcome::credential("penalty", None),
        (Some(other), _) => Outcome::rejected(foreign_reason(other, "unknown")),
        (None, Generation::First) => Outcome::gone(code),
        (None, Generation::Third) => Outcome::rejected(code),
    }
}

/// By the class of the status. Without a `reason` the body is not Huawei's: an intermediary answered.
fn by_status(reason: Option<Reason>, status: u16, retry_after: Option<Duration>) -> Outcome {
    let is_own = reason.is_some();
    let reason = reason.unwrap_or_else(|| format!("http_{status}").into());
    match status {
        // A code that is not that of success, so it was refused.
        200..=299 if is_own => Outcome::rejected(reason),
        // It may have been accepted.
        200..=299 => Outcome::ambiguous("not_hms"),
        401 if is_own => Outcome::credential(reason, retry_after),
        // Flow control.
        429 | 503 => Outcome::retry_later(reason, Some(retry_after.unwrap_or_default().max(FLOW_CONTROL_PAUSE))),
        500..=599 => Outcome::retry_later(reason, retry_after),
        400..=499 if is_own => Outcome::rejected(reason),
        _ => Outcome::endpoint("not_hms", retry_after),
    }
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The outcome of an answer, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(status: u16, headers: &http::HeaderMap, now: jiff::Timestamp, body: &[u8]) -> Outcome {
    let retry_after = crate::providers::transport::retry_after::retry_after(headers, now);
    judge(Generation::Third, status, Some(body), retry_after).outcome
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answered(generation: Generation, status: u16, code: &str, msg: &str) -> Verdict {
        let body = json!({ "code": code, "msg": msg, "requestId": "157466304904000004000701" });
        judge(generation, status, Some(body.to_string().as_bytes()), None)
    }

    #[test]
    fn every_documented_code_has_an_outcome() {
        let accepted = Outcome::Accepted {
            provider_id: Some("157466304904000004000701".into()),
        };
        let pause = Some(FLOW_CONTROL_PAUSE);
        for (status, code, outcome) in [
            (200, "80000000", accepted),
            (200, "80100003", Outcome::rejected("80100003")),
            (400, "80100003", Outcome::rejected("80100003")),
            (200, "80100016", Outcome::rejected("80100016")),
            (400, "80300008", Outcome::rejected("80300008")),
            (400, "80300010", Outcome::rejected("80300010")),
            (401, "80200001", Outcome::credential("80200001", None)),
            (401, "80200003", Outcome::credential("80200003", None)),
            (200, "80300002", Outcome::credential("80300002", None)),
            (403, "80600003", Outcome::credential("80600003", None)),
            (500, "81000001", Outcome::retry_later("81000001", None)),
            (503, "80900000", Outcome::retry_later("80900000", pause)),
            (502, "80900000", Outcome::retry_later("80900000", None)),
            (401, "80900000", Outcome::credential("80900000", None)),
            (404, "80900000", Outcome::rejected("80900000")),
            (400, "a sentence", Outcome::rejected("unknown")),
        ] {
            for generation in [Generation::First, Generation::Third] {
                let verdict = answered(generation, status, code, "text");
                assert_eq!(verdict.outcome, outcome, "{status} {code}");
                assert_eq!(verdict.renew_token, code == "80200003");
            }
        }
    }

    #[test]
    fn only_a_token_that_is_to_blame_is_removed() {
        let of = |why: &str| json!({ "success": 0, "failure": 1, "illegalTokens": { why: ["t1"] } }).to_string();
        for code in ["80300007", "80100000"] {
            for (why, outcome) in [
                ("tokenFormatError", Outcome::gone("tokenFormatError")),
                ("noRight", Outcome::credential("noRight", None)),
                ("appinfoError", Outcome::credential("appinfoError", None)),
                (
                    "disableSendHuaweiMsgBecauseOfPenalty",
                    Outcome::credential("penalty", None),
                ),
                ("noPushTypeRight", Outcome::rejected("noPushTypeRight")),
                ("countryNotSupport", Outcome::rejected("countryNotSupport")),
            ] {
                assert_eq!(
                    answered(Generation::Third, 200, code, &of(why)).outcome,
                    outcome,
                    "{why}"
                );
            }
            let silent = "All tokens are invalid";
            assert_eq!(
                answered(Generation::Third, 200, code, silent).outcome,
                Outcome::rejected(code)
            );
            assert_eq!(
                answered(Generation::First, 200, code, silent).outcome,
                Outcome::gone(code)
            );
        }
    }

    #[test]
    fn an_answer_that_is_not_of_huawei_rejects_nothing() {
        for (status, outcome) in [
            (200, Outcome::ambiguous("not_hms")),
            (302, Outcome::endpoint("not_hms", None)),
            (401, Outcome::endpoint("not_hms", None)),
            (404, Outcome::endpoint("not_hms", None)),
            (500, Outcome::retry_later("http_500", None)),
            (503, Outcome::retry_later("http_503", Some(FLOW_CONTROL_PAUSE))),
        ] {
            let verdict = judge(Generation::Third, status, Some(b"<html>"), None);
            assert_eq!(verdict, outcome.into(), "{status}");
        }
        let cut = |status| judge(Generation::First, status, None, None).outcome;
        assert_eq!(cut(200), Outcome::ambiguous("answer_incomplete"));
        assert_eq!(cut(400), Outcome::retry_later("answer_incomplete", None));
    }
}
