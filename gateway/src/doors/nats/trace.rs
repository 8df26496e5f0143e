//! The span of what a service sent: a part of the service's own trace, if it has one.

use async_nats::HeaderMap;
use opentelemetry::{
    KeyValue,
    trace::{SpanKind, Status, TraceContextExt},
};
use shared::{
    nats::envelope::header,
    telemetry::{
        Telemetry,
        trace::{TRACEPARENT, remote},
    },
};

use crate::trace::Trace;

/// Starts the span of making jobs of a published message.
pub(super) fn of_message(telemetry: &Telemetry, headers: &HeaderMap) -> Trace {
    start(telemetry, headers, SpanKind::Consumer, "process send.{account}")
}

/// Starts the span of a request.
pub(super) fn of_request(telemetry: &Telemetry, headers: &HeaderMap) -> Trace {
    start(telemetry, headers, SpanKind::Server, "process send.{account}.now")
}

fn start(telemetry: &Telemetry, headers: &HeaderMap, kind: SpanKind, name: &'static str) -> Trace {
    let caller = header(headers, TRACEPARENT).and_then(|text| Some((remote(headers)?, text)));
    let trace = Trace::start(telemetry, caller, kind);
    if let Trace::Recorded(context) = &trace {
        let span = context.span();
        span.update_name(name);
        span.set_attribute(KeyValue::new("messaging.system", "nats"));
        span.set_attribute(KeyValue::new("messaging.operation.type", "process"));
    }
    trace
}

/// Ends the span, with the code of the problem if there was one.
pub(super) fn end(trace: &Trace, code: Option<&'static str>) {
    let Trace::Recorded(context) = trace else { return };
    let span = context.span();
    if let Some(code) = code {
        span.set_attribute(KeyValue::new("error.type", code));
        span.set_status(Status::error(code));
    }
    span.end();
}
