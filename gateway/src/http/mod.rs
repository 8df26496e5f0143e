//! The HTTP API: routes, and what happens around every request.

mod addresses;
mod auth;
mod body;
mod health;
mod named;
mod notifications;
mod openapi;
mod outer;
mod preferences;
mod problem;
mod recipients;
mod send;
mod serve;
mod trace;

use std::sync::Arc;

use axum::{Extension, Router, extract::DefaultBodyLimit, middleware};
use bytes::Bytes;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    openapi::Description,
    problem::{METHOD, NOT_FOUND, Problem},
};
pub(crate) use self::{serve::serve, trace::Trace};
use crate::parts::Parts;

/// Every route, each registered together with its description.
fn routes() -> OpenApiRouter<Arc<Parts>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(send::send))
        .routes(routes!(notifications::get))
        .routes(routes!(recipients::put, recipients::get, recipients::delete))
        .routes(routes!(addresses::register, addresses::list, addresses::remove_all))
        .routes(routes!(addresses::remove))
        .routes(routes!(preferences::put, preferences::get))
        .routes(routes!(openapi::document))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
}

/// The description of the API (`OpenAPI` 3.1, JSON).
pub(crate) fn describe() -> String {
    routes()
        .into_openapi()
        .to_pretty_json()
        .expect("the description always serializes")
}

/// The whole API over `parts`.
pub(crate) fn router(parts: Arc<Parts>) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(async || Problem::new(NOT_FOUND, "There is no such path; /v1/openapi.json lists them."))
        .method_not_allowed_fallback(async || Problem::new(METHOD, "The header Allow lists the methods of this path."))
        .layer(Extension(Bytes::from(describe())))
        .layer(DefaultBodyLimit::max(parts.limits.body_bytes))
        .layer(middleware::from_fn_with_state(Arc::clone(&parts), outer::around))
        .with_state(parts)
}
