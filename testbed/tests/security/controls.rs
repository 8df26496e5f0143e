//! Controls: what is held or ended while everything runs, by those who may and nobody else.

use std::time::Duration;

use serde_json::{Value, json};
use shared::clock::Clock;
use testbed::peal::Peal;
use tokio::time::Instant;

use crate::apps::{Answer, ask, eventually};

/// How long workers of every region may take to obey.
const OBEYED_WITHIN: Duration = Duration::from_secs(2);

/// How long the pause lasts.
const PAUSED_FOR: Duration = Duration::from_secs(8);

async fn add(peal: &Peal, key: &str, body: Value) -> Answer {
    ask(peal, key, ("POST", "eu", "/v1/controls"), Some(&body)).await
}

/// Sends a push of bank to `ann` in us, and waits for the last attempt of its delivery to be in this state.
async fn ends(peal: &Peal, key: &str, (event, category): (&str, &str), expected: (&str, &str)) {
    let body = json!({
        "event_id": event, "to": { "recipients": ["ann"] }, "category": category, "push": { "title": "Hi", "ttl": 3600 },
    });
    let sent = ask(peal, key, ("POST", "us", "/v1/notifications"), Some(&body)).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    becomes(peal, key, event, expected).await;
}

async fn becomes(peal: &Peal, key: &str, event: &str, (state, reason): (&str, &str)) {
    let path = format!("/v1/notifications?event_id={event}");
    let read = async || ask(peal, key, ("GET", "us", &path), None).await;
    eventually(event, read, |answer| {
        let delivery = &answer.body["notifications"][0]["deliveries"][0];
        delivery["state"] == state && (reason.is_empty() || delivery["reason"] == reason)
    })
    .await;
}

/// What operators and the key of bank can do. The recipient `ann` of bank, in us, has a device.
pub(crate) async fn obeyed(peal: &Peal, operator: &str, bank: &str) {
    // Whoever has one app's key can neither touch other apps nor the mesh.
    for (body, field) in [
        (
            json!({ "action": "kill", "channel": "push", "why": "everybody" }),
            "app",
        ),
        (json!({ "action": "kill", "app": "shop", "why": "another" }), "app"),
        (json!({ "action": "pause", "why": "nothing" }), "app"),
        (
            json!({ "action": "pause", "app": "bank", "region": "mars", "why": "x" }),
            "region",
        ),
        (json!({ "action": "pause", "app": "bank", "why": "" }), "why"),
        (json!({ "action": "cap", "app": "bank", "why": "x" }), "action"),
        (
            json!({ "action": "pause", "app": "bank", "why": "x", "until": "2020-01-01T00:00:00Z" }),
            "until",
        ),
    ] {
        let refused = add(peal, bank, body.clone()).await;
        assert_eq!(
            (refused.status, refused.body["errors"][0]["field"].as_str()),
            (422, Some(field)),
            "{body}: {}",
            refused.body
        );
    }

    // Bank pauses itself, and is held everywhere, until then.
    let until = Clock::system().now() + PAUSED_FOR;
    let pause = json!({ "action": "pause", "app": "bank", "channel": "push", "until": until, "why": "a mistake" });
    let paused = add(peal, bank, pause).await;
    assert_eq!(paused.status, 201, "{}", paused.body);
    assert_eq!(paused.body["who"], bank[5..21], "{}", paused.body);
    let begun = Instant::now();
    tokio::time::sleep(OBEYED_WITHIN).await;
    ends(peal, bank, ("held", "news"), ("deferred", "paused")).await;
    assert!(begun.elapsed() < PAUSED_FOR, "this machine is too slow for the test");

    // An operator ends one category of it. Bank sees that, and cannot undo it.
    let kill = json!({ "action": "kill", "app": "bank", "category": "offers", "why": "wrong prices" });
    let killed = add(peal, operator, kill).await;
    assert_eq!(killed.status, 201, "{}", killed.body);
    tokio::time::sleep(OBEYED_WITHIN).await;
    ends(peal, bank, ("ended", "offers"), ("suppressed", "killed")).await;
    let seen = ask(peal, bank, ("GET", "us", "/v1/controls"), None).await;
    assert_eq!(seen.body["controls"].as_array().unwrap().len(), 2, "{}", seen.body);
    let path = format!("/v1/controls/{}", killed.body["id"].as_str().unwrap());
    for (key, expected) in [
        (bank, (403, "forbidden")),
        (&peal.key, (404, "not_found")),
        (operator, (204, "")),
    ] {
        let removed = ask(peal, key, ("DELETE", "us", &path), None).await;
        assert_eq!((removed.status, removed.code()), expected, "{}", removed.body);
    }
    let others = ask(peal, &peal.key, ("GET", "eu", "/v1/controls"), None).await;
    assert_eq!(others.body, json!({ "controls": [] }));

    // What was held is sent when the pause is over.
    becomes(peal, bank, "held", ("delivered", "")).await;
    tokio::time::sleep(OBEYED_WITHIN).await;
    ends(peal, bank, ("again", "offers"), ("delivered", "")).await;
}
