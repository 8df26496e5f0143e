//! JPush (Aurora): credentials, registration ids, and the request of a push (JPush: "Push API v3").

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{is_empty, is_word, put};
use crate::{
    address::Token,
    content::push::{Priority, Push},
    invalid::Invalid,
    secret::Secret,
};

/// An application at JPush.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The `AppKey`, which names the application.
    pub app_key: String,
    /// The master secret.
    #[serde(
        serialize_with = "crate::secret::reveal",
        deserialize_with = "crate::secret::one_line"
    )]
    pub master_secret: Secret,
}

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if !is_word(&self.app_key, 64) {
            return Err(Invalid::new("app_key", "must be 1 to 64 letters and digits"));
        }
        if is_word(self.master_secret.reveal(), 256) {
            Ok(())
        } else {
            Err(Invalid::new("master_secret", "must be 1 to 256 letters and digits"))
        }
    }
}

/// The registration id of an application on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The id, as JPush issued it.
    pub token: Token,
}

impl Target {
    /// Checks what a device registered.
    ///
    /// # Errors
    /// `token`, with its rule.
    pub fn new(token: String) -> Result<Self, Invalid> {
        Ok(Self {
            token: Token::printable(token, "jpush")?,
        })
    }
}

/// Longest time to live in seconds that JPush takes: ten days.
const MAX_LIFE_S: u64 = 10 * 24 * 3600;

/// Members of a request that Peal alone sets.
pub const OWN: &[&str] = &["cid", "audience"];

/// The request of a push without [`OWN`] members. On Apple's devices a copy with the same `collapse_id` replaces the former.
/// `left_s` is the time to live that remains.
pub fn render(push: &Push, collapse_id: &str, left_s: u64) -> Map<String, Value> {
    let mut request = Map::new();
    request.insert("platform".into(), json!("all"));
    let mut extras: Map<String, Value> = push
        .data
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    if let (true, Some(url)) = (push.has_text(), &push.url) {
        extras.entry("url").or_insert_with(|| url.as_str().into());
    }
    if push.silent {
        // A message that is given to the running application, and what wakes that of Apple's devices.
        let content = Value::Object(extras.clone()).to_string();
        request.insert("message".into(), json!({ "msg_content": content, "extras": extras }));
        request.insert(
            "notification".into(),
            json!({ "ios": { "alert": "", "content-available": true, "extras": extras } }),
        );
    } else if push.has_text() {
        request.insert("notification".into(), notification(push, &extras));
    } else if !extras.is_empty() {
        let content = Value::Object(extras.clone()).to_string();
        request.insert("message".into(), json!({ "msg_content": content, "extras": extras }));
    }
    let options = json!({
        "time_to_live": left_s.min(MAX_LIFE_S),
        "apns_collapse_id": collapse_id,
    });
    request.insert("options".into(), options);
    if let Some(over) = &push.jpush {
        over.lay_over(&mut request, OWN);
    }
    if push.silent
        && let Some(Value::Object(platforms)) = request.get_mut("notification")
    {
        platforms.retain(|name, shown| name == "ios" && shown.is_object());
        if let Some(Value::Object(ios)) = platforms.get_mut("ios") {
            ios.insert("alert".into(), json!(""));
        }
    }
    request
}

fn notification(push: &Push, extras: &Map<String, Value>) -> Value {
    let title = push.title.as_deref().filter(|text| !text.is_empty());
    let body = push.body.as_deref().filter(|text| !text.is_empty());
    let mut android = Map::new();
    // The text must be given; without one the title is it, and the name of the application stands above.
    put(&mut android, "alert", body.or(title));
    put(&mut android, "title", title.filter(|_| body.is_some()));
    put(&mut android, "large_icon", push.image.as_deref());
    put(&mut android, "badge_set_num", push.badge);
    put(
        &mut android,
        "sound",
        push.sound.as_deref().filter(|sound| *sound != "default"),
    );
    let priority = match push.priority {
        Priority::High => 1,
        Priority::Normal => 0,
    };
    android.insert("priority".into(), json!(priority));
    let mut alert = Map::new();
    put(&mut alert, "title", title);
    put(&mut alert, "body", body);
    let mut ios = Map::new();
    ios.insert("alert".into(), Value::Object(alert));
    put(&mut ios, "badge", push.badge);
    put(&mut ios, "sound", push.sound.as_deref());
    if push.image.is_some() {
        ios.insert("mutable-content".into(), json!(true));
    }
    for platform in [&mut android, &mut ios] {
        if !extras.is_empty() {
            platform.insert("extras".into(), Value::Object(extras.clone()));
        }
    }
    json!({ "android": android, "ios": ios })
}

/// Whether the rendered push shows or runs anything.
pub(crate) fn has_something(push: &Push) -> bool {
    if push.jpush.is_none() && push.apns_push_type().is_apples_own() {
        return false;
    }
    let by_override = push.jpush.as_ref().is_some_and(|over| {
        let members = ["notification", "message"].into_iter();
        members
            .filter_map(|name| over.payload.get(name))
            .any(|member| !is_empty(member))
    });
    push.silent || push.has_text() || !push.data.is_empty() || by_override
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(push: Value) -> Value {
        let push: Push = serde_json::from_value(push).unwrap();
        push.check().unwrap();
        Value::Object(render(&push, "job", 2_419_200))
    }

    #[test]
    fn a_push_is_for_both_platforms_and_lives_ten_days_at_most() {
        let request = rendered(json!({ "title": "Paid", "body": "Order 7", "badge": 2, "data": { "order": "7" } }));
        assert_eq!(
            request,
            json!({
                "platform": "all",
                "notification": {
                    "android": { "alert": "Order 7", "title": "Paid", "badge_set_num": 2, "priority": 1, "extras": { "order": "7" } },
                    "ios": { "alert": { "title": "Paid", "body": "Order 7" }, "badge": 2, "extras": { "order": "7" } },
                },
                "options": { "time_to_live": 864_000, "apns_collapse_id": "job" },
            })
        );
        assert_eq!(
            rendered(json!({ "title": "Paid" }))["notification"]["android"]["alert"],
            "Paid"
        );
    }

    #[test]
    fn an_override_changes_neither_the_target_nor_what_makes_a_repeat_harmless() {
        let push = json!({ "title": "x", "jpush": { "payload": { "options": { "apns_production": false }, "platform": ["ios"] } } });
        let request = rendered(push);
        assert_eq!(request["options"]["apns_production"], false);
        assert_eq!(request["options"]["apns_collapse_id"], "job");
        for own in OWN {
            let push: Push =
                serde_json::from_value(json!({ "title": "x", "jpush": { "payload": { *own: "all" } } })).unwrap();
            assert_eq!(push.check().unwrap_err().field, format!("jpush.payload.{own}"));
            assert!(!render(&push, "job", 1).contains_key(*own));
        }
    }

    #[test]
    fn nothing_of_a_silent_push_shows() {
        let request = rendered(json!({
            "silent": true, "data": { "a": "b" },
            "jpush": { "payload": { "notification": { "android": { "alert": "x" }, "ios": { "alert": "x" } } } },
        }));
        let shown = json!({ "ios": { "alert": "", "content-available": true, "extras": { "a": "b" } } });
        assert_eq!(request["notification"], shown);
        assert_eq!(request["message"]["extras"], json!({ "a": "b" }));
    }

    #[test]
    fn a_member_of_another_form_is_named() {
        let of = |app_key: &str, secret: &str| Credential {
            app_key: app_key.into(),
            master_secret: secret.to_owned().into(),
        };
        of("7d431e42dfa6a6d693ac2d04", "5e987ac6d2e04d95a9d8f0d1")
            .check()
            .unwrap();
        for (field, credential) in [
            ("app_key", of("", "x")),
            ("app_key", of("a:b", "x")),
            ("master_secret", of("a", "")),
            ("master_secret", of("a", "a b")),
        ] {
            assert_eq!(credential.check().unwrap_err().field, field);
        }
    }
}
