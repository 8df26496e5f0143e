//! Finished work is trimmed. Later work is not affected, and the ledger still recognises the finished work.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{ops::Range, time::Duration};

use async_nats::{header::NATS_MESSAGE_ID, jetstream};
use serde_json::{Value, json};
use shared::{
    channel::{Channel, Class},
    nats::{
        border::Border,
        config::Config,
        connect, facts, publish,
        subject::{self, Tier},
        topology, version,
    },
    provider::Provider,
    recipient::{Fact, FactName, RecipientKey},
    testing,
};
use testbed::{
    audit::Audit,
    nats,
    peal::{APP, Peal, Plan},
};
use tokio::time::Instant;

/// A mesh of one region whose worker trims finished work after a second.
async fn start() -> Peal {
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 1,
        sample_ratio: 0.0,
        worker_settings: "keep_s = 1".into(),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    Peal::start(plan).await.unwrap()
}

async fn stored(peal: &Peal) -> u64 {
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    js.get_stream(topology::NOTIFY)
        .await
        .unwrap()
        .cached_info()
        .state
        .messages
}

async fn send(peal: &Peal, recipient: &str, numbers: Range<u32>) {
    for number in numbers {
        let body = json!({
            "event_id": format!("{recipient}-{number}"),
            "to": { "recipients": [recipient] },
            "push": { "title": "Hello" },
        });
        peal.expect("POST", "eu", "/v1/notifications", Some(&body))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_work_is_trimmed_and_later_work_is_delivered() {
    let peal = start().await;
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    send(&peal, "ann", 0..100).await;
    assert!(
        peal.simulators
            .apns
            .log()
            .wait_delivered(100, Duration::from_secs(20))
            .await
    );
    // The janitor runs every half minute.
    for round in 0..60 {
        let left = stored(&peal).await;
        if left < 100 {
            break;
        }
        assert!(round < 59, "{left} messages are still there\n{}", peal.complaints());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    send(&peal, "ann", 100..200).await;
    assert!(
        peal.simulators
            .apns
            .log()
            .wait_delivered(200, Duration::from_secs(20))
            .await,
        "{}",
        peal.complaints()
    );
    // The ledger still recognises the jobs that were trimmed.
    send(&peal, "ann", 0..100).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (
            peal.simulators.apns.stats().delivered,
            peal.simulators.apns.stats().duplicates
        ),
        (200, 0)
    );
}

/// The state and the reason of the only delivery of a notification, once it is `state`.
async fn reaches(peal: &Peal, notification: &Value, state: &str) -> Value {
    let path = format!(
        "/v1/notifications/{}",
        notification["notification_id"].as_str().unwrap()
    );
    let begun = Instant::now();
    loop {
        let (_, status) = peal.ask("GET", "eu", &path, None).await.unwrap();
        if status["deliveries"][0]["state"] == state {
            return status["deliveries"][0].clone();
        }
        assert!(
            begun.elapsed() < Duration::from_mins(2),
            "{status}\n{}",
            peal.complaints()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The subjects to which schedules bring work back, in order.
async fn scheduled(js: &jetstream::Context) -> Vec<String> {
    let stream = js.get_stream(topology::SCHEDULE).await.unwrap();
    let state = &stream.cached_info().state;
    let mut targets = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        if let Ok(message) = stream.get_raw_message(sequence).await {
            let target = message.headers.get("Nats-Schedule-Target");
            targets.extend(target.map(ToString::to_string));
        }
    }
    targets.sort();
    targets
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_worked_on_neither_stays_nor_keeps_others_from_being_trimmed() {
    let peal = start().await;
    for (name, token) in [("ann", "aaaa"), ("bob", "bbbb")] {
        peal.register(name, "eu", &[("apns", token)]).await.unwrap();
    }
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let key = |recipient: &str| RecipientKey {
        app: APP.parse().unwrap(),
        recipient: recipient.parse().unwrap(),
    };
    let preferences = subject::fact(&key("bob"), FactName::Preferences);
    let write = async |json: &'static str| {
        let headers = async_nats::HeaderMap::new();
        publish::store(&js, preferences.clone(), headers, json.into())
            .await
            .unwrap();
    };
    write("{").await;
    // A recipient of a version without limits.
    let eve = key("eve");
    peal.expect("PUT", "eu", "/v1/recipients/eve", Some(&json!({})))
        .await
        .unwrap();
    let eu = "eu".parse().unwrap();
    // Facts of this region need no signature, so any key will do.
    let border = Border::new(Config::new(testing::mesh_key()));
    for number in 0..1100 {
        let token = format!("eeee{number:04}");
        let address = Fact::Address(testing::address(&eve.app, Provider::Apns, &token));
        facts::write(&js, &border, &eu, &eu, &eve, &address).await.unwrap();
    }
    // The worker's cache follows within milliseconds.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let notify = async |recipient: &str, ttl: u32| {
        let push = json!({ "title": "Hello", "ttl": ttl });
        let body = json!({ "to": { "recipients": [recipient] }, "push": push });
        peal.expect("POST", "eu", "/v1/notifications", Some(&body))
            .await
            .unwrap()
    };
    let (waits, expires, many) = (
        notify("bob", 3600).await,
        notify("bob", 15).await,
        notify("eve", 3600).await,
    );
    // Work beyond its app's share.
    let lane = subject::notify_class_filter(Channel::Push, &eu, Class::Normal).replace('>', APP);
    let mut headers = version::headers();
    headers.insert(NATS_MESSAGE_ID, "beyond");
    let body = json!({ "recipient": "bob", "push": { "title": "Hello", "ttl": 3600 } });
    publish::store(&js, Tier::Overflow.subject(&lane), headers, body.to_string().into())
        .await
        .unwrap();
    send(&peal, "ann", 0..100).await;
    let delivered = peal
        .simulators
        .apns
        .log()
        .wait_delivered(1200, Duration::from_mins(1))
        .await;
    let stats = peal.simulators.apns.stats();
    assert!(delivered, "{stats:?}\n{}", peal.complaints());
    reaches(&peal, &many, "delivered").await;

    let waiting = reaches(&peal, &waits, "deferred").await;
    assert_eq!(waiting["reason"], "recipient_unreadable", "{waiting}");
    reaches(&peal, &expires, "expired").await;
    // Each comes back in the tier that it came from.
    let begun = Instant::now();
    loop {
        let targets = scheduled(&js).await;
        if targets
            == [
                format!("due.push-overflow.eu.normal.{APP}"),
                format!("due.push.eu.normal.{APP}"),
            ]
        {
            break;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{targets:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let begun = Instant::now();
    while stored(&peal).await > 1 {
        assert!(
            begun.elapsed() < Duration::from_mins(2),
            "not trimmed\n{}",
            peal.complaints()
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    write("{}").await;
    reaches(&peal, &waits, "delivered").await;
    assert!(
        Audit::read_settled(&peal, Duration::from_secs(30))
            .await
            .unwrap()
            .equation()
            .is_settled()
    );
    let worker = &peal.region("eu").workers[0];
    let metrics = peal.http.get(format!("{}/metrics", worker.url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("peal_trimming_standstill"), "{metrics}");
}
