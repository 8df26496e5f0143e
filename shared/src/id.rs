//! Names and identifiers, valid by construction.

use std::{fmt, marker::PhantomData, str::FromStr, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{channel::Channel, digest::derive, id_key::IdKey, invalid::Invalid};

/// A short string that obeys a rule; parsing is the only way in.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
        #[schema(value_type = String)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(Invalid::new($what, $rule)) }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Parse::<Self>($rule, PhantomData))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Parses a borrowed string. The error holds the broken rule alone; the document's reader adds the field.
struct Parse<T>(&'static str, PhantomData<T>);

impl<T: FromStr> Visitor<'_> for Parse<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|_| E::custom(self.0))
    }
}

fn is_token(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

name!(
    /// A tenant. One token of a NATS subject.
    AppId, "app", "must be 1 to 32 of a-z, 0-9 and -", |text| is_token(text, 32)
);
name!(
    /// A region: one NATS cluster with its own JetStream domain. One token of a NATS subject.
    Region, "region", "must be 1 to 32 of a-z, 0-9 and -", |text| is_token(text, 32)
);
name!(
    /// A person or thing known to an app; the app chooses the name.
    RecipientId, "recipient", "must be 1 to 128 bytes without white space or control characters",
    |text| (1..=128).contains(&text.len()) && !text.chars().any(|c| c.is_whitespace() || c.is_control())
);
name!(
    /// The caller's name for an event; two requests with the same event id are one notification.
    EventId, "event_id", "must be 1 to 255 printable ASCII characters without spaces",
    |text| (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
);
name!(
    /// A kind of notification that a recipient can opt out of, such as `order-updates`.
    Category, "category", "must be 1 to 64 of a-z, 0-9, - and _",
    |text| (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
);

name!(
    /// A named group of an app's recipients. One token of a NATS subject.
    Topic, "topic", "must be 1 to 64 of a-z, 0-9, - and _",
    |text| (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
);

name!(
    /// A schedule of an app: a notification that recurs. One token of a NATS subject.
    ScheduleId, "schedule_id", "must be 1 to 64 of a-z, 0-9, - and _",
    |text| (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
);

name!(
    /// What belongs together, such as all reminders of a room; the caller chooses the name.
    GroupKey, "group_key", "must be 1 to 128 printable ASCII characters without spaces",
    |text| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
);

name!(
    /// The public key of an NATS account, by which servers in operator mode name it.
    AccountKey, "account", "must be the public key of an NATS account: A and 55 of A-Z and 2-7",
    |text| text.len() == 56
        && text.starts_with('A')
        && text.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
);

impl AppId {
    /// The app of messages that do not name one.
    pub fn unknown() -> Self {
        Self("unknown".into())
    }
}

impl EventId {
    /// A new event id for a request without one: a version 7 UUID, so ordered by time.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// The name of this event of a test key, which no caller can choose: it holds a space.
    pub(crate) fn of_test_key(&self) -> Self {
        Self(format!("{self} test").into())
    }
}

/// A UUID that names one kind of thing.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id!(
    /// One event of an app, however often it is requested: derived from app and event id.
    NotificationId
);
uuid_id!(
    /// One notification for one recipient on one channel: the `Nats-Msg-Id` of its message.
    JobId
);
uuid_id!(
    /// One way to reach a recipient: derived from app, provider and token, so that a token registered twice is one address.
    AddressId
);
uuid_id!(
    /// One erasure of a recipient.
    ErasureId
);
uuid_id!(
    /// One control.
    ControlId
);
uuid_id!(
    /// One job to one address. It is the `apns-id` of every attempt, so that retries are recognised.
    DeliveryId
);

impl ErasureId {
    /// A new id, ordered by time.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }
}

impl ControlId {
    /// A new id, ordered by time.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }
}

impl NotificationId {
    /// The notification that `event` of `app` is.
    pub fn of(app: &AppId, event: &EventId) -> Self {
        Self(derive("notification", &[app.as_str(), event.as_str()]))
    }
}

impl JobId {
    /// The job that brings `event` of `app` to `recipient` on `channel`.
    pub fn of(ids: &IdKey, app: &AppId, event: &EventId, recipient: &RecipientId, channel: Channel) -> Self {
        let parts = [app.as_str(), event.as_str(), recipient.as_str(), channel.as_str()];
        Self(ids.derive("job", &parts))
    }

    /// The job that brings `event` of `app` to `address` on `channel`.
    pub fn of_address(ids: &IdKey, app: &AppId, event: &EventId, address: AddressId, channel: Channel) -> Self {
        let address = address.to_string();
        let parts = [app.as_str(), event.as_str(), &address, channel.as_str()];
        Self(ids.derive("direct", &parts))
    }

    /// The broadcast that brings `event` of `app` on `channel` to the members of `topic` who live in `region`.
    pub fn of_broadcast(
        ids: &IdKey,
        app: &AppId,
        event: &EventId,
        topic: &Topic,
        channel: Channel,
        region: &Region,
    ) -> Self {
        let parts = [
            app.as_str(),
            event.as_str(),
            topic.as_str(),
            channel.as_str(),
            region.as_str(),
        ];
        Self(ids.derive("broadcast", &parts))
    }

    /// Slice number `number` of the broadcast that this is.
    #[must_use]
    pub fn slice(self, number: u32) -> Self {
        Self(derive("slice", &[&self.to_string(), &number.to_string()]))
    }
}

impl AddressId {
    /// The address of `app` that is a device token of this kind, such as `apns`, with this canonical form.
    pub(crate) fn of_token(app: &AppId, kind: &str, canonical: &str) -> Self {
        Self(derive("address", &[app.as_str(), kind, canonical]))
    }

    /// The address of `app` that is a mailbox, a number or a URL. There are few enough numbers to try them all, so nobody can
    /// compute the id without the mesh's key.
    pub(crate) fn of_contact(ids: &IdKey, app: &AppId, kind: &str, canonical: &str) -> Self {
        Self(ids.derive("address", &[app.as_str(), kind, canonical]))
    }
}

impl DeliveryId {
    /// A number below `bound`, at least 1, that is the same for every attempt at the delivery and even over all deliveries.
    pub fn draw(self, bound: u64) -> u64 {
        let (_, low) = self.0.as_u64_pair();
        // The two highest bits are the variant of the UUID.
        (low & (u64::MAX >> 2)) % bound.max(1)
    }

    /// As [`Self::draw`], and independent of it.
    pub fn draw_again(self, bound: u64) -> u64 {
        let (high, _) = self.0.as_u64_pair();
        // The lowest bits hold the version of the UUID.
        (high >> 16) % bound.max(1)
    }

    /// The delivery of `job` to `address`.
    pub fn of(job: JobId, address: AddressId) -> Self {
        let mut both = [0; 32];
        both[..16].copy_from_slice(job.0.as_bytes());
        both[16..].copy_from_slice(address.0.as_bytes());
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &both);
        let mut first = [0; 16];
        first.copy_from_slice(&hash.as_ref()[..16]);
        Self(Uuid::new_v8(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_would_break_a_subject() {
        for bad in ["", "a.b", "A", "a*", "a>", "ä", "a b", &"a".repeat(33)] {
            assert!(bad.parse::<AppId>().is_err(), "{bad:?}");
        }
        assert!("shop-1".parse::<AppId>().is_ok());
    }

    #[test]
    fn a_refused_name_does_not_quote_the_value() {
        let error = serde_json::from_str::<RecipientId>("\"secret value\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("must be 1 to 128 bytes") && !error.contains("secret"),
            "{error}"
        );
    }

    /// Meshes that version 0.1 provisioned have these ids, so the formula may never change.
    #[test]
    fn without_a_key_job_ids_are_those_of_version_0_1() {
        let job = JobId::of(
            &IdKey::unkeyed(),
            &"shop".parse().unwrap(),
            &"order-42".parse().unwrap(),
            &"ann".parse().unwrap(),
            Channel::Push,
        );
        assert_eq!(job.to_string(), "796293be-b071-8ff7-83c6-e8dcea69672f");
    }
}
