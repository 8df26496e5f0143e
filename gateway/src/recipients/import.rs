//! One line of an import: everything that an app states about a recipient at once. It is checked as a whole before anything of it
//! is stored.

use std::{collections::HashMap, hash::Hash};

use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use serde::Deserialize;
use shared::{
    address::Members,
    app::App,
    id::{AddressId, RecipientId, Region, Topic},
    invalid::Invalid,
    nats::facts::NotRead,
    only_objects,
    preferences::Preferences,
    recipient::{Fact, MAX_ADDRESSES, MAX_TOPICS, RecipientKey},
};
use tokio::{sync::oneshot, time::Duration};
use utoipa::ToSchema;

use super::{
    homes::Homes,
    register::{self, NewAddress, NotRegistered, PutRecipient, Room},
};

/// Facts of one line that are stored at the same time.
const STORED_AT_ONCE: usize = 8;

/// A recipient with what is to be stored of it. What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct ImportLine {
    /// The app's id of the recipient. It is registered if it is unknown.
    recipient_id: RecipientId,
    /// Replaces its profile.
    recipient: Option<PutRecipient>,
    /// Addresses to add. A receiver that wants signed bodies needs its `secret`.
    addresses: Option<Vec<Members>>,
    /// Replaces its preferences.
    preferences: Option<Preferences>,
    /// Topics to join.
    topics: Option<Vec<Topic>>,
    /// Of a line of an export; an import does not use it.
    cursor: Option<String>,
}

only_objects!(ImportLine);

/// A line that keeps to its rules, as far as they can be told without asking the recipient's home.
#[derive(Debug)]
pub(crate) struct CheckedLine {
    key: RecipientKey,
    profile: Option<PutRecipient>,
    addresses: Vec<NewAddress>,
    preferences: Option<Preferences>,
    topics: Vec<Topic>,
}

impl ImportLine {
    /// # Errors
    /// The first member that breaks a rule.
    pub(crate) fn check(self, homes: &Homes, app: &App) -> Result<CheckedLine, Invalid> {
        drop(self.cursor);
        if let Some(profile) = &self.recipient {
            profile
                .check(homes, app)
                .map_err(|invalid| invalid.within("recipient"))?;
        }
        if let Some(preferences) = &self.preferences {
            preferences.check().map_err(|invalid| invalid.within("preferences"))?;
        }
        let (addresses, topics) = (self.addresses.unwrap_or_default(), self.topics.unwrap_or_default());
        at_most(MAX_ADDRESSES, addresses.len(), "addresses")?;
        at_most(MAX_TOPICS, topics.len(), "topics")?;
        let addresses = addresses.into_iter().enumerate().map(|(index, members)| {
            check_address(homes, app, members).map_err(|invalid| invalid.within(&format!("addresses[{index}]")))
        });
        Ok(CheckedLine {
            key: RecipientKey {
                app: app.id.clone(),
                recipient: self.recipient_id,
            },
            profile: self.recipient,
            addresses: addresses.collect::<Result<_, _>>()?,
            preferences: self.preferences,
            topics,
        })
    }
}

fn at_most(max: usize, given: usize, field: &str) -> Result<(), Invalid> {
    if given <= max {
        return Ok(());
    }
    Err(Invalid::new(field, format_args!("must be at most {max}")))
}

/// A result has no place for a secret that is made here, and nobody could check a signature without it.
fn check_address(homes: &Homes, app: &App, members: Members) -> Result<NewAddress, Invalid> {
    if members.needs_secret() {
        return Err(Invalid::new("secret", "must be given in an import"));
    }
    NewAddress::check(homes, app, members)
}

impl CheckedLine {
    /// What no other line may change at the same time.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        let addresses = self.addresses.iter().map(|address| Claim::Address(address.id()));
        let mut claims: Vec<_> = addresses.collect();
        claims.sort_unstable();
        claims.dedup();
        claims.push(Claim::Recipient(self.key.recipient.clone()));
        claims
    }

    /// Stores the line. Returns whether the recipient was unknown. Consent is stored before anything can be sent to a new address.
    /// A move is given up after `within`.
    pub(crate) async fn store(self, homes: &Homes, app: &App, within: Duration) -> Result<bool, NotRegistered> {
        let Self { key, addresses, .. } = &self;
        let known = homes.home(key).await?;
        if let Some(home) = &known {
            let new = unowned(homes, key, addresses).await?;
            homes.check_addresses(home, key, &new).await?;
            homes.check_topics(home, key, &self.topics).await?;
        }
        let is_new = known.is_none();
        let home = match (self.profile, known) {
            (None, Some(home)) => home,
            (profile, known) => {
                let profile = profile.unwrap_or_default();
                profile.store(homes, app, &self.key, known, within).await?.home
            }
        };
        let facts = Facts {
            homes,
            home: &home,
            key: &self.key,
        };
        facts.store(self.preferences, self.addresses, self.topics).await?;
        Ok(is_new)
    }
}

/// Those of `addresses` that the recipient does not own yet. One who has all of them need not be read.
async fn unowned(homes: &Homes, key: &RecipientKey, addresses: &[NewAddress]) -> Result<Vec<AddressId>, NotRead> {
    let owned = addresses.iter().map(async |address| {
        let owners = homes.owners(&key.app, address.id()).await?;
        Ok::<_, NotRead>((owners.owner() != Some(&key.recipient)).then(|| address.id()))
    });
    Ok(try_join_all(owned).await?.into_iter().flatten().collect())
}

/// Where the facts of a line go.
#[derive(Debug, Clone, Copy)]
struct Facts<'a> {
    homes: &'a Homes,
    home: &'a Region,
    key: &'a RecipientKey,
}

impl Facts<'_> {
    async fn store(
        self,
        preferences: Option<Preferences>,
        addresses: Vec<NewAddress>,
        topics: Vec<Topic>,
    ) -> Result<(), NotRegistered> {
        let Self { homes, home, key } = self;
        if let Some(preferences) = preferences {
            homes.write(home, key, Fact::Preferences(preferences)).await?;
        }
        // An address that is given twice is stored once; the last one counts, as with two requests.
        let distinct: HashMap<_, _> = addresses.into_iter().map(|address| (address.id(), address)).collect();
        stream::iter(distinct.into_values())
            .map(|address| address.store(homes, home, key, Room::Certain))
            .buffer_unordered(STORED_AT_ONCE)
            .try_for_each(async |_| Ok(()))
            .await?;
        stream::iter(topics)
            .map(|topic| register::join(homes, home, key, topic))
            .buffer_unordered(STORED_AT_ONCE)
            .try_for_each(async |_| Ok(()))
            .await?;
        Ok(())
    }
}

/// What a line changes, and other lines may change too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Claim {
    Recipient(RecipientId),
    Address(AddressId),
}

/// Lets lines that claim the same wait for each other, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    /// By claim, the last line that made it, and how it tells that it is done.
    last: HashMap<T, (u64, oneshot::Receiver<()>)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { last: HashMap::new() }
    }
}

/// The turn of one line. Those behind it continue when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    before: Vec<oneshot::Receiver<()>>,
    _behind: Vec<oneshot::Sender<()>>,
}

impl Turn {
    /// Waits until every line before this one that claims the same is done.
    pub(crate) async fn come(&mut self) {
        for before in self.before.drain(..) {
            // The other end is never used, only dropped.
            drop(before.await);
        }
    }
}

impl<T: Clone + Eq + Hash> Turns<T> {
    /// Lines up a line, which is numbered `line` and makes `claims`, each once.
    pub(crate) fn line_up(&mut self, line: u64, claims: &[T]) -> Turn {
        let (mut before, mut behind) = (Vec::new(), Vec::with_capacity(claims.len()));
        for claim in claims {
            let (sender, receiver) = oneshot::channel();
            behind.push(sender);
            if let Some((_, earlier)) = self.last.insert(claim.clone(), (line, receiver)) {
                before.push(earlier);
            }
        }
        Turn {
            before,
            _behind: behind,
        }
    }

    /// Forgets the claims of a line that is done.
    pub(crate) fn forget(&mut self, line: u64, claims: &[T]) {
        for claim in claims {
            if self.last.get(claim).is_some_and(|(last, _)| *last == line) {
                self.last.remove(claim);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn lines_that_claim_the_same_take_turns_in_order() {
        let mut turns = Turns::default();
        let mut first = turns.line_up(1, &["ann", "token"]);
        let mut second = turns.line_up(2, &["bob", "token"]);
        let mut third = turns.line_up(3, &["ann", "other"]);
        let mut fourth = turns.line_up(4, &["bob", "other"]);
        let mut apart = turns.line_up(5, &["eve"]);
        let comes = |turn: &mut Turn| turn.come().now_or_never().is_some();
        assert!(comes(&mut first) && comes(&mut apart));
        // Asking once more loses nothing.
        assert!(!second.before.is_empty() && !third.before.is_empty());
        drop(first);
        assert!(comes(&mut second) && comes(&mut third));
        drop(second);
        assert_eq!(fourth.before.len(), 2);
        drop(third);
        assert!(comes(&mut fourth));

        for (line, claims) in [(1, ["ann", "token"]), (2, ["bob", "token"]), (3, ["ann", "other"])] {
            turns.forget(line, &claims);
        }
        assert_eq!(turns.last.len(), 3, "those of the lines 4 and 5 remain");
        turns.forget(4, &["bob", "other"]);
        turns.forget(5, &["eve"]);
        assert!(turns.last.is_empty());
    }
}
