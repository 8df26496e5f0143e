//! An app's own server, which keeps what services publish while it is cut off from the region.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, stream::Config},
};
use serde_json::json;
use shared::{
    app::App,
    nats::{accounts, connect, topology},
    receipt::State,
};
use testbed::{
    audit::Audit,
    links::{Proxy, Trouble},
    nats::Mesh,
    peal::{Peal, Plan},
};
use tokio::time::{sleep, timeout};

use crate::{
    accounts::{here, linked_by, messages, prepare, tenant, two_apps},
    rig::{TIMEOUT, plan},
};

/// A source that was cut off retries after up to 45 s.
const ARRIVED_WITHIN: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_while_cut_off_arrives_once() {
    let mesh = Mesh::start(two_apps(), &["eu"]).await.unwrap();
    let eu = mesh.region("eu");
    let peal = prepare(eu).await;
    let link = Proxy::start((eu.address(), eu.leaf_port()).into(), 1).unwrap();
    let own = linked_by(eu, format!("nats-leaf://{}", link.address())).await;
    let js = jetstream::new(own.connect_without_key().await.unwrap());
    js.create_stream(outbox()).await.unwrap();
    // A gateway adds the source to the intake, once.
    let regions = connect::jetstream(peal.clone());
    let stream = here("eu").intake_stream(&App {
        outbox: true,
        ..tenant("shop")
    });
    for changes in [1, 0] {
        let made = topology::apply(&regions, std::slice::from_ref(&stream)).await.unwrap();
        assert_eq!(made.len(), changes, "{made:?}");
    }
    let before = messages(&peal, "INTAKE_shop").await;

    let publish = async |from: u32, to: u32| {
        for number in from..to {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("event-{number}"));
            let stored = js
                .publish_with_headers(accounts::OUTBOX_SUBJECT, headers, number.to_string().into())
                .await;
            stored.unwrap().await.unwrap();
        }
    };
    let arrived = async |count: u64| {
        let all = async {
            while messages(&peal, "INTAKE_shop").await < before + count {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(ARRIVED_WITHIN, all).await.unwrap();
    };
    publish(0, 50).await;
    arrived(50).await;

    link.set(&Trouble::Cut).unwrap();
    publish(50, 250).await;
    own.restart().await.unwrap();
    link.set(&Trouble::None).unwrap();
    arrived(250).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(messages(&peal, "INTAKE_shop").await, before + 250);
    let stream = regions.get_stream("INTAKE_shop").await.unwrap();
    // An intake begins above all former sequences.
    let first = stream.cached_info().state.first_sequence + before;
    let last = stream.get_raw_message(first).await.unwrap();
    assert_eq!((last.subject.as_str(), &last.payload[..]), ("send.shop", &b"0"[..]));
}

/// An event goes through the app's own server and directly, under one event id and different message ids. The intake stores both,
/// and streams of work forget ids after a while: what is pushed once is known by the ids of jobs, and then by the ledgers.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_both_ways_is_one_notification_however_far_apart() {
    let plan = Plan {
        regions: vec!["eu".to_owned()],
        outbox: true,
        ..plan()
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    let eu = peal.nats.region("eu");
    let own = linked_by(eu, eu.leaf_url()).await;
    let there = jetstream::new(own.connect_without_key().await.unwrap());
    there.create_stream(outbox()).await.unwrap();
    let here = jetstream::new(peal.connect_as_app("eu").await.unwrap());
    let test = connect::jetstream(peal.connect("eu").await.unwrap());
    let before = messages(&test.client(), "INTAKE_shop").await;
    let stored = async |count: u64| {
        let all = async {
            while messages(&test.client(), "INTAKE_shop").await < before + count {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(ARRIVED_WITHIN, all).await.unwrap();
    };
    let body = |event: &str| {
        json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } }).to_string()
    };
    let publish = async |js: &jetstream::Context, subject: &'static str, event: &str| {
        js.publish(subject, body(event).into()).await.unwrap().await.unwrap();
    };

    publish(&here, "send.shop", "together").await;
    publish(&there, accounts::OUTBOX_SUBJECT, "together").await;
    stored(2).await;
    assert!(peal.simulators.apns.log().wait_delivered(1, TIMEOUT).await);

    // The stream of work forgets ids at once, as it does after two minutes.
    let notify = test.get_stream(topology::NOTIFY).await.unwrap();
    let forgetful = Config {
        duplicate_window: Duration::from_millis(100),
        ..notify.cached_info().config.clone()
    };
    test.update_stream(forgetful).await.unwrap();
    publish(&there, accounts::OUTBOX_SUBJECT, "apart").await;
    assert!(peal.simulators.apns.log().wait_delivered(2, TIMEOUT).await);
    sleep(Duration::from_millis(500)).await;
    publish(&here, "send.shop", "apart").await;
    stored(4).await;
    let twice = async {
        // The first event once, the second twice.
        while messages(&test.client(), topology::NOTIFY).await < 3 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(TIMEOUT, twice)
        .await
        .expect("the stream of work has the job twice");

    let audit = Audit::read_settled(&peal, TIMEOUT).await.unwrap();
    assert!(audit.report.holds(), "{:?}", audit.report.broken);
    let total = audit.equation();
    // Besides, what the own server sent until it was linked is no notification.
    assert_eq!(
        (
            total.by_state[&State::Delivered],
            total.by_state.get(&State::Suppressed)
        ),
        (2, None),
        "{total}"
    );
    assert_eq!(messages(&test.client(), topology::NOTIFY).await, 3);
    assert_eq!(peal.simulators.apns.log().delivered_to("aaaa").len(), 2);
    for event in ["together", "apart"] {
        let path = format!("/v1/notifications?event_id={event}");
        let found = peal.expect("GET", "eu", &path, None).await.unwrap();
        let [one] = found["notifications"].as_array().unwrap().as_slice() else {
            panic!("{found}");
        };
        assert_eq!((&one["jobs"], &one["state"]), (&json!(1), &json!("done")), "{one}");
        assert_eq!(one["deliveries"].as_array().unwrap().len(), 1, "{one}");
    }
}

/// The stream in which an app's own server keeps what is published there.
fn outbox() -> Config {
    Config {
        name: accounts::OUTBOX.into(),
        subjects: vec![accounts::OUTBOX_SUBJECT.into()],
        ..Config::default()
    }
}
