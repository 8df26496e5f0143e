//! The suppression list: mailboxes and numbers that an app must not send to.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    channel::{Channel, words},
    id::{AddressId, Category},
    id_key::IdKey,
    invalid::Invalid,
};

words!(
    /// Why an address is on the list.
    SuppressionReason, "reason", {
        /// A mailbox or a number that does not exist.
        HardBounce = "hard_bounce",
        /// It bounced again and again.
        SoftBounces = "soft_bounces",
        /// The recipient marked a notification as spam.
        Complaint = "complaint",
        /// The recipient unsubscribed.
        Unsubscribe = "unsubscribe",
        /// The app put it there.
        Manual = "manual",
    }
);

impl SuppressionReason {
    /// Of two reasons the one with the greater weight is kept, so that nobody lifts a complaint because the list shows the
    /// unsubscription that followed it.
    const fn weight(self) -> u8 {
        match self {
            Self::SoftBounces => 0,
            Self::Manual => 1,
            Self::Unsubscribe => 2,
            Self::HardBounce => 3,
            Self::Complaint => 4,
        }
    }
}

/// Names one entry of an app's list: 32 hexadecimal digits. For all categories it is the id of the address, else a digest of
/// that and the category.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SuppressionId(Uuid);

impl SuppressionId {
    /// The entry about `address`, for one category or for all. The id of a mailbox or a number is keyed already, with the key
    /// that is never replaced.
    pub fn of(ids: &IdKey, address: AddressId, category: Option<&Category>) -> Self {
        Self(match category {
            None => address.0,
            Some(category) => ids.derive("suppression", &[&address.to_string(), category.as_str()]),
        })
    }
}

impl fmt::Display for SuppressionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for SuppressionId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let is_plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let id = is_plain.then(|| text.parse().ok()).flatten();
        id.map(Self)
            .ok_or_else(|| Invalid::new("id", "must be 32 of 0-9 and a-f"))
    }
}

/// Why and until when an app must not send to an address. It holds no part of the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suppression {
    /// Where it applies: e-mail or text messages.
    pub channel: Channel,
    /// Why.
    pub reason: SuppressionReason,
    /// Who said so: the word of a provider, or the id of an API key.
    pub source: String,
    /// Only for this category of notifications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl Suppression {
    /// Whether the list has addresses of this channel.
    pub const fn applies_to(channel: Channel) -> bool {
        match channel {
            Channel::Email | Channel::Sms => true,
            Channel::Push | Channel::Webhook => false,
        }
    }

    /// From when on it no longer applies.
    pub fn until(&self) -> Timestamp {
        self.expires_at.unwrap_or(Timestamp::MAX)
    }

    /// This one and `new` about the same address: the weightier reason, until the later of both ends. So nothing that is added
    /// makes a suppression shorter.
    #[must_use]
    pub fn and(self, new: Self) -> Self {
        let expires_at = self
            .expires_at
            .zip(new.expires_at)
            .map(|(known, wanted)| known.max(wanted));
        let weightier = if new.reason.weight() > self.reason.weight() {
            new
        } else {
            self
        };
        Self {
            expires_at,
            ..weightier
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reason: SuppressionReason, source: &str, ends_at_s: Option<i64>) -> Suppression {
        Suppression {
            channel: Channel::Email,
            reason,
            source: source.to_owned(),
            category: None,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: ends_at_s.map(|s| Timestamp::from_second(s).unwrap()),
        }
    }

    #[test]
    fn what_is_added_never_makes_a_suppression_shorter_or_lighter() {
        use SuppressionReason::{Complaint, Manual, Unsubscribe};
        for (known, new, expected) in [
            (
                of(Complaint, "sendgrid", None),
                of(Manual, "key", Some(9)),
                of(Complaint, "sendgrid", None),
            ),
            (
                of(Manual, "key", Some(9)),
                of(Complaint, "sendgrid", Some(5)),
                of(Complaint, "sendgrid", Some(9)),
            ),
            (
                of(Manual, "key", Some(9)),
                of(Manual, "other", None),
                of(Manual, "key", None),
            ),
            (
                of(Unsubscribe, "key", Some(1)),
                of(Unsubscribe, "key", Some(9)),
                of(Unsubscribe, "key", Some(9)),
            ),
        ] {
            assert_eq!(known.and(new), expected);
        }
    }

    #[test]
    fn an_id_is_that_of_the_address_unless_it_is_for_one_category() {
        let address: AddressId = "7c9e6679-7425-80de-944b-e07fc1f90ae7".parse().unwrap();
        let id = |category: Option<&str>| {
            let category = category.map(|text| text.parse().unwrap());
            SuppressionId::of(&IdKey::unkeyed(), address, category.as_ref())
        };
        assert_eq!(id(None).to_string(), "7c9e6679742580de944be07fc1f90ae7");
        assert_eq!(id(None).to_string().parse(), Ok(id(None)));
        assert_ne!(id(Some("offers")), id(None));
        assert_ne!(id(Some("offers")), id(Some("news")));
        for bad in [
            "",
            "7c9e6679-7425-80de-944b-e07fc1f90ae7",
            "7C9E6679742580DE944BE07FC1F90AE7",
            "7c9e6679742580de944be07fc1f90a",
            "7c9e6679742580de944be07fc1f90ae>",
        ] {
            assert!(bad.parse::<SuppressionId>().is_err(), "{bad}");
        }
    }
}
