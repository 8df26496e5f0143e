//! FCM: credentials, registration tokens, overrides, and the message of a push.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    apns::{self, Aps},
    is_empty, lay_over, put, serialize,
};
use crate::{
    address::Token,
    content::push::{Priority, Push},
    invalid::Invalid,
    secret::Secret,
    tolerant::{self, objects},
};

/// A Google service account that may send for one Firebase project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The id of the Firebase project.
    pub project_id: String,
    /// The service account's JSON file.
    #[serde(serialize_with = "crate::secret::reveal")]
    pub service_account: Secret,
    /// The project's quota in messages per minute, if it is not [`QUOTA_PER_MINUTE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_per_minute: Option<NonZeroU32>,
}

/// Google's default quota for a project in messages per minute (Google: FCM throttling and quotas).
pub const QUOTA_PER_MINUTE: u64 = 600_000;

impl Credential {
    /// The project's quota in messages per minute.
    pub fn quota_per_minute(&self) -> u64 {
        self.quota_per_minute
            .map_or(QUOTA_PER_MINUTE, |quota| quota.get().into())
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_');
        if self.project_id.is_empty() || !self.project_id.bytes().all(is_name) {
            return Err(Invalid::new("project_id", "must be the id of a Firebase project"));
        }
        Ok(())
    }
}

/// The registration token of an application on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The token, as Firebase issued it.
    pub token: Token,
}

impl Target {
    /// Checks what a device registered.
    ///
    /// # Errors
    /// `token`, with its rule.
    pub fn new(token: String) -> Result<Self, Invalid> {
        Ok(Self {
            token: Token::printable(token, "fcm")?,
        })
    }
}

/// FCM's limit in bytes for what one device gets (Google: Firebase Cloud Messaging message types). Google does not say how
/// it counts; names and values of data and notification are counted here, without the JSON around them.
pub const MAX_MESSAGE: usize = 4096;

/// Overrides for FCM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schema(as = FcmOverride)]
pub struct Override {
    /// Laid over `message.android` member by member (`AndroidConfig` of FCM HTTP v1), in either spelling of the names.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub android: Map<String, Value>,
    /// Laid over `message.webpush` (`WebpushConfig` of FCM HTTP v1).
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub webpush: Map<String, Value>,
    /// Laid over `message.apns` (`ApnsConfig` of FCM HTTP v1), for Apple's devices behind FCM. Its payload is laid over the one
    /// that APNs would get.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub apns: Map<String, Value>,
    /// Laid over `message.fcm_options` (`FcmOptions` of FCM HTTP v1).
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub fcm_options: Map<String, Value>,
}

objects!(Override);

impl Override {
    /// [`Self::android`] with the names that protobuf's JSON also accepts as `lowerCamelCase` in `snake_case`.
    pub fn android(&self) -> Map<String, Value> {
        in_snake_case(&self.android, &["data"])
    }

    /// [`Self::webpush`], likewise. `notification` is not Google's but the browsers'.
    fn webpush(&self) -> Map<String, Value> {
        in_snake_case(&self.webpush, &["data", "headers", "notification"])
    }

    /// [`Self::apns`], likewise. `headers` and `payload` are Apple's.
    fn apns(&self) -> Map<String, Value> {
        in_snake_case(&self.apns, &["headers", "payload"])
    }
}

/// `members` with names in `snake_case`, but those of free objects as they are.
fn in_snake_case(members: &Map<String, Value>, free: &[&str]) -> Map<String, Value> {
    let renamed = members.iter().map(|(name, value)| {
        let name = snake_case(name);
        let value = match value {
            Value::Object(inner) if !free.contains(&name.as_str()) => Value::Object(in_snake_case(inner, free)),
            value => value.clone(),
        };
        (name, value)
    });
    renamed.collect()
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// The `message` of FCM HTTP v1 without its target; [`request`] adds that.
pub fn render(push: &Push, tag: &str) -> Map<String, Value> {
    let mut message = Map::new();
    let shows = shows(push);
    let mut data: Map<String, Value> = push
        .data
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    if let (true, Some(url)) = (shows, &push.url) {
        data.entry("url").or_insert_with(|| json!(url));
    }
    if !data.is_empty() {
        message.insert("data".into(), Value::Object(data));
    }
    if shows {
        let mut notification = Map::new();
        put(&mut notification, "title", push.title.as_deref());
        put(&mut notification, "body", push.body.as_deref());
        put(&mut notification, "image", push.image.as_deref());
        if !notification.is_empty() {
            message.insert("notification".into(), Value::Object(notification));
        }
    }
    let mut android = Map::new();
    android.insert(
        "priority".into(),
        json!(match push.priority {
            Priority::High => "HIGH",
            Priority::Normal => "NORMAL",
        }),
    );
    android.insert("ttl".into(), json!(format!("{}s", push.ttl_s())));
    put(&mut android, "collapse_key", push.collapse_key.as_deref());
    if shows {
        // The tag makes a second copy replace the first on the device if an attempt is repeated.
        let mut on_screen = Map::new();
        on_screen.insert("tag".into(), json!(push.collapse_key.as_deref().unwrap_or(tag)));
        put(&mut on_screen, "sound", push.sound.as_deref());
        put(&mut on_screen, "notification_count", push.badge);
        android.insert("notification".into(), Value::Object(on_screen));
    }
    message.insert("android".into(), Value::Object(android));
    if push.subtitle.is_some() || push.thread.is_some() || push.fcm.as_ref().is_some_and(|over| !over.apns.is_empty()) {
        message.insert("apns".into(), for_apple(push, tag));
    }
    if let Some(over) = &push.fcm {
        for (name, members) in [
            ("android", over.android()),
            ("webpush", over.webpush()),
            ("apns", over.apns()),
            ("fcm_options", in_snake_case(&over.fcm_options, &[])),
        ] {
            if !members.is_empty() {
                let target = message.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(target) = target {
                    lay_over(target, &members);
                }
            }
        }
    }
    if push.silent {
        keep_silent(&mut message);
    }
    message
}

/// Removes from a message what would show.
pub(super) fn keep_silent(message: &mut Map<String, Value>) {
    message.remove("notification");
    for platform in ["android", "webpush"] {
        if let Some(Value::Object(members)) = message.get_mut(platform) {
            members.remove("notification");
            if members.is_empty() {
                message.remove(platform);
            }
        }
    }
    if let Some(aps) = message.get_mut("apns").and_then(aps_of) {
        apns::keep_silent(aps);
    }
}

/// What Apple's devices behind FCM get beside `data`: Google makes an alert of `notification` alone, which has no second line and
/// no group.
fn for_apple(push: &Push, tag: &str) -> Value {
    let priority = if push.silent || push.priority == Priority::Normal {
        "5"
    } else {
        "10"
    };
    json!({
        "headers": { "apns-priority": priority, "apns-collapse-id": push.collapse_key.as_deref().unwrap_or(tag) },
        "payload": { "aps": Aps::of(push, push.silent) },
    })
}

fn aps_of(apns: &mut Value) -> Option<&mut Map<String, Value>> {
    apns.get_mut("payload")?.get_mut("aps")?.as_object_mut()
}

/// Whether an Android device shows a notification: there is text, or the override has a notification.
pub fn shows(push: &Push) -> bool {
    let by_override = |over: &Override| over.android.get("notification").is_some_and(|shown| !is_empty(shown));
    !push.silent && (push.has_text() || push.fcm.as_ref().is_some_and(by_override))
}

/// Whether the rendered push shows or runs anything on a device of FCM.
pub(crate) fn has_something(push: &Push) -> bool {
    if push.fcm.is_none() && push.apns_push_type().is_apples_own() {
        return false;
    }
    let by_override = |over: &Override| {
        let members = [&over.android, &over.webpush].into_iter();
        members
            .flat_map(|members| [members.get("data"), members.get("notification")])
            .chain([over.apns.get("payload")])
            .flatten()
            .any(|member| !is_empty(member))
    };
    push.silent || push.has_text() || !push.data.is_empty() || push.fcm.as_ref().is_some_and(by_override)
}

/// The body of `POST /v1/projects/{project}/messages:send` for one registration token.
pub fn request(message: &Map<String, Value>, token: &str) -> Vec<u8> {
    let mut message = message.clone();
    message.insert("token".into(), json!(token));
    serialize(&json!({ "message": message }))
}

/// The bytes that count for [`MAX_MESSAGE`]. A device gets what is for Android, for browsers or for Apple, so the largest of
/// the three.
pub(crate) fn size(push: &Push) -> usize {
    // As long as the job's id, which is the tag if the push has no collapse key.
    let tag = [b'-'; uuid::fmt::Hyphenated::LENGTH];
    let message = render(push, std::str::from_utf8(&tag).unwrap_or_default());
    let of_platform = |platform: &str| {
        let own = |name: &str| message.get(platform).and_then(|members| members.get(name));
        // Google: the data of a platform replaces the message's; its notification is laid over the message's.
        let data = own("data").or(message.get("data")).map_or(0, text_bytes);
        let mut notification = object(message.get("notification"));
        lay_over(&mut notification, &object(own("notification")));
        data + notification.iter().map(entry_bytes).sum::<usize>()
    };
    let apple = || {
        let payload = message.get("apns").and_then(|members| members.get("payload"));
        message.get("data").map_or(0, text_bytes) + payload.map_or(0, |payload| payload.to_string().len())
    };
    of_platform("android").max(of_platform("webpush")).max(apple())
}

fn object(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

fn entry_bytes((name, value): (&String, &Value)) -> usize {
    name.len() + text_bytes(value)
}

fn text_bytes(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) | Value::Number(_) => value.to_string().len(),
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(members) => members.iter().map(entry_bytes).sum(),
    }
}
