//! The trace that a request belongs to.

use async_nats::HeaderMap;
use opentelemetry::{
    Context,
    trace::{SpanBuilder, SpanKind, TraceContextExt, Tracer},
};
use shared::{
    nats::envelope::header,
    telemetry::{
        Telemetry,
        trace::{self, TRACEPARENT, trace_id},
    },
};

/// The trace of a request.
#[derive(Debug, Clone, Default)]
pub(crate) enum Trace {
    /// The request is not traced.
    #[default]
    None,
    /// The caller does not sample, or this gateway exports no spans: the caller's `traceparent` is passed on unchanged.
    Forwarded(String),
    /// The trace is recorded; the context holds the request's span.
    Recorded(Context),
}

impl Trace {
    /// Starts the span of a request, whose name is to be set. `caller` is the caller's trace context and its `traceparent`.
    pub(crate) fn start(telemetry: &Telemetry, caller: Option<(Context, &str)>, kind: SpanKind) -> Self {
        let exports = telemetry.exports_spans();
        let mut parent = Context::new();
        if let Some((context, text)) = caller {
            let (is_valid, is_sampled) = {
                let span = context.span();
                (span.span_context().is_valid(), span.span_context().is_sampled())
            };
            if is_valid && !(is_sampled && exports) {
                return Self::Forwarded(text.to_owned());
            }
            parent = context;
        }
        if !exports {
            return Self::None;
        }
        let tracer = &telemetry.tracer;
        let span = tracer.build_with_context(SpanBuilder::from_name("request").with_kind(kind), &parent);
        let context = parent.with_span(span);
        if context.span().is_recording() {
            Self::Recorded(context)
        } else {
            Self::None
        }
    }

    /// What continues the trace in a message, if there is one.
    pub(crate) fn traceparent(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Forwarded(text) => Some(text.clone()),
            Self::Recorded(context) => {
                let mut headers = HeaderMap::new();
                trace::inject(context, &mut headers);
                header(&headers, TRACEPARENT).map(str::to_owned)
            }
        }
    }

    /// The trace id, if the trace is recorded.
    pub(crate) fn id(&self) -> Option<String> {
        match self {
            Self::Recorded(context) => trace_id(context),
            Self::None | Self::Forwarded(_) => None,
        }
    }
}
