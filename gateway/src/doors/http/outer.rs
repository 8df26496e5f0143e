//! The outermost layer around every request: request id, span, time limit, what is left of the quota, and problem documents.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, header};
use tokio::time::timeout;

use super::{
    api::Api,
    problem::{Problem, STARTING, TIMEOUT},
    quota::Used,
    trace,
};
use crate::{doors, trace::Trace};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Some handlers have the same time limit themselves and answer with more detail. This layer gives up only after them.
const BACKSTOP_AFTER: Duration = Duration::from_secs(1);

/// Admits a request, gives it an id, a span and a time limit, and renders the problem if there was one.
pub(super) async fn around(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let id = request_id(&api, &request);
    let trace = trace::start(&api.context.telemetry, &request);
    let is_api = request.uri().path().starts_with("/v1/");
    if !matches!(trace, Trace::None) {
        request.extensions_mut().insert(trace.clone());
    }
    let used = Used::default();
    let mut response = if is_api {
        request.extensions_mut().insert(used.clone());
        admit(&api, request, next).await
    } else {
        next.run(request).await
    };
    let problem = response.extensions_mut().remove::<Problem>();
    let code = problem.as_ref().map(|problem| problem.kind().code);
    if let Some(problem) = problem {
        response = render(&api, problem, &response, &id, &trace);
    }
    used.tell(response.headers_mut());
    response.headers_mut().insert(REQUEST_ID, id);
    trace::end(&trace, &response, code);
    response
}

/// Runs a request to the API if the configuration is known, and gives it up if it takes too long. Authentication takes its
/// places.
async fn admit(api: &Api, request: Request, next: Next) -> Response {
    if !api.context.is_informed() {
        return Problem::new(STARTING, "Repeat after the time in Retry-After.").into_response();
    }
    timeout(api.limits.request_timeout() + BACKSTOP_AFTER, next.run(request))
        .await
        .unwrap_or_else(|_| {
            let detail =
                "Something may have been stored. Repeating with the same event id or the same content is safe.";
            Problem::new(TIMEOUT, detail).into_response()
        })
}

/// Headers of the empty response that a problem keeps: the methods of the path, and what a browser's page may read.
const KEPT: [HeaderName; 4] = [
    header::ALLOW,
    header::VARY,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
];

/// The problem as a document.
fn render(api: &Api, problem: Problem, empty: &Response, id: &HeaderValue, trace: &Trace) -> Response {
    let code = problem.kind().code;
    api.context.telemetry.metrics.refused(code);
    let id = id.to_str().unwrap_or_default();
    tracing::debug!(request_id = id, code, "request refused");
    let mut response = problem.render(id, trace.id().as_deref());
    for name in KEPT {
        if let Some(value) = empty.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// The caller's request id if it is safe to log; otherwise a new one that is unique among all gateways.
fn request_id(api: &Api, request: &Request) -> HeaderValue {
    let is_safe =
        |value: &&HeaderValue| (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    request
        .headers()
        .get(REQUEST_ID)
        .filter(is_safe)
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::try_from(doors::request_id(&api.instance)).expect("hexadecimal digits and a number are ASCII")
        })
}
