//! Every metric: name, unit, meaning. Names follow the OpenTelemetry semantic conventions where they have one.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter},
};

use crate::{
    channel::Class,
    id::{AppId, Region},
    provider::Provider,
    receipt::State,
};

/// Bucket boundaries of the messaging conventions, in seconds, with finer ones below 5 ms.
const SECONDS: [f64; 17] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Bucket boundaries of feedback, in seconds: from a handset's answer to a mail server that gives up after days.
const FEEDBACK_SECONDS: [f64; 12] = [
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 432_000.0,
];

/// The instruments of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    accepted: Counter<u64>,
    refused: Counter<u64>,
    limited: Counter<u64>,
    published: Histogram<f64>,
    deliveries: Counter<u64>,
    attempts: Histogram<f64>,
    waited: Histogram<f64>,
    facts_awaited: Histogram<f64>,
    feedback: Histogram<f64>,
    followed: Counter<u64>,
    slow_routes: Gauge<u64>,
    duplicates: Counter<u64>,
    unreadable: Counter<u64>,
    in_flight: UpDownCounter<i64>,
    settled: Histogram<u64>,
    facts: Gauge<u64>,
    breakers: Gauge<u64>,
    endpoint_chosen: Gauge<u64>,
    endpoint_healthy: Gauge<u64>,
    endpoint_spare: Gauge<u64>,
    endpoint_connections: Gauge<u64>,
    endpoint_time: Gauge<f64>,
    endpoint_errors: Gauge<f64>,
    quota_granted: Gauge<u64>,
    quota_used: Counter<u64>,
    spent: Counter<u64>,
    dead_letters: Counter<u64>,
    stuck: Gauge<u64>,
    restoring: Gauge<u64>,
    expires_in: Gauge<f64>,
    spans: Counter<u64>,
}

/// Measurements of one endpoint of a provider.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// The provider that runs the endpoint.
    pub provider: Provider,
    /// `production` or `sandbox`; empty where the provider has one only.
    pub environment: &'static str,
    /// `host:port`.
    pub name: &'a str,
    /// Every reason to choose an endpoint, and whether this one was chosen for it.
    pub chosen_for: [(&'static str, bool); 4],
    /// Whether no attempt through it failed lately.
    pub is_healthy: bool,
    /// Whether a spare connection is kept to it.
    pub is_spare: bool,
    /// Open connections.
    pub connections: u64,
    /// Mean time to connect, in milliseconds.
    pub connect_ms: Option<f64>,
    /// Mean round trip of a ping, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// Mean time from a request to its answer, in milliseconds.
    pub answer_ms: Option<f64>,
    /// Mean share of pushes that failed, 0 to 1.
    pub errors: f64,
}

fn histogram(meter: &Meter, name: &'static str, what: &'static str, boundaries: &[f64]) -> Histogram<f64> {
    let histogram = meter.f64_histogram(name).with_unit("s").with_description(what);
    histogram.with_boundaries(boundaries.to_vec()).build()
}

fn duration(meter: &Meter, name: &'static str, what: &'static str) -> Gauge<f64> {
    meter.f64_gauge(name).with_unit("s").with_description(what).build()
}

impl Metrics {
    /// Makes the instruments.
    pub fn new(meter: &Meter) -> Self {
        let histogram = |name, what, boundaries| histogram(meter, name, what, boundaries);
        let seconds = |name, what| histogram(name, what, &SECONDS);
        let gauge = |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        let duration = |name, what| duration(meter, name, what);
        let count = |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        Self {
            accepted: count("peal.jobs.accepted", "Jobs stored by JetStream and answered with 202."),
            refused: count("peal.requests.refused", "Requests refused, by problem code."),
            limited: count(
                "peal.requests.limited",
                "Requests and intake messages beyond a quota, by limit and app.",
            ),
            published: seconds(
                "messaging.client.operation.duration",
                "From publish to JetStream's acknowledgement.",
            ),
            deliveries: count(
                "peal.deliveries",
                "Deliveries that reached a state, by provider and state.",
            ),
            attempts: seconds("peal.attempt.duration", "From a provider request to its answer."),
            waited: seconds("peal.queue.wait", "From acceptance to the start of processing."),
            facts_awaited: seconds(
                "peal.facts.wait",
                "From the pull of messages until the facts about their recipients were current; the longest of a batch.",
            ),
            feedback: histogram(
                "peal.feedback.latency",
                "From the sending of a message to what its provider reports, by provider and report.",
                &FEEDBACK_SECONDS,
            ),
            followed: count("peal.reports.followed", "Awaited reports, by provider and result."),
            slow_routes: gauge("peal.route.slow", "Apps that ask a provider last for slow reports."),
            duplicates: count(
                "peal.duplicates",
                "Jobs or deliveries that the ledger had already settled.",
            ),
            unreadable: count(
                "peal.unreadable",
                "Messages that became dead letters because they cannot be read.",
            ),
            in_flight: meter
                .i64_up_down_counter("peal.jobs.in_flight")
                .with_description("Jobs pulled and not yet settled.")
                .build(),
            settled: meter
                .u64_histogram("peal.settle.batch")
                .with_description("Jobs settled by one commit.")
                .with_boundaries(vec![1.0, 4.0, 16.0, 64.0, 256.0, 1024.0])
                .build(),
            facts: gauge("peal.cache.sequence", "Last fact applied to the cache."),
            dead_letters: count("peal.dead_letters", "Dead letters kept, by channel and reason."),
            breakers: gauge(
                "peal.breaker.open",
                "Whether nothing is sent because of failures in a row, by provider, credential and what failed.",
            ),
            quota_granted: gauge(
                "peal.quota.granted",
                "Messages a minute that this worker may send for a project.",
            ),
            quota_used: count("peal.quota.used", "Messages sent on a project's quota."),
            spent: count("peal.spend.segments", "Segments that caps allowed or held back."),
            endpoint_chosen: gauge(
                "peal.endpoint.chosen",
                "Whether connections go to this endpoint, by the reason for which it was chosen.",
            ),
            endpoint_healthy: gauge(
                "peal.endpoint.healthy",
                "Whether an address of this endpoint did not fail lately.",
            ),
            endpoint_spare: gauge(
                "peal.endpoint.spare",
                "Whether a spare connection is kept to this endpoint.",
            ),
            endpoint_connections: gauge("peal.endpoint.connections", "Open connections to this endpoint."),
            endpoint_time: duration(
                "peal.endpoint.time",
                "Mean time that this endpoint needs to connect, to return a ping, to answer a push.",
            ),
            endpoint_errors: meter
                .f64_gauge("peal.endpoint.errors")
                .with_description("Mean share of pushes to this endpoint that failed.")
                .build(),
            stuck: meter
                .u64_gauge("peal.trimming.standstill")
                .with_unit("s")
                .with_description(
                    "How long an unfinished message has kept finished work from being trimmed; 0 while it is trimmed.",
                )
                .build(),
            restoring: gauge(
                "peal.facts.restoring",
                "1 while the bucket of recipients is being restored and work waits; otherwise 0.",
            ),
            expires_in: duration(
                "peal.credential.expires_in",
                "Time until the first API key of an app, or the certificate of this process, ends; infinite without an end.",
            ),
            spans: count("peal.telemetry.spans", "Exported spans, by what became of them."),
        }
    }

    /// Jobs of one request were stored; it took `time` from the first publish to the last acknowledgement.
    pub fn accepted(&self, class: Class, jobs: u64, time: Duration) {
        self.accepted.add(jobs, &[KeyValue::new("class", class.as_str())]);
        self.published
            .record(time.as_secs_f64(), &[KeyValue::new("messaging.operation.name", "send")]);
    }

    /// A request was answered with the problem called `code`.
    pub fn refused(&self, code: &'static str) {
        self.refused.add(1, &[KeyValue::new("code", code)]);
    }

    /// Something was refused because `app` has used up the member `limit` of its quota. Apps are as many as the operator
    /// provisions; the exporter's own limit on attribute sets bounds them.
    pub fn limited(&self, limit: &'static str, app: &AppId) {
        let app = KeyValue::new("app", app.as_str().to_owned());
        self.limited.add(1, &[KeyValue::new("limit", limit), app]);
    }

    /// A text message of `app` with so many segments was counted against its caps, which allow it or hold it back.
    pub fn spent(&self, app: &AppId, segments: u32, is_allowed: bool) {
        let outcome = if is_allowed { "allowed" } else { "held" };
        let app = KeyValue::new("app", app.as_str().to_owned());
        self.spent
            .add(segments.into(), &[app, KeyValue::new("outcome", outcome)]);
    }

    /// Processing of a job began, `wait` after it was accepted.
    pub fn pulled(&self, class: Class, wait: Duration) {
        self.in_flight.add(1, &[]);
        self.waited
            .record(wait.as_secs_f64(), &[KeyValue::new("class", class.as_str())]);
    }

    /// A batch of pulled messages waited at most this long until the facts about their recipients were current.
    pub fn facts_awaited(&self, wait: Duration) {
        self.facts_awaited.record(wait.as_secs_f64(), &[]);
    }

    /// One group commit settled `jobs`.
    pub fn settled(&self, jobs: u64) {
        self.in_flight.add(-jobs.cast_signed(), &[]);
        self.settled.record(jobs, &[]);
    }

    /// A delivery reached `state`.
    pub fn delivery(&self, provider: Option<Provider>, state: State) {
        let provider = provider.map_or("none", Provider::as_str);
        self.deliveries.add(
            1,
            &[
                KeyValue::new("provider", provider),
                KeyValue::new("state", state.as_str()),
            ],
        );
    }

    /// A provider answered, or failed to, after `took`.
    pub fn attempt(&self, provider: Provider, outcome: &'static str, took: Duration) {
        let labels = [
            KeyValue::new("provider", provider.as_str()),
            KeyValue::new("outcome", outcome),
        ];
        self.attempts.record(took.as_secs_f64(), &labels);
    }

    /// Something was reported `latency` after the message was sent; `kind` is what happened.
    pub fn feedback(&self, provider: Option<Provider>, kind: &'static str, latency: Duration) {
        let labels = [
            KeyValue::new("provider", provider.map_or("none", Provider::as_str)),
            KeyValue::new("type", kind),
        ];
        self.feedback.record(latency.as_secs_f64(), &labels);
    }

    /// The report about a delivery by `provider` was awaited: it came `in_time`, is `late`, or is `unread` because it is not known.
    pub fn followed(&self, provider: Provider, result: &'static str) {
        let labels = [
            KeyValue::new("provider", provider.as_str()),
            KeyValue::new("result", result),
        ];
        self.followed.add(1, &labels);
    }

    /// `provider` is asked last for `apps`, because its reports have grown slow.
    pub fn slow_routes(&self, provider: Provider, apps: usize) {
        self.slow_routes
            .record(apps as u64, &[KeyValue::new("provider", provider.as_str())]);
    }

    /// The ledger had already settled a job or a delivery.
    pub fn duplicate(&self) {
        self.duplicates.add(1, &[]);
    }

    /// A message could not be read.
    pub fn unreadable(&self) {
        self.unreadable.add(1, &[]);
    }

    /// The cache has applied the facts up to `sequence`.
    pub fn cached(&self, sequence: u64) {
        self.facts.record(sequence, &[]);
    }

    /// A dead letter was kept.
    pub fn dead_letter(&self, channel: &str, reason: &str) {
        let labels = [
            KeyValue::new("channel", channel.to_owned()),
            KeyValue::new("reason", reason.to_owned()),
        ];
        self.dead_letters.add(1, &labels);
    }

    /// Whether the breaker of the credential `name` that watches `watched` is open.
    pub fn breaker(&self, provider: Provider, name: &str, watched: &'static str, is_open: bool) {
        let labels = [
            KeyValue::new("provider", provider.as_str()),
            KeyValue::new("credential", name.to_owned()),
            KeyValue::new("watched", watched),
        ];
        self.breakers.record(is_open.into(), &labels);
    }

    /// This worker may send `granted` messages a minute for `project`, and has sent `used` since the last report.
    pub fn quota(&self, project: &str, granted: u64, used: u64) {
        let labels = [KeyValue::new("credential", project.to_owned())];
        self.quota_granted.record(granted, &labels);
        self.quota_used.add(used, &labels);
    }

    /// Records the measurements of an endpoint.
    pub fn endpoint(&self, endpoint: &Endpoint<'_>) {
        let with = |more: Option<(&'static str, &'static str)>| {
            let labels = [
                KeyValue::new("provider", endpoint.provider.as_str()),
                KeyValue::new("environment", endpoint.environment),
                KeyValue::new("endpoint", endpoint.name.to_owned()),
            ];
            let more = more.map(|(key, value)| KeyValue::new(key, value));
            labels.into_iter().chain(more).collect::<Vec<_>>()
        };
        for (reason, chosen) in endpoint.chosen_for {
            self.endpoint_chosen
                .record(chosen.into(), &with(Some(("reason", reason))));
        }
        self.endpoint_healthy.record(endpoint.is_healthy.into(), &with(None));
        self.endpoint_spare.record(endpoint.is_spare.into(), &with(None));
        self.endpoint_connections.record(endpoint.connections, &with(None));
        self.endpoint_errors.record(endpoint.errors, &with(None));
        for (of, time) in [
            ("connect", endpoint.connect_ms),
            ("ping", endpoint.round_trip_ms),
            ("answer", endpoint.answer_ms),
        ] {
            if let Some(time) = time {
                self.endpoint_time.record(time / 1000.0, &with(Some(("of", of))));
            }
        }
    }

    /// The trimming of the stream of work of `region` has stood still for `time`.
    pub fn standstill(&self, region: &Region, time: Duration) {
        self.stuck
            .record(time.as_secs(), &[KeyValue::new("region", region.to_string())]);
    }

    /// Whether the bucket of recipients is being restored.
    pub fn restoring(&self, restoring: bool) {
        self.restoring.record(restoring.into(), &[]);
    }

    /// The first of the API keys of `app`, or without it the certificate with which this process connects, ends in `seconds`; infinite
    /// if there is no end.
    pub fn expires_in(&self, app: Option<&AppId>, seconds: f64) {
        let kind = KeyValue::new("kind", if app.is_some() { "api_key" } else { "certificate" });
        let app = app.map(|app| KeyValue::new("app", app.to_string()));
        self.expires_in
            .record(seconds, &[kind].into_iter().chain(app).collect::<Vec<_>>());
    }

    /// The exporter sent or lost spans.
    pub fn spans(&self, spans: u64, sent: bool) {
        self.spans
            .add(spans, &[KeyValue::new("result", if sent { "sent" } else { "lost" })]);
    }
}
