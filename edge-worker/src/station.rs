//! A station: all that this process needs to serve one region, be it the worker's own or one that it helps.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, jetstream};
use shared::{
    clock::Clock,
    id::Region,
    lifecycle::Lifecycle,
    nats::{ask::Regions, border::Border, cancelled::Cancelled, config::Config, connect},
    seal::MeshKey,
    telemetry::Telemetry,
};
use tokio::sync::{mpsc, watch};

use crate::{
    cache,
    config::Settings,
    freshness::Freshness,
    janitor::Janitor,
    ledger::{self, Committer, Ledger},
    pipeline::{
        Announcer, Barrier, Brake, InFlight, Pace, Pipeline, Shares, Sums, Ticket, lane_pullers, member_permits,
    },
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
    /// The mesh key, from which the stations derive the keys of their caches and proofs.
    pub(crate) mesh_key: MeshKey,
}

/// A station before it is started.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) client: Client,
    /// The region that is served.
    pub(crate) region: Region,
    /// This worker's own region, if it helps another.
    pub(crate) by: Option<Region>,
    pub(crate) rank: Rank,
    /// The folder of the cache and the ledger.
    pub(crate) data: PathBuf,
    pub(crate) shared: Shared,
}

/// How far a station has caught up with its region.
#[derive(Debug, Clone)]
pub(crate) struct CaughtUp {
    /// Whether the cache has caught up.
    pub(crate) cache: watch::Receiver<bool>,
    /// Whether the ledger has caught up.
    pub(crate) ledger: watch::Receiver<bool>,
    /// Whether the trimming of finished work advances.
    pub(crate) trims: watch::Receiver<bool>,
}

/// A ledger whose tasks run.
struct StartedLedger {
    ledger: Ledger,
    committer: Committer<Ticket>,
    caught_up: watch::Receiver<bool>,
}

impl Station {
    /// Starts the station's tasks, which end with `lifecycle`. It pulls once cache and ledger have caught up.
    ///
    /// # Errors
    /// When the folder, the cache or the ledger cannot be used.
    pub(crate) fn start(self, settings: &Settings, lifecycle: &Lifecycle) -> Result<CaughtUp, StartError> {
        std::fs::create_dir_all(&self.data).map_err(|error| StartError::Io("data", error))?;
        let js = connect::jetstream(self.client.clone());
        let border = Border::new(self.shared.config.clone());
        let regions = self.by.is_none().then(|| {
            let (here, config) = (self.region.clone(), self.shared.config.clone());
            Regions::new(js.clone(), here, config, &self.shared.mesh_key)
        });
        let (cache, cache_caught_up) = self.start_cache(&js, &border, regions.clone(), lifecycle)?;
        let StartedLedger {
            ledger,
            committer,
            caught_up: ledger_caught_up,
        } = self.start_ledger(&js, &border, settings, lifecycle)?;
        let trims = self.start_janitor(&js, &ledger, settings, lifecycle);
        let cancelled = Cancelled::default();
        lifecycle.spawn_endless("cancelled", cancelled.clone().follow(js.clone(), border.clone()));
        let suppressions = cache::Suppressions::open(&self.data.join("suppressions.redb"))?;
        let following = suppressions.clone().follow_forever(js.clone(), border.clone());
        lifecycle.spawn_endless("suppressions", following);
        let freshness = Freshness::new(settings.stale_after_s);
        let aging = freshness.clone().keep_current(self.client.clone(), self.region.clone());
        lifecycle.spawn_endless("freshness", aging);
        let (presence, heartbeats) = Presence::new(self.client, self.region.clone(), self.rank);
        let (ready, is_ready) = watch::channel(false);
        lifecycle.spawn_endless("presence", heartbeats.run(is_ready, lifecycle.clone()));

        let caught_up = CaughtUp {
            cache: cache_caught_up,
            ledger: ledger_caught_up,
            trims,
        };
        let needed = vec![
            caught_up.cache.clone(),
            caught_up.ledger.clone(),
            self.shared.configured,
            cancelled.loaded(),
            suppressions.caught_up(),
        ];
        let pipeline = Pipeline {
            region: self.region,
            by: self.by,
            helped: presence.helped.clone(),
            clock: self.shared.clock,
            js: js.clone(),
            ledger: ledger.clone(),
            ledger_current: caught_up.ledger.clone(),
            regions,
            cache,
            cache_filled: caught_up.cache.clone(),
            barrier: Barrier::default(),
            freshness,
            config: self.shared.config,
            border,
            providers: self.shared.providers,
            committer,
            in_flight: InFlight::default(),
            telemetry: self.shared.telemetry,
            public_url: settings.public_url.clone(),
            max_attempts: settings.max_attempts,
            brake: Brake::new(settings.removals_per_minute),
            suppressions,
            sums: Sums::default(),
            cancelled,
            members: member_permits(settings.in_flight),
            shares: Shares::default(),
            lifecycle: lifecycle.clone(),
        };
        let lanes = Lanes {
            js,
            pipeline: Arc::new(pipeline),
            ledger,
            presence,
            ready,
            in_flight: settings.in_flight,
        };
        lifecycle.spawn("pull", lanes.run(needed));
        Ok(caught_up)
    }

    /// Opens the cache and starts to fill it.
    fn start_cache(
        &self,
        js: &jetstream::Context,
        border: &Border,
        regions: Option<Regions>,
        lifecycle: &Lifecycle,
    ) -> Result<(cache::Store, watch::Receiver<bool>), StartError> {
        let vault = self.shared.mesh_key.vault("cache");
        let store = cache::Store::open(&self.data.join("cache.redb"), vault)?;
        let metrics = self.shared.telemetry.metrics.clone();
        let follower = cache::FactFollower::new(js.clone(), store.clone(), border.clone(), metrics, regions);
        let caught_up = follower.caught_up();
        lifecycle.spawn_endless("cache", follower.run());
        Ok((store, caught_up))
    }

    /// Opens the ledger, and starts to write it, to follow the receipts of other workers and to publish those of this one.
    fn start_ledger(
        &self,
        js: &jetstream::Context,
        border: &Border,
        settings: &Settings,
        lifecycle: &Lifecycle,
    ) -> Result<StartedLedger, StartError> {
        let path = self.data.join("ledger.redb");
        let (store, _aside) = ledger::Store::open(&path, &settings.name, rand::random())?;
        let ledger = Ledger::new(Arc::new(store))?;
        let (out, durable) = mpsc::channel(64);
        let (committer, writer) = Committer::new(&ledger, self.region.clone(), self.shared.clock.clone(), out)?;
        lifecycle.spawn("ledger", writer);
        let follower = ledger::ReceiptFollower::new(
            js.clone(),
            ledger.clone(),
            committer.clone(),
            self.region.clone(),
            border.clone(),
        );
        let caught_up = follower.caught_up();
        lifecycle.spawn_endless("receipts", follower.run());
        let announcer = Announcer {
            js: js.clone(),
            ledger: ledger.clone(),
            border: border.clone(),
            telemetry: self.shared.telemetry.clone(),
            clock: self.shared.clock.clone(),
        };
        lifecycle.spawn("announcer", announcer.run(durable));
        Ok(StartedLedger {
            ledger,
            committer,
            caught_up,
        })
    }

    /// Starts to trim finished work. The receiver tells whether that advances.
    fn start_janitor(
        &self,
        js: &jetstream::Context,
        ledger: &Ledger,
        settings: &Settings,
        lifecycle: &Lifecycle,
    ) -> watch::Receiver<bool> {
        let (trims, advances) = watch::channel(true);
        let janitor = Janitor {
            js: js.clone(),
            region: self.region.clone(),
            clock: self.shared.clock.clone(),
            ledger: ledger.clone(),
            keep: Duration::from_secs(settings.keep_s),
            remember: Duration::from_secs(settings.remember_s),
            metrics: self.shared.telemetry.metrics.clone(),
            trims,
        };
        lifecycle.spawn_endless("janitor", janitor.run());
        advances
    }
}

/// The pause before a failed read of the ledger is retried.
const RETRY_LEDGER_READ_AFTER: Duration = Duration::from_secs(1);

/// The lanes of a station, before they are pulled from.
struct Lanes {
    js: jetstream::Context,
    pipeline: Arc<Pipeline>,
    ledger: Ledger,
    presence: Presence,
    /// Set once the lanes are pulled from.
    ready: watch::Sender<bool>,
    in_flight: usize,
}

impl Lanes {
    /// Pulls from every lane once each of `needed` is true.
    async fn run(self, needed: Vec<watch::Receiver<bool>>) {
        let lifecycle = &self.pipeline.lifecycle;
        for mut needed in needed {
            tokio::select! {
                ready = needed.wait_for(|ready| *ready) => if ready.is_err() { return },
                () = lifecycle.finishing() => return,
            }
        }
        while let Err(error) = ledger::publish_unsent(&self.js, &self.ledger, &self.pipeline.border).await {
            tracing::error!(%error, "unpublished receipts of a previous run cannot be read; retrying");
            tokio::select! {
                () = tokio::time::sleep(RETRY_LEDGER_READ_AFTER) => (),
                () = lifecycle.finishing() => return,
            }
        }
        tracing::info!(region = %self.pipeline.region, jobs_remembered = self.ledger.jobs(), "ready to pull");
        self.ready.send_replace(true);
        let returns = ReturnQueue::start();
        let (pace, adjusting) = Pace::new();
        lifecycle.spawn_endless("pace", adjusting);
        let pullers = lane_pullers(self.in_flight, &self.presence, &pace)
            .into_iter()
            .map(|puller| puller.run(self.pipeline.clone(), returns.clone()));
        let pulling = async {
            futures::future::join_all(pullers).await;
            self.pipeline.barrier.close();
        };
        tokio::join!(pulling, self.pipeline.clone().pass_barrier());
    }
}
