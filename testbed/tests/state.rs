//! Processes and streams that are not in the state that a mesh needs: another mesh's key, nonsense among the receipts,
//! streams that were deleted.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::time::Duration;

use async_nats::jetstream;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use shared::nats::{audit::Break, connect, topology};
use testbed::{
    audit::Audit,
    nats,
    peal::{Peal, Plan},
};
use tokio::time::{sleep, timeout};

/// Longer than any step takes on a busy machine.
const WITHIN: Duration = Duration::from_secs(30);

async fn start() -> Peal {
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    peal
}

async fn send(peal: &Peal, event: &str) {
    let body = json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "Hello" } });
    peal.expect("POST", "eu", "/v1/notifications", Some(&body))
        .await
        .unwrap();
}

async fn delivered(peal: &Peal, count: u64) {
    let all = async {
        while peal.simulators.apns.stats().delivered < count {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(WITHIN, all).await.unwrap_or_else(|_| {
        let stats = peal.simulators.apns.stats();
        panic!("{} of {count} delivered\n{}", stats.delivered, peal.complaints())
    });
}

/// Asks `url` for its readiness until the answer is as `wanted`.
async fn readiness(peal: &Peal, url: &str, wanted: impl Fn(u16, &Value) -> bool) {
    let asking = async {
        loop {
            if let Ok(answer) = peal.http.get(format!("{url}/readyz")).send().await {
                let (status, body) = (answer.status().as_u16(), answer.json().await.unwrap());
                if wanted(status, &body) {
                    return;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(WITHIN, asking)
        .await
        .unwrap_or_else(|_| panic!("{url} is not as wanted\n{}", peal.complaints()));
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_with_another_mesh_key_are_not_ready_and_say_why() {
    let mut peal = start().await;
    let (program, other) = (peal.program(), STANDARD.encode([9; 32]));
    let other = [("PEAL_MESH_KEY", other.as_str())];
    let region = peal.region_mut("eu");
    for process in [&mut region.workers[0], &mut region.gateway] {
        process.process.kill().await.unwrap();
        process.restart_with(&program, &[], &other).unwrap();
    }
    let (worker, gateway) = (region.workers[0].url.clone(), region.gateway.url.clone());
    readiness(&peal, &worker, |status, body| {
        status == 503 && body["mesh_key"] == json!(false)
    })
    .await;
    readiness(&peal, &gateway, |status, body| {
        status == 503 && body["missing"] == json!(["mesh_key"])
    })
    .await;
    assert!(
        peal.complaints().contains("mesh_key opens none"),
        "{}",
        peal.complaints()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_among_the_receipts_is_a_finding_and_ends_no_audit() {
    let peal = start().await;
    send(&peal, "before").await;
    delivered(&peal, 1).await;
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    for nonsense in [r#"{"stream":"NOTIFY","seq":1}"#, "", "\u{0}"] {
        let stored = js.publish("receipt.eu.eu.shop", nonsense.into()).await.unwrap();
        stored.await.unwrap();
    }
    send(&peal, "after").await;
    delivered(&peal, 2).await;
    let report = Audit::read(&peal).await.unwrap().report;
    let found: Vec<_> = report.broken.iter().map(|broken| (broken.how, broken.count)).collect();
    assert_eq!(found, [(Break::Unreadable, 3)]);
    assert_eq!((report.total().accepted, report.total().lost), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn work_waits_until_a_worker_has_restored_the_facts() {
    let mut peal = start().await;
    send(&peal, "before").await;
    delivered(&peal, 1).await;
    // A worker that is killed before it has published the receipt gets the job again.
    Audit::read_settled(&peal, WITHIN).await.unwrap();
    // Nobody who holds the facts runs when they are deleted.
    let program = peal.program();
    peal.region_mut("eu").workers[0].process.kill().await.unwrap();
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let former = js.get_stream(topology::RECIPIENTS).await.unwrap();
    let former = former.cached_info().state.last_sequence;
    js.delete_stream(topology::RECIPIENTS).await.unwrap();
    let gateway = peal.region("eu").gateway.url.clone();
    let is_restoring = |status: u16, body: &Value| status == 503 && body["missing"] == json!(["facts"]);
    readiness(&peal, &gateway, is_restoring).await;
    assert!(begins(&js, topology::RECIPIENTS).await > former);
    let addresses = "/v1/recipients/ann/addresses";
    let (status, answer) = peal.ask("GET", "eu", addresses, None).await.unwrap();
    assert_eq!(status, 503, "an absent fact means nothing: {answer}");
    peal.register("bob", "eu", &[("apns", "bbbb")]).await.unwrap();
    send(&peal, "meanwhile").await;

    // A worker without a copy does not take the facts for none.
    let worker = &mut peal.region_mut("eu").workers[0];
    let (cache, aside) = (worker.data().join("cache.redb"), worker.data().join("aside"));
    std::fs::rename(&cache, &aside).unwrap();
    worker.restart(&program).unwrap();
    let url = worker.url.clone();
    readiness(&peal, &url, |_, body| body["cache"] == json!(true)).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(peal.simulators.apns.stats().delivered, 1);
    let report = Audit::read(&peal).await.unwrap().report;
    assert_eq!((report.total().accepted, report.total().in_flight), (2, 1));

    let worker = &mut peal.region_mut("eu").workers[0];
    worker.process.kill().await.unwrap();
    std::fs::rename(&aside, &cache).unwrap();
    worker.restart(&program).unwrap();
    readiness(&peal, &gateway, |status, _| status == 200).await;
    delivered(&peal, 2).await;
    for recipient in ["ann", "bob"] {
        let addresses = format!("/v1/recipients/{recipient}/addresses");
        let found = peal.expect("GET", "eu", &addresses, None).await.unwrap();
        assert_eq!(found["addresses"].as_array().map(Vec::len), Some(1), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_told_from_a_loss() {
    let mut peal = start().await;
    send(&peal, "before").await;
    delivered(&peal, 1).await;
    // Nobody works on this one before its stream is deleted.
    let program = peal.program();
    peal.region_mut("eu").workers[0].process.kill().await.unwrap();
    send(&peal, "deleted").await;
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let former = js
        .get_stream(topology::NOTIFY)
        .await
        .unwrap()
        .cached_info()
        .state
        .last_sequence;
    js.delete_stream(topology::NOTIFY).await.unwrap();
    let gateway = peal.region("eu").gateway.url.clone();
    readiness(&peal, &gateway, |status, body| {
        status == 503 && body["missing"] == json!(["streams"])
    })
    .await;
    readiness(&peal, &gateway, |status, _| status == 200).await;
    let first = begins(&js, topology::NOTIFY).await;
    assert!(first > former, "the sources of other regions would skip what comes now");
    peal.region_mut("eu").workers[0].restart(&program).unwrap();
    send(&peal, "after").await;
    delivered(&peal, 2).await;
    let report = Audit::read(&peal).await.unwrap().report;
    let found: Vec<_> = report.broken.iter().map(|broken| (broken.how, broken.count)).collect();
    assert_eq!(found, [(Break::StreamDeleted, 1)]);
    let recreated: Vec<_> = report.recreated.iter().map(|recreated| recreated.stream).collect();
    assert_eq!(recreated, [topology::NOTIFY]);
}

async fn begins(js: &jetstream::Context, stream: &str) -> u64 {
    let stream = js.get_stream(stream).await.unwrap();
    stream.cached_info().config.first_sequence.unwrap_or(1)
}
