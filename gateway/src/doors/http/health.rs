//! `/healthz`, `/readyz`, `/metrics`: for supervisors, load balancers and Prometheus.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::api::Api;
use crate::keeping::readiness::Readiness;

/// Whether requests should be sent here.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReadyResponse {
    /// Whether requests are served.
    ready: bool,
    /// What is missing: `nats`, the connection; `directory`, homes and owners; `config`, apps and keys; `storage`, when
    /// JetStream does not store what is written; `not finishing`, when the process is about to end.
    #[schema(value_type = Vec<String>)]
    missing: Vec<&'static str>,
}

/// Is the process alive?
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, description = "It is", body = String)))]
pub(crate) async fn healthz() -> &'static str {
    "ok"
}

/// Should requests be sent here?
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, description = "Yes", body = ReadyResponse),
    (status = 503, description = "No, and why", body = ReadyResponse),
))]
pub(crate) async fn readyz(State(readiness): State<Readiness>) -> Response {
    let missing = readiness.missing();
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

/// Metrics in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, description = "Metrics", body = String)))]
pub(crate) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        api.context.telemetry.prometheus(),
    )
        .into_response()
}
