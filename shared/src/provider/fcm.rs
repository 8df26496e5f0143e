//! FCM: credentials, registration tokens, overrides, and the message of a push.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{lay_over, serialize};
use crate::{
    address::Token,
    content::push::{Priority, Push},
    invalid::Invalid,
    secret::Secret,
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
        let is_token = (1..=MAX_TOKEN).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
        if !is_token {
            return Err(Invalid::new(
                "token",
                "must be 1 to 4096 printable ASCII characters for fcm",
            ));
        }
        Ok(Self {
            token: Token::checked(token),
        })
    }
}

/// Longest token that is accepted, in bytes.
const MAX_TOKEN: usize = 4096;

/// FCM's limit for a message in bytes. Google counts the data and the notification; counting the whole message is
/// stricter by the few bytes of the member names.
pub const MAX_MESSAGE: usize = 4096;

/// Overrides for FCM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = FcmOverride)]
pub struct Override {
    /// Laid over `message.android` member by member (`AndroidConfig` of FCM HTTP v1).
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub android: Map<String, Value>,
    /// Laid over `message.webpush` (`WebpushConfig` of FCM HTTP v1).
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub webpush: Map<String, Value>,
}

/// The `message` of FCM HTTP v1 without its target; [`request`] adds that.
pub fn render(push: &Push, tag: &str) -> Map<String, Value> {
    let mut message = Map::new();
    if !push.data.is_empty() {
        message.insert("data".into(), json!(push.data));
    }
    let mut notification = Map::new();
    put(&mut notification, "title", push.title.as_deref());
    put(&mut notification, "body", push.body.as_deref());
    put(&mut notification, "image", push.image.as_deref());
    let shows = !notification.is_empty();
    if shows {
        message.insert("notification".into(), Value::Object(notification));
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
    if let Some(over) = &push.fcm {
        for (name, members) in [("android", &over.android), ("webpush", &over.webpush)] {
            if !members.is_empty() {
                let target = message.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(target) = target {
                    lay_over(target, members);
                }
            }
        }
    }
    message
}

/// The body of `POST /v1/projects/{project}/messages:send` for one registration token.
pub fn request(message: &Map<String, Value>, token: &str) -> Vec<u8> {
    let mut message = message.clone();
    message.insert("token".into(), json!(token));
    serialize(&json!({ "message": message }))
}

/// The size in bytes of the message for a push, without its target.
pub(super) fn size(push: &Push) -> usize {
    serialize(&render(push, "")).len()
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}
