//! Lists, replays and deletes the dead letters of every region.
//!
//! The id of a letter is its region and its sequence in that region's stream. A replay or a deletion is recorded among
//! the receipts, so that the ledger equation still holds when the letter is gone.

use std::{fmt, str::FromStr, sync::Arc};

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use shared::{
    channel::Channel,
    id::{AddressId, AppId, EventId, JobId, NotificationId, RecipientId, Region},
    id_key::IdKey,
    job::Job,
    nats::{
        direct::{self, Found},
        envelope,
        publish::{self, NotStored},
        subject::{self, Lane, Tier},
        version,
    },
    proof::Proof,
    receipt::{Handled, HandledAs},
    recipient::RecipientKey,
};

use super::recorder::Recorder;
use crate::context::Context;

/// Letters that one request to a region fetches.
const LETTERS_PER_FETCH: usize = 256;

/// The dead letters of every region. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetters {
    pub(crate) context: Arc<Context>,
    pub(crate) recorder: Recorder,
}

/// The id of a letter: `<region>-<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LetterId {
    pub(crate) region: Region,
    pub(crate) sequence: u64,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.region, self.sequence)
    }
}

impl FromStr for LetterId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (region, sequence) = text.rsplit_once('-').ok_or(())?;
        Ok(Self {
            region: region.parse().map_err(|_| ())?,
            sequence: sequence.parse().map_err(|_| ())?,
        })
    }
}

/// A dead letter: a message that Peal gave up.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) id: LetterId,
    pub(crate) channel: Option<Channel>,
    pub(crate) reason: String,
    pub(crate) detail: Option<String>,
    pub(crate) event_id: Option<String>,
    pub(crate) notification: Option<NotificationId>,
    pub(crate) job: Option<JobId>,
    pub(crate) recipient: Option<RecipientId>,
    pub(crate) address: Option<AddressId>,
    pub(crate) attempt: u32,
    pub(crate) died_at: Timestamp,
    /// The size of the original message, if the payload was cut.
    pub(crate) original_bytes: Option<u64>,
    pub(crate) payload: Bytes,
    /// Of what a service published and a gateway refused: its place in the intake.
    pub(crate) intake_sequence: Option<u64>,
    /// The place of the notification in that message.
    pub(crate) index: Option<usize>,
    /// The lane of its app that it came from, if its subject can be read.
    lane: Option<Lane>,
    /// Its job, if it can be read.
    opened: Option<Job>,
    headers: HeaderMap,
}

/// Selects letters. An absent member selects all.
#[derive(Debug, Clone, Default)]
pub(crate) struct LetterFilter {
    pub(crate) channel: Option<Channel>,
    pub(crate) reason: Option<String>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

/// A page of letters, oldest first within each region.
#[derive(Debug, Default)]
pub(crate) struct LetterPage {
    pub(crate) letters: Vec<Letter>,
    /// The first letter of the next page; absent if this page is the last.
    pub(crate) next: Option<LetterId>,
    /// Regions that did not answer.
    pub(crate) unreachable: Vec<Region>,
}

/// Why a letter could not be replayed or deleted.
#[derive(Debug)]
pub(crate) enum Unhandled {
    /// There is no such letter, or it belongs to another app.
    NotFound,
    /// Its original subject names no lane of its app to replay it to.
    NoLane,
    /// It holds only the beginning of a message that was too large.
    Cut,
    /// Its region does not answer.
    Unreachable,
    /// The NATS server refuses it for lack of a permission.
    Forbidden,
    /// The stream did not confirm that it stored the replay.
    NotStored(NotStored),
}

impl From<direct::NoAnswer> for Unhandled {
    fn from(error: direct::NoAnswer) -> Self {
        match error {
            direct::NoAnswer::Silent => Self::Unreachable,
            direct::NoAnswer::Forbidden => Self::Forbidden,
        }
    }
}

impl LetterFilter {
    fn admits(&self, letter: &Letter) -> bool {
        self.channel.is_none_or(|channel| letter.channel == Some(channel))
            && self.reason.as_ref().is_none_or(|reason| letter.reason == *reason)
            && self.since.is_none_or(|since| letter.died_at >= since)
            && self.until.is_none_or(|until| letter.died_at < until)
    }
}

impl DeadLetters {
    /// At most `max` letters of `app` from `from` on. Regions that do not answer are skipped and listed in the page.
    pub(crate) async fn list(
        &self,
        app: &AppId,
        filter: &LetterFilter,
        from: Option<LetterId>,
        max: usize,
    ) -> LetterPage {
        let mut page = LetterPage::default();
        let (first, mut sequence) = match from {
            Some(from) => (Some(from.region), from.sequence),
            None => (None, 1),
        };
        let (regions, ids) = (self.context.regions(), self.context.config.id_key());
        let regions = regions
            .iter()
            .skip_while(|region| first.as_ref().is_some_and(|first| *region != first));
        for region in regions {
            loop {
                let filter_subject = subject::dead_of(region, app);
                let stores = &self.context.stores;
                let found = stores
                    .letters(region, &filter_subject, sequence, LETTERS_PER_FETCH)
                    .await;
                let Ok(found) = found else {
                    page.unreachable.push(region.clone());
                    break;
                };
                let is_last = found.len() < LETTERS_PER_FETCH;
                for found in found {
                    sequence = found.sequence + 1;
                    let letter = Letter::read(region, found, &ids);
                    if !filter.admits(&letter) {
                        continue;
                    }
                    if page.letters.len() == max {
                        page.next = Some(letter.id);
                        return page;
                    }
                    page.letters.push(letter);
                }
                if is_last {
                    break;
                }
            }
            sequence = 1;
        }
        page
    }

    /// One letter of `app`.
    pub(crate) async fn get(&self, app: &AppId, id: &LetterId) -> Result<Letter, Unhandled> {
        if !self.context.is_region(&id.region) {
            return Err(Unhandled::NotFound);
        }
        let filter = subject::dead_of(&id.region, app);
        let found = self.context.stores.letters(&id.region, &filter, id.sequence, 1).await?;
        found
            .into_iter()
            .find(|found| found.sequence == id.sequence)
            .map(|found| Letter::read(&id.region, found, &self.context.config.id_key()))
            .ok_or(Unhandled::NotFound)
    }

    /// Publishes the message of `letter` for another attempt, in this tier of its lane, and removes the letter.
    pub(crate) async fn replay(&self, app: &AppId, letter: Letter, tier: Tier) -> Result<(), Unhandled> {
        let lane = letter.replay_lane().ok_or(Unhandled::NoLane)?;
        if letter.original_bytes.is_some() {
            return Err(Unhandled::Cut);
        }
        let mut headers = HeaderMap::new();
        // An id of its own, so that no stream discards it as a duplicate of the original; two replays at once have the
        // same id. Nobody else knows it, so nobody can publish another message under it first.
        let id = self.context.config.id_key().derive("replay", &[&letter.id.to_string()]);
        headers.insert(NATS_MESSAGE_ID, format!("replay:{id}"));
        // The time to live starts again: a person wants it delivered now, however old it is.
        let at = self.context.clock.now();
        headers.insert(envelope::ACCEPTED_AT, at.as_millisecond().to_string());
        headers.insert(envelope::ATTEMPT, letter.attempt.saturating_add(1).to_string());
        headers.insert(envelope::DISCOUNTED, letter.attempt.to_string());
        for name in [
            version::VERSION,
            envelope::EVENT_ID,
            envelope::ORIGIN,
            envelope::ADDRESS,
            envelope::SLICE,
            envelope::STEP,
            "traceparent",
        ] {
            if let Some(value) = envelope::header(&letter.headers, name) {
                headers.insert(name, value);
            }
        }
        if let Some(proof) = self.renewed_proof(&letter, at) {
            headers.insert(envelope::PROOF, proof.to_string());
        }
        let subject = tier.subject(&lane.notify());
        publish::store(&self.context.js, subject, headers, letter.payload.clone())
            .await
            .map_err(Unhandled::NotStored)?;
        self.remove(app, &letter, HandledAs::Replayed).await
    }

    /// The proof of a letter's job for another life, which begins at `at`. Only for a letter that has a proof: a worker's key
    /// alone can store a letter, and must not get a proof for it.
    fn renewed_proof(&self, letter: &Letter, at: Timestamp) -> Option<Proof> {
        let job = letter.opened.as_ref()?;
        let claims = job.claims(&letter.payload);
        let prover = self.context.border.prover();
        let is_proven = prover.proves(job.proof.as_ref()?, &claims, job.accepted_at);
        is_proven.then(|| prover.work(&claims, at))
    }

    /// Deletes a letter permanently.
    pub(crate) async fn delete(&self, app: &AppId, letter: Letter) -> Result<(), Unhandled> {
        self.remove(app, &letter, HandledAs::Deleted).await
    }

    /// Deletes the letters of this region that hold anything about a recipient, but those of what was accepted after `until`. The
    /// server overwrites them. Returns how many there were.
    pub(crate) async fn erase(&self, key: &RecipientKey, until: Timestamp) -> Result<u64, Unhandled> {
        let Context {
            here, stores, config, ..
        } = &*self.context;
        let (filter, ids) = (subject::dead_of(here, &key.app), config.id_key());
        let (mut sequence, mut erased) = (1, 0);
        loop {
            let found = stores.letters(here, &filter, sequence, LETTERS_PER_FETCH).await?;
            let is_last = found.len() < LETTERS_PER_FETCH;
            for found in found {
                sequence = found.sequence + 1;
                let letter = Letter::read(here, found, &ids);
                if letter.is_about(&key.recipient) && letter.accepted_at() <= until {
                    self.delete(&key.app, letter).await?;
                    erased += 1;
                }
            }
            if is_last {
                return Ok(erased);
            }
        }
    }

    async fn remove(&self, app: &AppId, letter: &Letter, handled_as: HandledAs) -> Result<(), Unhandled> {
        self.recorder.handled(
            app.clone(),
            Handled {
                letter: letter.id.to_string(),
                handled_as,
                notification: letter.notification,
                job: letter.job,
                address: letter.address,
                attempt: letter.attempt,
                at: self.context.clock.now(),
            },
        );
        // A replay is already stored. Repeating it is safe, because the stream knows its message id.
        let deleting = self.context.stores.delete_letter(&letter.id.region, letter.id.sequence);
        Ok(deleting.await?)
    }
}

/// What a service published, as far as it names recipients.
#[derive(Deserialize)]
struct Published {
    to: Option<PublishedTo>,
    #[serde(default)]
    notifications: Vec<Self>,
}

#[derive(Deserialize)]
struct PublishedTo {
    #[serde(default)]
    recipients: Vec<String>,
}

impl Published {
    fn names(&self, recipient: &str) -> bool {
        let to = self.to.iter().flat_map(|to| &to.recipients);
        to.into_iter().any(|named| named == recipient) || self.notifications.iter().any(|each| each.names(recipient))
    }
}

/// What the body of a letter names; a letter that could not be delivered may have anything else.
#[derive(Deserialize)]
struct Named {
    event_id: Option<EventId>,
    recipient: Option<RecipientId>,
}

/// Whether this beginning of a job's body names the recipient.
fn begins_for(payload: &[u8], recipient: &RecipientId) -> bool {
    let name = serde_json::to_string(recipient).expect("strings always serialize");
    let member = format!("\"recipient\":{name}");
    payload.windows(member.len()).any(|window| window == member.as_bytes())
}

impl Letter {
    /// The lane to which a replay goes. The recipient lives in the letter's region; the original lane may be another
    /// region's, if the job was forwarded.
    pub(crate) fn replay_lane(&self) -> Option<Lane> {
        Some(Lane {
            region: self.id.region.clone(),
            ..self.lane.clone()?
        })
    }

    /// Whether it holds anything about `recipient`: its job is for it, or a service published it for it, perhaps among others.
    fn is_about(&self, recipient: &RecipientId) -> bool {
        self.recipient.as_ref() == Some(recipient)
            || serde_json::from_slice::<Published>(&self.payload)
                .is_ok_and(|published| published.names(recipient.as_str()))
            // Of a message that was too large, only the beginning is kept.
            || self.original_bytes.is_some_and(|_| begins_for(&self.payload, recipient))
    }

    /// When its job was accepted, or, if it cannot be read, when it was given up.
    fn accepted_at(&self) -> Timestamp {
        self.opened.as_ref().map_or(self.died_at, |job| job.accepted_at)
    }

    fn read(region: &Region, found: Found, ids: &IdKey) -> Self {
        let header = |name| envelope::header(&found.headers, name);
        // Whatever a header says, a letter belongs to the app in its own subject.
        let dead = subject::parse_dead(&found.subject);
        let lane = header(envelope::SUBJECT)
            .and_then(|subject| Lane::parse(subject).ok())
            .filter(|lane| dead.is_some_and(|dead| dead.app == lane.app && dead.channel == lane.channel.as_str()));
        // An unreadable message has only what its headers contain.
        let job = lane.as_ref().and_then(|lane| {
            let subject = lane.notify();
            envelope::open(&subject, &found.headers, &found.payload, found.stored_at, region, ids).ok()
        });
        let body: Option<Named> = serde_json::from_slice(&found.payload).ok();
        Self {
            id: LetterId {
                region: region.clone(),
                sequence: found.sequence,
            },
            channel: lane.as_ref().map(|lane| lane.channel),
            reason: header(envelope::REASON).unwrap_or("unknown").to_owned(),
            detail: header(envelope::DETAIL).map(str::to_owned),
            event_id: body
                .as_ref()
                .and_then(|body| Some(body.event_id.as_ref()?.to_string()))
                .or_else(|| header(envelope::EVENT_ID).map(str::to_owned)),
            notification: job.as_ref().map(|job| job.notification),
            job: job.as_ref().map(|job| job.id),
            recipient: body.and_then(|body| body.recipient),
            address: header(envelope::ADDRESS).and_then(|text| text.parse().ok()),
            attempt: header(envelope::ATTEMPT)
                .and_then(|text| text.parse().ok())
                .unwrap_or(1),
            died_at: found.stored_at,
            original_bytes: header(envelope::ORIGINAL_BYTES).and_then(|text| text.parse().ok()),
            intake_sequence: header(envelope::INTAKE_SEQUENCE).and_then(|text| text.parse().ok()),
            index: header(envelope::INDEX).and_then(|text| text.parse().ok()),
            lane,
            opened: job,
            headers: found.headers,
            payload: found.payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_letter_is_its_region_and_sequence() {
        let id: LetterId = "eu-west-1-42".parse().unwrap();
        assert_eq!((id.region.as_str(), id.sequence), ("eu-west-1", 42));
        assert_eq!(id.to_string(), "eu-west-1-42");
        for bad in ["", "eu", "eu-", "-1", "eu-x", "EU-1"] {
            assert!(bad.parse::<LetterId>().is_err(), "{bad}");
        }
    }
}
