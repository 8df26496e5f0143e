//! Limits how fast this process sends with one credential, to the part of the provider's limit that was granted to this
//! process. A push takes one token from a bucket that fills as time passes. Grants come from `crate::quota`, which uses
//! NATS; this file does not.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use shared::{id::AppId, provider::Provider};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};

use super::Outcome;
use crate::limits::ALLOWANCE_WITHIN;

/// The grant of a minute is spread over this many seconds, so that any minute stays within the grant even if it starts
/// with the tokens of [`MAX_SAVED_S`].
const GRANT_SPREAD_S: f64 = 61.0;

/// How much an unused bucket saves: the tokens of this many seconds.
const MAX_SAVED_S: f64 = 0.5;

/// How many pushes may wait for a token: as many as are sent in this many seconds. Further ones are parked at once, so
/// that they do not take the places of other providers.
const MAX_QUEUE_S: f64 = 0.25;

/// While nothing is granted, all pushes wait, because a grant is being requested.
const UNLIMITED_QUEUE: usize = usize::MAX;

/// When a push is retried if nothing is granted.
const RETRY_UNGRANTED_AFTER: Duration = Duration::from_secs(2);

/// The source of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The share of the worker's own region.
    Home = 0,
    /// Lent by other regions.
    Lent = 1,
}

/// The use of a grant since the last call of [`Allowance::used`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// How many tokens were taken.
    pub taken: u64,
    /// Whether a push found no token.
    pub starved: bool,
}

/// The limit of a credential, as one app states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The app that states it.
    pub app: AppId,
    /// Requests a minute that the provider lets the credential send.
    pub per_minute: u64,
}

/// The allowances of all providers.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    /// Whether credentials are limited at all.
    limited: AtomicBool,
    all: Mutex<BTreeMap<(Provider, String), Arc<Allowance>>>,
    more: Notify,
}

impl Allowances {
    /// Limits credentials to their grants from now on.
    pub(super) fn limit(&self) {
        self.limited.store(true, Ordering::Relaxed);
    }

    /// The allowance called `name`, made if it is new; `None` if credentials are not limited.
    pub(super) fn of(&self, provider: Provider, name: String) -> Option<Arc<Allowance>> {
        if !self.limited.load(Ordering::Relaxed) {
            return None;
        }
        let key = (provider, name);
        let new = || {
            self.more.notify_one();
            Arc::new(Allowance::new(provider, key.1.clone()))
        };
        Some(self.lock().entry(key.clone()).or_insert_with(new).clone())
    }

    pub(super) fn all(&self) -> Vec<Arc<Allowance>> {
        self.lock().values().cloned().collect()
    }

    /// Waits until an allowance may have been added.
    pub(super) async fn more(&self) {
        self.more.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Provider, String), Arc<Allowance>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bucket of one credential, or of several that share a limit, such as the service accounts of one Firebase
/// project.
#[derive(Debug)]
pub struct Allowance {
    provider: Provider,
    name: String,
    /// One permit a token. A push that finds a token costs only this atomic.
    tokens: Semaphore,
    waiting: AtomicUsize,
    /// How many pushes may wait.
    queue: AtomicUsize,
    starved: AtomicBool,
    wanted: Notify,
    granted: Notify,
    fill: Mutex<Fill>,
}

/// Counts one waiting push until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Fill {
    /// Messages a minute, and when the grant ends; by [`Source`].
    grants: [(u64, Instant); 2],
    filled: Instant,
    /// The fraction of a token that is not in the bucket yet.
    rest: f64,
    /// How many tokens were ever put into the bucket.
    put: u64,
    /// Of `put`, the tokens that [`Allowance::used`] has reported as taken.
    seen: u64,
    /// When the push that was parked last is to be retried.
    parked: Instant,
}

impl Allowance {
    /// A bucket, empty and without a grant.
    fn new(provider: Provider, name: String) -> Self {
        let now = Instant::now();
        Self {
            provider,
            name,
            tokens: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            queue: AtomicUsize::new(UNLIMITED_QUEUE),
            starved: AtomicBool::new(false),
            wanted: Notify::new(),
            granted: Notify::new(),
            fill: Mutex::new(Fill {
                grants: [(0, now); 2],
                filled: now,
                rest: 0.0,
                put: 0,
                seen: 0,
                parked: now,
            }),
        }
    }

    /// The provider that sets the limit.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The name of the limit, such as a Firebase project; no secret.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_of(&self, provider: Provider, name: &str) -> bool {
        self.provider == provider && self.name == name
    }

    /// Takes a token, for one request; waits up to [`ALLOWANCE_WITHIN`] if there is none.
    ///
    /// # Errors
    /// [`Outcome::NotYet`], with the wait until the turn of this push.
    pub(super) async fn take(&self) -> Result<(), Outcome> {
        if let Ok(token) = self.tokens.try_acquire() {
            token.forget();
            return Ok(());
        }
        self.starved.store(true, Ordering::Relaxed);
        self.wanted.notify_one();
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before < self.queue.load(Ordering::Relaxed)
            && let Ok(Ok(token)) = timeout(ALLOWANCE_WITHIN, self.tokens.acquire()).await
        {
            token.forget();
            return Ok(());
        }
        Err(Outcome::NotYet {
            reason: "project_quota".into(),
            wait: self.turn(),
        })
    }

    /// How long until the turn of this push, behind those that were parked before it.
    fn turn(&self) -> Duration {
        let now = Instant::now();
        let mut fill = self.fill();
        let rate = fill.rate(now);
        if rate == 0 {
            return RETRY_UNGRANTED_AFTER;
        }
        let apart = Duration::from_mins(1) / u32::try_from(rate).unwrap_or(u32::MAX);
        fill.parked = fill.parked.max(now) + apart;
        fill.parked - now
    }

    /// Grants `rate` messages a minute until `ends`. Replaces the previous grant from the same source.
    pub fn grant(&self, from: Source, rate: u64, ends: Instant) {
        let now = Instant::now();
        let mut fill = self.fill();
        // The time until now is filled at the previous rate.
        self.fill_up(&mut fill, now);
        fill.grants[from as usize] = (rate, ends);
        self.fill_up(&mut fill, now);
        drop(fill);
        self.granted.notify_one();
    }

    /// The use since the last call.
    pub fn used(&self) -> Use {
        let mut fill = self.fill();
        let taken = fill.put - self.tokens.available_permits() as u64;
        let seen = std::mem::replace(&mut fill.seen, taken);
        Use {
            taken: taken - seen,
            starved: self.starved.swap(false, Ordering::Relaxed),
        }
    }

    /// Messages a minute that are granted now.
    pub fn rate(&self) -> u64 {
        self.fill().rate(Instant::now())
    }

    /// Waits until a push finds no token.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until something is granted after nothing was.
    pub async fn granted(&self) {
        self.granted.notified().await;
    }

    /// Puts the tokens for the time since the last refill into the bucket. Returns whether anything is granted.
    pub fn refill(&self) -> bool {
        let now = Instant::now();
        let mut fill = self.fill();
        self.fill_up(&mut fill, now);
        fill.rate(now) > 0
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a bucket has some thousand tokens"
    )]
    fn fill_up(&self, fill: &mut Fill, now: Instant) {
        let lasted = |(rate, ends): (u64, Instant)| {
            let time = ends.min(now).saturating_duration_since(fill.filled);
            rate as f64 / GRANT_SPREAD_S * time.as_secs_f64()
        };
        fill.rest += fill.grants.into_iter().map(lasted).sum::<f64>();
        fill.filled = now;
        let rate = fill.rate(now);
        let worth = |seconds: f64| (rate as f64 / GRANT_SPREAD_S * seconds).ceil();
        let there = self.tokens.available_permits();
        let (whole, most, queue) = (
            fill.rest as usize,
            worth(MAX_SAVED_S) as usize,
            worth(MAX_QUEUE_S) as usize,
        );
        self.queue
            .store(if rate == 0 { UNLIMITED_QUEUE } else { queue }, Ordering::Relaxed);
        fill.rest -= whole as f64;
        let new = whole.min(most.saturating_sub(there));
        fill.put += new as u64;
        self.tokens.add_permits(new);
        // Tokens left from an ended grant must not be used later.
        fill.put -= self.tokens.forget_permits(there.saturating_sub(most)) as u64;
    }

    fn fill(&self) -> MutexGuard<'_, Fill> {
        self.fill.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fill {
    fn rate(&self, now: Instant) -> u64 {
        let lasting = self.grants.iter().filter(|(_, ends)| now < *ends);
        lasting.map(|(rate, _)| rate).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> Allowance {
        Allowance::new(Provider::Fcm, "p".into())
    }

    fn taken(quota: &Allowance) -> u64 {
        let mut taken = 0;
        while let Ok(token) = quota.tokens.try_acquire() {
            token.forget();
            taken += 1;
        }
        taken
    }

    /// How many pushes are sent in `seconds` if they are tried continuously.
    async fn sent(quota: &Allowance, seconds: u64) -> u64 {
        let mut all = 0;
        for _ in 0..seconds * 50 {
            tokio::time::advance(Duration::from_millis(20)).await;
            quota.refill();
            all += taken(quota);
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_has_more_than_the_grant() {
        let quota = bucket();
        assert_eq!(sent(&quota, 10).await, 0, "nothing is granted");
        quota.grant(Source::Home, 6000, Instant::now() + Duration::from_secs(1000));
        let first = sent(&quota, 60).await;
        assert!((5880..=6000).contains(&first), "{first}");
        // A pause that is longer than tokens are saved.
        for _ in 0..500 {
            tokio::time::advance(Duration::from_millis(20)).await;
            quota.refill();
        }
        let after_a_pause = sent(&quota, 60).await;
        assert!((first..=6000).contains(&after_a_pause), "{after_a_pause}");
        assert_eq!(quota.used().taken, first + after_a_pause);
    }

    #[tokio::test(start_paused = true)]
    async fn grants_add_up_and_end() {
        let quota = bucket();
        let now = Instant::now();
        quota.grant(Source::Home, 6100, now + Duration::from_secs(20));
        quota.grant(Source::Lent, 12_200, now + Duration::from_secs(10));
        assert_eq!(quota.rate(), 18_300);
        let (both, one, none) = (sent(&quota, 10).await, sent(&quota, 10).await, sent(&quota, 10).await);
        assert!(
            (2970..=3001).contains(&both) && (980..=1001).contains(&one) && none == 0,
            "{both} {one} {none}"
        );
        assert_eq!(quota.rate(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn parked_pushes_are_retried_in_turn() {
        let quota = bucket();
        let wait = |outcome: Result<(), Outcome>| match outcome {
            Err(Outcome::NotYet { wait, .. }) => wait,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(quota.take().await), RETRY_UNGRANTED_AFTER);
        assert!(quota.used().starved);
        quota.grant(Source::Home, 60, Instant::now() + Duration::from_secs(1000));
        let _first_in_the_queue = Waiting(&quota.waiting);
        quota.waiting.store(1, Ordering::Relaxed);
        for turn in 1..100 {
            assert_eq!(wait(quota.take().await), Duration::from_secs(turn));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn first_pushes_wait_for_the_grant() {
        let quota = bucket();
        let granting = async {
            quota.wanted().await;
            quota.grant(Source::Home, 61_000, Instant::now() + Duration::from_secs(1000));
            while quota.refill() && quota.waiting.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let pushes = futures::future::join_all((0..900).map(|_| quota.take()));
        let (outcomes, ()) = tokio::join!(pushes, granting);
        assert!(
            outcomes.iter().all(Result::is_ok),
            "no push is parked because nothing was granted yet"
        );
    }
}
