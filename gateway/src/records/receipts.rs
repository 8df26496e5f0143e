//! What became of notifications: an index of the receipts stream in memory, and the receipts themselves from the stream.

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
    nats::{follow, subject, topology},
    receipt::{Accepted, Batch, Receipt, State},
};

/// Batches of one question that are fetched at one time.
const BATCHES_AT_ONCE: usize = 16;
/// How long a question waits for a record that may still be on its way: a little more than records take to be written.
const RECORD_WAIT: Duration = Duration::from_millis(250);
/// Receipts that are younger may have overtaken the record.
const RECENT_RECEIPT: Duration = Duration::from_secs(1);
/// How often a question looks into the index meanwhile.
const INDEX_POLL: Duration = Duration::from_millis(25);

/// Most places of one notification. A thousand recipients with a few devices each need fewer; a caller who repeats one
/// event for ever must not make the index grow, nor a question about it read the whole stream.
const PLACES_MAX: usize = 4096;

/// The receipts of every region. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Receipts {
    js: jetstream::Context,
    index: Arc<RwLock<Index>>,
    /// Whether everything that was there at start has been read.
    loaded: Arc<AtomicBool>,
}

/// Everything recorded about one notification.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What the gateways said. A repeated request is accepted again.
    pub(crate) accepted: Vec<Accepted>,
    /// What the workers said, and in which region. Of the jobs of a broadcast nothing: there may be a million.
    pub(crate) receipts: Vec<(Region, Receipt)>,
    /// How many deliveries of a broadcast ended so after their first attempt.
    pub(crate) late: Late,
}

/// Deliveries by where and how they ended.
pub(crate) type Late = BTreeMap<(Region, State), u64>;

/// The stream did not answer, or has not been read to its end yet.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the receipts stream does not answer, or has not been read to its end yet")]
pub(crate) struct Unanswered;

impl Receipts {
    /// Receipts of at most `most` notifications.
    pub(crate) fn new(js: jetstream::Context, most: usize) -> Self {
        Self {
            js,
            index: Arc::new(RwLock::new(Index::new(most))),
            loaded: Arc::default(),
        }
    }

    /// Follows the stream for ever.
    pub(crate) async fn follow(self) {
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
        match serde_json::from_slice::<BatchIds>(&entry.payload) {
            Ok(ids) => {
                let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
                for id in &ids.accepted {
                    index.learn(id.notification, entry.sequence);
                }
                for receipt in &ids.receipts {
                    index.learn_receipt(receipt, &ids.region, entry.sequence);
                }
                index.learnt = index.learnt.max(entry.sequence);
            }
            Err(error) => tracing::error!(sequence = entry.sequence, %error, "batch of receipts cannot be read"),
        }
    }

    /// What is recorded about `id`, if it is a notification of `app`. Receipts may be faster than the gateway's record, which
    /// alone says how many there are to be; if there are such at `now`, that is waited for.
    pub(crate) async fn history(
        &self,
        app: &AppId,
        id: NotificationId,
        now: Timestamp,
    ) -> Result<Option<History>, Unanswered> {
        let found = self.look(app, id).await?;
        let is_fresh =
            |(_, receipt): &(Region, Receipt)| now.duration_since(receipt.at).unsigned_abs() < RECENT_RECEIPT;
        match found {
            Some(found) if found.accepted.is_empty() && found.receipts.iter().any(is_fresh) => {
                tokio::time::sleep(RECORD_WAIT).await;
                self.look(app, id).await
            }
            found => Ok(found),
        }
    }

    async fn look(&self, app: &AppId, id: NotificationId) -> Result<Option<History>, Unanswered> {
        let places = self.places(id).await;
        if places.is_empty() && !self.loaded.load(Ordering::Relaxed) {
            return Err(Unanswered);
        }
        let receipts = self
            .js
            .get_stream_no_info(topology::RECEIPTS)
            .await
            .map_err(|_| Unanswered)?;
        let batches: Vec<Option<Batch>> = stream::iter(places)
            .map(|place| {
                let receipts = &receipts;
                async move {
                    match receipts.direct_get(place).await {
                        Ok(message) => Ok(serde_json::from_slice(&message.payload).ok()),
                        // Too old: the stream has let it go.
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
            let of_it = |receipt: &Receipt| receipt.notification == id && receipt.slice.is_none();
            let of_it = batch.receipts.into_iter().filter(of_it);
            history
                .receipts
                .extend(of_it.map(|receipt| (batch.region.clone(), receipt)));
        }
        Ok((!history.accepted.is_empty() || !history.receipts.is_empty()).then_some(history))
    }

    async fn places(&self, id: NotificationId) -> Vec<u64> {
        let look = || self.index.read().unwrap_or_else(PoisonError::into_inner).places(id);
        let wait = async {
            loop {
                let places = look();
                if !places.is_empty() {
                    return places;
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

/// Where in the stream a notification occurs. Two notifications with one hash share an entry, which costs the reader
/// of either a look at a batch that says nothing about it.
#[derive(Debug)]
struct Index {
    places: HashMap<u64, Places>,
    /// What became of deliveries of broadcasts after their first attempt, which is what their slices tell of.
    late: HashMap<u64, Late>,
    /// Oldest first.
    order: VecDeque<u64>,
    most: usize,
    /// The last sequence that was learnt from. What is read again after a lost connection is not counted again.
    learnt: u64,
}

#[derive(Debug)]
enum Places {
    One(u64),
    Two(u64, u64),
    Many(Vec<u64>),
}

impl Index {
    fn new(most: usize) -> Self {
        Self {
            places: HashMap::new(),
            late: HashMap::new(),
            order: VecDeque::new(),
            most,
            learnt: 0,
        }
    }

    /// A job of a broadcast has no place of its own: what its first attempt came to is in its slice's receipt, and what
    /// came of later ones is counted.
    fn learn_receipt(&mut self, receipt: &ReceiptIds, region: &Region, sequence: u64) {
        if receipt.slice.is_none() {
            self.learn(receipt.notification, sequence);
        } else if receipt.attempt > 1 && receipt.state.is_final() && sequence > self.learnt {
            let late = self.late.entry(hash(receipt.notification)).or_default();
            *late.entry((region.clone(), receipt.state)).or_default() += 1;
        }
    }

    fn late(&self, id: NotificationId) -> Late {
        self.late.get(&hash(id)).cloned().unwrap_or_default()
    }

    fn learn(&mut self, id: NotificationId, sequence: u64) {
        let hash = hash(id);
        match self.places.entry(hash) {
            Entry::Occupied(mut entry) => entry.get_mut().add(sequence),
            Entry::Vacant(entry) => {
                entry.insert(Places::One(sequence));
                self.order.push_back(hash);
            }
        }
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.places.remove(&oldest);
            self.late.remove(&oldest);
        }
    }

    fn places(&self, id: NotificationId) -> Vec<u64> {
        match self.places.get(&hash(id)) {
            None => Vec::new(),
            Some(Places::One(one)) => vec![*one],
            Some(Places::Two(one, two)) => vec![*one, *two],
            Some(Places::Many(many)) => many.clone(),
        }
    }
}

fn hash(id: NotificationId) -> u64 {
    id.0.as_u64_pair().1
}

impl Places {
    /// A batch is learnt from start to end, and again after a lost connection.
    fn add(&mut self, sequence: u64) {
        *self = match self {
            Self::One(one) | Self::Two(_, one) if *one == sequence => return,
            Self::One(one) => Self::Two(*one, sequence),
            Self::Two(one, two) if *one != sequence => Self::Many(vec![*one, *two, sequence]),
            Self::Many(many) => {
                // Sequences rise, unless the stream is read again.
                let is_new = many.last().is_some_and(|last| *last < sequence) || !many.contains(&sequence);
                if is_new && many.len() < PLACES_MAX {
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
    fn a_place_is_learnt_once() {
        let mut index = Index::new(10);
        for sequence in [5, 5, 7, 5, 7, 9, 9, 5] {
            index.learn(id(1), sequence);
        }
        assert_eq!(index.places(id(1)), [5, 7, 9]);
        assert!(index.places(id(2)).is_empty());
    }

    #[test]
    fn jobs_of_a_broadcast_take_no_places_and_what_ends_late_is_counted_once() {
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
            index.learnt = 5;
        }
        assert_eq!(index.places(id(1)), [3]);
        assert_eq!(index.late(id(1)), [((eu, State::Delivered), 2)].into());
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut index = Index::new(2);
        for number in 1..=3u32 {
            index.learn(id(number.into()), number.into());
        }
        assert!(index.places(id(1)).is_empty());
        assert_eq!((index.places(id(2)), index.places(id(3))), (vec![2], vec![3]));
    }
}
