//! Processes are killed with SIGKILL in the middle of 20,000 notifications. Each accepted one must end in exactly one final
//! receipt per address, and at most those in flight may be sent twice.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use shared::{
    nats::{
        connect, direct,
        topology::{self, Domain, Durability},
    },
    receipt::State,
};
use testbed::{
    audit::Audit,
    nats::{self, SyncInterval},
    peal::{Peal, Plan},
    providers::LogMode,
};
use tokio::{sync::Mutex, task::JoinSet};

const NOTIFICATIONS: usize = 20_000;
/// Recipients of a small request.
const RECIPIENTS_IN_SMALL_REQUEST: usize = 20;
/// Recipients of a request whose jobs for one region are enough to be stored as a batch.
const RECIPIENTS_IN_LARGE_REQUEST: usize = 200;
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
    // The homes arrive in the order of registration.
    peal.wait_known("eu", &last).await.unwrap();
    peal
}

/// Sends all notifications. Repeats every request that is not answered with 202 with the same event id, as a caller should.
async fn send(peal: Arc<Mutex<Peal>>, request_size: usize, sent: Arc<std::sync::atomic::AtomicUsize>) {
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
            for request in (lane..NOTIFICATIONS / request_size).step_by(8) {
                let first = request * request_size;
                let recipients: Vec<String> = (first..first + request_size)
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
                sent.fetch_add(request_size, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }
    senders.join_all().await;
}

async fn check(peal: &Peal, max_duplicates: usize) {
    let audit = Audit::read_settled(peal, Duration::from_mins(2)).await.unwrap();
    let equation = audit.equation();
    let stats = peal.simulators.apns.stats();
    eprintln!(
        "{equation}; repeated {}; sent twice {}",
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
        stats.duplicates <= max_duplicates as u64,
        "{} sent twice, at most {max_duplicates} were in flight",
        stats.duplicates
    );
}

/// Whether any of the first 1000 jobs for the other region was stored in a batch.
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
    let sending = tokio::spawn(send(peal.clone(), RECIPIENTS_IN_SMALL_REQUEST, Arc::clone(&sent)));
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
    // The overflow of the lane has half of its permits in addition.
    check(&*peal.lock().await, IN_FLIGHT + IN_FLIGHT / 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_server_is_killed() {
    the_nats_server_is_killed_in(plan(), RECIPIENTS_IN_SMALL_REQUEST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_server_is_killed_in_a_batch() {
    the_nats_server_is_killed_in(single(), RECIPIENTS_IN_LARGE_REQUEST).await;
}

async fn the_nats_server_is_killed_in(plan: Plan, request_size: usize) {
    let peal = Arc::new(Mutex::new(start(plan).await));
    let sent = Arc::default();
    let sending = tokio::spawn(send(peal.clone(), request_size, Arc::clone(&sent)));
    wait_for(&sent, NOTIFICATIONS / 3).await;
    {
        let peal = peal.lock().await;
        peal.nats.region("eu").kill().unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        peal.nats.region("eu").restart().await.unwrap();
    }
    sending.await.unwrap();
    let peal = peal.lock().await;
    check(&peal, 3 * IN_FLIGHT).await;
    if request_size == RECIPIENTS_IN_LARGE_REQUEST {
        assert!(has_batches(&peal).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_is_killed() {
    the_gateway_is_killed_in(plan(), RECIPIENTS_IN_SMALL_REQUEST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_is_killed_in_a_batch() {
    the_gateway_is_killed_in(single(), RECIPIENTS_IN_LARGE_REQUEST).await;
}

async fn the_gateway_is_killed_in(plan: Plan, request_size: usize) {
    let peal = Arc::new(Mutex::new(start(plan).await));
    let sent = Arc::default();
    let sending = tokio::spawn(send(peal.clone(), request_size, Arc::clone(&sent)));
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
    if request_size == RECIPIENTS_IN_LARGE_REQUEST {
        assert!(has_batches(&peal).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_is_restarted_in_turn_and_nothing_is_sent_twice() {
    let peal = Arc::new(Mutex::new(start(plan()).await));
    let sent = Arc::default();
    let sending = tokio::spawn(send(peal.clone(), RECIPIENTS_IN_SMALL_REQUEST, Arc::clone(&sent)));
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

/// A gateway ends between the letter of a refused notification and its receipt. Until the message comes again the books hold: it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_receipt_is_still_to_come_is_no_finding() {
    let mut peal = Peal::start(Plan { workers: 1, ..plan() }).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    let program = peal.program();
    let gateway = &mut peal.region_mut("eu").gateway;
    gateway.process.terminate(Duration::from_secs(20)).await.unwrap();
    gateway
        .restart_with(&program, &["--crash-at", "gateway.after-letter=1"], &[])
        .unwrap();
    let service = connect::jetstream(peal.connect_as_app("eu").await.unwrap());
    let item = |event| json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
    let mut refused = item("refused");
    refused["class"] = json!("now");
    let body = json!({ "notifications": [item("fine"), refused] }).to_string();
    service.publish("send.shop", body.into()).await.unwrap().await.unwrap();
    let begun = Instant::now();
    while !peal.region_mut("eu").gateway.process.has_ended().unwrap() {
        assert!(begun.elapsed() < Duration::from_mins(1), "no letter was stored");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = Audit::read(&peal).await.unwrap().report;
    assert!(report.holds(), "{:?}", report.broken);
    assert_eq!(report.in_flight.intakes, 1, "{}", report.total());

    peal.region_mut("eu").gateway.restart(&program).unwrap();
    let audit = Audit::read_settled(&peal, Duration::from_mins(1)).await.unwrap();
    assert!(audit.report.holds(), "{:?}", audit.report.broken);
    let total = audit.equation();
    assert_eq!((total.accepted, total.in_flight), (2, 0), "{total}");
    assert_eq!(
        total.by_state,
        [(State::Delivered, 1), (State::Dead, 1)].into(),
        "{total}"
    );
    let dead = connect::jetstream(peal.connect("eu").await.unwrap());
    let dead = dead.get_stream(topology::DEAD).await.unwrap();
    assert_eq!(dead.cached_info().state.messages, 1, "one letter");
}
