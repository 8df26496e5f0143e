//! Whose an address is, while regions hear each other and while they do not.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    faults::Trouble,
    peal::{Links, Peal},
    providers::{Answer, RetryAfter, Rule},
};
use tokio::time::{Instant, sleep};

use crate::rig::{PATIENCE, assert_settled, ended, send, set_ways, start};

/// The tokens of the addresses that a recipient has, as `region` tells: their ids.
async fn addresses(peal: &Peal, region: &str, recipient: &str) -> Vec<String> {
    let path = format!("/v1/recipients/{recipient}/addresses");
    let (_, answer) = peal.ask("GET", region, &path, None).await.unwrap();
    let all = answer["addresses"].as_array().into_iter().flatten();
    all.map(|address| address["address_id"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until a recipient has these addresses and no others.
async fn wait_addresses(peal: &Peal, region: &str, recipient: &str, wanted: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = addresses(peal, region, recipient).await;
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}\n{}", peal.complaints());
        sleep(Duration::from_millis(100)).await;
    }
}

/// Registers a device in a region's gateway and returns the address.
async fn register_device(peal: &Peal, region: &str, recipient: &str, token: &str) -> String {
    let path = format!("/v1/recipients/{recipient}/addresses");
    let body = json!({ "provider": "apns", "token": token });
    let answer = peal.expect("POST", region, &path, Some(&body)).await.unwrap();
    answer["address_id"].as_str().unwrap().to_owned()
}

/// How one delivery ended, and why.
async fn delivered(peal: &Peal, region: &str, event: &str, recipient: &str) -> (String, Option<String>) {
    let id = send(peal, region, event, &[recipient]).await;
    let delivery = ended(peal, region, &id, 1).await.remove(0);
    let text = |name: &str| delivery[name].as_str().map(str::to_owned);
    (text("state").unwrap(), text("reason"))
}

/// Waits until so many deliveries of a notification wait for another attempt.
async fn wait_parked(peal: &Peal, region: &str, id: &str, deliveries: usize) {
    let deadline = Instant::now() + PATIENCE;
    let path = format!("/v1/notifications/{id}");
    loop {
        let (_, answer) = peal.ask("GET", region, &path, None).await.unwrap();
        let found = answer["deliveries"].as_array().into_iter().flatten();
        if found.filter(|delivery| delivery["state"] == "parked").count() == deliveries {
            return;
        }
        assert!(Instant::now() < deadline, "{answer}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}

/// Sends until no worker tries a device any more: its cache hears a moment after the bucket.
async fn wait_unreachable(peal: &Peal, region: &str, event: &str, recipient: &str) {
    let deadline = Instant::now() + PATIENCE;
    for number in 0.. {
        let ended = delivered(peal, region, &format!("{event}-{number}"), recipient).await;
        if ended == ("suppressed".to_owned(), Some("no_address".to_owned())) {
            return;
        }
        assert!(Instant::now() < deadline, "{ended:?}\n{}", peal.complaints());
    }
}

/// Sends until so many devices of a recipient are tried.
async fn wait_reached(peal: &Peal, region: &str, recipient: &str, devices: usize) {
    let deadline = Instant::now() + PATIENCE;
    for number in 0.. {
        let id = send(peal, region, &format!("reach-{recipient}-{number}"), &[recipient]).await;
        let found = ended(peal, region, &id, 1).await;
        if found.len() == devices {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}\n{}", peal.complaints());
    }
}

async fn two_regions_that_can_be_cut_off() -> Peal {
    let peal = start(|plan| {
        plan.workers = 1;
        plan.links = Links::Proxies(1);
    })
    .await;
    peal.register("ann", "eu", &[]).await.unwrap();
    peal.register("bob", "us", &[]).await.unwrap();
    peal.wait_known("us", "ann").await.unwrap();
    peal.wait_known("eu", "bob").await.unwrap();
    peal
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_serves_only_who_registered_it_last() {
    let peal = two_regions_that_can_be_cut_off().await;
    let token = format!("{:064x}", 1);
    let id = register_device(&peal, "eu", "ann", &token).await;
    assert_eq!(delivered(&peal, "eu", "to-ann", "ann").await.0, "delivered");

    // While the regions hear each other.
    register_device(&peal, "us", "bob", &token).await;
    wait_addresses(&peal, "eu", "ann", &[]).await;
    wait_unreachable(&peal, "eu", "bobs", "ann").await;
    assert_eq!(delivered(&peal, "eu", "to-bob", "bob").await.0, "delivered");

    // While they do not: ann's device is known in eu only, and it was the last.
    set_ways(&peal, &Trouble::Cut);
    register_device(&peal, "eu", "ann", &token).await;
    assert_eq!(delivered(&peal, "eu", "both-ann", "ann").await.0, "delivered");
    assert_eq!(
        delivered(&peal, "us", "both-bob", "bob").await.0,
        "delivered",
        "us cannot know"
    );
    set_ways(&peal, &Trouble::None);
    wait_addresses(&peal, "us", "bob", &[]).await;
    assert_eq!(addresses(&peal, "eu", "ann").await, [id.as_str()]);
    wait_unreachable(&peal, "us", "anns", "bob").await;
    assert_eq!(delivered(&peal, "us", "anns-ann", "ann").await.0, "delivered");

    // us gives it to bob, and then to eve, who lives in eu; there ann says once more, and last, that it is hers.
    set_ways(&peal, &Trouble::Cut);
    register_device(&peal, "us", "bob", &token).await;
    register_device(&peal, "us", "eve", &token).await;
    let last = json!({ "categories": { "offers": { "push": false } } });
    peal.expect("PUT", "us", "/v1/recipients/eve/preferences", Some(&last))
        .await
        .unwrap();
    assert!(addresses(&peal, "us", "bob").await.is_empty(), "eve has it in us");
    register_device(&peal, "eu", "ann", &token).await;
    set_ways(&peal, &Trouble::None);
    // What us wrote of eve has arrived in eu, in order.
    let deadline = Instant::now() + PATIENCE;
    let path = "/v1/recipients/eve/preferences";
    while peal.ask("GET", "eu", path, None).await.unwrap().1["categories"] != last["categories"] {
        assert!(Instant::now() < deadline, "{}", peal.complaints());
        sleep(Duration::from_millis(100)).await;
    }
    wait_addresses(&peal, "eu", "eve", &[]).await;
    assert_eq!(addresses(&peal, "eu", "ann").await, [id.as_str()]);
    wait_unreachable(&peal, "us", "eves", "eve").await;
    assert_settled(&peal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_died_in_one_region_is_dead_in_all() {
    let peal = two_regions_that_can_be_cut_off().await;
    let tokens = [1, 2].map(|number| format!("{number:064x}"));
    set_ways(&peal, &Trouble::Cut);
    for token in &tokens {
        register_device(&peal, "us", "bob", token).await;
        register_device(&peal, "eu", "ann", token).await;
    }
    wait_reached(&peal, "us", "bob", 2).await;
    wait_reached(&peal, "eu", "ann", 2).await;
    // What bob is sent waits for a second attempt while the tokens die in eu.
    let busy = Answer::reason("ServiceUnavailable").retry_after(RetryAfter::Seconds(12));
    peal.apns.script().add(Rule::always().times(2).answer(busy)).unwrap();
    let waiting = send(&peal, "us", "waiting", &["bob"]).await;
    wait_parked(&peal, "us", &waiting, 2).await;
    let gone = Answer::reason("Unregistered");
    peal.apns.script().clear();
    peal.apns.script().add(Rule::always().times(2).answer(gone)).unwrap();
    let id = send(&peal, "eu", "dead", &["ann"]).await;
    for delivery in ended(&peal, "eu", &id, 2).await {
        assert_eq!(delivery["reason"], "Unregistered", "{delivery}");
    }
    wait_addresses(&peal, "eu", "ann", &[]).await;
    // The second device comes back after that, where nobody has heard of it.
    let alive = register_device(&peal, "us", "bob", &tokens[1]).await;
    set_ways(&peal, &Trouble::None);
    wait_addresses(&peal, "us", "bob", &[&alive]).await;
    let asked = peal.apns.log().requests_for(&tokens[0]).len();
    for delivery in ended(&peal, "us", &waiting, 2).await {
        let (state, reason) = if delivery["address_id"] == alive.as_str() {
            ("delivered", Value::Null)
        } else {
            ("suppressed", json!("address_removed"))
        };
        assert_eq!(
            (&delivery["state"], &delivery["reason"]),
            (&json!(state), &reason),
            "{delivery}"
        );
    }
    assert_eq!(
        peal.apns.log().requests_for(&tokens[0]).len(),
        asked,
        "Apple is not asked again"
    );
    assert_eq!(delivered(&peal, "eu", "alive", "bob").await.0, "delivered");
    assert_settled(&peal).await;
}
