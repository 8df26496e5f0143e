//! Erases recipients. Every region reads what any region was asked to erase, erases what it holds, and records that it did.

use std::time::Duration;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use shared::{
    id::{AppId, ErasureId, Region},
    nats::{
        direct::{Found, NoAnswer},
        erasure::{self, Erased, Erasure},
        facts,
        follow::{self, Entry},
        planned,
        publish::NotStored,
        subject, topology,
    },
    recipient::{Fact, FactName, RecipientKey},
};
use tokio::sync::mpsc;

use super::homes::{self, Homes, NotChanged};
use crate::records::dead_letters::{DeadLetters, Unhandled};

/// Erasures in progress at the same time.
const ERASED_AT_ONCE: usize = 4;

/// Erases again after each of these delays, whenever a region begins or ends an erasure: a fact that was written in another region
/// travels on another stream, and what was being sent may become a dead letter.
const ERASE_AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(15), Duration::from_mins(10)];

/// How often to try while others change the same facts.
const MAX_ERASE_ATTEMPTS: usize = 8;

/// An erasure that failed is tried again after this time.
const RETRY_FAILED_AFTER: Duration = Duration::from_secs(2);

/// A gateway that starts erases again what a region began or ended to erase within this time: another may have ended before it did.
const ERASE_AGAIN_SINCE: Duration = Duration::from_hours(1);

/// Why an erasure is not complete in this region.
#[derive(Debug, thiserror::Error)]
enum NotErased {
    #[error(transparent)]
    NotChanged(#[from] NotChanged),
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error("the dead letters cannot be read or removed")]
    Letters,
    #[error("others keep changing the facts")]
    Changing,
}

impl From<facts::NotRead> for NotErased {
    fn from(error: facts::NotRead) -> Self {
        NotChanged::from(error).into()
    }
}

impl From<NotStored> for NotErased {
    fn from(error: NotStored) -> Self {
        NotChanged::from(error).into()
    }
}

impl From<Unhandled> for NotErased {
    fn from(_: Unhandled) -> Self {
        Self::Letters
    }
}

/// An erasure that this region has to do, or to do again.
#[derive(Debug, Clone)]
struct Due {
    app: AppId,
    id: ErasureId,
    /// How many more times after this time; `None` if it is only to be done if it was not done yet.
    repeats: Option<usize>,
}

/// Asks every region to erase `key`, up to this moment.
pub(crate) async fn ask(
    homes: &Homes,
    key: &RecipientKey,
    default: &Region,
) -> Result<(ErasureId, Erasure), NotChanged> {
    let context = &homes.context;
    let home = homes.home_or(key, default).await?;
    let mut at = context.clock.now();
    // What is registered now was registered before, whatever the clocks of two gateways say.
    if let Some(known) = homes::counted(homes.read(&home, key)).await {
        let addresses = known.addresses.iter().map(|(address, _)| address.registered_at);
        at = addresses
            .chain(known.profile.map(|profile| profile.updated_at))
            .fold(at, Timestamp::max);
    }
    let recipient = key.recipient.clone();
    let (id, erasure) = (ErasureId::fresh(), Erasure { recipient, at });
    erasure::ask(&context.js, &context.border, &context.here, &key.app, id, &erasure).await?;
    Ok((id, erasure))
}

/// Follows the directory and erases until the process ends.
pub(crate) async fn run(homes: Homes, letters: DeadLetters) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let context = homes.context.clone();
    context.border.ready().await;
    let learn = |entry: &Entry| {
        let Some(named) = subject::parse_erasure(&entry.subject).filter(|_| context.border.admits_entry(entry)) else {
            return;
        };
        let is_new = context.clock.since(entry.stored_at) < ERASE_AGAIN_SINCE;
        // What this region itself has recorded brings nothing new.
        if named.is_request || (is_new && named.region != context.here) {
            let repeats = is_new.then_some(ERASE_AGAIN_AFTER.len());
            enqueue(
                &sender,
                Due {
                    app: named.app,
                    id: named.id,
                    repeats,
                },
            );
        }
    };
    let following = follow::follow_forever(&context.js, topology::DIRECTORY, subject::ERASURES_FILTER, learn, || {});
    let erasing = stream::poll_fn(|context| receiver.poll_recv(context)).for_each_concurrent(ERASED_AT_ONCE, |due| {
        erase_and_repeat(homes.clone(), letters.clone(), due, sender.clone())
    });
    tokio::join!(following, erasing);
}

async fn erase_and_repeat(homes: Homes, letters: DeadLetters, mut due: Due, sender: mpsc::UnboundedSender<Due>) {
    let delay = match erase(&homes, &letters, &due).await {
        Ok(()) => match due.repeats {
            None | Some(0) => return,
            Some(repeats) => {
                due.repeats = Some(repeats - 1);
                ERASE_AGAIN_AFTER[ERASE_AGAIN_AFTER.len() - repeats]
            }
        },
        Err(error) => {
            tracing::warn!(erasure = %due.id, %error, "an erasure is not complete here; trying again");
            RETRY_FAILED_AFTER
        }
    };
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        enqueue(&sender, due);
    });
}

fn enqueue(sender: &mpsc::UnboundedSender<Due>, due: Due) {
    // The receiver is dropped only when the process is finishing.
    drop(sender.send(due));
}

/// Erases once what this region holds, and records it.
async fn erase(homes: &Homes, letters: &DeadLetters, due: &Due) -> Result<(), NotErased> {
    let context = &homes.context;
    let Due { app, id, repeats } = due;
    let Some(known) = erasure::look_up(&context.js, &context.border, app, *id).await? else {
        return Ok(());
    };
    let is_done = known.done.iter().any(|(region, _)| *region == context.here);
    if is_done && repeats.is_none() {
        return Ok(());
    }
    let Erasure { recipient, at } = known.erasure;
    let key = RecipientKey {
        app: app.clone(),
        recipient,
    };
    let erased = Erased {
        facts: erase_facts(homes, &key, at).await?,
        dead_letters: letters.erase(&key, at).await?,
    };
    let now = context.clock.now();
    let planned = planned::erase(&context.js, &key, at, now).await?;
    erasure::prove(&context.js, &context.border, &context.here, (app, *id), erased, now).await?;
    if !is_done {
        tracing::info!(erasure = %id, facts = erased.facts, letters = erased.dead_letters, planned, "erased a recipient");
    }
    Ok(())
}

/// Erases the facts of `key` that were written until `at`. Returns how many were erased.
async fn erase_facts(homes: &Homes, key: &RecipientKey, at: Timestamp) -> Result<u64, NotErased> {
    let mut all = 0;
    for _ in 0..MAX_ERASE_ATTEMPTS {
        let (erased, rest) = erase_facts_once(homes, key, at).await?;
        all += erased;
        match rest {
            Rest::None => {
                forget_home(homes, key).await?;
                return Ok(all);
            }
            Rest::Later => return Ok(all),
            // It was written again, or another gateway has removed it.
            Rest::Changed => {}
        }
    }
    Err(NotErased::Changing)
}

/// What is left of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rest {
    None,
    /// What was registered later.
    Later,
    /// What others have changed at the same time.
    Changed,
}

/// Consent is removed after the addresses, so that nothing can be sent without it.
async fn erase_facts_once(homes: &Homes, key: &RecipientKey, at: Timestamp) -> Result<(u64, Rest), NotErased> {
    let context = &homes.context;
    let found = context
        .stores
        .facts(&context.here, &[subject::all_facts_of(key)])
        .await?;
    let mut stored: Vec<Stored> = found.iter().filter_map(Stored::read).collect();
    stored.sort_by_key(Stored::turn);
    let stays = stored
        .iter()
        .any(|fact| fact.name == FactName::Profile && fact.since > at);
    let (mut erased, mut rest) = (0, Rest::None);
    for fact in stored {
        // Preferences do not say when they were stated: they belong to the registration that there is.
        let is_later = match fact.name {
            FactName::Preferences => stays,
            FactName::Profile | FactName::Address(_) | FactName::Topic(_) => fact.since > at,
        };
        if is_later {
            rest = rest.max(Rest::Later);
            continue;
        }
        match facts::remove_unchanged(&context.js, key, fact.name.clone(), fact.revision).await {
            Ok(_) => erased += 1,
            Err(NotStored::Refused) => rest = Rest::Changed,
            Err(error) => return Err(error.into()),
        }
        if let FactName::Address(address) = fact.name {
            let owners = homes.owners(&key.app, address).await?;
            if owners.owner() == Some(&key.recipient) && owners.since().is_some_and(|since| since <= at) {
                let at = owners.next(context.clock.now());
                homes.put_owner(owners, None, at).await?;
            }
        }
    }
    Ok((erased, rest))
}

/// Removes the home of a recipient of whom nothing is known here any more, if it lived here.
async fn forget_home(homes: &Homes, key: &RecipientKey) -> Result<(), NotErased> {
    let context = &homes.context;
    let (js, here, directory) = (&context.js, &context.here, &context.directory);
    if homes.home(key).await?.as_ref() != Some(here) {
        return Ok(());
    }
    directory.forget_home(js, here, key, context.clock.now()).await?;
    // Whoever registered the recipient meanwhile found its home in the directory, and did not write it.
    if let Some(profile) = homes.read(here, key).await?.profile {
        directory
            .put_home(js, here, key, &profile.home, profile.updated_at)
            .await?;
    }
    Ok(())
}

/// A fact as it is stored here.
#[derive(Debug)]
struct Stored {
    name: FactName,
    /// Since when the app states it.
    since: Timestamp,
    revision: u64,
}

impl Stored {
    fn read(found: &Found) -> Option<Self> {
        if found.is_removal() {
            return None;
        }
        let (_, name) = subject::fact_key_of(&found.subject).and_then(subject::parse_fact_key)?;
        let since = match Fact::decode(name.clone(), &found.payload) {
            Ok(Fact::Profile(profile)) => profile.updated_at,
            Ok(Fact::Address(address)) => address.registered_at,
            Ok(Fact::Topic(_, membership)) => membership.since,
            // One of a newer version says when as well, but not to this one.
            Ok(Fact::Preferences(_)) | Err(_) => found.stored_at,
        };
        Some(Self {
            name,
            since,
            revision: found.sequence,
        })
    }

    /// The order of removal.
    const fn turn(&self) -> u8 {
        match self.name {
            FactName::Address(_) => 0,
            FactName::Topic(_) => 1,
            FactName::Preferences => 2,
            FactName::Profile => 3,
        }
    }
}
