//! Counts the notification against the limits of the app and its category for one recipient, before the first address is sent to.
//! What a limit does not allow ends, or waits until the window ends.
//!
//! A notification is counted once for each channel, whatever the number of addresses and attempts, and after the caps on spending:
//! what a cap lets wait is not counted yet. If the counters do not answer, it waits: nothing is sent that was not counted.

use shared::{
    address::Address,
    app::App,
    nats::subject,
    policy::{
        limit::{self, Applied, RATE_LIMIT, WhenLimited},
        quiet,
    },
    receipt::State,
};

use super::{
    afford::Afforded,
    attempt::AddressAttempt,
    consent::Spared,
    context::Pipeline,
    count::{Counted, Counter},
    hold::Held,
    in_flight::ActiveJob,
    settlement::{RETRY_JETSTREAM_AFTER, Step},
    timing::Timely,
};

/// A job that the limits allow.
#[derive(Debug)]
pub(super) struct Limited {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    /// Those that nothing is sent to.
    pub(super) spared: Vec<Spared>,
    /// Those that nothing is sent to now.
    pub(super) held: Vec<AddressAttempt>,
}

impl Pipeline {
    /// Counts the job, and ends it or lets it wait if a limit does not allow it.
    pub(super) async fn limit(&self, Afforded(timely): Afforded) -> Step<Limited> {
        let job = &timely.active.job;
        let is_sent = !timely.addresses.is_empty() || !timely.held.is_empty();
        // A retry was counted at the first pass, and a test reaches nobody.
        if job.remaining.is_some() || job.trial.test || !is_sent {
            return Ok(self.limited(timely));
        }
        let app = self.config.tenants().apps.get(&job.app).cloned();
        let Some(app) = app.filter(|app| app.has_limits(job.category.as_ref())) else {
            return Ok(self.limited(timely));
        };
        Box::pin(self.limit_by(timely, &app)).await
    }

    fn limited(&self, timely: Timely) -> Limited {
        let Timely {
            active,
            addresses,
            spared,
            held,
        } = timely;
        let held = held.into_iter().map(|held| self.held_back(&active.job, held));
        Limited {
            held: held.collect(),
            active,
            addresses,
            spared,
        }
    }

    async fn limit_by(&self, timely: Timely, app: &App) -> Step<Limited> {
        let job = &timely.active.job;
        let applied = limit::applied(app, job.category.as_ref(), job.channel(), job.class, job.topic.as_ref());
        let now = self.clock.now();
        let counter = |it: &Applied<'_>| {
            let window = it.window(now);
            Counter {
                subject: subject::spend(&app.id, it.id(job), window.start),
                most: u64::from(it.limit.count),
                end: window.end,
            }
        };
        let counters: Vec<Counter> = applied.iter().map(counter).collect();
        let id = format!("{}:{}", job.id, job.accepted_at.as_millisecond());
        let amount = Counted {
            amount: 1,
            id: &id,
            is_repeated: timely.active.pulled.tries > 1,
        };
        let full = match self.count(&counters, amount).await {
            Ok(Some(full)) => full,
            Ok(None) => return Ok(self.limited(timely)),
            Err(error) => {
                tracing::warn!(%error, "notifications cannot be counted; the job waits");
                return Err(self.postpone(timely.active, RATE_LIMIT, RETRY_JETSTREAM_AFTER).await);
            }
        };
        let until = counters[full]
            .end
            .saturating_add(quiet::spread(job))
            .unwrap_or(counters[full].end);
        let waits = applied[full].limit.then == WhenLimited::Delay && !job.is_expired(until);
        let Timely {
            active,
            addresses,
            mut spared,
            held,
        } = timely;
        let all = addresses
            .into_iter()
            .chain(held.into_iter().map(|held| (held.address, held.revision)));
        let (active, ended): (ActiveJob, Vec<Address>) = if waits {
            let held = all.map(|(address, revision)| Held {
                address,
                revision,
                until,
                why: RATE_LIMIT,
            });
            // It is counted again when it comes back as a whole, and nothing was done with those that are spared.
            let waiting = Timely {
                active,
                addresses: Vec::new(),
                spared: Vec::new(),
                held: held.collect(),
            };
            // A member that waits longer than its slice may: alone it would come back uncounted.
            let Timely { active, held, .. } = self.wait(waiting).await?;
            (active, held.into_iter().map(|held| held.address).collect())
        } else {
            (active, all.map(|(address, _)| address).collect())
        };
        spared.extend(ended.into_iter().map(|address| Spared {
            address,
            state: State::Suppressed,
            reason: RATE_LIMIT,
        }));
        Ok(self.limited(Timely {
            active,
            addresses: Vec::new(),
            spared,
            held: Vec::new(),
        }))
    }
}
