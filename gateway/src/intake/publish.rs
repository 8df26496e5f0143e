//! Publishes jobs to the streams, each with its span.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    stream::{self, FuturesUnordered},
};
use opentelemetry::{
    Context as SpanContext, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use shared::{
    failpoint::failpoint,
    id::JobId,
    nats::{
        batch::{Batcher, Message},
        publish::{NotStored, Stored},
        subject::{Lane, NOTIFY_TEMPLATE, Tier},
        topology::Durability,
    },
    telemetry::trace::{self, TRACEPARENT},
};

use super::budget::UNACKNOWLEDGED_JOBS_MAX;
use crate::{context::Context, trace::Trace};

/// One job to publish.
#[derive(Debug)]
pub(crate) struct OutgoingJob {
    pub(crate) lane: Lane,
    pub(crate) tier: Tier,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    pub(crate) id: JobId,
}

/// Publishes jobs.
#[derive(Debug)]
pub(crate) struct Publisher {
    context: Arc<Context>,
    /// Absent if each job is published by itself, with many unacknowledged at a time.
    batchers: Option<Batchers>,
}

/// Publish the jobs of all requests in batches, one batch for each stream at a time.
#[derive(Debug)]
struct Batchers {
    /// Into `NOTIFY`.
    here: Batcher,
    /// Into `OUTBOX`.
    elsewhere: Batcher,
}

impl Publisher {
    /// Publishes in batches if that is faster with this durability.
    pub(crate) fn new(context: Arc<Context>, durability: Durability) -> Self {
        let batchers = durability.wants_batches().then(|| Batchers {
            here: Batcher::new(context.js.clone()),
            elsewhere: Batcher::new(context.js.clone()),
        });
        Self { context, batchers }
    }

    /// Publishes jobs, and yields the result of each as soon as it is known.
    pub(super) fn store(&self, jobs: Vec<OutgoingJob>, trace: &Trace) -> impl Stream<Item = Result<Stored, NotStored>> {
        let context = &self.context;
        let messages = jobs.into_iter().map(move |mut job| {
            let span = start_span(context, &mut job, trace);
            let message = Message {
                subject: job.subject(),
                headers: job.headers,
                payload: job.payload,
            };
            (message, job.lane.region == context.here, span)
        });
        match &self.batchers {
            // Acknowledgements are received while messages are still being sent. Requests that first sent all their
            // messages would wait for each other forever, once none of them could send more unacknowledged messages.
            None => stream::iter(messages)
                .map(move |(message, _, span)| async move {
                    failpoint("gateway.before-publish");
                    finish(message.store(&context.js).await, span)
                })
                .buffer_unordered(UNACKNOWLEDGED_JOBS_MAX)
                .left_stream(),
            // All are queued before the first acknowledgement is awaited.
            Some(Batchers { here, elsewhere }) => messages
                .map(|(message, is_here, span)| {
                    failpoint("gateway.before-publish");
                    let stored = if is_here { here } else { elsewhere }.store(message);
                    async move { finish(stored.await, span) }
                })
                .collect::<FuturesUnordered<_>>()
                .right_stream(),
        }
    }
}

impl OutgoingJob {
    fn subject(&self) -> String {
        self.tier.subject(&self.lane.notify())
    }
}

fn finish(stored: Result<Stored, NotStored>, span: Option<SpanContext>) -> Result<Stored, NotStored> {
    failpoint("gateway.after-publish");
    if let Some(span) = span {
        end_span(&span, &stored);
    }
    stored
}

/// Adds the trace to the headers of the message. Returns the span of sending it, if the trace is recorded.
fn start_span(context: &Context, job: &mut OutgoingJob, trace: &Trace) -> Option<SpanContext> {
    match trace {
        Trace::None => None,
        Trace::Forwarded(traceparent) => {
            job.headers.insert(TRACEPARENT, traceparent.as_str());
            None
        }
        Trace::Recorded(parent) => Some(record_span(context, job, parent)),
    }
}

fn record_span(context: &Context, job: &mut OutgoingJob, parent: &SpanContext) -> SpanContext {
    let span = SpanBuilder::from_name(format!("send {NOTIFY_TEMPLATE}"))
        .with_kind(SpanKind::Producer)
        .with_attributes([
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", job.subject()),
            KeyValue::new("messaging.destination.template", NOTIFY_TEMPLATE),
            KeyValue::new("messaging.message.id", job.id.to_string()),
        ]);
    let span = parent.with_span(context.telemetry.tracer.build_with_context(span, parent));
    trace::inject(&span, &mut job.headers);
    span
}

fn end_span(span: &SpanContext, stored: &Result<Stored, NotStored>) {
    let span = span.span();
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
