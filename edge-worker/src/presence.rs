//! Tells which workers serve a region now. The region's own workers send a heartbeat several times a second, and so do the
//! workers of other regions that stand by to help it. A worker takes over when it receives no heartbeat of a lower rank.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::Client;
use futures::StreamExt;
use shared::{
    id::Region,
    lifecycle::Lifecycle,
    nats::{connect, subject},
};
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

/// How often a worker sends a heartbeat.
const SEND_HEARTBEAT_EVERY: Duration = Duration::from_millis(150);

/// A rank counts as absent after this long without a heartbeat.
const ABSENT_AFTER: Duration = Duration::from_millis(600);

/// The order in which workers serve a region: 0 is its own workers; 1 and more are its helpers, in the order in which the
/// mesh's configuration lists them.
pub type Rank = usize;

/// What a worker of one rank may do, given which other workers are present.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Whether to pull fresh work and retries.
    pub work: watch::Receiver<bool>,
    /// Whether to pull the spill, which the region's own workers could not send. Helpers come first.
    pub spill: watch::Receiver<bool>,
    /// Whether a helper is present. Always false for a helper itself.
    pub helped: watch::Receiver<bool>,
}

/// When a heartbeat of each rank was last received.
type LastReceived = Arc<Mutex<BTreeMap<Rank, Instant>>>;

/// Sends and receives heartbeats, and keeps a [`Presence`] current.
#[derive(Debug)]
pub struct Heartbeats {
    client: Client,
    region: Region,
    rank: Rank,
    work: watch::Sender<bool>,
    spill: watch::Sender<bool>,
    helped: watch::Sender<bool>,
}

impl Presence {
    /// The presence of a worker of `rank` for `region`, and the heartbeats that keep it current.
    pub fn new(client: Client, region: Region, rank: Rank) -> (Self, Heartbeats) {
        let (work, may_work) = watch::channel(rank == 0);
        let (spill, may_spill) = watch::channel(false);
        let (helped, is_helped) = watch::channel(false);
        let presence = Self {
            work: may_work,
            spill: may_spill,
            helped: is_helped,
        };
        let heartbeats = Heartbeats {
            client,
            region,
            rank,
            work,
            spill,
            helped,
        };
        (presence, heartbeats)
    }
}

impl Heartbeats {
    /// Runs until the process ends. Sends nothing before `ready`, nor after shutdown has begun.
    pub async fn run(self, mut ready: watch::Receiver<bool>, lifecycle: Lifecycle) {
        let last_received = LastReceived::default();
        let receiving = self.receive(last_received.clone());
        let sending = async {
            // First receive the heartbeats of the workers that are present already.
            tokio::time::sleep(ABSENT_AFTER).await;
            let mut ticks = interval(SEND_HEARTBEAT_EVERY);
            let (mut connection, mut listening_since) =
                (connect::connects(&self.client), Instant::now() - ABSENT_AFTER);
            loop {
                ticks.tick().await;
                let current = connect::connects(&self.client);
                if current != std::mem::replace(&mut connection, current) || !connect::is_connected(&self.client) {
                    listening_since = Instant::now();
                }
                if *ready.borrow_and_update() && !lifecycle.is_finishing() {
                    let subject = subject::alive(&self.region, self.rank);
                    if let Err(error) = self.client.publish(subject, "".into()).await {
                        tracing::debug!(%error, "heartbeat could not be sent");
                    }
                }
                let last_received = last_received.lock().unwrap_or_else(PoisonError::into_inner);
                self.decide(&last_received, listening_since.elapsed() >= ABSENT_AFTER);
            }
        };
        tokio::join!(receiving, sending);
    }

    async fn receive(&self, last_received: LastReceived) {
        loop {
            match self.client.subscribe(subject::alive_filter(&self.region)).await {
                Ok(mut heartbeats) => {
                    while let Some(heartbeat) = heartbeats.next().await {
                        if let Some(rank) = subject::rank_of(&heartbeat.subject) {
                            let mut last_received = last_received.lock().unwrap_or_else(PoisonError::into_inner);
                            last_received.insert(rank, Instant::now());
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot subscribe to heartbeats; retrying"),
            }
            tokio::time::sleep(ABSENT_AFTER).await;
        }
    }

    /// Silence proves absence only if `is_conclusive`: if this connection has been up long enough to receive a heartbeat.
    fn decide(&self, last_received: &BTreeMap<Rank, Instant>, is_conclusive: bool) {
        let is_present =
            |ranks: std::ops::Range<Rank>| last_received.range(ranks).any(|(_, at)| at.elapsed() < ABSENT_AFTER);
        let helped = self.rank == 0 && is_present(1..Rank::MAX);
        let (work, spill) = match self.rank {
            0 => (true, !helped),
            rank => (
                is_conclusive && !is_present(0..rank),
                is_conclusive && !is_present(1..rank),
            ),
        };
        set(&self.helped, helped);
        set(&self.spill, spill);
        if set(&self.work, work) && self.rank > 0 {
            if work {
                tracing::warn!(region = %self.region, helping = work, "taking over a region without workers");
            } else {
                tracing::warn!(region = %self.region, helping = work, "handing a region back to its workers");
            }
        }
    }
}

/// Sends `new` if it is a change, and returns whether it is.
fn set(sender: &watch::Sender<bool>, new: bool) -> bool {
    sender.send_if_modified(|value| std::mem::replace(value, new) != new)
}
