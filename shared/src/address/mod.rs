//! Addresses: the ways to reach a recipient.

mod mailbox;
mod members;
mod phone;
mod receiver;
mod trouble;

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(crate) use self::mailbox::is_domain;
pub use self::{
    mailbox::{Mailbox, NamedMailbox},
    members::{AddressType, Members},
    phone::Phone,
    receiver::{Format, Receiver},
    trouble::{Change, DISABLED_AFTER, Disabled, Seen, Trouble},
};
use self::{members::Stored, receiver::History};
use crate::{
    channel::{Channel, words},
    id::{AddressId, AppId},
    id_key::IdKey,
    invalid::Invalid,
    provider::{Provider, apns, fcm, hms, jpush, sns, web_push},
};

words!(
    /// Whether an address is sent to.
    AddressState, "state", {
        /// It is.
        Active = "active",
        /// The app's suppression list forbids it.
        Suppressed = "suppressed",
        /// A receiver of webhooks that wants no more, or has failed for days. Registering it again enables it.
        Disabled = "disabled",
    }
);

/// One way to reach a recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Address {
    /// Derived from the app and the target, so that a token registered twice is one address.
    pub id: AddressId,
    /// The token and its provider.
    pub target: Target,
    /// The IANA time zone of the device; that of the recipient if absent.
    pub timezone: Option<String>,
    /// When the device last registered. A provider's "gone since" removes the address only if the device has not registered
    /// again since.
    pub registered_at: Timestamp,
}

impl Address {
    /// The address of `app` for `target`, registered at that time.
    pub fn new(ids: &IdKey, app: &AppId, target: Target, registered_at: Timestamp) -> Self {
        let (kind, canonical) = (target.kind().as_str(), target.canonical());
        Self {
            id: match target {
                Target::Apns(_)
                | Target::Fcm(_)
                | Target::WebPush(_)
                | Target::Hms(_)
                | Target::JPush(_)
                | Target::Sns(_) => AddressId::of_token(app, kind, canonical),
                Target::Email(_) | Target::Phone(_) | Target::Webhook(_) => {
                    AddressId::of_contact(ids, app, kind, canonical)
                }
            },
            target,
            timezone: None,
            registered_at,
        }
    }
}

/// The endpoint that an address stands for. A token belongs to the provider that issued it; a mailbox, a number or a URL can
/// be reached by several.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A device token of the Apple Push Notification service.
    Apns(apns::Target),
    /// A registration token of Firebase Cloud Messaging.
    Fcm(fcm::Target),
    /// A subscription of a browser.
    WebPush(web_push::Target),
    /// A push token of Huawei's.
    Hms(hms::Target),
    /// A registration id of `JPush`.
    JPush(jpush::Target),
    /// A platform endpoint of Amazon SNS.
    Sns(sns::Target),
    /// A mailbox.
    Email(Mailbox),
    /// A phone number, for text messages.
    Phone(Phone),
    /// An HTTP receiver.
    Webhook(Receiver),
}

impl Target {
    /// What kind of address it is.
    pub const fn kind(&self) -> AddressType {
        match self {
            Self::Apns(_) => AddressType::Apns,
            Self::Fcm(_) => AddressType::Fcm,
            Self::WebPush(_) => AddressType::WebPush,
            Self::Hms(_) => AddressType::Hms,
            Self::JPush(_) => AddressType::JPush,
            Self::Sns(_) => AddressType::Sns,
            Self::Email(_) => AddressType::Email,
            Self::Phone(_) => AddressType::Phone,
            Self::Webhook(_) => AddressType::Webhook,
        }
    }

    /// The providers that can deliver to this target, in the order in which they are asked if the app has no routes.
    pub const fn carriers(&self) -> &'static [Provider] {
        match self {
            Self::Apns(_) => &[Provider::Apns, Provider::Log],
            Self::Fcm(_) => &[Provider::Fcm, Provider::Log],
            Self::WebPush(_) => &[Provider::WebPush, Provider::Log],
            Self::Hms(_) => &[Provider::Hms, Provider::Log],
            Self::JPush(_) => &[Provider::JPush, Provider::Log],
            Self::Sns(_) => &[Provider::Sns, Provider::Log],
            Self::Email(_) => &[Provider::Smtp, Provider::SendGrid, Provider::Mailchimp, Provider::Log],
            Self::Phone(_) => &[Provider::Twilio, Provider::Vonage, Provider::Sns, Provider::Log],
            Self::Webhook(_) => &[Provider::Webhook, Provider::Log],
        }
    }

    /// The channel that reaches this target.
    pub const fn channel(&self) -> Channel {
        match self {
            Self::Apns(_) | Self::Fcm(_) | Self::WebPush(_) | Self::Hms(_) | Self::JPush(_) | Self::Sns(_) => {
                Channel::Push
            }
            Self::Email(_) => Channel::Email,
            Self::Phone(_) => Channel::Sms,
            Self::Webhook(_) => Channel::Webhook,
        }
    }

    /// A mailbox or a number with most of it hidden, such as `a…@example.com` and `+41…67`; `None` for what is not for people.
    pub fn masked(&self) -> Option<String> {
        match self {
            Self::Apns(_)
            | Self::Fcm(_)
            | Self::WebPush(_)
            | Self::Hms(_)
            | Self::JPush(_)
            | Self::Sns(_)
            | Self::Webhook(_) => None,
            Self::Email(mailbox) => {
                let first = mailbox.reveal().chars().next().unwrap_or_default();
                Some(format!("{first}…@{}", mailbox.domain()))
            }
            Self::Phone(phone) => {
                let number = phone.reveal();
                Some(format!("{}…{}", &number[..3], &number[number.len() - 2..]))
            }
        }
    }

    /// The normalised text that identifies the target, such as the token in lower case.
    fn canonical(&self) -> &str {
        match self {
            Self::Apns(target) => target.token.reveal(),
            Self::Fcm(target) => target.token.reveal(),
            Self::WebPush(target) => target.endpoint.reveal(),
            Self::Hms(target) => target.token.reveal(),
            Self::JPush(target) => target.token.reveal(),
            Self::Sns(target) => target.arn.reveal(),
            Self::Email(mailbox) => mailbox.reveal(),
            Self::Phone(phone) => phone.reveal(),
            Self::Webhook(receiver) => receiver.url(),
        }
    }
}

/// Longest token that is accepted, in bytes.
const MAX_TOKEN_BYTES: usize = 4096;

/// A device token. Anyone with the token and the app's key can push to the device, so it is never shown.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Token(String);

impl Token {
    /// Wraps a token that its provider's module has checked.
    pub(crate) const fn checked(token: String) -> Self {
        Self(token)
    }

    /// Checks a token of printable ASCII characters, for `provider`.
    ///
    /// # Errors
    /// `token`, with its rule.
    pub(crate) fn printable(token: String, provider: &str) -> Result<Self, Invalid> {
        if (1..=MAX_TOKEN_BYTES).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self(token));
        }
        let rule = format_args!("must be 1 to {MAX_TOKEN_BYTES} printable ASCII characters for {provider}");
        Err(Invalid::new("token", rule))
    }

    /// The token itself, for the provider's request only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl TryFrom<Stored> for Address {
    type Error = Invalid;

    fn try_from(stored: Stored) -> Result<Self, Invalid> {
        let (id, registered_at, history, mut members) = stored.split();
        let timezone = members.timezone.take();
        let mut target = members.target()?;
        if let Target::Webhook(receiver) = &mut target {
            receiver.set_history(history);
        }
        Ok(Self {
            id,
            target,
            timezone,
            registered_at,
        })
    }
}

impl From<Address> for Stored {
    fn from(mut address: Address) -> Self {
        let history = match &mut address.target {
            Target::Webhook(receiver) => receiver.take_history(),
            _ => History::default(),
        };
        let (id, registered_at) = (address.id, address.registered_at);
        Self::join(id, registered_at, history, Members::from(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::apns::{Environment, Kind};

    #[test]
    fn a_token_never_shows_itself() {
        let target = fcm::Target::new("top-secret".into()).unwrap();
        assert!(!format!("{target:?}").contains("secret"));
    }

    /// Addresses that 0.1 stored; what this version writes must be readable there too.
    #[test]
    fn addresses_are_stored_as_they_were_in_0_1() {
        let apns = r#"{"id":"11111111-2222-8333-8444-555555555555","provider":"apns","token":"ab12","kind":"live_activity","environment":"sandbox","topic":"com.example","registered_at":"2026-01-02T03:04:05Z"}"#;
        let fcm = r#"{"id":"11111111-2222-8333-8444-555555555555","provider":"fcm","token":"t:1","kind":"device","environment":"production","registered_at":"2026-01-02T03:04:05Z"}"#;
        for stored in [apns, fcm] {
            let address: Address = serde_json::from_str(stored).unwrap();
            assert_eq!(serde_json::to_string(&address).unwrap(), stored);
        }
    }

    #[test]
    fn every_kind_is_read_as_it_was_stored() {
        let app = "shop".parse().unwrap();
        for members in [
            r#"{"provider":"apns","token":"ab","kind":"live_activity","activity_id":"ride-1"}"#,
            r#"{"type":"email","email":"Ann@Example.com","timezone":"Europe/Zurich"}"#,
            r#"{"type":"phone","phone":"+41791234567"}"#,
            r#"{"type":"hms","token":"t:1"}"#,
            r#"{"type":"hms","token":"t:1","generation":1}"#,
            r#"{"type":"jpush","token":"1104a89792a3ef5ee5a"}"#,
            r#"{"type":"sns","target_arn":"arn:aws:sns:eu-central-1:123456789012:endpoint/GCM/shop/8f7c"}"#,
            r#"{"type":"web_push","endpoint":"https://push.example.net/push/a","p256dh":"BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4","auth":"BTBZMqHH6r4Tts7J_aSIgg"}"#,
            r#"{"type":"webhook","url":"https://example.com/?a=b","format":"chat"}"#,
        ] {
            let members: Members = serde_json::from_str(members).unwrap();
            let address = members.address(&IdKey::unkeyed(), &app, Timestamp::UNIX_EPOCH).unwrap();
            let stored = serde_json::to_string(&address).unwrap();
            assert_eq!(serde_json::from_str::<Address>(&stored).unwrap(), address, "{stored}");
        }
    }

    #[test]
    fn the_trouble_of_a_receiver_is_kept_until_it_is_registered_again() {
        let new = || Receiver::new("https://example.com/hook", Format::Chat, None).unwrap();
        let mut receiver = new();
        receiver.trouble = Trouble::after(None, Seen::Gone, Timestamp::UNIX_EPOCH, "http_410")
            .unwrap()
            .trouble();
        let address = Address::new(
            &IdKey::unkeyed(),
            &"shop".parse().unwrap(),
            Target::Webhook(receiver.clone()),
            Timestamp::UNIX_EPOCH,
        );
        let stored = serde_json::to_string(&address).unwrap();
        assert_eq!(serde_json::from_str::<Address>(&stored).unwrap(), address, "{stored}");
        assert!(receiver.disabled().is_some());
        assert_eq!(new().in_place_of(receiver, Timestamp::UNIX_EPOCH).trouble, None);
    }

    #[test]
    fn the_id_depends_on_the_target_and_not_on_its_spelling() {
        let app = "shop".parse().unwrap();
        let of = |target| Address::new(&IdKey::unkeyed(), &app, target, Timestamp::UNIX_EPOCH).id;
        let apns = |token: &str| {
            Target::Apns(apns::Target::new(token, Kind::Device, Environment::Production, None, None).unwrap())
        };
        assert_eq!(of(apns("AB12")), of(apns("ab12")));
        assert_ne!(
            of(apns("ab12")),
            of(Target::Fcm(fcm::Target::new("ab12".into()).unwrap()))
        );
    }
}
