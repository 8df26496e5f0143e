//! An OpenTelemetry collector in this process: receives OTLP over gRPC, keeps the spans, and prints a trace as a tree.

use std::{
    collections::HashMap,
    fmt::Write,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::stream;
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_client::TraceServiceClient,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// A running collector.
#[derive(Debug, Clone)]
pub struct Sink {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<CollectedSpan>>>,
    forward: Arc<Mutex<Option<Channel>>>,
}

/// One span and the service that sent it.
#[derive(Debug, Clone)]
pub struct CollectedSpan {
    /// `service.name`.
    pub service: String,
    /// `cloud.region`.
    pub region: String,
    /// The span.
    pub span: Span,
}

impl CollectedSpan {
    /// The trace id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// The value of an attribute as text; `None` if it is absent, or an array or map.
    pub fn attribute(&self, key: &str) -> Option<String> {
        text(&self.span.attributes, key)
    }

    /// The time from its start to its end.
    pub fn lasted(&self) -> Duration {
        Duration::from_nanos(
            self.span
                .end_time_unix_nano
                .saturating_sub(self.span.start_time_unix_nano),
        )
    }
}

impl Sink {
    /// Listens on a free port of the loopback interface.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let spans = Arc::new(Mutex::new(Vec::new()));
        let forward = Arc::new(Mutex::new(None));
        let service = Collector {
            spans: spans.clone(),
            forward: forward.clone(),
        };
        let incoming = stream::unfold(listener, async |listener| {
            let accepted = listener.accept().await.map(|(socket, _)| socket);
            Some((accepted, listener))
        });
        tokio::spawn(async move {
            let served = Server::builder()
                .add_service(TraceServiceServer::new(service.clone()).max_decoding_message_size(64 << 20))
                .add_service(MetricsServiceServer::new(service))
                .serve_with_incoming(incoming)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the collector failed");
            }
        });
        Ok(Self {
            address,
            spans,
            forward,
        })
    }

    /// The value for the setting `otlp_endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Also forwards all spans to another collector. Failures to forward are ignored.
    pub fn forward_to(&self, endpoint: &'static str) {
        let channel = Endpoint::from_static(endpoint).connect_lazy();
        *self.forward.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<CollectedSpan> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The spans of one trace, as soon as `complete` accepts them, or else after `within`.
    pub async fn trace(
        &self,
        id: &str,
        within: Duration,
        complete: impl Fn(&[CollectedSpan]) -> bool,
    ) -> Vec<CollectedSpan> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let mut trace = self.spans();
            trace.retain(|seen| seen.trace_id() == id);
            if complete(&trace) || tokio::time::Instant::now() >= deadline {
                return trace;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[derive(Debug, Clone)]
struct Collector {
    spans: Arc<Mutex<Vec<CollectedSpan>>>,
    forward: Arc<Mutex<Option<Channel>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        let forward = self.forward.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(channel) = forward {
            let copy = request.clone();
            tokio::spawn(async move {
                if let Err(error) = TraceServiceClient::new(channel).export(copy).await {
                    tracing::debug!(%error, "cannot forward spans");
                }
            });
        }
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.resource_spans {
            let attributes = resource
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default();
            let service = text(&attributes, "service.name").unwrap_or_default();
            let region = text(&attributes, "cloud.region").unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(CollectedSpan {
                    service: service.clone(),
                    region: region.clone(),
                    span,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Formats a trace as an indented tree, children in order of their start, with each span's service, region and duration.
pub fn tree(trace: &[CollectedSpan]) -> String {
    let mut children: HashMap<&[u8], Vec<&CollectedSpan>> = HashMap::new();
    let is_in_trace = |id: &[u8]| trace.iter().any(|seen| seen.span.span_id == id);
    let mut roots = Vec::new();
    for seen in trace {
        let parent = seen.span.parent_span_id.as_slice();
        if parent.is_empty() || !is_in_trace(parent) {
            roots.push(seen)
        } else {
            children.entry(parent).or_default().push(seen)
        }
    }
    let began = trace
        .iter()
        .map(|seen| seen.span.start_time_unix_nano)
        .min()
        .unwrap_or_default();
    let mut text = String::new();
    roots.sort_by_key(|seen| seen.span.start_time_unix_nano);
    for root in roots {
        branch(&mut text, root, &mut children, 0, began);
    }
    text
}

fn branch<'a>(
    text: &mut String,
    seen: &'a CollectedSpan,
    children: &mut HashMap<&'a [u8], Vec<&'a CollectedSpan>>,
    depth: usize,
    began: u64,
) {
    let name = format!("{}{}", "  ".repeat(depth), seen.span.name);
    let origin = format!("{} {}", seen.service.trim_start_matches("peal-"), seen.region);
    let at = Duration::from_nanos(seen.span.start_time_unix_nano.saturating_sub(began));
    let status = seen
        .attribute("http.response.status_code")
        .map(|code| format!(" {code}"))
        .unwrap_or_default();
    let links = if seen.span.links.is_empty() {
        String::new()
    } else {
        format!(" ({} link)", seen.span.links.len())
    };
    let error = seen
        .attribute("error.type")
        .map(|error| format!(" !{error}"))
        .unwrap_or_default();
    writeln!(
        text,
        "  {name:<56} {origin:<16} +{at:<10.1?} {:<9.1?}{status}{error}{links}",
        seen.lasted()
    )
    .expect("writing to a String never fails");
    let mut below = children.remove(seen.span.span_id.as_slice()).unwrap_or_default();
    below.sort_by_key(|seen| seen.span.start_time_unix_nano);
    for child in below {
        branch(text, child, children, depth + 1, began);
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(truth) => Some(truth.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Formats bytes as ids are written, two hexadecimal digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String never fails");
        text
    })
}
