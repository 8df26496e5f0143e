//! What is not accepted before its time: it waits in the region's stream of plans until `JetStream` hands it to a gateway.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use shared::{
    id::{AppId, GroupKey, NotificationId},
    nats::{
        planned::{self, Group, Plan, Planned, Stored},
        publish::NotStored,
        topology::{RECEIPTS_MAX_AGE, WORK_MAX_AGE},
    },
};
use tokio::time::Instant;

use super::{
    accept::{Intake, NotAccepted, StoredJobs},
    body::SplitBody,
    budget::TooMany,
    order::{Later, Order},
};
use crate::trace::Trace;

/// How long the number of an app's planned notifications counts before it is asked for again.
const COUNT_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// When to repeat what was refused because too much of the app is planned.
pub(crate) const RETRY_FULL_AFTER: Duration = Duration::from_mins(1);

/// How long it is noted that a notification belongs to a group, from when it is accepted: longer than it lives, and than its
/// receipts are kept.
const MEMBER_KEPT_FOR: Duration = WORK_MAX_AGE.saturating_add(RECEIPTS_MAX_AGE);

/// How many notifications of each app wait for their time. Each gateway counts for itself, so that an app may exceed the limit by
/// what several gateways take within seconds.
#[derive(Debug)]
pub(crate) struct Plans {
    per_app_max: u64,
    counts: Mutex<HashMap<AppId, Count>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    planned: u64,
    asked_at: Instant,
}

impl Plans {
    /// Each app may have `per_app_max` planned notifications in a region.
    pub(crate) fn new(per_app_max: usize) -> Self {
        Self {
            per_app_max: per_app_max as u64,
            counts: Mutex::default(),
        }
    }

    /// The number for `app`, if it was asked for lately.
    fn recent(&self, app: &AppId) -> Option<u64> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(app)?;
        (count.asked_at.elapsed() < COUNT_AGAIN_AFTER).then_some(count.planned)
    }

    fn learn(&self, app: &AppId, planned: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let asked_at = Instant::now();
        counts.insert(app.clone(), Count { planned, asked_at });
    }

    fn add_one(&self, app: &AppId) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(app) {
            count.planned += 1;
        }
    }
}

impl Intake {
    /// Takes an order: stores its jobs now, or plans it. `Invalid`, `NoSuchRegion` and `TooMany` mean that nothing was stored.
    pub(crate) async fn take(&self, mut order: Order, trace: &Trace) -> Result<StoredJobs, NotAccepted> {
        if let Some(later) = order.later.take() {
            return self.plan(order, later, trace).await;
        }
        let group = (order.group_key.as_ref(), order.trial.test_key);
        let joining = self.join_group(&order.app.id, order.notification(), group, Duration::ZERO);
        joining
            .await
            .map_err(|why| not_stored(why, order.jobs(self.context.jobs_of_topic(&order.app))))?;
        self.accept(order, trace).await
    }

    async fn plan(&self, order: Order, later: Later, trace: &Trace) -> Result<StoredJobs, NotAccepted> {
        // What cannot be accepted then is refused now.
        SplitBody::render(&order).map_err(NotAccepted::Invalid)?;
        let jobs = order.jobs(self.context.jobs_of_topic(&order.app));
        let stored = self.store_plan(order, later, jobs, trace);
        match stored.await? {
            Stored::New => Ok(StoredJobs { jobs, duplicates: 0 }),
            Stored::Duplicate => Ok(StoredJobs { jobs, duplicates: jobs }),
        }
    }

    async fn store_plan(
        &self,
        order: Order,
        Later { send_at, json }: Later,
        jobs: usize,
        trace: &Trace,
    ) -> Result<Stored, NotAccepted> {
        let (js, now) = (&self.context.js, self.context.clock.now());
        let failed = |why| not_stored(why, jobs);
        self.check_count(&order.app.id).await.map_err(|error| match error {
            Full::TooMany(too_many) => {
                self.context.telemetry.metrics.limited(too_many.limit, &order.app.id);
                NotAccepted::TooMany(too_many)
            }
            Full::Unknown(why) => failed(why),
        })?;
        let id = order.notification();
        let planned = Planned {
            plan: Plan {
                send_at,
                expires_at: order.expires_at,
                planned_at: now,
                test_key: order.trial.test_key,
                jobs: u32::try_from(jobs).unwrap_or(u32::MAX),
                revision: None,
                schedule_id: None,
                event_id: order.event,
                group_key: order.group_key,
            },
            notification: json,
        };
        self.keep_member(&order.app.id, id, &planned.plan, now)
            .await
            .map_err(failed)?;
        let traceparent = trace.traceparent();
        let stored = planned::store(js, &order.app.id, id, &planned, traceparent.as_deref());
        let stored = stored.await.map_err(failed)?;
        if stored == Stored::New {
            self.plans.add_one(&order.app.id);
        }
        Ok(stored)
    }

    /// Whether the app may plan one more.
    async fn check_count(&self, app: &AppId) -> Result<(), Full> {
        let count = if let Some(count) = self.plans.recent(app) {
            count
        } else {
            let count = planned::count(&self.context.js, app).await;
            let count = count.map_err(|why| Full::Unknown(why.into()))?;
            self.plans.learn(app, count);
            count
        };
        if count < self.plans.per_app_max {
            return Ok(());
        }
        Err(Full::TooMany(TooMany {
            limit: "scheduled_notifications",
            retry_after: RETRY_FULL_AFTER,
        }))
    }

    /// Notes that a notification belongs to its group, if it has one, until long after it has waited for `waits`.
    async fn join_group(
        &self,
        app: &AppId,
        id: NotificationId,
        (key, of_test_keys): (Option<&GroupKey>, bool),
        waits: Duration,
    ) -> Result<(), NotStored> {
        let Some(key) = key else { return Ok(()) };
        let group = Group { key, of_test_keys };
        planned::join(&self.context.js, app, group, id, MEMBER_KEPT_FOR + waits).await
    }

    /// Notes for as long as needed that a planned notification, which is sent at `send_at` now, belongs to its group.
    pub(crate) async fn keep_member(
        &self,
        app: &AppId,
        id: NotificationId,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<(), NotStored> {
        let waits = plan.send_at.duration_since(now).unsigned_abs();
        let group = (plan.group_key.as_ref(), plan.test_key);
        self.join_group(app, id, group, waits).await
    }
}

/// Why an app may not plan one more now.
enum Full {
    TooMany(TooMany),
    Unknown(NotStored),
}

fn not_stored(why: NotStored, jobs: usize) -> NotAccepted {
    NotAccepted::NotStored { why, stored: 0, jobs }
}
