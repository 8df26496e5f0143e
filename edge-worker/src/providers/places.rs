//! Bulkheads: keeps one credential whose provider is slow from taking all that the worker may have under way.
//!
//! Speed alone is no reason to refuse: a fast provider frees its places at once, however many it uses, and a credential
//! alone on the worker may use everything. Only where most attempts of a credential wait for their answers does it keep
//! to a share of the places, so that jobs of the others are still pulled.

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

/// A credential whose provider is slow keeps to one in this many of the worker's places, where others share the worker.
const SHARE: usize = 4;

/// When an attempt comes back that found no place; up to twice as long, so that they do not come back together.
const RETRY_PLACE_AFTER: Duration = Duration::from_secs(2);

/// What the credentials of one worker share.
#[derive(Debug)]
pub(super) struct Bulkheads {
    /// Places of a credential whose provider is slow.
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
        self.share.store((in_flight / SHARE).max(1), Ordering::Relaxed);
    }

    /// `provider` has this many credentials in use.
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
    /// Of those, how many are slow.
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
    /// The outcome of not sending, if the credential has its share and most of that is slow.
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

/// Counts one attempt, for as long as this lives.
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
    fn a_slow_credential_keeps_to_its_share_where_others_wait() {
        assert_eq!(taken(&places(64, 2), true), 16);
        assert_eq!(taken(&places(1, 2), true), 1, "at least one place");
        assert_eq!(taken(&places(64, 2), false), 100, "a fast one frees its places soon");
    }

    #[test]
    fn a_credential_alone_uses_everything() {
        assert_eq!(taken(&places(64, 1), true), 100);
    }

    #[test]
    fn places_come_back() {
        let places = places(4, 2);
        for _ in 0..3 {
            assert_eq!(taken(&places, true), 1);
        }
    }
}
