//! `/healthz`, `/readyz`, `/metrics`: for supervisors, load balancers and Prometheus.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;
use shared::telemetry::Telemetry;
use utoipa::ToSchema;

use super::api::Api;
use crate::keeping::readiness::Readiness;

/// Whether this gateway can serve requests.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReadyResponse {
    /// Whether requests are served.
    ready: bool,
    /// The conditions that do not hold: `nats`, there is no connection; `directory`, homes and owners are not loaded;
    /// `config`, apps and keys are not loaded; `storage`, JetStream does not store messages; `not finishing`, the
    /// process is shutting down.
    #[schema(value_type = Vec<String>)]
    missing: Vec<&'static str>,
}

/// Check that the process is alive
#[utoipa::path(get, path = "/healthz", tag = "operations", responses(
    (status = 200, description = "The process is alive", body = String),
))]
pub(crate) async fn healthz() -> &'static str {
    "ok"
}

/// Check that this gateway can serve requests
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, description = "It can", body = ReadyResponse),
    (status = 503, description = "It cannot; `missing` says why", body = ReadyResponse),
))]
pub(crate) async fn readyz(State(readiness): State<Readiness>) -> Response {
    ready(readiness.missing())
}

/// Ready if nothing is missing.
pub(crate) fn ready(missing: Vec<&'static str>) -> Response {
    let status = if missing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        axum::Json(ReadyResponse {
            ready: missing.is_empty(),
            missing,
        }),
    )
        .into_response()
}

/// Get the metrics in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, description = "The metrics", body = String),
))]
pub(crate) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    metrics_of(&api.context.telemetry)
}

/// The metrics of this process.
pub(crate) fn metrics_of(telemetry: &Telemetry) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        telemetry.prometheus(),
    )
        .into_response()
}
