//! What every stage of the pipeline uses.

use std::{collections::HashMap, sync::Arc};

use async_nats::jetstream;
use shared::{
    broadcast::Broadcast,
    channel::{Channel, Class},
    clock::Clock,
    id::Region,
    job::Job,
    lifecycle::Lifecycle,
    nats::{
        ask::Regions,
        border::Border,
        cancelled::Cancelled,
        config::Config,
        subject::{Lane, Tier},
    },
    public_url::PublicUrl,
    telemetry::Telemetry,
};
use tokio::sync::{Semaphore, watch};

use super::{barrier::Barrier, brake::Brake, count::Sums, in_flight::InFlight, settlement::Ticket, shares::Shares};
use crate::{
    cache,
    freshness::Freshness,
    ledger::{Committer, Ledger},
    providers::Providers,
};

/// The path of jobs through this worker, for one region. Each stage is a method in a file of its own.
#[derive(Debug)]
pub struct Pipeline {
    /// The region whose jobs these are.
    pub region: Region,
    /// This worker's own region, if it helps another.
    pub by: Option<Region>,
    /// Whether a helper is present, a worker of another region that takes the spill.
    pub helped: watch::Receiver<bool>,
    /// The time for expiry, retries and receipts.
    pub clock: Clock,
    /// The region's `JetStream`.
    pub js: jetstream::Context,
    /// The outcomes of all jobs.
    pub ledger: Ledger,
    /// Whether the ledger has caught up with the receipts of the other workers.
    pub ledger_current: watch::Receiver<bool>,
    /// Has the region's gateways write facts. A helper does not.
    pub regions: Option<Regions>,
    /// The region's facts about recipients.
    pub cache: cache::Store,
    /// Whether the cache has caught up with the region's bucket. If not, it is being filled.
    pub cache_filled: watch::Receiver<bool>,
    /// Pulled work that must not start before the facts are known to be current.
    pub barrier: Barrier,
    /// The age of consent.
    pub freshness: Freshness,
    /// The apps and their settings.
    pub config: Config,
    /// Checks what comes from other regions, and signs what they copy.
    pub border: Border,
    /// They make the attempts.
    pub providers: Arc<Providers>,
    /// It makes outcomes durable.
    pub committer: Committer<Ticket>,
    /// Jobs in flight in this process.
    pub in_flight: InFlight,
    /// Spans and metrics.
    pub telemetry: Telemetry,
    /// Where the gateways are known outside of the mesh.
    pub public_url: Option<PublicUrl>,
    /// The number of attempts at a delivery before it becomes a dead letter.
    pub max_attempts: u32,
    /// Keeps a faulty provider from removing every address.
    pub brake: Brake,
    /// The mailboxes and numbers that apps must not send to.
    pub suppressions: cache::Suppressions,
    /// The caps and limits that are used up, as far as this worker knows.
    pub sums: Sums,
    /// Withdrawn notifications.
    pub cancelled: Cancelled,
    /// Permits for the members of slices, by channel, class and tier.
    pub members: HashMap<(Channel, Class, Tier), Arc<Semaphore>>,
    /// How much work each app stores here for later.
    pub shares: Shares,
    /// Tells when shutdown begins, and waits for the jobs in flight.
    pub lifecycle: Lifecycle,
}

impl Pipeline {
    /// The lane in which this region works on `job`.
    pub(super) fn lane(&self, job: &Job) -> Lane {
        Lane {
            channel: job.channel(),
            region: self.region.clone(),
            class: job.class,
            app: job.app.clone(),
        }
    }

    /// The lane in which this region works on the jobs of `broadcast`.
    pub(super) fn lane_of_broadcast(&self, broadcast: &Broadcast) -> Lane {
        Lane {
            channel: broadcast.channel(),
            region: self.region.clone(),
            class: broadcast.class,
            app: broadcast.app.clone(),
        }
    }
}
