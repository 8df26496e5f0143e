//! The rules for a message beyond its schema.

use serde_json::{Map, Value};

use super::error::{Violation, violations_body};
use super::schema::{self, TARGETS};

/// The maximum length of a payload, bytes.
const PAYLOAD_BYTES_MAX: usize = 4096;

/// The maximum length of a payload to a topic or condition, bytes.
const TOPIC_PAYLOAD_BYTES_MAX: usize = 2048;

/// The maximum `ttl`, seconds: four weeks.
const TTL_MAX_S: f64 = 2_419_200.0;

/// A valid message.
#[derive(Debug)]
pub(crate) struct Message {
    /// Which of the alternatives is set: `token`, `fid`, `topic` or `condition`.
    pub(crate) target_kind: &'static str,
    pub(crate) target: String,
    pub(crate) validate_only: bool,
    pub(crate) collapse_key: Option<String>,
    pub(crate) priority: Option<String>,
    pub(crate) ttl: Option<String>,
}

/// Parses the body of a request. The error is the body of the answer, whose status is 400.
pub(crate) fn read(body: &[u8]) -> Result<Message, Value> {
    let request: Value = serde_json::from_slice(body).map_err(|error| {
        let description = format!("Invalid JSON payload received. {error}");
        violations_body(&[Violation::new("", description)], false)
    })?;
    let mut request = schema::read(request).map_err(|list| violations_body(&list, false))?;
    let message = match request.remove("message") {
        Some(Value::Object(message)) => message,
        _ => Map::new(),
    };
    check(&message).map_err(|violation| violations_body(&[violation], true))?;
    let Some(target_kind) = TARGETS.into_iter().find(|kind| message.contains_key(*kind)) else {
        return Err(violations_body(&[no_target()], true));
    };
    let android = |name: &str| {
        ["android", "androidV2"]
            .into_iter()
            .find_map(|config| message.get(config)?.get(name)?.as_str())
            .map(str::to_owned)
    };
    Ok(Message {
        target_kind,
        target: text(message.get(target_kind)).to_owned(),
        validate_only: request.get("validateOnly") == Some(&Value::Bool(true)),
        collapse_key: android("collapseKey"),
        priority: android("priority"),
        ttl: android("ttl"),
    })
}

fn check(message: &Map<String, Value>) -> Result<(), Violation> {
    let target = TARGETS
        .into_iter()
        .find(|kind| message.contains_key(*kind))
        .ok_or_else(no_target)?;
    check_target(target, text(message.get(target)))?;
    let maps = [
        ("message.data", message.get("data")),
        (
            "message.android.data",
            message.get("android").and_then(|android| android.get("data")),
        ),
        (
            "message.android_v2.data",
            message.get("androidV2").and_then(|android| android.get("data")),
        ),
    ];
    for (field, data) in maps {
        for key in data
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|entry| entry.0)
        {
            if reserved(key) {
                return Err(Violation::new(field, format!("Invalid data payload key: {key}")));
            }
        }
    }
    for config in ["android", "androidV2"] {
        if let Some(ttl) = message.get(config).and_then(|config| config.get("ttl")) {
            check_ttl(text(Some(ttl)))?;
        }
    }
    check_size(message, target)
}

fn no_target() -> Violation {
    Violation::new("message", "Recipient of the message is not set.")
}

fn check_target(kind: &str, target: &str) -> Result<(), Violation> {
    let topic = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.~%".contains(&byte))
    };
    match kind {
        "topic" if !topic(target) => Err(Violation::new("message.topic", "Invalid topic name provided")),
        "condition" if !target.contains(" in topics") => Err(Violation::new(
            "message.condition",
            "Invalid condition expression provided.",
        )),
        "token" | "fid" if target.is_empty() || !target.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(Violation::new(
                &format!("message.{kind}"),
                "The registration token is not a valid FCM registration token",
            ))
        }
        _ => Ok(()),
    }
}

fn reserved(key: &str) -> bool {
    matches!(key, "from" | "message_type") || key.starts_with("google.") || key.starts_with("gcm.notification.")
}

/// A duration as protobuf writes it in JSON: seconds with up to nine decimals, and an `s`.
fn check_ttl(ttl: &str) -> Result<(), Violation> {
    let field = "message.android.ttl";
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = ttl
        .strip_suffix('s')
        .filter(|seconds| match seconds.split_once('.') {
            Some((whole, part)) => digits(whole) && digits(part) && part.len() <= 9,
            None => digits(seconds),
        })
        .and_then(|seconds| seconds.parse::<f64>().ok());
    match seconds {
        None => Err(Violation::new(
            field,
            format!("Invalid value at '{field}' (type.googleapis.com/google.protobuf.Duration), \"{ttl}\""),
        )),
        Some(seconds) if seconds > TTL_MAX_S => {
            Err(Violation::new(field, "Invalid ttl: it must be at most 2419200 seconds"))
        }
        Some(_) => Ok(()),
    }
}

/// Checks the length of the payload. Google does not document how it counts; we count the text that reaches the device, where
/// the data of a platform replaces the message's, and its notification is laid over the message's.
fn check_size(message: &Map<String, Value>, target: &str) -> Result<(), Violation> {
    let max = if matches!(target, "topic" | "condition") {
        TOPIC_PAYLOAD_BYTES_MAX
    } else {
        PAYLOAD_BYTES_MAX
    };
    let inside = |config: &str, name: &str| message.get(config).and_then(|config| config.get(name));
    let data = ["android", "androidV2"]
        .iter()
        .find_map(|config| inside(config, "data"));
    let common = message.get("notification").and_then(Value::as_object);
    let android = inside("android", "notification").and_then(Value::as_object);
    let shown = android.into_iter().flatten();
    let below = common
        .into_iter()
        .flatten()
        .filter(|(name, _)| android.is_none_or(|android| !android.contains_key(*name)));
    let length = data.or(message.get("data")).map_or(0, text_length)
        + shown.chain(below).map(entry_length).sum::<usize>()
        + inside("androidV2", "remoteNotification").map_or(0, text_length);
    if length > max {
        return Err(Violation::new("message", "Android message is too big"));
    }
    if inside("apns", "payload").is_some_and(|payload| payload.to_string().len() > max) {
        return Err(Violation::new("message", "APNS message is too big"));
    }
    Ok(())
}

fn entry_length((name, value): (&String, &Value)) -> usize {
    name.len() + text_length(value)
}

fn text_length(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) | Value::Number(_) => value.to_string().len(),
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_length).sum(),
        Value::Object(fields) => fields.iter().map(entry_length).sum(),
    }
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}
