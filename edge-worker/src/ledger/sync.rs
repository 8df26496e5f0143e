//! Following the region's receipts into the ledger: what other workers did, and which of our own messages arrived. Only
//! what is seen in the stream is forgotten among the outgoing.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use shared::{
    id::Region,
    nats::{
        envelope,
        follow::{self, Entry, FollowError},
        publish, subject, topology,
    },
    receipt::Batch,
};
use tokio::{sync::watch, time::Instant};

use super::{
    Ledger, Outgoing, Record, StoreError,
    committer::{Committer, Gone},
    store::{Commit, Followed},
};
use crate::limits::COMPARE_RECEIPTS_AFTER;

/// The stream is asked again so soon: the other workers hold back after a lost connection only for a while, and the
/// message id makes a repetition harmless.
const PUBLISH_AGAIN_AFTER: Duration = Duration::from_millis(700);

/// How long the ledger may take to know what the stream holds.
const LEDGER_CURRENT_WITHIN: Duration = Duration::from_secs(5);

/// Follows the stream of receipts into the ledger.
#[derive(Debug)]
pub struct Sync<T> {
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
    Gone(#[from] Gone),
    #[error("the ledger does not follow the receipts")]
    Behind,
}

impl<T: Send + 'static> Sync<T> {
    /// Prepares to follow.
    pub fn new(js: jetstream::Context, ledger: Ledger, committer: Committer<T>, region: Region) -> Self {
        Self {
            js,
            ledger,
            committer,
            region,
            caught_up: watch::channel(false).0,
        }
    }

    /// Whether the ledger knows everything the stream held when following began.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// Follows until the ledger takes no more.
    pub async fn run(self) {
        loop {
            match self.follow().await {
                Ok(()) => {}
                Err(Interrupted::Gone(_)) => return,
                Err(error) => tracing::info!(%error, "receipts of other workers are followed anew"),
            }
            self.caught_up.send_replace(false);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn follow(&self) -> Result<(), Interrupted> {
        let stream = follow::stream_state(&self.js, topology::RECEIPTS).await?;
        let created_at = stream.created_at.as_millisecond();
        let followed = self.ledger.store.followed()?;
        let same = followed.created_at == created_at && followed.sequence <= stream.last;
        let from = if same { followed.sequence } else { 0 };
        if stream.is_reached(from, created_at) {
            self.caught_up.send_replace(true);
        }
        // All subjects, so that the last sequence is always one that is seen.
        let entries = follow::follow(&self.js, topology::RECEIPTS, ">", from + 1).await?;
        let mut entries = entries.ready_chunks(512);
        let mine = subject::receipt_filter(&self.region).replace('>', "");
        while let Some(chunk) = entries.next().await {
            let (mut records, mut sent, mut last) = (Vec::new(), Vec::new(), (0, 0));
            for entry in chunk {
                let entry = entry?;
                last = (entry.sequence, entry.pending);
                if entry.subject.starts_with(&mine) {
                    self.take(&entry, &mut records, &mut sent);
                }
            }
            self.committer
                .followed(
                    records,
                    sent,
                    Followed {
                        sequence: last.0,
                        created_at,
                    },
                )
                .await?;
            if last.1 == 0 && !*self.caught_up.borrow() {
                self.committer.flush().await?;
                self.caught_up.send_replace(true);
            }
        }
        Ok(())
    }

    fn take(&self, entry: &Entry, records: &mut Vec<Record>, sent: &mut Vec<u64>) {
        let id = envelope::header(&entry.headers, envelope::BATCH).and_then(|id| id.rsplit_once(':'));
        if let Some((writer, number)) = id
            && writer == self.ledger.store.writer()
        {
            sent.extend(number.parse::<u64>());
            return;
        }
        match serde_json::from_slice::<Batch>(&entry.payload) {
            Ok(batch) => records.extend(batch.receipts.iter().map(|receipt| Record {
                job: receipt.job,
                address: receipt.address,
                attempt: receipt.attempt,
                state: receipt.state,
            })),
            Err(error) => tracing::error!(sequence = entry.sequence, %error, "receipts cannot be read"),
        }
    }
}

/// Publishes what a former run committed and the stream does not have. To be called when following has caught up: what
/// the stream has by then is no longer among the outgoing. Deliveries that another worker has ended meanwhile are left
/// out, so that there is one final receipt.
///
/// # Errors
/// When the file cannot be read or written.
pub async fn publish_left_over(js: &jetstream::Context, ledger: &Ledger) -> Result<(), StoreError> {
    let left = ledger.store.outgoing()?;
    if left.is_empty() {
        return Ok(());
    }
    tracing::info!(messages = left.len(), "publishing receipts that a former run left");
    for outgoing in left {
        let number = outgoing.number;
        match still_news(ledger, outgoing)? {
            Some(outgoing) => outgoing.publish(js, ledger, Instant::now()).await,
            None => ledger.forget_outgoing(number)?,
        }
    }
    Ok(())
}

/// `outgoing` without the deliveries that somebody else has ended; `None` if nothing is left.
pub(super) fn still_news(ledger: &Ledger, mut outgoing: Outgoing) -> Result<Option<Outgoing>, StoreError> {
    let Ok(mut batch) = serde_json::from_slice::<Batch>(&outgoing.payload) else {
        return Ok(Some(outgoing));
    };
    let all = batch.receipts.len();
    let mut news = Vec::with_capacity(all);
    for receipt in batch.receipts {
        // The ledger also has what this receipt itself says.
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
    /// Publishes this message under its id until the stream has it. It tells of jobs that this worker has since `since`; if
    /// that is long ago, because the process stood still or a server was away, it is first compared with what others said
    /// of them meanwhile.
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
                        tracing::warn!(%error, "receipts wait until the ledger is current");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                }
            }
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
            headers.insert(envelope::BATCH, id.as_str());
            let stored = publish::store(js, self.subject.clone(), headers, payload.clone());
            match tokio::time::timeout(PUBLISH_AGAIN_AFTER, stored).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "receipts wait to be published"),
                Err(_) => tracing::warn!("receipts wait to be published: no answer"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Ledger {
    /// What of `outgoing` is news to the stream of receipts as it is now; `None`, and it is forgotten, if nothing is.
    async fn compare(&self, js: &jetstream::Context, outgoing: Outgoing) -> Result<Option<Outgoing>, Interrupted> {
        let stream = follow::stream_state(js, topology::RECEIPTS).await?;
        let known = || {
            let Followed { sequence, created_at } = self.store.followed()?;
            Ok::<_, StoreError>((sequence, created_at))
        };
        if !stream.is_reached_within(LEDGER_CURRENT_WITHIN, known).await? {
            return Err(Interrupted::Behind);
        }
        let (ledger, number) = (self.clone(), outgoing.number);
        let look = move || {
            let news = still_news(&ledger, outgoing)?;
            if news.is_none() {
                ledger.forget_outgoing(number)?;
            }
            Ok::<_, StoreError>(news)
        };
        // It ends only with the process.
        Ok(tokio::task::spawn_blocking(look).await.map_err(|_| Gone)??)
    }

    /// The name under which this ledger's receipts are published.
    pub fn writer(&self) -> &str {
        self.store.writer()
    }

    fn forget_outgoing(&self, number: u64) -> Result<(), StoreError> {
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

    /// Forgets what happened before `cutoff` (milliseconds since 1970). Blocks for disk writes.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn prune(&self, cutoff: i64) -> Result<usize, StoreError> {
        let mut pruned = 0;
        loop {
            let forgotten = self.store.prune(cutoff)?;
            if forgotten.is_empty() {
                return Ok(pruned);
            }
            pruned += forgotten.len();
            let mut index = self.index();
            for (job, entry) in forgotten {
                index.forget(job, entry);
            }
        }
    }
}
