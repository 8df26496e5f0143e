//! Pulls work, never more than there are permits for: what cannot be worked on stays with the server for a sibling.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::jetstream::{self, consumer::PullConsumer};
use futures::StreamExt;
use shared::{
    channel::{Channel, Class},
    failpoint::failpoint,
    lifecycle::Lifecycle,
    nats::{
        connect,
        refusal::{is_about, unless_refused},
        topology,
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{context::Pipeline, pace::Pace};
use crate::{
    presence::Presence,
    pulled::{Pulled, ReturnQueue},
};

/// Most messages in one pull.
const MAX_MESSAGES_PER_PULL: usize = 256;

/// An idle pull is renewed after this long.
const PULL_EXPIRES_AFTER: Duration = Duration::from_secs(20);

/// How often a waiting pull looks whether the connection is still the one it was sent on.
const CHECK_CONNECTION_EVERY: Duration = Duration::from_millis(500);

/// Time for every worker of the region to publish what it had done when the connection was lost.
const SETTLE_AFTER_RECONNECT: Duration = Duration::from_secs(2);

/// A worker that is to finish leaves a pull when nothing came for this long.
const LEAVE_PULL_AFTER_SILENCE: Duration = Duration::from_millis(200);

/// Two pulls take turns, so that one is always open while the other's messages are handed on.
const PULLS_PER_LANE: usize = 2;

/// One consumer to pull from, with permits of its own, so that lanes do not wait for each other.
#[derive(Debug)]
pub struct LanePuller {
    stream: &'static str,
    consumer: String,
    permits: Arc<Semaphore>,
    /// Holds back work that comes again while there is fresh work.
    pace: Pace,
    comes_again: bool,
    /// Whether it is this worker's turn.
    turn: watch::Receiver<bool>,
}

/// Slices of one lane under way at one time: while the last members of one are waited for, the next is worked on.
const SLICES_PER_LANE: usize = 4;

/// Members of slices that may be under way, by class: behind fresh traffic, they have half of what that has.
pub fn member_permits(in_flight: usize) -> BTreeMap<Class, Arc<Semaphore>> {
    let of = |class: &Class| (share(*class, in_flight) / 2).max(1);
    Class::ALL
        .iter()
        .map(|class| (*class, Arc::new(Semaphore::new(of(class)))))
        .collect()
}

/// Jobs that may be under way in the lane of fresh work of `class`.
fn share(class: Class, in_flight: usize) -> usize {
    match class {
        Class::Normal => in_flight,
        Class::Urgent | Class::Bulk => in_flight / 2,
    }
}

/// Every lane of a region. `in_flight` jobs may be under way in the normal one; urgent and bulk have half of that
/// each, retries a quarter, and those no faster than `pace` lets them.
pub fn lane_pullers(in_flight: usize, presence: &Presence, pace: &Pace) -> Vec<LanePuller> {
    let lane = |stream, consumer, permits: usize| LanePuller {
        stream,
        consumer,
        permits: Arc::new(Semaphore::new(permits.max(1))),
        pace: pace.clone(),
        comes_again: false,
        turn: presence.work.clone(),
    };
    let fresh = Channel::CARRIED
        .iter()
        .flat_map(|channel| Class::ALL.iter().map(|class| (*channel, *class)));
    fresh
        .flat_map(|(channel, class)| {
            let fresh = topology::lane_consumer(channel, class);
            [
                lane(topology::NOTIFY, fresh, share(class, in_flight)),
                lane(
                    topology::SCHEDULE,
                    topology::slice_consumer(channel, class),
                    SLICES_PER_LANE,
                ),
            ]
        })
        .chain([
            LanePuller {
                comes_again: true,
                ..lane(topology::SCHEDULE, topology::RETRY_CONSUMER.to_owned(), in_flight / 4)
            },
            LanePuller {
                turn: presence.spill.clone(),
                ..lane(topology::SCHEDULE, topology::SPILL_CONSUMER.to_owned(), in_flight / 4)
            },
        ])
        .collect()
}

/// After the connection was lost. A server that was killed has forgotten what it gave to whom, and gives it out again:
/// first every worker publishes what it has done and learns what the others did.
async fn settle_down(pipeline: &Pipeline) {
    tokio::time::sleep(SETTLE_AFTER_RECONNECT).await;
    let mut current = pipeline.ledger_current.clone();
    if current.wait_for(|current| *current).await.is_err() {
        tracing::debug!("the ledger is no longer followed; the process is finishing");
    }
}

impl LanePuller {
    /// Pulls until the process is to finish.
    pub async fn run(self, pipeline: Arc<Pipeline>, returns: ReturnQueue, lifecycle: Lifecycle) {
        let pulls = (0..PULLS_PER_LANE).map(|_| self.pull_for_ever(&pipeline, &returns, &lifecycle));
        futures::future::join_all(pulls).await;
    }

    async fn pull_for_ever(&self, pipeline: &Arc<Pipeline>, returns: &ReturnQueue, lifecycle: &Lifecycle) {
        let mut consumer = None;
        let client = pipeline.js.client();
        // The first connection, after which the worker has just learned what the others did.
        let mut connected = 1;
        let mut turn = self.turn.clone();
        while !lifecycle.is_finishing() {
            tokio::select! {
                turn = turn.wait_for(|turn| *turn) => if turn.is_err() { return },
                () = lifecycle.finishing() => return,
            }
            if connected != connect::connects(&client) {
                connected = connect::connects(&client);
                settle_down(pipeline).await;
            }
            let Some(permits) = self.permits(lifecycle).await else {
                return;
            };
            let concerns = |subject: &str| is_about(subject, self.stream) && is_about(subject, &self.consumer);
            let pulling = self.pull(&mut consumer, (permits, connected), pipeline, returns, lifecycle);
            let result = unless_refused(&client, concerns, pulling).await;
            if let Err(error) = result.map_err(Into::into).flatten() {
                tracing::warn!(consumer = self.consumer, %error, "cannot pull");
                consumer = None;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// Waits for one permit and takes more if they are free; leaves half for the other pull.
    async fn permits(&self, lifecycle: &Lifecycle) -> Option<OwnedSemaphorePermit> {
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
        if self.comes_again {
            let may = tokio::select! {
                may = self.pace.take(permits.num_permits()) => may,
                () = lifecycle.finishing() => return None,
            };
            // What is over is given back.
            permits = permits.split(may)?;
        }
        Some(permits)
    }

    /// Only over the connection after which everybody has settled down: what is asked of a server that is away is asked
    /// of the one that comes back.
    async fn pull(
        &self,
        consumer: &mut Option<PullConsumer>,
        (mut permits, connected): (OwnedSemaphorePermit, u64),
        pipeline: &Arc<Pipeline>,
        returns: &ReturnQueue,
        lifecycle: &Lifecycle,
    ) -> Result<(), async_nats::Error> {
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => consumer.insert(self.bind(&pipeline.js).await?),
        };
        let client = pipeline.js.client();
        if connect::connects(&client) != connected {
            return Ok(());
        }
        let mut messages = consumer
            .batch()
            .max_messages(permits.num_permits())
            .expires(PULL_EXPIRES_AFTER)
            .messages()
            .await?;
        let mut look = tokio::time::interval(CHECK_CONNECTION_EVERY);
        let mut finishing = false;
        let mut turn = self.turn.clone();
        loop {
            let message = tokio::select! {
                biased;
                message = messages.next() => message,
                // A server that was away knows nothing of this pull.
                _ = look.tick() => if connect::connects(&client) == connected { continue } else { None },
                // What arrives is still worked on; what does not stays with the server.
                () = async {
                    tokio::select! {
                        () = lifecycle.finishing() => (),
                        _ = turn.wait_for(|turn| !*turn) => (),
                    }
                }, if !finishing => {
                    finishing = true;
                    continue;
                }
                // The server knows only that the pull is over when its subscription is: what it sends meanwhile would wait
                // out the time for acknowledgement. So the pull is left when it is full or nothing comes.
                () = tokio::time::sleep(LEAVE_PULL_AFTER_SILENCE), if finishing => None,
            };
            let Some(message) = message else { return Ok(()) };
            let Some(permit) = permits.split(1) else { return Ok(()) };
            let Some(pulled) = Pulled::new(message?, permit, returns.clone(), pipeline.clock.now()) else {
                continue;
            };
            if !self.comes_again {
                self.pace.saw_fresh();
            }
            failpoint("worker.after-pull");
            if connect::connects(&client) == connected {
                // The runtime moves a task's future several times before it runs; this one has some kilobytes.
                lifecycle.spawn_job(Box::pin(pipeline.clone().run(pulled)));
            } else {
                // Sent before the connection was lost, or asked for while it was: not to be worked on before
                // everybody has settled down.
                pulled.give_back(SETTLE_AFTER_RECONNECT);
            }
        }
    }

    async fn bind(&self, js: &jetstream::Context) -> Result<PullConsumer, async_nats::Error> {
        Ok(js.get_consumer_from_stream(&self.consumer, self.stream).await?)
    }
}
