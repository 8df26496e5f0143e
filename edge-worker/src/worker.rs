//! Puts the parts together and starts them in the order in which they need each other.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_nats::jetstream;
use shared::{
    app::{App, seal_name},
    channel::Provider,
    clock::Clock,
    lifecycle::Lifecycle,
    nats::{
        config::Config,
        connect::{self, ConnectError},
        roles::Role,
        topology::{self, ApplyError},
    },
    seal::{MeshKey, SealError},
    telemetry::Telemetry,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    admin::Admin,
    cache,
    config::Settings,
    delivery::Returns,
    janitor::Janitor,
    ledger::{self, Committer, Ledger},
    pipeline::{Announcer, Brake, InFlight, Pipeline, lanes},
    providers::{ApnsAccount, BadCredential, BadTrust, FcmAccount, Providers},
};

/// A running edge worker.
#[derive(Debug)]
pub struct EdgeWorker {
    admin: SocketAddr,
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The mesh key is missing or malformed.
    #[error("mesh_key: {0}")]
    MeshKey(#[from] SealError),
    /// A certificate or an endpoint of a provider cannot be used.
    #[error("providers: {0}")]
    Trust(#[from] BadTrust),
    /// The folder for the cache and the ledger, or the address to listen on, cannot be used.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// NATS cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The streams cannot be looked at.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] cache::StoreError),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] ledger::StoreError),
}

impl EdgeWorker {
    /// Starts a worker. It pulls once its cache and its ledger have caught up, and ends with `lifecycle`.
    ///
    /// # Errors
    /// When something that it cannot work without is missing; see [`StartError`].
    pub async fn start(
        settings: Settings,
        telemetry: Telemetry,
        clock: Clock,
        lifecycle: &Lifecycle,
    ) -> Result<Self, StartError> {
        let mesh_key = MeshKey::from_base64(settings.mesh_key.reveal())?;
        let region = settings.mesh.region.clone();
        std::fs::create_dir_all(&settings.data).map_err(|error| StartError::Io("data", error))?;
        let role = Role::Worker(region.clone());
        let client = connect::connect(&settings.nats, &role, &format!("peal-edge-worker {}", settings.name)).await?;
        let js = connect::jetstream(client.clone());
        topology::wait_for_region(&js, &settings.mesh).await?;

        let store = cache::Store::open(&settings.data.join("cache.redb"))?;
        let cache_sync = cache::Sync::new(js.clone(), store.clone(), telemetry.metrics.clone());
        let cache_caught_up = cache_sync.caught_up();
        lifecycle.spawn_endless("cache", cache_sync.run());

        let ledger_file = settings.data.join("ledger.redb");
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

        let config = Config::default();
        lifecycle.spawn_endless("config", config.clone().follow(js.clone()));
        let janitor = Janitor {
            js: js.clone(),
            mesh: settings.mesh.clone(),
            clock: clock.clone(),
            ledger: ledger.clone(),
            keep: Duration::from_secs(settings.keep_s),
            remember: Duration::from_secs(settings.remember_s),
        };
        lifecycle.spawn_endless("janitor", janitor.run());

        let listener = TcpListener::bind(settings.admin_listen)
            .await
            .map_err(|error| StartError::Io("admin_listen", error))?;
        let admin = listener
            .local_addr()
            .map_err(|error| StartError::Io("admin_listen", error))?;
        let page = Admin {
            client,
            cache: cache_caught_up.clone(),
            ledger: ledger_caught_up.clone(),
            telemetry: telemetry.clone(),
        };
        lifecycle.spawn("admin", page.serve(listener, lifecycle.clone()));

        let pipeline = Arc::new(Pipeline {
            region,
            clock: clock.clone(),
            js: js.clone(),
            ledger: ledger.clone(),
            ledger_current: ledger_caught_up.clone(),
            cache: store,
            config: config.clone(),
            providers: Providers::new(&settings.providers, clock)?,
            committer,
            in_flight: InFlight::default(),
            telemetry,
            max_attempts: settings.max_attempts,
            brake: Brake::new(settings.removals_per_minute),
        });
        let (known, configured) = watch::channel(false);
        lifecycle.spawn_endless("breakers", show_breakers(pipeline.clone()));
        let follow = keep_configured(pipeline.clone(), config, mesh_key, known);
        lifecycle.spawn_endless("credentials", follow);
        let start = pull_when_ready(
            js,
            pipeline,
            ledger,
            vec![cache_caught_up, ledger_caught_up, configured],
            settings.in_flight,
            lifecycle.clone(),
        );
        lifecycle.spawn("pull", start);
        Ok(Self { admin })
    }

    /// Where health, readiness and metrics are served.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }
}

/// Pulls from every lane once everything it needs is there.
async fn pull_when_ready(
    js: jetstream::Context,
    pipeline: Arc<Pipeline>,
    ledger: Ledger,
    needed: Vec<watch::Receiver<bool>>,
    in_flight: usize,
    lifecycle: Lifecycle,
) {
    for mut needed in needed {
        tokio::select! {
            ready = needed.wait_for(|ready| *ready) => if ready.is_err() { return },
            () = lifecycle.finishing() => return,
        }
    }
    if let Err(error) = ledger::publish_left_over(&js, &ledger).await {
        tracing::error!(%error, "receipts of a former run cannot be read");
        return;
    }
    tracing::info!(jobs_remembered = ledger.jobs(), "pulling");
    let returns = Returns::start();
    let lanes = lanes(in_flight)
        .into_iter()
        .map(|lane| lane.run(pipeline.clone(), returns.clone(), lifecycle.clone()));
    futures::future::join_all(lanes).await;
}

/// Keeps the metrics of breakers current.
async fn show_breakers(pipeline: Arc<Pipeline>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        for breaker in pipeline.providers.breaker_states() {
            let metrics = &pipeline.telemetry.metrics;
            metrics.breaker(
                breaker.provider,
                &breaker.name,
                breaker.watched.as_str(),
                breaker.is_open,
            );
        }
    }
}

/// Gives the providers the credentials of every app, at start and at every change.
async fn keep_configured(pipeline: Arc<Pipeline>, config: Config, mesh_key: MeshKey, known: watch::Sender<bool>) {
    let mut changes = config.changes();
    let mut former: Vec<Arc<App>> = Vec::new();
    loop {
        let tenants = config.tenants();
        for app in tenants
            .apps
            .values()
            .filter(|app| !former.iter().any(|known| Arc::ptr_eq(known, app)))
        {
            match configure(&pipeline.providers, app, &mesh_key) {
                Ok(()) => tracing::info!(app = %app.id, "credentials in use"),
                Err(error) => {
                    tracing::error!(app = %app.id, %error, "credentials cannot be used; the former ones stay")
                }
            }
        }
        for gone in former.iter().filter(|app| !tenants.apps.contains_key(&app.id)) {
            pipeline.providers.forget(&gone.id);
        }
        former = tenants.apps.values().cloned().collect();
        if !former.is_empty() {
            known.send_replace(true);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}: {1}")]
    Sealed(&'static str, SealError),
    #[error(transparent)]
    Bad(#[from] BadCredential),
}

fn configure(providers: &Providers, app: &App, mesh_key: &MeshKey) -> Result<(), Unusable> {
    let apns = app.apns.as_ref().map(|credential| {
        let private_key = mesh_key
            .open(&seal_name(&app.id, Provider::Apns), &credential.private_key)
            .map_err(|error| Unusable::Sealed("apns.private_key", error))?;
        Ok::<_, Unusable>(ApnsAccount {
            team_id: credential.team_id.clone(),
            key_id: credential.key_id.clone(),
            topic: credential.topic.clone(),
            private_key,
        })
    });
    let fcm = app.fcm.as_ref().map(|credential| {
        let service_account = mesh_key
            .open(&seal_name(&app.id, Provider::Fcm), &credential.service_account)
            .map_err(|error| Unusable::Sealed("fcm.service_account", error))?;
        Ok::<_, Unusable>(FcmAccount {
            project_id: credential.project_id.clone(),
            service_account,
        })
    });
    providers.configure(&app.id, apns.transpose()?, fcm.transpose()?)?;
    Ok(())
}
