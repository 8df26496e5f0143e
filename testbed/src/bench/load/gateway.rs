//! Load on the gateway: notifications over HTTP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use shared::{id::EventId, provider::Provider};
use tokio::sync::{Mutex, Semaphore};

use super::{Done, Endpoints, Stopwatch, connection::Connection, connection::GatewayClient, pace};
use crate::bench::sample::Requests;

/// Connections of an open loop, opened before the first notification; more than it ever uses at once.
const OPEN_LOOP_CONNECTIONS: usize = 128;

/// Sends on every connection, one request after another, until `duration` is over.
pub(super) async fn run(
    endpoints: &Endpoints,
    duration: Duration,
    connections: usize,
    recipients: usize,
    provider: Provider,
) -> anyhow::Result<Done> {
    let connections = open(endpoints, connections).await?;
    let requests = Requests::new(provider);
    let next = Arc::new(AtomicUsize::new(0));
    let watch = Arc::new(Stopwatch::start());
    let senders = connections.into_iter().map(|mut connection| {
        let (requests, next, watch) = (requests.clone(), next.clone(), watch.clone());
        let sending = tokio::spawn(async move {
            let (mut sent, mut repeated) = (0_u64, 0_u64);
            while !watch.is_over(duration) {
                let first = next.fetch_add(recipients, Ordering::Relaxed);
                repeated += connection
                    .send_until_accepted(requests.write(&EventId::fresh(), first, recipients))
                    .await?;
                sent += recipients as u64;
            }
            anyhow::Ok((sent, repeated))
        });
        async { sending.await? }
    });
    let sums = try_join_all(senders).await?;
    let (count, repeated) = sums.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Ok(Done {
        repeated,
        ..watch.stop(count)
    })
}

/// Sends `rate` notifications a second, each on a free connection.
pub(super) async fn run_paced(endpoints: &Endpoints, duration: Duration, rate: f64) -> anyhow::Result<Done> {
    let pool = Pool {
        free: Mutex::new(open(endpoints, OPEN_LOOP_CONNECTIONS).await?),
        permits: Semaphore::new(OPEN_LOOP_CONNECTIONS),
    };
    let (pool, requests) = (Arc::new(pool), Requests::new(Provider::Apns));
    let watch = Stopwatch::start();
    let latencies_us = pace::at(rate, duration, move |number| {
        let (pool, body) = (pool.clone(), requests.write(&EventId::fresh(), number, 1));
        async move {
            let _permit = pool.permits.acquire().await?;
            let mut connection = pool
                .free
                .lock()
                .await
                .pop()
                .expect("there are as many connections as permits");
            let sent = connection.send_until_accepted(body).await;
            pool.free.lock().await.push(connection);
            sent.map(|_| ())
        }
    })
    .await?;
    Ok(Done {
        latencies_us,
        ..watch.stop(0)
    }
    .counted())
}

#[derive(Debug)]
struct Pool {
    free: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

async fn open(endpoints: &Endpoints, connections: usize) -> anyhow::Result<Vec<Connection>> {
    let gateway = GatewayClient::new(endpoints.gateway, &endpoints.key)?;
    try_join_all((0..connections).map(|_| gateway.connect())).await
}

impl Done {
    /// Sets the count to the number of latencies.
    pub(super) fn counted(self) -> Self {
        Self {
            count: self.latencies_us.len() as u64,
            ..self
        }
    }
}
