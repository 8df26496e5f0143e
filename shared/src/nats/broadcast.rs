//! Splitting a broadcast into slices, once.
//!
//! The note of the split is stored with the slices and kept as long as the longest-lived work, so a redelivered broadcast
//! always finds it. The split expects that no note exists, so the server refuses a second split as a whole.

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use bytes::Bytes;

use super::{
    batch::{self, MAX_BATCH_MESSAGES, Message},
    direct, envelope,
    publish::NotStored,
    subject::{self, Lane, Tier},
    topology::{self, Domain},
};
use crate::{
    broadcast::{Broadcast, Slice},
    receipt::Split,
};

/// Maximum number of slices of a broadcast in one region: they are stored in one batch, together with the note.
pub const MAX_SLICES_PER_BROADCAST: usize = MAX_BATCH_MESSAGES - 1;

/// Stores `slices` of `broadcast`, whose message had `headers` and `payload`, in the region's own lane `lane`, each in
/// its `tier`, unless the broadcast was split meanwhile.
///
/// # Errors
/// When the slices are not known to be stored; [`NotStored::Refused`] if another worker split the broadcast first.
pub async fn split(
    js: &jetstream::Context,
    broadcast: &Broadcast,
    lane: &Lane,
    tier: impl Fn(&Slice) -> Tier,
    headers: &HeaderMap,
    payload: &Bytes,
    slices: &[Slice],
) -> Result<Split, NotStored> {
    let split = Split {
        slices: u32::try_from(slices.len()).map_err(|_| NotStored::TooLarge)?,
        members: slices.iter().map(|slice| u64::from(slice.members)).sum(),
        accepted_at: broadcast.accepted_at,
    };
    let mut note = super::version::headers();
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
            subject: tier(slice).subject(&lane.slice()),
            headers,
            payload: payload.clone(),
        }
    });
    batch::store_together(js, [note].into_iter().chain(slices).collect()).await?;
    Ok(split)
}

/// The recorded split of `broadcast`, if it was split before.
///
/// # Errors
/// When the stream does not answer, or the note is malformed.
pub async fn recorded_split(js: &jetstream::Context, broadcast: &Broadcast) -> Result<Option<Split>, direct::NoAnswer> {
    let subject = subject::split(broadcast.id);
    let found = direct::last_of(js, &Domain::Here, topology::SCHEDULE, &[subject]).await?;
    let note = found.first().map(|note| serde_json::from_slice(&note.payload));
    note.transpose().map_err(|_| direct::NoAnswer::Silent)
}
