//! Puts the parts together and starts them in the order in which they need each other.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use shared::{
    app::App,
    clock::Clock,
    id::Region,
    lifecycle::Lifecycle,
    nats::{
        config::Config,
        connect::{self, Nats},
        roles::Role,
        time::Timekeeper,
        topology,
    },
    seal::MeshKey,
    telemetry::{Telemetry, metric::Endpoint},
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
    /// When something that it cannot work without is missing; see [`StartError`].
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
        let config = Config::default();
        lifecycle.spawn_endless("config", config.clone().follow(js.clone()));
        let providers = Providers::new(&settings.providers, clock.clone())?;
        let providers = Arc::new(providers.with_allowances().with_bulkheads(settings.in_flight));
        let (known, configured) = watch::channel(false);
        lifecycle.spawn_endless("endpoints", providers.watch());
        lifecycle.spawn_endless("ways", show_ways(providers.clone(), telemetry.clone()));
        let metrics = telemetry.metrics.clone();
        let quotas = Quotas::new(
            &js,
            region.clone(),
            &settings.name,
            config.clone(),
            providers.clone(),
            metrics,
        );
        lifecycle.spawn_endless("quotas", Arc::new(quotas).run());
        let follow = keep_configured(providers.clone(), config.clone(), mesh_key, known);
        lifecycle.spawn_endless("credentials", follow);

        let shared = Shared {
            config,
            providers: providers.clone(),
            configured,
            telemetry: telemetry.clone(),
            clock,
        };
        let own = Station {
            client: client.clone(),
            region,
            by: None,
            rank: 0,
            data: settings.data.clone(),
            shared: shared.clone(),
        };
        let help = Help {
            settings: settings.clone(),
            shared,
            lifecycle: lifecycle.clone(),
        };
        let standing = own.start(&settings, lifecycle)?;
        lifecycle.spawn_endless("help", Arc::new(help).run());

        let listener = TcpListener::bind(settings.admin_listen)
            .await
            .map_err(|error| StartError::Io("admin_listen", error))?;
        let admin = listener
            .local_addr()
            .map_err(|error| StartError::Io("admin_listen", error))?;
        let page = Admin {
            client,
            providers,
            cache: standing.cache,
            ledger: standing.ledger,
            telemetry,
        };
        lifecycle.spawn("admin", page.serve(listener, lifecycle.clone()));
        Ok(Self { admin })
    }

    /// Where health, readiness and metrics are served.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }
}

fn client_name(settings: &Settings) -> String {
    format!("peal-edge-worker {}", settings.name)
}

/// Stands by for the regions whose first choices of help this one is among.
struct Help {
    settings: Settings,
    shared: Shared,
    lifecycle: Lifecycle,
}

impl Help {
    /// Begins with every region that is to be helped as soon as the mesh says so. Help that is no longer wanted ends with
    /// the process.
    async fn run(self: Arc<Self>) {
        let here = &self.settings.mesh.region;
        let mut changes = self.shared.config.changes();
        let mut helped = BTreeSet::new();
        loop {
            for (region, site) in &self.shared.config.tenants().regions {
                let rank = site.helpers.iter().position(|helper| helper == here);
                let (Some(rank), Some(nats)) = (rank, &site.nats) else {
                    continue;
                };
                if region != here && helped.insert(region.clone()) {
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
        while let Err(error) = self.begin(&region, rank, &nats).await {
            tracing::warn!(%region, %error, "cannot stand by to help; tried again");
            tokio::time::sleep(RETRY_STANDBY_AFTER).await;
        }
        tracing::info!(%region, "standing by to help");
        std::future::pending().await
    }

    async fn begin(&self, region: &Region, rank: Rank, nats: &Nats) -> Result<(), StartError> {
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

/// How long a region that cannot be helped is left alone.
const RETRY_STANDBY_AFTER: Duration = Duration::from_secs(5);

/// Keeps the metrics of breakers and endpoints current.
async fn show_ways(providers: Arc<Providers>, telemetry: Telemetry) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        for breaker in providers.breaker_states() {
            telemetry.metrics.breaker(
                breaker.provider,
                &breaker.name,
                breaker.watched.as_str(),
                breaker.is_open,
            );
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
            // Addresses come and go, so the metrics speak of the endpoint: of its chosen address, or of its best.
            let least = |of: fn(&EndpointState) -> Option<f64>| all().filter_map(of).reduce(f64::min);
            let chosen_for = all().find_map(|state| state.chosen_for);
            telemetry.metrics.endpoint(&Endpoint {
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

/// Gives the providers the credentials of every app, at start and at every change.
async fn keep_configured(providers: Arc<Providers>, config: Config, mesh_key: MeshKey, known: watch::Sender<bool>) {
    let mut changes = config.changes();
    let mut former: Vec<Arc<App>> = Vec::new();
    loop {
        let tenants = config.tenants();
        for app in tenants
            .apps
            .values()
            .filter(|app| !former.iter().any(|known| Arc::ptr_eq(known, app)))
        {
            match configure(&providers, app, &mesh_key) {
                Ok(()) => tracing::info!(app = %app.id, "credentials in use"),
                Err(error) => {
                    tracing::error!(app = %app.id, %error, "credentials cannot be used; the former ones stay")
                }
            }
        }
        for gone in former.iter().filter(|app| !tenants.apps.contains_key(&app.id)) {
            providers.forget(&gone.id);
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
    #[error(transparent)]
    Stored(#[from] shared::app::BadCredential),
    #[error(transparent)]
    Refused(#[from] BadCredential),
}

fn configure(providers: &Providers, app: &App, mesh_key: &MeshKey) -> Result<(), Unusable> {
    Ok(providers.configure(&app.id, app.credentials(mesh_key)?)?)
}
