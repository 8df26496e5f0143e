//! The one writer of the ledger: gathers what has been settled into group commits.

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
    store::{Commit, Followed},
};

/// Most settlements in one commit; more would only make the first of them wait.
const MAX_SETTLEMENTS_PER_COMMIT: usize = 2048;

/// Most receipts in one message. It is held in memory several times on its way, so a large one costs more than it saves.
const MAX_RECEIPTS_PER_MESSAGE: usize = 128;

/// What others did may wait this long to be written, so that an idle worker does not commit for each of their messages.
const LINGER_FOLLOWED_FOR: Duration = Duration::from_millis(50);

/// Own work waits so long for company: nobody waits for a receipt as for a push.
const LINGER_OWN_FOR: Duration = Duration::from_millis(8);

/// So many jobs are company enough.
const SETTLEMENTS_COMMITTED_AT_ONCE: usize = 512;

/// After a commit that failed, until it is tried again.
const RETRY_COMMIT_AFTER: Duration = Duration::from_secs(1);

/// Settlements to be committed, and what goes with them.
enum Work<T> {
    Own(Settled<T>),
    Followed {
        records: Vec<Record>,
        sent: Vec<u64>,
        followed: Followed,
    },
    Flush(oneshot::Sender<()>),
}

/// One job that has been worked on.
#[derive(Debug)]
pub struct Settled<T> {
    /// The tenant.
    pub app: AppId,
    /// Where it was accepted.
    pub origin: Region,
    /// What happened; empty for a job that had been done before.
    pub receipts: Vec<Receipt>,
    /// Since when this worker has the job.
    pub since: Instant,
    /// Given back when the receipts are safe.
    pub ticket: T,
}

/// What one group commit made safe.
#[derive(Debug)]
pub struct Committed<T> {
    /// Since when this worker has the oldest of the jobs.
    pub since: Instant,
    /// Messages to publish.
    pub outgoing: Vec<Outgoing>,
    /// What may be acknowledged once they are published.
    pub tickets: Vec<T>,
}

/// Hands work to the writer. Cheap to clone.
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

/// The writer has ended: the process is leaving.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the ledger takes no more")]
pub struct Gone;

impl<T: Send + 'static> Committer<T> {
    /// Starts the writer. It ends when every committer is dropped, or the file refuses; both show as the end of `out`.
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

    /// Commits a job that has been worked on.
    ///
    /// # Errors
    /// [`Gone`]; the ticket is dropped.
    pub async fn settle(&self, settled: Settled<T>) -> Result<(), Gone> {
        self.work.send(Work::Own(settled)).await.map_err(|_| Gone)
    }

    /// Applies what the stream of receipts says up to `followed`: records of others, and numbers of our own messages.
    pub(super) async fn followed(&self, records: Vec<Record>, sent: Vec<u64>, followed: Followed) -> Result<(), Gone> {
        self.work
            .send(Work::Followed {
                records,
                sent,
                followed,
            })
            .await
            .map_err(|_| Gone)
    }

    /// Waits until everything handed in before is committed.
    pub async fn flush(&self) -> Result<(), Gone> {
        let (done, committed) = oneshot::channel();
        self.work.send(Work::Flush(done)).await.map_err(|_| Gone)?;
        committed.await.map_err(|_| Gone)
    }
}

struct Writer {
    ledger: Ledger,
    region: Region,
    clock: Clock,
    next: u64,
}

/// Everything that goes into one commit.
struct Group<T> {
    own: Vec<Settled<T>>,
    records: Vec<Record>,
    sent: Vec<u64>,
    followed: Option<Followed>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl<T: Send + 'static> Group<T> {
    fn new() -> Self {
        Self {
            own: Vec::new(),
            records: Vec::new(),
            sent: Vec::new(),
            followed: None,
            flushes: Vec::new(),
        }
    }

    fn add(&mut self, work: Work<T>) {
        match work {
            Work::Own(settled) => self.own.push(settled),
            Work::Followed {
                records,
                sent,
                followed,
            } => {
                self.records.extend(records);
                self.sent.extend(sent);
                self.followed = Some(followed);
            }
            Work::Flush(done) => self.flushes.push(done),
        }
    }

    /// How long this group may wait for company; `None` if not at all.
    fn patience(&self) -> Option<Duration> {
        if !self.flushes.is_empty() || self.own.len() >= SETTLEMENTS_COMMITTED_AT_ONCE {
            None
        } else if self.own.is_empty() {
            Some(LINGER_FOLLOWED_FOR)
        } else {
            Some(LINGER_OWN_FOR)
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
                self.wait_for_company(&mut group, &mut work, &mut received).await;
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

    /// A commit costs the same for one job and for a hundred.
    async fn wait_for_company<T: Send + 'static>(
        &self,
        group: &mut Group<T>,
        work: &mut mpsc::Receiver<Work<T>>,
        received: &mut Vec<Work<T>>,
    ) {
        let begun = Instant::now();
        while let Some(patience) = group.patience() {
            let deadline = begun + patience;
            tokio::select! {
                count = work.recv_many(received, MAX_SETTLEMENTS_PER_COMMIT) => {
                    received.drain(..).for_each(|work| group.add(work));
                    if count == 0 { return }
                }
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }

    /// Writes one group, however long the disk refuses; `None` if the process is leaving.
    async fn commit<T: Send + 'static>(&mut self, group: Group<T>) -> Option<Committed<T>> {
        let number = self.next;
        let since = group.own.iter().map(|settled| settled.since).min();
        let since = since.unwrap_or_else(Instant::now);
        let mut commit = Commit {
            sent: group.sent,
            followed: group.followed,
            ..Commit::default()
        };
        let mut tickets = Vec::with_capacity(group.own.len());
        let mut batches: Vec<Batch> = Vec::new();
        for settled in group.own {
            self.gather(&mut batches, settled.app, settled.origin, settled.receipts);
            tickets.push(settled.ticket);
        }
        let others = group.records;
        let nothing = batches.is_empty() && others.is_empty() && commit.followed.is_none();
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
                    .extend(batch.receipts.iter().map(|receipt| (record(receipt), None)));
            }
            batches.retain(|batch| !batch.receipts.is_empty());
            commit.records.extend(others.into_iter().map(|record| (record, None)));
            chain(&ledger, number, &mut commit);
            commit.outgoing = batches
                .iter()
                .enumerate()
                .map(|(at, batch)| outgoing(number, at, batch))
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
            // Whoever asked may have stopped waiting.
            let (Ok(()) | Err(())) = done.send(());
        }
        Some(Committed {
            since,
            outgoing,
            tickets,
        })
    }

    fn gather(&self, batches: &mut Vec<Batch>, app: AppId, origin: Region, receipts: Vec<Receipt>) {
        if receipts.is_empty() {
            return;
        }
        let whose = BatchKind::of(&receipts[0]);
        let fits = |batch: &&mut Batch| {
            batch.app == app
                && batch.origin == origin
                && batch.receipts.len() < MAX_RECEIPTS_PER_MESSAGE
                && BatchKind::of(&batch.receipts[0]) == whose
        };
        if let Some(batch) = batches.iter_mut().find(fits) {
            batch.receipts.extend(receipts);
            return;
        }
        let writer = self.ledger.store.writer().to_owned();
        batches.push(Batch {
            app,
            region: self.region.clone(),
            origin,
            writer,
            accepted: Vec::new(),
            receipts,
            handled: Vec::new(),
        });
    }
}

/// Receipts that go in one message belong to one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BatchKind {
    /// Jobs.
    Jobs,
    /// Broadcasts and slices, which are asked for by the thousand and must not lie among a million others.
    Slices,
    /// Jobs that came out of slices, at their first attempt. Their slice counts them where the broadcast was accepted, so
    /// they stay here: a million need not travel.
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

fn record(receipt: &Receipt) -> Record {
    Record {
        job: receipt.job,
        address: receipt.address,
        attempt: receipt.attempt,
        state: receipt.state,
    }
}

/// Whether nobody else has settled this delivery meanwhile. Who comes second keeps silent, so that there is one final
/// receipt; the provider has then seen two attempts with one `apns-id`. That it has ended is news even where another
/// attempt was parked, and spares that attempt. A job may be deferred several times before its attempt is made.
fn is_news(ledger: &Ledger, receipt: &Receipt) -> bool {
    let known = ledger.look_up(receipt.job).unwrap_or_default();
    let news = match receipt.address {
        None if receipt.state == State::Deferred => !known.has_pass(receipt.attempt),
        None => !known.has_outcome(),
        Some(_) if receipt.state.is_final() => known.endings(receipt.address, receipt.attempt) == 0,
        Some(address) => !known.has(address, receipt.attempt),
    };
    if !news {
        tracing::warn!(job = %receipt.job, attempt = receipt.attempt, "another worker settled this delivery too");
    }
    news
}

/// Says in each record which entry spoke of its job before.
fn chain(ledger: &Ledger, number: u64, commit: &mut Commit) {
    let index = ledger.index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (record, before) in &mut commit.records {
        *before = index.last(record.job).filter(|before| *before != number);
    }
}

fn outgoing(entry: u64, at: usize, batch: &Batch) -> Outgoing {
    let subject = match batch.receipts.first().map(BatchKind::of) {
        Some(BatchKind::Members) => subject::receipt_of_members(&batch.region, &batch.app),
        Some(BatchKind::Jobs | BatchKind::Slices) | None => subject::receipt(&batch.region, &batch.origin, &batch.app),
    };
    Outgoing {
        // Unique for this writer: an entry has far fewer than 4096 messages.
        number: (entry << 12) | at as u64,
        subject,
        payload: serde_json::to_vec(batch).expect("receipts always serialize").into(),
    }
}

/// Writes until it succeeds: a full disk has room again some day, and until then nothing is acknowledged.
fn write(store: &Arc<Store>, number: u64, now: i64, commit: &Commit) {
    while let Err(error) = store.commit(number, now, commit) {
        tracing::error!(%error, "ledger cannot be written; nothing is acknowledged meanwhile");
        #[expect(clippy::disallowed_methods, reason = "runs on a thread for blocking work")]
        std::thread::sleep(RETRY_COMMIT_AFTER);
        if let Err(error) = store.reopen() {
            tracing::error!(%error, "ledger cannot be opened again");
        }
    }
}
