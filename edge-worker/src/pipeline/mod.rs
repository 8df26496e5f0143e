//! The path of one notification through this worker, in order. Each stage takes what the stage before made and gives
//! its own type, so that the order is compiled; a dropped message is given back to the server.

mod attempt;
mod brake;
mod broadcast;
mod conclude;
mod consent;
mod dedupe;
mod deliver;
mod forward;
mod in_flight;
mod intend;
mod interrupted;
mod letter;
mod open;
mod pace;
mod pull;
mod resolve;
mod settle;
mod settlement;
mod trace;

use std::{collections::BTreeMap, sync::Arc};

use async_nats::jetstream;
use shared::{
    channel::Class,
    clock::Clock,
    id::Region,
    job::Job,
    lifecycle::Lifecycle,
    nats::{cancelled::Cancelled, config::Config, subject::Lane},
    telemetry::Telemetry,
};

use tokio::sync::{Semaphore, watch};

pub use self::{
    brake::Brake,
    in_flight::InFlight,
    pace::Pace,
    pull::{LanePuller, lane_pullers, member_permits},
    settle::Announcer,
    settlement::Ticket,
};
use self::{
    open::{Opened, Read},
    settlement::{Settlement, Step, Stop},
};
use crate::{
    cache,
    freshness::Freshness,
    ledger::{Committer, Ledger},
    providers::Providers,
    pulled::Pulled,
};

/// Everything a job meets on its way.
#[derive(Debug)]
pub struct Pipeline {
    /// The region whose work it is.
    pub region: Region,
    /// This worker's own region, if it helps another.
    pub by: Option<Region>,
    /// Whether workers of other regions stand by to help this one.
    pub helped: watch::Receiver<bool>,
    /// Time.
    pub clock: Clock,
    /// The region's `JetStream`.
    pub js: jetstream::Context,
    /// What became of jobs.
    pub ledger: Ledger,
    /// Whether the ledger knows all that the other workers have published.
    pub ledger_current: watch::Receiver<bool>,
    /// What is known of recipients.
    pub cache: cache::Store,
    /// How old that is.
    pub freshness: Freshness,
    /// Apps, and what they want.
    pub config: Config,
    /// Who carries pushes.
    pub providers: Arc<Providers>,
    /// Where outcomes are made safe.
    pub committer: Committer<Ticket>,
    /// Jobs under way in this process.
    pub in_flight: InFlight,
    /// Spans and metrics.
    pub telemetry: Telemetry,
    /// Attempts at a delivery before it is a dead letter.
    pub max_attempts: u32,
    /// Keeps a faulty provider from removing every address.
    pub brake: Brake,
    /// What was withdrawn.
    pub cancelled: Cancelled,
    /// Members of slices that may be under way, by class.
    pub members: BTreeMap<Class, Arc<Semaphore>>,
    /// Whether the process is to take nothing new.
    pub lifecycle: Lifecycle,
}

impl Pipeline {
    /// Takes one pulled message all the way.
    pub async fn run(self: Arc<Self>, pulled: Pulled) {
        let ended = match self.open(pulled).await {
            Ok(Read::Job(opened)) => self.path(opened).await,
            Ok(Read::Broadcast(pulled, broadcast)) => Box::pin(self.broadcast(pulled, *broadcast)).await,
            Err(stop) => Err(stop),
        };
        self.end_path(ended).await;
    }

    /// Takes one member of a slice all the way.
    async fn run_member(self: Arc<Self>, opened: Opened) {
        let ended = self.path(opened).await;
        self.end_path(ended).await;
    }

    async fn end_path(&self, ended: Step<Settlement>) {
        match ended {
            Ok(settlement) => self.settle(settlement).await,
            Err(Stop::Settle(settlement)) => self.settle(*settlement).await,
            Err(Stop::GiveBack(pulled, wait)) => pulled.give_back(wait),
        }
    }

    async fn path(&self, opened: Opened) -> Step<Settlement> {
        let fresh = self.dedupe(opened)?;
        let clear = self.end_interrupted(fresh).await?;
        let addressed = self.resolve(clear).await?;
        let agreed = self.consent(addressed)?;
        let intended = self.write_intent(agreed).await?;
        let tried = self.deliver(intended).await;
        self.conclude(tried).await
    }

    /// The lane in which this region works on `job`.
    fn lane(&self, job: &Job) -> Lane {
        Lane {
            channel: job.channel(),
            region: self.region.clone(),
            class: job.class,
            app: job.app.clone(),
        }
    }
}
