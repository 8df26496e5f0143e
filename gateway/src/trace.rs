//! The trace that a request belongs to.

use opentelemetry::Context;
use shared::telemetry::trace::trace_id;

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
    /// The trace id, if the trace is recorded.
    pub(crate) fn id(&self) -> Option<String> {
        match self {
            Self::Recorded(context) => trace_id(context),
            Self::None | Self::Forwarded(_) => None,
        }
    }
}
