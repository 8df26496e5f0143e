//! Follows how much of what this gateway stored still waits in the lanes.
//!
//! In this region a job waits until a worker has pulled it: the lane's consumer tells its position. A job for another region
//! waits until that region has copied it: the region's stream tells how many messages it has not copied yet.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::consumer::PullConsumer;
use shared::{
    channel::{Channel, Class},
    id::Region,
    nats::{
        refusal::{is_about, unless_refused},
        subject::Tier,
        topology::{self, lane_consumer},
    },
};
use tokio::time::sleep;

use super::budget::Budgets;
use crate::context::Context;

/// How often positions are asked for while anything waits.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// How often other regions are asked for their version.
const ASK_VERSION_EVERY: Duration = Duration::from_secs(10);

/// How soon it is looked again whether lanes have an overflow, before the configuration is known.
const RETRY_READ_CONFIG_AFTER: Duration = Duration::from_millis(100);

/// Jobs that are counted together: they stop waiting when the last of them does.
const CHUNK_JOBS: u64 = 256;

/// The jobs of one app that wait in one lane.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Jobs that are being stored.
    begun: u64,
    /// Jobs that are stored, in the order of their sequences.
    main: Tally,
    overflow: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    chunks: VecDeque<Chunk>,
    jobs: u64,
}

#[derive(Debug)]
struct Chunk {
    /// The last sequence; `None` for jobs that went to another region.
    sequence: Option<u64>,
    jobs: u64,
    bytes: u64,
}

impl Waiting {
    pub(super) fn jobs(&self) -> u64 {
        self.begun + self.main.jobs + self.overflow.jobs
    }

    pub(super) fn has_stored(&self) -> bool {
        self.main.jobs + self.overflow.jobs > 0
    }

    /// These jobs are being stored.
    pub(super) fn begin(&mut self, jobs: u64) {
        self.begun += jobs;
    }

    /// These jobs will not be stored.
    pub(super) fn give_up(&mut self, jobs: u64) {
        self.begun -= jobs;
    }

    /// Jobs that were being stored are stored, the last of them at `sequence`.
    pub(super) fn store(&mut self, tier: Tier, jobs: u64, bytes: u64, sequence: Option<u64>) {
        self.begun -= jobs;
        let tally = self.tally(tier);
        tally.jobs += jobs;
        match tally.chunks.back_mut().filter(|last| last.jobs < CHUNK_JOBS) {
            Some(last) => {
                last.jobs += jobs;
                last.bytes += bytes;
                last.sequence = last.sequence.max(sequence);
            }
            None => tally.chunks.push_back(Chunk { sequence, jobs, bytes }),
        }
    }

    /// Workers have pulled everything up to `sequence`. Returns the bytes that stopped waiting.
    pub(super) fn pulled(&mut self, tier: Tier, sequence: u64) -> u64 {
        self.tally(tier)
            .release(|first, _| first.sequence.is_some_and(|last| last <= sequence))
    }

    /// At most `jobs` of this lane have not been copied yet. Returns the bytes that stopped waiting.
    pub(super) fn copied_but(&mut self, jobs: u64) -> u64 {
        let left_over = |first: &Chunk, all: u64| all - first.jobs >= jobs;
        self.main.release(left_over) + self.overflow.release(left_over)
    }

    fn tally(&mut self, tier: Tier) -> &mut Tally {
        match tier {
            Tier::Main => &mut self.main,
            Tier::Overflow => &mut self.overflow,
        }
    }
}

impl Tally {
    fn release(&mut self, is_done: impl Fn(&Chunk, u64) -> bool) -> u64 {
        let mut bytes = 0;
        while let Some(first) = self.chunks.front().filter(|first| is_done(first, self.jobs)) {
            bytes += first.bytes;
            self.jobs -= first.jobs;
            self.chunks.pop_front();
        }
        bytes
    }
}

/// Follows the lanes in which something waits, and which regions have an overflow, until the process ends.
pub(crate) async fn follow(context: Arc<Context>, budgets: Arc<Budgets>) {
    tokio::join!(follow_lanes(&context, &budgets), follow_versions(&context, &budgets));
}

/// Asks the other regions for the version of their topology.
async fn follow_versions(context: &Context, budgets: &Budgets) {
    let client = context.js.client();
    loop {
        let is_upgraded = context.config.tenants().is_upgraded();
        budgets.set_overflow(context.here.clone(), is_upgraded);
        for region in context.regions().into_iter().filter(|region| *region != context.here) {
            let asking = topology::version_at(&client, &region);
            let asked = unless_refused(&client, |subject| is_about(subject, region.as_str()), asking);
            if let Ok(Some(version)) = asked.await {
                budgets.set_overflow(region, is_upgraded && version >= topology::OVERFLOW_SINCE);
            }
        }
        let is_known = context.config.is_loaded();
        sleep(if is_known {
            ASK_VERSION_EVERY
        } else {
            RETRY_READ_CONFIG_AFTER
        })
        .await;
    }
}

async fn follow_lanes(context: &Context, budgets: &Budgets) {
    loop {
        sleep(ASK_EVERY).await;
        let waiting = budgets.waiting();
        let (here, elsewhere): (Vec<_>, Vec<_>) = waiting.iter().partition(|(key, _, _)| key.region == context.here);
        let lanes: HashSet<_> = here.iter().map(|(key, _, _)| (key.channel, key.class)).collect();
        let mut pulled = HashMap::new();
        for (channel, class) in lanes {
            for tier in Tier::ALL {
                if let Some(sequence) = pulled_up_to(context, channel, class, tier).await {
                    pulled.insert((channel, class, tier), sequence);
                }
            }
        }
        for (key, lane, budget) in here {
            for tier in Tier::ALL {
                if let Some(sequence) = pulled.get(&(key.channel, key.class, tier)) {
                    let released = lane.waiting().pulled(tier, *sequence);
                    budget.release(released);
                }
            }
        }
        let regions: HashSet<_> = elsewhere.iter().map(|(key, _, _)| &key.region).collect();
        let mut not_copied = HashMap::new();
        for region in regions {
            if let Some(jobs) = not_copied_by(context, region).await {
                not_copied.insert(region, jobs);
            }
        }
        for (key, lane, budget) in &elsewhere {
            if let Some(jobs) = not_copied.get(&key.region) {
                let released = lane.waiting().copied_but(*jobs);
                budget.release(released);
            }
        }
    }
}

/// The last sequence that workers of this region have pulled from a lane; `None` if the server does not tell.
async fn pulled_up_to(context: &Context, channel: Channel, class: Class, tier: Tier) -> Option<u64> {
    let name = tier.consumer(lane_consumer(channel, class));
    let consumer: PullConsumer = context.js.get_consumer_from_stream(name, topology::NOTIFY).await.ok()?;
    Some(consumer.cached_info().delivered.stream_sequence)
}

/// How many messages for `region` it has not copied from this one yet; `None` if it does not tell.
async fn not_copied_by(context: &Context, region: &Region) -> Option<u64> {
    let client = context.js.client();
    let asking = topology::sources(&client, region, topology::NOTIFY);
    let sources = unless_refused(&client, |subject| is_about(subject, topology::NOTIFY), asking)
        .await
        .ok()?
        .ok()?;
    let from_here = |source: &&topology::Sourced| source.from == context.here.as_str() && source.is_awake();
    sources.iter().find(from_here).map(|source| source.lag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_region_copied_does_not_wait() {
        let mut waiting = Waiting::default();
        for _ in 0..10 {
            waiting.begin(1000);
            waiting.store(Tier::Overflow, 1000, 10, None);
        }
        assert_eq!((waiting.copied_but(2500), waiting.jobs()), (70, 3000));
        assert_eq!((waiting.copied_but(0), waiting.jobs()), (30, 0));
    }

    #[test]
    fn jobs_wait_until_the_last_of_their_chunk_is_pulled() {
        let mut waiting = Waiting::default();
        waiting.begin(300);
        waiting.store(Tier::Main, 200, 2, Some(10));
        waiting.store(Tier::Main, 100, 1, Some(20));
        assert_eq!((waiting.pulled(Tier::Main, 19), waiting.jobs()), (0, 300));
        assert_eq!((waiting.pulled(Tier::Main, 20), waiting.jobs()), (3, 0));
    }
}
