//! The span of a request that changes something.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request},
    response::Response,
};
use http::{Method, request};
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
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
    let exports = telemetry.exports_spans();
    let mut parent = Context::new();
    if let Some(caller) = request.headers().get(TRACEPARENT) {
        parent = remote_http(request.headers());
        let (is_valid, is_sampled) = {
            let span = parent.span();
            (span.span_context().is_valid(), span.span_context().is_sampled())
        };
        if is_valid && !(is_sampled && exports) {
            return Trace::Forwarded(caller.to_str().unwrap_or_default().to_owned());
        }
    }
    if !exports {
        return Trace::None;
    }
    let tracer = &telemetry.tracer;
    // The name is formatted only if the sampler has decided to record: most requests are not traced.
    let span = tracer.build_with_context(SpanBuilder::from_name("request").with_kind(SpanKind::Server), &parent);
    let context = parent.with_span(span);
    let span = context.span();
    if !span.is_recording() {
        return Trace::None;
    }
    span.update_name(format!("{} {}", request.method(), route.as_str()));
    span.set_attribute(KeyValue::new("http.request.method", request.method().to_string()));
    span.set_attribute(KeyValue::new("http.route", route.as_str().to_owned()));
    span.set_attribute(KeyValue::new("url.scheme", "http"));
    Trace::Recorded(context)
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
