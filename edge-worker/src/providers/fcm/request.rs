//! One push as the body of a request (Google: `projects.messages.send`).
//!
//! The members that differ between deliveries of one content (tag, remaining time to live, token) are at the end of the
//! JSON, so that the part before them is rendered once and copied.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use serde_json::{Map, Value};
use shared::{
    content::push::Push,
    provider::{Provider, fcm},
};

use super::Device;
use crate::providers::Attempt;

/// Seconds by which the stated time to live may exceed the remaining one.
const TTL_SLACK_S: u64 = 2;

/// The body for `attempt`, which expires after `left`.
///
/// FCM counts the time to live from the arrival of the message, so a late attempt states the remaining time. A `ttl`
/// that the app set in `push.fcm.android` is kept.
pub(super) fn body(attempt: &Attempt<'_>, device: &Device<'_>, left: Duration) -> Bytes {
    let message = attempt.message;
    let Device { push, token } = *device;
    let start = message.rendition(Provider::Fcm, || shared_start(push).into());
    let varying = Varying::of(push);
    let mut body = String::with_capacity(start.len() + 256);
    body.push_str(std::str::from_utf8(start).expect("serde_json writes UTF-8"));
    if varying.tag {
        // The shared part ends within `android.notification`, which is the last member of `android` in this case.
        let comma = if body.ends_with('{') { "" } else { "," };
        push_member(&mut body, format_args!("{comma}\"tag\":"), &message.collapse_id(push));
        body.push('}');
    }
    if varying.ttl {
        let whole = u64::from(push.ttl_s());
        let late = left.as_secs() + TTL_SLACK_S < whole;
        let seconds = if late { left.as_secs() } else { whole };
        let comma = if body.ends_with('{') { "" } else { "," };
        push_member(&mut body, format_args!("{comma}\"ttl\":"), &format!("{seconds}s"));
    }
    push_member(&mut body, format_args!("}},\"token\":"), token);
    body.push_str("}}");
    body.into()
}

/// Which members of `android` differ between deliveries of one content.
#[derive(Debug, Clone, Copy)]
struct Varying {
    /// `android.notification.tag`, which makes the copy of a repeated attempt replace the first copy on the device.
    tag: bool,
    /// `android.ttl`.
    ttl: bool,
}

impl Varying {
    fn of(push: &Push) -> Self {
        let android = push.fcm.as_ref().map(fcm::Override::android).unwrap_or_default();
        let own_tag = match android.get("notification") {
            Some(Value::Object(notification)) => notification.contains_key("tag"),
            Some(_) => true,
            None => false,
        };
        Self {
            tag: fcm::shows(push) && push.collapse_key.is_none() && !own_tag,
            ttl: !android.contains_key("ttl"),
        }
    }
}

/// The request up to the members that differ between deliveries.
fn shared_start(push: &Push) -> String {
    let varying = Varying::of(push);
    let mut message = fcm::render(push, "");
    let mut android = object(message.remove("android"));
    let mut notification = None;
    if varying.ttl {
        android.remove("ttl");
    }
    if varying.tag {
        let mut members = object(android.remove("notification"));
        members.remove("tag");
        notification = Some(members);
    }
    message.remove("token");
    let mut text = String::from("{\"message\":");
    text.push_str(&unclosed(&message));
    text.push_str(if message.is_empty() {
        "\"android\":"
    } else {
        ",\"android\":"
    });
    text.push_str(&unclosed(&android));
    if let Some(members) = notification {
        text.push_str(if android.is_empty() {
            "\"notification\":"
        } else {
            ",\"notification\":"
        });
        text.push_str(&unclosed(&members));
    }
    text
}

fn object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

/// `members` as JSON without the closing brace.
fn unclosed(members: &Map<String, Value>) -> String {
    let mut text = serde_json::to_string(members).expect("maps with string keys always serialize");
    text.pop();
    text
}

fn push_member(body: &mut String, name: std::fmt::Arguments<'_>, value: &str) {
    let value = serde_json::to_string(value).expect("strings always serialize");
    // Writing to a string cannot fail.
    let _always = body.write_fmt(name);
    body.push_str(&value);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use serde_json::json;
    use shared::{job::Job, testing};

    use super::*;
    use crate::providers::{Message, Recorded, Renditions};

    const TOKEN: &str = r#"odd"\token"#;

    fn job(push: Push) -> Job {
        testing::job(&"shop".parse().unwrap(), "order", push, Timestamp::UNIX_EPOCH)
    }

    fn rendered(push: &Push, left: Duration) -> Value {
        let job = Arc::new(job(push.clone()));
        let message = Message::new(job.clone(), Renditions::default());
        let address = testing::address(&job.app, Provider::Fcm, TOKEN);
        let attempt = Attempt {
            app: &job.app,
            address: &address,
            delivery: job.delivery(address.id),
            number: 1,
            message: &message,
            expires_at: job.expires_at(),
            handover: &Recorded,
        };
        serde_json::from_slice(&body(&attempt, &Device::of(&attempt).unwrap(), left)).unwrap()
    }

    /// The same request, rendered as a whole instead of spliced.
    fn expected(push: &Push) -> Value {
        let message = fcm::render(push, &job(push.clone()).id.to_string());
        serde_json::from_slice(&fcm::request(&message, TOKEN)).unwrap()
    }

    fn over(android: &Value) -> Push {
        Push {
            title: Some("\"Hello\"".into()),
            fcm: Some(fcm::Override {
                android: android.as_object().unwrap().clone(),
                webpush: json!({ "headers": { "Urgency": "high" } }).as_object().unwrap().clone(),
                ..fcm::Override::default()
            }),
            ..Push::default()
        }
    }

    #[test]
    fn a_spliced_request_has_the_members_of_a_rendered_one() {
        let data = [("order".to_owned(), "42".to_owned())];
        for push in [
            Push {
                title: Some("Hello".into()),
                badge: Some(3),
                ..Push::default()
            },
            Push {
                body: Some("Hello".into()),
                collapse_key: Some("score \"2\"".into()),
                data: data.clone().into(),
                ..Push::default()
            },
            Push {
                silent: true,
                data: data.into(),
                ..Push::default()
            },
            over(&json!({})),
            over(&json!({ "ttl": "7s", "priority": "NORMAL" })),
            over(&json!({ "notification": { "color": "#ff0000" } })),
            over(&json!({ "notification": { "tag": "own" } })),
            over(&json!({ "notification": null })),
            over(&json!({ "collapseKey": "score", "notification": { "channelId": "news", "lightSettings": {} } })),
            Push {
                title: None,
                badge: Some(3),
                ..over(&json!({ "notification": { "title_loc_key": "hello" } }))
            },
            Push {
                title: None,
                ..over(&json!({ "data": { "aB_c": "kept" } }))
            },
            Push {
                title: None,
                silent: true,
                image: Some("https://example.com/a.png".into()),
                ..over(&json!({ "notification": { "title": "shown" } }))
            },
        ] {
            assert_eq!(rendered(&push, Duration::MAX / 2), expected(&push), "{push:?}");
        }
    }

    #[test]
    fn a_late_attempt_states_the_remaining_ttl_unless_the_app_set_one() {
        let left = Duration::from_secs(90);
        let push = Push {
            title: Some("Hello".into()),
            ttl: Some(600),
            ..Push::default()
        };
        assert_eq!(rendered(&push, left)["message"]["android"]["ttl"], "90s");
        let chosen = over(&json!({ "ttl": "7s" }));
        assert_eq!(rendered(&chosen, left)["message"]["android"]["ttl"], "7s");
    }
}
