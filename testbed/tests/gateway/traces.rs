//! The spans that the gateway exports.

use std::time::Duration;

use opentelemetry::trace::SpanId;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use testbed::sink::{CollectedSpan, Sink};

use crate::rig::{Answer, Rig, send};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER_SPAN_ID: &str = "b7ad6b7169203331";

async fn traced(rig: &Rig, recipients: &[&str]) -> Answer {
    let body =
        json!({ "event_id": "secret-event", "to": { "recipients": recipients }, "push": { "title": "secret-title" } });
    let request = rig
        .request("POST", "/v1/notifications")
        .bearer_auth(&rig.key)
        .json(&body);
    send(request.header("traceparent", format!("00-{TRACE_ID}-{CALLER_SPAN_ID}-01"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_with_one_child_for_each_message() {
    let sink = Sink::start().await.unwrap();
    let rig = Rig::with(|settings| settings.telemetry.otlp_endpoint = Some(sink.endpoint())).await;
    let answer = traced(&rig, &["secret-ann", "secret-bob"]).await;
    assert_eq!((answer.status, &answer.body["trace_id"]), (202, &json!(TRACE_ID)));
    let message = rig.js.get_stream("NOTIFY").await.unwrap().direct_get(1).await.unwrap();
    let parent = message.headers.get("traceparent").unwrap().to_string();
    let refused = traced(&rig, &[]).await;
    assert_eq!(refused.body["trace_id"], TRACE_ID);
    let path = "/v1/recipients/secret-ann/addresses";
    let body = json!({ "provider": "fcm", "token": "secret-token" });
    let request = rig.request("POST", path).bearer_auth(&rig.key).json(&body);
    send(request.header("traceparent", format!("00-{TRACE_ID}-{CALLER_SPAN_ID}-01"))).await;

    let spans = sink
        .trace(TRACE_ID, Duration::from_secs(20), |spans| spans.len() >= 5)
        .await;
    let named = |name: &str| spans.iter().filter(|seen| seen.span.name == name).collect::<Vec<_>>();
    let server = named("POST /v1/notifications");
    assert_eq!(server.len(), 2, "{spans:#?}");
    let status = |seen: &&CollectedSpan| seen.attribute("http.response.status_code");
    let accepted = server
        .iter()
        .find(|seen| status(seen).as_deref() == Some("202"))
        .unwrap();
    let refused = server
        .iter()
        .find(|seen| status(seen).as_deref() == Some("422"))
        .unwrap();
    assert_eq!(refused.attribute("error.type").as_deref(), Some("validation_failed"));
    assert_eq!(accepted.span.kind(), SpanKind::Server);
    assert_eq!(hex(&accepted.span.parent_span_id), CALLER_SPAN_ID);
    assert_eq!(accepted.attribute("http.route").as_deref(), Some("/v1/notifications"));
    assert_eq!(named("POST /v1/recipients/{recipient_id}/addresses").len(), 1);

    let sends = named("send notify.{channel}.{region}");
    assert_eq!(sends.len(), 2);
    let parents: Vec<_> = sends
        .iter()
        .map(|seen| format!("00-{TRACE_ID}-{}-01", hex(&seen.span.span_id)))
        .collect();
    assert!(
        parents.contains(&parent),
        "the message names the span of sending it as its parent"
    );
    for seen in sends {
        assert_eq!(seen.span.kind(), SpanKind::Producer);
        assert_eq!(seen.span.parent_span_id, accepted.span.span_id);
        for (key, value) in [
            ("messaging.system", "nats"),
            ("messaging.operation.name", "send"),
            ("messaging.operation.type", "send"),
            ("messaging.destination.name", "notify.push.eu.normal.shop"),
            ("messaging.destination.template", "notify.{channel}.{region}"),
            ("messaging.nats.stream", "NOTIFY"),
        ] {
            assert_eq!(seen.attribute(key).as_deref(), Some(value), "{key}");
        }
        for key in ["messaging.message.id", "messaging.nats.stream.sequence"] {
            assert!(seen.attribute(key).is_some(), "{key}");
        }
    }
    assert!(
        !format!("{spans:?}").contains("secret"),
        "a span contains a name, a token or content"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unsampled_requests_make_no_spans() {
    let sink = Sink::start().await.unwrap();
    let rig = Rig::with(|settings| settings.telemetry.otlp_endpoint = Some(sink.endpoint())).await;
    assert_eq!(rig.notify("e1", &["ann"]).await.status, 202);
    let body = json!({ "to": { "recipients": ["bob"] }, "push": { "title": "Hi" } });
    let request = rig
        .request("POST", "/v1/notifications")
        .bearer_auth(&rig.key)
        .json(&body);
    send(request.header("traceparent", format!("00-{TRACE_ID}-{CALLER_SPAN_ID}-00"))).await;
    let stored = async |sequence| {
        rig.js
            .get_stream("NOTIFY")
            .await
            .unwrap()
            .direct_get(sequence)
            .await
            .unwrap()
            .headers
    };
    assert_eq!(stored(1).await.get("traceparent"), None);
    let forwarded = stored(2).await;
    assert_eq!(
        forwarded.get("traceparent").unwrap().as_str(),
        format!("00-{TRACE_ID}-{CALLER_SPAN_ID}-00"),
        "the trace context is passed on unchanged"
    );
    traced(&rig, &["last"]).await;
    let spans = sink
        .trace(TRACE_ID, Duration::from_secs(20), |spans| spans.len() >= 2)
        .await;
    assert_eq!(spans.len(), 2);
    assert_eq!(sink.spans().len(), 2, "only the sampled request has spans");
}

fn hex(id: &[u8]) -> String {
    SpanId::from_bytes(id.try_into().unwrap()).to_string()
}
