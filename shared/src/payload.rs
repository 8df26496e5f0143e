//! Rendering: a push as the JSON that each provider takes. Depends on the push alone, so it is done once a job.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{invalid::Invalid, push::Priority, push::Push};

/// FCM's limit for a message in bytes. Google counts the data and the notification; counting the whole message is
/// stricter by the few bytes of the member names.
pub const FCM_MAX: usize = 4096;

/// A push whose own JSON has at most this many bytes renders within every provider's limit: rendering repeats no member
/// but the collapse key and adds less than the rest. Who has the JSON at hand can spare [`check_size`].
pub const SURELY_FITS: usize = 3500;

/// The body of `POST /3/device/{token}` (Apple: Generating a remote notification).
pub fn apns(push: &Push) -> Vec<u8> {
    let payload = Apns {
        aps: Aps {
            alert: (push.title.is_some() || push.body.is_some()).then_some(Alert {
                title: push.title.as_deref(),
                body: push.body.as_deref(),
            }),
            badge: push.badge,
            content_available: push.silent.then_some(1),
            // A notification service extension fetches the picture; Apple runs it only for mutable content.
            mutable_content: push.image.is_some().then_some(1),
            sound: push.sound.as_deref(),
        },
        image: push.image.as_deref().filter(|_| !push.data.contains_key("image")),
        data: &push.data,
    };
    match &push.apns {
        Some(over) if !over.payload.is_empty() => {
            let Ok(Value::Object(mut members)) = serde_json::to_value(&payload) else {
                unreachable!("strings and numbers always make an object")
            };
            lay_over(&mut members, &over.payload);
            serialize(&members)
        }
        _ => serialize(&payload),
    }
}

#[derive(Serialize)]
struct Apns<'a> {
    aps: Aps<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(flatten)]
    data: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Aps<'a> {
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
}

#[derive(Serialize)]
struct Alert<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
}

/// The `message` of FCM HTTP v1 without its target, for [`fcm_request`].
pub fn fcm(push: &Push, tag: &str) -> Map<String, Value> {
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
        // The tag makes a second copy replace the first on the device when an attempt had to be repeated.
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
pub fn fcm_request(message: &Map<String, Value>, token: &str) -> Vec<u8> {
    let mut message = message.clone();
    message.insert("token".into(), json!(token));
    serialize(&json!({ "message": message }))
}

/// Refuses a push that a provider would refuse for its size.
///
/// # Errors
/// `push`, with both sizes in bytes.
pub fn check_size(push: &Push) -> Result<(), Invalid> {
    let limit = push.apns_push_type().max_payload();
    let apns = apns(push).len();
    if apns > limit {
        return Err(Invalid::new(
            "push",
            format_args!("must render to at most {limit} bytes for APNs, has {apns}"),
        ));
    }
    let fcm = serialize(&fcm(push, "")).len();
    if fcm > FCM_MAX {
        return Err(Invalid::new(
            "push",
            format_args!("must render to at most {FCM_MAX} bytes for FCM, has {fcm}"),
        ));
    }
    Ok(())
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}

/// Members of `over` replace those of `base`; where both are objects they are merged one level down.
fn lay_over(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => {
                below.extend(above.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn serialize(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("maps with string keys always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::{ApnsOverride, ApnsPushType};

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
            as_value(&apns(&push)),
            json!({ "aps": { "alert": { "title": "Hello" }, "badge": 3 }, "order": "42" })
        );
        let request = as_value(&fcm_request(&fcm(&push, "t"), "token"));
        assert_eq!(request["message"]["token"], "token");
        assert_eq!(request["message"]["android"]["ttl"], "2419200s");
        assert_eq!(request["message"]["android"]["notification"]["tag"], "t");
    }

    #[test]
    fn a_live_activity_is_laid_over_aps() {
        let over = json!({ "aps": { "event": "update", "timestamp": 1, "content-state": { "score": 2 } } });
        let push = Push {
            apns: Some(ApnsOverride {
                push_type: Some(ApnsPushType::Liveactivity),
                payload: over.as_object().unwrap().clone(),
                ..ApnsOverride::default()
            }),
            ..Push::default()
        };
        assert!(push.check().is_ok());
        assert_eq!(as_value(&apns(&push)), over);
    }

    #[test]
    fn what_surely_fits_does() {
        // Every member that rendering repeats or renames, at its worst.
        let mut push = Push {
            title: Some("\"".repeat(100)),
            badge: Some(u32::MAX),
            sound: Some("s".repeat(50)),
            image: Some("https://example.com/".into()),
            collapse_key: Some("\"".repeat(64)),
            data: [("k".to_owned(), "\u{1}".repeat(100))].into(),
            ..Push::default()
        };
        let rest = serde_json::to_vec(&push).unwrap().len();
        push.body = Some("x".repeat(SURELY_FITS - rest - r#","body":"""#.len()));
        assert_eq!(serde_json::to_vec(&push).unwrap().len(), SURELY_FITS);
        assert!(push.check().is_ok() && check_size(&push).is_ok());
    }

    #[test]
    fn a_push_too_large_is_refused_with_both_sizes() {
        let push = Push {
            body: Some("x".repeat(5000)),
            ..Push::default()
        };
        let invalid = check_size(&push).unwrap_err();
        assert_eq!(invalid.field, "push");
        assert!(
            invalid.rule.contains("4096") && invalid.rule.contains("50"),
            "{invalid}"
        );
    }
}
