//! Jobs into streams, each with its span.

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    stream::{self, FuturesUnordered},
};
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use shared::{
    failpoint::failpoint,
    id::JobId,
    nats::{
        batch::{Batcher, Message},
        publish::{NotStored, Stored},
        subject::{Lane, NOTIFY_TEMPLATE},
        topology::Durability,
    },
    telemetry::trace::{self, TRACEPARENT},
};

use crate::{context::Parts, doors::http::Trace};

/// Messages of one request that are unacknowledged at one time, if each is published by itself.
const PIPELINE: usize = 1024;

/// One message to publish.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) lane: Lane,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    pub(crate) id: JobId,
}

/// How jobs get into streams.
#[derive(Debug)]
pub(crate) enum Publisher {
    /// Each by itself, many under way at one time.
    Singly,
    /// Together with others for the same stream.
    Together {
        /// Into `NOTIFY`.
        here: Batcher,
        /// Into `OUTBOX`.
        elsewhere: Batcher,
    },
}

impl Publisher {
    /// The faster way with this durability.
    pub(crate) fn new(durability: Durability, js: &jetstream::Context) -> Self {
        if durability.wants_batches() {
            Self::Together {
                here: Batcher::new(js.clone()),
                elsewhere: Batcher::new(js.clone()),
            }
        } else {
            Self::Singly
        }
    }
}

/// Publishes jobs and waits until they are stored: what became of each, as it becomes known.
pub(crate) fn store(
    parts: &Parts,
    jobs: Vec<Outgoing>,
    trace: &Trace,
) -> impl Stream<Item = Result<Stored, NotStored>> {
    let messages = jobs.into_iter().map(move |mut job| {
        let span = start_span(parts, &mut job, trace);
        let message = Message {
            subject: job.lane.notify(),
            headers: job.headers,
            payload: job.payload,
        };
        (message, job.lane.region == parts.here, span)
    });
    match &parts.publisher {
        // Acknowledgements are taken while messages are still being sent: requests that only sent until all places for
        // unacknowledged messages were taken would wait for each other for ever.
        Publisher::Singly => stream::iter(messages)
            .map(move |(message, _, span)| async move {
                failpoint("gateway.before-publish");
                finish(message.store(&parts.js).await, span)
            })
            .buffer_unordered(PIPELINE)
            .left_stream(),
        // All are queued before the first is waited for.
        Publisher::Together { here, elsewhere } => messages
            .map(|(message, is_here, span)| {
                failpoint("gateway.before-publish");
                let stored = if is_here { here } else { elsewhere }.store(message);
                async move { finish(stored.await, span) }
            })
            .collect::<FuturesUnordered<_>>()
            .right_stream(),
    }
}

fn finish(stored: Result<Stored, NotStored>, span: Option<Context>) -> Result<Stored, NotStored> {
    failpoint("gateway.after-publish");
    if let Some(span) = span {
        end_span(&span, &stored);
    }
    stored
}

/// Lets the message go on with the trace; gives the span of sending it, if there is to be one.
fn start_span(parts: &Parts, job: &mut Outgoing, trace: &Trace) -> Option<Context> {
    match trace {
        Trace::None => None,
        Trace::Forwarded(word) => {
            job.headers.insert(TRACEPARENT, word.as_str());
            None
        }
        Trace::Recorded(context) => Some(record_span(parts, job, context)),
    }
}

fn record_span(parts: &Parts, job: &mut Outgoing, parent: &Context) -> Context {
    let span = SpanBuilder::from_name(format!("send {NOTIFY_TEMPLATE}"))
        .with_kind(SpanKind::Producer)
        .with_attributes([
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", job.lane.notify()),
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
