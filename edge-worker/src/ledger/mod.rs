//! What became of every delivery of this region: the memory that makes a redelivered job harmless.
//!
//! The ledger is this worker's copy of the region's receipts, and the place where its own receipts are safe before they
//! are published: an outcome is committed here, then published, then the job is acknowledged. After a crash in between
//! the commit is found, published under the same message id, and the redelivered job skips what was done. The receipts
//! of the other workers are followed, so that a job which comes to another worker meets the same memory.

mod committer;
mod index;
mod store;
mod sync;
#[cfg(test)]
mod tests;

pub use self::{
    committer::{Committed, Committer, Gone, Settled},
    index::Index,
    store::{Outgoing, Record, Store, StoreError},
    sync::{Sync, publish_left_over},
};

use std::sync::{Arc, PoisonError, RwLock};

use shared::{
    id::{AddressId, JobId},
    receipt::State,
};

/// Reading side of the ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    index: Arc<RwLock<Index>>,
    store: Arc<Store>,
}

impl Ledger {
    /// Over `store`, with the index of everything in it.
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

    /// What is known of `job`; empty for a job never seen, which costs one look at memory.
    ///
    /// # Errors
    /// When the file cannot be read; the job must then wait, for nobody knows whether it was done.
    pub fn look_up(&self, job: JobId) -> Result<History, StoreError> {
        let mut next = self.index.read().unwrap_or_else(PoisonError::into_inner).last(job);
        let mut records = Vec::new();
        while let Some(entry) = next {
            let (found, earlier) = self.store.records_of(entry, job)?;
            records.extend(found);
            next = earlier;
        }
        Ok(History(records))
    }

    fn index(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs remembered.
    pub fn jobs(&self) -> usize {
        self.index.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What the ledger knows of one job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History(Vec<Record>);

impl History {
    /// Whether a pass over the job is complete: all outcomes of one pass are committed together.
    pub fn has_outcome(&self) -> bool {
        self.outcomes().next().is_some()
    }

    /// Addresses that attempt number `attempt` was about to be made to, if nothing tells what came of it.
    pub fn in_doubt(&self, attempt: u32) -> Vec<AddressId> {
        let about_to = |record: &&Record| record.state == State::Attempting && record.attempt == attempt;
        let mut doubtful: Vec<AddressId> = self
            .0
            .iter()
            .filter(about_to)
            .filter_map(|record| record.address)
            .collect();
        doubtful.retain(|address| !self.has(*address, attempt));
        doubtful.dedup();
        doubtful
    }

    /// What the first attempts came to.
    pub fn first_outcomes(&self) -> Vec<State> {
        let first = self.outcomes().filter(|record| record.attempt == 1);
        first.map(|record| record.state).collect()
    }

    fn outcomes(&self) -> impl Iterator<Item = &Record> {
        self.0.iter().filter(|record| record.state.is_outcome())
    }

    /// Whether the job as a whole was settled without an address, as when its recipient is unknown.
    pub fn is_settled_whole(&self) -> bool {
        self.outcomes()
            .any(|record| record.address.is_none() && record.state.is_final())
    }

    /// Whether a pass over the whole job is complete that began with attempt number `attempt`. What a retry came to may be
    /// known while the pass that parked it is not: its worker crashed, and the job comes again for the other addresses.
    pub fn has_pass(&self, attempt: u32) -> bool {
        self.is_settled_whole() || self.outcomes().any(|record| record.attempt <= attempt)
    }

    /// How often the delivery to `address`, or the job as a whole, is said to have ended, as attempt number `attempt` sees
    /// it. More than once if two workers had it at one time.
    pub fn endings(&self, address: Option<AddressId>, attempt: u32) -> usize {
        let ended = |record: &&Record| record.address == address && record.ends(attempt);
        self.0.iter().filter(ended).count()
    }

    /// Whether attempt number `attempt` to `address` was made already, or is no longer wanted.
    pub fn has(&self, address: AddressId, attempt: u32) -> bool {
        self.outcomes()
            .filter(|record| record.address == Some(address))
            .any(|record| record.ends(attempt) || record.attempt >= attempt)
    }
}

impl Record {
    /// Whether attempt number `attempt` is no longer wanted. What a person may replay is wanted again by a later one.
    fn ends(&self, attempt: u32) -> bool {
        self.state.is_final() && (!self.state.is_replayable() || self.attempt >= attempt)
    }
}
