//! Faults of `JetStream`, and waiting for it.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::jetstream;
use shared::{
    channel::{Channel, Class},
    nats::{connect, topology},
};
use tokio::time::{Instant, sleep};

use super::{Injector, Victim};
use crate::faults::scenario::VictimKind;

/// How long a deleted stream may be missing. A gateway needs less than a second on a machine that has time for it.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// A gateway that has mended everything is ready within this time.
const READY_AGAIN_WITHIN: Duration = Duration::from_secs(15);

/// A stream of three servers has a leader within this time, also on a busy machine.
const LED_WITHIN: Duration = Duration::from_secs(20);

impl Injector {
    /// Deletes streams one after another. Returns what was not as it must be: the stream was not created again, it gives
    /// sequences that the former has given, or its gateway did not become ready.
    pub(super) async fn delete_streams(
        &mut self,
        streams: &[String],
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<Vec<String>> {
        let region = self.choose_region(region);
        let js = connect::jetstream(self.peal.connect(&region).await?);
        let at = self.peal.regions.iter().position(|known| known.name == region);
        let at = at.context("a region of the mesh")?;
        let mut failures = Vec::new();
        for stream in streams {
            let former = js.get_stream(stream).await?.cached_info().clone();
            js.delete_stream(stream).await?;
            let Some(found) = wait_for(&js, stream).await else {
                failures.push(format!("{stream} is not back after {BACK_WITHIN:?}"));
                continue;
            };
            if found.config.first_sequence.unwrap_or(1) <= former.state.last_sequence {
                failures.push(format!("{stream} gives sequences again"));
            }
            if !self.is_ready(at, true, READY_AGAIN_WITHIN).await {
                failures.push(format!("the gateway is not ready although {stream} is back"));
            }
            sleep(hold).await;
        }
        Ok(failures)
    }

    /// Lets the leaders of `streams` step down, one after another.
    pub(super) async fn change_leaders(
        &mut self,
        streams: &[String],
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        let region = self.choose_region(region);
        let client = self.peal.connect(&region).await?;
        for stream in streams {
            let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
            let begun = Instant::now();
            // A stream without a leader elects one within seconds, and then has one that can step down.
            loop {
                let answer = client.request(subject.clone(), "".into()).await;
                let answer = answer
                    .ok()
                    .and_then(|answer| serde_json::from_slice(&answer.payload).ok());
                if answer.is_some_and(|answer: serde_json::Value| answer["success"] == true) {
                    break;
                }
                ensure!(begun.elapsed() < LED_WITHIN, "{stream} has no leader that steps down");
                sleep(Duration::from_millis(200)).await;
            }
            sleep(hold).await;
        }
        Ok(())
    }

    /// Deletes the consumer of a lane, which a worker makes again when it starts.
    pub(super) async fn delete_consumer(&mut self, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        for victim in self.choose(VictimKind::Worker, region) {
            let Victim::Worker(at, _) = victim else {
                bail!("a worker")
            };
            let js = connect::jetstream(self.peal.connect(&self.peal.regions[at].name).await?);
            let lane = topology::lane_consumer(Channel::Push, Class::Normal);
            js.get_stream(topology::NOTIFY).await?.delete_consumer(&lane).await?;
            sleep(hold).await;
            self.stop(victim).await?;
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Waits until every fresh notification has been pulled; whatever still waits then is parked.
    pub(super) async fn wait_all_pulled(&self) -> anyhow::Result<()> {
        for region in &self.peal.regions {
            let js = connect::jetstream(self.peal.connect(&region.name).await?);
            let notify = js.get_stream(topology::NOTIFY).await?;
            let lane = topology::lane_consumer(Channel::Push, Class::Normal);
            while notify.consumer_info(&lane).await?.num_pending > 0 {
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }
}

/// What the server says of `stream` as soon as it has it.
async fn wait_for(js: &jetstream::Context, stream: &str) -> Option<jetstream::stream::Info> {
    let begun = Instant::now();
    while begun.elapsed() < BACK_WITHIN {
        if let Ok(found) = js.get_stream(stream).await {
            return Some(found.cached_info().clone());
        }
        sleep(Duration::from_millis(20)).await;
    }
    None
}
