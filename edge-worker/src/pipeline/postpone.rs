//! Lets work wait on a schedule that cannot be done for a reason of its own, such as a recipient who cannot be read. In its
//! lane it would be redelivered as long as its notification lives, and nothing behind it could be trimmed.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use shared::{
    broadcast::Broadcast,
    id::{AddressId, AppId, JobId},
    job::Job,
    nats::{
        defer::{self, CannotDefer, Deferral, Unread},
        subject::{self, Lane},
    },
    receipt::State,
};

use super::{
    context::Pipeline,
    in_flight::ActiveJob,
    settlement::{RETRY_JETSTREAM_AFTER, Settlement, Stop, Ticket},
};
use crate::pulled::Pulled;

/// After this number of tries work waits on a schedule.
pub(super) const POSTPONED_AFTER_TRIES: i64 = 5;

/// How long work waits on a schedule, at least and at most. Between, it waits as long as it has waited since it was
/// accepted.
const WAIT: (SignedDuration, SignedDuration) = (SignedDuration::from_secs(30), SignedDuration::from_hours(1));

/// How long a slice stays away that waits for its members, at least, once it was accepted an hour ago or longer.
const SLICE_PAUSE_MAX: SignedDuration = SignedDuration::from_mins(15);

/// How long work that cannot wait on a schedule stays with the server, at most.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

impl Pipeline {
    /// Lets a job wait because of `reason`, a stable word. For the first tries it stays with the server for `retry_after`.
    pub(super) async fn postpone(&self, active: ActiveJob, reason: &'static str, retry_after: Duration) -> Stop {
        let pulled = &active.pulled;
        if pulled.tries < POSTPONED_AFTER_TRIES {
            return Stop::GiveBack(active.pulled.into(), retry_after);
        }
        self.wait_on_schedule(active, reason, retry_after, Timestamp::MAX).await
    }

    /// Lets a job wait on a schedule at once because of `reason`, a stable word, at most until `at_most`. One that cannot stays with
    /// the server for `retry_after`, or longer.
    pub(super) async fn wait_on_schedule(
        &self,
        active: ActiveJob,
        reason: &'static str,
        retry_after: Duration,
        at_most: Timestamp,
    ) -> Stop {
        let (pulled, job) = (&active.pulled, Arc::clone(&active.job));
        let now = self.clock.now();
        let until = self.back_at(&job).min(at_most);
        let deferral = match Deferral::new(&job, until, reason) {
            Ok(deferral) if until > now => deferral,
            Ok(_) | Err(CannotDefer::Expires) => return Stop::GiveBack(active.pulled.into(), retry_after),
            Err(CannotDefer::Retry) if subject::is_fresh(pulled.subject()) => {
                let (work, accepted_at) = (job.id, job.accepted_at);
                let address = job.remaining.iter().flatten().next().copied();
                return self.reschedule(active.pulled, work, address, accepted_at).await;
            }
            // It is no work of the stream that is trimmed.
            Err(CannotDefer::Retry | CannotDefer::Member) => {
                let wait = self.clock.since(job.accepted_at).clamp(retry_after, MAX_RETRY_AFTER);
                return Stop::GiveBack(active.pulled.into(), wait);
            }
        };
        tracing::warn!(job = %job.id, reason, %until, "job cannot be worked on; it waits");
        self.store_deferral(active, deferral).await
    }

    /// Stores the schedule of a job that waits as a whole, and ends its path with the receipt.
    pub(super) async fn store_deferral(&self, active: ActiveJob, deferral: Deferral<'_>) -> Stop {
        let ActiveJob { pulled, job, .. } = &active;
        let (lane, tier) = (self.lane(job), self.tier_of_retry(pulled, job));
        let storing = deferral.store(&self.js, &lane, tier, pulled.headers(), pulled.payload());
        if let Err(error) = storing.await {
            tracing::warn!(job = %job.id, %error, "job could not be scheduled; it is given back");
            return Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER);
        }
        self.telemetry.metrics.delivery(None, State::Deferred);
        let receipt = deferral.receipt(self.clock.now());
        Stop::Settle(Box::new(Settlement::of(active, vec![receipt], None)))
    }

    /// Lets a message wait on a schedule and come back as it is, without a receipt. `work` is its job, broadcast or slice,
    /// and `address` the address of a retry.
    pub(super) async fn reschedule(
        &self,
        pulled: Pulled,
        work: JobId,
        address: Option<AddressId>,
        accepted_at: Timestamp,
    ) -> Stop {
        let until = self.postponed_until(accepted_at);
        self.reschedule_until(until, pulled, work, address, accepted_at).await
    }

    /// Lets a slice wait until the first of its members that wait may be sent to. It comes back at once for all whose time has come
    /// in a quarter of the time since it was accepted, so that members with many different times do not make it come back for each.
    pub(super) async fn reschedule_slice(&self, pulled: Pulled, slice: &Broadcast, first: Timestamp) -> Stop {
        let now = self.clock.now();
        let pause = (now.duration_since(slice.accepted_at) / 4).clamp(SignedDuration::ZERO, SLICE_PAUSE_MAX);
        let until = now.checked_add(pause).map_or(first, |soonest| first.max(soonest));
        self.reschedule_until(until, pulled, slice.work(), None, slice.accepted_at)
            .await
    }

    async fn reschedule_until(
        &self,
        until: Timestamp,
        pulled: Pulled,
        work: JobId,
        address: Option<AddressId>,
        accepted_at: Timestamp,
    ) -> Stop {
        let message = Unread {
            subject: pulled.subject(),
            headers: pulled.headers(),
            payload: pulled.payload(),
            accepted_at,
        };
        if let Err(error) = defer::store_unread(&self.js, message, work, address, until).await {
            tracing::warn!(%work, %error, "message could not be scheduled; it is given back");
            return Stop::GiveBack(pulled.into(), RETRY_JETSTREAM_AFTER);
        }
        let app = Lane::parse(pulled.subject()).map_or_else(|_| AppId::unknown(), |lane| lane.app);
        Stop::Settle(Box::new(Settlement {
            app,
            origin: self.region.clone(),
            receipts: Vec::new(),
            ticket: Ticket::new(pulled, None, None),
            step: None,
            is_tried: false,
        }))
    }

    /// When `job` comes back that waits on a schedule: before it expires, so that it ends with a receipt soon after.
    pub(super) fn back_at(&self, job: &Job) -> Timestamp {
        let before_expiry = job.expires_at() - SignedDuration::from_secs(1);
        self.postponed_until(job.accepted_at).min(before_expiry)
    }

    fn postponed_until(&self, accepted_at: Timestamp) -> Timestamp {
        let now = self.clock.now();
        let wait = now.duration_since(accepted_at).clamp(WAIT.0, WAIT.1);
        now.checked_add(wait).unwrap_or(now)
    }
}
