//! Changes of preferences. A change is merged in the region where the recipient lives, against the revision that was read, so that
//! of two changes at the same time both count.
//!
//! What a gateway of another region wrote before goes there through its outbox, and must not arrive after a change that came later.
//! So that gateway first sends a fence the same way: the removal of an address that nobody has. Facts of one region arrive in
//! order, and the home merges once the fence is there.

use std::time::Duration;

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{
    border::Border,
    current,
    direct::{Found, NoAnswer},
    envelope,
    facts::{self, NotRead},
    publish::{self, NotStored},
    subject, topology, version,
};
use crate::{
    clock::Clock,
    digest::derive,
    id::{AddressId, AppId, RecipientId, Region},
    invalid::Invalid,
    preferences::{Preferences, PreferencesPatch},
    recipient::{Fact, FactName, Profile, RecipientKey},
    tolerant,
};

/// How often to try while others change the same preferences.
const ATTEMPTS_MAX: usize = 8;

/// How long the home waits for a fence.
const FENCE_WITHIN: Duration = Duration::from_millis(1500);

/// How far the clocks of two regions may be apart, and how long a question may take.
const ASKED_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// The pause before the home looks for a fence again.
const FENCE_POLL: Duration = Duration::from_millis(20);

/// A change of the preferences of one recipient.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Amendment {
    pub(super) app: AppId,
    recipient: RecipientId,
    pub(super) change: PreferencesPatch,
    /// When it was asked for.
    pub(super) at: Timestamp,
    /// What must have arrived before; `None` if it is asked for in the region of the recipient.
    after: Option<Fence>,
}

/// A mark behind everything that a region has written for another before.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Fence {
    /// The region that wrote it.
    region: Region,
    /// Its sequence in the outbox there.
    sequence: u64,
}

/// Why preferences were not changed.
#[derive(Debug, thiserror::Error)]
pub enum NotAmended {
    /// The change breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The home does not answer, or others change the same preferences all the time, or the recipient is moving.
    #[error(transparent)]
    Read(#[from] NotRead),
    /// The stream did not confirm that it stored something.
    #[error(transparent)]
    Write(#[from] NotStored),
}

impl From<NoAnswer> for NotAmended {
    fn from(error: NoAnswer) -> Self {
        Self::Read(error.into())
    }
}

impl Amendment {
    /// A change of the preferences of `key` that is asked for at `at`.
    pub fn new(key: &RecipientKey, change: PreferencesPatch, at: Timestamp) -> Self {
        let RecipientKey { app, recipient } = key.clone();
        Self {
            app,
            recipient,
            change,
            at,
            after: None,
        }
    }

    /// Whether it was asked for just now. One that somebody has kept, to repeat it, would undo what was changed since.
    pub(super) fn is_new(&self, clock: &Clock) -> bool {
        self.at.duration_since(clock.now()).abs() <= ASKED_WITHIN
    }

    pub(super) fn key(&self) -> RecipientKey {
        RecipientKey {
            app: self.app.clone(),
            recipient: self.recipient.clone(),
        }
    }

    /// Sends a fence from `here` to `home`, behind which this change is to be made.
    pub(super) async fn fence(
        &mut self,
        js: &jetstream::Context,
        border: &Border,
        here: &Region,
        home: &Region,
    ) -> Result<(), NotStored> {
        let (key, name) = fence(&self.app, here);
        let stored = facts::remove(js, border, here, home, &key, name).await?;
        self.after = Some(Fence {
            region: here.clone(),
            sequence: stored.sequence,
        });
        Ok(())
    }

    /// Merges this change with the preferences that this region, `here`, stores, and returns what is stored then.
    pub(super) async fn apply(
        self,
        js: &jetstream::Context,
        border: &Border,
        here: &Region,
    ) -> Result<Preferences, NotAmended> {
        if let Some(fence) = &self.after {
            let arriving = fence.arrival(js, border, &self.app);
            timeout(FENCE_WITHIN, arriving).await.map_err(|_| NoAnswer::Silent)??;
        }
        let key = self.key();
        let subject = subject::fact(&key, FactName::Preferences);
        for _ in 0..ATTEMPTS_MAX {
            if has_moved(js, border, here, &key).await? {
                break;
            }
            let found = current::last(js, topology::RECIPIENTS, &subject).await?;
            let revision = found.as_ref().map_or(0, |found| found.sequence);
            let known: Preferences = match stated(border, found) {
                Some(found) => tolerant::read(&found.payload).map_err(|_| NotRead::Unreadable)?,
                None => Preferences::default(),
            };
            let merged = known.merged(self.change.clone(), self.at)?;
            let mut headers = version::headers();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
            let fact = Fact::Preferences(merged.clone()).encode();
            match publish::store(js, subject.clone(), headers, fact.into()).await {
                Ok(_) => return Ok(merged),
                Err(NotStored::Refused) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(NoAnswer::Silent.into())
    }
}

/// The fact that was found, unless it is a removal or must not be believed.
fn stated(border: &Border, found: Option<Found>) -> Option<Found> {
    found.filter(|found| facts::admits(border, found) && !found.is_removal())
}

/// Whether the recipient lives elsewhere by now, where its preferences are.
async fn has_moved(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    key: &RecipientKey,
) -> Result<bool, NotAmended> {
    let filter = subject::fact(key, FactName::Profile);
    let found = current::last(js, topology::RECIPIENTS, &filter).await?;
    let Some(found) = stated(border, found) else {
        return Ok(false);
    };
    let profile: Profile = tolerant::read(&found.payload).map_err(|_| NotRead::Unreadable)?;
    Ok(profile.home != *here)
}

/// The key and the name of the fence that `region` sends for `app`: each replaces the one before.
fn fence(app: &AppId, region: &Region) -> (RecipientKey, FactName) {
    let key = RecipientKey {
        app: app.clone(),
        recipient: "peal:fence".parse().expect("it has no white space"),
    };
    let address = derive("fence", &[region.as_str()]);
    (key, FactName::Address(AddressId(address)))
}

impl Fence {
    /// Waits until this fence, or a later one of the same region, is stored here.
    async fn arrival(&self, js: &jetstream::Context, border: &Border, app: &AppId) -> Result<(), NoAnswer> {
        let (key, name) = fence(app, &self.region);
        let filter = subject::fact(&key, name);
        loop {
            let found = current::last(js, topology::RECIPIENTS, &filter).await?;
            let found = found.filter(|found| facts::admits(border, found));
            if found.and_then(|found| sourced(&found.headers)) >= Some(self.sequence) {
                return Ok(());
            }
            sleep(FENCE_POLL).await;
        }
    }
}

/// The sequence of a message in the stream from which it was copied: the second word of the header that the server adds.
fn sourced(headers: &HeaderMap) -> Option<u64> {
    envelope::header(headers, "Nats-Stream-Source")?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_in_an_outbox_is_read_from_the_header_of_the_server() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Stream-Source", text);
            sourced(&headers)
        };
        assert_eq!(
            read("OUTBOX:2T7T3tZ1 42 fact.eu.> $KV.recipients.> fact.eu.shop.ann.x"),
            Some(42)
        );
        for other in ["", "OUTBOX", "OUTBOX x > >"] {
            assert_eq!(read(other), None, "{other:?}");
        }
        assert_eq!(sourced(&HeaderMap::new()), None);
    }

    #[test]
    fn a_change_that_somebody_kept_is_not_made() {
        let asked_at = |seconds: i64| {
            let at = Timestamp::from_second(seconds).unwrap();
            let (key, _) = fence(&"shop".parse().unwrap(), &"eu".parse().unwrap());
            Amendment::new(&key, PreferencesPatch::default(), at)
        };
        let clock = Clock::from_fn(|| Timestamp::from_second(1000).unwrap());
        assert!(asked_at(1000).is_new(&clock) && asked_at(940).is_new(&clock) && asked_at(1060).is_new(&clock));
        assert!(!asked_at(939).is_new(&clock) && !asked_at(1061).is_new(&clock));
    }

    #[test]
    fn no_app_can_have_the_address_of_a_fence() {
        let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let app: AppId = "shop".parse().unwrap();
        let (key, name) = fence(&app, &eu);
        assert_ne!(name, fence(&app, &us).1);
        assert_eq!(key.app, app);
        // A removal of what does not exist changes nothing, even if an app has a recipient of that name.
        assert!(matches!(name, FactName::Address(_)));
    }
}
