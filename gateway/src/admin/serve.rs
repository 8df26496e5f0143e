//! The admin gateway: the gateway program at the hub.

use std::{net::SocketAddr, sync::Arc};

use async_nats::Client;
use axum::{Router, extract::State, response::Response, routing::get};
use shared::{
    clock::Clock,
    lifecycle::Lifecycle,
    nats::{config, connect, roles::Role},
    telemetry::Telemetry,
};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::{desk::Desk, relay::Counter};
use crate::{
    StartError,
    config::Settings,
    doors::http::{self, Connections, health},
    provision,
};

/// What its HTTP endpoints tell.
#[derive(Debug)]
struct Pages {
    client: Client,
    telemetry: Telemetry,
    lifecycle: Lifecycle,
}

/// Starts an admin gateway: it connects to the hub, checks that its mesh key is the mesh's, and answers the gateways of all
/// regions. Over HTTP it serves health, readiness and metrics. Any number may run; they share the questions.
///
/// # Errors
/// When a setting cannot be used, the hub cannot be reached or refuses, or the address is taken.
pub(crate) async fn serve(
    settings: Settings,
    telemetry: Telemetry,
    clock: Clock,
    lifecycle: &Lifecycle,
) -> Result<SocketAddr, StartError> {
    let mesh_key = settings.check()?;
    let name = format!("admin-{}", Uuid::new_v4().simple());
    let client = connect::connect(&settings.nats, &Role::Admin, &name).await?;
    let hub = provision::hub(client.clone());
    if !config::read(&hub).await?.are_sealed_with(&mesh_key) {
        return Err(StartError::ForeignKey);
    }
    let desk = Desk::new(hub, mesh_key.clone(), clock.clone());
    let counter = Counter::new(client.clone(), desk, &mesh_key, clock);
    lifecycle.spawn_endless("admin", counter.answer_forever());
    let refused = |error| StartError::Listen(settings.listen, error);
    let listener = TcpListener::bind(settings.listen).await.map_err(refused)?;
    let addr = listener.local_addr().map_err(refused)?;
    let pages = Pages {
        client,
        telemetry,
        lifecycle: lifecycle.clone(),
    };
    let router = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(pages));
    let connections = Connections::new(settings.limits.connections, settings.limits.connections_per_address);
    lifecycle.spawn("pages", http::serve(listener, router, connections, lifecycle.clone()));
    tracing::info!(%addr, "serving as admin gateway");
    Ok(addr)
}

async fn readyz(State(pages): State<Arc<Pages>>) -> Response {
    let conditions = [
        ("nats", connect::is_connected(&pages.client)),
        ("not finishing", !pages.lifecycle.is_finishing()),
    ];
    let missing = conditions.into_iter().filter(|(_, holds)| !holds);
    health::ready(missing.map(|(name, _)| name).collect())
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    health::metrics_of(&pages.telemetry)
}
