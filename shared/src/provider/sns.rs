//! Amazon SNS: credentials, platform endpoints, overrides, and the message of a push (AWS: Amazon SNS API reference, "Sending
//! Amazon SNS push notifications with mobile-specific payloads").

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{apns, fcm, is_empty, is_word, lay_over};
use crate::{
    address::Token,
    content::push::Push,
    invalid::Invalid,
    provider::{ProviderPayload, apns::PushType},
    secret::Secret,
};

/// A key of an IAM user that may publish: `sns:Publish`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The region of its endpoints and text messages, such as `eu-central-1`.
    pub region: String,
    /// The id of the access key.
    pub access_key_id: String,
    /// Its secret.
    #[serde(
        serialize_with = "crate::secret::reveal",
        deserialize_with = "crate::secret::one_line"
    )]
    pub secret_access_key: Secret,
}

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let is_region = (1..=32).contains(&self.region.len())
            && self
                .region
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_region {
            return Err(Invalid::new("region", "must be a region of AWS, such as eu-central-1"));
        }
        if !is_word(&self.access_key_id, 128) {
            return Err(Invalid::new("access_key_id", "must be 1 to 128 letters and digits"));
        }
        let secret = self.secret_access_key.reveal();
        if (1..=256).contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(())
        } else {
            Err(Invalid::new(
                "secret_access_key",
                "must be 1 to 256 printable ASCII characters",
            ))
        }
    }
}

/// A platform endpoint: one application on one device, as SNS knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// `arn:aws:sns:<region>:<account>:endpoint/<platform>/<application>/<id>`.
    pub arn: Token,
}

/// How SNS carries a push to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// By APNs; the member of the message is named after the platform.
    Apns {
        /// Whether its tokens are those of `PushKit`.
        voip: bool,
    },
    /// By FCM.
    Fcm,
    /// By a service whose form Peal does not know: it gets the text, or what the app lays over it.
    Other,
}

/// The members that name the target of a message of FCM: the endpoint does.
const FCM_TARGETS: [&str; 4] = ["token", "fid", "topic", "condition"];

impl Target {
    /// Checks an endpoint's name.
    ///
    /// # Errors
    /// `target_arn`, with its rule.
    pub fn new(arn: &str) -> Result<Self, Invalid> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let is_endpoint = |resource: &str| {
            let parts: Vec<&str> = resource.split('/').collect();
            matches!(parts[..], ["endpoint", platform, app, id] if ![platform, app, id].contains(&""))
        };
        let is_arn = (20..=2048).contains(&arn.len())
            && arn.bytes().all(|byte| byte.is_ascii_graphic())
            && matches!(parts[..], ["arn", partition, "sns", region, account, resource]
                if partition.starts_with("aws") && !region.is_empty() && !account.is_empty() && is_endpoint(resource));
        if is_arn {
            Ok(Self {
                arn: Token::checked(arn.to_owned()),
            })
        } else {
            Err(Invalid::new(
                "target_arn",
                "must be the ARN of a platform endpoint of 20 to 2048 characters",
            ))
        }
    }

    /// The name of its platform, such as `GCM`, as the message and its attributes name it.
    pub fn platform_name(&self) -> &str {
        self.arn.reveal().split('/').nth(1).unwrap_or_default()
    }

    /// How SNS carries a push to it.
    pub fn platform(&self) -> Platform {
        match self.platform_name() {
            "APNS" | "APNS_SANDBOX" => Platform::Apns { voip: false },
            "APNS_VOIP" | "APNS_VOIP_SANDBOX" => Platform::Apns { voip: true },
            "GCM" => Platform::Fcm,
            _ => Platform::Other,
        }
    }

    /// Whether the push is for this kind of endpoint. Calls have tokens of their own at Apple, and SNS knows no Live Activities.
    pub fn is_reached_by(&self, push: &Push) -> bool {
        let kind = push.apns_push_type();
        match self.platform() {
            Platform::Apns { voip } => voip == (kind == PushType::Voip) && kind != PushType::Liveactivity,
            Platform::Fcm | Platform::Other => kind != PushType::Liveactivity,
        }
    }

    /// Whether the rendered push shows or runs anything on its device.
    pub(crate) fn has_something(&self, push: &Push) -> bool {
        let by_override = self.own(push).is_some_and(|over| !is_empty(over));
        by_override
            || match self.platform() {
                Platform::Apns { .. } => apns::has_something(push),
                Platform::Fcm => fcm::has_something(push),
                Platform::Other => push.has_text(),
            }
    }

    /// What the app lays over the payload for this platform.
    fn own<'a>(&self, push: &'a Push) -> Option<&'a Value> {
        let over: &ProviderPayload = push.sns.as_ref()?;
        over.payload.get(self.platform_name())
    }

    /// The `Message` of a push with `MessageStructure=json`: a text for every platform, and the payload for that of this
    /// endpoint, as JSON in a string. On the device a copy with the same `collapse_id` replaces the former.
    pub fn render(&self, push: &Push, collapse_id: &str) -> String {
        let mut payload = match self.platform() {
            Platform::Apns { .. } => serde_json::from_slice(&apns::render(push)).unwrap_or_default(),
            Platform::Fcm => fcm::render(push, collapse_id),
            Platform::Other => Map::new(),
        };
        let own = self.own(push);
        if let Some(Value::Object(own)) = own {
            lay_over(&mut payload, own);
            if self.platform() == Platform::Fcm {
                payload.retain(|name, _| !FCM_TARGETS.contains(&name.as_str()));
            }
        }
        if push.silent {
            fcm::keep_silent(&mut payload);
            if let Some(Value::Object(aps)) = payload.get_mut("aps") {
                apns::keep_silent(aps);
            }
        }
        let payload = match (self.platform(), own) {
            (Platform::Fcm, _) => Some(json!({ "fcmV1Message": { "message": payload } }).to_string()),
            (Platform::Other, Some(Value::String(text))) => Some(text.clone()),
            (Platform::Other, None) => None,
            _ => Some(Value::Object(payload).to_string()),
        };
        let text = [push.body.as_deref(), push.title.as_deref()].into_iter().flatten();
        let text = text.filter(|text| !text.is_empty() && !push.silent);
        // SNS refuses a message without it.
        let mut message = json!({ "default": text.into_iter().next().unwrap_or("{}") });
        if let Some(payload) = payload {
            message[self.platform_name()] = payload.into();
        }
        message.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(platform: &str) -> Target {
        Target::new(&format!(
            "arn:aws:sns:eu-central-1:123456789012:endpoint/{platform}/shop/8f7c"
        ))
        .unwrap()
    }

    fn rendered(platform: &str, push: &Value) -> Value {
        let push: Push = serde_json::from_value(push.clone()).unwrap();
        push.check().unwrap();
        let mut message: Value = serde_json::from_str(&target(platform).render(&push, "job")).unwrap();
        for (_, payload) in message.as_object_mut().unwrap() {
            let text = payload.as_str().unwrap();
            *payload = serde_json::from_str(text).unwrap_or_else(|_| text.into());
        }
        message
    }

    #[test]
    fn only_the_arn_of_an_endpoint_is_one() {
        for bad in [
            "",
            "arn:aws:sns:eu-central-1:123456789012:topic",
            "arn:aws:sns:eu-central-1:123456789012:endpoint/GCM/shop",
            "arn:aws:sns:eu-central-1:123456789012:endpoint/GCM/shop/",
            "arn:aws:sqs:eu-central-1:123456789012:endpoint/GCM/shop/8f7c",
            "arn:aws:sns::123456789012:endpoint/GCM/shop/8f7c",
            "arn:aws:sns:eu-central-1:123456789012:endpoint/GCM/sh op/8f7c",
        ] {
            assert_eq!(Target::new(bad).unwrap_err().field, "target_arn", "{bad}");
        }
        assert!(!format!("{:?}", target("GCM")).contains("8f7c"));
    }

    #[test]
    fn each_platform_gets_its_own_form() {
        let push = json!({
            "title": "Paid", "data": { "order": "7" },
            "sns": { "payload": { "GCM": { "android": { "priority": "NORMAL" }, "topic": "all" }, "APNS": { "aps": { "badge": 2 } } } },
        });
        let gcm = rendered("GCM", &push);
        assert_eq!(gcm["default"], "Paid");
        let message = &gcm["GCM"]["fcmV1Message"]["message"];
        assert_eq!(message["notification"], json!({ "title": "Paid" }));
        assert!(message.get("topic").is_none(), "the endpoint is the target");
        assert_eq!(
            message["android"],
            json!({ "priority": "NORMAL", "ttl": "2419200s", "notification": { "tag": "job" } })
        );
        let apns = rendered("APNS", &push);
        assert_eq!(
            apns,
            json!({ "default": "Paid", "APNS": { "aps": { "alert": { "title": "Paid" }, "badge": 2 }, "order": "7" } })
        );
        assert_eq!(rendered("ADM", &push), json!({ "default": "Paid" }));
    }

    #[test]
    fn nothing_of_a_silent_push_shows() {
        let push = json!({
            "silent": true,
            "sns": { "payload": {
                "GCM": { "notification": { "title": "x" }, "android": { "notification": { "title": "x" } } },
                "APNS": { "aps": { "alert": "x", "badge": 1 } },
            } },
        });
        let gcm = &rendered("GCM", &push)["GCM"]["fcmV1Message"]["message"];
        assert!(
            gcm.get("notification").is_none() && gcm["android"].get("notification").is_none(),
            "{gcm}"
        );
        assert_eq!(
            rendered("APNS", &push)["APNS"],
            json!({ "aps": { "content-available": 1 } })
        );
    }

    #[test]
    fn a_push_reaches_the_endpoints_of_its_kind() {
        let push = |json: Value| serde_json::from_value::<Push>(json).unwrap();
        let alert = push(json!({ "title": "x" }));
        let call = push(json!({ "apns": { "push_type": "voip", "payload": { "a": 1 } } }));
        let live = push(json!({ "apns": { "push_type": "liveactivity", "payload": { "a": 1 } } }));
        for (platform, reached) in [
            ("APNS", [true, false, false]),
            ("APNS_VOIP", [false, true, false]),
            ("GCM", [true, true, false]),
        ] {
            let target = target(platform);
            assert_eq!(
                [&alert, &call, &live].map(|push| target.is_reached_by(push)),
                reached,
                "{platform}"
            );
        }
        assert!(!target("GCM").has_something(&call) && target("APNS_VOIP").has_something(&call));
    }

    #[test]
    fn a_member_of_another_form_is_named() {
        let of = |region: &str, id: &str, secret: &str| Credential {
            region: region.into(),
            access_key_id: id.into(),
            secret_access_key: secret.to_owned().into(),
        };
        of("eu-central-1", "AKIDEXAMPLE", "wJalr/+").check().unwrap();
        for (field, credential) in [
            ("region", of("", "A", "x")),
            ("region", of("eu.evil.com/", "A", "x")),
            ("access_key_id", of("eu-central-1", "", "x")),
            ("access_key_id", of("eu-central-1", "A/B", "x")),
            ("secret_access_key", of("eu-central-1", "A", "")),
        ] {
            assert_eq!(credential.check().unwrap_err().field, field);
        }
    }
}
