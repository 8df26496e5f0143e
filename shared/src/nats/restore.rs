//! A bucket of recipients that was deleted is restored from the caches of workers, which hold all of it; and a fact that
//! another region replaced without a signature is written again.
//!
//! A gateway creates the bucket again and says in its metadata what it replaces. Until a mark says that the facts are back,
//! nobody takes their absence for a fact: workers hold their work, and gateways do not read. Workers hand the facts to their
//! gateways, sealed, because a worker may write none.

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use futures::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    border::Border,
    current,
    direct::{Found, NoAnswer},
    follow::StreamState,
    publish::{self, NotStored},
    subject, topology, version,
};
use crate::id::Region;

/// The bucket that another one replaces: what was last known of it. All zero if nothing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Former {
    /// When it was created, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// A sequence that it had reached, half a second before it was deleted or later.
    pub sequence: u64,
}

impl Former {
    /// As the metadata of the new bucket holds it: `<created_at_ms>:<sequence>`.
    pub(super) fn of(known: Option<StreamState>) -> String {
        let known = known.map(|state| (state.created_at.as_millisecond(), state.last));
        let (created_at_ms, sequence) = known.unwrap_or_default();
        format!("{created_at_ms}:{sequence}")
    }

    /// Parses what [`Self::of`] wrote; what cannot be read is as if nothing was known.
    pub(super) fn parse(text: &str) -> Self {
        let parsed = text.split_once(':').and_then(|(created_at_ms, sequence)| {
            Some(Self {
                created_at_ms: created_at_ms.parse().ok()?,
                sequence: sequence.parse().ok()?,
            })
        });
        parsed.unwrap_or(Self {
            created_at_ms: 0,
            sequence: 0,
        })
    }
}

/// A fact that a worker holds, to be written again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// Its key in the bucket.
    pub key: String,
    /// The sequence of what the bucket must hold under the key, 0 if that is nothing: a fact that is newer stays.
    pub instead_of: u64,
    /// The fact as JSON.
    pub value: String,
}

/// How far the bucket that was created at `bucket_ms` (milliseconds since 1970) is restored.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    bucket_ms: i64,
    is_complete: bool,
}

async fn newest_mark(
    js: &jetstream::Context,
    here: &Region,
    bucket: &StreamState,
) -> Result<Option<(Mark, Timestamp)>, NoAnswer> {
    let found = current::last(js, topology::DIRECTORY, &subject::directory_restored(here)).await?;
    let read = |found: Found| Some((serde_json::from_slice::<Mark>(&found.payload).ok()?, found.stored_at));
    let mark = found.and_then(read);
    Ok(mark.filter(|(mark, _)| mark.bucket_ms == bucket.created_at.as_millisecond()))
}

/// Whether `bucket`, the bucket of recipients of `here`, has the facts of the one that it replaces, or replaces none.
///
/// # Errors
/// When the leader of this region's directory does not answer.
pub async fn is_complete(js: &jetstream::Context, here: &Region, bucket: &StreamState) -> Result<bool, NoAnswer> {
    if bucket.former.is_none() {
        return Ok(true);
    }
    let mark = newest_mark(js, here, bucket).await?;
    Ok(mark.is_some_and(|(mark, _)| mark.is_complete))
}

/// When somebody last worked at the restoration of `bucket`; `None` if it is complete.
///
/// # Errors
/// When the leader of this region's directory does not answer.
pub async fn waits_since(
    js: &jetstream::Context,
    here: &Region,
    bucket: &StreamState,
) -> Result<Option<Timestamp>, NoAnswer> {
    if bucket.former.is_none() {
        return Ok(None);
    }
    Ok(match newest_mark(js, here, bucket).await? {
        Some((mark, _)) if mark.is_complete => None,
        Some((_, at)) => Some(at),
        None => Some(bucket.created_at),
    })
}

/// Records how far the bucket created at `bucket_ms` is restored. What is complete stays so. Only gateways may.
///
/// # Errors
/// When the stream did not acknowledge the record.
pub async fn mark(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    bucket_ms: i64,
    is_complete: bool,
) -> Result<(), NotStored> {
    let subject = subject::directory_restored(here);
    let known = current::last(js, topology::DIRECTORY, &subject).await;
    let known = known.map_err(|_| NotStored::NoAnswer)?;
    let known = known.and_then(|found| serde_json::from_slice::<Mark>(&found.payload).ok());
    if known.is_some_and(|known| known.bucket_ms == bucket_ms && known.is_complete) {
        return Ok(());
    }
    let value = serde_json::to_vec(&Mark { bucket_ms, is_complete }).expect("marks always serialize");
    // The other regions copy the directory, and would report an entry without a signature.
    let headers = border.headers(&subject, &value);
    publish::store(js, subject, headers, value.into()).await.map(drop)
}

/// Writes `facts` into the bucket of recipients, except where it holds something newer. Only gateways may.
///
/// # Errors
/// The first, when some were not stored; then all may be written again.
pub(super) async fn write(js: &jetstream::Context, facts: Vec<Kept>) -> Result<(), NotStored> {
    let writing = facts.into_iter().map(async |kept| {
        // A kind of fact that this version does not know is no worker's of this version.
        if subject::parse_fact_key(&kept.key).is_none() {
            return Ok(());
        }
        let mut headers: HeaderMap = version::headers();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, kept.instead_of.to_string());
        match publish::store(js, subject::fact_of_key(&kept.key), headers, kept.value.into()).await {
            Ok(_) | Err(NotStored::Refused) => Ok(()),
            Err(error) => Err(error),
        }
    });
    join_all(writing).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bucket_replaces_parses_back() {
        let state = StreamState {
            last: 7,
            created_at: Timestamp::from_millisecond(5).unwrap(),
            messages: 3,
            former: None,
        };
        let expected = Former {
            created_at_ms: 5,
            sequence: 7,
        };
        assert_eq!(Former::parse(&Former::of(Some(state))), expected);
        for nothing in [&*Former::of(None), "", "x:1", "1"] {
            assert_eq!(
                (Former::parse(nothing).created_at_ms, Former::parse(nothing).sequence),
                (0, 0)
            );
        }
    }
}
