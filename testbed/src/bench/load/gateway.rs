//! Notifications sent to the gateway.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use shared::id::EventId;
use tokio::sync::{Mutex, Semaphore};

use super::{Done, Stopwatch, Target, connection::Connection, connection::Door, pace};
use crate::bench::sample::Requests;

/// Connections that are open before notifications come at their own pace; more than are ever needed at once.
const STANDING_BY: usize = 128;

/// Sends on every connection, one request after another, until `lasts` is over.
pub(super) async fn run(
    target: &Target,
    lasts: Duration,
    connections: usize,
    recipients: usize,
) -> anyhow::Result<Done> {
    let open = open(target, connections).await?;
    let requests = Requests::new();
    let next = Arc::new(AtomicUsize::new(0));
    let watch = Arc::new(Stopwatch::start());
    let senders = open.into_iter().map(|mut connection| {
        let (requests, next, watch) = (requests.clone(), next.clone(), watch.clone());
        let sending = tokio::spawn(async move {
            let (mut sent, mut repeated) = (0_u64, 0_u64);
            while !watch.is_over(lasts) {
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
    let sent = try_join_all(senders).await?;
    let (count, repeated) = sent.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Ok(Done {
        repeated,
        ..watch.stop(count)
    })
}

/// Sends `rate` notifications a second, each on a connection that is free.
pub(super) async fn run_paced(target: &Target, lasts: Duration, rate: f64) -> anyhow::Result<Done> {
    let pool = Pool {
        free: Mutex::new(open(target, STANDING_BY).await?),
        permits: Semaphore::new(STANDING_BY),
    };
    let (pool, requests) = (Arc::new(pool), Requests::new());
    let watch = Stopwatch::start();
    let latencies_us = pace::at(rate, lasts, move |number| {
        let (pool, body) = (pool.clone(), requests.write(&EventId::fresh(), number, 1));
        async move {
            let _permit = pool.permits.acquire().await?;
            let mut connection = pool.free.lock().await.pop().expect("as many connections as permits");
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

async fn open(target: &Target, connections: usize) -> anyhow::Result<Vec<Connection>> {
    let door = Door::new(target.gateway, &target.key)?;
    try_join_all((0..connections).map(|_| door.connect())).await
}

impl Done {
    /// Counts what was timed.
    pub(super) fn counted(self) -> Self {
        Self {
            count: self.latencies_us.len() as u64,
            ..self
        }
    }
}
