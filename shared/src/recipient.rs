//! Recipients: their addresses, preferences and topics, each a fact of its own.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    address::Address,
    id::{AddressId, AppId, RecipientId, Region, Topic},
    invalid::Invalid,
    preferences::Preferences,
    tolerant,
};

/// The home, the language and the time zone of a recipient.
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
    /// When the profile was last written.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// Membership of a recipient in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Membership {
    /// When the recipient joined. A broadcast reaches only those who were members when it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// When the recipient moved to this home, if it did; the former home sends the broadcasts that were accepted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub moved: Option<Timestamp>,
}

impl Membership {
    /// This home sends the recipient the broadcasts that were accepted at this time or later.
    pub fn begins(&self) -> Timestamp {
        self.moved.map_or(self.since, |moved| moved.max(self.since))
    }
}

/// One fact about a recipient. Each is stored under a key of its own and replaced whole.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Home region, language, time zone.
    Profile(Profile),
    /// One address.
    Address(Address),
    /// Opt-outs by channel and category.
    Preferences(Preferences),
    /// Membership in one topic.
    Topic(Topic, Membership),
}

/// The name of a fact, unique for its recipient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FactName {
    /// The profile.
    Profile,
    /// The address with this id.
    Address(AddressId),
    /// The preferences.
    Preferences,
    /// The membership in this topic.
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

    /// The JSON in which the fact is stored.
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
    pub fn decode(name: FactName, value: &[u8]) -> Result<Self, Invalid> {
        Ok(match name {
            FactName::Profile => Self::Profile(tolerant::read(value)?),
            FactName::Address(_) => Self::Address(tolerant::read(value)?),
            FactName::Preferences => Self::Preferences(tolerant::read(value)?),
            FactName::Topic(topic) => Self::Topic(topic, tolerant::read(value)?),
        })
    }
}

/// The most addresses that a recipient may have. One that has more, from before there was a limit, keeps them.
pub const MAX_ADDRESSES: usize = 100;

/// The most topics that a recipient may be a member of. One that has more, from before there was a limit, keeps them.
pub const MAX_TOPICS: usize = 1000;

/// All facts about one recipient except its topics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recipient {
    /// `None` if the recipient was never registered.
    pub profile: Option<Profile>,
    /// In no particular order, each with its revision: the sequence of its fact in the bucket. An address is removed only
    /// if its revision is still the same.
    pub addresses: Vec<(Address, u64)>,
    /// Opt-outs; by default none.
    pub preferences: Preferences,
    /// Whether there are addresses of a newer version, which cannot be read here.
    pub is_incomplete: bool,
}

impl Recipient {
    /// Adds one fact, of the given revision.
    pub fn learn(&mut self, fact: Fact, revision: u64) {
        match fact {
            Fact::Profile(profile) => self.profile = Some(profile),
            Fact::Address(address) => self.addresses.push((address, revision)),
            Fact::Preferences(preferences) => self.preferences = preferences,
            // A recipient may have many topics; `nats::facts::topics` reads them.
            Fact::Topic(..) => {}
        }
    }

    /// The region where the recipient lives now, if it moved away from `here`: the profile stays here and names the new home.
    pub fn moved_to(&self, here: &Region) -> Option<&Region> {
        let home = &self.profile.as_ref()?.home;
        (home != here).then_some(home)
    }

    /// Whether any fact is known.
    pub fn is_known(&self) -> bool {
        self.profile.is_some() || !self.addresses.is_empty()
    }
}

/// A recipient of an app: the key under which its facts are stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecipientKey {
    /// The app that the recipient belongs to.
    pub app: AppId,
    /// The recipient, unique in its app.
    pub recipient: RecipientId,
}
