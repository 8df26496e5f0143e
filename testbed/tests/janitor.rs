//! Finished work is trimmed. Later work is not affected, and the ledger still recognises the finished work.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{ops::Range, time::Duration};

use serde_json::json;
use shared::nats::{connect, topology};
use testbed::{
    nats,
    peal::{Peal, Plan},
};

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
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 1,
        sample_ratio: 0.0,
        worker_settings: "keep_s = 1".into(),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
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
