//! The trace that a request belongs to.

use opentelemetry::Context;
use shared::telemetry::trace::trace_id;

/// The trace of a request.
#[derive(Debug, Clone, Default)]
pub(crate) enum Trace {
    /// The request is not traced.
    #[default]
    None,
    /// The caller does not sample, or spans of ours would go nowhere: the caller's `traceparent` goes on unchanged.
    Forwarded(String),
    /// It is recorded; the context holds the request's span.
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
