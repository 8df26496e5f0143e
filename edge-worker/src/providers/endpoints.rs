//! Endpoints in order of preference, and which of them failed lately.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// For how long an endpoint that could not be reached is tried after the others.
const AVOIDED: Duration = Duration::from_secs(30);

/// Endpoints in order of preference. One that could not be reached goes to the end for [`AVOIDED`].
#[derive(Debug)]
pub(super) struct Endpoints<T> {
    all: Vec<Endpoint<T>>,
    start: Instant,
}

/// One endpoint.
#[derive(Debug)]
struct Endpoint<T> {
    value: T,
    /// Milliseconds after `start`; zero means never.
    avoid_until: AtomicU64,
}

impl<T> Endpoints<T> {
    pub(super) fn new(values: impl IntoIterator<Item = T>) -> Self {
        let all = values
            .into_iter()
            .map(|value| Endpoint {
                value,
                avoid_until: AtomicU64::new(0),
            })
            .collect();
        Self {
            all,
            start: Instant::now(),
        }
    }

    /// All of them, those first that did not fail lately.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (usize, &T)> {
        let now = self.elapsed_ms();
        let at = |avoided: bool| {
            let each = self.all.iter().enumerate();
            each.filter(move |(_, endpoint)| (endpoint.avoid_until.load(Ordering::Relaxed) > now) == avoided)
        };
        at(false)
            .chain(at(true))
            .map(|(index, endpoint)| (index, &endpoint.value))
    }

    /// The endpoint at `index` could not be reached.
    pub(super) fn failed(&self, index: usize) {
        let until = self.elapsed_ms() + u64::try_from(AVOIDED.as_millis()).unwrap_or(u64::MAX);
        self.all[index].avoid_until.store(until, Ordering::Relaxed);
    }

    /// The endpoint at `index` was reached.
    pub(super) fn worked(&self, index: usize) {
        // Looked at first: all cores read this, and a store would take the cache line from them at every push.
        if self.all[index].avoid_until.load(Ordering::Relaxed) != 0 {
            self.all[index].avoid_until.store(0, Ordering::Relaxed);
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_failed_comes_last_until_it_worked_or_time_has_passed() {
        let endpoints = Endpoints::new(["near", "far", "further"]);
        let order = || endpoints.in_order().map(|(_, name)| *name).collect::<Vec<_>>();
        assert_eq!(order(), ["near", "far", "further"]);
        endpoints.failed(0);
        assert_eq!(order(), ["far", "further", "near"]);
        endpoints.failed(1);
        endpoints.failed(2);
        assert_eq!(
            order(),
            ["near", "far", "further"],
            "when all failed the order is as configured"
        );
        endpoints.worked(1);
        assert_eq!(order(), ["far", "near", "further"]);
        tokio::time::advance(AVOIDED).await;
        assert_eq!(order(), ["near", "far", "further"]);
    }
}
