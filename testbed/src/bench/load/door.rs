//! Load on the door for services: notifications over NATS.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use shared::{
    channel::{Channel, Class},
    id::EventId,
    nats::{
        connect, publish,
        roles::Role,
        subject::{self, Lane},
    },
    provider::Provider,
};

use super::{Done, Endpoints, Stopwatch, jetstream::keep_in_flight};
use crate::{
    bench::sample::{self, Requests},
    peal::APP,
};

/// Messages that are unacknowledged at one time.
const UNACKNOWLEDGED_MAX: usize = 512;

/// Publishes to the intake, with `many` notifications in each message.
pub(super) async fn run(endpoints: &Endpoints, duration: Duration, many: usize) -> anyhow::Result<Done> {
    let (requests, mut next) = (Requests::new(Provider::Apns), 0);
    publish_all(endpoints, duration, subject::send(APP), many, || {
        let mut items = Vec::with_capacity(many);
        for _ in 0..many {
            items.push(requests.write(&EventId::fresh(), next, 1));
            next += 1;
        }
        if many == 1 {
            return items.remove(0);
        }
        [&br#"{"notifications":["#[..], &items.join(&b','), b"]}"]
            .concat()
            .into()
    })
    .await
}

/// Publishes jobs to the workers, as services of the former version do.
pub(super) async fn run_former(endpoints: &Endpoints, duration: Duration) -> anyhow::Result<Done> {
    let lane = Lane {
        channel: Channel::Push,
        region: sample::region(),
        class: Class::Normal,
        app: APP.parse()?,
    };
    publish_all(endpoints, duration, lane.notify(), 1, sample::job).await
}

async fn publish_all(
    endpoints: &Endpoints,
    duration: Duration,
    subject: String,
    many: usize,
    mut body: impl FnMut() -> Bytes,
) -> anyhow::Result<Done> {
    let role = Role::Operator(sample::region());
    let js = connect::jetstream(connect::connect(&endpoints.nats, &role, "bench").await?);
    let watch = Stopwatch::start();
    let next = async || {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", EventId::fresh().as_str());
        let stored = publish::send(&js, subject.clone(), headers, body()).await?;
        Ok(async move {
            anyhow::ensure!(!stored.await?.duplicate, "the server took a message for a duplicate");
            Ok(())
        })
    };
    let count = keep_in_flight(UNACKNOWLEDGED_MAX, &watch, duration, next).await?;
    Ok(watch.stop(count * many as u64))
}
