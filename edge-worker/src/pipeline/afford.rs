//! Counts the segments of text messages against the app's caps on spending, immediately before they are sent. What a cap does not
//! allow waits until its window ends, or ends if it expires before.
//!
//! The region's counters decide ([`super::count`]). If they do not answer, the job waits: nothing is sent that was not counted.

use std::sync::Arc;

use shared::{
    address::{Address, Phone, Target},
    app::{Ambiguity, App},
    content::Content,
    job::Job,
    nats::subject,
    receipt::State,
    spend::SpendCap,
};

use super::{
    consent::Spared,
    context::Pipeline,
    count::{Counted, Counter},
    hold::Held,
    settlement::{RETRY_JETSTREAM_AFTER, Step},
    timing::Timely,
};

/// The reason of what waits or ends because of a cap.
const SPEND_CAP: &str = "spend_cap";

/// A job whose messages the app's caps allow, at least some of them.
#[derive(Debug)]
pub(super) struct Afforded(pub(super) Timely);

impl Pipeline {
    /// Counts what the job's messages cost, and holds back what a cap does not allow.
    pub(super) async fn afford(&self, timely: Timely) -> Step<Afforded> {
        let job = &timely.active.job;
        let sms = match &job.content {
            // A test ends at the provider that sends nothing.
            Content::Sms(sms) if !job.trial.test => sms,
            _ => return Ok(Afforded(timely)),
        };
        let app = self.config.tenants().apps.get(&job.app).cloned();
        match app.filter(|app| !app.spend_caps.is_empty()) {
            Some(app) => {
                let segments = sms.segments_max();
                Box::pin(self.afford_within(timely, &app, segments)).await
            }
            None => Ok(Afforded(timely)),
        }
    }

    async fn afford_within(&self, timely: Timely, app: &App, segments: u32) -> Step<Afforded> {
        let Timely {
            mut active,
            addresses,
            mut spared,
            mut held,
        } = timely;
        let job = Arc::clone(&active.job);
        let mut allowed = Vec::with_capacity(addresses.len());
        for (address, revision) in addresses {
            let Target::Phone(phone) = &address.target else {
                allowed.push((address, revision));
                continue;
            };
            let counters = self.counters(app, phone);
            let id = self.name_of_count(&job, &address);
            let message = Counted {
                amount: segments,
                id: &id,
                is_repeated: job.attempt > 1 || active.pulled.tries > 1,
            };
            let counted = self.count(&counters, message).await;
            if let (Ok(full), false) = (&counted, counters.is_empty()) {
                self.telemetry.metrics.spent(&job.app, segments, full.is_none());
            }
            match counted {
                Ok(None) => allowed.push((address, revision)),
                Ok(Some(full)) => {
                    let until = counters[full].end;
                    if job.is_expired(until) {
                        let (state, reason) = (State::Suppressed, SPEND_CAP);
                        spared.push(Spared { address, state, reason });
                    } else {
                        let why = SPEND_CAP;
                        held.push(Held {
                            address,
                            revision,
                            until,
                            why,
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "segments cannot be counted; the job waits");
                    return Err(Box::pin(self.postpone(active, SPEND_CAP, RETRY_JETSTREAM_AFTER)).await);
                }
            }
        }
        if allowed.is_empty() && spared.is_empty() {
            active = self.hold_whole(active, &held).await?;
        }
        Ok(Afforded(Timely {
            active,
            addresses: allowed,
            spared,
            held,
        }))
    }

    /// The counters of the app's caps that cover `phone`, those of few numbers first.
    fn counters(&self, app: &App, phone: &Phone) -> Vec<Counter> {
        let now = self.clock.now();
        let mut caps: Vec<&SpendCap> = app.spend_caps.iter().filter(|cap| cap.covers(phone)).collect();
        caps.sort_by_key(|cap| cap.breadth());
        let counter = |cap: &SpendCap| {
            let window = cap.window(now);
            Counter {
                subject: subject::spend(&app.id, cap.id(), window.start),
                most: cap.segments,
                end: window.end,
            }
        };
        caps.into_iter().map(counter).collect()
    }

    /// Under which name a delivery is counted once. A person who replays it sends it again, and so does an app that sends again
    /// in doubt.
    fn name_of_count(&self, job: &Job, address: &Address) -> String {
        let (delivery, accepted_at) = (job.delivery(address.id), job.accepted_at.as_millisecond());
        match self.ambiguity(job) {
            Ambiguity::Hold => format!("{delivery}:{accepted_at}"),
            Ambiguity::Resend => format!("{delivery}:{accepted_at}:{}", job.counted()),
        }
    }
}
