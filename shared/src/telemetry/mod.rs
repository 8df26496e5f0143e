//! Traces, metrics and logs of one process.

pub mod metric;
pub mod trace;

use std::time::Duration;

use opentelemetry::{KeyValue, global, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider},
};
use prometheus::Encoder;
use serde::Deserialize;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{id::Region, telemetry::metric::Metrics};

/// Where telemetry is sent, and how much of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// OTLP/gRPC endpoint of a collector, such as `http://127.0.0.1:4317`; if absent, no spans are made.
    #[serde(default)]
    pub otlp_endpoint: Option<String>,
    /// Share of notifications that are traced if the caller did not decide, 0 to 1. Failed attempts are always traced.
    pub sample_ratio: f64,
    /// Log filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
}

/// The telemetry of a process; ends with [`Telemetry::stop`].
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Creates spans.
    pub tracer: SdkTracer,
    /// The instruments of the process.
    pub metrics: Metrics,
    spans: SdkTracerProvider,
    meters: SdkMeterProvider,
    registry: prometheus::Registry,
    exports: bool,
}

/// Telemetry that cannot be set up; names the setting or exporter.
#[derive(Debug, thiserror::Error)]
#[error("telemetry: {0}")]
pub struct BadTelemetry(String);

impl Telemetry {
    /// Starts traces and metrics for `service` in `region`. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the endpoint is not a URL.
    pub fn start(settings: &Settings, service: &str, instance: &str, region: &Region) -> Result<Self, BadTelemetry> {
        let resource = Resource::builder()
            .with_service_name(service.to_owned())
            .with_attributes([
                KeyValue::new("service.namespace", "peal"),
                KeyValue::new("service.instance.id", instance.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("cloud.region", region.to_string()),
            ])
            .build();
        let bad = |error: &dyn std::fmt::Display| BadTelemetry(error.to_string());
        let registry = prometheus::Registry::new();
        let prometheus = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .build()
            .map_err(|error| bad(&error))?;
        let mut meters = SdkMeterProvider::builder()
            .with_resource(resource.clone())
            .with_reader(prometheus);
        let mut spans = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(trace::KeepFailures::new(settings.sample_ratio));
        if let Some(endpoint) = &settings.otlp_endpoint {
            let exporter = opentelemetry_otlp::MetricExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .build()
                .map_err(|error| bad(&error))?;
            meters = meters.with_reader(
                PeriodicReader::builder(exporter)
                    .with_interval(Duration::from_secs(10))
                    .build(),
            );
        }
        let meters = meters.build();
        let metrics = Metrics::new(&opentelemetry::metrics::MeterProvider::meter(&meters, "peal"));
        if let Some(endpoint) = &settings.otlp_endpoint {
            let exporter = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .build()
                .map_err(|error| bad(&error))?;
            let counting = trace::Counting::new(exporter, metrics.clone());
            let batches = BatchConfigBuilder::default()
                .with_max_queue_size(16_384)
                .with_max_export_batch_size(2048)
                .with_scheduled_delay(Duration::from_millis(500))
                .build();
            spans = spans.with_span_processor(BatchSpanProcessor::builder(counting).with_batch_config(batches).build());
        }
        let spans = spans.build();
        Ok(Self {
            tracer: spans.tracer("peal"),
            metrics,
            spans,
            meters,
            exports: settings.otlp_endpoint.is_some(),
            registry,
        })
    }

    /// Whether spans are exported. If not, a span made here would only break the chain from the caller to the next process
    /// that exports.
    pub fn exports_spans(&self) -> bool {
        self.exports
    }

    /// The metrics in Prometheus' text format.
    pub fn prometheus(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = prometheus::TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Sends what is still queued and stops. Takes at most the exporters' time-outs.
    pub async fn stop(self) {
        let ended = tokio::task::spawn_blocking(move || (self.spans.shutdown(), self.meters.shutdown())).await;
        match ended {
            Ok((Ok(()), Ok(()))) => {}
            Ok((spans, meters)) => tracing::warn!(?spans, ?meters, "telemetry was not sent completely"),
            Err(error) => tracing::warn!(%error, "telemetry was not sent completely"),
        }
    }
}

/// Starts logging to standard error. Call once in a process.
///
/// # Errors
/// When `settings.log` is not a filter, or logging was started before.
pub fn start_logs(settings: &Settings) -> Result<(), BadTelemetry> {
    let filter = EnvFilter::try_new(&settings.log).map_err(|error| BadTelemetry(format!("log: {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = if settings.log_json {
        registry
            .with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr))
            .try_init()
    } else {
        registry
            .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
            .try_init()
    };
    global::set_text_map_propagator(opentelemetry_sdk::propagation::TraceContextPropagator::new());
    started.map_err(|error| BadTelemetry(error.to_string()))
}
