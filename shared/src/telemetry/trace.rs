//! Trace context in NATS and HTTP headers, and which spans are kept.

use std::time::Duration;

use async_nats::HeaderMap;
use opentelemetry::{
    Context, KeyValue, TraceFlags, TraceId,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Link, SpanContext, SpanKind, TraceContextExt},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample, SpanData, SpanExporter},
};

use super::metric::Metrics;
use crate::nats::envelope;

/// A span with this attribute is kept even if its trace was not sampled: an attempt that failed.
pub const KEEP: &str = "peal.keep";

/// The W3C header that carries the trace.
pub const TRACEPARENT: &str = "traceparent";

/// The trace context of a message, if it is sampled. For an unsampled one only its flag is parsed.
pub fn sampled(headers: &HeaderMap) -> Option<Context> {
    let flags = envelope::header(headers, TRACEPARENT)?.rsplit('-').next()?;
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    sampled.then(|| remote(headers)).flatten()
}

/// The trace context of a message, sampled or not.
pub fn remote(headers: &HeaderMap) -> Option<Context> {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &NatsHeaders(headers));
    context.span().span_context().is_valid().then_some(context)
}

/// The trace context of a message, made sampled from here on: an attempt failed, and later ones must be seen.
pub fn from_now_on_sampled(headers: &HeaderMap) -> Option<Context> {
    let remote = remote(headers)?;
    let span = remote.span().span_context().clone();
    let flags = span.trace_flags() | TraceFlags::SAMPLED;
    let sampled = SpanContext::new(span.trace_id(), span.span_id(), flags, true, span.trace_state().clone());
    Some(Context::new().with_remote_span_context(sampled))
}

/// The trace context of an HTTP request.
pub fn remote_http(headers: &http::HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &HttpHeaders(headers))
}

/// Writes `context` into the headers of a message.
pub fn inject(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut NatsHeadersMut(headers));
}

/// The trace id of `context` as 32 hexadecimal digits, if it has one.
pub fn trace_id(context: &Context) -> Option<String> {
    let id = context.span().span_context().trace_id();
    (id != TraceId::INVALID).then(|| id.to_string())
}

struct NatsHeaders<'a>(&'a HeaderMap);

impl Extractor for NatsHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        envelope::header(self.0, key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(key, _)| key.as_ref()).collect()
    }
}

struct NatsHeadersMut<'a>(&'a mut HeaderMap);

impl Injector for NatsHeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}

struct HttpHeaders<'a>(&'a http::HeaderMap);

impl Extractor for HttpHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Follows the parent's decision; decides by ratio without a parent; always keeps failures.
#[derive(Debug, Clone)]
pub(super) struct KeepFailures(Sampler);

impl KeepFailures {
    pub(super) fn new(ratio: f64) -> Self {
        Self(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
    }
}

impl ShouldSample for KeepFailures {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let mut result = self.0.should_sample(parent, trace_id, name, kind, attributes, links);
        if attributes.iter().any(|attribute| attribute.key.as_str() == KEEP) {
            result.decision = SamplingDecision::RecordAndSample;
        }
        result
    }
}

/// Counts spans as sent or lost; the SDK's own counters call lost ones processed.
#[derive(Debug)]
pub(super) struct Counting<E> {
    inner: E,
    metrics: Metrics,
}

impl<E> Counting<E> {
    pub(super) fn new(inner: E, metrics: Metrics) -> Self {
        Self { inner, metrics }
    }
}

impl<E: SpanExporter> SpanExporter for Counting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        self.metrics.spans(spans, result.is_ok());
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
