//! One round: everything that is compared, one after another.

use serde::Serialize;

use super::{
    Scale,
    figures::in_series,
    load::Work,
    rig::{Measured, Rig},
    single,
};

/// The share of the highest rate at which latencies are taken.
const MODERATE: f64 = 0.3;

/// What one round said.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    /// a.
    pub(super) jetstream: Measured,
    /// b.
    pub(super) sender: Measured,
    /// c, one recipient a request.
    pub(super) one: Measured,
    /// c, a hundred recipients a request.
    pub(super) hundred: Measured,
    /// Notifications a second while latencies were taken.
    pub(super) moderate_rate: f64,
    /// From request to answer at the gateway.
    pub(super) accept: Measured,
    /// From publish to acknowledgement without Peal.
    pub(super) pub_ack: Measured,
    /// From request to arrival at the simulator, microseconds, one after another.
    pub(super) singles_us: Vec<u32>,
}

impl Round {
    /// S of this round.
    pub(super) fn limit(&self) -> f64 {
        in_series(self.jetstream.per_second, self.sender.per_second)
    }
}

/// Measures everything once.
pub(super) async fn measure(rig: &Rig, scale: Scale, number: usize) -> anyhow::Result<Round> {
    let lasts = scale.lasts;
    let jetstream = rig.measure(Work::JetStream, lasts).await?;
    let sender = rig.measure(Work::Sender, lasts).await?;
    let one = rig
        .measure(
            Work::Gateway {
                connections: 128,
                recipients: 1,
            },
            lasts,
        )
        .await?;
    let hundred = rig
        .measure(
            Work::Gateway {
                connections: 16,
                recipients: 100,
            },
            lasts,
        )
        .await?;
    let rate = MODERATE * one.per_second;
    let accept = rig.measure(Work::Accept { rate }, lasts / 2).await?;
    let pub_ack = rig.measure(Work::PubAck { rate }, lasts / 2).await?;
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
