//! Accepts notifications whose time has come, as if they came just then.
//!
//! The gateway first claims the notification, then stores its jobs, and then acknowledges. If it ends in between, the server gives
//! the notification to a gateway again, which finds the claim and goes on; the ids of the jobs keep them single.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use shared::{
    app::App,
    failpoint::failpoint,
    id::NotificationId,
    nats::{
        envelope::header,
        intake::Published,
        planned::{self, Claim, Planned},
        subject,
    },
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
        match fired {
            Ok(()) => message.acknowledge().await,
            Err(Waits::Quota(wait)) => {
                message.give_back(wait).await;
                return Some(wait);
            }
            Err(Waits::Else(why)) => {
                tracing::warn!(app = %message.app, notification = %id, why, "a notification that is due waits");
                message.give_back(delay(message.tries)).await;
            }
        }
        None
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
