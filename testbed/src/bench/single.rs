//! The latency of a single notification, from the request to the provider. It shows any delay that batching adds when
//! there is nothing to batch, as Nagle's algorithm does.

use std::time::Duration;

use anyhow::ensure;
use shared::{clock::Clock, id::EventId, provider::Provider};

use super::{rig::Rig, sample::Requests};

/// A notification that takes longer counts as lost.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// Sends `count` notifications, each after the previous one has arrived. Returns their latencies, microseconds.
pub(super) async fn measure(rig: &Rig, count: usize) -> anyhow::Result<Vec<u32>> {
    let (log, clock, requests) = (
        rig.peal.simulators.apns.log(),
        Clock::system(),
        Requests::new(Provider::Apns),
    );
    log.clear();
    let mut connection = rig.gateway()?.connect().await?;
    let mut latencies = Vec::with_capacity(count);
    for number in 0..count {
        let body = requests.write(&EventId::fresh(), number, 1);
        let began_us = clock.now().as_microsecond();
        connection.send_until_accepted(body).await?;
        ensure!(
            log.wait_delivered(number as u64 + 1, ARRIVES_WITHIN).await,
            "LOST: a single notification did not arrive"
        );
        latencies.push(u32::try_from(log.last_delivered_us() - began_us).unwrap_or(u32::MAX));
    }
    rig.expect(Provider::Apns, count as u64).await?;
    Ok(latencies)
}
