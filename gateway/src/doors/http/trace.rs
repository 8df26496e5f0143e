//! The trace that a request belongs to, and the span of a request that writes.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRequestParts, MatchedPath, Request},
    response::Response,
};
use http::{Method, request};
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use shared::telemetry::trace::{TRACEPARENT, remote_http, trace_id};

use crate::context::Parts;

/// The trace of a request.
#[derive(Debug, Clone, Default)]
pub(crate) enum Trace {
    /// Nobody traces it.
    #[default]
    None,
    /// The caller does not sample, or spans of ours would go nowhere: the caller's word goes on unchanged.
    Forwarded(String),
    /// It is recorded; the context holds the request's span.
    Recorded(Context),
}

impl Trace {
    /// Starts the span of a request that writes. Others are not worth one.
    pub(crate) fn start(parts: &Parts, request: &Request) -> Self {
        if request.method() == Method::GET || request.method() == Method::HEAD {
            return Self::None;
        }
        let Some(route) = request.extensions().get::<MatchedPath>() else {
            return Self::None;
        };
        let exports = parts.telemetry.exports_spans();
        let mut parent = Context::new();
        if let Some(caller) = request.headers().get(TRACEPARENT) {
            parent = remote_http(request.headers());
            let (is_valid, is_sampled) = {
                let span = parent.span();
                (span.span_context().is_valid(), span.span_context().is_sampled())
            };
            if is_valid && !(is_sampled && exports) {
                return Self::Forwarded(caller.to_str().unwrap_or_default().to_owned());
            }
        }
        if !exports {
            return Self::None;
        }
        let tracer = &parts.telemetry.tracer;
        // The name is written only once the sampler has agreed: most requests are not traced.
        let span = tracer.build_with_context(SpanBuilder::from_name("request").with_kind(SpanKind::Server), &parent);
        let context = parent.with_span(span);
        let span = context.span();
        if !span.is_recording() {
            return Self::None;
        }
        span.update_name(format!("{} {}", request.method(), route.as_str()));
        span.set_attribute(KeyValue::new("http.request.method", request.method().to_string()));
        span.set_attribute(KeyValue::new("http.route", route.as_str().to_owned()));
        span.set_attribute(KeyValue::new("url.scheme", "http"));
        Self::Recorded(context)
    }

    /// Ends the span with the answer.
    pub(crate) fn end(&self, response: &Response, code: Option<&'static str>) {
        let Self::Recorded(context) = self else { return };
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

    /// The trace id, if the trace is recorded.
    pub(crate) fn id(&self) -> Option<String> {
        match self {
            Self::Recorded(context) => trace_id(context),
            Self::None | Self::Forwarded(_) => None,
        }
    }
}

impl FromRequestParts<Arc<Parts>> for Trace {
    type Rejection = Infallible;

    async fn from_request_parts(request: &mut request::Parts, _: &Arc<Parts>) -> Result<Self, Infallible> {
        Ok(request.extensions.get().cloned().unwrap_or_default())
    }
}
