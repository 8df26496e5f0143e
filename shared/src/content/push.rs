//! The content of a push, independent of the provider, and the overrides for each provider.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MAX_LIFE_S, check_life};
use crate::{
    address::Target,
    channel::words,
    invalid::Invalid,
    provider::{
        ProviderPayload,
        apns::{self, PushType},
        fcm, hms, jpush, web_push,
    },
    tolerant::{self, objects},
};

/// A push whose JSON has at most this many bytes is within every provider's limit when rendered: rendering repeats only
/// the collapse key, and adds less than the difference. Callers that already have the JSON may skip [`Push::check_size`].
pub const SURELY_FITS: usize = 3500;

/// Longest URI that a tap opens, in bytes.
const MAX_URL: usize = 2048;

/// Longest collapse key in bytes (Apple: `apns-collapse-id` is at most 64 bytes).
pub const MAX_COLLAPSE_KEY: usize = 64;

/// Longest name of a group of alerts, in bytes.
const MAX_THREAD: usize = 64;

/// The content of a push.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Push {
    /// First line of the alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Second line of the alert, on Apple's devices, also on those behind FCM. It shows beside `title` or `body` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subtitle: Option<String>,
    /// Text of the alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Key-value pairs for the application. FCM reserves `from`, `message_type` and what begins with `google.` or
    /// `gcm.notification.`; APNs reserves `aps`.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "tolerant::or_default"
    )]
    pub data: BTreeMap<String, String>,
    /// The number on the application's icon; 0 removes it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    pub badge: Option<u32>,
    /// Name of a sound in the application, or `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sound: Option<String>,
    /// An https URL of a picture to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What a tap opens: an absolute URI. A browser goes to an https URL; applications find it as `url` beside the data, unless
    /// the data has a `url`. At most 2048 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A newer push with the same key replaces an older one on the device. At most 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collapse_key: Option<String>,
    /// Groups alerts on Apple's devices, also on those behind FCM: `thread-id`. 1 to 64 printable ASCII characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread: Option<String>,
    /// `high` wakes the device at once (APNs 10, FCM HIGH); `normal` saves its battery (5, NORMAL).
    #[serde(deserialize_with = "tolerant::or_default")]
    pub priority: Priority,
    /// Seconds after acceptance during which the push is worth delivering; 0 means now or never. Default four weeks.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    pub ttl: Option<u32>,
    /// Wakes the application without showing anything. Not with title or body; badge, sound, image and what overrides would
    /// show are left out.
    #[serde(
        skip_serializing_if = "std::ops::Not::not",
        deserialize_with = "tolerant::or_default"
    )]
    pub silent: bool,
    /// Overrides for APNs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apns: Option<apns::Override>,
    /// Overrides for FCM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fcm: Option<fcm::Override>,
    /// Overrides for web push.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_push: Option<web_push::Override>,
    /// Overrides for Huawei.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hms: Option<hms::Override>,
    /// Overrides for `JPush`: laid over its request, member by member, but the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jpush: Option<ProviderPayload>,
    /// Overrides for Amazon SNS: by platform, such as `GCM` and `APNS`, what is laid over the payload for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sns: Option<ProviderPayload>,
}

objects!(Push);

words!(
    /// When the device is woken.
    Priority, "priority", {
        /// At once.
        High = "high",
        /// When it suits the device's battery.
        Normal = "normal",
    }
    default High
);

impl Push {
    /// `apns-push-type` of this push: the override, or a default.
    pub fn apns_push_type(&self) -> PushType {
        let chosen = self.apns.as_ref().and_then(|apns| apns.push_type);
        chosen.unwrap_or(if self.silent {
            PushType::Background
        } else {
            PushType::Alert
        })
    }

    /// `apns-priority` of this push. Apple refuses 10 for background pushes.
    pub fn apns_priority(&self) -> u8 {
        let chosen = self.apns.as_ref().and_then(|apns| apns.priority);
        chosen.unwrap_or(match (self.apns_push_type(), self.priority) {
            (PushType::Background, _) | (_, Priority::Normal) => 5,
            (_, Priority::High) => 10,
        })
    }

    /// Time to live in seconds; the maximum if the caller gave none.
    pub fn ttl_s(&self) -> u32 {
        self.ttl.unwrap_or(MAX_LIFE_S)
    }

    /// Whether the push is for this kind of address: Apple issues a token for each use.
    pub fn reaches(&self, target: &Target) -> bool {
        match target {
            Target::Apns(target) => apns::reaches(self, target),
            Target::Fcm(_) | Target::WebPush(_) | Target::Hms(_) | Target::JPush(_) => true,
            Target::Sns(target) => target.is_reached_by(self),
            Target::Email(_) | Target::Phone(_) | Target::Webhook(_) => false,
        }
    }

    /// Whether the push, rendered for this address, shows or runs anything.
    pub(super) fn has_something_for(&self, target: &Target) -> bool {
        match target {
            Target::Apns(_) => apns::has_something(self),
            Target::Fcm(_) => fcm::has_something(self),
            Target::WebPush(_) => web_push::has_something(self),
            Target::Hms(target) => hms::has_something(self, target.generation),
            Target::JPush(_) => jpush::has_something(self),
            Target::Sns(target) => target.has_something(self),
            Target::Email(_) | Target::Phone(_) | Target::Webhook(_) => false,
        }
    }

    /// Whether there is text to show.
    pub(crate) fn has_text(&self) -> bool {
        let text = [&self.title, &self.body].into_iter().flatten();
        !self.silent && text.into_iter().any(|text| !text.is_empty())
    }

    /// The id by which a later copy replaces an earlier one on the device: the collapse key, or `otherwise`.
    pub fn collapse_id(&self, otherwise: impl FnOnce() -> String) -> Cow<'_, str> {
        match &self.collapse_key {
            Some(key) => Cow::Borrowed(key),
            None => Cow::Owned(otherwise()),
        }
    }

    /// Refuses a push that a provider would refuse for its size once it is rendered. A push that is not sent to the provider's
    /// devices has no size there.
    ///
    /// # Errors
    /// `push`, with both sizes in bytes.
    pub fn check_size(&self) -> Result<(), Invalid> {
        let fits = |name: &str, most: usize, size: usize| {
            let rule = || format!("must render to at most {most} bytes for {name}, has {size}");
            if size > most {
                Err(Invalid::new("push", rule()))
            } else {
                Ok(())
            }
        };
        if apns::has_something(self) {
            fits("APNs", self.apns_push_type().max_payload(), apns::render(self).len())?;
        }
        if fcm::has_something(self) {
            fits("FCM", fcm::MAX_MESSAGE, fcm::size(self))?;
        }
        // Browsers take less than the others, so only a push that is meant for them is held to it.
        if self.web_push.is_some() && web_push::has_something(self) {
            fits("web push", web_push::MAX_PAYLOAD, web_push::size(self))?;
        }
        // Huawei counts what others do not, so likewise.
        if self.hms.is_some() {
            fits("Huawei", hms::MAX_MESSAGE, hms::size(self))?;
        }
        Ok(())
    }

    /// Checks the rules that the types do not enforce: lengths, reserved names, and that there is something to send.
    ///
    /// # Errors
    /// The first field that breaks a rule; its path begins at this struct.
    pub fn check(&self) -> Result<(), Invalid> {
        check_life(self.ttl_s())?;
        let collapse = self.collapse_key.as_deref();
        if collapse.is_some_and(|key| key.is_empty() || key.len() > MAX_COLLAPSE_KEY || !is_header_value(key)) {
            return Err(Invalid::new(
                "collapse_key",
                "must be 1 to 64 printable ASCII characters",
            ));
        }
        let thread = self.thread.as_deref();
        if thread.is_some_and(|thread| thread.is_empty() || thread.len() > MAX_THREAD || !is_header_value(thread)) {
            return Err(Invalid::new("thread", "must be 1 to 64 printable ASCII characters"));
        }
        if self.image.as_ref().is_some_and(|url| !url.starts_with("https://")) {
            return Err(Invalid::new("image", "must be an https URL"));
        }
        let is_uri = |text: &String| {
            text.len() <= MAX_URL && text.bytes().all(|b| b.is_ascii_graphic()) && url::Url::parse(text).is_ok()
        };
        if self.url.as_ref().is_some_and(|url| !is_uri(url)) {
            return Err(Invalid::new(
                "url",
                "must be an absolute URI of at most 2048 ASCII characters",
            ));
        }
        for key in self.data.keys() {
            if is_reserved(key) {
                return Err(Invalid::new(
                    "data",
                    "must not use the reserved keys aps, from, message_type, google.* and gcm.notification.*",
                ));
            }
        }
        self.check_apns().map_err(|invalid| invalid.within("apns"))?;
        if let Some(hms) = &self.hms {
            hms.check().map_err(|invalid| invalid.within("hms"))?;
        }
        for (name, payload, own) in [("jpush", &self.jpush, jpush::OWN), ("sns", &self.sns, &[])] {
            if let Some(payload) = payload {
                payload.check(own).map_err(|invalid| invalid.within(name))?;
            }
        }
        self.check_visible()
    }

    fn check_apns(&self) -> Result<(), Invalid> {
        let Some(apns) = &self.apns else { return Ok(()) };
        match (apns.priority, self.apns_push_type()) {
            (None | Some(5 | 1), _) => {}
            (Some(10), kind) if kind != PushType::Background => {}
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
        apns.check_activity()
    }

    fn check_visible(&self) -> Result<(), Invalid> {
        let shows = self.title.is_some() || self.body.is_some();
        let overridden = self.apns_push_type().is_apples_own()
            || self.apns.as_ref().is_some_and(|apns| !apns.payload.is_empty())
            || self
                .fcm
                .as_ref()
                .is_some_and(|fcm| !fcm.android.is_empty() || !fcm.webpush.is_empty() || !fcm.apns.is_empty())
            || self.web_push.as_ref().is_some_and(|over| !over.payload.is_empty())
            || self.hms.as_ref().is_some_and(|over| !over.payload.is_empty())
            || self.jpush.as_ref().is_some_and(|over| !over.payload.is_empty())
            || self.sns.as_ref().is_some_and(|over| !over.payload.is_empty());
        if self.silent && (shows || self.subtitle.is_some()) {
            let rule = "must not be set together with title, subtitle or body";
            return Err(Invalid::new("silent", rule));
        }
        if !self.silent && !shows && self.badge.is_none() && !overridden {
            return Err(Invalid::new(
                "title",
                "must be given, or body, badge, an override, or silent",
            ));
        }
        Ok(())
    }
}

fn is_header_value(text: &str) -> bool {
    text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

fn is_reserved(key: &str) -> bool {
    matches!(key, "aps" | "from" | "message_type" | "")
        || key.starts_with("google.")
        || key.starts_with("gcm.notification.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::apns::Kind;
    use serde_json::{Value, json};

    fn as_value(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn an_alert_carries_title_body_and_data() {
        let push = Push {
            title: Some("Hello".into()),
            badge: Some(3),
            data: [("order".to_owned(), "42".to_owned())].into(),
            ..Push::default()
        };
        assert_eq!(
            as_value(&apns::render(&push)),
            json!({ "aps": { "alert": { "title": "Hello" }, "badge": 3 }, "order": "42" })
        );
        let request = as_value(&fcm::request(&fcm::render(&push, "t"), "token"));
        assert_eq!(request["message"]["token"], "token");
        assert_eq!(request["message"]["android"]["ttl"], "2419200s");
        assert_eq!(request["message"]["android"]["notification"]["tag"], "t");
    }

    #[test]
    fn a_live_activity_is_laid_over_aps() {
        let over = json!({ "aps": { "event": "update", "timestamp": 1, "content-state": { "score": 2 } } });
        let push = Push {
            apns: Some(apns::Override {
                push_type: Some(PushType::Liveactivity),
                payload: over.as_object().unwrap().clone(),
                ..apns::Override::default()
            }),
            ..Push::default()
        };
        assert!(push.check().is_ok());
        assert_eq!(as_value(&apns::render(&push)), over);
    }

    #[test]
    fn a_push_with_little_json_fits_every_provider() {
        // Every member that rendering repeats or renames, with text that grows most when it is escaped.
        let mut push = Push {
            title: Some("\"".repeat(100)),
            badge: Some(u32::MAX),
            sound: Some("s".repeat(50)),
            subtitle: Some("\"".repeat(50)),
            thread: Some("\"".repeat(64)),
            image: Some("https://example.com/".into()),
            url: Some("https://example.com/orders".into()),
            collapse_key: Some("\"".repeat(64)),
            data: [("k".to_owned(), "\u{1}".repeat(100))].into(),
            ..Push::default()
        };
        let rest = serde_json::to_vec(&push).unwrap().len();
        push.body = Some("x".repeat(SURELY_FITS - rest - r#","body":"""#.len()));
        assert_eq!(serde_json::to_vec(&push).unwrap().len(), SURELY_FITS);
        assert!(push.check().is_ok() && push.check_size().is_ok());
    }

    fn read(json: &Value) -> Push {
        let push: Push = serde_json::from_value(json.clone()).unwrap();
        push.check().unwrap();
        push
    }

    #[test]
    fn a_push_has_something_for_a_provider_if_it_shows_or_runs_anything_there() {
        for (push, apns, fcm) in [
            (json!({ "title": "x" }), true, true),
            (json!({ "title": "" }), false, false),
            (json!({ "badge": 0 }), true, false),
            (json!({ "badge": 1, "data": { "a": "b" } }), true, true),
            (json!({ "badge": 1, "image": "https://example.com/" }), true, false),
            (json!({ "silent": true }), true, true),
            (json!({ "silent": true, "apns": { "push_type": "alert" } }), true, true),
            (
                json!({ "apns": { "payload": { "aps": { "alert": "x" } } } }),
                true,
                false,
            ),
            (
                json!({ "apns": { "payload": { "aps": { "alert": null } } } }),
                false,
                false,
            ),
            (
                json!({ "title": "x", "apns": { "payload": { "aps": { "alert": {} } } } }),
                false,
                true,
            ),
            (
                json!({ "apns": { "payload": { "aps": { "content-available": 1 } } } }),
                true,
                false,
            ),
            (
                json!({ "apns": { "payload": { "aps": { "category": "x" } } } }),
                false,
                false,
            ),
            (
                json!({ "apns": { "payload": { "own": 1 } }, "data": { "a": "b" } }),
                false,
                true,
            ),
            (
                json!({ "apns": { "push_type": "location", "payload": { "aps": {} } } }),
                true,
                false,
            ),
            (json!({ "title": "x", "apns": { "push_type": "voip" } }), true, false),
            (
                json!({ "title": "x", "apns": { "push_type": "voip" }, "fcm": {} }),
                true,
                true,
            ),
            (json!({ "fcm": { "android": { "priority": "HIGH" } } }), false, false),
            (json!({ "fcm": { "android": { "data": { "a": "b" } } } }), false, true),
            (
                json!({ "fcm": { "android": { "notification": null } }, "badge": 1 }),
                true,
                false,
            ),
            (
                json!({ "fcm": { "webpush": { "notification": { "title": "x" } } } }),
                false,
                true,
            ),
            (
                json!({ "fcm": { "webpush": { "headers": { "Urgency": "high" } } } }),
                false,
                false,
            ),
            (
                json!({ "fcm": { "apns": { "payload": { "aps": { "alert": "x" } } } } }),
                false,
                true,
            ),
            (
                json!({ "fcm": { "apns": { "headers": { "apns-priority": "5" } } } }),
                false,
                false,
            ),
        ] {
            let read = read(&push);
            let has = [apns::has_something(&read), fcm::has_something(&read)];
            assert_eq!(has, [apns, fcm], "{push}");
        }
    }

    #[test]
    fn a_push_reaches_only_tokens_of_its_use() {
        let target = |kind, activity: Option<&str>| {
            let environment = apns::Environment::Production;
            Target::Apns(apns::Target::new("ab", kind, environment, None, activity.map(str::to_owned)).unwrap())
        };
        let mut targets: Vec<_> = Kind::ALL.iter().map(|kind| target(*kind, None)).collect();
        targets.push(target(Kind::LiveActivity, Some("ride-1")));
        let live = |event: &str| json!({ "push_type": "liveactivity", "payload": { "aps": { "event": event } } });
        let named = |activity: &str| json!({ "push_type": "liveactivity", "activity_id": activity });
        for (over, kind, activity) in [
            (json!({}), Kind::Device, None),
            (json!({ "push_type": "alert" }), Kind::Device, None),
            (json!({ "push_type": "background" }), Kind::Device, None),
            (json!({ "push_type": "mdm" }), Kind::Device, None),
            (json!({ "push_type": "voip" }), Kind::Voip, None),
            (json!({ "push_type": "complication" }), Kind::Complication, None),
            (json!({ "push_type": "fileprovider" }), Kind::Fileprovider, None),
            (json!({ "push_type": "pushtotalk" }), Kind::Pushtotalk, None),
            (json!({ "push_type": "location" }), Kind::Location, None),
            (json!({ "push_type": "widgets" }), Kind::Widgets, None),
            (json!({ "push_type": "controls" }), Kind::Controls, None),
            (live("start"), Kind::LiveActivityStart, None),
            (live("update"), Kind::LiveActivity, None),
            (live("end"), Kind::LiveActivity, None),
            (named("ride-1"), Kind::LiveActivity, Some("ride-1")),
        ] {
            let push = read(&json!({ "title": "x", "apns": over }));
            let reached: Vec<_> = targets.iter().filter(|target| push.reaches(target)).collect();
            assert_eq!(reached, [&target(kind, activity)], "{over}");
        }
        let other = read(&json!({ "apns": named("ride-2") }));
        assert!(!targets.iter().any(|target| other.reaches(target)));
    }

    #[test]
    fn only_a_push_to_an_activity_that_exists_names_one() {
        let start = json!({
            "push_type": "liveactivity", "activity_id": "ride-1", "payload": { "aps": { "event": "start" } },
        });
        for over in [
            json!({ "activity_id": "ride-1" }),
            json!({ "activity_id": "ride-1", "push_type": "voip" }),
            json!({ "activity_id": "", "push_type": "liveactivity" }),
            json!({ "activity_id": "x".repeat(129), "push_type": "liveactivity" }),
            json!({ "activity_id": "a\nb", "push_type": "liveactivity" }),
            start,
        ] {
            let push: Push = serde_json::from_value(json!({ "title": "x", "apns": over })).unwrap();
            assert_eq!(push.check().unwrap_err().field, "apns.activity_id", "{over}");
        }
    }

    #[test]
    fn a_subtitle_and_a_thread_go_to_apples_devices_wherever_they_are() {
        let push = read(&json!({
            "title": "Lunch", "subtitle": "Today", "body": "Soup", "thread": "menu", "badge": 2, "priority": "normal",
        }));
        let aps = json!({
            "alert": { "title": "Lunch", "subtitle": "Today", "body": "Soup" }, "badge": 2, "thread-id": "menu",
        });
        assert_eq!(as_value(&apns::render(&push)), json!({ "aps": aps }));
        let message = Value::Object(fcm::render(&push, "t"));
        let headers = json!({ "apns-priority": "5", "apns-collapse-id": "t" });
        assert_eq!(
            message["apns"],
            json!({ "headers": headers, "payload": { "aps": aps } })
        );
        assert_eq!(message["notification"], json!({ "title": "Lunch", "body": "Soup" }));
        assert!(
            !String::from_utf8(web_push::render(&push, "t"))
                .unwrap()
                .contains("Today")
        );
    }

    #[test]
    fn what_is_for_apple_behind_google_is_laid_over_what_apns_would_get() {
        let push = read(&json!({ "title": "x", "fcm": {
            "apns": {
                "headers": { "apns-priority": "5" },
                "payload": { "aps": { "category": "y" }, "own_Member": 1 },
                "fcmOptions": { "analyticsLabel": "z" },
            },
            "fcm_options": { "analyticsLabel": "z" },
        } }));
        let message = Value::Object(fcm::render(&push, "t"));
        assert_eq!(
            message["apns"],
            json!({
                "headers": { "apns-priority": "5", "apns-collapse-id": "t" },
                "payload": { "aps": { "alert": { "title": "x" }, "category": "y" }, "own_Member": 1 },
                "fcm_options": { "analytics_label": "z" },
            })
        );
        assert_eq!(message["fcm_options"], json!({ "analytics_label": "z" }));
        let silent = read(&json!({ "silent": true, "fcm": { "apns": { "payload": { "aps": { "sound": "y" } } } } }));
        let message = Value::Object(fcm::render(&silent, "t"));
        assert_eq!(message["apns"]["payload"], json!({ "aps": { "content-available": 1 } }));
        assert_eq!(message["apns"]["headers"]["apns-priority"], "5");
    }

    #[test]
    fn nothing_of_a_silent_push_shows() {
        let push = read(&json!({
            "silent": true,
            "badge": 1,
            "sound": "default",
            "image": "https://example.com/",
            "apns": { "payload": { "aps": { "alert": { "title": "x" }, "badge": 2, "thread-id": "t" }, "own": 1 } },
            "fcm": { "android": { "notification": { "title": "x" } }, "webpush": { "notification": { "title": "x" } } },
        }));
        assert_eq!(
            as_value(&apns::render(&push)),
            json!({ "aps": { "content-available": 1, "thread-id": "t" }, "own": 1 })
        );
        let fcm = Value::Object(fcm::render(&push, "t"));
        assert_eq!(fcm, json!({ "android": { "priority": "HIGH", "ttl": "2419200s" } }));
    }

    #[test]
    fn each_provider_limits_what_it_gets() {
        let text = |length: usize| "x".repeat(length);
        let voip = |length: usize| json!({ "data": { "a": text(length) }, "apns": { "push_type": "voip" } });
        let data = |text: String| json!({ "fcm": { "android": { "data": { "a": text } } } });
        let both = |android: usize, browser: usize| {
            json!({ "fcm": {
                "android": { "notification": { "body": text(android) } },
                "webpush": { "data": { "a": text(browser) } },
            } })
        };
        for (push, fits) in [
            (voip(4400), true),
            (voip(5120), false),
            (json!({ "title": "x", "data": { "a": text(4400) } }), false),
            (both(2500, 2500), true),
            (both(100, 4095), true),
            (both(100, 4096), false),
            (both(4096 - "body".len() - "tag".len() - 36, 1), true),
            (both(4096 - "body".len() - "tag".len() - 35, 1), false),
            // What JSON adds does not count at Google.
            (data("\"".repeat(4095)), true),
            (data(text(4096)), false),
            (json!({ "title": "x", "subtitle": text(3900) }), true),
            (json!({ "title": "x", "subtitle": text(4060) }), false),
            (
                json!({ "fcm": { "apns": { "payload": { "own": text(4100) } } } }),
                false,
            ),
            // The data of a platform replaces the message's.
            (
                json!({ "data": { "a": text(3000) }, "fcm": {
                    "android": { "data": { "b": text(3000) } },
                    "webpush": { "data": { "b": text(3000) } },
                } }),
                true,
            ),
            (json!({ "title": text(1000), "data": { "a": text(3200) } }), false),
        ] {
            assert_eq!(read(&push).check_size().is_ok(), fits, "{:.60}", push.to_string());
        }
    }

    #[test]
    fn a_push_too_large_is_refused_with_both_sizes() {
        let push = Push {
            body: Some("x".repeat(5000)),
            ..Push::default()
        };
        let invalid = push.check_size().unwrap_err();
        assert_eq!(invalid.field, "push");
        assert!(
            invalid.rule.contains("4096") && invalid.rule.contains("50"),
            "{invalid}"
        );
    }
}
