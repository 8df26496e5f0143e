//! What callers state about recipients: checked, then stored at their homes. Single requests and imports go this way.

use std::time::Duration;

use serde::Deserialize;
use shared::{
    address::{Address, Members, Receiver, Target},
    app::App,
    id::{AddressId, Region, Topic},
    invalid::Invalid,
    nats::{facts::NotRead, preferences::NotAmended, publish::NotStored},
    only_objects,
    policy::zone,
    recipient::{Fact, Membership, Profile, RecipientKey},
    secret::Secret,
    signature,
};
use utoipa::ToSchema;

use super::{
    homes::{Homes, NotChanged},
    owners,
};

/// Why something was not registered, or only in part. Repeating is safe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRegistered {
    /// A member breaks a rule. Nothing is stored.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A region does not answer, or did not confirm what it stored.
    #[error(transparent)]
    NotChanged(#[from] NotChanged),
    /// The recipient has not arrived at its new home in time.
    #[error("the move is not complete")]
    Moving,
}

impl From<NotRead> for NotRegistered {
    fn from(error: NotRead) -> Self {
        NotChanged::from(error).into()
    }
}

impl From<NotAmended> for NotRegistered {
    fn from(error: NotAmended) -> Self {
        match error {
            NotAmended::Invalid(invalid) => invalid.into(),
            NotAmended::Read(error) => error.into(),
            NotAmended::Write(error) => error.into(),
        }
    }
}

impl From<NotStored> for NotRegistered {
    fn from(error: NotStored) -> Self {
        NotChanged::from(error).into()
    }
}

/// The new profile of a recipient. A member that is left out is removed; only the home stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct PutRecipient {
    /// The home: the region whose workers deliver to the recipient. Default: the home that the recipient has, or the
    /// app's default region. Another home moves the recipient.
    pub(crate) home: Option<Region>,
    /// BCP 47 language tag, such as `de-CH`.
    #[schema(max_length = 35)]
    pub(crate) locale: Option<String>,
    /// IANA time zone, such as `Europe/Zurich`.
    #[schema(max_length = 64)]
    pub(crate) timezone: Option<String>,
}

only_objects!(PutRecipient);

impl PutRecipient {
    /// Checks the rules that the types do not enforce.
    pub(crate) fn check(&self, homes: &Homes, app: &App) -> Result<(), Invalid> {
        self.check_words()?;
        let Some(home) = &self.home else {
            return Ok(());
        };
        if !homes.context.is_region(home) {
            return Err(Invalid::new("home", "must be a region of this mesh"));
        }
        match &app.residency {
            Some(residency) if home != residency => Err(Invalid::new(
                "home",
                format!("must be {residency}, where this app's data stays"),
            )),
            _ => Ok(()),
        }
    }

    fn check_words(&self) -> Result<(), Invalid> {
        let is_tag = |text: &String| {
            (1..=35).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if self.locale.as_ref().is_some_and(|locale| !is_tag(locale)) {
            return Err(Invalid::new("locale", "must be a BCP 47 language tag"));
        }
        self.timezone.as_deref().map_or(Ok(()), zone::check)
    }

    /// Stores the profile, and moves the recipient if it wants another home than `known`, where it lives now; `None` if it is
    /// not registered. A move is given up after `within`; a repetition continues it.
    pub(crate) async fn store(
        self,
        homes: &Homes,
        app: &App,
        key: &RecipientKey,
        known: Option<Region>,
        within: Duration,
    ) -> Result<Profile, NotRegistered> {
        let home = (self.home.or(known.clone())).unwrap_or_else(|| app.default_region.clone());
        let profile = Profile {
            home,
            locale: self.locale,
            timezone: self.timezone,
            updated_at: homes.context.clock.now(),
        };
        match known.filter(|known| *known != profile.home) {
            Some(from) => {
                let moving = homes.relocate(&from, key, profile.clone());
                let moved = tokio::time::timeout(within, moving).await;
                moved.map_err(|_| NotRegistered::Moving)??;
            }
            None => homes.settle(key, profile.clone()).await?,
        }
        Ok(profile)
    }
}

/// An address that keeps to its rules.
#[derive(Debug)]
pub(crate) struct NewAddress {
    address: Address,
    /// The secret that was made for a signed receiver, because the caller gave none.
    made: Option<Secret>,
}

/// An address that is stored.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) address: Address,
    /// The secret that was made for it.
    pub(crate) secret: Option<Secret>,
    /// Whether the recipient did not have it before.
    pub(crate) is_new: bool,
}

/// Whether it is certain that the recipient may have one more address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Certain,
    ToBeChecked,
}

impl NewAddress {
    /// The address that `wanted` describes, for an app.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub(crate) fn check(homes: &Homes, app: &App, mut wanted: Members) -> Result<Self, Invalid> {
        let made = wanted.needs_secret().then(signature::new_secret);
        wanted.secret = wanted.secret.or_else(|| made.clone());
        let (ids, now) = (homes.context.config.id_key(), homes.context.clock.now());
        let address = wanted.address(&ids, &app.id, now)?;
        Ok(Self { address, made })
    }

    pub(crate) fn id(&self) -> AddressId {
        self.address.id
    }

    /// Stores the address of `key`, who lives at `home`, and takes it from whoever had it before.
    pub(crate) async fn store(
        self,
        homes: &Homes,
        home: &Region,
        key: &RecipientKey,
        room: Room,
    ) -> Result<Registered, NotRegistered> {
        let Self { mut address, mut made } = self;
        if let Target::Webhook(receiver) = &mut address.target
            && let Some(known) = known_receiver(homes, home, key, address.id).await?
        {
            if known.secret.is_some() && made.take().is_some() {
                receiver.secret.clone_from(&known.secret);
            }
            *receiver = receiver.clone().in_place_of(known, address.registered_at);
        }
        let owners = homes.owners(&key.app, address.id).await?;
        address.registered_at = owners.next(address.registered_at);
        // The owner is written last: if something fails before that, a repetition starts again.
        let is_new = owners.owner() != Some(&key.recipient);
        let is_taken = !owners.former().is_empty() || (is_new && owners.owner().is_some());
        if is_new && room == Room::ToBeChecked {
            homes.check_addresses(home, key, &[address.id]).await?;
        }
        homes.write(home, key, Fact::Address(address.clone())).await?;
        if is_new {
            let owner = Some(key.recipient.clone());
            homes.put_owner(owners, owner, address.registered_at).await?;
        }
        // The gateways of other regions do this when they read the entry; here it is done before the answer. A repetition
        // does it again, because the first request may have failed in between.
        if is_taken {
            owners::settle(homes, &key.app, address.id).await?;
        }
        Ok(Registered {
            address,
            secret: made,
            is_new,
        })
    }
}

/// The receiver as it is registered, if it is.
async fn known_receiver(
    homes: &Homes,
    home: &Region,
    key: &RecipientKey,
    id: AddressId,
) -> Result<Option<Receiver>, NotRead> {
    let known = homes.read(home, key).await?;
    let found = known.addresses.into_iter().find(|(address, _)| address.id == id);
    Ok(found.and_then(|(address, _)| match address.target {
        Target::Webhook(receiver) => Some(receiver),
        _ => None,
    }))
}

/// Makes `key`, who lives at `home`, a member of a topic.
pub(crate) async fn join(
    homes: &Homes,
    home: &Region,
    key: &RecipientKey,
    topic: Topic,
) -> Result<Membership, NotStored> {
    let membership = Membership {
        since: homes.context.clock.now(),
        moved: None,
    };
    homes.write(home, key, Fact::Topic(topic, membership)).await?;
    Ok(membership)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locale_and_time_zone_are_checked() {
        let field = |locale: Option<&str>, timezone: Option<&str>| {
            let wanted = PutRecipient {
                home: None,
                locale: locale.map(Into::into),
                timezone: timezone.map(Into::into),
            };
            wanted.check_words().err().map(|invalid| invalid.field)
        };
        assert_eq!(field(Some("de-CH"), Some("Europe/Zurich")), None);
        assert_eq!(field(Some("de CH"), None), Some("locale".into()));
        assert_eq!(field(None, Some("Europe; drop")), Some("timezone".into()));
        assert_eq!(field(None, Some("")), Some("timezone".into()));
    }
}
