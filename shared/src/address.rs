//! Addresses: the ways to reach a recipient.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    channel::Channel,
    id::{AddressId, AppId},
    invalid::Invalid,
    provider::{
        Provider,
        apns::{self, Environment, Kind},
        fcm,
    },
};

/// One way to reach a recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Address {
    /// Derived from the app and the target, so that a token registered twice is one address.
    pub id: AddressId,
    /// The token and its provider.
    pub target: Target,
    /// When the device last registered. A provider's "gone since" removes the address only if the device has not registered
    /// again since.
    pub registered_at: Timestamp,
}

impl Address {
    /// The address of `app` for `target`, registered at that time.
    pub fn new(app: &AppId, target: Target, registered_at: Timestamp) -> Self {
        Self {
            id: AddressId::of(app, target.kind(), target.canonical()),
            target,
            registered_at,
        }
    }

    /// The provider that delivers to this address.
    pub const fn provider(&self) -> Provider {
        self.target.provider()
    }
}

/// The endpoint that an address stands for. A token belongs to the provider that issued it.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A device token of the Apple Push Notification service.
    Apns(apns::Target),
    /// A registration token of Firebase Cloud Messaging.
    Fcm(fcm::Target),
}

impl Target {
    /// The provider that delivers to this target.
    pub const fn provider(&self) -> Provider {
        match self {
            Self::Apns(_) => Provider::Apns,
            Self::Fcm(_) => Provider::Fcm,
        }
    }

    /// The channel that reaches this target.
    pub const fn channel(&self) -> Channel {
        self.provider().channel()
    }

    /// The word for this kind of target in the hash that makes an address's id. It may never change.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Apns(_) => "apns",
            Self::Fcm(_) => "fcm",
        }
    }

    /// The normalised text that identifies the target, such as the token in lower case.
    fn canonical(&self) -> &str {
        match self {
            Self::Apns(target) => target.token.reveal(),
            Self::Fcm(target) => target.token.reveal(),
        }
    }
}

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

/// The stored JSON of an address: flat, because `serde(flatten)` would cost every look-up a copy. Workers of 0.1 require
/// `kind` and `environment` of every address.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    id: AddressId,
    provider: Provider,
    token: Token,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    environment: Environment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    registered_at: Timestamp,
}

impl TryFrom<Stored> for Address {
    type Error = Invalid;

    fn try_from(stored: Stored) -> Result<Self, Invalid> {
        let target = match stored.provider {
            Provider::Apns => Target::Apns(apns::Target {
                token: stored.token,
                kind: stored.kind,
                environment: stored.environment,
                topic: stored.topic,
            }),
            Provider::Fcm => Target::Fcm(fcm::Target { token: stored.token }),
        };
        Ok(Self {
            id: stored.id,
            target,
            registered_at: stored.registered_at,
        })
    }
}

impl From<Address> for Stored {
    fn from(address: Address) -> Self {
        let (id, registered_at, provider) = (address.id, address.registered_at, address.provider());
        let (token, kind, environment, topic) = match address.target {
            Target::Apns(target) => (target.token, target.kind, target.environment, target.topic),
            Target::Fcm(target) => (target.token, Kind::default(), Environment::default(), None),
        };
        Self {
            id,
            provider,
            token,
            kind,
            environment,
            topic,
            registered_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_id_depends_on_the_target_and_not_on_its_spelling() {
        let app = "shop".parse().unwrap();
        let of = |target| Address::new(&app, target, Timestamp::UNIX_EPOCH).id;
        let apns =
            |token: &str| Target::Apns(apns::Target::new(token, Kind::Device, Environment::Production, None).unwrap());
        assert_eq!(of(apns("AB12")), of(apns("ab12")));
        assert_ne!(
            of(apns("ab12")),
            of(Target::Fcm(fcm::Target::new("ab12".into()).unwrap()))
        );
    }
}
