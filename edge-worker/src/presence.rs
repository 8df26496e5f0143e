//! Who works for a region at this moment: its own workers say so several times a second, and so do those of other
//! regions that stand by to help it. Whoever hears nobody that comes before, it is their turn.

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

/// How often a worker says that it is there.
const BEAT_EVERY: Duration = Duration::from_millis(150);

/// Who was not heard for this long is not there.
const ABSENT_AFTER: Duration = Duration::from_millis(600);

/// Place in the order in which workers serve a region: 0 are its own, then its helpers as the mesh names them.
pub type Rank = usize;

/// What is known of who is there.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Whether to pull fresh work and retries.
    pub work: watch::Receiver<bool>,
    /// Whether to pull what the region's own workers could not send. It is for helpers first.
    pub spill: watch::Receiver<bool>,
    /// Whether somebody stands by to help. Never so for a helper.
    pub helped: watch::Receiver<bool>,
}

/// Says and hears who is there.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    region: Region,
    rank: Rank,
    work: watch::Sender<bool>,
    spill: watch::Sender<bool>,
    helped: watch::Sender<bool>,
}

impl Presence {
    /// The presence of a worker of `rank` for `region`, and what keeps it current.
    pub fn new(client: Client, region: Region, rank: Rank) -> (Self, Watch) {
        let (work, may_work) = watch::channel(rank == 0);
        let (spill, may_spill) = watch::channel(false);
        let (helped, is_helped) = watch::channel(false);
        let presence = Self {
            work: may_work,
            spill: may_spill,
            helped: is_helped,
        };
        let watch = Watch {
            client,
            region,
            rank,
            work,
            spill,
            helped,
        };
        (presence, watch)
    }
}

impl Watch {
    /// Hears for ever; says nothing before `ready`, nor when the process is to finish.
    pub async fn run(self, mut ready: watch::Receiver<bool>, lifecycle: Lifecycle) {
        let heard: Arc<Mutex<BTreeMap<Rank, Instant>>> = Arc::default();
        let hearing = self.hear(heard.clone());
        let looking = async {
            // Whoever was there before is heard first.
            tokio::time::sleep(ABSENT_AFTER).await;
            let mut beats = interval(BEAT_EVERY);
            let (mut connection, mut listening) = (connect::connects(&self.client), Instant::now() - ABSENT_AFTER);
            loop {
                beats.tick().await;
                let current = connect::connects(&self.client);
                if current != std::mem::replace(&mut connection, current) || !connect::is_connected(&self.client) {
                    listening = Instant::now();
                }
                if *ready.borrow_and_update() && !lifecycle.is_finishing() {
                    let subject = subject::alive(&self.region, self.rank);
                    if let Err(error) = self.client.publish(subject, "".into()).await {
                        tracing::debug!(%error, "cannot say that this worker is there");
                    }
                }
                let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                self.decide(&heard, listening.elapsed() >= ABSENT_AFTER);
            }
        };
        tokio::join!(hearing, looking);
    }

    async fn hear(&self, heard: Arc<Mutex<BTreeMap<Rank, Instant>>>) {
        loop {
            match self.client.subscribe(subject::alive_filter(&self.region)).await {
                Ok(mut beats) => {
                    while let Some(beat) = beats.next().await {
                        if let Some(rank) = subject::rank_of(&beat.subject) {
                            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                            heard.insert(rank, Instant::now());
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot hear who is there"),
            }
            tokio::time::sleep(ABSENT_AFTER).await;
        }
    }

    /// Who is cut off hears nobody, and that says nothing; nor does the silence of a connection that was just made:
    /// `would_hear` tells whether this one would have heard whoever is there.
    fn decide(&self, heard: &BTreeMap<Rank, Instant>, would_hear: bool) {
        let is_there = |ranks: std::ops::Range<Rank>| heard.range(ranks).any(|(_, at)| at.elapsed() < ABSENT_AFTER);
        let helped = self.rank == 0 && is_there(1..Rank::MAX);
        let (work, spill) = match self.rank {
            0 => (true, !helped),
            rank => (would_hear && !is_there(0..rank), would_hear && !is_there(1..rank)),
        };
        set(&self.helped, helped);
        set(&self.spill, spill);
        if set(&self.work, work) && self.rank > 0 {
            tracing::warn!(region = %self.region, helping = work, "workers of a region that is helped came or went");
        }
    }
}

fn set(told: &watch::Sender<bool>, now: bool) -> bool {
    told.send_if_modified(|value| std::mem::replace(value, now) != now)
}
