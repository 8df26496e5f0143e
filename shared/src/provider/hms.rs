//! Huawei Push Kit (HMS): credentials, tokens and their generations, overrides, and the message of a push (Huawei: "Push Kit REST
//! API", v3 for HarmonyOS 5 and later, v1 and v2 for Android and HarmonyOS up to 4).

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{fcm, is_empty, is_word, lay_over, put};
use crate::{
    address::Token,
    content::push::{Priority, Push},
    invalid::Invalid,
    secret::Secret,
    tolerant::{self, objects},
};

/// What an app knows of its project at Huawei. Each generation of devices needs its own part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The service account's JSON file, for devices of generation 3. It names the project.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::secret::reveal_some"
    )]
    pub service_account: Option<Secret>,
    /// The OAuth client id, which is also the app id, for devices of generation 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The secret of the OAuth client.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::secret::reveal_some"
    )]
    pub client_secret: Option<Secret>,
    /// The project that sends to devices of generation 1 by v2 of the API; by v1 if absent, for the app alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
}

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.service_account.is_none() && self.client_id.is_none() {
            return Err(Invalid::new("service_account", "must be given, or client_id"));
        }
        for (field, given) in [("client_id", &self.client_id), ("project_id", &self.project_id)] {
            if given.as_deref().is_some_and(|id| !is_word(id, 64)) {
                return Err(Invalid::new(field, "must be 1 to 64 letters and digits"));
            }
        }
        match (&self.client_id, &self.client_secret, &self.project_id) {
            (Some(_), None, _) => Err(Invalid::new("client_secret", "must be given for a client_id")),
            (None, Some(_), _) => Err(Invalid::new("client_id", "must be given for a client_secret")),
            (None, None, Some(_)) => Err(Invalid::new("project_id", "must be given only with a client_id")),
            _ => Ok(()),
        }
    }
}

/// Which of Huawei's APIs issued a token; the others refuse it as invalid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(into = "u8")]
pub enum Generation {
    /// v1 and v2: Android, and HarmonyOS up to 4.
    First,
    /// v3: HarmonyOS 5 and later.
    #[default]
    Third,
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match tolerant::whole::<_, u8>(deserializer)? {
            Some(1) => Ok(Self::First),
            Some(3) => Ok(Self::Third),
            _ => Err(de::Error::custom("must be 1 or 3")),
        }
    }
}

impl From<Generation> for u8 {
    fn from(generation: Generation) -> Self {
        match generation {
            Generation::First => 1,
            Generation::Third => 3,
        }
    }
}

/// The push token of an application on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The token, as Push Kit issued it.
    pub token: Token,
    /// The API that issued it.
    pub generation: Generation,
}

impl Target {
    /// Checks what a device registered.
    ///
    /// # Errors
    /// `token`, with its rule.
    pub fn new(token: String, generation: Generation) -> Result<Self, Invalid> {
        Ok(Self {
            token: Token::printable(token, "hms")?,
            generation,
        })
    }
}

/// Huawei's limit in bytes for a message without its tokens, as JSON.
pub const MAX_MESSAGE: usize = 4096;

/// Longest time to live in seconds that Huawei takes: 15 days.
pub const MAX_LIFE_S: u64 = 15 * 24 * 3600;

/// Overrides for Huawei.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schema(as = HmsOverride)]
pub struct Override {
    /// Huawei's `push-type` of v3; default 0 (alert), or 6 (background) for a silent push.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    pub push_type: Option<u8>,
    /// Laid over the rendered message member by member: `payload` of v3, `message` of v1 and v2.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub payload: Map<String, Value>,
}

objects!(Override);

/// The push type of a notification or a badge, and that of a message in the background.
const ALERT: u8 = 0;
const BACKGROUND: u8 = 6;

impl Override {
    /// Checks the rules that the types do not enforce.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if self.push_type.is_some_and(|kind| ![0, 1, 2, 6, 7, 10].contains(&kind)) {
            return Err(Invalid::new("push_type", "must be 0, 1, 2, 6, 7 or 10"));
        }
        Ok(())
    }
}

/// The header `push-type` of v3.
pub fn push_type(push: &Push) -> u8 {
    let chosen = push.hms.as_ref().and_then(|over| over.push_type);
    chosen.unwrap_or(if push.silent { BACKGROUND } else { ALERT })
}

/// The message of a push without its token: `payload` of v3, `message` of v1 and v2. On the device a copy with the same
/// `collapse_id` replaces the former. `ttl_s` is the time to live that remains; v3 states it outside of the message.
pub fn render(push: &Push, generation: Generation, collapse_id: &str, ttl_s: u64) -> Map<String, Value> {
    let mut message = match generation {
        Generation::Third => of_third(push, collapse_id),
        Generation::First => of_first(push, collapse_id, ttl_s),
    };
    if let Some(over) = &push.hms {
        lay_over(&mut message, &over.payload);
    }
    for target in ["token", "topic", "condition"] {
        message.remove(target);
    }
    if push.silent {
        // Both generations name it as FCM does.
        fcm::keep_silent(&mut message);
    }
    message
}

fn of_third(push: &Push, collapse_id: &str) -> Map<String, Value> {
    let mut payload = Map::new();
    let data = data(push);
    if push.silent || push_type(push) == BACKGROUND {
        payload.insert("extraData".into(), json!(Value::Object(data).to_string()));
    } else if push_type(push) == ALERT && push.has_text() {
        let mut shown = texts(push);
        // Who has no right to other categories may send this one.
        shown.insert("category".into(), json!("MARKETING"));
        shown.insert("notifyId".into(), json!(notify_id(collapse_id)));
        let mut click = json!({ "actionType": 0 });
        if !data.is_empty() {
            click["data"] = data.into();
        }
        shown.insert("clickAction".into(), click);
        if let Some(badge) = push.badge {
            shown.insert("badge".into(), json!({ "setNum": badge }));
        }
        put(
            &mut shown,
            "sound",
            push.sound.as_deref().filter(|sound| *sound != "default"),
        );
        payload.insert("notification".into(), Value::Object(shown));
    }
    payload
}

fn of_first(push: &Push, collapse_id: &str, ttl_s: u64) -> Map<String, Value> {
    let mut message = Map::new();
    let data = data(push);
    if push.silent || !data.is_empty() {
        message.insert("data".into(), json!(Value::Object(data).to_string()));
    }
    let urgency = match push.priority {
        Priority::High => "HIGH",
        Priority::Normal => "NORMAL",
    };
    let mut android = json!({ "urgency": urgency, "ttl": format!("{ttl_s}s") });
    if push.has_text() {
        message.insert("notification".into(), Value::Object(texts(push)));
        // 3: opens the application; 2: opens a URL.
        let click = match push.url.as_deref().filter(|url| url.starts_with("https://")) {
            Some(url) => json!({ "type": 2, "url": url }),
            None => json!({ "type": 3 }),
        };
        let mut shown = json!({ "click_action": click, "tag": collapse_id });
        if let Some(badge) = push.badge {
            shown["badge"] = json!({ "set_num": badge });
        }
        if push.sound.is_some() {
            shown["default_sound"] = true.into();
        }
        android["notification"] = shown;
    }
    message.insert("android".into(), android);
    message
}

/// Title and text, both of which Huawei demands: what is absent is the other.
fn texts(push: &Push) -> Map<String, Value> {
    let title = push.title.as_deref().filter(|text| !text.is_empty());
    let body = push.body.as_deref().filter(|text| !text.is_empty());
    let mut shown = Map::new();
    put(&mut shown, "title", title.or(body));
    put(&mut shown, "body", body.or(title));
    put(&mut shown, "image", push.image.as_deref());
    shown
}

fn data(push: &Push) -> Map<String, Value> {
    let mut data: Map<String, Value> = push
        .data
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    if let (true, Some(url)) = (push.has_text(), &push.url) {
        data.entry("url").or_insert_with(|| url.as_str().into());
    }
    data
}

/// A number for a collapse id: a notification replaces the one with the same number. FNV-1a, without the sign.
fn notify_id(collapse_id: &str) -> u32 {
    let hash = collapse_id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash & 0x7fff_ffff
}

/// Bytes of the longer of both messages, as JSON.
pub(crate) fn size(push: &Push) -> usize {
    let id = [b'-'; uuid::fmt::Hyphenated::LENGTH];
    let id = std::str::from_utf8(&id).unwrap_or_default();
    let of = |generation| {
        Value::Object(render(push, generation, id, MAX_LIFE_S))
            .to_string()
            .len()
    };
    of(Generation::First).max(of(Generation::Third))
}

/// Whether the rendered push shows or runs anything on a device of this generation.
pub(crate) fn has_something(push: &Push, generation: Generation) -> bool {
    if push.hms.is_none() && push.apns_push_type().is_apples_own() {
        return false;
    }
    let by_override = push
        .hms
        .as_ref()
        .is_some_and(|over| over.payload.values().any(|member| !is_empty(member)));
    let by_data = !push.data.is_empty() && generation == Generation::First;
    push.silent || push.has_text() || by_data || by_override
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(push: Value, generation: Generation) -> Value {
        let push: Push = serde_json::from_value(push).unwrap();
        push.check().unwrap();
        Value::Object(render(&push, generation, "job", 60))
    }

    #[test]
    fn each_generation_gets_its_own_form() {
        let push = json!({
            "title": "Paid", "badge": 2, "data": { "order": "7" }, "url": "https://example.com/7",
            "hms": { "payload": { "notification": { "category": "EXPRESS" }, "token": ["other"] } },
        });
        assert_eq!(
            rendered(push.clone(), Generation::Third),
            json!({ "notification": {
                "category": "EXPRESS", "title": "Paid", "body": "Paid", "notifyId": notify_id("job"),
                "clickAction": { "actionType": 0, "data": { "order": "7", "url": "https://example.com/7" } },
                "badge": { "setNum": 2 },
            } })
        );
        let first = rendered(push, Generation::First);
        assert_eq!(
            first["android"]["notification"]["click_action"],
            json!({ "type": 2, "url": "https://example.com/7" })
        );
        assert_eq!(first["android"]["ttl"], "60s");
        assert_eq!(first["data"], r#"{"order":"7","url":"https://example.com/7"}"#);
        assert!(
            first.get("token").is_none(),
            "the target is not the app's to choose here"
        );
    }

    #[test]
    fn nothing_of_a_silent_push_shows() {
        let push = json!({
            "silent": true, "data": { "a": "b" }, "badge": 1,
            "hms": { "payload": { "notification": { "title": "x" }, "android": { "notification": { "title": "x" } } } },
        });
        assert_eq!(
            rendered(push.clone(), Generation::Third),
            json!({ "extraData": r#"{"a":"b"}"# })
        );
        let first = rendered(push.clone(), Generation::First);
        assert!(
            first.get("notification").is_none() && first["android"].get("notification").is_none(),
            "{first}"
        );
        assert_eq!(push_type(&serde_json::from_value(push).unwrap()), BACKGROUND);
    }

    #[test]
    fn a_member_of_another_form_is_named() {
        let read = |members: Value| serde_json::from_value::<Credential>(members).unwrap();
        read(json!({ "service_account": "{}" })).check().unwrap();
        read(json!({ "client_id": "104", "client_secret": "x", "project_id": "736" }))
            .check()
            .unwrap();
        for (field, members) in [
            ("service_account", json!({})),
            ("client_secret", json!({ "client_id": "104" })),
            ("client_id", json!({ "service_account": "{}", "client_secret": "x" })),
            ("client_id", json!({ "client_id": "a/b", "client_secret": "x" })),
            ("project_id", json!({ "service_account": "{}", "project_id": "736" })),
        ] {
            assert_eq!(read(members).check().unwrap_err().field, field);
        }
        let over = Override {
            push_type: Some(3),
            ..Override::default()
        };
        assert_eq!(over.check().unwrap_err().field, "push_type");
    }
}
