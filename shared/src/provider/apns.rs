//! APNs: credentials, device tokens, overrides, and the payload of a push.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{is_empty, lay_over, serialize};
use crate::{
    address::Token,
    channel::words,
    content::push::Push,
    invalid::Invalid,
    secret::Secret,
    tolerant::{self, objects},
};

/// Token-based authentication with APNs (Apple: Establishing a token-based connection to APNs).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The id of the developer team, 10 characters.
    pub team_id: String,
    /// The id of the signing key, 10 characters.
    pub key_id: String,
    /// The bundle id, used as `apns-topic` where an address names none.
    pub topic: String,
    /// The `.p8` file: a PKCS#8 P-256 private key in PEM.
    #[serde(serialize_with = "crate::secret::reveal")]
    pub private_key: Secret,
}

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let names = [("team_id", &self.team_id), ("key_id", &self.key_id)];
        for (field, name) in names {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(Invalid::new(field, "must be letters and digits"));
            }
        }
        if !is_topic(&self.topic) {
            return Err(Invalid::new("topic", TOPIC_RULE));
        }
        Ok(())
    }
}

words!(
    /// The use of a token. Apple issues a token for each use, and refuses a push of another use.
    #[schema(as = AddressKind)]
    Kind, "kind", {
        /// An application on a device: alerts and background pushes.
        Device = "device",
        /// Updates and the end of one Live Activity.
        LiveActivity = "live_activity",
        /// The start of a Live Activity.
        LiveActivityStart = "live_activity_start",
        /// Calls, by `PushKit`.
        Voip = "voip",
        /// Complications of watchOS, by `PushKit`.
        Complication = "complication",
        /// A file provider extension, by `PushKit`.
        Fileprovider = "fileprovider",
        /// A channel of push-to-talk.
        Pushtotalk = "pushtotalk",
        /// A location push service extension.
        Location = "location",
        /// Widgets.
        Widgets = "widgets",
        /// Controls.
        Controls = "controls",
    }
    default Device
);

words!(
    /// Apple's two environments; a token of one is unknown in the other.
    Environment, "environment", {
        /// App Store and `TestFlight` builds.
        Production = "production",
        /// Builds from Xcode.
        Sandbox = "sandbox",
    }
    default Production
);

/// A device token and its use.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The token, in lower case.
    pub token: Token,
    /// The use of the token.
    pub kind: Kind,
    /// The environment in which the token is valid.
    pub environment: Environment,
    /// The bundle id of the application, if it is not the app's default topic.
    pub topic: Option<String>,
    /// The app's name of the Live Activity that the token updates.
    pub activity_id: Option<String>,
}

impl Target {
    /// Checks and normalises what a device registered. Apple: do not assume a length of the token.
    ///
    /// # Errors
    /// `token`, `topic` or `activity_id`, with its rule.
    pub fn new(
        token: &str,
        kind: Kind,
        environment: Environment,
        topic: Option<String>,
        activity_id: Option<String>,
    ) -> Result<Self, Invalid> {
        let is_token = (1..=MAX_TOKEN).contains(&token.len())
            && token.len().is_multiple_of(2)
            && token.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_token {
            return Err(Invalid::new(
                "token",
                "must be hexadecimal, an even number of digits, for apns",
            ));
        }
        if topic.as_deref().is_some_and(|topic| !is_topic(topic)) {
            return Err(Invalid::new("topic", TOPIC_RULE));
        }
        if let Some(activity) = &activity_id {
            if kind != Kind::LiveActivity {
                return Err(Invalid::new(
                    "activity_id",
                    "must not be given unless kind is live_activity",
                ));
            }
            check_activity(activity)?;
        }
        Ok(Self {
            token: Token::checked(token.to_ascii_lowercase()),
            kind,
            environment,
            topic,
            activity_id,
        })
    }
}

/// Longest token that is accepted, in hexadecimal digits.
const MAX_TOKEN: usize = 4096;

const TOPIC_RULE: &str = "must be 1 to 255 printable ASCII characters without spaces";

fn is_topic(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Longest name of a Live Activity, in bytes.
const MAX_ACTIVITY_ID: usize = 128;

fn check_activity(id: &str) -> Result<(), Invalid> {
    let is_name = (1..=MAX_ACTIVITY_ID).contains(&id.len()) && id.bytes().all(|b| (0x20..0x7f).contains(&b));
    let rule = "must be 1 to 128 printable ASCII characters";
    is_name.then_some(()).ok_or_else(|| Invalid::new("activity_id", rule))
}

/// Overrides for APNs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schema(as = ApnsOverride)]
pub struct Override {
    /// `apns-push-type`; default `alert`, or `background` for a silent push. The push reaches the addresses that are
    /// registered for this use: `alert`, `background` and `mdm` those of kind `device`, `liveactivity` with the event `start`
    /// those of `live_activity_start`, every other type those of its own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_type: Option<PushType>,
    /// `apns-topic`; default the topic of the address, with the suffix of the push type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// `apns-priority` 10, 5 or 1; default by `priority`.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    pub priority: Option<u8>,
    /// Laid over the rendered payload: members replace, those of `aps` and of `aps.alert` are merged one by one. A Live
    /// Activity puts `event`, `timestamp` and `content-state` here.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub payload: Map<String, Value>,
    /// The Live Activity that is updated or ended: the one whose address has this `activity_id`. Without it, those whose
    /// address has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity_id: Option<String>,
}

objects!(Override);

impl Override {
    /// Whether it starts a Live Activity (Apple: Starting and updating Live Activities with `ActivityKit` push notifications).
    fn starts_activity(&self) -> bool {
        let event = self.payload.get("aps").and_then(|aps| aps.get("event"));
        event.is_some_and(|event| event == "start")
    }

    /// Checks `activity_id`, which names an activity that exists.
    pub(crate) fn check_activity(&self) -> Result<(), Invalid> {
        let Some(activity) = &self.activity_id else {
            return Ok(());
        };
        if self.push_type != Some(PushType::Liveactivity) || self.starts_activity() {
            let rule = "must not be given unless push_type is liveactivity and the event is not start";
            return Err(Invalid::new("activity_id", rule));
        }
        check_activity(activity)
    }
}

/// Whether `push` is for this use of a token, and for its Live Activity.
pub(crate) fn reaches(push: &Push, target: &Target) -> bool {
    let over = push.apns.as_ref();
    let kind = match push.apns_push_type() {
        PushType::Alert | PushType::Background | PushType::Mdm => Kind::Device,
        PushType::Voip => Kind::Voip,
        PushType::Complication => Kind::Complication,
        PushType::Fileprovider => Kind::Fileprovider,
        PushType::Liveactivity if over.is_some_and(Override::starts_activity) => Kind::LiveActivityStart,
        PushType::Liveactivity => Kind::LiveActivity,
        PushType::Pushtotalk => Kind::Pushtotalk,
        PushType::Location => Kind::Location,
        PushType::Controls => Kind::Controls,
        PushType::Widgets => Kind::Widgets,
    };
    kind == target.kind && over.and_then(|over| over.activity_id.as_ref()) == target.activity_id.as_ref()
}

words!(
    /// `apns-push-type`, as Apple lists them.
    #[schema(as = ApnsPushType)]
    PushType, "push.apns.push_type", {
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

impl PushType {
    /// The suffix that Apple requires after the bundle id in `apns-topic` for this type; empty for most.
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

    /// Whether only Apple has pushes of this type, so that other devices get one only by an override for them.
    pub const fn is_apples_own(self) -> bool {
        !matches!(self, Self::Alert | Self::Background)
    }

    /// Largest payload in bytes that Apple accepts for this type.
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Voip => 5120,
            _ => 4096,
        }
    }
}

/// The members of `aps` that interact with the user. Apple: a background push has none of them.
const INTERACTING: [&str; 3] = ["alert", "badge", "sound"];

/// The body of `POST /3/device/{token}` (Apple: Generating a remote notification).
pub fn render(push: &Push) -> Vec<u8> {
    let silent = is_silent(push);
    let payload = Payload {
        aps: Aps::of(push, silent),
        image: push
            .image
            .as_deref()
            .filter(|_| !silent && !push.data.contains_key("image")),
        url: push
            .url
            .as_deref()
            .filter(|_| !silent && !push.data.contains_key("url")),
        data: &push.data,
    };
    match &push.apns {
        Some(over) if !over.payload.is_empty() => {
            let Ok(Value::Object(mut members)) = serde_json::to_value(&payload) else {
                unreachable!("strings and numbers always make an object")
            };
            lay_over(&mut members, &over.payload);
            if let (true, Some(Value::Object(aps))) = (silent, members.get_mut("aps")) {
                keep_silent(aps);
            }
            serialize(&members)
        }
        _ => serialize(&payload),
    }
}

/// Removes from `aps` what interacts with the user.
pub(super) fn keep_silent(aps: &mut Map<String, Value>) {
    aps.retain(|name, _| !INTERACTING.contains(&name.as_str()));
}

fn is_silent(push: &Push) -> bool {
    push.silent || push.apns_push_type() == PushType::Background
}

/// Whether the rendered push shows or runs anything. An alert has something only by what interacts with the user or by
/// `content-available`; pushes of Apple's other types act by their type.
pub(crate) fn has_something(push: &Push) -> bool {
    if is_silent(push) || push.apns_push_type() != PushType::Alert {
        return true;
    }
    let aps = push.apns.as_ref().and_then(|over| over.payload.get("aps"));
    let rendered = |name: &str, present: bool| match aps.and_then(|aps| aps.get(name)) {
        Some(over) => !is_empty(over),
        None => present,
    };
    rendered("alert", push.has_text())
        || rendered("badge", push.badge.is_some())
        || rendered("sound", push.sound.is_some())
        || rendered("content-available", false)
}

#[derive(Serialize)]
struct Payload<'a> {
    aps: Aps<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(flatten)]
    data: &'a BTreeMap<String, String>,
}

/// The member `aps`, which Apple's devices behind FCM get too.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Aps<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<Alert<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    badge: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_available: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mutable_content: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<&'a str>,
}

impl<'a> Aps<'a> {
    /// What `push` asks for. A `silent` push has nothing that interacts with the user.
    pub(super) fn of(push: &'a Push, silent: bool) -> Self {
        Self {
            alert: (!silent && (push.title.is_some() || push.body.is_some())).then_some(Alert {
                title: push.title.as_deref(),
                subtitle: push.subtitle.as_deref(),
                body: push.body.as_deref(),
            }),
            badge: push.badge.filter(|_| !silent),
            content_available: silent.then_some(1),
            // A notification service extension fetches the picture; Apple runs it only for mutable content.
            mutable_content: (!silent && push.image.is_some()).then_some(1),
            sound: push.sound.as_deref().filter(|_| !silent),
            thread_id: push.thread.as_deref().filter(|_| !silent),
        }
    }
}

#[derive(Serialize)]
struct Alert<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtitle: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
}
