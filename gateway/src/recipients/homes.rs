//! Reads and writes the facts of recipients at their homes, and moves recipients between homes.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use shared::{
    address::Address,
    id::{AddressId, AppId, RecipientId, Region, Topic},
    invalid::Invalid,
    nats::{
        directory::Owners,
        facts,
        preferences::{Amendment, NotAmended},
        publish::NotStored,
    },
    preferences::{Preferences, PreferencesPatch},
    recipient::{Fact, FactName, MAX_ADDRESSES, MAX_TOPICS, Membership, Profile, Recipient, RecipientKey},
};

use crate::context::Context;

/// How often to check whether a profile has arrived at a home.
const ARRIVAL_POLL: Duration = Duration::from_millis(20);

/// The usual upper bound of how long a move takes. The former home remains responsible for broadcasts accepted until
/// then. It forwards them once it knows of the move, so that the new home can detect a repetition.
const MOVE_DURATION: SignedDuration = SignedDuration::from_secs(5);

/// How long to wait for a home before a limit is left unchecked.
const COUNTED_WITHIN: Duration = Duration::from_secs(1);

/// The most facts of a recipient that are removed at the same time.
const REMOVALS_AT_ONCE: usize = 32;

/// The memberships of a recipient by topic.
pub(crate) type Topics = BTreeMap<Topic, Membership>;

/// Why a change of a recipient's facts was not made, or only in part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotChanged {
    /// A home or the directory does not answer.
    #[error(transparent)]
    Read(#[from] facts::NotRead),
    /// The stream did not confirm that it stored a fact.
    #[error(transparent)]
    Write(#[from] NotStored),
}

fn at_most(max: usize, wanted: usize, field: &'static str) -> Result<(), Invalid> {
    if wanted <= max {
        return Ok(());
    }
    Err(Invalid::new(field, format!("must be at most {max} for one recipient")))
}

/// What is to be counted. `None` if the home does not answer: a device can also be registered while its home is cut off.
pub(super) async fn counted<T>(reading: impl Future<Output = Result<T, facts::NotRead>>) -> Option<T> {
    tokio::time::timeout(COUNTED_WITHIN, reading).await.ok()?.ok()
}

fn facts_of(recipient: &Recipient) -> Vec<Fact> {
    let addresses = recipient.addresses.iter();
    let mut facts: Vec<Fact> = addresses.map(|(address, _)| Fact::Address(address.clone())).collect();
    if recipient.preferences != Preferences::default() {
        facts.push(Fact::Preferences(recipient.preferences.clone()));
    }
    facts
}

/// Reads and writes facts at the homes of recipients. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Homes {
    pub(crate) context: Arc<Context>,
}

impl Homes {
    /// The home of `key`; `None` if the recipient has no registered home. Misses nothing that another gateway of the region
    /// answered before.
    pub(crate) async fn home(&self, key: &RecipientKey) -> Result<Option<Region>, facts::NotRead> {
        let Context {
            directory, js, here, ..
        } = &*self.context;
        Ok(directory.current_home(js, here, key).await?)
    }

    /// As [`Self::home`]; `default` if the recipient has no registered home.
    pub(crate) async fn home_or(&self, key: &RecipientKey, default: &Region) -> Result<Region, facts::NotRead> {
        Ok(self.home(key).await?.unwrap_or_else(|| default.clone()))
    }

    /// The recipient's facts at its home, without its topics.
    pub(crate) async fn read(&self, home: &Region, key: &RecipientKey) -> Result<Recipient, facts::NotRead> {
        facts::read_at(&self.context.stores, home, key).await
    }

    /// The recipient's topics at its home.
    pub(crate) async fn topics(&self, home: &Region, key: &RecipientKey) -> Result<Topics, facts::NotRead> {
        facts::topics_at(&self.context.stores, home, key).await
    }

    /// Removes a fact from the recipient's home.
    pub(crate) async fn remove(&self, home: &Region, key: &RecipientKey, name: FactName) -> Result<(), NotStored> {
        facts::remove(
            &self.context.js,
            &self.context.border,
            &self.context.here,
            home,
            key,
            name,
        )
        .await
        .map(|_| ())
    }

    /// Stores `fact` in the recipient's home.
    pub(crate) async fn write(&self, home: &Region, key: &RecipientKey, fact: Fact) -> Result<(), NotStored> {
        facts::write(
            &self.context.js,
            &self.context.border,
            &self.context.here,
            home,
            key,
            &fact,
        )
        .await
        .map(|_| ())
    }

    /// Changes the preferences of a recipient at its home, and returns them as they are then. Safe to repeat.
    pub(crate) async fn amend(
        &self,
        home: &Region,
        key: &RecipientKey,
        change: PreferencesPatch,
    ) -> Result<Preferences, NotAmended> {
        let amendment = Amendment::new(key, change, self.context.clock.now());
        self.context.stores.amend(home, amendment).await
    }

    /// Stores a profile and then registers the home in the directory, unless it is known there: in this order, so that no
    /// job is published to a home that does not know the recipient. Read the home first.
    pub(crate) async fn settle(&self, key: &RecipientKey, profile: Profile) -> Result<(), NotStored> {
        let (home, at) = (profile.home.clone(), profile.updated_at);
        self.write(&home, key, Fact::Profile(profile)).await?;
        if self.context.directory.home(key).as_ref() != Some(&home) {
            self.context
                .directory
                .put_home(&self.context.js, &self.context.here, key, &home, at)
                .await?;
        }
        Ok(())
    }

    /// Moves a recipient from `from` to the home that `profile` names, with all facts. Both regions must answer. Safe
    /// to repeat after any interruption. As soon as the former home has the new profile, its workers forward the jobs
    /// that still arrive there.
    pub(crate) async fn relocate(&self, from: &Region, key: &RecipientKey, profile: Profile) -> Result<(), NotChanged> {
        let to = profile.home.clone();
        let moved = self
            .context
            .clock
            .now()
            .checked_add(MOVE_DURATION)
            .unwrap_or(Timestamp::MAX);
        let moved_topic = |topic: &Topic, membership: &Membership| {
            let moved = Some(moved);
            Fact::Topic(topic.clone(), Membership { moved, ..*membership })
        };
        let before = self.read(from, key).await?;
        let topics_before = self.topics(from, key).await?;
        let topics = topics_before.iter();
        let topics = topics.map(|(topic, membership)| moved_topic(topic, membership));
        for fact in facts_of(&before).into_iter().chain(topics) {
            self.write(&to, key, fact).await?;
        }
        self.write(&to, key, Fact::Profile(profile.clone())).await?;
        // Facts arrive in order: when the profile has arrived, the others have too.
        self.await_profile(&to, key, &profile).await?;
        // The profile that remains at the former home only names the new home.
        let forwarding = Profile {
            locale: None,
            timezone: None,
            ..profile.clone()
        };
        self.write(from, key, Fact::Profile(forwarding.clone())).await?;
        // Here too: when this profile has arrived, facts that were written before it have too.
        let after = self.await_profile(from, key, &forwarding).await?;
        let is_new = |(_, revision): &&(Address, u64)| !before.addresses.iter().any(|(_, known)| known == revision);
        for (address, _) in after.addresses.iter().filter(is_new) {
            self.write(&to, key, Fact::Address(address.clone())).await?;
        }
        if after.preferences != before.preferences {
            self.write(&to, key, Fact::Preferences(after.preferences)).await?;
        }
        let topics_after = self.topics(from, key).await?;
        for (topic, membership) in &topics_after {
            if topics_before.get(topic) != Some(membership) {
                self.write(&to, key, moved_topic(topic, membership)).await?;
            }
        }
        for topic in topics_before.keys().filter(|topic| !topics_after.contains_key(topic)) {
            self.remove(&to, key, FactName::Topic(topic.clone())).await?;
        }
        let at = profile.updated_at;
        self.context
            .directory
            .put_home(&self.context.js, &self.context.here, key, &to, at)
            .await?;
        for (address, _) in &after.addresses {
            self.remove(from, key, FactName::Address(address.id)).await?;
        }
        self.remove(from, key, FactName::Preferences).await?;
        for topic in topics_after.into_keys() {
            let topic = (FactName::Topic(topic), moved);
            facts::take_along(
                &self.context.js,
                &self.context.border,
                &self.context.here,
                from,
                key,
                topic,
            )
            .await?;
        }
        Ok(())
    }

    /// Waits until `profile` has arrived at `home`, and returns the facts there.
    async fn await_profile(
        &self,
        home: &Region,
        key: &RecipientKey,
        profile: &Profile,
    ) -> Result<Recipient, facts::NotRead> {
        loop {
            let known = self.read(home, key).await?;
            if known.profile.as_ref() == Some(profile) {
                return Ok(known);
            }
            tokio::time::sleep(ARRIVAL_POLL).await;
        }
    }

    /// Removes every fact of a recipient, the ownership of its addresses and finally its home from the directory.
    /// `known` and `topics` are the facts that its home has. Safe to repeat after any failure: the profile is the last
    /// fact to be removed, so a repetition finds the recipient.
    pub(crate) async fn forget(
        &self,
        home: &Region,
        key: &RecipientKey,
        known: &Recipient,
        topics: Topics,
    ) -> Result<(), NotChanged> {
        let at = self.context.clock.now();
        stream::iter(topics.into_keys().map(Ok))
            .try_for_each_concurrent(REMOVALS_AT_ONCE, |topic| self.remove(home, key, FactName::Topic(topic)))
            .await?;
        self.remove_addresses(home, key, known).await?;
        for name in [FactName::Preferences, FactName::Profile] {
            self.remove(home, key, name).await?;
        }
        let Context {
            directory, js, here, ..
        } = &*self.context;
        Ok(directory.forget_home(js, here, key, at).await?)
    }

    /// Removes every address in `known`, as [`Self::remove_address`] does.
    pub(crate) async fn remove_addresses(
        &self,
        home: &Region,
        key: &RecipientKey,
        known: &Recipient,
    ) -> Result<(), NotChanged> {
        stream::iter(known.addresses.iter().map(Ok))
            .try_for_each_concurrent(REMOVALS_AT_ONCE, |(address, _)| {
                self.remove_address(home, key, address.id)
            })
            .await
    }

    /// Checks that a registered recipient may have `wanted` besides the addresses at its home.
    pub(crate) async fn check_addresses(
        &self,
        home: &Region,
        key: &RecipientKey,
        wanted: &[AddressId],
    ) -> Result<(), Invalid> {
        let wanted: HashSet<_> = wanted.iter().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let Some(known) = counted(self.read(home, key)).await else {
            return Ok(());
        };
        let refreshed = known.addresses.iter().filter(|(known, _)| wanted.contains(&known.id));
        match wanted.len() - refreshed.count() {
            0 => Ok(()),
            new => at_most(MAX_ADDRESSES, known.addresses.len() + new, "addresses"),
        }
    }

    /// Checks that a registered recipient may be a member of `wanted` besides its topics at its home.
    pub(crate) async fn check_topics(
        &self,
        home: &Region,
        key: &RecipientKey,
        wanted: &[Topic],
    ) -> Result<(), Invalid> {
        let wanted: HashSet<_> = wanted.iter().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let Some(known) = counted(self.topics(home, key)).await else {
            return Ok(());
        };
        match wanted.iter().filter(|topic| !known.contains_key(**topic)).count() {
            0 => Ok(()),
            new => at_most(MAX_TOPICS, known.len() + new, "topics"),
        }
    }

    /// Removes an address and, unless another recipient has registered it since, its owner from the directory.
    pub(crate) async fn remove_address(
        &self,
        home: &Region,
        key: &RecipientKey,
        address: AddressId,
    ) -> Result<(), NotChanged> {
        self.remove(home, key, FactName::Address(address)).await?;
        let owners = self.owners(&key.app, address).await?;
        if owners.owner() == Some(&key.recipient) {
            let at = owners.next(self.context.clock.now());
            self.put_owner(owners, None, at).await?;
        }
        Ok(())
    }

    /// What every region knows about the owners of an address. Misses nothing that another gateway of this region answered
    /// before.
    pub(crate) async fn owners(&self, app: &AppId, address: AddressId) -> Result<Owners, facts::NotRead> {
        let Context {
            directory, js, here, ..
        } = &*self.context;
        Ok(directory.current_owners(js, here, app, address).await?)
    }

    /// Writes the owner of the address of `owners` as of `at` to the directory; `None` if nobody owns it. Every region removes
    /// the address from the former owner as soon as it reads the entry.
    pub(crate) async fn put_owner(
        &self,
        owners: Owners,
        owner: Option<RecipientId>,
        at: Timestamp,
    ) -> Result<(), NotStored> {
        self.context
            .directory
            .put_owner(&self.context.js, owners, owner, at)
            .await
    }

    /// The home of `key`. Registers a recipient without a home at `default`.
    pub(crate) async fn ensure_home(&self, key: &RecipientKey, default: &Region) -> Result<Region, NotChanged> {
        if let Some(home) = self.home(key).await? {
            return Ok(home);
        }
        let home = default.clone();
        let profile = Profile {
            home: home.clone(),
            locale: None,
            timezone: None,
            updated_at: self.context.clock.now(),
        };
        self.settle(key, profile).await?;
        Ok(home)
    }
}
