#![doc = include_str!("../README.md")]

mod admin;
pub mod config;
mod context;
pub mod documents;
mod doors;
mod intake;
mod json;
mod keeping;
pub mod program;
pub mod provision;
mod recipients;
mod records;
mod trace;

use std::{collections::BTreeSet, io, net::SocketAddr, sync::Arc};

use futures::future;
use shared::{
    clock::Clock,
    lifecycle::Lifecycle,
    nats::{
        ask::Regions,
        border::Border,
        certificate,
        config::{Config, NotLoaded},
        connect::{self, ConnectError},
        directory::Directory,
        roles::Role,
        time::Timekeeper,
        topology::ApplyError,
    },
    telemetry::Telemetry,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    admin::relay::Relay,
    config::{Settings, Unusable},
    context::Context,
    doors::{
        http::{self, Callbacks, Connections, Keys, Places, api::Api},
        nats::{Door, Served},
    },
    intake::{accept::Intake, budget::Budgets, moved, plan::Plans, publish::Publisher, waiting},
    keeping::{canary, key_use::KeyUses, planned, readiness::Readiness, trim, upkeep::Upkeep},
    recipients::{erasures, homes::Homes, owners},
    records::{alerts::Alerts, dead_letters::DeadLetters, feedback::Feedbacks, receipts::Receipts, recorder},
};

/// Receivers of webhooks that workers report faster than apps are alerted to them, at most.
const RECEIVERS_WAITING_MAX: usize = 1000;

/// A running gateway. It ends with the [`Lifecycle`] it was started under.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    readiness: Readiness,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot be used.
    #[error(transparent)]
    Settings(#[from] Unusable),
    /// NATS cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The region's streams cannot be created or changed.
    #[error(transparent)]
    Topology(#[from] ApplyError),
    /// The hub's configuration cannot be read.
    #[error(transparent)]
    Config(#[from] NotLoaded),
    /// The mesh key is another mesh's.
    #[error("mesh_key opens nothing of the hub's configuration: it is not the key of this mesh")]
    ForeignKey,
    /// The process was asked to finish while it waited for the mesh.
    #[error("stopped before the hub's configuration listed this region")]
    Finishing,
    /// What checks callbacks cannot be prepared.
    #[error("callbacks: {0}")]
    Callbacks(io::Error),
    /// The HTTP client for alerts cannot be built.
    #[error("http client: {0}")]
    Http(#[from] reqwest::Error),
    /// The address to listen on is taken or not allowed.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
}

impl Gateway {
    /// Connects, waits until the hub's configuration lists this region, makes the region's streams match, and serves.
    /// Requests are answered with 503 until the directory and the configuration are loaded; see
    /// [`Gateway::is_ready`].
    ///
    /// # Errors
    /// When a setting cannot be used, NATS cannot be reached or refuses, or the address is taken.
    pub async fn start(
        settings: Settings,
        telemetry: Telemetry,
        clock: Clock,
        lifecycle: &Lifecycle,
    ) -> Result<Self, StartError> {
        let mesh_key = settings.check()?;
        let instance = format!("{:016x}", Uuid::new_v4().as_u64_pair().0);
        let name = format!("gateway-{}-{instance}", settings.mesh.region);
        let role = Role::Gateway(settings.mesh.region.clone());
        let js = connect::jetstream(connect::connect(&settings.nats, &role, &name).await?);
        let config = Config::new(mesh_key.clone());
        let border = Border::new(config.clone());
        let of_facts = (border.clone(), telemetry.metrics.clone());
        let beginning = Upkeep::begin(js.clone(), settings.mesh.clone(), config.clone(), of_facts, lifecycle);
        // Boxed, because it is large and runs once.
        let upkeep = Box::pin(beginning).await?.ok_or(StartError::Finishing)?;

        let here = settings.mesh.region.clone();
        let (clock, keeper) = Timekeeper::new(js.client(), here.clone(), clock);
        keeper.synchronize().await;
        lifecycle.spawn_endless("time", keeper.run());
        lifecycle.spawn_endless("certificate", certificate::watch(&settings.nats, &clock, &telemetry));
        let (recorder, writer) = recorder::pair(js.clone(), here.clone(), name);
        let receipts = Receipts::new(js.clone(), border.clone(), settings.limits.status_notifications);
        let stores = Regions::new(js.clone(), here.clone(), config.clone(), &mesh_key);
        let (troubled, alerted_to) = mpsc::channel(RECEIVERS_WAITING_MAX);
        lifecycle.spawn_endless("questions", stores.clone().answer_forever(clock.clone(), troubled));
        let context = Arc::new(Context {
            here,
            js,
            stores,
            directory: Directory::new(border.clone()),
            config,
            border,
            mesh_key,
            clock,
            telemetry,
        });
        let readiness = Readiness::new(
            Arc::clone(&context),
            upkeep.complete(),
            upkeep.facts(),
            lifecycle.clone(),
        );
        let budgets = Arc::new(Budgets::new(settings.quota, context.here.clone()));
        let homes = Homes {
            context: Arc::clone(&context),
        };
        let refused = |error| StartError::Listen(settings.listen, error);
        let listener = TcpListener::bind(settings.listen).await.map_err(refused)?;
        let addr = listener.local_addr().map_err(refused)?;

        lifecycle.spawn_endless("directory", owners::run(homes.clone()));
        let apps = served(&upkeep, &context, lifecycle);
        lifecycle.spawn_endless("upkeep", upkeep.run(context.clock.clone()));
        let alerts = Alerts::new(Arc::clone(&context), settings.alerts)?;
        lifecycle.spawn_endless("alerts", alerts.run(alerted_to));
        lifecycle.spawn_endless("canary", canary::run(Arc::clone(&context), readiness.clone()));
        lifecycle.spawn_endless("receipts", receipts.clone().follow());
        lifecycle.spawn_endless("moved", moved::run(Arc::clone(&context), Arc::clone(&budgets)));
        lifecycle.spawn_endless("waiting", waiting::follow(Arc::clone(&context), Arc::clone(&budgets)));
        let dead_letters = DeadLetters {
            context: Arc::clone(&context),
            recorder: recorder.clone(),
        };
        lifecycle.spawn_endless("erasures", erasures::run(homes.clone(), dead_letters.clone()));
        // The recorder accepts records until the last request is answered.
        let answered = CancellationToken::new();
        lifecycle.spawn_job(writer.run(answered.clone()));
        let intake = Arc::new(Intake {
            context: Arc::clone(&context),
            publisher: Publisher::new(Arc::clone(&context), settings.mesh.durability),
            recorder,
            budgets,
            plans: Plans::new(settings.limits.scheduled_notifications),
        });
        let door = Door {
            context: Arc::clone(&context),
            intake: Arc::clone(&intake),
            instance: instance.clone(),
            recipients_max: settings.limits.recipients,
            in_flight: settings.limits.in_flight,
            request_timeout: settings.limits.request_timeout(),
        };
        let api = Api {
            instance,
            intake,
            homes,
            receipts,
            dead_letters,
            feedback: Feedbacks::new(&context),
            callbacks: Callbacks::new(&settings.callbacks).map_err(StartError::Callbacks)?,
            public_url: settings.public_url,
            readiness: readiness.clone(),
            limits: settings.limits,
            permits: Arc::new(Semaphore::new(settings.limits.in_flight)),
            unproven: Semaphore::new(settings.limits.in_flight.div_ceil(4)),
            keys: Keys::default(),
            key_uses: KeyUses::start(&context, lifecycle),
            relay: Relay::new(&context),
            imports: Places::new("imports", lifecycle.clone()),
            exports: Places::new("exports", lifecycle.clone()),
            context: Arc::clone(&context),
        };
        open_doors(listener, api, door, apps, answered, lifecycle);
        tracing::info!(%addr, region = %context.here, durability = ?settings.mesh.durability, "serving");
        Ok(Self { addr, readiness })
    }

    /// The address on which HTTP is served.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether the gateway can serve requests now; the same as `ready` in the answer of `/readyz`.
    pub fn is_ready(&self) -> bool {
        self.readiness.missing().is_empty()
    }
}

/// The apps that the door for services serves. Until `lifecycle` ends they are kept up to date, and their intakes are trimmed.
fn served(upkeep: &Upkeep, context: &Context, lifecycle: &Lifecycle) -> Served {
    let (served, planned) = watch::channel(BTreeSet::new());
    let keeping = planned::run(context.js.clone(), context.config.clone(), context.here.clone(), served);
    lifecycle.spawn_endless("planned", keeping);
    lifecycle.spawn_endless("trim", trim::run(context.js.clone(), upkeep.intakes()));
    Served {
        intakes: upkeep.intakes(),
        planned,
    }
}

/// Serves both doors until `lifecycle` ends, and cancels `answered` when the last request is answered.
fn open_doors(
    listener: TcpListener,
    api: Api,
    door: Door,
    apps: Served,
    answered: CancellationToken,
    lifecycle: &Lifecycle,
) {
    let connections = Connections::new(api.limits.connections, api.limits.connections_per_address);
    let serving = http::serve(listener, http::router(api.into()), connections, lifecycle.clone());
    let serving = future::join(serving, door.serve(apps, lifecycle.clone()));
    lifecycle.spawn("doors", async move {
        serving.await;
        answered.cancel();
    });
}

/// Starts an admin gateway, which ends with `lifecycle`. Returns the address of its HTTP endpoints.
///
/// # Errors
/// When a setting cannot be used, the hub cannot be reached or refuses, or the address is taken.
pub async fn start_admin(
    settings: Settings,
    telemetry: Telemetry,
    clock: Clock,
    lifecycle: &Lifecycle,
) -> Result<SocketAddr, StartError> {
    Box::pin(admin::serve(settings, telemetry, clock, lifecycle)).await
}

/// The jobs, as recipient and body, that `POST /v1/notifications` would make of this body; `None` if it is refused.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub fn jobs(body: &[u8]) -> Option<Vec<(shared::id::RecipientId, bytes::Bytes)>> {
    intake::request::jobs(body).ok()
}
