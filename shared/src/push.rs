//! What a push says, independent of who carries it, and the overrides for each carrier.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{channel::words, invalid::Invalid, lifetime::MAX_TTL_S};

/// Longest collapse key in bytes (Apple: `apns-collapse-id` is at most 64 bytes).
pub const MAX_COLLAPSE_KEY: usize = 64;

/// The content of a push.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Push {
    /// First line of the alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Text of the alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Key-value pairs for the application. FCM reserves `from`, `message_type` and what begins with `google.` or `gcm.`; APNs reserves `aps`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// The number on the application's icon; 0 removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub badge: Option<u32>,
    /// Name of a sound in the application, or `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sound: Option<String>,
    /// An https URL of a picture to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A newer push with the same key replaces an older one on the device. At most 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collapse_key: Option<String>,
    /// `high` wakes the device at once (APNs 10, FCM HIGH); `normal` saves its battery (5, NORMAL).
    pub priority: Priority,
    /// Seconds after acceptance during which the push is worth delivering; 0 means now or never. Default four weeks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// Wakes the application without showing anything. Needs `data` or an override, and no title or body.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
    /// What only Apple's devices get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apns: Option<ApnsOverride>,
    /// What only FCM's devices get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fcm: Option<FcmOverride>,
}

words!(
    /// How urgently the device is woken.
    Priority, "priority", {
        /// At once.
        High = "high",
        /// When it suits the device's battery.
        Normal = "normal",
    }
);

#[expect(clippy::derivable_impls, reason = "the enum is written by a macro")]
impl Default for Priority {
    fn default() -> Self {
        Self::High
    }
}

/// Overrides for APNs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApnsOverride {
    /// `apns-push-type`; default `alert`, or `background` for a silent push. `liveactivity` reaches the addresses
    /// registered for Live Activities, every other type reaches devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_type: Option<ApnsPushType>,
    /// `apns-topic`; default the topic of the address, with the suffix of the push type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// `apns-priority` 10, 5 or 1; default by `priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Laid over the rendered payload: top-level members replace, members of `aps` are merged one by one. A Live
    /// Activity puts `event`, `timestamp` and `content-state` here.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub payload: Map<String, Value>,
}

/// Overrides for FCM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FcmOverride {
    /// Laid over `message.android` member by member (`AndroidConfig` of FCM HTTP v1).
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub android: Map<String, Value>,
    /// Laid over `message.webpush` (`WebpushConfig` of FCM HTTP v1).
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub webpush: Map<String, Value>,
}

words!(
    /// `apns-push-type`, as Apple lists them.
    ApnsPushType, "push.apns.push_type", {
        /// Shows, sounds or badges.
        Alert = "alert",
        /// Wakes the application in the background; priority 5 at most.
        Background = "background",
        /// A call, for `PushKit`.
        Voip = "voip",
        /// Updates a watchOS complication.
        Complication = "complication",
        /// Signals a file provider extension.
        Fileprovider = "fileprovider",
        /// Talks to mobile device management.
        Mdm = "mdm",
        /// Starts, updates or ends a Live Activity.
        Liveactivity = "liveactivity",
        /// Updates a push-to-talk session.
        Pushtotalk = "pushtotalk",
        /// Asks for the location.
        Location = "location",
        /// Reloads controls.
        Controls = "controls",
        /// Reloads widgets.
        Widgets = "widgets",
    }
);

impl ApnsPushType {
    /// What Apple wants behind the bundle id in `apns-topic` for this type; empty for most.
    pub const fn topic_suffix(self) -> &'static str {
        match self {
            Self::Alert | Self::Background | Self::Mdm => "",
            Self::Voip => ".voip",
            Self::Complication => ".complication",
            Self::Fileprovider => ".pushkit.fileprovider",
            Self::Liveactivity => ".push-type.liveactivity",
            Self::Pushtotalk => ".voip-ptt",
            Self::Location => ".location-query",
            Self::Controls => ".push-type.controls",
            Self::Widgets => ".push-type.widgets",
        }
    }

    /// Largest payload in bytes.
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Voip => 5120,
            _ => 4096,
        }
    }
}

impl Push {
    /// `apns-push-type` of this push.
    pub fn apns_push_type(&self) -> ApnsPushType {
        let chosen = self.apns.as_ref().and_then(|apns| apns.push_type);
        chosen.unwrap_or(if self.silent {
            ApnsPushType::Background
        } else {
            ApnsPushType::Alert
        })
    }

    /// `apns-priority` of this push. Apple refuses 10 for background pushes.
    pub fn apns_priority(&self) -> u8 {
        let chosen = self.apns.as_ref().and_then(|apns| apns.priority);
        chosen.unwrap_or(match (self.apns_push_type(), self.priority) {
            (ApnsPushType::Background, _) | (_, Priority::Normal) => 5,
            (_, Priority::High) => 10,
        })
    }

    /// Seconds of life.
    pub fn ttl_s(&self) -> u32 {
        self.ttl.unwrap_or(MAX_TTL_S)
    }

    /// Checks what the types do not: lengths, reserved names, and that there is something to send.
    ///
    /// # Errors
    /// The first field that breaks a rule, seen from this struct.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.ttl_s() > MAX_TTL_S {
            return Err(Invalid::new(
                "ttl",
                format_args!("must be at most {MAX_TTL_S} seconds (28 days)"),
            ));
        }
        let collapse = self.collapse_key.as_deref();
        if collapse.is_some_and(|key| key.is_empty() || key.len() > MAX_COLLAPSE_KEY || !is_header_value(key)) {
            return Err(Invalid::new(
                "collapse_key",
                "must be 1 to 64 printable ASCII characters",
            ));
        }
        if self.image.as_ref().is_some_and(|url| !url.starts_with("https://")) {
            return Err(Invalid::new("image", "must be an https URL"));
        }
        for key in self.data.keys() {
            if is_reserved(key) {
                return Err(Invalid::new(
                    "data",
                    "must not use the reserved keys aps, from, message_type, google.* and gcm.*",
                ));
            }
        }
        self.check_apns().map_err(|invalid| invalid.within("apns"))?;
        self.check_visible()
    }

    fn check_apns(&self) -> Result<(), Invalid> {
        let Some(apns) = &self.apns else { return Ok(()) };
        match (apns.priority, self.apns_push_type()) {
            (None | Some(5 | 1), _) => {}
            (Some(10), kind) if kind != ApnsPushType::Background => {}
            (Some(10), _) => return Err(Invalid::new("priority", "must be 5 or 1 for a background push")),
            (Some(_), _) => return Err(Invalid::new("priority", "must be 10, 5 or 1")),
        }
        if apns
            .topic
            .as_ref()
            .is_some_and(|topic| topic.is_empty() || topic.len() > 255 || !is_header_value(topic))
        {
            return Err(Invalid::new("topic", "must be 1 to 255 printable ASCII characters"));
        }
        if apns.payload.get("aps").is_some_and(|aps| !aps.is_object()) {
            return Err(Invalid::new("payload.aps", "must be an object"));
        }
        Ok(())
    }

    fn check_visible(&self) -> Result<(), Invalid> {
        let shows = self.title.is_some() || self.body.is_some();
        let overridden = self.apns.as_ref().is_some_and(|apns| !apns.payload.is_empty())
            || self.fcm.as_ref().is_some_and(|fcm| !fcm.android.is_empty());
        if self.silent && shows {
            return Err(Invalid::new("silent", "must not be set together with title or body"));
        }
        if !self.silent && !shows && self.badge.is_none() && !overridden {
            return Err(Invalid::new(
                "title",
                "must be given, or body, badge, an override, or silent with data",
            ));
        }
        Ok(())
    }
}

fn is_header_value(text: &str) -> bool {
    text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

fn is_reserved(key: &str) -> bool {
    matches!(key, "aps" | "from" | "message_type" | "") || key.starts_with("google.") || key.starts_with("gcm.")
}
