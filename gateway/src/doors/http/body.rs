//! The JSON body of a request.

use std::{error::Error, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequest, Request},
};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{
    api::{Api, Limits},
    problem::{BODY_TIMEOUT, MALFORMED, MEDIA_TYPE, Problem, TOO_LARGE},
};
use crate::json;

/// A slow body occupies one of the places for requests, so a caller has only this long to send it.
pub(super) const BODY_ARRIVES_WITHIN: Duration = Duration::from_secs(5);

/// What bodies are sent as.
const JSON: &str = "application/json";

/// The body of a request, parsed as `T`.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned + ToSchema> FromRequest<Arc<Api>> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        parse(&read(request, &api.limits).await?).map(Self)
    }
}

/// What a change by the rules of RFC 7396 may be sent as, beside plain JSON.
const MERGE_PATCH: &str = "application/merge-patch+json";

/// The body of a request that merges, parsed as `T`.
#[derive(Debug)]
pub(crate) struct MergePatch<T>(pub(crate) T);

impl<T: DeserializeOwned + ToSchema> FromRequest<Arc<Api>> for MergePatch<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        let is_patch = is_type(request.headers(), MERGE_PATCH);
        let body = read_as(if is_patch { MERGE_PATCH } else { JSON }, request, &api.limits).await?;
        parse(&body).map(Self)
    }
}

/// The body of a request, as the caller sent it.
#[derive(Debug)]
pub(crate) struct Verbatim(pub(crate) Bytes);

impl FromRequest<Arc<Api>> for Verbatim {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        read(request, &api.limits).await.map(Self)
    }
}

async fn read(request: Request, limits: &Limits) -> Result<Bytes, Problem> {
    read_as(JSON, request, limits).await
}

async fn read_as(wanted: &'static str, request: Request, limits: &Limits) -> Result<Bytes, Problem> {
    check_type(request.headers(), wanted)?;
    collect(request.into_body(), limits.body_bytes).await
}

/// Reads a body of at most `limit` bytes to its end.
pub(super) async fn collect(body: Body, limit: usize) -> Result<Bytes, Problem> {
    timeout(BODY_ARRIVES_WITHIN, to_bytes(body, limit))
        .await
        .map_err(|_| Problem::new(BODY_TIMEOUT, "The body must arrive within 5 seconds."))?
        .map_err(|error| match error.source() {
            Some(error) if error.is::<LengthLimitError>() => {
                Problem::new(TOO_LARGE, format!("The body may have at most {limit} bytes."))
            }
            _ => Problem::new(MALFORMED, "The body could not be read to its end."),
        })
}

/// Checks that the body is sent as `wanted`, a media type in lower case, and without a coding.
pub(super) fn check_type(headers: &HeaderMap, wanted: &'static str) -> Result<(), Problem> {
    if !is_type(headers, wanted) {
        let detail = format!("Send the header Content-Type: {wanted}.");
        return Err(Problem::new(MEDIA_TYPE, detail));
    }
    if !is_identity(headers) {
        let problem = Problem::new(MEDIA_TYPE, "Send the body without a Content-Encoding.");
        return Err(problem.header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
    }
    Ok(())
}

fn is_type(headers: &HeaderMap, wanted: &str) -> bool {
    let Some(Ok(kind)) = headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str) else {
        return false;
    };
    kind.split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case(wanted)
}

/// Whether the body is sent as it is (RFC 9110 §8.4).
fn is_identity(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    codings
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

/// Reads a document, as [`json::parse`] does.
pub(super) fn parse<T: DeserializeOwned + ToSchema>(bytes: &[u8]) -> Result<T, Problem> {
    json::parse(bytes).map_err(Problem::from)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};
    use shared::{
        address::Members,
        contract,
        preferences::{Preferences, PreferencesPatch},
        provider::Provider,
    };

    use super::*;
    use crate::{
        doors::http::{
            dead_letters::ReplayRequest,
            problem::{INVALID, NOT_BUILT},
            suppressions::PostSuppression,
        },
        intake::request::SendRequest,
        recipients::{import::ImportLine, register::PutRecipient},
    };

    #[derive(Debug, serde::Deserialize, ToSchema)]
    #[serde(deny_unknown_fields, remote = "Self")]
    struct Point {
        x: u8,
    }

    shared::only_objects!(Point);

    #[test]
    fn broken_json_is_malformed_and_a_broken_rule_is_invalid() {
        assert_eq!(parse::<Point>(br#"{"x":1}"#).unwrap().x, 1);
        for (body, kind) in [
            (r#"{"x":1"#, MALFORMED),
            (r#"{"x":1}}"#, MALFORMED),
            ("", MALFORMED),
            (r#"{"x":"one"}"#, INVALID),
            (r#"{"x":1,"y":2}"#, INVALID),
            (r#"{"x":1e999}"#, INVALID),
            ("{}", INVALID),
            ("[1]", INVALID),
        ] {
            assert_eq!(parse::<Point>(body.as_bytes()).unwrap_err().kind(), kind, "{body}");
        }
    }

    /// Parses `minimal`, then the same with every member and word of `object` that is reserved, at `path`.
    fn refuses<T: DeserializeOwned + ToSchema>(object: &str, path: &str, minimal: &Value) {
        let read = |document: &Value| parse::<T>(document.to_string().as_bytes()).map(|_| ());
        assert!(read(minimal).is_ok(), "{minimal}");
        let refused = |member: &str, value: Value| {
            let mut document = minimal.clone();
            document.pointer_mut(path).unwrap()[member] = value;
            let problem = read(&document).unwrap_err();
            let field = format!("{path}/{member}")[1..].replace('/', ".");
            assert_eq!(
                (problem.kind(), problem.fields()),
                (NOT_BUILT, vec![field.as_str()]),
                "{document}"
            );
        };
        for member in contract::page().section(object).unwrap().members() {
            if member.reserved.is_some() {
                refused(member.name, json!({ "value": 5_551_234 }));
            }
            let words = member
                .kind
                .strip_prefix("word:")
                .map(|name| contract::page().words(name));
            for (word, _) in words.into_iter().flatten().filter(|(_, reserved)| reserved.is_some()) {
                refused(member.name, word.into());
            }
        }
    }

    /// The objects of a notification, each with its path in [`every_content`].
    const OF_A_NOTIFICATION: [(&str, &str); 10] = [
        ("notification", ""),
        ("to", "/to"),
        ("push", "/push"),
        ("apns", "/push/apns"),
        ("fcm", "/push/fcm"),
        ("email", "/email"),
        ("mailbox", "/email/from"),
        ("attachment", "/email/attachments/0"),
        ("sms", "/sms"),
        ("webhook", "/webhook"),
    ];

    /// A notification with every content. Which of them go together is not decided by reading.
    fn every_content() -> Value {
        let from = json!({ "email": "ann@example.com" });
        let attachment = json!({ "name": "a", "content": "" });
        json!({
            "to": { "recipients": ["ann"] },
            "push": { "title": "x", "apns": {}, "fcm": {} },
            "email": { "subject": "x", "from": from, "attachments": [attachment] },
            "sms": { "text": "x" },
            "webhook": { "type": "x" },
        })
    }

    /// Calls a test for each object of a request, with its path in a minimal body.
    macro_rules! each_request {
        ($test:ident) => {
                for (object, path) in OF_A_NOTIFICATION {
                    $test::<SendRequest>(object, path, &every_content());
                }
                $test::<PutRecipient>("recipient", "", &json!({}));
                $test::<Members>("address", "", &json!({ "provider": "apns", "token": "ab12" }));
                $test::<Preferences>("preferences", "", &json!({}));
                $test::<PreferencesPatch>("preferences_patch", "", &json!({}));
                $test::<ReplayRequest>("replay", "", &json!({}));
                $test::<ImportLine>("import_line", "", &json!({ "recipient_id": "ann" }));
                $test::<PostSuppression>("suppression", "", &json!({ "channel": "email", "address": "ann@example.com" }));
        };
    }

    #[test]
    fn reserved_members_and_words_are_refused_as_not_built() {
        let reserved = contract::page()
            .section("notification")
            .unwrap()
            .members()
            .filter(|member| member.reserved.is_some());
        assert!(reserved.count() > 0, "something is reserved");
        each_request!(refuses);
    }

    #[test]
    fn reserved_members_are_reported_before_missing_ones() {
        for member in ["template", "digest", "send_at_local", "validate"] {
            let problem = parse::<SendRequest>(json!({ member: {} }).to_string().as_bytes()).unwrap_err();
            assert_eq!((problem.kind(), problem.fields()), (NOT_BUILT, vec![member]));
        }
        let problem = parse::<SendRequest>(br#"{"to":{},"push":{},"emial":{}}"#).unwrap_err();
        assert_eq!((problem.kind(), problem.fields()), (INVALID, vec!["emial"]));
    }

    #[test]
    fn the_examples_of_the_contract_are_accepted() {
        fn accepts<T: DeserializeOwned + ToSchema>(object: &str) {
            let (_, example) = contract::page().section(object).unwrap().examples[0];
            assert!(parse::<T>(example.as_bytes()).is_ok(), "{object}");
        }
        accepts::<SendRequest>("notification");
        accepts::<PutRecipient>("recipient");
        accepts::<Members>("address");
        accepts::<Preferences>("preferences");
        accepts::<PreferencesPatch>("preferences_patch");
        accepts::<ImportLine>("import_line");
        accepts::<PostSuppression>("suppression");
    }

    /// Sends every kind of value for every member of `object`, at `path` of `minimal`.
    fn rules<T: DeserializeOwned + ToSchema>(object: &str, path: &str, minimal: &Value, rules: &mut BTreeSet<String>) {
        let values = [
            json!(-5_551_234),
            json!(5_551_234.5),
            json!("5551234"),
            json!(true),
            json!(["5551234"]),
            json!({ "5551234": "5551234" }),
            json!({ "push": 5_551_234 }),
        ];
        for member in contract::page().section(object).unwrap().members() {
            for value in values.iter().filter(|_| member.reserved.is_none()) {
                let mut document = minimal.clone();
                document.pointer_mut(path).unwrap()[member.name] = value.clone();
                if let Err(problem) = parse::<T>(document.to_string().as_bytes()) {
                    let detail = problem.detail();
                    rules.insert(detail.split_once(": ").map_or(detail, |(_, rule)| rule).to_owned());
                }
            }
        }
    }

    /// The field and the rule that `body` breaks, with its code; `None` if it is accepted.
    fn broken<T: DeserializeOwned + ToSchema>(body: &str) -> Option<(&'static str, String)> {
        let problem = parse::<T>(body.as_bytes()).err()?;
        Some((problem.kind().code, problem.detail().to_owned()))
    }

    fn notification(members: &str) -> String {
        format!(r#"{{"to":{{"recipients":["ann"]}},{members}}}"#)
    }

    #[test]
    fn a_value_of_a_wrong_type_is_invalid_and_its_field_is_named_at_any_depth() {
        let push = |members: &str| notification(&format!(r#""push":{{{members}}}"#));
        let words = "must be one of `high`, `normal`";
        for (body, detail) in [
            (
                notification(r#""class":5"#),
                "class: must be one of `urgent`, `normal`, `bulk`".to_owned(),
            ),
            (
                notification(r#""class":["urgent"]"#),
                "class: must be one of `urgent`, `normal`, `bulk`".to_owned(),
            ),
            (notification(r#""event_id":7"#), "event_id: must be a string".to_owned()),
            (notification(r#""push":"x""#), "push: must be an object".to_owned()),
            (notification(r#""push":["x"]"#), "push: must be an object".to_owned()),
            (notification(r#""push":[]"#), "push: must be an object".to_owned()),
            (
                r#"{"to":["ann"],"push":{}}"#.to_owned(),
                "to: must be an object".to_owned(),
            ),
            (
                r#"{"to":[["ann"],null],"push":{}}"#.to_owned(),
                "to: must be an object".to_owned(),
            ),
            (
                r#"{"to":null,"push":{}}"#.to_owned(),
                "to: must be an object, not null".to_owned(),
            ),
            (
                r#"{"to":{"recipients":["ann",7]},"push":{}}"#.to_owned(),
                "to.recipients[1]: must be a string".to_owned(),
            ),
            (
                r#"{"to":{"recipients":[null]},"push":{}}"#.to_owned(),
                "to.recipients[0]: must be a string, not null".to_owned(),
            ),
            (push(r#""priority":10"#), format!("push.priority: {words}")),
            (push(r#""priority":{"high":1}"#), format!("push.priority: {words}")),
            (push(r#""silent":1"#), "push.silent: must be true or false".to_owned()),
            (
                push(r#""badge":"3""#),
                "push.badge: must be a whole number from 0 to 4294967295".to_owned(),
            ),
            (push(r#""data":{"a":1}"#), "push.data.a: must be a string".to_owned()),
            (push(r#""data":["a"]"#), "push.data: must be an object".to_owned()),
            (push(r#""apns":{"push_type":1}"#), String::new()),
            (
                push(r#""apns":{"payload":[]}"#),
                "push.apns.payload: must be an object".to_owned(),
            ),
            (push(r#""apns":[]"#), "push.apns: must be an object".to_owned()),
            (
                push(r#""fcm":{"android":7}"#),
                "push.fcm.android: must be an object".to_owned(),
            ),
            (push(r#""fcm":[{}]"#), "push.fcm: must be an object".to_owned()),
        ] {
            let (code, found) = broken::<SendRequest>(&body).unwrap();
            assert_eq!(code, "validation_failed", "{body}: {found}");
            if detail.is_empty() {
                assert!(found.starts_with("push.apns.push_type: must be one of"), "{found}");
            } else {
                assert_eq!(found, detail, "{body}");
            }
        }
        let address = |members: &str| {
            broken::<Members>(&format!(r#"{{"token":"ab12",{members}}}"#))
                .unwrap()
                .1
        };
        let words = Provider::ALL.iter().map(|provider| format!("`{provider}`"));
        assert_eq!(
            address(r#""provider":1"#),
            format!("provider: must be one of {}", words.collect::<Vec<_>>().join(", "))
        );
        assert_eq!(
            address(r#""provider":"apns","kind":false"#),
            "kind: must be one of `device`, `live_activity`, `live_activity_start`, `voip`, `complication`, `fileprovider`, \
             `pushtotalk`, `location`, `widgets`, `controls`"
        );
        let preferences = |body: &str| broken::<Preferences>(body).unwrap().1;
        assert_eq!(
            preferences(r#"{"channels":{"push":1}}"#),
            "channels.push: must be true or false"
        );
        assert_eq!(
            preferences(r#"{"categories":{"a":true}}"#),
            "categories.a: must be an object"
        );
        assert_eq!(
            preferences(r#"{"categories":{"a":{"push":[]}}}"#),
            "categories.a.push: must be true or false"
        );
        assert_eq!(
            broken::<ReplayRequest>(r#"{"since":5}"#).unwrap().0,
            "validation_failed"
        );
        assert_eq!(
            broken::<PutRecipient>(r#"{"home":{}}"#).unwrap().1,
            "home: must be a string"
        );
    }

    #[test]
    fn null_is_the_absence_of_every_optional_member() {
        fn take_null<T: DeserializeOwned + ToSchema>(object: &str, path: &str, minimal: &Value) {
            for member in contract::page().section(object).unwrap().members() {
                if member.reserved.is_some() || minimal.pointer(&format!("{path}/{}", member.name)).is_some() {
                    continue;
                }
                let mut document = minimal.clone();
                document.pointer_mut(path).unwrap()[member.name] = Value::Null;
                let read = parse::<T>(document.to_string().as_bytes());
                let only_in_answers = member.limits.starts_with("answer");
                assert_eq!(read.is_ok(), !only_in_answers, "{object}.{}", member.name);
            }
        }
        each_request!(take_null);
    }

    #[test]
    fn only_a_body_without_an_encoding_is_read() {
        let is_taken = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            is_identity(&headers)
        };
        assert!(is_taken(&[]) && is_taken(&["identity"]) && is_taken(&["Identity, identity"]));
        assert!(!is_taken(&["gzip"]) && !is_taken(&["identity", "br"]) && !is_taken(&["identity, zstd"]));
    }

    #[test]
    fn no_rule_quotes_a_value_or_a_word_of_the_code() {
        let mut all = BTreeSet::new();
        for (object, path) in OF_A_NOTIFICATION {
            rules::<SendRequest>(object, path, &every_content(), &mut all);
        }
        rules::<PutRecipient>("recipient", "", &json!({}), &mut all);
        rules::<Members>("address", "", &json!({ "provider": "apns", "token": "ab12" }), &mut all);
        rules::<Preferences>("preferences", "", &json!({}), &mut all);
        rules::<ReplayRequest>("replay", "", &json!({}), &mut all);
        rules::<ImportLine>("import_line", "", &json!({ "recipient_id": "ann" }), &mut all);
        let suppression = json!({ "channel": "email", "address": "ann@example.com" });
        rules::<PostSuppression>("suppression", "", &suppression, &mut all);
        let of_code = [
            "5551234", "struct", "enum", "variant", "tuple", "map", "sequence", "unit", "u8", "u32", "i32", "usize",
            "type",
        ];
        for rule in &all {
            // Names of members stand between backquotes.
            let prose = rule.split('`').step_by(2);
            let words = prose.flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_'));
            let found: Vec<_> = words.filter(|word| of_code.contains(word)).collect();
            assert!(found.is_empty(), "{rule}");
        }
        assert!(all.len() > 10, "{all:?}");
    }
}
