//! Counts the segments of text messages against the caps of apps, and the notifications of recipients against limits, by counters of
//! the region's stream [`SPEND`] (NATS ADR-49).
//!
//! The server adds up, so that all workers of a region see one sum. Nothing is ever taken off: a sum bounds from above what was
//! sent in its window. A message is counted before it is sent, under an id: if its worker ends in between, the next one counts it
//! under the same id, and the stream adds nothing.

use async_nats::{header::NATS_MESSAGE_ID, jetstream};
use bytes::Bytes;
use serde::Deserialize;

use super::{
    current,
    publish::{self, NotStored},
    topology::SPEND,
    version,
};

/// The header with what is added to a counter.
const INCREMENT: &str = "Nats-Incr";

/// A counter as it is stored.
#[derive(Deserialize)]
struct Counter {
    val: String,
}

/// Adds `amount` to the counter `subject` and returns its sum; if something was added under `id` lately, the sum as it is. The
/// stream remembers ids for an hour.
///
/// # Errors
/// When the sum is not known. The amount may be counted.
pub async fn count(js: &jetstream::Context, subject: String, id: String, amount: u32) -> Result<u64, NotStored> {
    let mut headers = version::headers();
    headers.insert(INCREMENT, amount.to_string());
    headers.insert(NATS_MESSAGE_ID, id);
    let stored = publish::store(js, subject.clone(), headers, Bytes::new()).await?;
    if !stored.duplicate {
        return sum(stored.value.as_deref());
    }
    // Only the leader knows the sum: another copy may lag behind what was counted last.
    let found = current::last(js, SPEND, &subject).await?;
    let counter = found.and_then(|found| serde_json::from_slice::<Counter>(&found.payload).ok());
    sum(counter.as_ref().map(|counter| counter.val.as_str()))
}

fn sum(text: Option<&str>) -> Result<u64, NotStored> {
    text.and_then(|text| text.parse().ok()).ok_or(NotStored::Refused)
}
