//! Holds pulled work until what this worker knows is current: until the cache contains what the region's bucket contained
//! after the work was pulled, and every withdrawal and every suppression is known that was answered before. So what a gateway
//! answered holds for each notification that it accepts later, and nothing is sent that was withdrawn before it was pulled.
//!
//! Only the leader of a stream knows its end; with three copies, the others lag. Up to three requests are one question: for the
//! end of the bucket, of the withdrawals and, for mail and text messages, of the suppressions. One answer serves all work that was pulled before the question was sent,
//! and one question is in flight at a time.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use shared::{
    nats::{
        cancelled, connect,
        follow::{self, StreamState},
        restore, subject, suppressions, topology,
    },
    suppression::Suppression,
};
use tokio::{
    join,
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{context::Pipeline, pull::PULL_AFTER_RECONNECT};
use crate::{
    cache::Position,
    limits::{ANSWER_DUE_AFTER, CACHE_CURRENT_WITHIN, FACTS_ASKED_WITHIN},
    pulled::Pulled,
};

/// The shortest time from one question to the next, for each piece of work that the first one was asked for, and in all. Work that
/// comes meanwhile shares the next answer: little work is not kept waiting, and much costs few questions.
const ASK_AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// A question without an answer is asked again after this time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// The pause before a failed question is asked again.
const RETRY_QUESTION_AFTER: Duration = Duration::from_millis(100);

/// The work that waits.
#[derive(Debug, Default)]
pub struct Barrier {
    waiting: Mutex<Vec<Waiting>>,
    /// Woken when work comes, or when no more will come.
    arrived: Notify,
    closed: AtomicBool,
    /// When the bucket was created that is known to be restored, milliseconds since 1970.
    restored_ms: AtomicI64,
}

#[derive(Debug)]
struct Waiting {
    pulled: Pulled,
    /// The number of the connection over which it was pulled; see [`connect::connects`].
    connection: u64,
    since: Instant,
}

impl Waiting {
    fn may_be_suppressed(&self) -> bool {
        subject::channel_of(self.pulled.subject()).is_none_or(Suppression::applies_to)
    }
}

/// What must be known before work starts.
#[derive(Debug, Clone, Copy)]
struct Needed {
    facts: Position,
    /// How far the withdrawals must have been read.
    withdrawals: u64,
    /// How far the suppression lists must have been read.
    suppressions: u64,
}

/// Work whose facts are current: no copy that is older than [`Pulled::facts`] may be read for it.
#[derive(Debug)]
pub(super) struct Current(pub(super) Pulled);

impl Barrier {
    /// Holds work that was pulled over this connection.
    pub(super) fn hold(&self, pulled: Pulled, connection: u64) {
        let since = Instant::now();
        self.put([Waiting {
            pulled,
            connection,
            since,
        }]);
    }

    /// Says that no more work will come.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.arrived.notify_one();
    }

    fn put(&self, waiting: impl IntoIterator<Item = Waiting>) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(waiting);
        drop(all);
        self.arrived.notify_one();
    }

    fn take(&self) -> Vec<Waiting> {
        mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until work has come. `false` if none is left and no more will come.
    async fn has_work(&self) -> bool {
        loop {
            // Read first: what came before it was set is seen below.
            let closed = self.closed.load(Ordering::Acquire);
            let is_empty = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            match (is_empty, closed) {
                (false, _) => return true,
                (true, true) => return false,
                (true, false) => self.arrived.notified().await,
            }
        }
    }
}

impl Pipeline {
    /// Starts the work that is held, as soon as the facts are current. Ends once the barrier is closed and empty.
    pub async fn pass_barrier(self: Arc<Self>) {
        let mut ask_at = Instant::now();
        while self.barrier.has_work().await {
            sleep_until(ask_at).await;
            // Before the question: the answer says nothing about work that is pulled after it.
            let batch = self.barrier.take();
            ask_at = Instant::now() + ask_again_after(batch.len());
            if let Some(needed) = self.needed(batch.iter().any(Waiting::may_be_suppressed)).await {
                if self.cache.position().reaches(needed.facts)
                    && self.cancelled.has_reached(needed.withdrawals)
                    && self.suppressions.has_reached(needed.suppressions)
                {
                    self.start(batch, needed.facts);
                } else {
                    self.lifecycle.spawn_job(self.clone().start_once_reached(batch, needed));
                }
            } else if !self.lifecycle.is_finishing() {
                self.barrier.put(give_up_old(batch));
                sleep(RETRY_QUESTION_AFTER).await;
            }
        }
    }

    /// What must be known of all that was answered until now, as the leaders of the streams say. Suppressions only if
    /// `suppressions` says so.
    async fn needed(&self, suppressions: bool) -> Option<Needed> {
        // Boxed, because they are large, and a task holds them all the time.
        let facts = Box::pin(follow::stream_state(&self.js, topology::RECIPIENTS));
        let withdrawals = Box::pin(cancelled::end(&self.js, &self.region));
        let suppressions = Box::pin(async {
            if suppressions {
                suppressions::end(&self.js, &self.region).await
            } else {
                Ok(0)
            }
        });
        let asked = async { join!(facts, withdrawals, suppressions) };
        match timeout(ANSWERED_WITHIN, asked).await {
            Ok((Ok(bucket), Ok(withdrawals), Ok(suppressions))) => self.has_facts(&bucket).await.then(|| Needed {
                facts: Position::end_of(&bucket),
                withdrawals,
                suppressions,
            }),
            Ok((Err(error), ..)) => {
                tracing::warn!(%error, "the end of the bucket of recipients is not known; work waits");
                None
            }
            Ok((_, Err(error), _) | (_, _, Err(error))) => {
                tracing::warn!(%error, "the end of the withdrawals or suppressions is not known; work waits");
                None
            }
            Err(_) => {
                tracing::warn!("a leader of the bucket of recipients or of the directory does not answer; work waits");
                None
            }
        }
    }

    /// Whether the bucket has all facts. If it was deleted, it has them once workers have restored it from their caches; until
    /// then the absence of a fact means nothing.
    async fn has_facts(&self, bucket: &StreamState) -> bool {
        let created_at_ms = bucket.created_at.as_millisecond();
        let is_known = bucket.former.is_none() || self.barrier.restored_ms.load(Ordering::Relaxed) == created_at_ms;
        if is_known {
            return true;
        }
        match timeout(
            ANSWERED_WITHIN,
            Box::pin(restore::is_complete(&self.js, &self.region, bucket)),
        )
        .await
        {
            Ok(Ok(true)) => {
                self.barrier.restored_ms.store(created_at_ms, Ordering::Relaxed);
                true
            }
            Ok(Ok(false)) => {
                tracing::debug!("the bucket of recipients is being restored; work waits");
                false
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("it is not known whether the bucket of recipients is restored; work waits");
                false
            }
        }
    }

    async fn start_once_reached(self: Arc<Self>, batch: Vec<Waiting>, needed: Needed) {
        let mut filled = self.cache_filled.clone();
        let facts = async {
            tokio::select! {
                () = self.cache.reached(needed.facts) => (),
                // While the cache is filled, work reads the bucket; see `resolve`.
                _ = filled.wait_for(|filled| !filled) => (),
                () = sleep(CACHE_CURRENT_WITHIN) => tracing::warn!("the cache lags behind the bucket of recipients"),
            }
        };
        let rules = async {
            join!(
                self.cancelled.reached(needed.withdrawals),
                self.suppressions.reached(needed.suppressions),
            )
        };
        if let ((), Ok(_)) = join!(facts, timeout(CACHE_CURRENT_WITHIN, rules)) {
            self.start(batch, needed.facts);
        } else if !self.lifecycle.is_finishing() {
            tracing::warn!("withdrawals or suppressions that were answered are not read yet; work waits");
            self.barrier.put(give_up_old(batch));
        }
    }

    fn start(self: &Arc<Self>, batch: Vec<Waiting>, needed: Position) {
        let connection = connect::connects(&self.js.client());
        if let Some(longest) = batch.iter().map(|waiting| waiting.since.elapsed()).max() {
            self.telemetry.metrics.facts_awaited(longest);
        }
        for waiting in batch {
            let mut pulled = waiting.pulled;
            if connection == waiting.connection {
                pulled.facts = needed;
                // Boxed, because the runtime moves a task's future several times, and this one has some kilobytes.
                self.lifecycle.spawn_job(Box::pin(self.clone().run(Current(pulled))));
            } else {
                // Sent before or during the loss of the connection: it must wait for the outcomes of the other workers.
                pulled.give_back(PULL_AFTER_RECONNECT);
            }
        }
    }
}

fn ask_again_after(batch: usize) -> Duration {
    let (for_each, max) = ASK_AGAIN_AFTER;
    u32::try_from(batch).map_or(max, |batch| for_each.saturating_mul(batch).min(max))
}

/// Gives back what has waited too long, and returns the rest. Facts that may be old are never used.
fn give_up_old(mut batch: Vec<Waiting>) -> Vec<Waiting> {
    for old in batch.extract_if(.., |waiting| waiting.since.elapsed() >= FACTS_ASKED_WITHIN) {
        // As long as an attempt of another worker may last: a second delivery before its end would look as if that worker had
        // been interrupted.
        old.pulled.give_back(ANSWER_DUE_AFTER);
    }
    batch
}
