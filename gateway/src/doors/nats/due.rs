//! Accepts notifications whose time has come, as if they came just then.
//!
//! The gateway first claims the notification, then stores its jobs, and then acknowledges. If it ends in between, the server gives
//! the notification to a gateway again, which finds the claim and goes on; the ids of the jobs keep them single.

use std::{fmt::Display, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use shared::{
    app::App,
    failpoint::failpoint,
    id::{GroupKey, NotificationId, ScheduleId},
    invalid::Invalid,
    nats::{
        envelope::header,
        intake::Published,
        planned::{self, Claim, Plan, Planned},
        publish::NotStored,
        recurring::{self, Alarm, Definition, Late, Stored},
        subject,
    },
    policy::recurrence::Recurrence,
    telemetry::trace::TRACEPARENT,
};

use super::{
    Door,
    letter::Refusal,
    pull::{GIVE_BACK_FOR_MAX, delay},
    trace,
};
use crate::{
    doors::{problem::Problem, send},
    intake::{
        body::SplitBody,
        order::{Addressees, Order},
        request::{self, Refused, Terms},
    },
    trace::Trace,
};

/// An instant of a schedule that is accepted this much later was missed.
const LATE_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// The member of a notification that names its group.
#[derive(Deserialize)]
struct Grouped {
    group_key: Option<GroupKey>,
}

/// The notification of the instant `at` of a schedule. Its event id names both.
fn instant_of(id: &ScheduleId, definition: &Definition, at: Timestamp) -> Result<Planned, Invalid> {
    let grouped = serde_json::from_str::<Grouped>(definition.notification.get()).ok();
    Ok(Planned {
        plan: Plan {
            event_id: format!("{id}@{at}").parse()?,
            send_at: at,
            expires_at: None,
            group_key: grouped.and_then(|grouped| grouped.group_key),
            schedule_id: Some(id.clone()),
            planned_at: at,
            test_key: false,
            jobs: 0,
            revision: None,
        },
        notification: definition.notification.clone(),
    })
}

/// Acknowledges what is due, or gives it back. Returns when the app's quota admits more, if it is used up.
async fn settle(message: &Published, fired: Result<(), Waits>) -> Option<Duration> {
    match fired {
        Ok(()) => message.acknowledge().await,
        Err(Waits::Quota(wait)) => {
            message.give_back(wait).await;
            return Some(wait);
        }
        Err(Waits::Else(why)) => {
            tracing::warn!(app = %message.app, sequence = message.sequence, why, "a notification that is due waits");
            message.give_back(delay(message.tries)).await;
        }
    }
    None
}

/// Why what is due is not accepted now.
enum Waits {
    /// The quota of the app admits more after this time.
    Quota(Duration),
    /// Something did not answer.
    Else(String),
}

impl Door {
    /// Accepts what is due and acknowledges it, or gives it back. Returns when the app's quota admits more, if it is used up.
    pub(super) async fn fire(&self, message: &Published) -> Option<Duration> {
        let tenants = self.context.config.tenants();
        let Some(app) = tenants.apps.get(&message.app).filter(|app| !app.suspended) else {
            message.give_back(GIVE_BACK_FOR_MAX).await;
            return None;
        };
        let stored = message.message();
        if let Some(schedule) = subject::schedule_of(&stored.subject) {
            let trace = trace::of_message(&self.context.telemetry, &HeaderMap::new());
            let fired = self.fire_recurring(app, message, &schedule, &trace).await;
            trace::end(&trace, None);
            return settle(message, fired).await;
        }
        let id = subject::parse_planned(&stored.subject).map(|(_, id)| id);
        let due = planned::read_due(stored.headers.as_ref(), &stored.payload).ok();
        let Some((id, due)) = id.zip(due) else {
            tracing::warn!(app = %message.app, sequence = message.sequence, "only a newer gateway can accept what is due; it waits");
            message.give_back(GIVE_BACK_FOR_MAX).await;
            return None;
        };
        let none = HeaderMap::new();
        let headers = stored.headers.as_ref().unwrap_or(&none);
        let trace = trace::of_message(&self.context.telemetry, headers);
        let fired = self.accept_due(app, message, id, &due, &trace).await;
        trace::end(&trace, None);
        failpoint("gateway.before-acknowledge");
        settle(message, fired).await
    }

    /// Accepts the notification of one instant of a schedule, and sets the alarm for the next.
    async fn fire_recurring(
        &self,
        app: &Arc<App>,
        message: &Published,
        id: &ScheduleId,
        trace: &Trace,
    ) -> Result<(), Waits> {
        let (js, now) = (&self.context.js, self.context.clock.now());
        let failed = |why: &dyn Display| Waits::Else(why.to_string());
        let due: Alarm = serde_json::from_slice(&message.message().payload).map_err(|error| failed(&error))?;
        let (stored, sequence) = recurring::read(js, &app.id, id).await.map_err(|why| failed(&why))?;
        let Some(Stored { definition, .. }) = stored else {
            return Ok(());
        };
        let recurrence = Recurrence::new(&definition.cron, &definition.timezone).map_err(|why| failed(&why))?;
        let mut next = Alarm {
            revision: definition.revision,
            at: definition.next(&recurrence, now),
            last_at: due.last_at,
        };
        match due.at {
            Some(at) if due.revision == definition.revision => {
                let is_late = now.duration_since(at) > LATE_AFTER;
                if !is_late || definition.late == Late::Send {
                    let planned = instant_of(id, &definition, at).map_err(|why| failed(&why))?;
                    let notification = NotificationId::of(&app.id, &planned.plan.event_id);
                    self.accept_due(app, message, notification, &planned, trace).await?;
                    next.at = definition.next(&recurrence, at);
                    next.last_at = Some(at);
                }
            }
            // The alarm of the newer definition is set, unless its gateway ended before.
            _ => {
                let alarm = recurring::alarm(js, &app.id, id).await.map_err(|why| failed(&why))?;
                if alarm.is_some_and(|alarm| alarm.revision == definition.revision) {
                    return Ok(());
                }
            }
        }
        match recurring::arm(js, &app.id, id, next, sequence).await {
            // Whoever replaced the definition sets its alarm.
            Ok(()) | Err(NotStored::Refused) => Ok(()),
            Err(why) => Err(failed(&why)),
        }
    }

    async fn accept_due(
        &self,
        app: &Arc<App>,
        message: &Published,
        id: NotificationId,
        due: &Planned,
        trace: &Trace,
    ) -> Result<(), Waits> {
        let (js, now) = (&self.context.js, self.context.clock.now());
        let order = self.order_due(app, due);
        let work = match &order {
            Ok(order) => {
                let jobs = order.jobs(self.context.jobs_of_topic(app));
                let to_topic = matches!(order.to, Addressees::Topic(_));
                (u32::try_from(jobs).unwrap_or(u32::MAX), to_topic)
            }
            Err(_) => (0, false),
        };
        let claimed = planned::claim(js, &app.id, id, due, work, now).await;
        if claimed.map_err(|why| Waits::Else(why.to_string()))? == Claim::Drop {
            return Ok(());
        }
        failpoint("gateway.after-claim");
        let order = match order {
            Ok(order) => order,
            Err(refused) => return self.bury_due(message, due, refused.into()).await,
        };
        match send::accept(&self.intake, order, trace, self.request_timeout).await {
            Ok(_) => Ok(()),
            Err(failed) => Err(match failed.problem.quota_frees_after() {
                Some(wait) => Waits::Quota(wait),
                None => Waits::Else(failed.problem.detail().to_owned()),
            }),
        }
    }

    /// The order of a notification whose time has come, if it still keeps to every rule.
    fn order_due(&self, app: &Arc<App>, due: &Planned) -> Result<Order, Refused> {
        let terms = Terms {
            app,
            by_test_key: due.plan.test_key,
            ids: &self.context.config.id_key(),
            at: due.plan.send_at,
            recipients_max: self.recipients_max,
            regions: self.context.jobs_of_topic(app),
        };
        let order = request::due(due, &terms)?;
        SplitBody::render(&order)?;
        Ok(order)
    }

    /// Keeps as a dead letter what breaks a rule by now.
    async fn bury_due(&self, message: &Published, due: &Planned, problem: Problem) -> Result<(), Waits> {
        let mut headers = HeaderMap::new();
        // Where letters look for the event id of what has none in its JSON.
        headers.insert("ce-id", due.plan.event_id.as_str());
        let of_message = message.message().headers.as_ref();
        if let Some(trace) = of_message.and_then(|headers| header(headers, TRACEPARENT)) {
            headers.insert(TRACEPARENT, trace);
        }
        let json = due.notification.get().to_owned().into();
        let kept = self
            .keep(message, &headers, vec![Refusal::new(None, json, problem)])
            .await;
        kept.map_err(|why| Waits::Else(why.to_string()))
    }
}
