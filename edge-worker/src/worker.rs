//! Builds the parts of the process and starts them in the order of their dependencies.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use async_nats::jetstream;
use shared::{
    app::App,
    clock::Clock,
    id::Region,
    lifecycle::Lifecycle,
    nats::{
        certificate,
        config::Config,
        connect::{self, Nats},
        roles::Role,
        time::Timekeeper,
        topology,
    },
    seal::MeshKey,
    telemetry::{
        Telemetry,
        metric::{Endpoint, Metrics},
    },
};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admin::Admin,
    config::Settings,
    presence::Rank,
    providers::{BadCredential, EndpointState, Providers, Why},
    quota::Quotas,
    start_error::StartError,
    station::{Shared, Station},
};

/// A running edge worker.
#[derive(Debug)]
pub struct EdgeWorker {
    admin: SocketAddr,
}

impl EdgeWorker {
    /// Starts a worker. It pulls once its cache and its ledger have caught up, and ends with `lifecycle`.
    ///
    /// # Errors
    /// [`StartError`] if the process lacks something that it needs.
    pub async fn start(
        settings: Settings,
        telemetry: Telemetry,
        clock: Clock,
        lifecycle: &Lifecycle,
    ) -> Result<Self, StartError> {
        let mesh_key = MeshKey::from_base64(settings.mesh_key.reveal())?;
        let region = settings.mesh.region.clone();
        let client = connect::connect(&settings.nats, &Role::Worker(region.clone()), &client_name(&settings)).await?;
        let js = connect::jetstream(client.clone());
        topology::wait_for_region(&js, &region).await?;
        let (clock, keeper) = Timekeeper::new(client.clone(), region.clone(), clock);
        keeper.synchronize().await;
        lifecycle.spawn_endless("time", keeper.run());
        let config = Config::new(mesh_key.clone());
        lifecycle.spawn_endless("certificate", certificate::watch(&settings.nats, &clock, &telemetry));
        lifecycle.spawn_endless("config", config.clone().follow(js.clone()));
        let providers = Providers::new(&settings.providers, clock.clone())?;
        let providers = Arc::new(providers.with_allowances().with_bulkheads(settings.in_flight));
        let keys = start_credentials(&providers, &config, mesh_key.clone(), lifecycle);
        let shared = Shared {
            configured: keys.configured,
            config,
            providers: providers.clone(),
            telemetry: telemetry.clone(),
            clock,
            mesh_key,
        };
        start_provider_tasks(&js, &settings, &shared, lifecycle);
        let own = Station {
            client: client.clone(),
            region,
            by: None,
            rank: 0,
            data: settings.data.clone(),
            shared: shared.clone(),
        };
        let caught_up = own.start(&settings, lifecycle)?;
        let standby = Standby {
            settings: settings.clone(),
            shared,
            lifecycle: lifecycle.clone(),
        };
        lifecycle.spawn_endless("help", Arc::new(standby).run());

        let listener = TcpListener::bind(settings.admin_listen)
            .await
            .map_err(|error| StartError::Io("admin_listen", error))?;
        let admin = listener
            .local_addr()
            .map_err(|error| StartError::Io("admin_listen", error))?;
        let pages = Admin {
            client,
            providers,
            cache: caught_up.cache,
            ledger: caught_up.ledger,
            trims: caught_up.trims,
            mesh_key: keys.right,
            telemetry,
        };
        lifecycle.spawn("admin", pages.serve(listener, lifecycle.clone()));
        Ok(Self { admin })
    }

    /// The address on which health, readiness and metrics are served.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }
}

/// What is known about the credentials of apps.
struct Keys {
    /// Whether the mesh key is the one that they were sealed with.
    right: watch::Receiver<bool>,
    /// True once an app is known and the mesh key is right.
    configured: watch::Receiver<bool>,
}

/// Starts to give the providers the credentials of every app.
fn start_credentials(providers: &Arc<Providers>, config: &Config, mesh_key: MeshKey, lifecycle: &Lifecycle) -> Keys {
    let (is_right, right) = watch::channel(true);
    let (known, configured) = watch::channel(false);
    let current = keep_credentials_current(providers.clone(), config.clone(), mesh_key, is_right, known);
    lifecycle.spawn_endless("credentials", current);
    Keys { right, configured }
}

/// Starts what the providers need beside credentials: the watch over their endpoints, their metrics and their quotas.
fn start_provider_tasks(js: &jetstream::Context, settings: &Settings, shared: &Shared, lifecycle: &Lifecycle) {
    let (providers, metrics) = (&shared.providers, &shared.telemetry.metrics);
    lifecycle.spawn_endless("endpoints", providers.watch());
    lifecycle.spawn_endless("metrics", update_metrics(providers.clone(), metrics.clone()));
    let quotas = Quotas::new(
        js,
        settings.mesh.region.clone(),
        &settings.name,
        shared.config.clone(),
        providers.clone(),
        metrics.clone(),
    );
    lifecycle.spawn_endless("quotas", Arc::new(quotas).run());
}

fn client_name(settings: &Settings) -> String {
    format!("peal-edge-worker {}", settings.name)
}

/// Stands by to help every region that lists this worker's region among its helpers.
struct Standby {
    settings: Settings,
    shared: Shared,
    lifecycle: Lifecycle,
}

impl Standby {
    /// Starts a station for each such region as soon as the configuration lists it. A station whose region no longer lists
    /// this one runs until the process ends.
    async fn run(self: Arc<Self>) {
        let here = &self.settings.mesh.region;
        let mut changes = self.shared.config.changes();
        let mut started = BTreeSet::new();
        loop {
            for (region, site) in &self.shared.config.tenants().regions {
                let rank = site.helpers.iter().position(|helper| helper == here);
                let (Some(rank), Some(nats)) = (rank, &site.nats) else {
                    continue;
                };
                if region != here && started.insert(region.clone()) {
                    let nats = Nats {
                        url: nats.clone(),
                        ..self.settings.nats.clone()
                    };
                    let standing_by = self.clone().stand_by(region.clone(), rank + 1, nats);
                    self.lifecycle.spawn_endless("standing by", standing_by);
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn stand_by(self: Arc<Self>, region: Region, rank: Rank, nats: Nats) {
        while let Err(error) = self.start_station(&region, rank, &nats).await {
            tracing::warn!(%region, %error, "cannot stand by to help; retrying");
            tokio::time::sleep(RETRY_STANDBY_AFTER).await;
        }
        tracing::info!(%region, "standing by to help");
        std::future::pending().await
    }

    async fn start_station(&self, region: &Region, rank: Rank, nats: &Nats) -> Result<(), StartError> {
        let here = self.settings.mesh.region.clone();
        let role = Role::Helper(region.clone(), here.clone());
        let client = connect::connect(nats, &role, &client_name(&self.settings)).await?;
        topology::wait_for_region(&connect::jetstream(client.clone()), region).await?;
        let station = Station {
            client,
            region: region.clone(),
            by: Some(here),
            rank,
            data: self.settings.data.join(region.as_str()),
            shared: self.shared.clone(),
        };
        station.start(&self.settings, &self.lifecycle).map(drop)
    }
}

/// The pause before a failed start of a station is retried.
const RETRY_STANDBY_AFTER: Duration = Duration::from_secs(5);

/// How often the metrics of breakers, routes and endpoints are updated.
const UPDATE_METRICS_EVERY: Duration = Duration::from_secs(1);

/// Keeps the metrics of breakers, routes and endpoints current.
async fn update_metrics(providers: Arc<Providers>, metrics: Metrics) {
    let mut ticks = tokio::time::interval(UPDATE_METRICS_EVERY);
    loop {
        ticks.tick().await;
        for breaker in providers.breaker_states() {
            metrics.breaker(
                breaker.provider,
                &breaker.name,
                breaker.watched.as_str(),
                breaker.is_open,
            );
        }
        for (provider, apps) in providers.slow_routes() {
            metrics.slow_routes(provider, apps);
        }
        let states = providers.endpoint_states();
        let mut names: Vec<_> = states
            .iter()
            .map(|state| (state.provider, state.environment, &state.endpoint))
            .collect();
        names.dedup();
        for name in names {
            let all = || {
                let each = states.iter();
                each.filter(|state| (state.provider, state.environment, &state.endpoint) == name)
            };
            // IP addresses come and go, so the metrics describe the whole endpoint by its best values.
            let least = |of: fn(&EndpointState) -> Option<f64>| all().filter_map(of).reduce(f64::min);
            let chosen_for = all().find_map(|state| state.chosen_for);
            metrics.endpoint(&Endpoint {
                provider: name.0,
                environment: name.1.unwrap_or_default(),
                name: name.2,
                chosen_for: Why::ALL.map(|why| (why.as_str(), chosen_for == Some(why))),
                is_healthy: all().any(|state| state.healthy),
                is_spare: all().any(|state| state.spare),
                connections: all().map(|state| state.connections as u64).sum(),
                connect_ms: least(|state| state.connect_ms),
                round_trip_ms: least(|state| state.round_trip_ms),
                answer_ms: least(|state| state.answer_ms),
                errors: least(|state| Some(state.errors)).unwrap_or_default(),
            });
        }
    }
}

/// Gives the providers the credentials of every app, at start and after every change. Sets `is_right` to whether the mesh
/// key opens them, and `configured` once an app is known and it does.
async fn keep_credentials_current(
    providers: Arc<Providers>,
    config: Config,
    mesh_key: MeshKey,
    is_right: watch::Sender<bool>,
    configured: watch::Sender<bool>,
) {
    let mut changes = config.changes();
    let mut previous: Vec<Arc<App>> = Vec::new();
    loop {
        let tenants = config.tenants();
        for app in tenants
            .apps
            .values()
            .filter(|app| !previous.iter().any(|known| Arc::ptr_eq(known, app)))
        {
            match configure(&providers, app, &mesh_key) {
                Ok(()) => tracing::info!(app = %app.id, "credentials in use"),
                Err(error) => {
                    tracing::error!(app = %app.id, %error, "credentials cannot be used; keeping the previous ones")
                }
            }
        }
        for gone in previous.iter().filter(|app| !tenants.apps.contains_key(&app.id)) {
            providers.forget(&gone.id);
        }
        previous = tenants.apps.values().cloned().collect();
        let right = tenants.are_sealed_with(&mesh_key);
        if is_right.send_replace(right) && !right {
            tracing::error!(
                "mesh_key opens none of the stored credentials: it is not the key of this mesh; this worker is not ready"
            );
        }
        // Before the whole configuration is known, it is not known whether work from other regions needs a proof.
        if right && config.is_loaded() && !previous.is_empty() {
            configured.send_replace(true);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Why the credentials of an app cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Stored(#[from] shared::app::BadCredential),
    #[error(transparent)]
    Refused(#[from] BadCredential),
}

fn configure(providers: &Providers, app: &App, mesh_key: &MeshKey) -> Result<(), Unusable> {
    // First: a host that is listed no more must not be reached, whatever is wrong with a credential.
    providers.allow_hosts(&app.id, &app.allowed_hosts);
    providers.configure(&app.id, app.credentials(mesh_key)?)?;
    providers.route(&app.id, &app.routes);
    Ok(())
}
