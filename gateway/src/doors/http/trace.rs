//! The span of a request that changes something.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request},
    response::Response,
};
use http::{Method, request};
use opentelemetry::{
    KeyValue,
    trace::{SpanKind, Status, TraceContextExt},
};
use shared::telemetry::{
    Telemetry,
    trace::{TRACEPARENT, remote_http},
};

use crate::trace::Trace;

/// Starts the span of a request that changes something. Requests that only read get no span.
pub(super) fn start(telemetry: &Telemetry, request: &Request) -> Trace {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return Trace::None;
    }
    let Some(route) = request.extensions().get::<MatchedPath>() else {
        return Trace::None;
    };
    let caller = request.headers().get(TRACEPARENT);
    let caller = caller.map(|text| (remote_http(request.headers()), text.to_str().unwrap_or_default()));
    let trace = Trace::start(telemetry, caller, SpanKind::Server);
    // The name is formatted only if the sampler has decided to record: most requests are not traced.
    if let Trace::Recorded(context) = &trace {
        let span = context.span();
        span.update_name(format!("{} {}", request.method(), route.as_str()));
        span.set_attribute(KeyValue::new("http.request.method", request.method().to_string()));
        span.set_attribute(KeyValue::new("http.route", route.as_str().to_owned()));
        span.set_attribute(KeyValue::new("url.scheme", "http"));
    }
    trace
}

/// Ends the span with the status of the response and the problem's code.
pub(super) fn end(trace: &Trace, response: &Response, code: Option<&'static str>) {
    let Trace::Recorded(context) = trace else { return };
    let span = context.span();
    let status = response.status();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if let Some(code) = code {
        span.set_attribute(KeyValue::new("error.type", code));
    }
    if status.is_server_error() {
        span.set_status(Status::error(code.unwrap_or_default()));
    }
    span.end();
}

impl<S: Send + Sync> FromRequestParts<S> for Trace {
    type Rejection = Infallible;

    async fn from_request_parts(request: &mut request::Parts, _: &S) -> Result<Self, Infallible> {
        Ok(request.extensions.get().cloned().unwrap_or_default())
    }
}
