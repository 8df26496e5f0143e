//! Load on `JetStream` without Peal: the same bytes to a stream with the same settings.

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

use super::{Done, Endpoints, Stopwatch, pace};
use crate::bench::sample;

const STREAM: &str = "BENCH";
const SUBJECT: &str = "bench.push.eu.normal.shop";
const CONSUMER: &str = "bench";

/// Messages that are unacknowledged at one time.
const UNACKNOWLEDGED_MAX: usize = 1024;

/// Messages in one pull.
const PULL_MESSAGES: usize = 500;

/// Creates the stream unless it exists, empties it, and replaces its consumer. Stream and consumer have the same
/// settings as those that Peal uses.
pub(in crate::bench) async fn prepare(nats: &Nats) -> anyhow::Result<()> {
    let js = context(nats).await?;
    let mesh = Mesh {
        here: RegionSettings {
            region: sample::region(),
            durability: topology::Durability::default(),
            max_bytes: -1,
            intake_max_bytes: -1,
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
        ..notify.context("the topology has no such stream")?
    };
    let stream = js.get_or_create_stream(config).await?;
    stream.purge().await?;
    // It fails when there is no such consumer, which is as good.
    drop(stream.delete_consumer(CONSUMER).await);
    let lane = topology::lane_consumer(Channel::Push, Class::Normal);
    let consumers = topology::workers_consumers(&sample::region());
    let lane = consumers
        .into_iter()
        .find(|(_, config)| config.durable_name.as_ref() == Some(&lane));
    let config = jetstream::consumer::pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        filter_subject: SUBJECT.to_owned(),
        ..lane.context("the topology has no such consumer")?.1
    };
    stream.create_consumer(config).await?;
    Ok(())
}

/// Publishes for `duration` on one connection, and consumes on another until the last message is acknowledged.
pub(super) async fn run(endpoints: &Endpoints, duration: Duration) -> anyhow::Result<Done> {
    let js = context(&endpoints.nats).await?;
    let consumer_context = context(&endpoints.nats).await?;
    let consumer: PullConsumer = consumer_context.get_consumer_from_stream(CONSUMER, STREAM).await?;
    let (total_sender, total) = watch::channel(None);
    let watch = Stopwatch::start();
    let consumption = tokio::spawn(consume(consumer_context, consumer, total));
    let message = SampleMessage::new();
    let next = async || Ok(check_stored(message.publish(&js).await?));
    let count = keep_in_flight(UNACKNOWLEDGED_MAX, &watch, duration, next).await?;
    total_sender.send_replace(Some(count));
    consumption.await??;
    Ok(watch.stop(count))
}

/// Calls `next` for `duration`, with up to `window` of its futures unfinished, and waits for all. Returns their number.
pub(super) async fn keep_in_flight<W>(
    window: usize,
    watch: &Stopwatch,
    duration: Duration,
    mut next: impl AsyncFnMut() -> anyhow::Result<W>,
) -> anyhow::Result<u64>
where
    W: Future<Output = anyhow::Result<()>>,
{
    let mut unfinished = VecDeque::with_capacity(window);
    let mut count = 0;
    while !watch.is_over(duration) {
        if unfinished.len() == window
            && let Some(oldest) = unfinished.pop_front()
        {
            oldest.await?;
        }
        unfinished.push_back(next().await?);
        count += 1;
    }
    for pending in unfinished {
        pending.await?;
    }
    Ok(count)
}

/// Publishes messages one by one, with up to `window` of them unacknowledged.
pub(super) async fn run_singly(endpoints: &Endpoints, duration: Duration, window: usize) -> anyhow::Result<Done> {
    let js = context(&endpoints.nats).await?;
    let message = SampleMessage::new();
    let watch = Stopwatch::start();
    let next = async || Ok(check_stored(message.publish(&js).await?));
    let count = keep_in_flight(window, &watch, duration, next).await?;
    Ok(watch.stop(count))
}

/// Publishes in batches that share a flush, as a gateway does, with up to `window` messages unacknowledged.
pub(super) async fn run_batched(endpoints: &Endpoints, duration: Duration, window: usize) -> anyhow::Result<Done> {
    let batcher = Batcher::new(context(&endpoints.nats).await?);
    let message = SampleMessage::new();
    let watch = Stopwatch::start();
    let next = async || {
        let stored = batcher.store(message.for_batch());
        Ok(async move { check_not_duplicate(stored.await?.duplicate) })
    };
    let count = keep_in_flight(window, &watch, duration, next).await?;
    Ok(watch.stop(count))
}

async fn check_stored(ack: PublishAckFuture) -> anyhow::Result<()> {
    check_not_duplicate(ack.await?.duplicate)
}

fn check_not_duplicate(duplicate: bool) -> anyhow::Result<()> {
    ensure!(!duplicate, "the server took a message for a duplicate");
    Ok(())
}

/// Acknowledges messages until their number equals `total`, which is `None` while messages are still published.
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
pub(super) async fn run_paced(endpoints: &Endpoints, duration: Duration, rate: f64) -> anyhow::Result<Done> {
    let js = context(&endpoints.nats).await?;
    let message = SampleMessage::new();
    let watch = Stopwatch::start();
    let latencies_us = pace::at(rate, duration, move |_| {
        let (js, message) = (js.clone(), message.clone());
        async move { check_stored(message.publish(&js).await?).await }
    })
    .await?;
    Ok(Done {
        latencies_us,
        ..watch.stop(0)
    }
    .counted())
}

/// The message that the gateway would publish; its body is serialized only once.
#[derive(Debug, Clone)]
struct SampleMessage {
    body: Bytes,
    at: Timestamp,
    region: Region,
}

impl SampleMessage {
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

    fn for_batch(&self) -> batch::Message {
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
