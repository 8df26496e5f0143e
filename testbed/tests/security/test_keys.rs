//! What the holder of a test key reaches: the test recipients of its app, as they are listed when each attempt is made, and nothing
//! that other keys have done or will do.

use std::{collections::BTreeMap, time::Duration};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use shared::{
    api_key::{NewKey, Scope},
    clock::Clock,
    nats::config,
};
use testbed::{
    peal::{APP, Peal},
    providers::{Answer, Rule},
};
use tokio::time::{Instant, sleep};

use crate::{
    apps::{ask, eventually},
    rig::{TIMEOUT, app, mesh},
};

/// A device of each recipient.
const DEVICES: [(&str, &str, &str); 3] = [("ann", "eu", "aa"), ("bob", "eu", "bb"), ("cas", "us", "cc")];

fn token(start: &str) -> String {
    start.repeat(32)
}

/// Lists the test recipients.
async fn list(peal: &Peal, recipients: &[&str]) {
    let hub = gateway::provision::hub(peal.connect_as_operator().await.unwrap());
    let mut shop = config::current_app(&hub, &app(APP)).await.unwrap().value.unwrap();
    shop.test_recipients = recipients.iter().map(|name| name.parse().unwrap()).collect();
    config::put_app(&hub, &shop).await.unwrap();
}

/// A test key with every scope, which every region knows.
async fn test_key(peal: &Peal) -> String {
    let new = NewKey {
        test: true,
        signing: true,
        ..NewKey::with(Scope::ALL)
    };
    peal.issue_key(new).await.unwrap()
}

/// The state, provider and reason of each delivery of a notification by recipient, once there are `count` and all have ended.
async fn ends(peal: &Peal, at: &str, accepted: &Value, count: usize) -> BTreeMap<String, [String; 3]> {
    let path = format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap());
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (_, status) = peal.ask("GET", at, &path, None).await.unwrap();
        let deliveries = status["deliveries"].as_array().cloned().unwrap_or_default();
        let is_open = |delivery: &Value| {
            ["parked", "attempting", "expanded"]
                .iter()
                .any(|state| delivery["state"] == **state)
        };
        if deliveries.len() >= count && !deliveries.iter().any(is_open) {
            let text = |delivery: &Value, member: &str| delivery[member].as_str().unwrap_or_default().to_owned();
            let end = |one: &Value| ["state", "provider", "reason"].map(|member| text(one, member));
            assert_eq!(deliveries.len(), count, "{status}");
            return deliveries
                .iter()
                .map(|one| (text(one, "recipient"), end(one)))
                .collect();
        }
        assert!(Instant::now() < deadline, "{status}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}

async fn send(peal: &Peal, key: &str, at: &str, body: &Value) -> Value {
    let sent = ask(peal, key, ("POST", at, "/v1/notifications"), Some(body)).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    sent.body
}

fn received(peal: &Peal, start: &str) -> usize {
    peal.simulators.apns.log().delivered_to(&token(start)).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reaches_listed_recipients_and_takes_nothing_from_other_keys() {
    let peal = mesh().await;
    for (recipient, home, start) in DEVICES {
        peal.register(recipient, home, &[("apns", &token(start))])
            .await
            .unwrap();
        let path = format!("/v1/recipients/{recipient}/topics/news");
        peal.expect("PUT", home, &path, None).await.unwrap();
    }
    peal.wait_known("eu", "cas").await.unwrap();
    list(&peal, &["ann"]).await;
    let key = test_key(&peal).await;
    let unlisted = ["suppressed", "", "not_listed"].map(String::from);
    let delivered = |provider: &str| ["delivered", provider, ""].map(String::from);

    // It is first with an event id, and takes it from nobody: neither the jobs nor the answer of another key.
    let event = json!({
        "event_id": "order-42",
        "to": { "recipients": ["ann", "bob", "cas", "dan"] },
        "push": { "title": "Hi" },
        "test": false,
    });
    let tested = send(&peal, &key, "eu", &event).await;
    let expected = |ann: [String; 3]| -> BTreeMap<String, [String; 3]> {
        let others = ["bob", "cas", "dan"].map(|name| (name.to_owned(), unlisted.clone()));
        others.into_iter().chain([("ann".to_owned(), ann)]).collect()
    };
    assert_eq!(ends(&peal, "eu", &tested, 4).await, expected(delivered("apns")));
    assert_eq!(["aa", "bb", "cc"].map(|start| received(&peal, start)), [1, 0, 0]);
    let meant =
        json!({ "event_id": "order-42", "to": { "recipients": ["ann", "bob", "cas"] }, "push": { "title": "Hi" } });
    let live = send(&peal, &peal.key, "eu", &meant).await;
    assert_eq!((&live["jobs"], &live["duplicates"]), (&json!(3), &json!(0)));
    assert_ne!(live["notification_id"], tested["notification_id"]);
    let all = ends(&peal, "eu", &live, 3).await;
    assert!(all.values().all(|end| *end == delivered("apns")), "{all:?}");
    let found = ask(&peal, &key, ("GET", "eu", "/v1/notifications?event_id=order-42"), None).await;
    assert_eq!(
        found.body["notifications"][0]["notification_id"],
        tested["notification_id"]
    );

    same_idempotency_key(&peal, &key).await;

    // Unless it says otherwise, what it sends ends at the provider that sends nothing. So does a test of any key.
    let to = json!({ "recipients": ["ann", "bob"] });
    let usual = send(&peal, &key, "us", &json!({ "to": to, "push": { "title": "Hi" } })).await;
    let usual = ends(&peal, "us", &usual, 2).await;
    assert_eq!((&usual["ann"], &usual["bob"]), (&delivered("log"), &unlisted));
    let before = received(&peal, "bb");
    let dry = send(
        &peal,
        &peal.key,
        "us",
        &json!({ "to": to, "push": { "title": "Hi" }, "test": true }),
    )
    .await;
    let dry = ends(&peal, "us", &dry, 2).await;
    assert_eq!((&dry["ann"], &dry["bob"]), (&delivered("log"), &delivered("log")));
    assert_eq!(received(&peal, "bb"), before);

    // To a topic, in every region; to an address; and the later steps of a plan.
    let news = json!({ "to": { "topic": "news" }, "push": { "title": "Hi" }, "test": false });
    let news = send(&peal, &key, "eu", &news).await;
    let by_state = async || {
        let path = format!("/v1/notifications/{}", news["notification_id"].as_str().unwrap());
        ask(&peal, &peal.key, ("GET", "eu", &path), None).await
    };
    let is_done = |answer: &crate::apps::Answer| {
        answer.body["broadcast"]["by_state"] == json!({ "delivered": 1, "suppressed": 2 })
    };
    eventually("the broadcast is done", by_state, is_done).await;
    assert_eq!(received(&peal, "bb"), before);
    let direct = json!({ "address": { "provider": "apns", "token": token("dd") } });
    let direct = send(
        &peal,
        &key,
        "eu",
        &json!({ "to": direct, "push": { "title": "Hi" }, "test": false }),
    )
    .await;
    assert_eq!(
        ends(&peal, "eu", &direct, 1).await.into_values().next(),
        Some(unlisted.clone())
    );
    let plan = json!({ "mode": "fallback", "steps": [{ "channel": "push" }, { "channel": "sms" }] });
    let planned = json!({
        "to": { "recipients": ["bob"] }, "plan": plan, "push": { "title": "Hi" }, "sms": { "text": "Hi" }, "test": false,
    });
    let planned = send(&peal, &key, "eu", &planned).await;
    assert_eq!(ends(&peal, "eu", &planned, 1).await["bob"], unlisted);

    list_changes_between_attempts(&peal, &key).await;
    writes_nothing(&peal, &key).await;
}

/// The same `Idempotency-Key` and body by both keys: each is answered for itself.
async fn same_idempotency_key(peal: &Peal, key: &str) {
    let body = json!({ "to": { "recipients": ["bob"] }, "push": { "title": "Hi" } });
    let url = format!("{}/v1/notifications", peal.region("eu").gateway.url);
    let by = async |key: &str| {
        let request = peal.http.post(&url).bearer_auth(key).header("idempotency-key", "same");
        let answer = request.json(&body).send().await.unwrap();
        let is_repeated = answer.headers().contains_key("idempotent-replayed");
        (is_repeated, answer.json::<Value>().await.unwrap())
    };
    let (_, tested) = by(key).await;
    let (is_repeated, live) = by(&peal.key).await;
    assert!(
        !is_repeated && live["notification_id"] != tested["notification_id"],
        "{live}"
    );
    assert_eq!(ends(peal, "eu", &live, 1).await["bob"][0], "delivered");
    assert_eq!(by(key).await, (true, tested));
}

/// A recipient who is not listed any more is not reached by a retry, and one who is listed is reached at once.
async fn list_changes_between_attempts(peal: &Peal, key: &str) {
    let script = peal.simulators.apns.script();
    script
        .add(Rule::token(&token("aa")).answer(Answer::reason("ServiceUnavailable")))
        .unwrap();
    let body =
        |to: &str| json!({ "to": { "recipients": [to] }, "push": { "title": "Hi", "ttl": 3600 }, "test": false });
    let sent = send(peal, key, "eu", &body("ann")).await;
    let path = format!("/v1/notifications/{}", sent["notification_id"].as_str().unwrap());
    let status = async || ask(peal, key, ("GET", "eu", &path), None).await;
    let is_parked = |answer: &crate::apps::Answer| answer.body["deliveries"][0]["state"] == "parked";
    eventually("the first attempt fails", status, is_parked).await;
    list(peal, &["bob"]).await;
    let ann = &ends(peal, "eu", &sent, 1).await["ann"];
    assert_eq!((ann[0].as_str(), ann[2].as_str()), ("suppressed", "not_listed"));
    script.clear();
    let listed = send(peal, key, "eu", &body("bob")).await;
    assert_eq!(ends(peal, "eu", &listed, 1).await["bob"][0], "delivered");
}

/// It gives no listed recipient an address of somebody else, replays and withdraws nothing, and makes no key; nor does a token that
/// it signed.
async fn writes_nothing(peal: &Peal, key: &str) {
    let address = json!({ "provider": "apns", "token": token("dd") });
    let notification = format!("/v1/notifications/{}", uuid::Uuid::nil());
    for (method, path, body) in [
        ("POST", "/v1/recipients/bob/addresses", Some(&address)),
        ("DELETE", "/v1/recipients/cas/addresses", None),
        ("PUT", "/v1/recipients/bob", Some(&json!({ "home": "us" }))),
        ("DELETE", "/v1/recipients/cas", None),
        ("DELETE", &notification, None),
        ("POST", "/v1/dead-letters/replay", Some(&json!({}))),
        ("POST", "/v1/dead-letters/eu-1/replay", None),
        (
            "POST",
            "/v1/suppressions",
            Some(&json!({ "channel": "email", "address": "ann@example.com" })),
        ),
        (
            "POST",
            "/v1/apps/shop/keys",
            Some(&json!({ "scopes": ["notifications:write"] })),
        ),
        (
            "PUT",
            "/v1/apps/shop",
            Some(&json!({ "id": "shop", "default_region": "eu", "test_recipients": ["cas"] })),
        ),
    ] {
        let answer = ask(peal, key, (method, "eu", path), body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (403, "forbidden"),
            "{method} {path}: {}",
            answer.body
        );
    }
    let [_, id, secret] = <[&str; 3]>::try_from(key.splitn(3, '_').collect::<Vec<_>>()).unwrap();
    let now = Clock::system().now().as_second();
    let claims = json!({ "aud": "peal", "iss": APP, "sub": "bob", "iat": now, "exp": now + 600, "scope": "addresses" });
    let header = Header {
        kid: Some(id.to_owned()),
        ..Header::default()
    };
    let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap();
    let by_token = ask(
        peal,
        &token,
        ("POST", "eu", "/v1/recipients/bob/addresses"),
        Some(&address),
    )
    .await;
    assert_eq!(
        (by_token.status, by_token.code()),
        (403, "forbidden"),
        "{}",
        by_token.body
    );
}
