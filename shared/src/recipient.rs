//! Who is to be reached, how, and what they agreed to.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    channel::{Channel, Provider, words},
    id::{AddressId, AppId, Category, RecipientId, Region, Topic},
    invalid::Invalid,
};

/// What is known of a recipient besides addresses and preferences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Profile {
    /// The region whose workers deliver to this recipient.
    pub home: Region,
    /// BCP 47 language tag, such as `de-CH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// IANA time zone, such as `Europe/Zurich`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// When this was last written.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A device token. Whoever has it and the app's key can push to the device, so it is never shown.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Token(String);

impl Token {
    /// The token itself, for the provider's request only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Wraps a token of `provider`.
    ///
    /// # Errors
    /// `token`, if it cannot be one: APNs tokens are hexadecimal (Apple: do not assume a length), FCM tokens are
    /// printable ASCII; both at most 4096 characters.
    pub fn new(provider: Provider, token: String) -> Result<Self, Invalid> {
        let plausible = (1..=4096).contains(&token.len());
        match provider {
            Provider::Apns if !plausible || token.len() % 2 == 1 || !token.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Err(Invalid::new(
                    "token",
                    "must be hexadecimal, an even number of digits, for apns",
                ))
            }
            Provider::Fcm if !plausible || !token.bytes().all(|b| b.is_ascii_graphic()) => Err(Invalid::new(
                "token",
                "must be 1 to 4096 printable ASCII characters for fcm",
            )),
            Provider::Apns => Ok(Self(token.to_ascii_lowercase())),
            Provider::Fcm => Ok(Self(token)),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

words!(
    /// What a token is for.
    AddressKind, "kind", {
        /// An application on a device.
        Device = "device",
        /// One Live Activity, or the permission to start one.
        LiveActivity = "live_activity",
    }
);

words!(
    /// Apple's two worlds; a token of one is unknown in the other.
    Environment, "environment", {
        /// App Store and `TestFlight` builds.
        Production = "production",
        /// Builds from Xcode.
        Sandbox = "sandbox",
    }
);

/// One way to reach a recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Address {
    /// Derived from app, provider and token.
    pub id: AddressId,
    /// Who carries pushes to it.
    pub provider: Provider,
    /// The device token.
    pub token: Token,
    /// What the token is for.
    pub kind: AddressKind,
    /// Which of Apple's worlds; production for FCM.
    pub environment: Environment,
    /// The bundle id of the application, if it is not the app's default topic (APNs only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// When the device last registered; a provider's "gone since" removes only what is older.
    pub registered_at: Timestamp,
}

/// What a recipient agreed to. Absent means agreed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Preferences {
    /// `false` opts out of everything on that channel.
    pub channels: BTreeMap<Channel, bool>,
    /// By category and channel; `false` opts out of that category on that channel.
    pub categories: BTreeMap<Category, BTreeMap<Channel, bool>>,
}

impl Preferences {
    /// Whether a notification of `category` may be sent on `channel`.
    pub fn allows(&self, channel: Channel, category: Option<&Category>) -> bool {
        let agreed = |choice: Option<&bool>| choice.copied().unwrap_or(true);
        agreed(self.channels.get(&channel))
            && category.is_none_or(|category| {
                agreed(
                    self.categories
                        .get(category)
                        .and_then(|channels| channels.get(&channel)),
                )
            })
    }
}

/// That a recipient is a member of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Membership {
    /// Since when. A broadcast is for those who were members when it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// From when on its home sends it broadcasts, if it moved there: those accepted before are the former home's to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub moved: Option<Timestamp>,
}

impl Membership {
    /// The first moment at which a broadcast can be accepted that this home sends to the recipient.
    pub fn begins(&self) -> Timestamp {
        self.moved.map_or(self.since, |moved| moved.max(self.since))
    }
}

/// One thing that is known of a recipient. Each is stored under a key of its own and replaced whole.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Home region, language, time zone.
    Profile(Profile),
    /// One address.
    Address(Address),
    /// Consent.
    Preferences(Preferences),
    /// Membership of one topic.
    Topic(Topic, Membership),
}

/// Which fact of a recipient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FactName {
    /// The profile.
    Profile,
    /// The address with this id.
    Address(AddressId),
    /// The preferences.
    Preferences,
    /// The membership of this topic.
    Topic(Topic),
}

impl Fact {
    /// The name under which this fact is stored.
    pub fn name(&self) -> FactName {
        match self {
            Self::Profile(_) => FactName::Profile,
            Self::Address(address) => FactName::Address(address.id),
            Self::Preferences(_) => FactName::Preferences,
            Self::Topic(topic, _) => FactName::Topic(topic.clone()),
        }
    }

    /// As JSON, the form in which facts are stored.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Profile(profile) => serde_json::to_vec(profile),
            Self::Address(address) => serde_json::to_vec(address),
            Self::Preferences(preferences) => serde_json::to_vec(preferences),
            Self::Topic(_, membership) => serde_json::to_vec(membership),
        }
        .expect("facts always serialize")
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When the value is not a fact of that name.
    pub fn decode(name: FactName, value: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(match name {
            FactName::Profile => Self::Profile(serde_json::from_slice(value)?),
            FactName::Address(_) => Self::Address(serde_json::from_slice(value)?),
            FactName::Preferences => Self::Preferences(serde_json::from_slice(value)?),
            FactName::Topic(topic) => Self::Topic(topic, serde_json::from_slice(value)?),
        })
    }
}

/// Everything that is known of one recipient, but for its topics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recipient {
    /// `None` if never registered.
    pub profile: Option<Profile>,
    /// In no particular order, each with its revision: the sequence of its fact in the bucket, for removing it only if
    /// it was not written again.
    pub addresses: Vec<(Address, u64)>,
    /// Default: everything agreed.
    pub preferences: Preferences,
}

impl Recipient {
    /// Adds one fact, of the given revision.
    pub fn learn(&mut self, fact: Fact, revision: u64) {
        match fact {
            Fact::Profile(profile) => self.profile = Some(profile),
            Fact::Address(address) => self.addresses.push((address, revision)),
            Fact::Preferences(preferences) => self.preferences = preferences,
            // There may be very many; whoever wants them asks for them.
            Fact::Topic(..) => {}
        }
    }

    /// Where the recipient lives now, if it lived in `here` and moved: the profile stays and says so.
    pub fn moved_to(&self, here: &Region) -> Option<&Region> {
        let home = &self.profile.as_ref()?.home;
        (home != here).then_some(home)
    }

    /// Whether any fact is known.
    pub fn is_known(&self) -> bool {
        self.profile.is_some() || !self.addresses.is_empty()
    }
}

/// A recipient of an app: the key under which facts are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecipientKey {
    /// The tenant.
    pub app: AppId,
    /// The recipient.
    pub recipient: RecipientId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_default_to_agreed_and_category_narrows_channel() {
        let category: Category = "offers".parse().unwrap();
        let mut preferences = Preferences::default();
        assert!(preferences.allows(Channel::Push, Some(&category)));
        preferences
            .categories
            .entry(category.clone())
            .or_default()
            .insert(Channel::Push, false);
        assert!(!preferences.allows(Channel::Push, Some(&category)));
        assert!(preferences.allows(Channel::Push, None));
        preferences.channels.insert(Channel::Push, false);
        assert!(!preferences.allows(Channel::Push, None));
    }

    #[test]
    fn a_token_never_shows_itself() {
        let token = Token::new(Provider::Fcm, "top-secret".into()).unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(Token::new(Provider::Apns, "xyz".into()).is_err());
    }
}
