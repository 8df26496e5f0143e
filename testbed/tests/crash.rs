//! Processes are killed with SIGKILL in the middle of 20,000 notifications; everything that was accepted must end in
//! exactly one final receipt an address, and no more may be doubled than was in flight.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use shared::nats::{
    connect, direct,
    topology::{self, Domain, Durability},
};
use testbed::{
    audit::Audit,
    nats::{self, SyncInterval},
    peal::{Peal, Plan},
    providers::LogMode,
};
use tokio::{sync::Mutex, task::JoinSet};

const NOTIFICATIONS: usize = 20_000;
/// Recipients of a request.
const FEW: usize = 20;
/// So many that the jobs of a request for one region are worth a batch.
const MANY: usize = 200;
const RECIPIENTS: usize = 400;
const IN_FLIGHT: usize = 128;

fn plan() -> Plan {
    Plan {
        regions: vec!["eu".into()],
        sample_ratio: 0.0,
        log: LogMode::Counting,
        worker_settings: format!("in_flight = {IN_FLIGHT}"),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    }
}

/// Two regions whose servers flush before they acknowledge, and gateways that share flushes.
fn single() -> Plan {
    Plan {
        regions: vec!["eu".into(), "us".into()],
        workers: 1,
        sync_interval: SyncInterval::Always,
        durability: Durability::Single,
        ..plan()
    }
}

async fn start(plan: Plan) -> Peal {
    let peal = Peal::start(plan).await.unwrap();
    let mut last = String::new();
    for number in 0..RECIPIENTS {
        let home = &peal.regions[number % peal.regions.len()].name;
        last = format!("r{number}");
        peal.register(&last, home, &[("apns", &format!("{number:064x}"))])
            .await
            .unwrap();
    }
    // Homes are learned in their order.
    peal.wait_known("eu", &last).await.unwrap();
    peal
}

/// Sends everything, repeating with the same event id whatever was not answered with 202, as a caller should.
async fn send(peal: Arc<Mutex<Peal>>, a_request: usize, sent: Arc<std::sync::atomic::AtomicUsize>) {
    let (url, key, http) = {
        let peal = peal.lock().await;
        (
            format!("{}/v1/notifications", peal.region("eu").gateway.url),
            peal.key.clone(),
            peal.http.clone(),
        )
    };
    let mut senders = JoinSet::new();
    for lane in 0..8 {
        let (url, key, http, sent) = (url.clone(), key.clone(), http.clone(), sent.clone());
        senders.spawn(async move {
            for request in (lane..NOTIFICATIONS / a_request).step_by(8) {
                let first = request * a_request;
                let recipients: Vec<String> = (first..first + a_request)
                    .map(|number| format!("r{}", number % RECIPIENTS))
                    .collect();
                let body = json!({
                    "event_id": format!("event-{request}"),
                    "to": { "recipients": recipients },
                    "push": { "title": "Hello" },
                });
                let begun = Instant::now();
                loop {
                    let answer = http.post(&url).bearer_auth(&key).json(&body).send().await;
                    match answer.map(|answer| answer.status().as_u16()) {
                        Ok(202) => break,
                        Ok(503) | Err(_) => {
                            assert!(begun.elapsed() < Duration::from_mins(1), "not accepted in a minute")
                        }
                        Ok(other) => panic!("answered with {other}"),
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                sent.fetch_add(a_request, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }
    senders.join_all().await;
}

async fn check(peal: &Peal, most_doubled: usize) {
    let audit = Audit::read_settled(peal, Duration::from_mins(2)).await.unwrap();
    let equation = audit.equation();
    let stats = peal.simulators.apns.stats();
    eprintln!(
        "{equation}; repeated {}; doubled {}",
        audit.report.repeated, stats.duplicates
    );
    assert_eq!(equation.accepted, NOTIFICATIONS, "{equation}\n{}", peal.complaints());
    assert!(equation.is_settled(), "{equation}\n{}", peal.complaints());
    assert_eq!(
        stats.delivered - stats.duplicates,
        NOTIFICATIONS as u64,
        "distinct pushes at the provider"
    );
    assert!(
        stats.duplicates <= most_doubled as u64,
        "{} doubled, at most {most_doubled} were in flight",
        stats.duplicates
    );
}

/// Whether any of the first jobs for the other region was stored in a batch.
async fn has_batches(peal: &Peal) -> bool {
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let found = direct::from(&js, &Domain::Here, topology::OUTBOX, "notify.>", 1, 1000).await;
    found
        .unwrap()
        .iter()
        .any(|job| job.headers.get("Nats-Batch-Id").is_some())
}

async fn wait_for(sent: &std::sync::atomic::AtomicUsize, count: usize) {
    while sent.load(std::sync::atomic::Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_worker_is_killed() {
    let peal = Arc::new(Mutex::new(start(plan()).await));
    let sent = Arc::default();
    let sending = tokio::spawn(send(peal.clone(), FEW, Arc::clone(&sent)));
    wait_for(&sent, NOTIFICATIONS / 3).await;
    {
        let mut peal = peal.lock().await;
        let program = peal.program();
        let worker = &mut peal.region_mut("eu").workers[0];
        worker.process.kill().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        worker.restart(&program).unwrap();
    }
    sending.await.unwrap();
    check(&*peal.lock().await, IN_FLIGHT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_server_is_killed() {
    the_nats_server_is_killed_in(plan(), FEW).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_server_is_killed_in_a_batch() {
    the_nats_server_is_killed_in(single(), MANY).await;
}

async fn the_nats_server_is_killed_in(plan: Plan, a_request: usize) {
    let peal = Arc::new(Mutex::new(start(plan).await));
    let sent = Arc::default();
    let sending = tokio::spawn(send(peal.clone(), a_request, Arc::clone(&sent)));
    wait_for(&sent, NOTIFICATIONS / 3).await;
    {
        let peal = peal.lock().await;
        peal.nats.region("eu").kill().unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        peal.nats.region("eu").restart().await.unwrap();
    }
    sending.await.unwrap();
    let peal = peal.lock().await;
    check(&peal, 2 * IN_FLIGHT).await;
    if a_request == MANY {
        assert!(has_batches(&peal).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_is_killed() {
    the_gateway_is_killed_in(plan(), FEW).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_is_killed_in_a_batch() {
    the_gateway_is_killed_in(single(), MANY).await;
}

async fn the_gateway_is_killed_in(plan: Plan, a_request: usize) {
    let peal = Arc::new(Mutex::new(start(plan).await));
    let sent = Arc::default();
    let sending = tokio::spawn(send(peal.clone(), a_request, Arc::clone(&sent)));
    wait_for(&sent, NOTIFICATIONS / 3).await;
    {
        let mut peal = peal.lock().await;
        let program = peal.program();
        let gateway = &mut peal.region_mut("eu").gateway;
        gateway.process.kill().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        gateway.restart(&program).unwrap();
    }
    sending.await.unwrap();
    let peal = peal.lock().await;
    check(&peal, 0).await;
    if a_request == MANY {
        assert!(has_batches(&peal).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_is_restarted_in_turn_and_nothing_is_doubled() {
    let peal = Arc::new(Mutex::new(start(plan()).await));
    let sent = Arc::default();
    let sending = tokio::spawn(send(peal.clone(), FEW, Arc::clone(&sent)));
    wait_for(&sent, NOTIFICATIONS / 4).await;
    {
        let mut peal = peal.lock().await;
        let (program, http) = (peal.program(), peal.http.clone());
        let region = peal.region_mut("eu");
        for restarted in region.workers.iter_mut().chain([&mut region.gateway]) {
            restarted.process.terminate(Duration::from_secs(15)).await.unwrap();
            restarted.restart(&program).unwrap();
            restarted.wait_ready(&http).await.unwrap();
        }
    }
    sending.await.unwrap();
    check(&*peal.lock().await, 0).await;
}
