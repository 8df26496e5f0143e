//! One round: all measurements that are compared, one after another.

use serde::Serialize;
use shared::provider::Provider;

use super::{
    Scale,
    figures::in_series,
    load::Work,
    rig::{Measured, Rig},
    single,
};

/// Latencies are measured at this share of the highest rate.
const MODERATE_SHARE: f64 = 0.3;

/// The figures of one round.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    /// a: raw `JetStream`.
    pub(super) jetstream: Measured,
    /// b: the raw HTTP/2 sender.
    pub(super) sender: Measured,
    /// c: Peal, one recipient a request.
    pub(super) one: Measured,
    /// c: Peal, 100 recipients a request.
    pub(super) hundred: Measured,
    /// Notifications a second while latencies were measured.
    pub(super) moderate_rate: f64,
    /// Latency from request to answer at the gateway.
    pub(super) accept: Measured,
    /// Latency from publish to acknowledgement, without Peal.
    pub(super) pub_ack: Measured,
    /// Latencies from request to arrival at the simulator, microseconds; sent one after another.
    pub(super) singles_us: Vec<u32>,
}

impl Round {
    /// S of this round, notifications a second.
    pub(super) fn limit(&self) -> f64 {
        in_series(self.jetstream.per_second, self.sender.per_second)
    }
}

/// Makes each measurement once.
pub(super) async fn measure(rig: &Rig, scale: Scale, number: usize) -> anyhow::Result<Round> {
    let duration = scale.duration;
    let jetstream = rig.measure(Work::JetStream, duration).await?;
    let sender = rig.measure(Work::Sender, duration).await?;
    let one = rig
        .measure(
            Work::Gateway {
                connections: 128,
                recipients: 1,
                provider: Provider::Apns,
            },
            duration,
        )
        .await?;
    let hundred = rig
        .measure(
            Work::Gateway {
                connections: 16,
                recipients: 100,
                provider: Provider::Apns,
            },
            duration,
        )
        .await?;
    let rate = MODERATE_SHARE * one.per_second;
    let accept = rig.measure(Work::Accept { rate }, duration / 2).await?;
    let pub_ack = rig.measure(Work::PubAck { rate }, duration / 2).await?;
    let singles_us = single::measure(rig, scale.singles).await?;
    let round = Round {
        jetstream,
        sender,
        one,
        hundred,
        moderate_rate: rate,
        accept,
        pub_ack,
        singles_us,
    };
    eprintln!(
        "round {number}: JetStream {:.0}/s, sender {:.0}/s, Peal {:.0}/s and {:.0}/s",
        round.jetstream.per_second, round.sender.per_second, round.one.per_second, round.hundred.per_second,
    );
    Ok(round)
}
