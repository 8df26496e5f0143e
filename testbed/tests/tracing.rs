//! One trace shows the whole path of a notification: checked in the spans that a collector receives, with parents and links.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::time::Duration;

use serde_json::json;
use testbed::{
    nats,
    peal::{Peal, Plan},
    providers::{Answer, Rule},
    sink::{CollectedSpan, Sink, hex, tree},
};

const TIMEOUT: Duration = Duration::from_secs(30);

async fn start(sample_ratio: f64) -> (Sink, Peal) {
    let sink = Sink::start().await.unwrap();
    let plan = Plan {
        workers: 1,
        otlp_endpoint: Some(sink.endpoint()),
        sample_ratio,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    (sink, peal)
}

async fn post(peal: &Peal, recipient: &str, traceparent: Option<&str>) {
    let url = format!("{}/v1/notifications", peal.region("eu").gateway.url);
    let body = json!({ "to": { "recipients": [recipient] }, "push": { "title": "Hello" } });
    let mut request = peal.http.post(url).bearer_auth(&peal.key).json(&body);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    assert_eq!(request.send().await.unwrap().status(), 202);
}

fn named<'a>(trace: &'a [CollectedSpan], start: &str) -> &'a CollectedSpan {
    trace
        .iter()
        .find(|seen| seen.span.name.starts_with(start))
        .unwrap_or_else(|| panic!("no {start} in\n{}", tree(trace)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_goes_through_two_regions_to_the_device() {
    let (sink, peal) = start(0.0).await;
    peal.register("bob", "us", &[("apns", "beef")]).await.unwrap();
    peal.wait_known("eu", "bob").await.unwrap();
    let (id, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    post(&peal, "bob", Some(&format!("00-{id}-{caller}-01"))).await;
    let trace = sink.trace(id, TIMEOUT, |trace| trace.len() >= 6).await;

    let request = named(&trace, "POST /v1/notifications");
    assert_eq!(
        hex(&request.span.parent_span_id),
        caller,
        "the caller's span is the parent"
    );
    assert_eq!(
        (request.service.as_str(), request.region.as_str()),
        ("peal-gateway", "eu")
    );
    let send = named(&trace, "send notify");
    assert_eq!(send.span.parent_span_id, request.span.span_id);
    let process = named(&trace, "process notify");
    assert_eq!(
        (process.service.as_str(), process.region.as_str()),
        ("peal-edge-worker", "us")
    );
    assert_eq!(process.span.parent_span_id, send.span.span_id);
    assert_eq!(
        process.span.links.len(),
        1,
        "it has a link too, as the messaging conventions require"
    );
    assert_eq!(process.span.links[0].span_id, send.span.span_id);
    assert_eq!(hex(&process.span.links[0].trace_id), id);
    for below in ["POST /3/device/{token}", "send receipt", "ack notify"] {
        assert_eq!(
            named(&trace, below).span.parent_span_id,
            process.span.span_id,
            "{below}"
        );
    }
    assert_eq!(
        named(&trace, "POST /3/device")
            .attribute("http.response.status_code")
            .as_deref(),
        Some("200")
    );
    assert_eq!(trace.len(), 6, "{}", tree(&trace));
    let text = format!("{trace:?}");
    assert!(
        !text.contains("beef") && !text.contains("Hello"),
        "tokens and content stay out of traces"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsampled_notification_is_traced_only_if_it_fails_and_its_attempts_share_a_parent() {
    let (sink, peal) = start(0.0).await;
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    peal.register("eve", "eu", &[("apns", "eeee")]).await.unwrap();
    peal.simulators
        .apns
        .script()
        .add(
            Rule::token("eeee")
                .times(1)
                .answer(Answer::reason("ServiceUnavailable")),
        )
        .unwrap();
    post(&peal, "ann", None).await;
    let (id, caller) = ("11111111111111111111111111111111", "2222222222222222");
    post(&peal, "eve", Some(&format!("00-{id}-{caller}-00"))).await;
    let trace = sink
        .trace(id, TIMEOUT, |trace| {
            trace
                .iter()
                .filter(|seen| seen.span.name.starts_with("process"))
                .count()
                >= 2
        })
        .await;
    let attempts: Vec<&CollectedSpan> = trace
        .iter()
        .filter(|seen| seen.span.name.starts_with("process"))
        .collect();
    assert_eq!(attempts.len(), 2, "both attempts are kept\n{}", tree(&trace));
    assert_eq!(
        attempts[0].span.parent_span_id, attempts[1].span.parent_span_id,
        "both have the same parent"
    );
    let count = |key: &str| {
        attempts
            .iter()
            .filter_map(|seen| seen.attribute(key))
            .collect::<Vec<_>>()
    };
    assert_eq!(count("peal.attempt"), ["1", "2"]);
    assert_eq!(count("error.type"), ["parked"]);
    assert!(
        sink.spans().iter().all(|seen| seen.trace_id() == id),
        "an unsampled notification that is delivered leaves no span"
    );
}
