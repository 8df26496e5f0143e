//! Pulls messages from the lanes, never more than there are permits for: a message without a permit stays with the server for
//! another worker.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::jetstream::{self, consumer::PullConsumer};
use futures::StreamExt;
use shared::{
    channel::{Channel, Class},
    failpoint::failpoint,
    lifecycle::Lifecycle,
    nats::{
        connect,
        refusal::{is_about, unless_refused},
        subject::Tier,
        topology::{self, Mesh},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{context::Pipeline, pace::Pace};
use crate::{
    presence::Presence,
    pulled::{Pulled, ReturnQueue},
};

const MAX_MESSAGES_PER_PULL: usize = 256;

/// The server ends an idle pull after this time, and it is renewed.
const PULL_EXPIRES_AFTER: Duration = Duration::from_secs(20);

/// How often a waiting pull checks that its connection is still the same.
const CHECK_CONNECTION_EVERY: Duration = Duration::from_millis(500);

/// After a lost connection, every worker of the region needs this time to publish the outcomes that it has.
pub(super) const PULL_AFTER_RECONNECT: Duration = Duration::from_secs(2);

/// The pause before a failed pull is retried.
const RETRY_PULL_AFTER: Duration = Duration::from_millis(200);

/// How often a worker looks for the consumer of an overflow that does not exist yet.
const CONSUMER_CHECKED_EVERY: Duration = Duration::from_secs(1);

/// During shutdown, a pull ends after this time without a message.
const END_PULL_AFTER_SILENCE: Duration = Duration::from_millis(200);

/// Two pulls take turns, so that one is open while the messages of the other are passed on.
const PULLS_PER_LANE: usize = 2;

/// Pulls from one lane. It has permits of its own, so that lanes do not wait for each other.
#[derive(Debug)]
pub struct LanePuller {
    stream: &'static str,
    consumer: String,
    tier: Tier,
    permits: Arc<Semaphore>,
    pace: Pace,
    /// Whether this is the lane of retries, which are paced beside fresh work.
    is_retries: bool,
    /// Whether this worker may pull from the lane.
    turn: watch::Receiver<bool>,
}

/// What one pull may use.
struct Grant {
    /// One for each message.
    permits: OwnedSemaphorePermit,
    /// The number of the connection over which to pull; see [`connect::connects`].
    connection: u64,
}

/// Several slices of a lane are in progress, so that members of the next fill the permits while the last of one finish.
const SLICES_PER_LANE: usize = 4;

/// Permits for the members of slices, by channel, class and tier: half as many as fresh jobs have there.
pub fn member_permits(in_flight: usize) -> HashMap<(Channel, Class, Tier), Arc<Semaphore>> {
    let of = |class, tier| Arc::new(Semaphore::new((fresh_permits(class, tier, in_flight) / 2).max(1)));
    Mesh::lanes()
        .flat_map(|(channel, class)| Tier::ALL.map(|tier| ((channel, class, tier), of(class, tier))))
        .collect()
}

/// The number of permits of a tier of the lane of fresh jobs of `class`. The overflow has half of the main tier's: work in
/// flight waits for the same processors.
fn fresh_permits(class: Class, tier: Tier, in_flight: usize) -> usize {
    let main = match class {
        Class::Normal => in_flight,
        Class::Urgent | Class::Bulk => in_flight / 2,
    };
    match tier {
        Tier::Main => main,
        Tier::Overflow => main / 2,
    }
}

/// The number of permits of a tier of a lane of slices.
fn slice_permits(tier: Tier) -> usize {
    match tier {
        Tier::Main => SLICES_PER_LANE,
        Tier::Overflow => SLICES_PER_LANE / 2,
    }
}

/// Pullers for both tiers of all lanes of a region. The normal lane has `in_flight` permits; urgent and bulk have half of
/// that each; their overflow has half of theirs; retries and the spill of each channel have a quarter each. `pace` limits the
/// retries.
pub fn lane_pullers(in_flight: usize, presence: &Presence, pace: &Pace) -> Vec<LanePuller> {
    let lane = |tier: Tier, stream, consumer, permits: usize| LanePuller {
        stream,
        consumer: tier.consumer(consumer),
        tier,
        permits: Arc::new(Semaphore::new(permits.max(1))),
        pace: pace.clone(),
        is_retries: false,
        turn: presence.work.clone(),
    };
    let of_tier = |tier: Tier| {
        let lanes = Mesh::lanes().flat_map(move |(channel, class)| {
            let fresh = topology::lane_consumer(channel, class);
            let slices = topology::slice_consumer(channel, class);
            [
                lane(tier, topology::NOTIFY, fresh, fresh_permits(class, tier, in_flight)),
                lane(tier, topology::SCHEDULE, slices, slice_permits(tier)),
            ]
        });
        let retries = Channel::ALL.iter().map(move |channel| LanePuller {
            is_retries: true,
            ..lane(
                tier,
                topology::SCHEDULE,
                topology::retry_consumer(*channel),
                in_flight / 4,
            )
        });
        lanes.chain(retries).collect::<Vec<_>>()
    };
    let spill = Channel::ALL.iter().map(|channel| LanePuller {
        turn: presence.spill.clone(),
        ..lane(
            Tier::Main,
            topology::SCHEDULE,
            topology::spill_consumer(*channel),
            in_flight / 4,
        )
    });
    Tier::ALL.into_iter().flat_map(of_tier).chain(spill).collect()
}

/// Waits after a lost connection until every worker has published its outcomes and this one has followed them. A server
/// that crashed has forgotten which messages are in flight, and delivers them again.
async fn wait_for_outcomes(pipeline: &Pipeline) {
    tokio::time::sleep(PULL_AFTER_RECONNECT).await;
    let mut current = pipeline.ledger_current.clone();
    if current.wait_for(|current| *current).await.is_err() {
        tracing::debug!("the ledger no longer follows the receipts; the process is ending");
    }
}

impl LanePuller {
    /// Pulls until shutdown begins.
    pub async fn run(self, pipeline: Arc<Pipeline>, returns: ReturnQueue) {
        let pulls = (0..PULLS_PER_LANE).map(|_| self.pull_repeatedly(&pipeline, &returns));
        futures::future::join_all(pulls).await;
    }

    /// Waits until the consumer exists: a gateway of the version before makes none for an overflow, and for pushes alone.
    async fn wait_for_consumer(&self, pipeline: &Pipeline) {
        while let Err(error) = self.bind(&pipeline.js).await {
            tracing::debug!(consumer = self.consumer, %error, "waiting for the region's gateway");
            tokio::time::sleep(CONSUMER_CHECKED_EVERY).await;
        }
    }

    async fn pull_repeatedly(&self, pipeline: &Arc<Pipeline>, returns: &ReturnQueue) {
        let lifecycle = &pipeline.lifecycle;
        tokio::select! {
            () = self.wait_for_consumer(pipeline) => (),
            () = lifecycle.finishing() => return,
        }
        let mut consumer = None;
        let client = pipeline.js.client();
        // The number of the first connection: at start the ledger has just caught up.
        let mut connection = 1;
        let mut turn = self.turn.clone();
        while !lifecycle.is_finishing() {
            tokio::select! {
                turn = turn.wait_for(|turn| *turn) => if turn.is_err() { return },
                () = lifecycle.finishing() => return,
            }
            if connection != connect::connects(&client) {
                connection = connect::connects(&client);
                wait_for_outcomes(pipeline).await;
            }
            let Some(permits) = self.acquire(lifecycle).await else {
                return;
            };
            let concerns = |subject: &str| is_about(subject, self.stream) && is_about(subject, &self.consumer);
            let grant = Grant { permits, connection };
            let pulling = self.pull(&mut consumer, grant, pipeline, returns);
            let result = unless_refused(&client, concerns, pulling).await;
            if let Err(error) = result.map_err(Into::into).flatten() {
                tracing::warn!(consumer = self.consumer, %error, "cannot pull; retrying");
                consumer = None;
                tokio::time::sleep(RETRY_PULL_AFTER).await;
            }
        }
    }

    /// Waits for one permit and takes more if they are free, but leaves half of them to the other pull.
    async fn acquire(&self, lifecycle: &Lifecycle) -> Option<OwnedSemaphorePermit> {
        let mut permits = tokio::select! {
            permit = self.permits.clone().acquire_owned() => permit.ok()?,
            () = lifecycle.finishing() => return None,
        };
        let more = (self.permits.available_permits() / 2).min(MAX_MESSAGES_PER_PULL - 1);
        if let Ok(more) = self
            .permits
            .clone()
            .try_acquire_many_owned(u32::try_from(more).unwrap_or(0))
        {
            permits.merge(more);
        }
        if self.is_retries {
            let admitted = tokio::select! {
                admitted = self.pace.admit(self.tier, permits.num_permits()) => admitted,
                () = lifecycle.finishing() => return None,
            };
            // The rest of the permits is released.
            permits = permits.split(admitted)?;
        }
        Some(permits)
    }

    /// Makes one pull and passes its messages on. Does nothing after a reconnect: the client would send the request to the
    /// new server before the other workers have published their outcomes.
    async fn pull(
        &self,
        consumer: &mut Option<PullConsumer>,
        grant: Grant,
        pipeline: &Arc<Pipeline>,
        returns: &ReturnQueue,
    ) -> Result<(), async_nats::Error> {
        let Grant {
            mut permits,
            connection,
        } = grant;
        let lifecycle = &pipeline.lifecycle;
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => consumer.insert(self.bind(&pipeline.js).await?),
        };
        let client = pipeline.js.client();
        if connect::connects(&client) != connection {
            return Ok(());
        }
        let mut messages = consumer
            .batch()
            .max_messages(permits.num_permits())
            .expires(PULL_EXPIRES_AFTER)
            .messages()
            .await?;
        let mut checks = tokio::time::interval(CHECK_CONNECTION_EVERY);
        let mut finishing = false;
        let mut turn = self.turn.clone();
        loop {
            let message = tokio::select! {
                biased;
                message = messages.next() => message,
                // After a reconnect the server does not know this pull.
                _ = checks.tick() => if connect::connects(&client) == connection { continue } else { None },
                // Messages that still arrive are processed; the others stay with the server.
                () = async {
                    tokio::select! {
                        () = lifecycle.finishing() => (),
                        _ = turn.wait_for(|turn| !*turn) => (),
                    }
                }, if !finishing => {
                    finishing = true;
                    continue;
                }
                // The server sends messages until the subscription ends, and a message that nobody receives is redelivered
                // only after the acknowledgement time-out. So the pull ends when it is full or no message comes.
                () = tokio::time::sleep(END_PULL_AFTER_SILENCE), if finishing => None,
            };
            let Some(message) = message else { return Ok(()) };
            let Some(permit) = permits.split(1) else { return Ok(()) };
            let Some(pulled) = Pulled::new(message?, permit, returns.clone(), pipeline.clock.now()) else {
                continue;
            };
            if !self.is_retries {
                self.pace.count_fresh();
            }
            failpoint("worker.after-pull");
            pipeline.barrier.hold(pulled, connection);
        }
    }

    async fn bind(&self, js: &jetstream::Context) -> Result<PullConsumer, async_nats::Error> {
        Ok(js.get_consumer_from_stream(&self.consumer, self.stream).await?)
    }
}
