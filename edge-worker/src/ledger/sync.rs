//! Copies the region's receipts into the ledger: what other workers did, and which of this worker's own messages arrived.
//! An outgoing message is removed only after it was seen in the stream.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use shared::{
    id::Region,
    nats::{
        envelope,
        follow::{self, Entry, FollowError},
        publish, subject, topology, version,
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

/// How long the ledger may take to reach the end that the stream had when a comparison started.
const LEDGER_CURRENT_WITHIN: Duration = Duration::from_secs(5);

/// Copies the stream of receipts into the ledger.
#[derive(Debug)]
pub struct ReceiptFollower<T> {
    js: jetstream::Context,
    ledger: Ledger,
    committer: Committer<T>,
    region: Region,
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
    /// Prepares to copy the receipts of `region`.
    pub fn new(js: jetstream::Context, ledger: Ledger, committer: Committer<T>, region: Region) -> Self {
        Self {
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
        if stream.is_reached(from, created_at) {
            self.caught_up.send_replace(true);
        }
        // All subjects, so that the last sequence of the stream is always received.
        let entries = follow::follow(&self.js, topology::RECEIPTS, ">", from + 1).await?;
        let mut entries = entries.ready_chunks(512);
        let prefix = subject::receipt_filter(&self.region).replace('>', "");
        while let Some(chunk) = entries.next().await {
            let (mut records, mut sent) = (Vec::new(), Vec::new());
            let (mut sequence, mut pending) = (0, 0);
            for entry in chunk {
                let entry = entry?;
                (sequence, pending) = (entry.sequence, entry.pending);
                if entry.subject.starts_with(&prefix) {
                    self.collect(&entry, &mut records, &mut sent);
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

    /// Adds one message to the records of other workers, or to the numbers of this worker's own messages.
    fn collect(&self, entry: &Entry, records: &mut Vec<Record>, sent: &mut Vec<u64>) {
        let id = envelope::header(&entry.headers, envelope::BATCH).and_then(|id| id.rsplit_once(':'));
        if let Some((writer, number)) = id
            && writer == self.ledger.store.writer()
        {
            sent.extend(number.parse::<u64>());
            return;
        }
        match Batch::read(&entry.payload) {
            Ok(batch) => records.extend(batch.receipts.iter().map(Record::of)),
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
pub async fn publish_unsent(js: &jetstream::Context, ledger: &Ledger) -> Result<(), StoreError> {
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
            Some(outgoing) => outgoing.publish(js, ledger, Instant::now()).await,
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
    /// is first compared with the receipts that other workers have published meanwhile.
    pub async fn publish(self, js: &jetstream::Context, ledger: &Ledger, mut since: Instant) {
        let id = format!("{}:{}", ledger.store.writer(), self.number);
        let mut payload = self.payload.clone();
        loop {
            if since.elapsed() > COMPARE_RECEIPTS_AFTER {
                let now = Instant::now();
                match ledger.compare(js, self.clone()).await {
                    Ok(Some(outgoing)) => (payload, since) = (outgoing.payload, now),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, "receipts are not published until the ledger has caught up");
                        tokio::time::sleep(RETRY_PUBLISH_AFTER).await;
                        continue;
                    }
                }
            }
            let mut headers = version::headers();
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
            headers.insert(envelope::BATCH, id.as_str());
            let stored = publish::store(js, self.subject.clone(), headers, payload.clone());
            match tokio::time::timeout(REPEAT_PUBLISH_AFTER, stored).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "receipts could not be published; retrying"),
                Err(_) => tracing::warn!("receipts could not be published: no answer; retrying"),
            }
            tokio::time::sleep(RETRY_PUBLISH_AFTER).await;
        }
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

    /// The name under which this ledger's receipts are published.
    pub fn writer(&self) -> &str {
        self.store.writer()
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
