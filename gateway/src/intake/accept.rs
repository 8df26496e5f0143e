//! Accepts an order: one job for each recipient and channel, in the lane of its home; or, for a topic, one
//! job for each region and channel. Of a plan whose steps follow each other the first step alone becomes a job here.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, pin_mut};
use shared::{
    address::Address,
    id::{JobId, RecipientId, Region, Topic},
    invalid::Invalid,
    nats::{envelope, publish::NotStored, subject::Tier, topology, version},
    proof::Claims,
    receipt,
    recipient::RecipientKey,
};
use tokio::time::Instant;

use super::{
    body::SplitBody,
    budget::{Admitted, AppBudget, BROADCAST_SHARE, Budgets, LaneKey, Portion, TooMany},
    order::{Addressees, Order},
    plan::Plans,
    publish::{OutgoingJob, Publisher},
};
use crate::{context::Context, records::recorder::Recorder, trace::Trace};

/// Turns orders into stored jobs.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) context: Arc<Context>,
    pub(crate) publisher: Publisher,
    pub(crate) recorder: Recorder,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) plans: Plans,
}

/// The number of jobs of an accepted order, all of which are stored.
#[derive(Debug)]
pub(crate) struct StoredJobs {
    pub(crate) jobs: usize,
    /// How many of them were already stored before this request.
    pub(crate) duplicates: usize,
}

/// Why an order was not accepted.
#[derive(Debug)]
pub(crate) enum NotAccepted {
    /// The content breaks a rule.
    Invalid(Invalid),
    /// The home of a recipient is not a region of this mesh.
    NoSuchRegion(Region),
    /// The app's quota is used up; nothing was stored.
    TooMany(TooMany),
    /// The streams did not confirm that they stored every job.
    NotStored { why: NotStored, stored: usize, jobs: usize },
}

impl Intake {
    /// Stores every job of `order` now. `Invalid`, `NoSuchRegion` and `TooMany` mean that nothing was stored.
    pub(crate) async fn accept(&self, order: Order, trace: &Trace) -> Result<StoredJobs, NotAccepted> {
        let bodies = SplitBody::render(&order).map_err(NotAccepted::Invalid)?;
        let notification = order.notification();
        let at = self.context.clock.now();
        let mut jobs = Vec::new();
        for body in &bodies {
            match &order.to {
                Addressees::Recipients(recipients) => jobs.extend(self.to_recipients(&order, recipients, body)?),
                Addressees::Address(address) => jobs.push(self.to_address(&order, address, body)?),
                Addressees::Topic(topic) => jobs.extend(self.to_topic(&order, topic, body)),
            }
        }
        let budget = self.budgets.of(&order.app);
        let share = match order.to {
            Addressees::Recipients(_) | Addressees::Address(_) => 1,
            Addressees::Topic(_) => BROADCAST_SHARE,
        };
        let admitted = budget.admit(portions(&jobs, share)).map_err(|too_many| {
            self.context.telemetry.metrics.limited(too_many.limit, &order.app.id);
            NotAccepted::TooMany(too_many)
        })?;
        for job in &mut jobs {
            if self.budgets.has_overflow(&job.lane.region) {
                job.tier = admitted.tier(&job.lane.region);
            }
        }
        let started = Instant::now();
        let stored = self.store_all(jobs, trace, &budget, admitted).await?;
        self.context
            .telemetry
            .metrics
            .accepted(order.class, stored.jobs as u64, started.elapsed());
        self.recorder.accepted(
            order.app.id.clone(),
            receipt::Accepted {
                notification,
                event_id: order.event,
                jobs: u32::try_from(stored.jobs).unwrap_or(u32::MAX),
                topic: match order.to {
                    Addressees::Recipients(_) | Addressees::Address(_) => None,
                    Addressees::Topic(topic) => Some(topic),
                },
                at,
                trace: trace.id(),
            },
        );
        Ok(stored)
    }

    fn to_recipients(
        &self,
        order: &Order,
        recipients: &[RecipientId],
        body: &SplitBody,
    ) -> Result<Vec<OutgoingJob>, NotAccepted> {
        let (ids, event) = (self.context.config.id_key(), order.trial.name(&order.event));
        let mut jobs = Vec::with_capacity(recipients.len());
        for recipient in recipients {
            let key = RecipientKey {
                app: order.app.id.clone(),
                recipient: recipient.clone(),
            };
            let region = self.context.home_or(&key, &order.app.default_region);
            if !self.context.is_region(&region) {
                return Err(NotAccepted::NoSuchRegion(region));
            }
            let id = JobId::of(&ids, &key.app, &event, recipient, body.channel);
            jobs.push(self.job(order, region, id, body, body.to(recipient.as_str())));
        }
        Ok(jobs)
    }

    /// The job for an address. It goes to the app's default region whichever region accepts it, so that a caller who repeats
    /// the request elsewhere reaches the address once.
    fn to_address(&self, order: &Order, address: &Address, body: &SplitBody) -> Result<OutgoingJob, NotAccepted> {
        let region = order.app.default_region.clone();
        if !self.context.is_region(&region) {
            return Err(NotAccepted::NoSuchRegion(region));
        }
        let (ids, event) = (self.context.config.id_key(), order.trial.name(&order.event));
        let id = JobId::of_address(&ids, &order.app.id, &event, address.id, body.channel);
        Ok(self.job(order, region, id, body, body.to(address)))
    }

    /// One job for each region in which members may live.
    fn to_topic(&self, order: &Order, topic: &Topic, body: &SplitBody) -> Vec<OutgoingJob> {
        let regions = match &order.app.residency {
            Some(region) => vec![region.clone()],
            None => self.context.regions(),
        };
        let (ids, event) = (self.context.config.id_key(), order.trial.name(&order.event));
        let job = |region: Region| {
            let id = JobId::of_broadcast(&ids, &order.app.id, &event, topic, body.channel, &region);
            self.job(order, region, id, body, body.to(topic.as_str()))
        };
        regions.into_iter().map(job).collect()
    }

    /// The job or broadcast `id` for `region`, with the proof that this gateway accepted it.
    fn job(&self, order: &Order, region: Region, id: JobId, body: &SplitBody, payload: Bytes) -> OutgoingJob {
        let here = &self.context.here;
        let claims = Claims {
            app: &order.app.id,
            channel: body.channel,
            class: order.class,
            event: &order.event,
            origin: here,
            payload: &payload,
        };
        let mut headers = envelope::headers(id, order.life_from, here);
        headers.insert(
            envelope::PROOF,
            self.context.border.prover().work(&claims, order.life_from).to_string(),
        );
        headers.insert(version::VERSION, body.version.to_string());
        OutgoingJob {
            lane: order.lane(body.channel, region),
            tier: Tier::Main,
            headers,
            payload,
            id,
        }
    }

    /// Publishes all jobs and waits until all are stored.
    async fn store_all(
        &self,
        jobs: Vec<OutgoingJob>,
        trace: &Trace,
        budget: &AppBudget,
        admitted: Admitted,
    ) -> Result<StoredJobs, NotAccepted> {
        let count = jobs.len();
        // The app's requests wait for each other, so that those of other apps do not wait for them.
        let _publishing = budget.publish(count).await;
        let acks = self.publisher.store(jobs, trace);
        pin_mut!(acks);
        let (mut stored, mut duplicates, mut refused, mut sequence) = (0, 0, None, 0);
        while let Some(ack) = acks.next().await {
            match ack {
                Ok(ack) => {
                    stored += 1;
                    duplicates += usize::from(ack.duplicate);
                    if ack.stream == topology::NOTIFY {
                        sequence = ack.sequence.max(sequence);
                    }
                }
                // A full stream is more informative than a missing acknowledgement.
                Err(NotStored::Full) => refused = Some(NotStored::Full),
                Err(why) => refused = refused.or(Some(why)),
            }
        }
        match refused {
            None => {
                admitted.stored(&self.context.here, sequence);
                Ok(StoredJobs {
                    jobs: count,
                    duplicates,
                })
            }
            Some(why) => Err(NotAccepted::NotStored {
                why,
                stored,
                jobs: count,
            }),
        }
    }
}

/// The jobs by lane; each takes `share` of the app's share of its lane. All have one class.
fn portions(jobs: &[OutgoingJob], share: u64) -> Vec<Portion> {
    let mut portions: Vec<Portion> = Vec::new();
    for job in jobs {
        let bytes = job.payload.len() as u64;
        match portions
            .iter_mut()
            .find(|portion| portion.lane.region == job.lane.region && portion.lane.channel == job.lane.channel)
        {
            Some(portion) => {
                portion.jobs += 1;
                portion.bytes += bytes;
                portion.share += share;
            }
            None => portions.push(Portion {
                lane: LaneKey {
                    channel: job.lane.channel,
                    region: job.lane.region.clone(),
                    class: job.lane.class,
                },
                jobs: 1,
                bytes,
                share,
            }),
        }
    }
    portions
}
