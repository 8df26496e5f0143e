//! Jobs in flight in this process.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use shared::{id::JobId, job::Job};
use uuid::Uuid;

use crate::pulled::Pulled;

/// The jobs in flight in this process. If one of them is redelivered, the copy must wait for the outcome.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<HashSet<Key>>>);

/// A job, and for a retry its address: retries of one job for different addresses do not wait for each other.
type Key = (JobId, Option<Uuid>);

/// Keeps a job in flight until it is dropped.
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
    /// The number of jobs in flight.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no job is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reserves a job; `None` if it is in flight already.
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
