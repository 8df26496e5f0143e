//! Jobs under way in this process.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use shared::{id::JobId, job::Job};
use uuid::Uuid;

use crate::pulled::Pulled;

/// Jobs under way in this process. If one of them is redelivered meanwhile, the copy has to wait for its outcome.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<HashSet<Key>>>);

/// A job, and for a retry the address that it is for: retries of one job for several addresses do not wait for each other.
type Key = (JobId, Option<Uuid>);

/// A job counts as under way for as long as this lives.
#[derive(Debug)]
pub(super) struct Reservation {
    key: Key,
    in_flight: InFlight,
}

/// A job that this process works on: the message that brought it, and its reservation.
#[derive(Debug)]
pub(super) struct ActiveJob {
    pub(super) pulled: Pulled,
    pub(super) job: Arc<Job>,
    pub(super) reservation: Reservation,
}

impl InFlight {
    /// The number of jobs under way.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no job is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reserves a job; `None` if it is under way already.
    pub(super) fn reserve(&self, key: Key) -> Option<Reservation> {
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        new.then(|| Reservation {
            key,
            in_flight: self.clone(),
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.in_flight
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}
