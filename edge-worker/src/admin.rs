//! Serves health, readiness, metrics and the state of the providers' endpoints over HTTP.

use std::sync::Arc;

use async_nats::Client;
use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde::Serialize;
use shared::{
    lifecycle::Lifecycle,
    nats::{connect, follow, topology},
    telemetry::Telemetry,
};
use tokio::{net::TcpListener, sync::watch};

use crate::providers::{EndpointState, Providers};

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Ready while this is connected.
    pub client: Client,
    /// Whether the cache has caught up with its bucket.
    pub cache: watch::Receiver<bool>,
    /// Whether the ledger has caught up with the receipts.
    pub ledger: watch::Receiver<bool>,
    /// Whether the trimming of finished work advances.
    pub trims: watch::Receiver<bool>,
    /// Whether the mesh key opens what is sealed in the configuration.
    pub mesh_key: watch::Receiver<bool>,
    /// They know the state of their endpoints.
    pub providers: Arc<Providers>,
    /// The source of the metrics page.
    pub telemetry: Telemetry,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a condition of its own")]
struct Readiness {
    nats: bool,
    cache: bool,
    ledger: bool,
    trimming: bool,
    mesh_key: bool,
    streams: bool,
}

#[derive(Debug, Serialize)]
struct Endpoints {
    endpoints: Vec<EndpointState>,
}

impl Admin {
    /// Serves until shutdown begins.
    pub async fn serve(self, listener: TcpListener, lifecycle: Lifecycle) {
        let app = Router::new()
            .route("/healthz", get(async || "ok"))
            .route("/readyz", get(ready))
            .route(
                "/metrics",
                get(async |State(admin): State<Arc<Self>>| admin.telemetry.prometheus()),
            )
            .route("/v1/endpoints", get(endpoints))
            .with_state(Arc::new(self));
        let served = axum::serve(listener, app)
            .with_graceful_shutdown(async move { lifecycle.finishing().await })
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "admin server ended");
        }
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, Json<Readiness>) {
    let nats = connect::is_connected(&admin.client);
    // Without a connection nobody knows.
    let streams = !nats || has_streams(&admin.client).await;
    let readiness = Readiness {
        nats,
        cache: *admin.cache.borrow(),
        ledger: *admin.ledger.borrow(),
        trimming: *admin.trims.borrow(),
        mesh_key: *admin.mesh_key.borrow(),
        streams,
    };
    let all = readiness.nats
        && readiness.cache
        && readiness.ledger
        && readiness.trimming
        && readiness.mesh_key
        && readiness.streams;
    (
        if all {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        Json(readiness),
    )
}

/// Whether no stream that a worker pulls from or writes to is missing. Those that it follows show in `cache` and `ledger`.
async fn has_streams(client: &Client) -> bool {
    let js = connect::jetstream(client.clone());
    for stream in [topology::NOTIFY, topology::SCHEDULE, topology::DEAD] {
        if follow::stream_state(&js, stream)
            .await
            .is_err_and(|error| error.is_gone())
        {
            return false;
        }
    }
    true
}

async fn endpoints(State(admin): State<Arc<Admin>>) -> Json<Endpoints> {
    let endpoints = admin.providers.endpoint_states();
    Json(Endpoints { endpoints })
}
