//! Copies the region's receipts into the ledger: what other workers did, and which of this worker's own messages arrived.
//! An outgoing message is removed only after it was seen in the stream.
//!
//! A message under the name of an earlier start is news if the file does not hold it as outgoing: then the file was set
//! back, or is a copy whose original went on.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream;
use futures::StreamExt;
use shared::{
    id::Region,
    nats::{
        border::Border,
        envelope,
        follow::{self, Entry, FollowError},
        publish, subject, topology,
    },
    receipt::Batch,
};
use tokio::{sync::watch, time::Instant};

use super::{
    Ledger, Outgoing, Record, StoreError,
    committer::{Committer, WriterStopped},
    store::{Commit, Position},
};
use crate::limits::COMPARE_RECEIPTS_AFTER;

/// A publication without an answer is repeated after this time, which is short because other workers hold back only for a
/// few seconds after a lost connection. The message id makes the repetition harmless.
const REPEAT_PUBLISH_AFTER: Duration = Duration::from_millis(700);

/// The pause before a failed publication or comparison is retried.
const RETRY_PUBLISH_AFTER: Duration = Duration::from_millis(100);

/// The pause before the stream is followed again after an interruption.
const RETRY_FOLLOW_AFTER: Duration = Duration::from_millis(200);

/// How often to check whether the ledger has reached a position.
const POSITION_CHECKED_EVERY: Duration = Duration::from_millis(10);

/// How long the ledger may take to reach the end that the stream had when a comparison started.
const LEDGER_CURRENT_WITHIN: Duration = Duration::from_secs(5);

/// Copies the stream of receipts into the ledger.
#[derive(Debug)]
pub struct ReceiptFollower<T> {
    js: jetstream::Context,
    ledger: Ledger,
    committer: Committer<T>,
    region: Region,
    border: Border,
    caught_up: watch::Sender<bool>,
}

#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Stopped(#[from] WriterStopped),
    #[error("the ledger has not caught up with the receipts")]
    Behind,
}

impl<T: Send + 'static> ReceiptFollower<T> {
    /// Prepares to copy the receipts of `region`. `border` signs those that must be published again.
    pub fn new(
        js: jetstream::Context,
        ledger: Ledger,
        committer: Committer<T>,
        region: Region,
        border: Border,
    ) -> Self {
        Self {
            border,
            js,
            ledger,
            committer,
            region,
            caught_up: watch::channel(false).0,
        }
    }

    /// Whether the ledger holds everything that the stream held when following began.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// Follows the stream until the ledger's writer stops.
    pub async fn run(self) {
        loop {
            match self.follow().await {
                Ok(()) => {}
                Err(Interrupted::Stopped(_)) => return,
                Err(error) => tracing::info!(%error, "following the receipts was interrupted; retrying"),
            }
            self.caught_up.send_replace(false);
            tokio::time::sleep(RETRY_FOLLOW_AFTER).await;
        }
    }

    async fn follow(&self) -> Result<(), Interrupted> {
        let stream = follow::stream_state(&self.js, topology::RECEIPTS).await?;
        let created_at = stream.created_at.as_millisecond();
        let position = self.ledger.store.position()?;
        let same = position.created_at == created_at && position.sequence <= stream.last;
        let from = if same { position.sequence } else { 0 };
        if position.created_at != 0 && position.created_at != created_at {
            self.publish_again();
        }
        if stream.is_reached(from, created_at) {
            self.caught_up.send_replace(true);
        }
        // All subjects, so that the last sequence of the stream is always received.
        let entries = follow::follow(&self.js, topology::RECEIPTS, ">", from + 1).await?;
        let mut entries = entries.ready_chunks(512);
        let prefix = subject::receipt_filter(&self.region).replace('>', "");
        let unsent = self.unsent_of_earlier_starts()?;
        while let Some(chunk) = entries.next().await {
            let (mut records, mut sent) = (Vec::new(), Vec::new());
            let (mut sequence, mut pending) = (0, 0);
            for entry in chunk {
                let entry = entry?;
                (sequence, pending) = (entry.sequence, entry.pending);
                if entry.subject.starts_with(&prefix) {
                    self.collect(&entry, &unsent, &mut records, &mut sent);
                }
            }
            let position = Position { sequence, created_at };
            self.committer.apply_followed(records, sent, position).await?;
            if pending == 0 && !*self.caught_up.borrow() {
                self.committer.flush().await?;
                self.caught_up.send_replace(true);
            }
        }
        Ok(())
    }

    /// Publishes what is not known to be in the stream, because the stream was created again: a message that the former
    /// one acknowledged just before it was deleted was not followed. The others are dropped as duplicates.
    fn publish_again(&self) {
        let (js, ledger, border) = (self.js.clone(), self.ledger.clone(), self.border.clone());
        tokio::spawn(async move {
            if let Err(error) = publish_unsent(&js, &ledger, &border).await {
                tracing::error!(%error, "receipts that may be lost with their stream cannot be read");
            }
        });
    }

    /// The messages of earlier starts that are not yet known to be in the stream, by number.
    fn unsent_of_earlier_starts(&self) -> Result<HashMap<u64, Outgoing>, StoreError> {
        let unsent = self.ledger.store.outgoing()?.into_iter();
        let earlier = unsent.filter(|outgoing| outgoing.writer != *self.ledger.store.writer());
        Ok(earlier.map(|outgoing| (outgoing.number, outgoing)).collect())
    }

    /// Adds one message to the records of other writers, or to the numbers of this file's own messages.
    fn collect(&self, entry: &Entry, unsent: &HashMap<u64, Outgoing>, records: &mut Vec<Record>, sent: &mut Vec<u64>) {
        let id = envelope::header(&entry.headers, envelope::BATCH).and_then(|id| id.rsplit_once(':'));
        let id = id.and_then(|(writer, number)| Some((writer, number.parse::<u64>().ok()?)));
        if let Some((writer, number)) = id
            && writer == &**self.ledger.store.writer()
        {
            sent.push(number);
            return;
        }
        match Batch::read(&entry.payload) {
            Ok(batch) => match id.and_then(|(writer, number)| Some((writer, unsent.get(&number)?))) {
                Some((writer, outgoing)) if writer == &*outgoing.writer && outgoing.was_published_as(&batch) => {
                    sent.push(outgoing.number);
                }
                _ => records.extend(batch.receipts.iter().map(Record::of)),
            },
            Err(error) => tracing::error!(sequence = entry.sequence, %error, "receipts cannot be read"),
        }
    }
}

/// Publishes the receipts that a previous run committed and the stream does not contain. Call it after following has
/// caught up, which removes from the outgoing messages all that the stream contains. Leaves out deliveries that another
/// worker has ended meanwhile, so that there is exactly one final receipt.
///
/// # Errors
/// When the file cannot be read or written.
pub async fn publish_unsent(js: &jetstream::Context, ledger: &Ledger, border: &Border) -> Result<(), StoreError> {
    let unsent = ledger.store.outgoing()?;
    if unsent.is_empty() {
        return Ok(());
    }
    tracing::info!(
        messages = unsent.len(),
        "publishing the receipts that a previous run left unpublished"
    );
    for outgoing in unsent {
        let number = outgoing.number;
        match still_news(ledger, outgoing)? {
            Some(outgoing) => outgoing.publish(js, ledger, border, Instant::now()).await,
            None => ledger.remove_outgoing(number)?,
        }
    }
    Ok(())
}

/// `outgoing` without the deliveries that another worker has ended; `None` if no receipt is left.
pub(super) fn still_news(ledger: &Ledger, mut outgoing: Outgoing) -> Result<Option<Outgoing>, StoreError> {
    let Ok(mut batch) = Batch::read(&outgoing.payload) else {
        return Ok(Some(outgoing));
    };
    let all = batch.receipts.len();
    let mut news = Vec::with_capacity(all);
    for receipt in batch.receipts {
        // The ledger also contains the record of this receipt itself.
        let own = usize::from(receipt.state.is_final());
        if ledger.look_up(receipt.job)?.endings(receipt.address, receipt.attempt) <= own {
            news.push(receipt);
        }
    }
    batch.receipts = news;
    if batch.receipts.is_empty() {
        return Ok(None);
    }
    if batch.receipts.len() < all {
        outgoing.payload = serde_json::to_vec(&batch).expect("receipts always serialize").into();
    }
    Ok(Some(outgoing))
}

impl Outgoing {
    /// Publishes this message under its id, and retries until the stream has it. `since` is when this worker received the
    /// oldest of its jobs. If that is long ago, because the process was suspended or a server was unreachable, the message
    /// is first compared with the receipts that other workers have published meanwhile. `border` signs it for the region that
    /// accepted the notifications.
    pub async fn publish(mut self, js: &jetstream::Context, ledger: &Ledger, border: &Border, mut since: Instant) {
        loop {
            if since.elapsed() > COMPARE_RECEIPTS_AFTER {
                let now = Instant::now();
                match ledger.compare(js, self.clone()).await {
                    Ok(Some(outgoing)) => (self.payload, since) = (outgoing.payload, now),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, "receipts are not published until the ledger has caught up");
                        tokio::time::sleep(RETRY_PUBLISH_AFTER).await;
                        continue;
                    }
                }
            }
            let id = format!("{}:{}", self.writer, self.number);
            let mut headers = border.headers(&self.subject, &self.payload);
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
            headers.insert(envelope::BATCH, id.as_str());
            let stored = publish::store(js, self.subject.clone(), headers, self.payload.clone());
            match tokio::time::timeout(REPEAT_PUBLISH_AFTER, stored).await {
                Ok(Ok(stored)) if !stored.duplicate => return,
                Ok(Ok(stored)) => match ledger.is_in_stream(&self, stored.sequence).await {
                    Ok(true) => return,
                    Ok(false) => {
                        tracing::error!(id, "another writer used this message id; publishing under a new one");
                        self.writer = ledger.store.writer().clone();
                        continue;
                    }
                    Err(error) => tracing::warn!(%error, "a duplicate of receipts could not be checked; retrying"),
                },
                Ok(Err(error)) => tracing::warn!(%error, "receipts could not be published; retrying"),
                Err(_) => tracing::warn!("receipts could not be published: no answer; retrying"),
            }
            tokio::time::sleep(RETRY_PUBLISH_AFTER).await;
        }
    }

    /// Whether `stored`, a message in the stream under the same id, is this one. Before it was published, deliveries that
    /// another worker had ended may have been left out.
    fn was_published_as(&self, stored: &Batch) -> bool {
        let Ok(own) = Batch::read(&self.payload) else {
            return false;
        };
        let records: Vec<Record> = own.receipts.iter().map(Record::of).collect();
        stored
            .receipts
            .iter()
            .map(Record::of)
            .all(|record| records.contains(&record))
    }
}

impl Ledger {
    /// The part of `outgoing` that is still news, compared with the current end of the stream of receipts. `None` if no
    /// receipt is left; then the message is removed from the file.
    async fn compare(&self, js: &jetstream::Context, outgoing: Outgoing) -> Result<Option<Outgoing>, Interrupted> {
        let stream = follow::stream_state(js, topology::RECEIPTS).await?;
        let known = || {
            let Position { sequence, created_at } = self.store.position()?;
            Ok::<_, StoreError>((sequence, created_at))
        };
        if !stream.is_reached_within(LEDGER_CURRENT_WITHIN, known).await? {
            return Err(Interrupted::Behind);
        }
        let (ledger, number) = (self.clone(), outgoing.number);
        let compared = move || {
            let news = still_news(&ledger, outgoing)?;
            if news.is_none() {
                ledger.remove_outgoing(number)?;
            }
            Ok::<_, StoreError>(news)
        };
        // The task is cancelled only when the process ends.
        Ok(tokio::task::spawn_blocking(compared)
            .await
            .map_err(|_| WriterStopped)??)
    }

    /// Whether the message that the stream holds at `sequence` under the id of `outgoing` is `outgoing` itself. Following
    /// decides it, which removes the message from the file when it meets it in the stream.
    async fn is_in_stream(&self, outgoing: &Outgoing, sequence: u64) -> Result<bool, Interrupted> {
        let started = Instant::now();
        while self.store.position()?.sequence < sequence {
            if started.elapsed() > LEDGER_CURRENT_WITHIN {
                return Err(Interrupted::Behind);
            }
            tokio::time::sleep(POSITION_CHECKED_EVERY).await;
        }
        Ok(!self.store.is_outgoing(outgoing.number)?)
    }

    fn remove_outgoing(&self, number: u64) -> Result<(), StoreError> {
        let sent = vec![number];
        self.store.commit(
            0,
            0,
            &Commit {
                sent,
                ..Commit::default()
            },
        )
    }

    /// Removes the records from before `cutoff` (milliseconds since 1970), and returns their number. Blocks for disk writes.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn prune(&self, cutoff: i64) -> Result<usize, StoreError> {
        let mut pruned = 0;
        loop {
            let removed = self.store.prune(cutoff)?;
            if removed.is_empty() {
                return Ok(pruned);
            }
            pruned += removed.len();
            let mut index = self.index();
            for (job, entry) in removed {
                index.forget(job, entry);
            }
        }
    }
}
