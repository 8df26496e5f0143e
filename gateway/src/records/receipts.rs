//! The receipts of notifications: an index of the receipts stream in memory; the receipts themselves are read from the
//! stream on request.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{self, stream::DirectGetErrorKind};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Deserialize;
use shared::{
    id::{AppId, NotificationId, Region},
    nats::{border::Border, follow, subject, topology},
    receipt::{Accepted, Batch, Receipt, State},
};

/// Batches that one query fetches concurrently.
const BATCHES_AT_ONCE: usize = 16;
/// How long a query waits for a record that may still be on its way: a little longer than it takes to write a record.
const RECORD_WAIT: Duration = Duration::from_millis(250);
/// A receipt younger than this may have arrived before the gateway's record.
const RECENT_RECEIPT: Duration = Duration::from_secs(1);
/// How often a waiting query checks the index.
const INDEX_POLL: Duration = Duration::from_millis(25);

/// Indexed batches of one notification, at most. A thousand recipients with a few devices each need fewer. A caller who
/// repeats one event forever must not make the index grow, nor a query about it read the whole stream.
const INDEXED_BATCHES_MAX: usize = 4096;

/// The receipts of every region. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Receipts {
    js: jetstream::Context,
    border: Border,
    index: Arc<RwLock<Index>>,
    /// Whether the stream has been read up to where it ended at start.
    loaded: Arc<AtomicBool>,
}

/// Everything recorded about one notification.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The gateways' records: one for each time that the request was accepted.
    pub(crate) accepted: Vec<Accepted>,
    /// The workers' receipts, each with its region. None for the jobs of a broadcast, of which there may be a million.
    pub(crate) receipts: Vec<(Region, Receipt)>,
    /// Deliveries of a broadcast that ended after their first attempt.
    pub(crate) late: Late,
}

/// Number of deliveries by region and final state.
pub(crate) type Late = BTreeMap<(Region, State), u64>;

/// The stream did not answer, or has not been read to its end yet. Retrying later helps.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the receipts stream does not answer, or has not been read to its end yet")]
pub(crate) struct Unanswered;

impl Receipts {
    /// The index remembers the `notifications_max` newest notifications, and of receipts from other regions those that `border`
    /// admits.
    pub(crate) fn new(js: jetstream::Context, border: Border, notifications_max: usize) -> Self {
        Self {
            js,
            border,
            index: Arc::new(RwLock::new(Index::new(notifications_max))),
            loaded: Arc::default(),
        }
    }

    /// Follows the stream until the process ends.
    pub(crate) async fn follow(self) {
        self.border.ready().await;
        let filter = subject::RECEIPTS_FILTER;
        let caught_up = || self.loaded.store(true, Ordering::Relaxed);
        follow::follow_forever(
            &self.js,
            topology::RECEIPTS,
            filter,
            |entry| self.learn(entry),
            caught_up,
        )
        .await;
    }

    fn learn(&self, entry: &follow::Entry) {
        if !self.border.admits_entry(entry) {
            return;
        }
        match serde_json::from_slice::<BatchIds>(&entry.payload) {
            Ok(ids) => {
                let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
                for id in &ids.accepted {
                    index.learn(id.notification, entry.sequence);
                }
                for receipt in &ids.receipts {
                    index.learn_receipt(receipt, &ids.region, entry.sequence);
                }
                index.last_learnt = index.last_learnt.max(entry.sequence);
            }
            Err(error) => tracing::error!(sequence = entry.sequence, %error, "cannot read a batch of receipts"),
        }
    }

    /// Everything recorded about `id`; `None` if no notification of `app` has this id.
    ///
    /// Only the gateway's record states the number of jobs, and receipts may arrive before it. If a receipt is recent
    /// at `now` and there is no record yet, this waits for the record.
    pub(crate) async fn history(
        &self,
        app: &AppId,
        id: NotificationId,
        now: Timestamp,
    ) -> Result<Option<History>, Unanswered> {
        let found = self.read(app, id).await?;
        let is_recent =
            |(_, receipt): &(Region, Receipt)| now.duration_since(receipt.at).unsigned_abs() < RECENT_RECEIPT;
        match found {
            Some(found) if found.accepted.is_empty() && found.receipts.iter().any(is_recent) => {
                tokio::time::sleep(RECORD_WAIT).await;
                self.read(app, id).await
            }
            found => Ok(found),
        }
    }

    async fn read(&self, app: &AppId, id: NotificationId) -> Result<Option<History>, Unanswered> {
        let sequences = self.sequences(id).await;
        if sequences.is_empty() && !self.loaded.load(Ordering::Relaxed) {
            return Err(Unanswered);
        }
        let receipts = self
            .js
            .get_stream_no_info(topology::RECEIPTS)
            .await
            .map_err(|_| Unanswered)?;
        let batches: Vec<Option<Batch>> = stream::iter(sequences)
            .map(|sequence| {
                let receipts = &receipts;
                async move {
                    match receipts.direct_get(sequence).await {
                        Ok(message) => Ok(Batch::read(&message.payload).ok()),
                        // The stream no longer has it, because it is too old.
                        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
                        Err(_) => Err(Unanswered),
                    }
                }
            })
            .buffered(BATCHES_AT_ONCE)
            .try_collect()
            .await?;
        let mut history = History {
            late: self.index.read().unwrap_or_else(PoisonError::into_inner).late(id),
            ..History::default()
        };
        for batch in batches.into_iter().flatten().filter(|batch| batch.app == *app) {
            history.accepted.extend(
                batch
                    .accepted
                    .into_iter()
                    .filter(|accepted| accepted.notification == id),
            );
            let is_wanted = |receipt: &Receipt| receipt.notification == id && receipt.slice.is_none();
            let wanted = batch.receipts.into_iter().filter(is_wanted);
            history
                .receipts
                .extend(wanted.map(|receipt| (batch.region.clone(), receipt)));
        }
        Ok((!history.accepted.is_empty() || !history.receipts.is_empty()).then_some(history))
    }

    async fn sequences(&self, id: NotificationId) -> Vec<u64> {
        let indexed = || self.index.read().unwrap_or_else(PoisonError::into_inner).sequences(id);
        let wait = async {
            loop {
                let sequences = indexed();
                if !sequences.is_empty() {
                    return sequences;
                }
                tokio::time::sleep(INDEX_POLL).await;
            }
        };
        tokio::time::timeout(RECORD_WAIT, wait).await.unwrap_or_default()
    }
}

/// The part of a batch that the index needs.
#[derive(Deserialize)]
struct BatchIds {
    region: Region,
    #[serde(default)]
    accepted: Vec<AcceptedId>,
    #[serde(default)]
    receipts: Vec<ReceiptIds>,
}

#[derive(Deserialize)]
struct ReceiptIds {
    notification: NotificationId,
    attempt: u32,
    state: State,
    #[serde(default)]
    slice: Option<u32>,
}

#[derive(Deserialize)]
struct AcceptedId {
    notification: NotificationId,
}

/// Maps a notification's hash to the sequences of the batches that mention it. Notifications with the same hash share
/// an entry, so a query about one of them may read batches that only mention another.
#[derive(Debug)]
struct Index {
    sequences: HashMap<u64, Sequences>,
    /// Deliveries of broadcasts that ended after their first attempt. First attempts are in the receipts of the slices.
    late: HashMap<u64, Late>,
    /// Hashes in the order of their first occurrence, oldest first.
    order: VecDeque<u64>,
    /// Notifications that the index remembers, at most.
    notifications_max: usize,
    /// The last sequence that was learnt. After a lost connection, batches are read again but not counted again.
    last_learnt: u64,
}

#[derive(Debug)]
enum Sequences {
    One(u64),
    Two(u64, u64),
    Many(Vec<u64>),
}

impl Index {
    fn new(notifications_max: usize) -> Self {
        Self {
            sequences: HashMap::new(),
            late: HashMap::new(),
            order: VecDeque::new(),
            notifications_max,
            last_learnt: 0,
        }
    }

    /// Jobs of broadcasts are not indexed: the outcome of a first attempt is in the slice's receipt, and the final
    /// states after later attempts are counted.
    fn learn_receipt(&mut self, receipt: &ReceiptIds, region: &Region, sequence: u64) {
        if receipt.slice.is_none() {
            self.learn(receipt.notification, sequence);
        } else if receipt.attempt > 1 && receipt.state.is_final() && sequence > self.last_learnt {
            let late = self.late.entry(hash(receipt.notification)).or_default();
            *late.entry((region.clone(), receipt.state)).or_default() += 1;
        }
    }

    fn late(&self, id: NotificationId) -> Late {
        self.late.get(&hash(id)).cloned().unwrap_or_default()
    }

    fn learn(&mut self, id: NotificationId, sequence: u64) {
        let hash = hash(id);
        match self.sequences.entry(hash) {
            Entry::Occupied(mut entry) => entry.get_mut().add(sequence),
            Entry::Vacant(entry) => {
                entry.insert(Sequences::One(sequence));
                self.order.push_back(hash);
            }
        }
        if self.order.len() > self.notifications_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.sequences.remove(&oldest);
            self.late.remove(&oldest);
        }
    }

    fn sequences(&self, id: NotificationId) -> Vec<u64> {
        match self.sequences.get(&hash(id)) {
            None => Vec::new(),
            Some(Sequences::One(one)) => vec![*one],
            Some(Sequences::Two(one, two)) => vec![*one, *two],
            Some(Sequences::Many(many)) => many.clone(),
        }
    }
}

fn hash(id: NotificationId) -> u64 {
    id.0.as_u64_pair().1
}

impl Sequences {
    /// Adds a sequence once: one batch may mention a notification often, and batches are read again after a lost
    /// connection.
    fn add(&mut self, sequence: u64) {
        *self = match self {
            Self::One(one) | Self::Two(_, one) if *one == sequence => return,
            Self::One(one) => Self::Two(*one, sequence),
            Self::Two(one, two) if *one != sequence => Self::Many(vec![*one, *two, sequence]),
            Self::Many(many) => {
                // Sequences rise, except when the stream is read again.
                let is_new = many.last().is_some_and(|last| *last < sequence) || !many.contains(&sequence);
                if is_new && many.len() < INDEXED_BATCHES_MAX {
                    many.push(sequence);
                }
                return;
            }
            Self::Two(..) => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> NotificationId {
        NotificationId(Uuid::from_u128(number))
    }

    #[test]
    fn a_sequence_is_indexed_once() {
        let mut index = Index::new(10);
        for sequence in [5, 5, 7, 5, 7, 9, 9, 5] {
            index.learn(id(1), sequence);
        }
        assert_eq!(index.sequences(id(1)), [5, 7, 9]);
        assert!(index.sequences(id(2)).is_empty());
    }

    #[test]
    fn jobs_of_a_broadcast_are_not_indexed_and_late_final_states_are_counted_once() {
        let mut index = Index::new(10);
        let eu: Region = "eu".parse().unwrap();
        let receipt = |attempt, state, slice| ReceiptIds {
            notification: id(1),
            attempt,
            state,
            slice,
        };
        for _again in 0..2 {
            index.learn_receipt(&receipt(1, State::Expanded, None), &eu, 3);
            index.learn_receipt(&receipt(1, State::Parked, Some(0)), &eu, 4);
            index.learn_receipt(&receipt(2, State::Delivered, Some(0)), &eu, 5);
            index.learn_receipt(&receipt(2, State::Delivered, Some(1)), &eu, 5);
            index.last_learnt = 5;
        }
        assert_eq!(index.sequences(id(1)), [3]);
        assert_eq!(index.late(id(1)), [((eu, State::Delivered), 2)].into());
    }

    #[test]
    fn the_oldest_notification_is_forgotten() {
        let mut index = Index::new(2);
        for number in 1..=3u32 {
            index.learn(id(number.into()), number.into());
        }
        assert!(index.sequences(id(1)).is_empty());
        assert_eq!((index.sequences(id(2)), index.sequences(id(3))), (vec![2], vec![3]));
    }
}
