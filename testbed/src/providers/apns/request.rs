//! The rules for a push request, in the order in which APNs checks them.

use http::header::{HeaderMap, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method};
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::Reason;

pub(crate) static APNS_ID: HeaderName = HeaderName::from_static("apns-id");
pub(crate) static APNS_UNIQUE_ID: HeaderName = HeaderName::from_static("apns-unique-id");
pub(crate) static APNS_TOPIC: HeaderName = HeaderName::from_static("apns-topic");
pub(crate) static APNS_PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
pub(crate) static APNS_PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
pub(crate) static APNS_EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
pub(crate) static APNS_COLLAPSE_ID: HeaderName = HeaderName::from_static("apns-collapse-id");

const COLLAPSE_ID_BYTES_MAX: usize = 64;
const PAYLOAD_BYTES_MAX: usize = 4096;
const VOIP_PAYLOAD_BYTES_MAX: usize = 5120;
const TOPIC_BYTES_MAX: usize = 255;

/// A request that satisfies the rules so far, with the parts that later rules need.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) token: &'a str,
    /// The topic as it was given.
    pub(crate) topic: &'a str,
    /// The app's bundle id: the topic without the suffix of the push type.
    pub(crate) bundle: &'a str,
    push_type: Option<&'a str>,
}

/// The id of the push: the `apns-id` of the request if it is valid, or else a new one.
pub(crate) fn message_id(headers: &HeaderMap) -> (HeaderValue, u128, Result<(), Reason>) {
    let Some(given) = headers.get(&APNS_ID) else {
        let (value, id) = new_id();
        return (value, id, Ok(()));
    };
    let parsed = given
        .to_str()
        .ok()
        .filter(|text| text.len() == 36)
        .and_then(|text| Uuid::try_parse(text).ok());
    if let Some(id) = parsed {
        (given.clone(), id.as_u128(), Ok(()))
    } else {
        let (value, id) = new_id();
        (value, id, Err(Reason::BadMessageId))
    }
}

/// A new id, in upper case as APNs writes it.
pub(crate) fn new_id() -> (HeaderValue, u128) {
    let id = Uuid::new_v4();
    let mut text = Uuid::encode_buffer();
    let text = id.hyphenated().encode_upper(&mut text);
    let value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    (value, id.as_u128())
}

/// Checks everything in the head: method, path, id, topic, collapse id, priority, expiration, push type and token. `id`
/// is the result of [`message_id`].
pub(crate) fn check_head(head: &Parts, id: Result<(), Reason>) -> Result<Checked<'_>, Reason> {
    let headers = &head.headers;
    if head.method != Method::POST {
        return Err(Reason::MethodNotAllowed);
    }
    let token = head
        .uri
        .path()
        .strip_prefix("/3/device")
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
        .ok_or(Reason::BadPath)?
        .trim_start_matches('/');
    if token.contains('/') {
        return Err(Reason::BadPath);
    }
    id?;
    no_duplicates(headers)?;
    let push_type = optional(headers, &APNS_PUSH_TYPE, Reason::InvalidPushType)?;
    let topic = optional(headers, &APNS_TOPIC, Reason::BadTopic)?.ok_or(Reason::MissingTopic)?;
    let bundle = check_topic(topic, push_type)?;
    if headers
        .get(&APNS_COLLAPSE_ID)
        .is_some_and(|id| id.len() > COLLAPSE_ID_BYTES_MAX)
    {
        return Err(Reason::BadCollapseId);
    }
    let priority = optional(headers, &APNS_PRIORITY, Reason::BadPriority)?;
    let background = push_type == Some("background");
    if !matches!(
        (priority, background),
        (None | Some("5" | "1"), _) | (Some("10"), false)
    ) {
        return Err(Reason::BadPriority);
    }
    if let Some(expiration) = optional(headers, &APNS_EXPIRATION, Reason::BadExpirationDate)? {
        expiration.parse::<u64>().map_err(|_| Reason::BadExpirationDate)?;
    }
    if push_type.is_some_and(|push_type| suffix(push_type).is_none()) {
        return Err(Reason::InvalidPushType);
    }
    if token.is_empty() {
        return Err(Reason::MissingDeviceToken);
    }
    if !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Reason::BadDeviceToken);
    }
    Ok(Checked {
        token,
        topic,
        bundle,
        push_type,
    })
}

/// Checks the payload's length, and that it is JSON. Apple documents no reason for invalid JSON; we treat it as an empty
/// payload.
pub(crate) fn check_body(checked: &Checked<'_>, body: &[u8]) -> Result<(), Reason> {
    let max = if checked.push_type == Some("voip") {
        VOIP_PAYLOAD_BYTES_MAX
    } else {
        PAYLOAD_BYTES_MAX
    };
    if body.len() > max {
        Err(Reason::PayloadTooLarge)
    } else if body.is_empty() || serde_json::from_slice::<IgnoredAny>(body).is_err() {
        Err(Reason::PayloadEmpty)
    } else {
        Ok(())
    }
}

fn no_duplicates(headers: &HeaderMap) -> Result<(), Reason> {
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    let significant = |name: &HeaderName| name.as_str().starts_with("apns-") || name == http::header::AUTHORIZATION;
    let twice = headers
        .keys()
        .any(|name| significant(name) && headers.get_all(name).iter().nth(1).is_some());
    if twice { Err(Reason::DuplicateHeaders) } else { Ok(()) }
}

fn optional<'a>(headers: &'a HeaderMap, name: &HeaderName, reason: Reason) -> Result<Option<&'a str>, Reason> {
    headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| reason))
        .transpose()
}

/// The suffix that a push type adds to the bundle id; `None` if there is no such type.
fn suffix(push_type: &str) -> Option<&'static str> {
    Some(match push_type {
        "alert" | "background" | "mdm" => "",
        "complication" => ".complication",
        "controls" => ".push-type.controls",
        "fileprovider" => ".pushkit.fileprovider",
        "liveactivity" => ".push-type.liveactivity",
        "location" => ".location-query",
        "pushtotalk" => ".voip-ptt",
        "voip" => ".voip",
        "widgets" => ".push-type.widgets",
        _ => return None,
    })
}

/// Checks the topic and returns the bundle id. An unknown push type is left to a later rule.
fn check_topic<'a>(topic: &'a str, push_type: Option<&str>) -> Result<&'a str, Reason> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX || !topic.bytes().all(legal) {
        return Err(Reason::BadTopic);
    }
    topic
        .strip_suffix(push_type.and_then(suffix).unwrap_or(""))
        .filter(|bundle| !bundle.is_empty())
        .ok_or(Reason::TopicDisallowed)
}
