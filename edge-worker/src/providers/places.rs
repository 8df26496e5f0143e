//! Bulkheads: they keep a credential whose provider is slow from taking all places of a worker, which are the attempts
//! that it may have in flight.
//!
//! A fast provider frees its places at once, however many it uses, and a credential alone on the worker may use all
//! places. A credential is limited to a share of the places only while most of its attempts are slow and others share
//! the worker, so that jobs of the others are still pulled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use shared::provider::Provider;

use super::Outcome;

/// An attempt without an answer for this long is slow. Answers usually take some 100 ms.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(1);

/// The share of a credential whose provider is slow: the worker's places divided by this.
const SLOW_SHARE_DIVISOR: usize = 4;

/// When an attempt without a place is retried; up to twice as long, so that retries do not coincide.
const RETRY_PLACE_AFTER: Duration = Duration::from_secs(2);

/// Shared by all credentials of one worker.
#[derive(Debug)]
pub(super) struct Bulkheads {
    /// How many places a credential may take whose provider is slow.
    share: AtomicUsize,
    /// How many credentials are in use, by provider.
    credentials: [AtomicUsize; Provider::ALL.len()],
}

impl Bulkheads {
    /// No bulkheads until [`Self::divide`] is called.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            share: AtomicUsize::new(usize::MAX),
            credentials: Default::default(),
        })
    }

    /// Divides `in_flight` places between the credentials.
    pub(super) fn divide(&self, in_flight: usize) {
        self.share
            .store((in_flight / SLOW_SHARE_DIVISOR).max(1), Ordering::Relaxed);
    }

    /// Records how many credentials of `provider` are in use.
    pub(super) fn count(&self, provider: Provider, credentials: usize) {
        self.credentials[provider as usize].store(credentials, Ordering::Relaxed);
    }

    fn is_shared(&self) -> bool {
        let counts = self.credentials.iter().map(|count| count.load(Ordering::Relaxed));
        counts.sum::<usize>() > 1
    }
}

/// The places of one credential.
#[derive(Debug)]
pub(super) struct Places {
    bulkheads: Arc<Bulkheads>,
    taken: AtomicUsize,
    /// How many of the taken places have slow attempts.
    slow: AtomicUsize,
}

impl Places {
    pub(super) fn new(bulkheads: Arc<Bulkheads>) -> Self {
        Self {
            bulkheads,
            taken: AtomicUsize::new(0),
            slow: AtomicUsize::new(0),
        }
    }

    /// Takes a place, until the result is dropped.
    ///
    /// # Errors
    /// [`Outcome::NotYet`], if the credential has taken its share and most of its attempts are slow.
    pub(super) fn take(&self) -> Result<Taken<'_>, Outcome> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = Taken(&self.taken);
        let is_full = before >= self.bulkheads.share.load(Ordering::Relaxed)
            && self.slow.load(Ordering::Relaxed) > before / 2
            && self.bulkheads.is_shared();
        if !is_full {
            return Ok(place);
        }
        Err(Outcome::NotYet {
            reason: "provider_slow".into(),
            wait: RETRY_PLACE_AFTER.mul_f64(rand::random_range(1.0..2.0)),
        })
    }

    /// Counts an attempt as slow, until the result is dropped.
    pub(super) fn slow(&self) -> Taken<'_> {
        self.slow.fetch_add(1, Ordering::Relaxed);
        Taken(&self.slow)
    }
}

/// Counts one attempt until it is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a>(&'a AtomicUsize);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(in_flight: usize, credentials: usize) -> Places {
        let bulkheads = Bulkheads::new();
        bulkheads.divide(in_flight);
        bulkheads.count(Provider::Apns, credentials);
        Places::new(bulkheads)
    }

    /// How many of 100 attempts get a place, if all are slow or none.
    fn taken(places: &Places, slow: bool) -> usize {
        let mut taken = Vec::new();
        for _ in 0..100 {
            let place = places.take();
            let slow = slow.then(|| places.slow());
            match place {
                Ok(place) => taken.push((place, slow)),
                Err(outcome) => assert!(!outcome.counts(), "nothing was attempted"),
            }
        }
        taken.len()
    }

    #[test]
    fn a_slow_credential_is_limited_to_its_share_if_there_are_others() {
        assert_eq!(taken(&places(64, 2), true), 16);
        assert_eq!(taken(&places(1, 2), true), 1, "at least one place");
        assert_eq!(taken(&places(64, 2), false), 100, "a fast one frees its places soon");
    }

    #[test]
    fn a_slow_credential_alone_may_use_all_places() {
        assert_eq!(taken(&places(64, 1), true), 100);
    }

    #[test]
    fn places_are_freed() {
        let places = places(4, 2);
        for _ in 0..3 {
            assert_eq!(taken(&places, true), 1);
        }
    }
}
