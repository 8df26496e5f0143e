//! Regions that help each other.

use testbed::{
    faults::{Between, Trouble},
    peal::{Links, Peal},
};
use tokio::time::Instant;

use crate::rig::{PATIENCE, assert_settled, ended, register_ann, send, start};

/// Sends to ann in eu until a delivery is by the workers of `by`; how many notifications that took.
async fn send_until_by(peal: &Peal, event: &str, by: Option<&str>) -> usize {
    let deadline = Instant::now() + PATIENCE;
    for number in 0.. {
        let id = send(peal, "eu", &format!("{event}-{number}"), &["ann"]).await;
        let deliveries = ended(peal, "eu", &id, 1).await;
        assert_eq!(deliveries.len(), 1, "{deliveries:?}");
        assert_eq!(deliveries[0]["state"], "delivered");
        assert_eq!(deliveries[0]["region"], "eu", "whose work it is does not change");
        let attempts = deliveries[0]["attempts"].as_array().unwrap();
        if attempts.last().unwrap()["by"].as_str() == by {
            return number + 1;
        }
        assert!(Instant::now() < deadline, "{deliveries:?}\n{}", peal.complaints());
    }
    unreachable!("the numbers do not end")
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_work_for_a_region_whose_workers_are_gone() {
    let mut peal = start(|plan| {
        plan.workers = 1;
        plan.helpers = true;
    })
    .await;
    let program = peal.program();
    register_ann(&peal).await;
    assert_eq!(
        send_until_by(&peal, "at-home", None).await,
        1,
        "nobody helps who is not needed"
    );
    peal.region_mut("eu").workers[0].process.kill().await.unwrap();
    assert_eq!(
        send_until_by(&peal, "alone", Some("us")).await,
        1,
        "there is nobody else"
    );
    peal.region_mut("eu").workers[0].restart(&program).unwrap();
    send_until_by(&peal, "home-again", None).await;
    assert_settled(&peal).await;
    assert_eq!(peal.apns.stats().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_send_what_a_region_cannot() {
    let peal = start(|plan| {
        plan.workers = 1;
        plan.helpers = true;
        plan.links = Links::Proxies(1);
    })
    .await;
    register_ann(&peal).await;
    send_until_by(&peal, "at-home", None).await;
    let ways_out = || {
        let links = peal.links.iter();
        links.filter(|link| link.between == Between::Provider && link.region == "eu")
    };
    ways_out().for_each(|link| link.set(&Trouble::Cut).unwrap());
    send_until_by(&peal, "no-way-out", Some("us")).await;
    ways_out().for_each(|link| link.set(&Trouble::None).unwrap());
    send_until_by(&peal, "a-way-out", None).await;
    assert_settled(&peal).await;
    assert_eq!(peal.apns.stats().duplicates, 0);
}
