//! Apps that reside in a region: where their data is, and where it must not be.

use std::{path::Path, time::Duration};

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::rig::{TIMEOUT, start, wait_ended};

/// Whether any file below `folder` contains these bytes.
fn contains(folder: &Path, bytes: &[u8]) -> bool {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.into_iter().any(|entry| {
        if entry.file_type().unwrap().is_dir() {
            return contains(&entry.path(), bytes);
        }
        // A server may remove a file at any time.
        let content = std::fs::read(entry.path()).unwrap_or_default();
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_an_app_that_resides_in_a_region_never_leaves_it() {
    let peal = start(|plan| {
        plan.workers = 1;
        plan.residency = Some("eu".into());
    })
    .await;
    let token = format!("{:064x}", 0x00c0_ffee);
    peal.register("ann", "eu", &[("apns", &token)]).await.unwrap();
    let body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "only-for-eyes-in-eu" } });
    let answer = peal
        .expect("POST", "eu", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    let id = answer["notification_id"].as_str().unwrap();
    assert_eq!(wait_ended(&peal, "eu", id, 1).await[0]["state"], "delivered");
    let (status, answer) = peal.ask("POST", "us", "/v1/notifications", Some(&body)).await.unwrap();
    assert_eq!(
        (status, answer["code"].as_str()),
        (421, Some("resides_elsewhere")),
        "{answer}"
    );
    let (status, _) = peal.ask("GET", "us", "/v1/recipients/ann", None).await.unwrap();
    assert_eq!(status, 421);
    let moved = json!({ "home": "us" });
    let (status, answer) = peal.ask("PUT", "eu", "/v1/recipients/ann", Some(&moved)).await.unwrap();
    assert_eq!(
        (status, answer["errors"][0]["field"].as_str()),
        (422, Some("home")),
        "{answer}"
    );

    // Every region gets the directory's record that ann lives in eu. Once us has it, anything else that left eu is
    // there too.
    let us = peal.nats.region("us").store();
    let deadline = Instant::now() + TIMEOUT;
    while !contains(&us, b"home.shop.ann") {
        assert!(Instant::now() < deadline, "nothing arrives in us");
        sleep(Duration::from_millis(100)).await;
    }
    for secret in [token.as_bytes(), b"only-for-eyes-in-eu"] {
        assert!(
            contains(&peal.nats.region("eu").store(), secret),
            "the test would not find it in us"
        );
        assert!(!contains(&us, secret), "a server of us has it");
        assert!(
            !contains(&peal.region("us").workers[0].data(), secret),
            "a worker of us has it"
        );
        assert!(!contains(&peal.nats.hub().store(), secret), "the hub has it");
    }
}
