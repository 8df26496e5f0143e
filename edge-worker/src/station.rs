//! Everything that one region's work needs in this process: that of the worker's own region, or of one that it helps.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, jetstream};
use shared::{
    clock::Clock,
    id::Region,
    lifecycle::Lifecycle,
    nats::{cancelled::Cancelled, config::Config, connect},
    telemetry::Telemetry,
};
use tokio::sync::{mpsc, watch};

use crate::{
    cache,
    config::Settings,
    freshness::Freshness,
    janitor::Janitor,
    ledger::{self, Committer, Ledger},
    pipeline::{Announcer, Brake, InFlight, Pace, Pipeline, lane_pullers, member_permits},
    presence::{Presence, Rank},
    providers::Providers,
    pulled::ReturnQueue,
    start_error::StartError,
};

/// What the stations of a process share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) providers: Arc<Providers>,
    /// Whether the providers have credentials.
    pub(crate) configured: watch::Receiver<bool>,
    pub(crate) telemetry: Telemetry,
    pub(crate) clock: Clock,
}

/// Where a station is.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) client: Client,
    pub(crate) region: Region,
    /// This worker's own region, if it helps another.
    pub(crate) by: Option<Region>,
    pub(crate) rank: Rank,
    /// Folder of the cache and the ledger.
    pub(crate) data: PathBuf,
    pub(crate) shared: Shared,
}

/// What a station says of itself.
#[derive(Debug, Clone)]
pub(crate) struct CaughtUp {
    /// Whether the cache has caught up.
    pub(crate) cache: watch::Receiver<bool>,
    /// Whether the ledger has caught up.
    pub(crate) ledger: watch::Receiver<bool>,
}

impl Station {
    /// Starts work. It pulls once cache and ledger have caught up, and ends with `lifecycle`.
    ///
    /// # Errors
    /// When the folder, the cache or the ledger cannot be used.
    pub(crate) fn start(self, settings: &Settings, lifecycle: &Lifecycle) -> Result<CaughtUp, StartError> {
        let region = self.region;
        let Shared {
            config,
            providers,
            configured,
            telemetry,
            clock,
        } = self.shared;
        std::fs::create_dir_all(&self.data).map_err(|error| StartError::Io("data", error))?;
        let js = connect::jetstream(self.client.clone());

        let store = cache::Store::open(&self.data.join("cache.redb"))?;
        let cache_sync = cache::Sync::new(js.clone(), store.clone(), telemetry.metrics.clone());
        let cache_caught_up = cache_sync.caught_up();
        lifecycle.spawn_endless("cache", cache_sync.run());

        let ledger_file = self.data.join("ledger.redb");
        let (ledger_store, _aside) = ledger::Store::open(&ledger_file, &settings.name, rand::random())?;
        let ledger = Ledger::new(Arc::new(ledger_store))?;
        let (out, safe) = mpsc::channel(64);
        let (committer, writer) = Committer::new(&ledger, region.clone(), clock.clone(), out)?;
        lifecycle.spawn("ledger", writer);
        let ledger_sync = ledger::Sync::new(js.clone(), ledger.clone(), committer.clone(), region.clone());
        let ledger_caught_up = ledger_sync.caught_up();
        lifecycle.spawn_endless("receipts", ledger_sync.run());

        let announcer = Announcer {
            js: js.clone(),
            ledger: ledger.clone(),
            telemetry: telemetry.clone(),
            clock: clock.clone(),
        };
        lifecycle.spawn("announcer", announcer.run(safe));
        let janitor = Janitor {
            js: js.clone(),
            region: region.clone(),
            clock: clock.clone(),
            ledger: ledger.clone(),
            keep: Duration::from_secs(settings.keep_s),
            remember: Duration::from_secs(settings.remember_s),
        };
        lifecycle.spawn_endless("janitor", janitor.run());

        let cancelled = Cancelled::default();
        lifecycle.spawn_endless("cancelled", cancelled.clone().follow(js.clone()));
        let freshness = Freshness::new(settings.stale_after_s);
        lifecycle.spawn_endless("freshness", freshness.clone().keep(self.client.clone(), region.clone()));
        let (presence, watch) = Presence::new(self.client, region.clone(), self.rank);
        let pipeline = Arc::new(Pipeline {
            region: region.clone(),
            by: self.by,
            helped: presence.helped.clone(),
            clock: clock.clone(),
            js: js.clone(),
            ledger: ledger.clone(),
            ledger_current: ledger_caught_up.clone(),
            cache: store,
            freshness,
            config,
            providers,
            committer,
            in_flight: InFlight::default(),
            telemetry,
            max_attempts: settings.max_attempts,
            brake: Brake::new(settings.removals_per_minute),
            cancelled: cancelled.clone(),
            members: member_permits(settings.in_flight),
            lifecycle: lifecycle.clone(),
        });
        let (ready, is_ready) = watch::channel(false);
        lifecycle.spawn_endless("presence", watch.run(is_ready, lifecycle.clone()));
        let standing = CaughtUp {
            cache: cache_caught_up,
            ledger: ledger_caught_up,
        };
        let needed = vec![
            standing.cache.clone(),
            standing.ledger.clone(),
            configured,
            cancelled.loaded(),
        ];
        let pulling = Pulling {
            js,
            pipeline,
            ledger,
            presence,
            ready,
            in_flight: settings.in_flight,
        };
        lifecycle.spawn("pull", pulling.run(needed, lifecycle.clone()));
        Ok(standing)
    }
}

/// How long a ledger that cannot be read is left alone.
const RETRY_LEDGER_READ_AFTER: Duration = Duration::from_secs(1);

/// The lanes, before they run.
struct Pulling {
    js: jetstream::Context,
    pipeline: Arc<Pipeline>,
    ledger: Ledger,
    presence: Presence,
    ready: watch::Sender<bool>,
    in_flight: usize,
}

impl Pulling {
    /// Pulls from every lane once everything it needs is there.
    async fn run(self, needed: Vec<watch::Receiver<bool>>, lifecycle: Lifecycle) {
        for mut needed in needed {
            tokio::select! {
                ready = needed.wait_for(|ready| *ready) => if ready.is_err() { return },
                () = lifecycle.finishing() => return,
            }
        }
        while let Err(error) = ledger::publish_unsent(&self.js, &self.ledger).await {
            tracing::error!(%error, "receipts of a former run cannot be read");
            tokio::select! {
                () = tokio::time::sleep(RETRY_LEDGER_READ_AFTER) => (),
                () = lifecycle.finishing() => return,
            }
        }
        tracing::info!(region = %self.pipeline.region, jobs_remembered = self.ledger.jobs(), "ready to pull");
        self.ready.send_replace(true);
        let returns = ReturnQueue::start();
        let (pace, keeping) = Pace::new();
        lifecycle.spawn_endless("pace", keeping);
        let pullers = lane_pullers(self.in_flight, &self.presence, &pace)
            .into_iter()
            .map(|puller| puller.run(self.pipeline.clone(), returns.clone(), lifecycle.clone()));
        futures::future::join_all(pullers).await;
    }
}
