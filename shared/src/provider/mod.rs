//! The providers. For each, gateways and workers share the formats of its credential, its addresses, its overrides and its
//! messages.

pub mod apns;
pub mod fcm;

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    backoff::Backoff,
    channel::{Channel, words},
    content::push::Push,
    invalid::Invalid,
    tolerant,
};

words!(
    /// The service that delivers a notification to the device.
    Provider, "provider", {
        /// Apple Push Notification service.
        Apns = "apns",
        /// Firebase Cloud Messaging.
        Fcm = "fcm",
    }
);

impl Provider {
    /// How many providers there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The channel that this provider delivers.
    pub const fn channel(self) -> Channel {
        match self {
            Self::Apns | Self::Fcm => Channel::Push,
        }
    }

    /// How long to wait between attempts: Apple names no time for server errors, Google requires at least ten seconds.
    pub const fn backoff(self) -> Backoff {
        let first = match self {
            Self::Apns => Duration::from_secs(1),
            Self::Fcm => Duration::from_secs(10),
        };
        Backoff {
            first,
            most: Duration::from_mins(15),
        }
    }

    /// Whether a push shows or runs anything on a device of this provider once it is rendered.
    pub(crate) fn has_something(self, push: &Push) -> bool {
        match self {
            Self::Apns => apns::has_something(push),
            Self::Fcm => fcm::has_something(push),
        }
    }

    /// Refuses a push that the provider would refuse for its size once it is rendered. A push that is not sent to the
    /// provider's devices has no size there.
    pub(crate) fn check_size(self, push: &Push) -> Result<(), Invalid> {
        if !self.has_something(push) {
            return Ok(());
        }
        let (name, limit, size) = match self {
            Self::Apns => ("APNs", push.apns_push_type().max_payload(), apns::render(push).len()),
            Self::Fcm => ("FCM", fcm::MAX_MESSAGE, fcm::size(push)),
        };
        if size > limit {
            return Err(Invalid::new(
                "push",
                format_args!("must render to at most {limit} bytes for {name}, has {size}"),
            ));
        }
        Ok(())
    }
}

/// An app's credential for one provider, in the clear. It is stored sealed as a whole, as the JSON of its members.
#[derive(Debug, Clone, PartialEq)]
pub enum Credential {
    /// For APNs.
    Apns(apns::Credential),
    /// For FCM.
    Fcm(fcm::Credential),
}

impl Credential {
    /// Reads and checks the members of a credential for `provider`.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub fn read(provider: Provider, members: Map<String, Value>) -> Result<Self, Invalid> {
        let credential = match provider {
            Provider::Apns => Self::Apns(parse(members)?),
            Provider::Fcm => Self::Fcm(parse(members)?),
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
            Provider::Apns => Self::Apns(tolerant::read(json)?),
            Provider::Fcm => Self::Fcm(tolerant::read(json)?),
        })
    }

    /// The provider that knows it.
    pub const fn provider(&self) -> Provider {
        match self {
            Self::Apns(_) => Provider::Apns,
            Self::Fcm(_) => Provider::Fcm,
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Apns(credential) => credential.check(),
            Self::Fcm(credential) => credential.check(),
        }
    }

    /// Its members as JSON, with the secrets in the clear, for sealing.
    pub(crate) fn reveal(&self) -> String {
        let json = match self {
            Self::Apns(credential) => serde_json::to_string(credential),
            Self::Fcm(credential) => serde_json::to_string(credential),
        };
        json.expect("strings and numbers always serialize")
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
