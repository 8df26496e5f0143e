//! Drops what was done before.
//!
//! All outcomes of one pass over a job are committed together, so any record of a first attempt means that the pass is
//! complete. The record of a retry does not: it may have overtaken a pass that crashed after parking it. A retry is for
//! one address and one attempt, and is looked up as such.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{id::JobId, job::Job};
use uuid::Uuid;

use super::{Pipeline, Settlement, Step, Stop, Ticket, open::Opened};
use crate::{ledger::History, pulled::Pulled};

/// A job that was not done before, reserved for this process.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) pulled: Pulled,
    pub(super) job: Arc<Job>,
    pub(super) reserved: Reserved,
    /// What is known of it all the same.
    pub(super) history: History,
}

/// Jobs under way in this process. A redelivery of one of them must wait for what becomes of it.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<HashSet<Key>>>);

type Key = (JobId, Option<Uuid>);

/// A job is under way for as long as this lives.
#[derive(Debug)]
pub(super) struct Reserved {
    key: Key,
    all: InFlight,
}

impl InFlight {
    /// Jobs under way.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn reserve(&self, key: Key) -> Option<Reserved> {
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        new.then(|| Reserved { key, all: self.clone() })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.all
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

impl Pipeline {
    pub(super) fn dedupe(&self, opened: Opened) -> Step<Fresh> {
        let Opened { pulled, job } = opened;
        let address = job.remaining.as_ref().and_then(|remaining| remaining.first()).copied();
        let Some(reserved) = self.in_flight.reserve((job.id, address.map(|address| address.0))) else {
            return Err(Stop::GiveBack(pulled.into(), Duration::from_secs(1)));
        };
        let history = match self.ledger.look_up(job.id) {
            Ok(history) => history,
            Err(error) => {
                tracing::error!(%error, "ledger cannot be read; jobs wait");
                return Err(Stop::GiveBack(pulled.into(), Duration::from_secs(5)));
            }
        };
        let done = match address {
            None => history.has_pass(job.attempt),
            Some(address) => history.is_settled_whole() || history.has(address, job.attempt),
        };
        if done {
            return Err(self.repeated(pulled, &job, reserved));
        }
        Ok(Fresh {
            pulled,
            job,
            reserved,
            history,
        })
    }

    /// Ends the path of a job that was done before.
    pub(super) fn repeated(&self, pulled: Pulled, job: &Job, reserved: Reserved) -> Stop {
        self.telemetry.metrics.duplicate();
        Stop::silently(pulled, job, reserved)
    }
}

impl Stop {
    /// Ends the path of a job of which there is nothing more to be said here.
    pub(super) fn silently(pulled: Pulled, job: &Job, reserved: Reserved) -> Self {
        Self::Settle(Box::new(Settlement {
            ticket: Ticket::new(pulled, Some(reserved), None),
            app: job.app.clone(),
            origin: job.origin.clone(),
            receipts: Vec::new(),
        }))
    }
}
