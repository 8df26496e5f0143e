//! Broadcasts to the members of a topic, over two regions.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use shared::{
    id::NotificationId,
    nats::{audit::Break, connect, follow, publish, subject, topology},
    receipt::Batch,
};
use testbed::{
    audit::Audit,
    nats,
    peal::{APP, Peal, Plan},
    providers::{Answer, LogMode, Rule, now_s},
};
use tokio::time::{Instant, sleep};

/// Longer than any successful step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(2);

const IN_FLIGHT: usize = 128;

/// Members who live in each region: two slices.
const MEMBERS: usize = 1_200;

fn plan() -> Plan {
    Plan {
        workers: 1,
        sample_ratio: 0.0,
        log: LogMode::Counting,
        worker_settings: format!("in_flight = {IN_FLIGHT}"),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    }
}

/// Starts a mesh in which `members` members of `news`, each with one device, live in each region.
async fn start(plan: Plan, members: usize) -> Peal {
    let peal = Peal::start(plan).await.unwrap();
    let everybody = peal.regions.iter().enumerate().flat_map(|(number, region)| {
        (0..members).map(move |member| (region.name.clone(), number * 1_000_000 + member))
    });
    stream::iter(everybody)
        .for_each_concurrent(32, |(region, number)| {
            let peal = &peal;
            async move {
                let recipient = format!("{region}-{number}");
                peal.register(&recipient, &region, &[("apns", &token(number))])
                    .await
                    .unwrap();
                join(peal, &region, &recipient).await;
            }
        })
        .await;
    peal
}

fn token(number: usize) -> String {
    format!("{number:064x}")
}

async fn join(peal: &Peal, region: &str, recipient: &str) {
    let path = format!("/v1/recipients/{recipient}/topics/news");
    peal.expect("PUT", region, &path, None).await.unwrap();
}

/// Sends to `news` from `eu` and returns the path of the notification.
async fn broadcast(peal: &Peal, event: &str) -> String {
    let body = json!({ "event_id": event, "to": { "topic": "news" }, "class": "bulk", "push": { "title": "Hi" } });
    let answer = peal
        .expect("POST", "eu", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    assert_eq!(answer["jobs"], 2, "one for each region: {answer}");
    format!("/v1/notifications/{}", answer["notification_id"].as_str().unwrap())
}

/// Waits until the status of a notification is `expected`, and returns it.
async fn status(peal: &Peal, path: &str, expected: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (_, status) = peal.ask("GET", "eu", path, None).await.unwrap();
        if expected(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{status}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}

fn is_done(status: &Value) -> bool {
    status["state"] == "done"
}

fn by_state(status: &Value) -> BTreeMap<String, u64> {
    serde_json::from_value(status["broadcast"]["by_state"].clone()).unwrap()
}

/// Delays every answer of APNs, so that a broadcast is still in progress while a test interferes with it.
fn slow_down(peal: &Peal) {
    let rule = Rule::always()
        .delay(Duration::from_millis(200))
        .answer(Answer::accept());
    peal.simulators.apns.script().add(rule).unwrap();
}

async fn until_delivered(peal: &Peal, pushes: u64) {
    let deadline = Instant::now() + TIMEOUT;
    while peal.simulators.apns.stats().delivered < pushes {
        assert!(Instant::now() < deadline, "{}", peal.complaints());
        sleep(Duration::from_millis(5)).await;
    }
}

/// How many jobs `region` has stored for other regions.
async fn sent_to_others(peal: &Peal, region: &str) -> usize {
    let js = connect::jetstream(peal.connect(region).await.unwrap());
    let mut jobs = 0;
    follow::read(
        &js,
        topology::OUTBOX,
        subject::NOTIFY_FILTER,
        follow::Start::Sequence(1),
        |_| jobs += 1,
    )
    .await
    .unwrap();
    jobs
}

/// Whether eu has copies of the receipts of members in us.
async fn have_receipts_left_us(peal: &Peal) -> bool {
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let filter = subject::receipt_origin_filter(&"us".parse().unwrap(), &"eu".parse().unwrap());
    let mut batches: Vec<Batch> = Vec::new();
    follow::read(&js, topology::RECEIPTS, &filter, follow::Start::Sequence(1), |entry| {
        batches.push(serde_json::from_slice(&entry.payload).unwrap());
    })
    .await
    .unwrap();
    let receipts: Vec<_> = batches.into_iter().flat_map(|batch| batch.receipts).collect();
    assert!(receipts.iter().any(|receipt| receipt.expanded.is_some()));
    receipts.iter().any(|receipt| receipt.slice.is_some())
}

async fn assert_settled(peal: &Peal, accepted: usize) {
    let audit = Audit::read_settled(peal, TIMEOUT).await.unwrap();
    let equation = audit.equation();
    assert!(
        equation.is_settled(),
        "{equation}\n{:?}\n{}",
        audit.report.broken,
        peal.complaints()
    );
    assert_eq!(equation.accepted, accepted, "{equation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_in_all_regions_are_reached_once_unless_they_opted_out() {
    let peal = start(plan(), MEMBERS).await;
    // The members who differ: two devices; no device; opted out; a device that is gone; a device that is reached at the second
    // attempt; one who left the topic.
    peal.register("eu-0", "eu", &[("fcm", "fcm:second")]).await.unwrap();
    peal.register("us-none", "us", &[]).await.unwrap();
    join(&peal, "us", "us-none").await;
    let opt_out = json!({ "channels": { "push": false } });
    peal.expect("PUT", "us", "/v1/recipients/us-1000001/preferences", Some(&opt_out))
        .await
        .unwrap();
    let gone = Answer::reason("Unregistered").timestamp_ms(1000 * (now_s() + 1));
    peal.simulators
        .apns
        .script()
        .add(Rule::token(&token(2)).answer(gone))
        .unwrap();
    let later = Answer::reason("ServiceUnavailable");
    peal.simulators
        .apns
        .script()
        .add(Rule::token(&token(3)).times(1).answer(later))
        .unwrap();
    peal.expect("DELETE", "eu", "/v1/recipients/eu-4/topics/news", None)
        .await
        .unwrap();
    // A member who joins again stays a member, and so does one who moves.
    join(&peal, "eu", "eu-5").await;
    peal.expect("PUT", "eu", "/v1/recipients/eu-6", Some(&json!({ "home": "us" })))
        .await
        .unwrap();
    let topics = peal
        .expect("GET", "eu", "/v1/recipients/eu-6/topics", None)
        .await
        .unwrap();
    assert_eq!(topics["topics"][0]["topic"], "news", "{topics}");
    // The former home sends the broadcasts that are accepted within seconds after a move.
    sleep(Duration::from_secs(5)).await;

    let before = sent_to_others(&peal, "eu").await;
    let path = broadcast(&peal, "first").await;
    // Joined after the broadcast was accepted.
    peal.register("late", "eu", &[("apns", &token(9_000_000))])
        .await
        .unwrap();
    join(&peal, "eu", "late").await;
    let done = status(&peal, &path, is_done).await;
    assert_eq!(
        sent_to_others(&peal, "eu").await - before,
        1,
        "one message to the other region"
    );

    let members = 2 * MEMBERS as u64;
    assert_eq!(done["jobs"], members, "one left, one without a device: {done}");
    assert_eq!(done["done"], members);
    assert_eq!(done["broadcast"]["topic"], "news");
    assert_eq!(done["broadcast"]["by_region"]["eu"]["slices"], 2);
    assert_eq!(done["broadcast"]["by_region"]["us"]["total"], MEMBERS as u64 + 2);
    assert_eq!(done["deliveries"], json!([]));
    // Two in eu are not delivered to: the one who left, and the one whose device is gone. One has two devices.
    let delivered = members - 3;
    let expected = [("delivered", delivered + 1), ("rejected", 1), ("suppressed", 2)];
    let expected = expected.map(|(state, count)| (state.to_owned(), count)).into();
    assert_eq!(by_state(&done), expected);
    assert_eq!(peal.simulators.apns.stats().delivered, delivered);
    assert_eq!(peal.simulators.fcm.stats().delivered, 1);

    assert!(
        !have_receipts_left_us(&peal).await,
        "receipts of members stay in their region"
    );

    // The same event again is not sent again.
    broadcast(&peal, "first").await;
    assert_settled(&peal, 2 * MEMBERS).await;
    assert_eq!(peal.simulators.apns.stats().delivered, delivered);
    // A service may publish a broadcast too.
    let client = peal.connect_as_app("us").await.unwrap();
    let body = json!({ "event_id": "by-nats", "to": { "topic": "news" }, "push": { "title": "Hi" } });
    let headers = async_nats::HeaderMap::new();
    publish::store(
        &connect::jetstream(client),
        subject::send(APP),
        headers,
        body.to_string().into(),
    )
    .await
    .unwrap();
    let id = NotificationId::of(&APP.parse().unwrap(), &"by-nats".parse().unwrap());
    let path = format!("/v1/notifications/{id}");
    let deadline = Instant::now() + TIMEOUT;
    while peal.ask("GET", "us", &path, None).await.unwrap().1["done"] != 2 * MEMBERS as u64 + 1 {
        assert!(Instant::now() < deadline, "{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
    assert_settled(&peal, 4 * MEMBERS + 1).await;
    assert_eq!(peal.simulators.apns.stats().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_when_a_worker_is_killed_halfway() {
    let mut peal = start(plan(), MEMBERS).await;
    let program = peal.program();
    let path = broadcast(&peal, "killed").await;
    until_delivered(&peal, MEMBERS as u64).await;
    for region in ["eu", "us"] {
        let worker = &mut peal.region_mut(region).workers[0];
        worker.process.kill().await.unwrap();
        worker.restart(&program).unwrap();
    }
    let done = status(&peal, &path, is_done).await;
    assert_eq!(done["jobs"], 2 * MEMBERS as u64, "{done}");
    assert_eq!(by_state(&done), [("delivered".to_owned(), 2 * MEMBERS as u64)].into());
    assert_settled(&peal, 2 * MEMBERS).await;
    let stats = peal.simulators.apns.stats();
    assert_eq!(
        stats.delivered - stats.duplicates,
        2 * MEMBERS as u64,
        "distinct pushes"
    );
    // A quarter of `in_flight` in each of the two regions: half of bulk's share. The overflow has half of that in addition.
    let max_in_flight = 3 * IN_FLIGHT as u64 / 4;
    assert!(
        stats.duplicates <= max_in_flight,
        "{} sent twice, {max_in_flight} were in flight",
        stats.duplicates
    );
    eprintln!("sent twice: {}", stats.duplicates);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_who_moves_halfway_is_sent_the_broadcast_once() {
    let peal = start(plan(), MEMBERS).await;
    let mut here: Vec<_> = (0..MEMBERS).map(|number| format!("eu-{number}")).collect();
    here.sort();
    // In the first slice, and not read yet when its first members are sent to.
    let leaves_eu = &here[990];
    // Sorts after it in eu, and is among the first in us.
    let leaves_us = format!("{leaves_eu}-us");
    peal.register(&leaves_us, "us", &[("apns", &token(2_000_000))])
        .await
        .unwrap();
    join(&peal, "us", &leaves_us).await;
    slow_down(&peal);
    let path = broadcast(&peal, "moving").await;
    until_delivered(&peal, 150).await;
    for (recipient, from, to) in [(leaves_eu, "eu", "us"), (&leaves_us, "us", "eu")] {
        let home = json!({ "home": to });
        let path = format!("/v1/recipients/{recipient}");
        let moved = peal.expect("PUT", from, &path, Some(&home)).await.unwrap();
        assert_eq!(moved["home"], to);
    }
    assert!(
        peal.simulators.apns.stats().delivered < 1800,
        "the broadcast was nearly done before the members moved"
    );
    let done = status(&peal, &path, is_done).await;
    assert_settled(&peal, 2 * MEMBERS + 1).await;
    let stats = peal.simulators.apns.stats();
    assert_eq!(
        (stats.delivered, stats.duplicates),
        (2 * MEMBERS as u64 + 1, 0),
        "{done}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_is_withdrawn_halfway() {
    let peal = start(plan(), MEMBERS).await;
    slow_down(&peal);
    let path = broadcast(&peal, "withdrawn").await;
    until_delivered(&peal, 200).await;
    for _again in 0..2 {
        let (code, answer) = peal.ask("DELETE", "eu", &path, None).await.unwrap();
        assert_eq!(code, 202, "{answer}");
    }
    let done = status(&peal, &path, is_done).await;
    assert_eq!(done["jobs"], 2 * MEMBERS as u64);
    let by_state = by_state(&done);
    assert_eq!(by_state.values().sum::<u64>(), 2 * MEMBERS as u64, "{by_state:?}");
    assert!(
        by_state["cancelled"] > 0 && by_state["delivered"] >= 200,
        "{by_state:?}"
    );
    assert_eq!(peal.simulators.apns.stats().delivered, by_state["delivered"]);
    assert_settled(&peal, 2 * MEMBERS).await;
    let nothing = format!("/v1/notifications/{}", uuid::Uuid::nil());
    assert_eq!(peal.ask("DELETE", "eu", &nothing, None).await.unwrap().0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slice_is_named() {
    let mut peal = start(plan(), MEMBERS).await;
    slow_down(&peal);
    broadcast(&peal, "lost").await;
    until_delivered(&peal, 100).await;
    peal.region_mut("eu").workers[0].process.kill().await.unwrap();
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let schedule = js.get_stream(topology::SCHEDULE).await.unwrap();
    schedule.purge().filter(subject::SLICE_FILTER).await.unwrap();
    let audit = Audit::read(&peal).await.unwrap();
    let broken = audit.report.broken.first().unwrap();
    assert_eq!(
        (broken.how, broken.count),
        (Break::SliceLost, 2),
        "{:?}",
        audit.report.broken
    );
}
