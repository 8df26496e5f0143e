//! One message to a stream, with its span.

use async_nats::HeaderMap;
use bytes::Bytes;
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use shared::{
    failpoint::failpoint,
    id::JobId,
    nats::{
        publish::{self, NotStored, Stored},
        subject::NOTIFY_TEMPLATE,
    },
    telemetry::trace::{self, TRACEPARENT},
};

use crate::{http::Trace, parts::Parts};

/// One message to publish.
pub(crate) struct Outgoing {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    pub(crate) id: JobId,
}

/// Publishes a job and waits until it is stored.
pub(crate) async fn store(parts: &Parts, mut job: Outgoing, trace: &Trace) -> Result<Stored, NotStored> {
    let span = match trace {
        Trace::None => None,
        Trace::Forwarded(word) => {
            job.headers.insert(TRACEPARENT, word.as_str());
            None
        }
        Trace::Recorded(context) => Some(start_span(parts, &mut job, context)),
    };
    failpoint("gateway.before-publish");
    let stored = publish::store(&parts.js, job.subject, job.headers, job.payload).await;
    failpoint("gateway.after-publish");
    if let Some(span) = span {
        end_span(&span, &stored);
    }
    stored
}

fn start_span(parts: &Parts, job: &mut Outgoing, parent: &Context) -> Context {
    let span = SpanBuilder::from_name(format!("send {NOTIFY_TEMPLATE}"))
        .with_kind(SpanKind::Producer)
        .with_attributes([
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", job.subject.clone()),
            KeyValue::new("messaging.destination.template", NOTIFY_TEMPLATE),
            KeyValue::new("messaging.message.id", job.id.to_string()),
        ]);
    let context = parent.with_span(parts.telemetry.tracer.build_with_context(span, parent));
    trace::inject(&context, &mut job.headers);
    context
}

fn end_span(context: &Context, stored: &Result<Stored, NotStored>) {
    let span = context.span();
    match stored {
        Ok(stored) => {
            span.set_attribute(KeyValue::new("messaging.nats.stream", stored.stream.clone()));
            span.set_attribute(KeyValue::new(
                "messaging.nats.stream.sequence",
                stored.sequence.cast_signed(),
            ));
            span.set_attribute(KeyValue::new("messaging.nats.duplicate", stored.duplicate));
        }
        Err(why) => {
            span.set_attribute(KeyValue::new("error.type", why.to_string()));
            span.set_status(Status::error(why.to_string()));
        }
    }
    span.end();
}
