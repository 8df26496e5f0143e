//! Compares the whole ledger (file, index and writer) with a list in memory.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::Timestamp;
use proptest::{collection::vec, prelude::*};
use shared::{
    channel::Channel,
    clock::Clock,
    id::{AddressId, JobId, NotificationId},
    receipt::{Batch, Receipt, State},
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Committed, Committer, Ledger, Outgoing, Record, Settled, Store, store::Commit, store::Position, sync::still_news,
};

/// Two of them have the same key in the index.
const JOBS: [JobId; 4] = [job(1, 1), job(2, 1), job(1, 2), job(3, 3)];

const fn job(first: u64, second: u64) -> JobId {
    JobId(Uuid::from_u64_pair(first, second))
}

fn record() -> impl Strategy<Value = Record> {
    let address = prop::option::weighted(0.8, (1u128..3).prop_map(|id| AddressId(Uuid::from_u128(id))));
    let parts = (
        prop::sample::select(&JOBS[..]),
        address,
        1u32..4,
        prop::sample::select(State::ALL),
    );
    parts.prop_map(|(job, address, attempt, state)| Record {
        job,
        address,
        attempt,
        state,
    })
}

fn receipt(record: Record) -> Receipt {
    Receipt {
        address: record.address,
        attempt: record.attempt,
        ..Receipt::new(
            NotificationId(record.job.0),
            record.job,
            Channel::Push,
            record.state,
            Timestamp::UNIX_EPOCH,
        )
    }
}

#[derive(Debug, Clone)]
enum Step {
    Settle(Record),
    Follow(Vec<Record>),
    Restart,
    /// Prunes the records of all steps but this many of the newest.
    Prune(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => record().prop_map(Step::Settle),
        3 => vec(record(), 1..4).prop_map(Step::Follow),
        2 => Just(Step::Restart),
        1 => (0i64..8).prop_map(Step::Prune),
    ]
}

/// A ledger with its writer.
struct Running {
    ledger: Ledger,
    committer: Committer<()>,
    writer: tokio::task::JoinHandle<()>,
    _durable: mpsc::Receiver<Committed<()>>,
}

impl Running {
    fn open(path: &Path, time: &Arc<AtomicI64>) -> Self {
        let (store, aside) = Store::open(path, "w", 1).unwrap();
        assert_eq!(aside, None);
        let ledger = Ledger::new(store.into()).unwrap();
        let time = time.clone();
        let clock = Clock::from_fn(move || Timestamp::from_millisecond(time.load(Ordering::Relaxed)).unwrap());
        let (out, durable) = mpsc::channel(1000);
        let (committer, writer) = Committer::new(&ledger, "eu".parse().unwrap(), clock, out).unwrap();
        Self {
            ledger,
            committer,
            writer: tokio::spawn(writer),
            _durable: durable,
        }
    }

    async fn close(self) {
        drop(self.committer);
        self.writer.await.unwrap();
    }
}

/// The records that the ledger should contain, each with the step that stored it.
#[derive(Default)]
struct Expected(Vec<(i64, Record)>);

impl Expected {
    fn of(&self, job: JobId) -> impl Iterator<Item = &Record> {
        self.0
            .iter()
            .map(|(_, record)| record)
            .filter(move |record| record.job == job)
    }

    /// Adds a record of this worker, and returns whether it is news.
    fn settle(&mut self, step: i64, new: Record) -> bool {
        let same: Vec<Record> = self
            .of(new.job)
            .filter(|known| known.address == new.address)
            .copied()
            .collect();
        // A later attempt may replay a dead or unknown delivery; neither an intent nor a wait is an outcome.
        let ends = |known: &Record| match known.state {
            State::Parked | State::Attempting | State::Deferred => false,
            State::Dead | State::Unknown => known.attempt >= new.attempt,
            _ => true,
        };
        let outcome = |known: &Record| !matches!(known.state, State::Attempting | State::Deferred);
        let settled_whole = |known: &Record| known.address.is_none() && known.state.is_final();
        let known = match new.address {
            None if new.state == State::Deferred => self
                .of(new.job)
                .any(|known| settled_whole(known) || outcome(known) && known.attempt <= new.attempt),
            None => self.of(new.job).any(outcome),
            Some(_) if new.state.is_final() => same.iter().any(ends),
            Some(_) => same
                .iter()
                .any(|known| outcome(known) && (ends(known) || known.attempt >= new.attempt)),
        };
        if !known {
            self.0.push((step, new));
        }
        !known
    }
}

fn sorted<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<String> {
    let mut all: Vec<String> = records.into_iter().map(|record| format!("{record:?}")).collect();
    all.sort();
    all
}

async fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let time = Arc::new(AtomicI64::new(0));
    let mut running = Running::open(&path, &time);
    let (mut expected, mut published) = (Expected::default(), Vec::new());
    for (now, step) in (1..).zip(steps) {
        time.store(now, Ordering::Relaxed);
        match step {
            Step::Settle(record) => {
                if expected.settle(now, record) {
                    published.push(record);
                }
                let (app, origin) = ("shop".parse().unwrap(), "eu".parse().unwrap());
                let settled = Settled {
                    app,
                    origin,
                    receipts: vec![receipt(record)],
                    since: tokio::time::Instant::now(),
                    ticket: (),
                };
                running.committer.settle(settled).await.unwrap();
                running.committer.flush().await.unwrap();
            }
            Step::Follow(records) => {
                expected.0.extend(records.iter().map(|record| (now, *record)));
                let position = Position {
                    sequence: now.cast_unsigned(),
                    created_at: 1,
                };
                let applied = running.committer.apply_followed(records, Vec::new(), position);
                applied.await.unwrap();
                running.committer.flush().await.unwrap();
                assert_eq!(running.ledger.store.position().unwrap(), position);
            }
            Step::Restart => {
                running.close().await;
                running = Running::open(&path, &time);
            }
            Step::Prune(keep) => {
                let before = expected.0.len();
                expected.0.retain(|(stored, _)| *stored >= now - keep);
                let pruned = running.ledger.prune(now - keep).unwrap();
                assert_eq!(pruned, before - expected.0.len());
            }
        }
        for job in JOBS {
            let history = running.ledger.look_up(job).unwrap();
            assert_eq!(
                sorted(&history.records),
                sorted(expected.of(job)),
                "{job:?} after step {now}"
            );
        }
    }
    let outgoing = running.ledger.store.outgoing().unwrap();
    let batches = outgoing
        .iter()
        .map(|message| serde_json::from_slice::<Batch>(&message.payload).unwrap());
    let stored: Vec<Receipt> = batches.flat_map(|batch| batch.receipts).collect();
    assert_eq!(stored, published.into_iter().map(receipt).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn it_contains_the_same_as_a_list(steps in vec(step(), 1..40)) {
        tokio::runtime::Runtime::new().unwrap().block_on(run(steps));
    }
}

#[test]
fn an_outcome_of_a_retry_does_not_complete_the_pass_that_parked_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("ledger.redb"), "w", 1).unwrap();
    let ledger = Ledger::new(store.into()).unwrap();
    let address = AddressId(Uuid::from_u128(1));
    let commit = |number, attempt| {
        let record = Record {
            job: JOBS[0],
            address: Some(address),
            attempt,
            state: State::Delivered,
        };
        let commit = Commit {
            records: vec![(record, None)],
            ..Commit::default()
        };
        ledger.store.commit(number, 0, &commit).unwrap();
        ledger.index().replace(JOBS[0], number);
        ledger.look_up(JOBS[0]).unwrap()
    };
    let after_retry = commit(1, 2);
    assert!(
        !after_retry.has_completed_pass(1),
        "the other addresses may not have been tried"
    );
    assert!(after_retry.is_done(address, 1), "this address needs no further attempt");
    assert!(commit(2, 1).has_completed_pass(1));
}

#[test]
fn a_job_that_was_deferred_is_not_done() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("ledger.redb"), "w", 1).unwrap();
    let ledger = Ledger::new(store.into()).unwrap();
    let record = |address, state| Record {
        job: JOBS[0],
        address,
        attempt: 1,
        state,
    };
    let know = |number, record| {
        let before = ledger.index().replace(JOBS[0], number);
        let commit = Commit {
            records: vec![(record, before)],
            ..Commit::default()
        };
        ledger.store.commit(number, 0, &commit).unwrap();
        ledger.look_up(JOBS[0]).unwrap()
    };
    let address = AddressId(Uuid::from_u128(1));
    let waits = know(1, record(None, State::Deferred));
    assert!(!waits.has_outcome() && !waits.has_completed_pass(1) && !waits.ended_as_a_whole());
    assert!(!waits.is_done(address, 1) && waits.first_outcomes().is_empty());
    let sent = know(2, record(Some(address), State::Delivered));
    assert!(
        sent.has_completed_pass(1),
        "when it comes back once more it is a duplicate"
    );
    assert_eq!(sent.first_outcomes(), [State::Delivered]);
}

#[test]
fn a_delivery_that_another_worker_ended_is_not_reported_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("ledger.redb"), "w", 1).unwrap();
    let ledger = Ledger::new(store.into()).unwrap();
    let record = |job, state| Record {
        job,
        address: Some(AddressId(Uuid::from_u128(1))),
        attempt: 1,
        state,
    };
    let (ended, parked, own) = (
        record(JOBS[0], State::Delivered),
        record(JOBS[2], State::Parked),
        record(JOBS[3], State::Delivered),
    );
    let outgoing = |records: &[Record]| {
        let batch = Batch {
            app: "shop".parse().unwrap(),
            region: "eu".parse().unwrap(),
            origin: "eu".parse().unwrap(),
            writer: "w".into(),
            accepted: Vec::new(),
            receipts: records.iter().copied().map(receipt).collect(),
            handled: Vec::new(),
        };
        Outgoing {
            writer: "w".into(),
            number: 1,
            subject: "a.subject".into(),
            payload: serde_json::to_vec(&batch).unwrap().into(),
        }
    };
    let commit = |number, records: &[Record]| {
        let index = |record: &Record| (*record, ledger.index().replace(record.job, number));
        let commit = Commit {
            records: records.iter().map(index).collect(),
            ..Commit::default()
        };
        ledger.store.commit(number, 0, &commit).unwrap();
    };
    commit(1, &[ended, parked, own]);
    let untouched = outgoing(&[ended, parked, own]);
    assert_eq!(still_news(&ledger, untouched.clone()).unwrap(), Some(untouched.clone()));
    commit(2, &[record(JOBS[0], State::Dead), record(JOBS[2], State::Delivered)]);
    assert_eq!(still_news(&ledger, untouched).unwrap(), Some(outgoing(&[own])));
    assert_eq!(still_news(&ledger, outgoing(&[ended, parked])).unwrap(), None);
}

#[test]
fn a_number_is_not_reused_after_all_entries_were_pruned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let (store, _) = Store::open(&path, "w", 1).unwrap();
    let record = Record {
        job: JOBS[0],
        address: None,
        attempt: 1,
        state: State::Expired,
    };
    let commit = Commit {
        records: vec![(record, None)],
        ..Commit::default()
    };
    store.commit(7, 0, &commit).unwrap();
    assert_eq!(store.prune(1).unwrap().len(), 1);
    drop(store);
    assert_eq!(Store::open(&path, "w", 1).unwrap().0.last_number().unwrap(), 7);
}
