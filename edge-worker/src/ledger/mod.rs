//! The outcomes of all deliveries of this region. They make the redelivery of a job harmless.
//!
//! The ledger is this worker's copy of the region's receipts, and the place where its own receipts are durable before
//! they are published: an outcome is committed here, then published, then the job is acknowledged. After a crash between
//! these steps, the worker finds the commit and publishes it under the same message id, and the redelivered job skips the
//! finished deliveries. Each worker follows the receipts of the others, so a job that is redelivered to another worker
//! meets the same records.

mod committer;
mod index;
mod store;
mod sync;
#[cfg(test)]
mod tests;

pub use self::{
    committer::{Committed, Committer, Settled, WriterStopped},
    index::Index,
    store::{Outgoing, Record, Store, StoreError},
    sync::{ReceiptFollower, publish_unsent},
};

use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use shared::{
    id::{AddressId, JobId},
    receipt::State,
};

/// The reading side of the ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    index: Arc<RwLock<Index>>,
    store: Arc<Store>,
}

impl Ledger {
    /// Opens the ledger over `store` and builds the index of all its records.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn new(store: Arc<Store>) -> Result<Self, StoreError> {
        let index = Index::build(&store)?;
        Ok(Self {
            index: Arc::new(RwLock::new(index)),
            store,
        })
    }

    /// The records of `job`. Empty for a new job, which costs one look-up in memory and no read of the file.
    ///
    /// # Errors
    /// When the file cannot be read. The job must then wait, because it may have been sent already.
    pub fn look_up(&self, job: JobId) -> Result<History, StoreError> {
        let mut next = self.index.read().unwrap_or_else(PoisonError::into_inner).newest(job);
        let mut history = History::default();
        while let Some(entry) = next {
            let found = self.store.records_of(entry, job)?;
            if found.records.iter().any(|record| record.state == State::Attempting) {
                history.intended_at = history.intended_at.max(Some(found.at));
            }
            history.records.extend(found.records);
            next = found.earlier;
        }
        Ok(history)
    }

    fn index(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of jobs in the index.
    pub fn jobs(&self) -> usize {
        self.index.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// The records of one job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    records: Vec<Record>,
    /// When this worker committed or learned of the newest intent to send, in milliseconds since 1970.
    intended_at: Option<i64>,
}

impl History {
    /// Whether some pass over the job is complete: all outcomes of one pass are committed together.
    pub fn has_outcome(&self) -> bool {
        self.outcomes().next().is_some()
    }

    /// The addresses for which the intent of attempt number `attempt` is recorded, but no outcome.
    pub fn in_doubt(&self, attempt: u32) -> Vec<AddressId> {
        let intended = |record: &&Record| record.state == State::Attempting && record.attempt == attempt;
        let mut doubtful: Vec<AddressId> = self
            .records
            .iter()
            .filter(intended)
            .filter_map(|record| record.address)
            .collect();
        doubtful.retain(|address| !self.is_done(*address, attempt));
        doubtful.dedup();
        doubtful
    }

    /// When this worker committed or learned of the newest intent to send, by its own clock.
    pub fn intended_at(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.intended_at?).ok()
    }

    /// Whether a newer worker recorded a state that this version does not know. Then only a newer worker may continue the
    /// job. Such a record no longer counts once the same attempt has a record with a known state.
    pub fn has_unrecognized(&self) -> bool {
        let unrecognized = |record: &&Record| record.state == State::Unrecognized;
        let understood = |record: &Record| {
            self.records.iter().any(|other| {
                other.state != State::Unrecognized && (other.address, other.attempt) == (record.address, record.attempt)
            })
        };
        self.records
            .iter()
            .filter(unrecognized)
            .any(|record| !understood(record))
    }

    /// The states after the first attempts, one per address.
    pub fn first_outcomes(&self) -> Vec<State> {
        let first = self.outcomes().filter(|record| record.attempt == 1);
        first.map(|record| record.state).collect()
    }

    /// Every record: the address, the number of the attempt, and the state after it.
    pub fn states(&self) -> impl Iterator<Item = (Option<AddressId>, u32, State)> {
        self.records
            .iter()
            .map(|record| (record.address, record.attempt, record.state))
    }

    fn outcomes(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.state.is_outcome())
    }

    /// Whether the job ended as a whole, without an address, for example because its recipient is unknown.
    pub fn ended_as_a_whole(&self) -> bool {
        self.outcomes()
            .any(|record| record.address.is_none() && record.state.is_final())
    }

    /// Whether the pass over the whole job that started with attempt number `attempt` is complete. Records of a later
    /// attempt do not show that: the worker may have crashed after it stored a retry and before it committed the pass, and
    /// then the job is redelivered for the other addresses.
    pub fn has_completed_pass(&self, attempt: u32) -> bool {
        self.ended_as_a_whole() || self.outcomes().any(|record| record.attempt <= attempt)
    }

    /// The number of records that end the delivery to `address`, or the job as a whole if `None`, and so rule out attempt
    /// number `attempt`. More than one if two workers had the job at the same time.
    pub fn endings(&self, address: Option<AddressId>, attempt: u32) -> usize {
        let ends = |record: &&Record| record.address == address && record.rules_out(attempt);
        self.records.iter().filter(ends).count()
    }

    /// Whether attempt number `attempt` at `address` was made already, or is no longer wanted.
    pub fn is_done(&self, address: AddressId, attempt: u32) -> bool {
        self.outcomes()
            .filter(|record| record.address == Some(address))
            .any(|record| record.rules_out(attempt) || record.attempt >= attempt)
    }
}

impl Record {
    /// Whether attempt number `attempt` is no longer wanted after this record. A person may replay a dead or unknown
    /// delivery, so such a record rules out no later attempt.
    fn rules_out(&self, attempt: u32) -> bool {
        self.state.is_final() && (!self.state.is_replayable() || self.attempt >= attempt)
    }
}
