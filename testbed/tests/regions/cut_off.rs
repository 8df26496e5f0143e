//! Regions that are cut off: stale consent, and provider tokens that stay the same.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use testbed::{
    links::{Between, Trouble},
    peal::{Links, Peal},
    providers::now_s,
};
use tokio::time::{Instant, sleep};

use crate::rig::{TIMEOUT, register_ann, send, start, wait_ended};

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_cut_off_reports_how_stale_its_data_is() {
    let peal = start(|plan| {
        plan.workers = 1;
        plan.links = Links::Proxies(1);
        plan.worker_settings = "stale_after_s = { urgent = 2, normal = 2, bulk = 2 }".into();
    })
    .await;
    register_ann(&peal).await;
    peal.wait_known("us", "ann").await.unwrap();
    // Sends with `class` until a delivery ends in `state`, with or without an age of the data. Returns the reason.
    let until = async |class: &str, state: &str, stale: bool| {
        let deadline = Instant::now() + TIMEOUT;
        for number in 0.. {
            let event = format!("{class}-{state}-{stale}-{number}");
            let body = json!({ "event_id": event, "class": class, "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
            let answer = peal
                .expect("POST", "eu", "/v1/notifications", Some(&body))
                .await
                .unwrap();
            let deliveries = wait_ended(&peal, "eu", answer["notification_id"].as_str().unwrap(), 1).await;
            let attempt = &deliveries[0]["attempts"][0];
            if deliveries[0]["state"] == state && attempt["stale_s"].is_u64() == stale {
                return deliveries[0]["reason"].as_str().map(str::to_owned);
            }
            assert!(Instant::now() < deadline, "{deliveries:?}\n{}", peal.complaints());
            sleep(Duration::from_millis(200)).await;
        }
        unreachable!("the loop returns or panics")
    };
    assert_eq!(until("bulk", "delivered", false).await, None);
    let region_links = |trouble: &Trouble| {
        let links = peal.links.iter().filter(|link| link.between == Between::Regions);
        links.for_each(|link| link.set(trouble).unwrap());
    };
    region_links(&Trouble::Cut);
    assert_eq!(
        until("bulk", "suppressed", true).await.as_deref(),
        Some("stale_consent")
    );
    assert_eq!(until("urgent", "delivered", true).await, None);
    assert_eq!(until("normal", "delivered", true).await, None);
    put_then_patch_elsewhere(&peal, || region_links(&Trouble::None)).await;
    assert_eq!(until("bulk", "delivered", false).await, None);
}

/// Puts preferences of ann, who lives in eu, through us while the two are apart, and changes them through us all the time from when
/// `reunite` is called: no change that was answered may be lost when what was put arrives.
async fn put_then_patch_elsewhere(peal: &Peal, reunite: impl Fn()) {
    let path = "/v1/recipients/ann/preferences";
    let put = json!({ "categories": { "offers": { "sms": false } } });
    // Long enough for the servers to give up the connection: then questions come through sooner than facts.
    sleep(Duration::from_secs(12)).await;
    peal.expect("PUT", "us", path, Some(&put)).await.unwrap();
    reunite();
    let changes = (0..200).map(|number| async move {
        sleep(number * Duration::from_millis(25)).await;
        let topic = format!("topic-{number}");
        let change = json!({ "topics": { &topic: false } });
        let (status, answer) = peal.ask("PATCH", "us", path, Some(&change)).await.unwrap();
        assert!([200, 503].contains(&status), "{status}: {answer}");
        (status == 200).then_some(topic)
    });
    let made: Vec<String> = join_all(changes).await.into_iter().flatten().collect();
    assert!(!made.is_empty(), "{}", peal.complaints());
    let stored = peal.expect("GET", "eu", path, None).await.unwrap();
    assert_eq!(stored["categories"], put["categories"]);
    let lost: Vec<_> = made
        .iter()
        .filter(|topic| stored["topics"].get(topic) != Some(&json!(false)))
        .collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), made.len());
}

/// The number of the slot of 50 minutes whose provider token workers use now.
fn current_slot() -> usize {
    usize::try_from((now_s() - 5 * 60) / (50 * 60)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_workers_use_one_provider_token_even_when_cut_off_or_restarted() {
    let mut peal = start(|plan| plan.links = Links::Proxies(1)).await;
    let before = current_slot();
    for (recipient, home) in [("ann", "eu"), ("bob", "us")] {
        let first = if home == "eu" { 0 } else { 20 };
        let devices: Vec<String> = (first..first + 20).map(|device| format!("{device:064x}")).collect();
        let devices: Vec<(&str, &str)> = devices.iter().map(|token| ("apns", token.as_str())).collect();
        peal.register(recipient, home, &devices).await.unwrap();
    }
    let deliver = async |peal: &Peal, event: &str| {
        for (recipient, home) in [("ann", "eu"), ("bob", "us")] {
            for number in 0..4 {
                let id = send(peal, home, &format!("{event}-{home}-{number}"), &[recipient]).await;
                let deliveries = wait_ended(peal, home, &id, 20).await;
                assert!(
                    deliveries.iter().all(|delivery| delivery["state"] == "delivered"),
                    "{deliveries:?}"
                );
            }
        }
    };
    deliver(&peal, "together").await;
    let region_links = peal
        .links
        .iter()
        .filter(|link| link.between == Between::Regions && link.region == "us");
    region_links.for_each(|link| link.set(&Trouble::Cut).unwrap());
    let (program, http) = (peal.program(), peal.http.clone());
    for worker in &mut peal.region_mut("us").workers {
        worker.process.kill().await.unwrap();
        worker.restart(&program).unwrap();
        worker.wait_ready(&http).await.unwrap();
    }
    deliver(&peal, "cut-off").await;
    let tokens = peal.simulators.apns.provider_tokens();
    assert!(
        (1..=1 + current_slot() - before).contains(&tokens),
        "{tokens} provider tokens"
    );
    assert_eq!(peal.simulators.apns.stats().delivered, 2 * 2 * 4 * 20);
}
