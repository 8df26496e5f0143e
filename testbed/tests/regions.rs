//! Regions that come while the others run, and that help each other.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use testbed::{
    audit::Audit,
    links::{Between, Trouble},
    nats,
    peal::{Links, Peal, Plan},
    providers::{Answer, RetryAfter, Rule, now_s},
};
use tokio::time::{Instant, sleep};

/// Longer than anything takes that goes well, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

async fn start(adjust: impl FnOnce(&mut Plan)) -> Peal {
    let mut plan = Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap());
    adjust(&mut plan);
    Peal::start(plan).await.unwrap()
}

/// Registers ann, who lives in eu and has one device.
async fn register_ann(peal: &Peal) {
    let token = format!("{:064x}", 1);
    peal.register("ann", "eu", &[("apns", &token)]).await.unwrap();
}

async fn assert_settled(peal: &Peal) {
    let audit = Audit::read_settled(peal, PATIENCE).await.unwrap();
    assert!(audit.equation().is_settled(), "{}", audit.equation());
}

/// Sends from `region` and returns the notification's id.
async fn send(peal: &Peal, region: &str, event: &str, recipients: &[&str]) -> String {
    let body = json!({ "event_id": event, "to": { "recipients": recipients }, "push": { "title": "Hi" } });
    let answer = peal
        .expect("POST", region, "/v1/notifications", Some(&body))
        .await
        .unwrap();
    answer["notification_id"].as_str().unwrap().to_owned()
}

/// The deliveries of a notification once all have ended.
async fn ended(peal: &Peal, region: &str, id: &str, deliveries: usize) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let path = format!("/v1/notifications/{id}");
        let (_, answer) = peal.ask("GET", region, &path, None).await.unwrap();
        let found: Vec<Value> = answer["deliveries"].as_array().cloned().unwrap_or_default();
        let ended =
            |delivery: &&Value| !["parked", "attempting"].contains(&delivery["state"].as_str().unwrap_or_default());
        if found.iter().filter(ended).count() >= deliveries {
            return found;
        }
        assert!(Instant::now() < deadline, "{answer}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}

/// Process ids of everything that runs in `regions`.
fn processes(peal: &Peal, regions: &[&str]) -> Vec<Option<u32>> {
    let programs = regions.iter().map(|name| peal.region(name)).flat_map(|region| {
        let programs = region.workers.iter().chain([&region.gateway]);
        programs.map(|program| program.process.id())
    });
    programs.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_added_while_the_others_run() {
    let mut peal = start(|plan| {
        plan.workers = 1;
        plan.later = vec!["ap".into()];
    })
    .await;
    let before = processes(&peal, &["eu", "us"]);
    peal.add_region("ap").await.unwrap();
    peal.register("kim", "ap", &[("apns", &format!("{:064x}", 1))])
        .await
        .unwrap();
    peal.register("ann", "eu", &[("apns", &format!("{:064x}", 2))])
        .await
        .unwrap();
    // Both ways, each accepted where the recipient does not live.
    peal.wait_known("eu", "kim").await.unwrap();
    peal.wait_known("ap", "ann").await.unwrap();
    let to_ap = send(&peal, "eu", "to-ap", &["kim"]).await;
    let to_eu = send(&peal, "ap", "to-eu", &["ann"]).await;
    assert_eq!(ended(&peal, "eu", &to_ap, 1).await[0]["state"], "delivered");
    assert_eq!(ended(&peal, "ap", &to_eu, 1).await[0]["state"], "delivered");
    assert_eq!(processes(&peal, &["eu", "us"]), before, "nothing was started again");
    assert_settled(&peal).await;
}

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
    assert_eq!(peal.simulators.apns.stats().duplicates, 0);
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
    assert_eq!(peal.simulators.apns.stats().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_cut_off_says_how_old_its_knowledge_is() {
    let peal = start(|plan| {
        plan.workers = 1;
        plan.links = Links::Proxies(1);
        plan.worker_settings = "stale_after_s = { urgent = 2, normal = 2, bulk = 2 }".into();
    })
    .await;
    register_ann(&peal).await;
    // The class of what is sent, until what becomes of it is as it should be.
    let until = async |class: &str, state: &str, stale: bool| {
        let deadline = Instant::now() + PATIENCE;
        for number in 0.. {
            let event = format!("{class}-{state}-{stale}-{number}");
            let body = json!({ "event_id": event, "class": class, "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
            let answer = peal
                .expect("POST", "eu", "/v1/notifications", Some(&body))
                .await
                .unwrap();
            let deliveries = ended(&peal, "eu", answer["notification_id"].as_str().unwrap(), 1).await;
            let attempt = &deliveries[0]["attempts"][0];
            if deliveries[0]["state"] == state && attempt["stale_s"].is_u64() == stale {
                return deliveries[0]["reason"].as_str().map(str::to_owned);
            }
            assert!(Instant::now() < deadline, "{deliveries:?}\n{}", peal.complaints());
            sleep(Duration::from_millis(200)).await;
        }
        unreachable!("the numbers do not end")
    };
    assert_eq!(until("bulk", "delivered", false).await, None);
    let ways = |trouble: &Trouble| {
        let links = peal.links.iter().filter(|link| link.between == Between::Regions);
        links.for_each(|link| link.set(trouble).unwrap());
    };
    ways(&Trouble::Cut);
    assert_eq!(
        until("bulk", "suppressed", true).await.as_deref(),
        Some("stale_consent")
    );
    assert_eq!(until("urgent", "delivered", true).await, None);
    assert_eq!(until("normal", "delivered", true).await, None);
    ways(&Trouble::None);
    assert_eq!(until("bulk", "delivered", false).await, None);
}

/// The slot of 50 minutes whose provider token workers use at this moment.
fn slot() -> usize {
    usize::try_from((now_s() - 5 * 60) / (50 * 60)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_workers_show_apple_one_provider_token_also_when_cut_off_or_started_anew() {
    let mut peal = start(|plan| plan.links = Links::Proxies(1)).await;
    let before = slot();
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
                let deliveries = ended(peal, home, &id, 20).await;
                assert!(
                    deliveries.iter().all(|delivery| delivery["state"] == "delivered"),
                    "{deliveries:?}"
                );
            }
        }
    };
    deliver(&peal, "together").await;
    let ways = peal
        .links
        .iter()
        .filter(|link| link.between == Between::Regions && link.region == "us");
    ways.for_each(|link| link.set(&Trouble::Cut).unwrap());
    let (program, http) = (peal.program(), peal.http.clone());
    for worker in &mut peal.region_mut("us").workers {
        worker.process.kill().await.unwrap();
        worker.restart(&program).unwrap();
        worker.wait_ready(&http).await.unwrap();
    }
    deliver(&peal, "cut-off").await;
    let tokens = peal.simulators.apns.provider_tokens();
    assert!((1..=1 + slot() - before).contains(&tokens), "{tokens} provider tokens");
    assert_eq!(peal.simulators.apns.stats().delivered, 2 * 2 * 4 * 20);
}

/// Whether any file below `folder` has these bytes.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.into_iter().any(|entry| {
        if entry.file_type().unwrap().is_dir() {
            return holds(&entry.path(), bytes);
        }
        // A server may remove a file while it is looked at.
        let content = std::fs::read(entry.path()).unwrap_or_default();
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_resides_in_a_region_never_leaves_it() {
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
    assert_eq!(ended(&peal, "eu", id, 1).await[0]["state"], "delivered");
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

    // The directory says everywhere that ann lives in eu; when that is in us, what else could have left has.
    let us = peal.nats.region("us").store();
    let deadline = Instant::now() + PATIENCE;
    while !holds(&us, b"home.shop.ann") {
        assert!(Instant::now() < deadline, "nothing flows between the regions");
        sleep(Duration::from_millis(100)).await;
    }
    for secret in [token.as_bytes(), b"only-for-eyes-in-eu"] {
        assert!(
            holds(&peal.nats.region("eu").store(), secret),
            "this test would not find it"
        );
        assert!(!holds(&us, secret), "it is in us");
        assert!(
            !holds(&peal.region("us").workers[0].data(), secret),
            "a worker of us has it"
        );
        assert!(!holds(&peal.nats.hub().store(), secret), "it is in the hub");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_moves_takes_everything_along_and_misses_nothing() {
    let peal = start(|plan| plan.workers = 1).await;
    let devices = [("apns", "a1"), ("fcm", "fcm:tablet")];
    peal.register("ann", "eu", &devices).await.unwrap();
    let opt_out = json!({ "categories": { "offers": { "push": false } } });
    peal.expect("PUT", "eu", "/v1/recipients/ann/preferences", Some(&opt_out))
        .await
        .unwrap();
    // Profile, two devices, preferences.
    wait_cached(&peal, "eu", 4.0).await;
    // A retry of this waits in eu while ann moves.
    let busy = Answer::reason("ServiceUnavailable");
    peal.simulators
        .apns
        .script()
        .add(Rule::token("a1").times(1).answer(busy))
        .unwrap();
    let parked = send(&peal, "eu", "parked", &["ann"]).await;
    ended(&peal, "eu", &parked, 1).await;
    let ((), moved) = tokio::join!(
        async {
            for number in 0..40 {
                send(&peal, "eu", &format!("meanwhile-{number}"), &["ann"]).await;
            }
        },
        async {
            let home = json!({ "home": "us" });
            peal.expect("PUT", "eu", "/v1/recipients/ann", Some(&home))
                .await
                .unwrap()
        }
    );
    assert_eq!(moved["home"], "us");
    let after = send(&peal, "eu", "after", &["ann"]).await;
    for (event, region) in [(&parked, None), (&after, Some("us"))] {
        let deliveries = ended(&peal, "eu", event, 2).await;
        assert_eq!(deliveries.len(), 2, "{deliveries:?}");
        for delivery in deliveries {
            assert_eq!(delivery["state"], "delivered", "{delivery}");
            assert!(region.is_none_or(|region| delivery["region"] == region), "{delivery}");
        }
    }
    let offer = json!({ "to": { "recipients": ["ann"] }, "category": "offers", "push": { "title": "Sale" } });
    let offer = peal
        .expect("POST", "us", "/v1/notifications", Some(&offer))
        .await
        .unwrap();
    let deliveries = ended(&peal, "us", offer["notification_id"].as_str().unwrap(), 1).await;
    assert_eq!(deliveries[0]["reason"], "opted_out", "what was agreed to moved along");
    assert_settled(&peal).await;
    let delivered = peal.simulators.apns.stats().delivered + peal.simulators.fcm.stats().delivered;
    assert_eq!(
        delivered,
        2 * 42,
        "each of 42 notifications once to each of two devices"
    );
    assert_eq!(
        peal.simulators.apns.stats().duplicates + peal.simulators.fcm.stats().duplicates,
        0
    );
}

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

fn set_ways(peal: &Peal, trouble: &Trouble) {
    let links = peal.links.iter().filter(|link| link.between == Between::Regions);
    links.for_each(|link| link.set(trouble).unwrap());
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
    for delivery in ended(&peal, "eu", &id, 2).await {
        assert_eq!(delivery["reason"], "Unregistered", "{delivery}");
    }
    wait_addresses(&peal, "eu", "ann", &[]).await;
    // The second device comes back after that, where nobody has heard of it.
    let alive = register_device(&peal, "us", "bob", &tokens[1]).await;
    set_ways(&peal, &Trouble::None);
    wait_addresses(&peal, "us", "bob", &[&alive]).await;
    let asked = peal.simulators.apns.log().requests_for(&tokens[0]).len();
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
        peal.simulators.apns.log().requests_for(&tokens[0]).len(),
        asked,
        "Apple is not asked again"
    );
    assert_eq!(delivered(&peal, "eu", "alive", "bob").await.0, "delivered");
    assert_settled(&peal).await;
}

/// What the workers of `region` say of themselves by this name, together.
async fn metric(peal: &Peal, region: &str, name: &str) -> f64 {
    let mut sum = 0.0;
    for worker in &peal.region(region).workers {
        let page = peal.http.get(format!("{}/metrics", worker.url)).send().await;
        let page = page.unwrap_or_else(|error| panic!("{error}\n{}", peal.complaints()));
        let page = page.text().await.unwrap();
        let lines = page.lines().filter(|line| line.split('{').next() == Some(name));
        sum += lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum::<f64>();
    }
    sum
}

/// Waits until the only worker of `region` has so many facts in its cache.
async fn wait_cached(peal: &Peal, region: &str, facts: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(peal, region, "peal_cache_sequence").await < facts {
        assert!(Instant::now() < deadline, "{}", peal.complaints());
        sleep(Duration::from_millis(20)).await;
    }
}

/// Messages a minute that the workers of `region` may send through FCM.
async fn granted(peal: &Peal, region: &str) -> f64 {
    metric(peal, region, "peal_quota_granted").await
}

async fn wait_granted(peal: &Peal, region: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let granted = granted(peal, region).await;
        if wanted(granted) {
            return granted;
        }
        assert!(
            Instant::now() < deadline,
            "{granted} in {region}\n{}",
            peal.complaints()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// The most pushes that FCM took within any `seconds`.
fn most_within(peal: &Peal, seconds: i64) -> usize {
    let mut times: Vec<i64> = peal
        .simulators
        .fcm
        .log()
        .pushes()
        .iter()
        .map(|push| push.at_ms)
        .collect();
    times.sort_unstable();
    let within = |(first, begin): (usize, &i64)| times[first..].partition_point(|at| at - begin < seconds * 1000);
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_lends_of_its_quota_what_it_does_not_need_and_has_it_back_when_cut_off() {
    const QUOTA: u32 = 1200;
    const SHARE: f64 = 600.0;
    let peal = start(|plan| {
        plan.links = Links::Proxies(1);
        plan.fcm_quota = QUOTA.try_into().ok();
    })
    .await;
    for (recipient, home) in [("ann", "eu"), ("bob", "us")] {
        let devices: Vec<String> = (0..20).map(|device| format!("fcm:{recipient}-{device}")).collect();
        let devices: Vec<(&str, &str)> = devices.iter().map(|token| ("fcm", token.as_str())).collect();
        peal.register(recipient, home, &devices).await.unwrap();
    }
    // More than twice what the whole quota allows.
    let load = async |region: &str, recipient: &str| {
        for number in 0.. {
            send(&peal, region, &format!("{region}-{number}"), &[recipient]).await;
            sleep(Duration::from_millis(500)).await;
        }
    };
    let lent = async {
        wait_granted(&peal, "eu", |granted| granted > 1.5 * SHARE).await;
        // It is not only said: more get through than eu could send alone.
        let deadline = Instant::now() + PATIENCE;
        while most_within(&peal, 10) < 140 {
            assert!(Instant::now() < deadline, "{} in ten seconds", most_within(&peal, 10));
            sleep(Duration::from_millis(200)).await;
        }
        set_ways(&peal, &Trouble::Cut);
        wait_granted(&peal, "eu", |granted| 0.0 < granted && granted <= SHARE).await;
        tokio::select! {
            () = load("us", "bob") => (),
            granted = wait_granted(&peal, "us", |granted| granted > 0.9 * SHARE) => assert!(granted <= SHARE),
        }
        set_ways(&peal, &Trouble::None);
        wait_granted(&peal, "eu", |granted| granted > SHARE).await;
    };
    tokio::select! {
        () = load("eu", "ann") => (),
        () = lent => (),
    }
    assert!(
        most_within(&peal, 60) <= QUOTA as usize,
        "{} in a minute",
        most_within(&peal, 60)
    );
    // A tenth for pushes that were on their way for longer than those before them.
    assert!(
        most_within(&peal, 20) <= 440,
        "{} in twenty seconds",
        most_within(&peal, 20)
    );
}
