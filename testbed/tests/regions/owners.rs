//! Which recipient an address belongs to, also when regions were cut off from each other.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    links::Trouble,
    peal::{Links, Peal},
    providers::{Answer, RetryAfter, Rule},
};
use tokio::time::{Instant, sleep};

use crate::rig::{TIMEOUT, assert_settled, send, set_region_links, start, wait_ended};

/// The ids of a recipient's addresses, as the gateway of `region` lists them.
async fn addresses(peal: &Peal, region: &str, recipient: &str) -> Vec<String> {
    let path = format!("/v1/recipients/{recipient}/addresses");
    let (_, answer) = peal.ask("GET", region, &path, None).await.unwrap();
    let all = answer["addresses"].as_array().into_iter().flatten();
    all.map(|address| address["address_id"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until a recipient has these addresses and no others.
async fn wait_addresses(peal: &Peal, region: &str, recipient: &str, wanted: &[&str]) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let found = addresses(peal, region, recipient).await;
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}\n{}", peal.complaints());
        sleep(Duration::from_millis(100)).await;
    }
}

/// Registers a device of APNs at a region's gateway and returns the id of its address.
async fn register_device(peal: &Peal, region: &str, recipient: &str, token: &str) -> String {
    let path = format!("/v1/recipients/{recipient}/addresses");
    let body = json!({ "provider": "apns", "token": token });
    let answer = peal.expect("POST", region, &path, Some(&body)).await.unwrap();
    answer["address_id"].as_str().unwrap().to_owned()
}

/// Sends a notification and returns the state and the reason with which its first delivery ends.
async fn send_and_wait(peal: &Peal, region: &str, event: &str, recipient: &str) -> (String, Option<String>) {
    let id = send(peal, region, event, &[recipient]).await;
    let delivery = wait_ended(peal, region, &id, 1).await.remove(0);
    let text = |name: &str| delivery[name].as_str().map(str::to_owned);
    (text("state").unwrap(), text("reason"))
}

/// Waits until `deliveries` deliveries of a notification wait for another attempt.
async fn wait_parked(peal: &Peal, region: &str, id: &str, deliveries: usize) {
    let deadline = Instant::now() + TIMEOUT;
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

/// Sends until no worker finds a device any more; its cache follows the bucket some milliseconds later.
async fn wait_unreachable(peal: &Peal, region: &str, event: &str, recipient: &str) {
    let deadline = Instant::now() + TIMEOUT;
    for number in 0.. {
        let ended = send_and_wait(peal, region, &format!("{event}-{number}"), recipient).await;
        if ended == ("suppressed".to_owned(), Some("no_address".to_owned())) {
            return;
        }
        assert!(Instant::now() < deadline, "{ended:?}\n{}", peal.complaints());
    }
}

/// Sends until `devices` devices of a recipient are reached.
async fn wait_reached(peal: &Peal, region: &str, recipient: &str, devices: usize) {
    let deadline = Instant::now() + TIMEOUT;
    for number in 0.. {
        let id = send(peal, region, &format!("reach-{recipient}-{number}"), &[recipient]).await;
        let found = wait_ended(peal, region, &id, 1).await;
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
async fn a_token_serves_only_the_recipient_who_registered_it_last() {
    let peal = two_regions_that_can_be_cut_off().await;
    let token = format!("{:064x}", 1);
    let id = register_device(&peal, "eu", "ann", &token).await;
    assert_eq!(send_and_wait(&peal, "eu", "to-ann", "ann").await.0, "delivered");

    // While the regions are connected.
    register_device(&peal, "us", "bob", &token).await;
    wait_addresses(&peal, "eu", "ann", &[]).await;
    wait_unreachable(&peal, "eu", "bobs", "ann").await;
    assert_eq!(send_and_wait(&peal, "eu", "to-bob", "bob").await.0, "delivered");

    // While they are cut off: only eu knows that ann registered it last.
    set_region_links(&peal, &Trouble::Cut);
    register_device(&peal, "eu", "ann", &token).await;
    assert_eq!(send_and_wait(&peal, "eu", "both-ann", "ann").await.0, "delivered");
    assert_eq!(
        send_and_wait(&peal, "us", "both-bob", "bob").await.0,
        "delivered",
        "us cannot know"
    );
    set_region_links(&peal, &Trouble::None);
    wait_addresses(&peal, "us", "bob", &[]).await;
    assert_eq!(addresses(&peal, "eu", "ann").await, [id.as_str()]);
    wait_unreachable(&peal, "us", "anns", "bob").await;
    assert_eq!(send_and_wait(&peal, "us", "anns-ann", "ann").await.0, "delivered");

    // us gives it to bob and then to eve, who lives in eu; there ann registers it once more, and last.
    set_region_links(&peal, &Trouble::Cut);
    register_device(&peal, "us", "bob", &token).await;
    register_device(&peal, "us", "eve", &token).await;
    let last = json!({ "categories": { "offers": { "push": false } } });
    peal.expect("PUT", "us", "/v1/recipients/eve/preferences", Some(&last))
        .await
        .unwrap();
    assert!(addresses(&peal, "us", "bob").await.is_empty(), "eve has it in us");
    register_device(&peal, "eu", "ann", &token).await;
    set_region_links(&peal, &Trouble::None);
    // Once eu has eve's preferences, it has her address too, which us wrote earlier.
    let deadline = Instant::now() + TIMEOUT;
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
async fn a_token_that_is_gone_in_one_region_is_gone_in_all() {
    let peal = two_regions_that_can_be_cut_off().await;
    let tokens = [1, 2].map(|number| format!("{number:064x}"));
    set_region_links(&peal, &Trouble::Cut);
    for token in &tokens {
        register_device(&peal, "us", "bob", token).await;
        register_device(&peal, "eu", "ann", token).await;
    }
    wait_reached(&peal, "us", "bob", 2).await;
    wait_reached(&peal, "eu", "ann", 2).await;
    // A notification to bob waits for its second attempt while Apple reports the tokens gone in eu.
    let busy = Answer::reason("ServiceUnavailable").retry_after(RetryAfter::Seconds(12));
    peal.simulators
        .apns
        .script()
        .add(Rule::always().times(2).answer(busy))
        .unwrap();
    let waiting = send(&peal, "us", "waiting", &["bob"]).await;
    wait_parked(&peal, "us", &waiting, 2).await;
    let gone = Answer::reason("Unregistered");
    peal.simulators.apns.script().clear();
    peal.simulators
        .apns
        .script()
        .add(Rule::always().times(2).answer(gone))
        .unwrap();
    let id = send(&peal, "eu", "dead", &["ann"]).await;
    for delivery in wait_ended(&peal, "eu", &id, 2).await {
        assert_eq!(delivery["reason"], "Unregistered", "{delivery}");
    }
    wait_addresses(&peal, "eu", "ann", &[]).await;
    // After that the second device registers again in us, which does not know yet that it was gone.
    let alive = register_device(&peal, "us", "bob", &tokens[1]).await;
    set_region_links(&peal, &Trouble::None);
    wait_addresses(&peal, "us", "bob", &[&alive]).await;
    let asked = peal.simulators.apns.log().requests_for(&tokens[0]).len();
    for delivery in wait_ended(&peal, "us", &waiting, 2).await {
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
        peal.simulators.apns.log().requests_for(&tokens[0]).len(),
        asked,
        "nothing more is sent to the token that is gone"
    );
    assert_eq!(send_and_wait(&peal, "eu", "alive", "bob").await.0, "delivered");
    assert_settled(&peal).await;
}
