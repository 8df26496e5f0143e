//! The members of an address in JSON, in a request and stored.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Address, Format, Mailbox, Phone, Receiver, Target, Token, Trouble,
    receiver::{FormerSecret, History},
};
use crate::{
    channel::words,
    id::{AddressId, AppId},
    id_key::IdKey,
    invalid::Invalid,
    policy::zone,
    provider::{
        Provider,
        apns::{self, Environment, Kind},
        fcm,
        hms::{self, Generation},
        jpush, sns,
        web_push::{self, AuthSecret, PublicKey},
    },
    secret::{Secret, reveal_some},
    tolerant::objects,
};

words!(
    /// What an address is. The word is part of every address's id and may never change.
    AddressType, "type", {
        /// A device token of the Apple Push Notification service.
        Apns = "apns",
        /// A registration token of Firebase Cloud Messaging.
        Fcm = "fcm",
        /// A subscription of a browser.
        WebPush = "web_push",
        /// A push token of Huawei's.
        Hms = "hms",
        /// A registration id of `JPush`.
        JPush = "jpush",
        /// A platform endpoint of Amazon SNS.
        Sns = "sns",
        /// A mailbox.
        Email = "email",
        /// A phone number.
        Phone = "phone",
        /// An HTTP receiver.
        Webhook = "webhook",
    }
);

/// Declares the members once for requests and once for what is stored, which has an id, a time and the history of a
/// receiver besides. The stored form is
/// flat because `serde(flatten)` would cost every look-up a copy.
macro_rules! members {
    // The type that the schema shows stands in brackets where it is another.
    ($($(#[$attribute:meta])* $member:ident: $type:ty $([$shown:ty])?,)+) => {
        /// An address to register. As JSON it shows its token and secrets.
        #[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields, remote = "Self")]
        #[schema(as = PostAddress)]
        pub struct Members {
            $(#[serde(skip_serializing_if = "Option::is_none")] $(#[$attribute])* $(#[schema(value_type = Option<$shown>)])?
            pub $member: Option<$type>,)+
        }

        objects!(Members);

        #[derive(Serialize, Deserialize)]
        pub(super) struct Stored {
            id: AddressId,
            $(#[serde(default, skip_serializing_if = "Option::is_none")] $(#[$attribute])* $member: Option<$type>,)+
            #[serde(default, skip_serializing_if = "Option::is_none")]
            former_secret: Option<FormerSecret>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            trouble: Option<Trouble>,
            registered_at: Timestamp,
        }

        impl Stored {
            pub(super) fn split(self) -> (AddressId, Timestamp, History, Members) {
                let Self { id, registered_at, former_secret, trouble, $($member),+ } = self;
                let history = History { former: former_secret, trouble };
                (id, registered_at, history, Members { $($member),+ })
            }

            pub(super) fn join(
                id: AddressId,
                registered_at: Timestamp,
                History { former, trouble }: History,
                members: Members,
            ) -> Self {
                let Members { $($member),+ } = members;
                Self { id, registered_at, former_secret: former, trouble, $($member),+ }
            }
        }

        impl Members {
            /// The names of the members that are given.
            fn given(&self) -> impl Iterator<Item = &'static str> {
                [$((stringify!($member), self.$member.is_some())),+]
                    .into_iter()
                    .filter_map(|(name, is_given)| is_given.then_some(name))
            }
        }
    };
}

members! {
    /// What the address is. For `apns` and `fcm` the member `provider` alone means the same.
    #[serde(rename = "type")]
    r#type: AddressType,
    /// The provider that issued the token.
    provider: Provider,
    /// The device token. For APNs: hexadecimal, an even number of digits.
    token: Token [String],
    /// The use of the token. For FCM: always `device`.
    kind: Kind,
    /// The APNs environment of the token. For FCM: always `production`.
    environment: Environment,
    /// The APNs topic (bundle id) of the token, if it is not the topic of the app's credential.
    topic: String,
    /// The app's name of the Live Activity that the token updates, for the kind `live_activity`. 1 to 128 printable ASCII
    /// characters.
    activity_id: String,
    /// The URL of the subscription: `endpoint` of the browser's `PushSubscription`.
    endpoint: Token [String],
    /// The public key of the subscription, base64url.
    p256dh: PublicKey [String],
    /// The secret of the subscription, base64url.
    auth: AuthSecret [String],
    /// Which of Huawei's APIs issued the token: 1 (v1 and v2, for Android) or 3 (v3, for HarmonyOS).
    generation: Generation [u8],
    /// The ARN of the platform endpoint.
    target_arn: Token [String],
    /// The mailbox.
    email: Mailbox [String],
    /// The phone number, as in E.164.
    phone: Phone [String],
    /// The URL of the receiver.
    url: String,
    /// The form of the body that the receiver wants.
    format: Format,
    /// Signs what is posted: `whsec_` and 24 to 64 bytes in base64.
    #[serde(serialize_with = "reveal_some")]
    secret: Secret [String],
    /// The IANA time zone of the device.
    timezone: String,
}

impl Members {
    /// The address of `app` that they describe, registered at that time.
    ///
    /// # Errors
    /// The first member that breaks a rule, is missing, or belongs to an address of another type.
    pub fn address(mut self, ids: &IdKey, app: &AppId, registered_at: Timestamp) -> Result<Address, Invalid> {
        let timezone = self.timezone.take();
        timezone.as_deref().map_or(Ok(()), zone::check)?;
        Ok(Address {
            timezone,
            ..Address::new(ids, app, self.target()?, registered_at)
        })
    }

    /// The target that they describe.
    ///
    /// # Errors
    /// The first member that breaks a rule, is missing, or belongs to an address of another type.
    pub fn target(self) -> Result<Target, Invalid> {
        let kind = self.kind_of_address()?;
        let own: &[&str] = match kind {
            AddressType::Apns => &["token", "kind", "environment", "topic", "activity_id"],
            AddressType::Fcm => &["token", "kind", "environment"],
            AddressType::WebPush => &["endpoint", "p256dh", "auth"],
            AddressType::Hms => &["token", "generation"],
            AddressType::JPush => &["token"],
            AddressType::Sns => &["target_arn"],
            AddressType::Email => &["email"],
            AddressType::Phone => &["phone"],
            AddressType::Webhook => &["url", "format", "secret"],
        };
        let is_foreign = |name: &&str| !own.contains(name) && !["r#type", "provider", "timezone"].contains(name);
        if let Some(foreign) = self.given().find(is_foreign) {
            return Err(Invalid::new(foreign, format_args!("must not be given for {kind}")));
        }
        Ok(match kind {
            AddressType::Apns => {
                let (kind, environment) = (self.kind.unwrap_or_default(), self.environment.unwrap_or_default());
                let token = given("token", self.token)?;
                let target = apns::Target::new(token.reveal(), kind, environment, self.topic, self.activity_id)?;
                Target::Apns(target)
            }
            AddressType::Fcm => {
                if self.kind.is_some_and(|kind| kind != Kind::Device) {
                    return Err(Invalid::new("kind", "must be device for fcm"));
                }
                if self
                    .environment
                    .is_some_and(|environment| environment != Environment::Production)
                {
                    return Err(Invalid::new("environment", "must be production for fcm"));
                }
                let token = given("token", self.token)?;
                Target::Fcm(fcm::Target::new(token.reveal().to_owned())?)
            }
            AddressType::WebPush => {
                let (endpoint, p256dh) = (given("endpoint", self.endpoint)?, given("p256dh", self.p256dh)?);
                let auth = given("auth", self.auth)?;
                Target::WebPush(web_push::Target::new(endpoint.reveal(), p256dh, auth)?)
            }
            AddressType::Hms => {
                let (token, generation) = (given("token", self.token)?, self.generation.unwrap_or_default());
                Target::Hms(hms::Target::new(token.reveal().to_owned(), generation)?)
            }
            AddressType::JPush => {
                let token = given("token", self.token)?;
                Target::JPush(jpush::Target::new(token.reveal().to_owned())?)
            }
            AddressType::Sns => Target::Sns(sns::Target::new(given("target_arn", self.target_arn)?.reveal())?),
            AddressType::Email => Target::Email(given("email", self.email)?),
            AddressType::Phone => Target::Phone(given("phone", self.phone)?),
            AddressType::Webhook => {
                let (url, format) = (given("url", self.url)?, self.format.unwrap_or_default());
                Target::Webhook(Receiver::new(&url, format, self.secret)?)
            }
        })
    }

    /// Whether they describe a receiver whose secret is still to be made.
    pub fn needs_secret(&self) -> bool {
        self.r#type == Some(AddressType::Webhook)
            && self.format.unwrap_or_default() == Format::Signed
            && self.secret.is_none()
    }

    /// The type of address that they describe.
    ///
    /// # Errors
    /// When neither `type` nor `provider` says it, or they differ.
    pub fn kind_of_address(&self) -> Result<AddressType, Invalid> {
        let issued = self.provider.map(|provider| match provider {
            Provider::Apns => Ok(AddressType::Apns),
            Provider::Fcm => Ok(AddressType::Fcm),
            _ => Err(Invalid::new("provider", "must be apns or fcm")),
        });
        match (self.r#type, issued.transpose()?) {
            (Some(kind), None) => Ok(kind),
            (None, Some(issued)) => Ok(issued),
            (Some(kind), Some(issued)) if kind == issued => Ok(kind),
            (Some(_), Some(_)) => Err(Invalid::new("provider", "must be the same as type")),
            (None, None) => Err(Invalid::new("type", "must be given")),
        }
    }
}

fn given<T>(name: &str, member: Option<T>) -> Result<T, Invalid> {
    member.ok_or_else(|| Invalid::new(name, "must be given"))
}

impl From<Address> for Members {
    fn from(address: Address) -> Self {
        Self {
            timezone: address.timezone,
            ..Self::from(address.target)
        }
    }
}

/// Those of 0.1 have a provider, a kind and an environment, and no type: workers of 0.1 read them.
impl From<Target> for Members {
    fn from(target: Target) -> Self {
        let kind = target.kind();
        match target {
            Target::Apns(target) => Self {
                provider: Some(Provider::Apns),
                token: Some(target.token),
                kind: Some(target.kind),
                environment: Some(target.environment),
                topic: target.topic,
                activity_id: target.activity_id,
                ..Self::default()
            },
            Target::Fcm(target) => Self {
                provider: Some(Provider::Fcm),
                token: Some(target.token),
                kind: Some(Kind::default()),
                environment: Some(Environment::default()),
                ..Self::default()
            },
            Target::WebPush(target) => Self {
                r#type: Some(kind),
                endpoint: Some(target.endpoint),
                p256dh: Some(target.p256dh),
                auth: Some(target.auth),
                ..Self::default()
            },
            Target::Hms(target) => Self {
                r#type: Some(kind),
                token: Some(target.token),
                generation: Some(target.generation),
                ..Self::default()
            },
            Target::JPush(target) => Self {
                r#type: Some(kind),
                token: Some(target.token),
                ..Self::default()
            },
            Target::Sns(target) => Self {
                r#type: Some(kind),
                target_arn: Some(target.arn),
                ..Self::default()
            },
            Target::Email(mailbox) => Self {
                r#type: Some(kind),
                email: Some(mailbox),
                ..Self::default()
            },
            Target::Phone(phone) => Self {
                r#type: Some(kind),
                phone: Some(phone),
                ..Self::default()
            },
            Target::Webhook(receiver) => Self {
                r#type: Some(kind),
                url: Some(receiver.url().to_owned()),
                format: Some(receiver.format),
                secret: receiver.secret,
                ..Self::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing;

    fn read(members: Value) -> Result<Target, Invalid> {
        let members: Members = serde_json::from_value(members).unwrap();
        let address = members.address(&IdKey::unkeyed(), &"shop".parse().unwrap(), Timestamp::UNIX_EPOCH);
        address.map(|address| address.target)
    }

    #[test]
    fn the_type_or_the_provider_says_what_an_address_is() {
        let fcm = read(json!({ "type": "fcm", "token": "t" })).unwrap();
        assert_eq!(read(json!({ "provider": "fcm", "token": "t" })).unwrap(), fcm);
        assert_eq!(
            read(json!({ "provider": "fcm", "type": "fcm", "token": "t" })).unwrap(),
            fcm
        );
        assert!(matches!(
            read(json!({ "type": "email", "email": "a@b.ch" })),
            Ok(Target::Email(_))
        ));
    }

    #[test]
    fn a_member_that_is_missing_or_of_another_type_is_named() {
        for (field, members) in [
            ("type", json!({ "token": "t" })),
            ("provider", json!({ "type": "apns", "provider": "fcm", "token": "t" })),
            ("provider", json!({ "provider": "log" })),
            ("token", json!({ "type": "fcm" })),
            ("token", json!({ "provider": "apns", "token": "xyz" })),
            (
                "kind",
                json!({ "provider": "fcm", "token": "t", "kind": "live_activity" }),
            ),
            (
                "environment",
                json!({ "provider": "fcm", "token": "t", "environment": "sandbox" }),
            ),
            (
                "topic",
                json!({ "provider": "fcm", "token": "t", "topic": "com.example" }),
            ),
            (
                "topic",
                json!({ "provider": "apns", "token": "ab", "topic": "com example" }),
            ),
            (
                "activity_id",
                json!({ "provider": "apns", "token": "ab", "activity_id": "ride-1" }),
            ),
            (
                "activity_id",
                json!({ "provider": "apns", "token": "ab", "kind": "live_activity", "activity_id": "" }),
            ),
            (
                "activity_id",
                json!({ "provider": "fcm", "token": "t", "activity_id": "ride-1" }),
            ),
            ("endpoint", json!({ "type": "web_push" })),
            (
                "auth",
                json!({ "type": "web_push", "endpoint": "https://push.example.net/a", "p256dh": testing::WEB_PUSH_P256DH }),
            ),
            (
                "endpoint",
                json!({
                    "type": "web_push", "endpoint": "https://10.0.0.1/a",
                    "p256dh": testing::WEB_PUSH_P256DH, "auth": testing::WEB_PUSH_AUTH,
                }),
            ),
            ("phone", json!({ "type": "phone" })),
            ("token", json!({ "type": "hms" })),
            (
                "generation",
                json!({ "type": "sns", "target_arn": "x", "generation": 1 }),
            ),
            ("target_arn", json!({ "type": "sns" })),
            (
                "target_arn",
                json!({ "type": "sns", "target_arn": "arn:aws:sns:eu-central-1:123456789012:news" }),
            ),
            (
                "email",
                json!({ "type": "phone", "phone": "+41791234567", "email": "a@b.ch" }),
            ),
            ("secret", json!({ "type": "webhook", "url": "https://example.com/" })),
            (
                "timezone",
                json!({ "type": "email", "email": "a@b.ch", "timezone": "Mars/Olympus" }),
            ),
        ] {
            assert_eq!(read(members.clone()).unwrap_err().field, field, "{members}");
        }
    }
}
