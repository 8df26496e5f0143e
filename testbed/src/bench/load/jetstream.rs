//! `JetStream` without Peal: the same bytes to a stream with the same settings.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{self, consumer::PullConsumer, context::PublishAckFuture},
};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use shared::{
    channel::{Channel, Class},
    clock::Clock,
    id::{JobId, Region},
    nats::{
        batch::{self, Batcher},
        connect::{self, Nats},
        envelope,
        roles::Role,
        topology::{self, Mesh, RegionSettings},
    },
};
use tokio::sync::watch;
use uuid::Uuid;

use super::{Done, Stopwatch, Target, pace};
use crate::bench::sample;

const STREAM: &str = "BENCH";
const SUBJECT: &str = "bench.push.eu.normal.shop";
const CONSUMER: &str = "bench";

/// Publishes that are unacknowledged at one time.
const UNACKNOWLEDGED_MAX: usize = 1024;

/// Messages in one pull.
const PULL_MESSAGES: usize = 500;

/// Makes the stream unless it exists, empties it, and replaces its consumer. The settings are those of the stream
/// and the consumer that Peal uses.
pub(in crate::bench) async fn prepare(nats: &Nats) -> anyhow::Result<()> {
    let js = context(nats).await?;
    let mesh = Mesh {
        here: RegionSettings {
            region: sample::region(),
            durability: topology::Durability::default(),
            max_bytes: -1,
        },
        regions: vec![sample::region()],
    };
    let notify = mesh
        .streams()
        .into_iter()
        .find(|stream| stream.name == topology::NOTIFY);
    let config = jetstream::stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![SUBJECT.to_owned()],
        ..notify.context("the stream of Peal")?
    };
    let stream = js.get_or_create_stream(config).await?;
    stream.purge().await?;
    // A consumer that is not there is as good as one that was removed.
    drop(stream.delete_consumer(CONSUMER).await);
    let lane = topology::lane_consumer(Channel::Push, Class::Normal);
    let consumers = topology::workers_consumers(&sample::region());
    let lane = consumers
        .into_iter()
        .find(|(_, config)| config.durable_name.as_ref() == Some(&lane));
    let config = jetstream::consumer::pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        filter_subject: SUBJECT.to_owned(),
        ..lane.context("the consumer of Peal")?.1
    };
    stream.create_consumer(config).await?;
    Ok(())
}

/// Publishes until `lasts` is over and consumes meanwhile, on two connections, until the last is acknowledged.
pub(super) async fn run(target: &Target, lasts: Duration) -> anyhow::Result<Done> {
    let js = context(&target.nats).await?;
    let consuming = context(&target.nats).await?;
    let consumer: PullConsumer = consuming.get_consumer_from_stream(CONSUMER, STREAM).await?;
    let (published, total) = watch::channel(None);
    let watch = Stopwatch::start();
    let rest = tokio::spawn(consume(consuming, consumer, total));
    let message = Message::new();
    let next = async || Ok(stored(message.publish(&js).await?));
    let count = keep_under_way(UNACKNOWLEDGED_MAX, &watch, lasts, next).await?;
    published.send_replace(Some(count));
    rest.await??;
    Ok(watch.stop(count))
}

/// Starts what `next` starts until `lasts` is over, with `window` of them under way, and waits for all: how many they were.
async fn keep_under_way<W>(
    window: usize,
    watch: &Stopwatch,
    lasts: Duration,
    mut next: impl AsyncFnMut() -> anyhow::Result<W>,
) -> anyhow::Result<u64>
where
    W: Future<Output = anyhow::Result<()>>,
{
    let mut waiting = VecDeque::with_capacity(window);
    let mut count = 0;
    while !watch.is_over(lasts) {
        if waiting.len() == window
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.await?;
        }
        waiting.push_back(next().await?);
        count += 1;
    }
    for rest in waiting {
        rest.await?;
    }
    Ok(count)
}

/// Publishes each message by itself, `window` of them unacknowledged at one time.
pub(super) async fn run_singly(target: &Target, lasts: Duration, window: usize) -> anyhow::Result<Done> {
    let js = context(&target.nats).await?;
    let message = Message::new();
    let watch = Stopwatch::start();
    let next = async || Ok(stored(message.publish(&js).await?));
    let count = keep_under_way(window, &watch, lasts, next).await?;
    Ok(watch.stop(count))
}

/// Publishes as a gateway does that shares flushes, `window` messages unacknowledged at one time.
pub(super) async fn run_together(target: &Target, lasts: Duration, window: usize) -> anyhow::Result<Done> {
    let batcher = Batcher::new(context(&target.nats).await?);
    let message = Message::new();
    let watch = Stopwatch::start();
    let next = async || {
        let stored = batcher.store(message.outgoing());
        Ok(async move { fresh(stored.await?.duplicate) })
    };
    let count = keep_under_way(window, &watch, lasts, next).await?;
    Ok(watch.stop(count))
}

async fn stored(ack: PublishAckFuture) -> anyhow::Result<()> {
    fresh(ack.await?.duplicate)
}

fn fresh(duplicate: bool) -> anyhow::Result<()> {
    ensure!(!duplicate, "a message was taken for a duplicate");
    Ok(())
}

/// Acknowledges until it is known how many there are and all of them are acknowledged.
async fn consume(
    js: jetstream::Context,
    consumer: PullConsumer,
    mut total: watch::Receiver<Option<u64>>,
) -> anyhow::Result<()> {
    let messages = consumer
        .stream()
        .max_messages_per_batch(PULL_MESSAGES)
        .messages()
        .await?;
    let mut messages = messages.ready_chunks(PULL_MESSAGES);
    let mut count = 0_u64;
    while *total.borrow_and_update() != Some(count) {
        let chunk = tokio::select! {
            chunk = messages.next() => chunk.context("the pull ended")?,
            changed = total.changed() => {
                changed?;
                continue;
            }
        };
        for message in chunk {
            message?.ack().await.map_err(|error| anyhow::anyhow!(error))?;
            count += 1;
        }
    }
    Ok(js.client().flush().await?)
}

/// Publishes `rate` messages a second.
pub(super) async fn run_paced(target: &Target, lasts: Duration, rate: f64) -> anyhow::Result<Done> {
    let js = context(&target.nats).await?;
    let message = Message::new();
    let watch = Stopwatch::start();
    let latencies_us = pace::at(rate, lasts, move |_| {
        let (js, message) = (js.clone(), message.clone());
        async move { stored(message.publish(&js).await?).await }
    })
    .await?;
    Ok(Done {
        latencies_us,
        ..watch.stop(0)
    }
    .counted())
}

/// What the gateway would publish, but for the work of writing it.
#[derive(Debug, Clone)]
struct Message {
    body: Bytes,
    at: Timestamp,
    region: Region,
}

impl Message {
    fn new() -> Self {
        Self {
            body: sample::job(),
            at: Clock::system().now(),
            region: sample::region(),
        }
    }

    fn headers(&self) -> HeaderMap {
        envelope::headers(JobId(Uuid::new_v4()), self.at, &self.region)
    }

    fn outgoing(&self) -> batch::Message {
        batch::Message {
            subject: SUBJECT.to_owned(),
            headers: self.headers(),
            payload: self.body.clone(),
        }
    }

    async fn publish(&self, js: &jetstream::Context) -> anyhow::Result<PublishAckFuture> {
        Ok(js
            .publish_with_headers(SUBJECT, self.headers(), self.body.clone())
            .await?)
    }
}

async fn context(nats: &Nats) -> anyhow::Result<jetstream::Context> {
    let role = Role::Operator(sample::region());
    Ok(connect::jetstream(connect::connect(nats, &role, "bench").await?))
}
