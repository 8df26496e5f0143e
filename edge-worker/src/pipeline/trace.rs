//! Creates the spans of a job after its outcome is known, because a failure is traced even if its trace is not sampled.
//!
//! Names and attributes follow OpenTelemetry's conventions for messaging (semantic conventions 1.44): `process` is the child
//! of the message's `send` and links to it, provider requests and settling are its CLIENT children. A retry is another
//! `process` under the same `send`. No token, address or content is ever an attribute.

use std::time::SystemTime;

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, Span, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::trace::SdkTracer;
use shared::{
    job::Job,
    nats::subject::NOTIFY_TEMPLATE,
    receipt::State,
    telemetry::trace::{self as context, KEEP},
};

use super::{attempt::AddressAttempt, context::Pipeline};
use crate::pulled::Pulled;

/// Whether a delivery in this state is traced even if its trace is not sampled.
pub(super) const fn is_failure(state: State) -> bool {
    matches!(state, State::Parked | State::Dead | State::Unknown | State::Rejected)
}

impl Pipeline {
    /// The `process` span of a job, if its trace is sampled, it failed (`state`), or this is not the first attempt.
    pub(super) fn process_span(&self, pulled: &Pulled, job: &Job, state: Option<State>) -> Option<Context> {
        let failure = state.filter(|state| is_failure(*state));
        let sampled = context::sampled(pulled.headers());
        let kept = job.attempt > 1 || pulled.tries > 1 || failure.is_some();
        if sampled.is_none() && !kept {
            return None;
        }
        let parent = sampled
            .or_else(|| context::remote(pulled.headers()))
            .unwrap_or_default();
        let tracer = &self.telemetry.tracer;
        let waited = pulled.pulled_at.duration_since(job.accepted_at).as_secs_f64().max(0.0);
        let mut attributes = vec![
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", pulled.subject().to_string()),
            KeyValue::new("messaging.destination.template", NOTIFY_TEMPLATE),
            KeyValue::new("messaging.message.id", job.id.to_string()),
            KeyValue::new("messaging.nats.stream.sequence", pulled.sequence.cast_signed()),
            KeyValue::new("messaging.nats.delivery_count", pulled.tries),
            KeyValue::new("peal.notification.id", job.notification.to_string()),
            KeyValue::new("peal.app", job.app.to_string()),
            KeyValue::new("peal.attempt", i64::from(job.attempt)),
            KeyValue::new("peal.queue.wait_s", waited),
        ];
        if kept {
            attributes.push(KeyValue::new(KEEP, true));
        }
        if let Some(by) = &self.by {
            attributes.push(KeyValue::new("peal.helped.region", self.region.to_string()));
            attributes.push(KeyValue::new("peal.helper.region", by.to_string()));
        }
        if let Some(state) = state {
            attributes.push(KeyValue::new("peal.state", state.as_str()));
        }
        let creation = parent.span().span_context().clone();
        let mut builder = tracer
            .span_builder(format!("process {NOTIFY_TEMPLATE}"))
            .with_kind(SpanKind::Consumer)
            .with_start_time(SystemTime::from(pulled.pulled_at))
            .with_attributes(attributes);
        if creation.is_valid() {
            builder = builder.with_links(vec![Link::new(creation, Vec::new(), 0)]);
        }
        let mut span = builder.start_with_context(tracer, &parent);
        if let Some(failure) = failure {
            span.set_attribute(KeyValue::new("error.type", failure.as_str()));
            span.set_status(Status::error(failure.as_str()));
        }
        Some(parent.with_span(span))
    }

    /// The CLIENT span of one provider request.
    pub(super) fn attempt_span(&self, process: &Context, job: &Job, attempt: &AddressAttempt, state: State) {
        let template = attempt.attempted.template;
        let (host, port) = attempt
            .attempted
            .endpoint
            .rsplit_once(':')
            .unwrap_or((&attempt.attempted.endpoint, ""));
        let mut attributes = vec![
            KeyValue::new("server.address", host.to_owned()),
            KeyValue::new("peal.provider", attempt.attempted.provider.as_str()),
            KeyValue::new("peal.address.id", attempt.address.id.to_string()),
            KeyValue::new("peal.delivery.id", job.delivery(attempt.address.id).to_string()),
            KeyValue::new("peal.outcome", attempt.attempted.outcome.as_str()),
            KeyValue::new("peal.state", state.as_str()),
        ];
        if let Some((method, url)) = template.split_once(' ') {
            attributes.push(KeyValue::new("http.request.method", method));
            attributes.push(KeyValue::new("url.template", url));
        }
        if let Ok(port) = port.parse::<i64>() {
            attributes.push(KeyValue::new("server.port", port));
        }
        if job.attempt > 1 {
            attributes.push(KeyValue::new("http.request.resend_count", i64::from(job.attempt - 1)));
        }
        if let Some(status) = attempt.attempted.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        let tracer = &self.telemetry.tracer;
        let mut span = tracer
            .span_builder(template)
            .with_kind(SpanKind::Client)
            .with_start_time(SystemTime::from(attempt.attempted.started_at))
            .with_attributes(attributes)
            .start_with_context(tracer, process);
        if state != State::Delivered {
            let error = attempt.attempted.status.map_or_else(
                || attempt.attempted.outcome.as_str().to_owned(),
                |status| status.to_string(),
            );
            span.set_attribute(KeyValue::new("error.type", error));
            span.set_status(Status::error(state.as_str()));
        }
        span.end_with_timestamp(attempt.attempted.ended_at.into());
    }
}

/// Ends a job's trace: adds the spans of publishing its receipt and of its acknowledgement, and ends `process`.
pub(super) fn settled(
    tracer: &SdkTracer,
    process: &Context,
    started: SystemTime,
    published: SystemTime,
    acknowledged: SystemTime,
) {
    let client = |name: &'static str, kind, operation: &'static str, from: SystemTime, to: SystemTime| {
        tracer
            .span_builder(name)
            .with_kind(kind)
            .with_start_time(from)
            .with_attributes([
                KeyValue::new("messaging.system", "nats"),
                KeyValue::new("messaging.operation.name", operation),
                KeyValue::new(
                    "messaging.operation.type",
                    if operation == "ack" { "settle" } else { "send" },
                ),
            ])
            .start_with_context(tracer, process)
            .end_with_timestamp(to);
    };
    client("send receipt.{region}", SpanKind::Producer, "send", started, published);
    client(
        "ack notify.{channel}.{region}",
        SpanKind::Client,
        "ack",
        published,
        acknowledged,
    );
    process.span().end_with_timestamp(acknowledged);
}
