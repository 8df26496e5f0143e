//! Splitting a broadcast into slices, once.
//!
//! The note of the split is stored with the slices and stays as long as work may, so a broadcast that comes again, whenever
//! that is, finds it. The expectation that there is none makes the server refuse a second split as a whole.

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use bytes::Bytes;

use super::{
    batch::{self, MOST_MESSAGES, Message},
    direct, envelope,
    publish::NotStored,
    subject::{self, Lane},
    topology::{self, Domain},
};
use crate::{
    broadcast::{Broadcast, Slice},
    receipt::Split,
};

/// Most slices of a broadcast in one region: they are stored at once, together with the note of them.
pub const MOST_SLICES: usize = MOST_MESSAGES - 1;

/// Stores `slices` of `broadcast`, which came with `headers` and `payload`, in the region's own lane `lane`, unless it was
/// split meanwhile.
///
/// # Errors
/// When it is not known to be stored; [`NotStored::Refused`] if somebody else was faster.
pub async fn split(
    js: &jetstream::Context,
    broadcast: &Broadcast,
    lane: &Lane,
    headers: &HeaderMap,
    payload: &Bytes,
    slices: &[Slice],
) -> Result<Split, NotStored> {
    let split = Split {
        slices: u32::try_from(slices.len()).map_err(|_| NotStored::TooLarge)?,
        members: slices.iter().map(|slice| u64::from(slice.members)).sum(),
        accepted_at: broadcast.accepted_at,
    };
    let mut note = HeaderMap::new();
    note.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    let note = Message {
        subject: subject::split(broadcast.id),
        headers: note,
        payload: serde_json::to_vec(&split).expect("splits always serialize").into(),
    };
    let mut kept = envelope::kept(headers);
    kept.insert(envelope::EVENT_ID, broadcast.event.as_str());
    kept.insert(
        envelope::ACCEPTED_AT,
        broadcast.accepted_at.as_millisecond().to_string(),
    );
    kept.insert(envelope::ORIGIN, broadcast.origin.as_str());
    let slices = slices.iter().map(|slice| {
        let mut headers = kept.clone();
        headers.insert(envelope::RANGE, slice.to_string());
        Message {
            subject: lane.slice(),
            headers,
            payload: payload.clone(),
        }
    });
    batch::store_together(js, [note].into_iter().chain(slices).collect()).await?;
    Ok(split)
}

/// How `broadcast` was split before, if it was.
///
/// # Errors
/// When the stream does not answer.
pub async fn former(js: &jetstream::Context, broadcast: &Broadcast) -> Result<Option<Split>, direct::NoAnswer> {
    let subject = subject::split(broadcast.id);
    let found = direct::last_of(js, &Domain::Here, topology::SCHEDULE, &[subject]).await?;
    let note = found.first().map(|note| serde_json::from_slice(&note.payload));
    note.transpose().map_err(|_| direct::NoAnswer::Silent)
}
