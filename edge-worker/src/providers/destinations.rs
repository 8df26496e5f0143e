//! Breakers for each destination of a credential whose messages go to many places, such as the receivers of webhooks: one that
//! fails does not pause the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared::provider::Provider;

use super::{Attempted, Outcome, breaker::Circuit};

/// Destinations of one credential that have a breaker at one time. Only those that fail have one.
const FAILING_MAX: usize = 10_000;

/// The destinations of one credential that have failed since they last worked.
#[derive(Debug)]
pub(super) struct Destinations {
    provider: Provider,
    /// Names the credential; no secret.
    credential: String,
    failing: Mutex<HashMap<u64, Arc<Circuit>>>,
}

impl Destinations {
    pub(super) fn new(provider: Provider, credential: String) -> Self {
        Self {
            provider,
            credential,
            failing: Mutex::default(),
        }
    }

    /// Admits an attempt.
    ///
    /// # Errors
    /// The outcome, if the breaker of `destination` is open.
    pub(super) fn admit(&self, destination: u64) -> Result<(), Outcome> {
        let circuit = self.failing().get(&destination).cloned();
        circuit.map_or(Ok(()), |circuit| circuit.admit())
    }

    /// Records an attempt.
    pub(super) fn learn(&self, destination: u64, attempted: &Attempted) {
        let mut failing = self.failing();
        let circuit = match failing.get(&destination) {
            Some(circuit) => circuit.clone(),
            None if matches!(attempted.outcome, Outcome::Accepted { .. }) => return,
            None => self.circuit(),
        };
        circuit.learn(attempted, || false);
        if circuit.is_clear() {
            failing.remove(&destination);
            return;
        }
        if failing.len() >= FAILING_MAX {
            failing.retain(|_, circuit| circuit.is_open());
        }
        if failing.len() < FAILING_MAX {
            failing.entry(destination).or_insert(circuit);
        }
    }

    fn circuit(&self) -> Arc<Circuit> {
        Arc::new(Circuit::of_destination(self.provider, self.credential.clone()))
    }

    fn failing(&self) -> MutexGuard<'_, HashMap<u64, Arc<Circuit>>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn attempted(outcome: Outcome) -> Attempted {
        Attempted {
            outcome,
            provider: Provider::Apns,
            status: None,
            endpoint: "".into(),
            template: "",
            started_at: jiff::Timestamp::UNIX_EPOCH,
            ended_at: jiff::Timestamp::UNIX_EPOCH,
            took: Duration::ZERO,
        }
    }

    fn fail(destinations: &Destinations, destination: u64, times: usize) {
        for _ in 0..times {
            destinations.learn(destination, &attempted(Outcome::endpoint("connect", None)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_does_not_pause_the_others() {
        let all = Destinations::new(Provider::Apns, "shop".into());
        fail(&all, 1, 10);
        fail(&all, 2, 9);
        assert!(matches!(all.admit(1), Err(Outcome::EndpointTrouble { .. })));
        assert_eq!((all.admit(2), all.admit(3)), (Ok(()), Ok(())));
        let worked = attempted(Outcome::Accepted { provider_id: None });
        for destination in [1, 2, 3] {
            all.learn(destination, &worked);
        }
        assert_eq!(all.admit(1), Ok(()));
        assert_eq!(all.failing().len(), 0, "those that work take no memory");
    }

    #[tokio::test(start_paused = true)]
    async fn their_number_is_bounded() {
        let all = Destinations::new(Provider::Apns, "shop".into());
        fail(&all, 0, 10);
        for destination in 1..=(FAILING_MAX as u64 + 100) {
            fail(&all, destination, 1);
        }
        assert!(all.failing().len() <= FAILING_MAX);
        assert!(all.admit(0).is_err(), "an open breaker stays");
    }
}
