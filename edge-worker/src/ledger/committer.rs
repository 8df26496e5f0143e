//! The only writer of the ledger. It gathers settled jobs into group commits.

use std::{sync::Arc, time::Duration};

use shared::{
    clock::Clock,
    failpoint::failpoint,
    id::{AppId, Region},
    nats::subject,
    receipt::{Batch, Receipt, State},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Ledger, Outgoing, Record, Store, StoreError,
    store::{Commit, Position},
};

/// With more, the first of them would only wait longer.
const MAX_SETTLEMENTS_PER_COMMIT: usize = 2048;

/// A message is held in memory several times on its way, so a larger one costs more than it saves.
const MAX_RECEIPTS_PER_MESSAGE: usize = 128;

/// How long records of other workers wait for more, so that an idle worker does not commit each of their messages.
const LINGER_FOLLOWED: Duration = Duration::from_millis(50);

/// How long settled jobs wait for more to share their commit. The push is sent by then; only its receipt waits.
const LINGER_OWN: Duration = Duration::from_millis(8);

/// This many settled jobs are committed without waiting for more.
const FULL_GROUP_SETTLEMENTS: usize = 512;

/// The pause before a failed commit is retried.
const RETRY_COMMIT_AFTER: Duration = Duration::from_secs(1);

/// What the writer is asked to do.
enum Work<T> {
    /// Commit a job of this worker.
    Own(Settled<T>),
    /// Apply the stream of receipts up to `position`.
    Followed {
        /// Records of other workers.
        records: Vec<Record>,
        /// Numbers of own messages that the stream contains.
        sent: Vec<u64>,
        position: Position,
    },
    /// Answer when everything before is committed.
    Flush(oneshot::Sender<()>),
}

/// One job whose pass through the pipeline is complete.
#[derive(Debug)]
pub struct Settled<T> {
    /// The app that sent the notification.
    pub app: AppId,
    /// The region where the notification was accepted.
    pub origin: Region,
    /// One per delivery that this pass settled; empty for a job that was done before.
    pub receipts: Vec<Receipt>,
    /// When this worker received the job.
    pub since: Instant,
    /// Returned in [`Committed`] once the receipts are durable.
    pub ticket: T,
}

/// What one group commit made durable.
#[derive(Debug)]
pub struct Committed<T> {
    /// When this worker received the oldest of the jobs.
    pub since: Instant,
    /// The messages to publish.
    pub outgoing: Vec<Outgoing>,
    /// The tickets of the jobs that may be acknowledged once the messages are published.
    pub tickets: Vec<T>,
}

/// Sends work to the writer. Cheap to clone.
#[derive(Debug)]
pub struct Committer<T> {
    work: mpsc::Sender<Work<T>>,
}

impl<T> Clone for Committer<T> {
    fn clone(&self) -> Self {
        Self {
            work: self.work.clone(),
        }
    }
}

/// The ledger's writer has stopped, because the process is ending.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the ledger's writer has stopped")]
pub struct WriterStopped;

impl<T: Send + 'static> Committer<T> {
    /// Returns a committer and the task of its writer. The task ends when every committer is dropped or the receiver of
    /// `out` is; then `out` closes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn new(
        ledger: &Ledger,
        region: Region,
        clock: Clock,
        out: mpsc::Sender<Committed<T>>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<T>), StoreError> {
        let (work, receiver) = mpsc::channel(2 * MAX_SETTLEMENTS_PER_COMMIT);
        let writer = Writer {
            ledger: ledger.clone(),
            region,
            clock,
            next: ledger.store.last_number()? + 1,
        };
        Ok((Self { work }, writer.run(receiver, out)))
    }

    /// Queues a job for the next commit.
    ///
    /// # Errors
    /// [`WriterStopped`]; then the ticket is dropped.
    pub async fn settle(&self, settled: Settled<T>) -> Result<(), WriterStopped> {
        self.work.send(Work::Own(settled)).await.map_err(|_| WriterStopped)
    }

    /// Queues what the stream of receipts contains up to `position`: records of other workers, and the numbers of this
    /// worker's own messages.
    pub(super) async fn apply_followed(
        &self,
        records: Vec<Record>,
        sent: Vec<u64>,
        position: Position,
    ) -> Result<(), WriterStopped> {
        self.work
            .send(Work::Followed {
                records,
                sent,
                position,
            })
            .await
            .map_err(|_| WriterStopped)
    }

    /// Waits until all work that was queued before is committed.
    ///
    /// # Errors
    /// [`WriterStopped`].
    pub async fn flush(&self) -> Result<(), WriterStopped> {
        let (done, committed) = oneshot::channel();
        self.work.send(Work::Flush(done)).await.map_err(|_| WriterStopped)?;
        committed.await.map_err(|_| WriterStopped)
    }
}

struct Writer {
    ledger: Ledger,
    region: Region,
    clock: Clock,
    /// The number of the next entry.
    next: u64,
}

/// The work that goes into one commit.
struct Group<T> {
    own: Vec<Settled<T>>,
    records: Vec<Record>,
    sent: Vec<u64>,
    position: Option<Position>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl<T: Send + 'static> Group<T> {
    fn new() -> Self {
        Self {
            own: Vec::new(),
            records: Vec::new(),
            sent: Vec::new(),
            position: None,
            flushes: Vec::new(),
        }
    }

    fn add(&mut self, work: Work<T>) {
        match work {
            Work::Own(settled) => self.own.push(settled),
            Work::Followed {
                records,
                sent,
                position,
            } => {
                self.records.extend(records);
                self.sent.extend(sent);
                self.position = Some(position);
            }
            Work::Flush(done) => self.flushes.push(done),
        }
    }

    /// How long this group may wait for more work; `None` if it must not wait.
    fn linger(&self) -> Option<Duration> {
        if !self.flushes.is_empty() || self.own.len() >= FULL_GROUP_SETTLEMENTS {
            None
        } else if self.own.is_empty() {
            Some(LINGER_FOLLOWED)
        } else {
            Some(LINGER_OWN)
        }
    }
}

impl Writer {
    async fn run<T: Send + 'static>(mut self, mut work: mpsc::Receiver<Work<T>>, out: mpsc::Sender<Committed<T>>) {
        let mut received = Vec::with_capacity(MAX_SETTLEMENTS_PER_COMMIT);
        let mut group = Group::new();
        loop {
            let more = work.recv_many(&mut received, MAX_SETTLEMENTS_PER_COMMIT).await > 0;
            received.drain(..).for_each(|work| group.add(work));
            if more {
                self.fill(&mut group, &mut work, &mut received).await;
            }
            let Some(committed) = self.commit(std::mem::replace(&mut group, Group::new())).await else {
                return;
            };
            if !committed.tickets.is_empty() && out.send(committed).await.is_err() {
                return;
            }
            if !more {
                return;
            }
        }
    }

    /// Waits a few milliseconds for more work: a commit costs the same for one job and for a hundred.
    async fn fill<T: Send + 'static>(
        &self,
        group: &mut Group<T>,
        work: &mut mpsc::Receiver<Work<T>>,
        received: &mut Vec<Work<T>>,
    ) {
        let started = Instant::now();
        while let Some(linger) = group.linger() {
            let deadline = started + linger;
            tokio::select! {
                count = work.recv_many(received, MAX_SETTLEMENTS_PER_COMMIT) => {
                    received.drain(..).for_each(|work| group.add(work));
                    if count == 0 { return }
                }
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }

    /// Writes one group and retries until the disk accepts it. `None` if the process is ending.
    async fn commit<T: Send + 'static>(&mut self, group: Group<T>) -> Option<Committed<T>> {
        let number = self.next;
        let since = group.own.iter().map(|settled| settled.since).min();
        let since = since.unwrap_or_else(Instant::now);
        let mut commit = Commit {
            sent: group.sent,
            position: group.position,
            ..Commit::default()
        };
        let mut tickets = Vec::with_capacity(group.own.len());
        let mut batches: Vec<Batch> = Vec::new();
        for settled in group.own {
            self.gather(&mut batches, &settled.app, &settled.origin, settled.receipts);
            tickets.push(settled.ticket);
        }
        let others = group.records;
        let nothing = batches.is_empty() && others.is_empty() && commit.position.is_none();
        if nothing && group.flushes.is_empty() {
            return Some(Committed {
                since,
                outgoing: Vec::new(),
                tickets,
            });
        }
        let (ledger, now) = (self.ledger.clone(), self.clock.now().as_millisecond());
        let written = tokio::task::spawn_blocking(move || {
            for batch in &mut batches {
                batch.receipts.retain(|receipt| is_news(&ledger, receipt));
                commit
                    .records
                    .extend(batch.receipts.iter().map(|receipt| (Record::of(receipt), None)));
            }
            batches.retain(|batch| !batch.receipts.is_empty());
            commit.records.extend(others.into_iter().map(|record| (record, None)));
            link(&ledger, number, &mut commit);
            commit.outgoing = batches
                .iter()
                .enumerate()
                .map(|(at, batch)| outgoing(ledger.store.writer(), number, at, batch))
                .collect();
            write(&ledger.store, number, now, &commit);
            let mut index = ledger.index();
            for (record, _) in &commit.records {
                index.replace(record.job, number);
            }
            (commit.outgoing, !commit.records.is_empty())
        })
        .await;
        let (outgoing, used) = written.ok()?;
        failpoint("worker.after-commit");
        self.next += u64::from(used);
        for done in group.flushes {
            // The caller may have stopped waiting.
            let (Ok(()) | Err(())) = done.send(());
        }
        Some(Committed {
            since,
            outgoing,
            tickets,
        })
    }

    /// Adds the receipts of one job to a batch that they may share, or to a new one.
    fn gather(&self, batches: &mut Vec<Batch>, app: &AppId, origin: &Region, receipts: Vec<Receipt>) {
        if receipts.is_empty() {
            return;
        }
        let kind = BatchKind::of(&receipts[0]);
        let fits = |batch: &&mut Batch| {
            batch.app == *app
                && batch.origin == *origin
                && batch.receipts.len() + receipts.len() <= MAX_RECEIPTS_PER_MESSAGE
                && BatchKind::of(&batch.receipts[0]) == kind
        };
        if let Some(batch) = batches.iter_mut().find(fits) {
            batch.receipts.extend(receipts);
            return;
        }
        // A recipient may have more addresses than one message has room for.
        for receipts in receipts.chunks(MAX_RECEIPTS_PER_MESSAGE) {
            batches.push(Batch {
                app: app.clone(),
                region: self.region.clone(),
                origin: origin.clone(),
                writer: self.ledger.store.writer().to_string(),
                accepted: Vec::new(),
                receipts: receipts.to_vec(),
                handled: Vec::new(),
            });
        }
    }
}

/// Groups of receipts. All receipts in one message belong to the same group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BatchKind {
    /// Ordinary jobs, and retries of members.
    Jobs,
    /// Broadcasts and slices. A status query reads thousands of them, so they do not share messages with a million others.
    Slices,
    /// First attempts of the members of slices. The origin counts them by their slice's receipt, so these stay in this
    /// region and a million of them need not travel.
    Members,
}

impl BatchKind {
    fn of(receipt: &Receipt) -> Self {
        match receipt {
            Receipt { expanded: Some(_), .. } => Self::Slices,
            Receipt {
                slice: Some(_),
                attempt: 1,
                ..
            } => Self::Members,
            _ => Self::Jobs,
        }
    }
}

/// Whether no other worker has settled this delivery meanwhile. The second worker publishes no receipt, so that there is
/// exactly one final receipt; the provider has then received two attempts with one `apns-id`. A final state is news even
/// if a retry is parked, because it makes that retry unnecessary. A job may be deferred several times before its attempt.
fn is_news(ledger: &Ledger, receipt: &Receipt) -> bool {
    let known = ledger.look_up(receipt.job).unwrap_or_default();
    let news = match receipt.address {
        None if receipt.state == State::Deferred => !known.has_completed_pass(receipt.attempt),
        None => !known.has_outcome(),
        Some(_) if receipt.state.is_final() => known.endings(receipt.address, receipt.attempt) == 0,
        Some(address) => !known.is_done(address, receipt.attempt),
    };
    if !news {
        tracing::warn!(job = %receipt.job, attempt = receipt.attempt, "another worker settled this delivery first; no receipt is published");
    }
    news
}

/// Links each record to the previous entry that mentions its job.
fn link(ledger: &Ledger, number: u64, commit: &mut Commit) {
    let index = ledger.index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (record, previous) in &mut commit.records {
        *previous = index.newest(record.job).filter(|previous| *previous != number);
    }
}

fn outgoing(writer: &Arc<str>, entry: u64, at: usize, batch: &Batch) -> Outgoing {
    let subject = match batch.receipts.first().map(BatchKind::of) {
        Some(BatchKind::Members) => subject::receipt_of_members(&batch.region, &batch.app),
        Some(BatchKind::Jobs | BatchKind::Slices) | None => subject::receipt(&batch.region, &batch.origin, &batch.app),
    };
    Outgoing {
        writer: writer.clone(),
        // Unique in the file: an entry has far fewer than 4096 messages.
        number: (entry << 12) | at as u64,
        subject,
        payload: serde_json::to_vec(batch).expect("receipts always serialize").into(),
    }
}

/// Retries until the write succeeds: a full disk can be freed, and until then no job is acknowledged.
fn write(store: &Arc<Store>, number: u64, now: i64, commit: &Commit) {
    while let Err(error) = store.commit(number, now, commit) {
        tracing::error!(%error, "ledger cannot be written; retrying, and no job is acknowledged meanwhile");
        #[expect(clippy::disallowed_methods, reason = "runs on a thread for blocking work")]
        std::thread::sleep(RETRY_COMMIT_AFTER);
        if let Err(error) = store.reopen() {
            tracing::error!(%error, "ledger cannot be reopened");
        }
    }
}
