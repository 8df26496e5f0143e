//! Faults of `JetStream`, and waiting for it.

use std::time::Duration;

use anyhow::bail;
use shared::{
    channel::{Channel, Class},
    nats::{connect, topology},
};
use tokio::time::sleep;

use super::{Injector, Victim};
use crate::faults::scenario::VictimKind;

impl Injector {
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
