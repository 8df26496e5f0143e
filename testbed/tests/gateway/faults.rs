//! Servers that are full or gone, and a gateway that is overloaded or shuts down.

use std::{future::ready, time::Duration};

use async_nats::jetstream;
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use shared::{
    lifecycle::End,
    nats::{
        follow::{self, Start},
        topology,
    },
};
use testbed::nats::Server;
use tokio::{
    runtime::Handle,
    task::block_in_place,
    time::{sleep, timeout},
};

use crate::rig::{Answer, Rig, eventually};

async fn readiness(rig: &Rig) -> (u16, Value) {
    let answer = rig.call("GET", "/readyz", None, None).await;
    (answer.status, answer.body)
}

fn eu(rig: &Rig) -> &Server {
    rig.nats.region("eu")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_with_the_time_to_retry() {
    let rig = Rig::with(|settings| settings.mesh.max_bytes = 20_000).await;
    let mut accepted = 0;
    let refused = loop {
        let answer = rig.notify(&format!("e{accepted}"), &["ann"]).await;
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 1000, "the stream does not fill");
    };
    assert_eq!((refused.status, refused.code()), (503, "stream_full"), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(refused.body["event_id"], format!("e{accepted}"));
    assert_eq!(
        rig.count(topology::NOTIFY).await,
        accepted,
        "exactly the accepted jobs are stored"
    );

    // With room again, the same event is accepted.
    rig.js
        .get_stream(topology::NOTIFY)
        .await
        .unwrap()
        .purge()
        .await
        .unwrap();
    let again = rig.notify(&format!("e{accepted}"), &["ann"]).await;
    assert_eq!((again.status, &again.body["duplicates"]), (202, &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_stored_in_part_is_refused_and_completed_by_repeating_it() {
    let rig = Rig::with(|settings| settings.mesh.max_bytes = 5000).await;
    let names: Vec<String> = (0..100).map(|n| format!("r{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let refused = rig.notify("e1", &names).await;
    assert_eq!((refused.status, refused.code()), (503, "stream_full"), "{refused:?}");
    let stored = rig.count(topology::NOTIFY).await;
    assert!((1..100).contains(&stored), "{stored}");
    assert!(
        refused.body["detail"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{stored} of 100 jobs are stored"))
    );
    rig.lift_limit().await;
    let again = rig.notify("e1", &names).await;
    assert_eq!(
        (again.status, &again.body["duplicates"]),
        (202, &json!(stored)),
        "{again:?}"
    );
    assert_eq!(rig.count(topology::NOTIFY).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_a_gateway_is_not_ready_refuses_and_recovers() {
    let rig = Rig::with(|settings| settings.limits.request_timeout_s = 3).await;
    eventually("the gateway is ready", async || {
        readiness(&rig).await == (200, json!({ "ready": true, "missing": [] }))
    })
    .await;
    assert_eq!(rig.call("GET", "/healthz", None, None).await.status, 200);
    eu(&rig).kill().unwrap();
    eventually("the gateway is not ready", async || {
        readiness(&rig).await == (503, json!({ "ready": false, "missing": ["nats"] }))
    })
    .await;
    assert_eq!(rig.call("GET", "/healthz", None, None).await.status, 200);
    let refused = rig.notify("e1", &["ann"]).await;
    assert_eq!(refused.status, 503);
    assert!(
        ["timeout", "stream_unavailable"].contains(&refused.code()),
        "{refused:?}"
    );
    assert!(refused.header("retry-after").is_some());
    eu(&rig).restart().await.unwrap();
    eventually("the gateway is ready again", async || readiness(&rig).await.0 == 200).await;
    // The refused request may have been stored when the connection came back; repeating it is safe either way.
    assert_eq!(rig.notify("e1", &["ann"]).await.status, 202);
    assert_eq!(rig.count(topology::NOTIFY).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_completely_across_a_restart_of_its_server() {
    const MESSAGES: u64 = 6000;
    let rig = Rig::start().await;
    // More than the server sends without flow control.
    let body = Bytes::from(vec![0; 1024]);
    let stream = jetstream::stream::Config {
        name: "LONG".to_owned(),
        subjects: vec!["long".to_owned()],
        ..Default::default()
    };
    rig.js.create_stream(stream).await.unwrap();
    for _ in 1..MESSAGES {
        rig.js.client().publish("long", body.clone()).await.unwrap();
    }
    rig.js.publish("long", body).await.unwrap().await.unwrap();
    let mut seen = Vec::new();
    let last = follow::read(&rig.js, "LONG", ">", Start::Sequence(1), |entry| {
        seen.push(entry.sequence);
        if entry.sequence == 100 {
            let restarted = async {
                eu(&rig).kill()?;
                eu(&rig).restart().await
            };
            block_in_place(|| Handle::current().block_on(restarted)).unwrap();
        }
    });
    assert_eq!(last.await.unwrap(), Some(MESSAGES));
    assert!(seen.into_iter().eq(1..=MESSAGES), "every message once and in order");
    let missing = follow::read(&rig.js, "NOWHERE", ">", Start::Sequence(1), |_| ()).await;
    assert!(missing.unwrap_err().to_string().contains("NOWHERE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_server_does_not_store_is_not_ready() {
    let rig = Rig::start().await;
    eventually("the gateway is ready", async || readiness(&rig).await.0 == 200).await;
    let stream = rig.js.get_stream(topology::IDEMPOTENCY).await.unwrap();
    let config = stream.cached_info().config.clone();
    let refusing = jetstream::stream::Config {
        max_message_size: 100,
        ..config.clone()
    };
    rig.js.update_stream(refusing).await.unwrap();
    eventually("the gateway notices that nothing is stored", async || {
        readiness(&rig).await == (503, json!({ "ready": false, "missing": ["storage"] }))
    })
    .await;
    rig.js.update_stream(config).await.unwrap();
    eventually("the gateway is ready again", async || readiness(&rig).await.0 == 200).await;
    let stored = rig.count(topology::IDEMPOTENCY).await;
    assert_eq!(stored, 1, "only the newest probe is kept");
}

/// Pauses the nats-server and sends requests until one is refused, so that those before it occupy all places.
/// Returns their pending answers, and how many were accepted before the server stood still.
async fn fill_all_places(rig: &Rig) -> (FuturesUnordered<impl Future<Output = Answer>>, usize) {
    eu(rig).pause().unwrap();
    let mut accepted = 0;
    let mut held = FuturesUnordered::new();
    for n in 0..20 {
        held.push(async move { rig.notify(&format!("e{n}"), &["ann"]).await });
        match timeout(Duration::from_millis(200), held.next()).await {
            Ok(Some(answer)) if answer.status == 202 => accepted += 1,
            Ok(Some(refused)) => {
                assert_eq!((refused.status, refused.code()), (503, "overloaded"), "{refused:?}");
                return (held, accepted);
            }
            _ => {}
        }
    }
    panic!("no request is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_limit_are_refused_at_once() {
    let rig = Rig::with(|settings| settings.limits.in_flight = 2).await;
    let (held, before) = fill_all_places(&rig).await;
    eu(&rig).resume().unwrap();
    let accepted = held.filter(|answer| ready(answer.status == 202)).count().await;
    assert!(accepted >= 2, "{accepted} of the two that had a place were accepted");
    assert_eq!(rig.count(topology::NOTIFY).await, (before + accepted) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_flight_at_shutdown_is_answered() {
    let rig = Rig::with(|settings| settings.limits.in_flight = 1).await;
    let (held, before) = fill_all_places(&rig).await;
    let resume = async {
        sleep(Duration::from_millis(300)).await;
        eu(&rig).resume().unwrap();
    };
    let (end, (), answers) = tokio::join!(
        rig.lifecycle.finish_within(Duration::from_secs(10)),
        resume,
        held.collect::<Vec<_>>()
    );
    assert_eq!(end, End::Clean);
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    assert!(accepted >= 1, "{answers:?}");
    assert_eq!(rig.count(topology::NOTIFY).await, (before + accepted) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_jobs_and_refused_requests_are_counted() {
    let rig = Rig::start().await;
    rig.notify("e1", &["ann", "bob"]).await;
    rig.ask("POST", "/v1/notifications", json!({})).await;
    let page = rig.call("GET", "/metrics", None, None).await.body;
    let page = page.as_str().unwrap();
    let value = |name: &str, label: &str| {
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(label));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert_eq!(value("peal_jobs_accepted", "class=\"normal\""), Some(2.0), "{page}");
    assert_eq!(
        value("peal_requests_refused", "code=\"validation_failed\""),
        Some(1.0),
        "{page}"
    );
}
