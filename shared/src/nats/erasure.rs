//! Erasures of recipients. The region that is asked records what is to be erased; every region reads the record, erases what
//! it holds, and records that it did: the proof. A region that is cut off does so afterwards.
//!
//! Both records are entries of the directory beside those of withdrawals, which workers wait for: they send nothing to an erased
//! recipient that was accepted before.

use async_nats::{header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    border::Border,
    current,
    direct::{Found, NoAnswer},
    publish::{self, NotStored},
    subject, topology,
};
use crate::{
    id::{AppId, ErasureId, RecipientId, Region},
    tolerant,
};

/// How often to try writing a record that other gateways of the region keep changing.
const MAX_WRITE_ATTEMPTS: usize = 8;

/// What an app asked to erase: what Peal knew at that time about a recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Erasure {
    /// The recipient.
    pub recipient: RecipientId,
    /// Up to when. What was registered later is another registration, and stays.
    pub at: Timestamp,
}

/// What one region has erased, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Facts: profile, preferences, topics, addresses with their tokens.
    #[serde(default)]
    pub facts: u64,
    /// Dead letters, with the content that they held.
    #[serde(default)]
    pub dead_letters: u64,
}

impl Erased {
    /// Whether nothing was erased.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }

    fn and(self, other: Self) -> Self {
        Self {
            facts: self.facts + other.facts,
            dead_letters: self.dead_letters + other.dead_letters,
        }
    }
}

/// The record of a region that it has erased what it held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// When it last erased anything, or found that there was nothing.
    pub at: Timestamp,
    /// What it erased.
    #[serde(flatten)]
    pub erased: Erased,
}

/// Everything that is known about one erasure.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// What was asked for.
    pub erasure: Erasure,
    /// The regions that are done.
    pub done: Vec<(Region, Proof)>,
}

/// Asks every region to erase. Workers of `here` send nothing to the recipient that was accepted before and that they pull after
/// this has returned.
///
/// # Errors
/// When the stream did not acknowledge the record and its mark.
pub async fn ask(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    id: ErasureId,
    erasure: &Erasure,
) -> Result<(), NotStored> {
    let value = serde_json::to_vec(erasure).expect("erasures always serialize");
    // In this order, as withdrawals: whoever has read the mark has read the record.
    for subject in [subject::erasure(here, app, id), subject::directory_cancelled_mark(here)] {
        let headers = border.headers(&subject, &value);
        publish::store(js, subject, headers, value.clone().into()).await?;
    }
    Ok(())
}

/// Records what the region `here` has erased, in addition to what it recorded before.
///
/// # Errors
/// When the stream did not acknowledge the record; [`NotStored::Refused`] if other gateways kept changing it.
pub async fn prove(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    (app, id): (&AppId, ErasureId),
    erased: Erased,
    at: Timestamp,
) -> Result<(), NotStored> {
    let subject = subject::erased(here, app, id);
    for _ in 0..MAX_WRITE_ATTEMPTS {
        let known = current::last(js, topology::DIRECTORY, &subject).await;
        let known = known.map_err(|error| match error {
            NoAnswer::Silent => NotStored::NoAnswer,
            NoAnswer::Forbidden => NotStored::Forbidden,
        })?;
        let before = known.as_ref().and_then(read::<Proof>);
        if before.is_some() && erased.is_nothing() {
            return Ok(());
        }
        let proof = Proof {
            at,
            erased: before.map_or(erased, |before| before.erased.and(erased)),
        };
        let value = serde_json::to_vec(&proof).expect("proofs always serialize");
        let mut headers = border.headers(&subject, &value);
        let sequence = known.map_or(0, |known| known.sequence);
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.to_string());
        match publish::store(js, subject.clone(), headers, value.into()).await {
            Ok(_) => return Ok(()),
            Err(NotStored::Refused) => {}
            Err(error) => return Err(error),
        }
    }
    Err(NotStored::Refused)
}

/// What is known in this region about an erasure of `app`; `None` if there is no such erasure.
///
/// # Errors
/// When this region's directory does not answer.
pub async fn look_up(
    js: &jetstream::Context,
    border: &Border,
    app: &AppId,
    id: ErasureId,
) -> Result<Option<Known>, NoAnswer> {
    let filters = [subject::erasure_anywhere(app, id), subject::erased_anywhere(app, id)];
    let mut found = current::last_of(js, topology::DIRECTORY, &filters).await?;
    found.retain(|found| border.admits_found(found));
    let asked = |found: &Found| subject::parse_erasure(&found.subject).is_some_and(|named| named.is_request);
    let Some(erasure) = found.iter().filter(|found| asked(found)).find_map(read) else {
        return Ok(None);
    };
    let done = found.iter().filter(|found| !asked(found)).filter_map(|found| {
        let named = subject::parse_erasure(&found.subject)?;
        Some((named.region, read(found)?))
    });
    Ok(Some(Known {
        erasure,
        done: done.collect(),
    }))
}

fn read<T: DeserializeOwned>(found: &Found) -> Option<T> {
    let read = tolerant::read(&found.payload);
    read.inspect_err(|error| tracing::error!(%error, "a record of an erasure cannot be read"))
        .ok()
}
