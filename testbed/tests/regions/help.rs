//! Regions that help each other.

use testbed::{
    links::{Between, Trouble},
    peal::{Links, Peal},
};
use tokio::time::Instant;

use crate::rig::{TIMEOUT, assert_settled, register_ann, send, start, wait_ended};

/// Sends to ann in eu until the workers of `by` make a delivery, or eu's own for `None`. Returns how many notifications
/// that took.
async fn send_until_sent_by(peal: &Peal, event: &str, by: Option<&str>) -> usize {
    let deadline = Instant::now() + TIMEOUT;
    for number in 0.. {
        let id = send(peal, "eu", &format!("{event}-{number}"), &["ann"]).await;
        let deliveries = wait_ended(peal, "eu", &id, 1).await;
        assert_eq!(deliveries.len(), 1, "{deliveries:?}");
        assert_eq!(deliveries[0]["state"], "delivered");
        assert_eq!(
            deliveries[0]["region"], "eu",
            "a helper does not change the region of a delivery"
        );
        let attempts = deliveries[0]["attempts"].as_array().unwrap();
        if attempts.last().unwrap()["by"].as_str() == by {
            return number + 1;
        }
        assert!(Instant::now() < deadline, "{deliveries:?}\n{}", peal.complaints());
    }
    unreachable!("the loop returns or panics")
}

#[tokio::test(flavor = "multi_thread")]
async fn helpers_work_for_a_region_without_workers() {
    let mut peal = start(|plan| {
        plan.workers = 1;
        plan.helpers = true;
    })
    .await;
    let program = peal.program();
    register_ann(&peal).await;
    assert_eq!(
        send_until_sent_by(&peal, "at-home", None).await,
        1,
        "nobody helps a region that has workers"
    );
    peal.region_mut("eu").workers[0].process.kill().await.unwrap();
    assert_eq!(
        send_until_sent_by(&peal, "alone", Some("us")).await,
        1,
        "only the helper can send it"
    );
    peal.region_mut("eu").workers[0].restart(&program).unwrap();
    send_until_sent_by(&peal, "home-again", None).await;
    assert_settled(&peal).await;
    assert_eq!(peal.simulators.apns.stats().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn helpers_send_what_a_region_cannot() {
    let peal = start(|plan| {
        plan.workers = 1;
        plan.helpers = true;
        plan.links = Links::Proxies(1);
    })
    .await;
    register_ann(&peal).await;
    send_until_sent_by(&peal, "at-home", None).await;
    let provider_links = || {
        let links = peal.links.iter();
        links.filter(|link| link.between == Between::Provider && link.region == "eu")
    };
    provider_links().for_each(|link| link.set(&Trouble::Cut).unwrap());
    send_until_sent_by(&peal, "providers-unreachable", Some("us")).await;
    provider_links().for_each(|link| link.set(&Trouble::None).unwrap());
    send_until_sent_by(&peal, "providers-reachable", None).await;
    assert_settled(&peal).await;
    assert_eq!(peal.simulators.apns.stats().duplicates, 0);
}
