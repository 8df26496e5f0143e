//! The providers. For each, gateways and workers share the formats of its credential, its addresses, its overrides and its
//! messages.

pub mod apns;
pub mod fcm;
pub mod hms;
pub mod jpush;
mod keys;
pub mod log;
pub mod mailchimp;
mod payload;
pub mod sendgrid;
pub mod smtp;
pub mod sns;
pub mod twilio;
pub mod vonage;
pub mod web_push;
pub mod webhook;

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

pub use self::payload::ProviderPayload;
use crate::{
    backoff::Backoff,
    channel::{Channel, words},
    invalid::Invalid,
    secret::{self, Secret},
    tolerant,
};

words!(
    /// The service that delivers a notification to the device.
    Provider, "provider", {
        /// Apple Push Notification service.
        Apns = "apns",
        /// Firebase Cloud Messaging.
        Fcm = "fcm",
        /// The push services of browsers.
        WebPush = "web_push",
        /// A mail server that takes the app's mail (SMTP submission).
        Smtp = "smtp",
        /// The mail service of Twilio.
        SendGrid = "sendgrid",
        /// Mailchimp Transactional, formerly Mandrill.
        Mailchimp = "mailchimp",
        /// Twilio.
        Twilio = "twilio",
        /// Vonage, formerly Nexmo.
        Vonage = "vonage",
        /// Huawei Push Kit.
        Hms = "hms",
        /// `JPush`, also called Aurora.
        JPush = "jpush",
        /// Amazon SNS: pushes to its platform endpoints, and text messages.
        Sns = "sns",
        /// None: a worker posts to the receiver itself.
        Webhook = "webhook",
        /// None: what would be sent is recorded and ends as delivered. For new apps and dry runs.
        Log = "log",
    }
);

impl Provider {
    /// How many providers there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether this provider carries the channel.
    pub const fn carries(self, channel: Channel) -> bool {
        match self {
            Self::Apns | Self::Fcm | Self::WebPush | Self::Hms | Self::JPush => matches!(channel, Channel::Push),
            Self::Smtp | Self::SendGrid | Self::Mailchimp => matches!(channel, Channel::Email),
            Self::Log => true,
            Self::Twilio | Self::Vonage => matches!(channel, Channel::Sms),
            Self::Sns => matches!(channel, Channel::Push | Channel::Sms),
            Self::Webhook => matches!(channel, Channel::Webhook),
        }
    }

    /// Whether it reports the arrival of every message, under a signature of its own. Mail servers report bounces, usually, and
    /// whoever received a mail can report one.
    pub const fn reports_arrival(self) -> bool {
        match self {
            Self::Twilio | Self::Vonage | Self::SendGrid | Self::Mailchimp => true,
            Self::Apns
            | Self::Fcm
            | Self::WebPush
            | Self::Hms
            | Self::JPush
            | Self::Sns
            | Self::Smtp
            | Self::Webhook
            | Self::Log => false,
        }
    }

    /// How long to wait between attempts. Most name no time for server errors; Google requires at least ten seconds. A mail server
    /// that greylists accepts after some five minutes, one that is down for maintenance after hours (RFC 5321 §4.5.4.1).
    /// Receivers of webhooks may be away for days: Standard Webhooks recommends waits from seconds to hours.
    pub const fn backoff(self) -> Backoff {
        let (first, factor, most) = match self {
            Self::Apns | Self::Twilio | Self::Vonage | Self::Hms | Self::JPush | Self::Sns | Self::Log => {
                (Duration::from_secs(1), 2, Duration::from_mins(15))
            }
            Self::Fcm | Self::WebPush | Self::SendGrid | Self::Mailchimp => {
                (Duration::from_secs(10), 2, Duration::from_mins(15))
            }
            Self::Smtp => (Duration::from_mins(1), 2, Duration::from_hours(2)),
            Self::Webhook => (Duration::from_secs(5), 5, Duration::from_hours(10)),
        };
        Backoff { first, factor, most }
    }
}

/// Whether `text` can be a key in a header or a document of JSON.
fn is_api_key(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether `text` is 1 to `most` letters and digits, as ids of providers are.
fn is_word(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Checks the member `webhook_key` of a credential, which verifies what the provider reports.
fn check_webhook_key(key: Option<&Secret>) -> Result<(), Invalid> {
    if key.is_none_or(|key| is_api_key(key.reveal())) {
        Ok(())
    } else {
        Err(Invalid::new(
            "webhook_key",
            "must be 1 to 256 printable ASCII characters",
        ))
    }
}

/// Declares [`Credential`], with a variant for each provider.
macro_rules! credentials {
    ($($(#[$doc:meta])* $provider:ident($module:ident),)+) => {
        /// An app's credential for one provider, in the clear. It is stored sealed as a whole, as the JSON of its members.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Credential {
            $($(#[$doc])* $provider($module::Credential),)+
        }

        $(impl TryFrom<Credential> for $module::Credential {
            type Error = OfAnother;

            fn try_from(credential: Credential) -> Result<Self, OfAnother> {
                match credential {
                    Credential::$provider(credential) => Ok(credential),
                    _ => Err(OfAnother),
                }
            }
        })+

        impl Credential {
            /// Reads and checks the members of a credential for `provider`.
            ///
            /// # Errors
            /// The first member that breaks a rule.
            pub fn read(provider: Provider, members: Map<String, Value>) -> Result<Self, Invalid> {
                let credential = match provider {
                    $(Provider::$provider => Self::$provider(parse(members)?),)+
                };
                credential.check()?;
                Ok(credential)
            }

            /// Reads the JSON of a credential that was stored, perhaps by a newer version, whose members are ignored.
            ///
            /// # Errors
            /// The first member that breaks a rule.
            pub(crate) fn read_stored(provider: Provider, json: &[u8]) -> Result<Self, Invalid> {
                Ok(match provider {
                    $(Provider::$provider => Self::$provider(tolerant::read(json)?),)+
                })
            }

            /// The provider that knows it.
            pub const fn provider(&self) -> Provider {
                match self {
                    $(Self::$provider(_) => Provider::$provider,)+
                }
            }

            fn check(&self) -> Result<(), Invalid> {
                match self {
                    $(Self::$provider(credential) => credential.check(),)+
                }
            }

            fn members(&self) -> Value {
                let json = match self {
                    $(Self::$provider(credential) => serde_json::to_value(credential),)+
                };
                json.expect("strings and numbers always serialize")
            }
        }
    };
}

credentials! {
    /// For APNs.
    Apns(apns),
    /// For FCM.
    Fcm(fcm),
    /// For the push services of browsers.
    WebPush(web_push),
    /// For SMTP.
    Smtp(smtp),
    /// For `SendGrid`.
    SendGrid(sendgrid),
    /// For Mailchimp Transactional.
    Mailchimp(mailchimp),
    /// For Twilio.
    Twilio(twilio),
    /// For Vonage.
    Vonage(vonage),
    /// For Huawei Push Kit.
    Hms(hms),
    /// For `JPush`.
    JPush(jpush),
    /// For Amazon SNS.
    Sns(sns),
    /// For webhooks.
    Webhook(webhook),
    /// For the provider that only records.
    Log(log),
}

/// A credential belongs to another provider than the one that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfAnother;

/// The check of a credential without members.
trait Memberless {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

impl Memberless for log::Credential {}
impl Memberless for webhook::Credential {}

impl Credential {
    /// Checks that its keys are keys: what signs makes a signature. A credential that is only stored was checked before.
    ///
    /// # Errors
    /// The member that holds a key that does not sign.
    pub fn try_keys(&self) -> Result<(), Invalid> {
        match self {
            Self::Apns(credential) => keys::p256(&credential.private_key).map_err(|rule| rule.within("private_key")),
            Self::Fcm(credential) => keys::service_account(&credential.service_account),
            Self::WebPush(credential) => credential.signing_key().map(drop),
            Self::Hms(credential) => credential
                .service_account
                .as_ref()
                .map_or(Ok(()), keys::service_account),
            Self::Smtp(credential) => {
                let tried = credential.dkim.iter().enumerate().map(|(index, dkim)| {
                    keys::dkim(&dkim.private_key).map_err(|rule| rule.within(&format!("dkim[{index}].private_key")))
                });
                tried.collect()
            }
            // Their secrets are words that only the provider knows.
            Self::SendGrid(_)
            | Self::Mailchimp(_)
            | Self::Twilio(_)
            | Self::Vonage(_)
            | Self::Sns(_)
            | Self::JPush(_)
            | Self::Webhook(_)
            | Self::Log(_) => Ok(()),
        }
    }

    /// Its members without the secrets.
    pub fn shown(&self) -> Map<String, Value> {
        let Value::Object(mut members) = secret::hiding(|| self.members()) else {
            return Map::new();
        };
        without_null(&mut members);
        members
    }

    /// Whether it has the same secrets as `other`.
    pub fn has_secrets_of(&self, other: &Self) -> bool {
        fn secrets(whole: &Value, shown: &Value, found: &mut Vec<Value>) {
            match (whole, shown) {
                (Value::Object(members), Value::Object(shown)) => {
                    for (name, value) in members {
                        secrets(value, shown.get(name).unwrap_or(&Value::Null), found);
                    }
                }
                (Value::Array(items), Value::Array(shown)) => {
                    items
                        .iter()
                        .zip(shown)
                        .for_each(|(item, shown)| secrets(item, shown, found));
                }
                (whole, Value::Null) => found.push(whole.clone()),
                _ => {}
            }
        }
        let of = |credential: &Self| {
            let mut found = Vec::new();
            secrets(
                &credential.members(),
                &secret::hiding(|| credential.members()),
                &mut found,
            );
            found
        };
        of(self) == of(other)
    }

    /// Its members as JSON, with the secrets in the clear, for sealing.
    pub(crate) fn reveal(&self) -> String {
        self.members().to_string()
    }
}

/// Removes members that are `null`, at any depth.
fn without_null(members: &mut Map<String, Value>) {
    members.retain(|_, value| !value.is_null());
    for value in members.values_mut() {
        match value {
            Value::Object(inner) => without_null(inner),
            Value::Array(items) => items.iter_mut().filter_map(Value::as_object_mut).for_each(without_null),
            _ => {}
        }
    }
}

fn parse<T: DeserializeOwned>(members: Map<String, Value>) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(Value::Object(members)).map_err(|error| Invalid::of_json(&error))
}

/// Lays the members of `over` on `base`: they replace those of the same name; where both are objects their members are
/// merged in the same way.
fn lay_over(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => lay_over(below, above),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}

/// Whether a member of an override adds nothing: `null`, `{}` or `""`.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => false,
    }
}

fn serialize(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("maps with string keys always serialize")
}
