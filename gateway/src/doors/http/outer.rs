//! The outermost layer: what happens around every request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue};
use tokio::time::timeout;

use super::{
    api::Api,
    problem::{OVERLOADED, Problem, STARTING, TIMEOUT},
    trace,
};
use crate::trace::Trace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A handler that can say more about what it was doing gives up by itself before it is given up.
const BACKSTOP_AFTER: Duration = Duration::from_secs(1);

/// Admits a request, gives it an id, a span and a time limit, and writes the problem if there was one.
pub(super) async fn around(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let id = request_id(&api, &request);
    let trace = trace::start(&api.context.telemetry, &request);
    let is_api = request.uri().path().starts_with("/v1/");
    if !matches!(trace, Trace::None) {
        request.extensions_mut().insert(trace.clone());
    }
    let mut response = if is_api {
        admit(&api, request, next).await
    } else {
        next.run(request).await
    };
    let problem = response.extensions_mut().remove::<Problem>();
    let code = problem.as_ref().map(|problem| problem.kind().code);
    if let Some(problem) = problem {
        response = written(&api, problem, &response, &id, &trace);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    trace::end(&trace, &response, code);
    response
}

/// Runs a request of the API if there is room for it, and gives it up if it takes too long.
async fn admit(api: &Api, request: Request, next: Next) -> Response {
    let Ok(_permit) = api.permits.try_acquire() else {
        return Problem::new(OVERLOADED, "Repeat after the time in Retry-After.").into_response();
    };
    if !api.context.is_informed() {
        return Problem::new(STARTING, "Repeat after the time in Retry-After.").into_response();
    }
    timeout(api.limits.request_timeout() + BACKSTOP_AFTER, next.run(request))
        .await
        .unwrap_or_else(|_| {
            let detail =
                "It is not known what was stored. Repeating with the same event id or the same content is safe.";
            Problem::new(TIMEOUT, detail).into_response()
        })
}

/// The problem as a document, with the headers that the empty response already had.
fn written(api: &Api, problem: Problem, empty: &Response, id: &HeaderValue, trace: &Trace) -> Response {
    let code = problem.kind().code;
    api.context.telemetry.metrics.refused(code);
    let id = id.to_str().unwrap_or_default();
    tracing::debug!(request_id = id, code, "request refused");
    let mut response = problem.render(id, trace.id().as_deref());
    if let Some(allow) = empty.headers().get(http::header::ALLOW) {
        response.headers_mut().insert(http::header::ALLOW, allow.clone());
    }
    response
}

/// The caller's id of the request if it is fit to be logged, else one that no gateway has given before.
fn request_id(api: &Api, request: &Request) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let fit =
        |value: &&HeaderValue| (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    request
        .headers()
        .get(REQUEST_ID)
        .filter(fit)
        .cloned()
        .unwrap_or_else(|| {
            let id = format!("{}-{}", api.instance, NEXT.fetch_add(1, Ordering::Relaxed));
            HeaderValue::try_from(id).expect("hexadecimal digits and a number are ASCII")
        })
}
