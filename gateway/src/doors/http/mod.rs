//! The HTTP API: its routes, one file for each resource, and the layer around every request.

mod addresses;
mod answer;
pub(crate) mod api;
mod apps;
mod auth;
mod body;
pub(crate) mod callbacks;
mod connections;
mod controls;
mod dead_letters;
mod erasures;
mod exports;
pub(crate) mod health;
mod imports;
mod named;
mod notifications;
mod openapi;
mod outer;
mod pages;
mod places;
mod preference_links;
mod preferences;
mod quota;
mod recipients;
mod schedules;
mod send;
mod serve;
mod suppressions;
mod topics;
mod trace;

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware};
use http::{HeaderName, Method};
use shared::invalid::Invalid;
use tower_http::cors::{Any, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    api::Api,
    auth::signed,
    openapi::Description,
    problem::{METHOD, NOT_FOUND, Problem},
};
pub(crate) use self::{callbacks::Callbacks, connections::Connections, places::Places, quota::Keys, serve::serve};
use super::problem;

/// How long a browser may remember which requests a page may send. Browsers take at most two hours.
const CORS_MAX_AGE: Duration = Duration::from_hours(2);

/// The routes that client tokens may take.
fn client_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(addresses::register, addresses::list, addresses::remove_all))
        .routes(routes!(addresses::remove))
        .routes(routes!(preferences::put, preferences::patch, preferences::get))
        .routes(routes!(topics::list))
        .routes(routes!(topics::put, topics::delete))
}

/// All other routes, each registered together with its description.
fn service_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(send::send, notifications::find, notifications::cancel_group))
        .routes(routes!(
            notifications::get,
            notifications::change,
            notifications::cancel
        ))
        .routes(routes!(schedules::list))
        .routes(routes!(schedules::put, schedules::get, schedules::delete))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::replay_many))
        .routes(routes!(dead_letters::get, dead_letters::delete))
        .routes(routes!(dead_letters::replay))
        .routes(routes!(recipients::put, recipients::get, recipients::delete))
        .routes(routes!(imports::import))
        .routes(routes!(exports::export))
        .routes(routes!(erasures::erase))
        .routes(routes!(erasures::get))
        .routes(routes!(preference_links::make))
        .routes(routes!(suppressions::list, suppressions::add))
        .routes(routes!(suppressions::lift))
        .routes(routes!(apps::list))
        .routes(routes!(apps::get, apps::put, apps::delete))
        .routes(routes!(apps::issue_key))
        .routes(routes!(apps::revoke_key))
        .routes(routes!(apps::list_regions))
        .routes(routes!(apps::put_region))
        .routes(routes!(controls::list, controls::add))
        .routes(routes!(controls::remove))
        .routes(routes!(callbacks::post))
        .routes(routes!(openapi::document))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
}

/// How many things an answer lists: as many as `wanted`, else `max`.
fn limit(wanted: Option<usize>, max: usize) -> Result<usize, Invalid> {
    match wanted {
        None => Ok(max),
        Some(wanted) if (1..=max).contains(&wanted) => Ok(wanted),
        Some(_) => Err(Invalid::new("limit", format_args!("must be 1 to {max}"))),
    }
}

/// Where a page begins whose `cursor` is a sequence of a stream of this region; the first without one.
fn begin_of_page(cursor: Option<&str>) -> Result<u64, Invalid> {
    let rule = "must be the `next` of an answer of this region's gateways";
    cursor.map_or(Ok(1), |cursor| cursor.parse().map_err(|_| Invalid::new("cursor", rule)))
}

/// The description of the API (`OpenAPI` 3.1, JSON).
pub(crate) fn describe() -> String {
    let routes = service_routes().merge(client_routes());
    let mut api = serde_json::to_value(routes.into_openapi()).expect("the description always serializes");
    openapi::complete(&mut api);
    format!("{api:#}")
}

/// The whole API.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let method = async || Problem::new(METHOD, "The header Allow lists the methods of this path.");
    let (services, _) = service_routes().split_for_parts();
    let (clients, _) = client_routes().split_for_parts();
    services
        .merge(pages::routes())
        .method_not_allowed_fallback(method)
        .merge(clients.method_not_allowed_fallback(method).layer(cors()))
        .fallback(async || Problem::new(NOT_FOUND, "There is no such path; /v1/openapi.json lists all paths."))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), signed::check))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), outer::around))
        .with_state(api)
}

/// Pages of every origin may call with a client token: a browser sends none by itself, so that a foreign page has nothing to call
/// with.
fn cors() -> CorsLayer {
    let taken = [
        "authorization",
        "content-type",
        "x-request-id",
        "traceparent",
        "tracestate",
    ];
    let shown = ["retry-after", "x-request-id", "ratelimit", "ratelimit-policy"];
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(taken.map(HeaderName::from_static))
        .expose_headers(shown.map(HeaderName::from_static))
        .max_age(CORS_MAX_AGE)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    /// Calls `visit` for every member called `name`, at any depth.
    fn each<'a>(value: &'a Value, name: &str, visit: &mut impl FnMut(&'a Value)) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    if key == name {
                        visit(value);
                    }
                    each(value, name, visit);
                }
            }
            Value::Array(items) => items.iter().for_each(|value| each(value, name, visit)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_resolves_and_operation_ids_are_distinct() {
        let api: Value = serde_json::from_str(&describe()).unwrap();
        assert_eq!(api["openapi"], "3.1.0");
        let mut references = 0;
        each(&api, "$ref", &mut |reference| {
            references += 1;
            let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
            assert!(api.pointer(pointer).is_some(), "{pointer} does not resolve");
        });
        assert!(references > 50);
        let (mut ids, mut operations) = (HashSet::new(), 0);
        each(&api, "operationId", &mut |id| {
            operations += 1;
            ids.insert(id.as_str().unwrap());
        });
        assert_eq!((ids.len(), operations), (52, 52), "operation ids must be distinct");
    }

    #[test]
    fn refusals_are_described_as_problem_documents() {
        let api: Value = serde_json::from_str(&describe()).unwrap();
        for (path, item) in api["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if operation.get("security").is_some() {
                    let problem = &operation["responses"]["4XX"]["content"]["application/problem+json"]["schema"];
                    assert_eq!(problem["$ref"], "#/components/schemas/Problem", "{method} {path}");
                }
            }
        }
    }
}
