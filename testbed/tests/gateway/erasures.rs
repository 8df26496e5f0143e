//! Exports, and erasures with their proof, as far as one gateway can show them: what one app may do to another, and what stays.

use async_nats::HeaderMap;
use serde_json::{Value, json};
use shared::{api_key::Scope, nats::version};

use crate::rig::{Answer, Rig, eventually, send};

const NDJSON: &str = "application/x-ndjson";

/// The subscription of RFC 8291, appendix A.
const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

async fn import(rig: &Rig, key: &str, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let request = rig.request("POST", "/v1/imports").bearer_auth(key);
    let answer = send(request.header("content-type", NDJSON).body(lines.join("\n"))).await;
    for result in read(&answer) {
        assert!(result["status"].as_u64().unwrap() < 300, "{result}");
    }
}

fn read(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{answer:?}");
    match &answer.body {
        Value::String(text) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        one => vec![one.clone()],
    }
}

/// The recipients of an export, and the line that ends it, because no server runs the region `us`.
async fn export(rig: &Rig, key: &str, query: &str) -> (Vec<Value>, Value) {
    let answer = rig.call("GET", &format!("/v1/exports{query}"), Some(key), None).await;
    assert_eq!(answer.header("content-type"), Some(NDJSON));
    let mut lines = read(&answer);
    let end = lines.pop().unwrap();
    assert_eq!(end["unreachable"], json!(["us"]), "{end}");
    (lines, end)
}

/// The lines in the order of their recipients, without their cursors.
fn sorted(lines: &[Value]) -> Vec<Value> {
    let mut lines = lines.to_vec();
    for line in &mut lines {
        line.as_object_mut().unwrap().remove("cursor").unwrap();
    }
    lines.sort_by_key(|line| line["recipient_id"].as_str().unwrap().to_owned());
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_all_of_one_app_and_is_imported_as_it_was() {
    const MANY: usize = 150;
    let rig = Rig::start().await;
    let bank = rig.issue_key("bank", Scope::ALL).await;
    let weak = rig
        .issue_key("shop", &[Scope::RecipientsRead, Scope::RecipientsWrite])
        .await;
    let refused = rig.call("GET", "/v1/exports", Some(&weak), None).await;
    assert_eq!((refused.status, refused.code()), (403, "forbidden"));

    let ann = json!({
        "recipient_id": "ann-1/é=",
        "recipient": { "home": "eu", "locale": "de-CH", "timezone": "Europe/Zurich" },
        "addresses": [
            { "provider": "apns", "token": "ab12", "kind": "live_activity", "environment": "sandbox", "topic": "com.example",
              "activity_id": "ride-1" },
            { "provider": "fcm", "token": "t:1", "kind": "device", "environment": "production" },
            { "type": "web_push", "endpoint": "https://push.example.net/a", "p256dh": P256DH, "auth": AUTH },
            { "type": "email", "email": "Ann@example.com" },
            { "type": "phone", "phone": "+41791234567" },
            { "type": "webhook", "url": "https://example.com/hook", "format": "signed",
              "secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz" },
        ],
        "preferences": { "channels": { "sms": false }, "categories": { "offers": { "push": false } } },
        "topics": ["chess", "football"],
    });
    let line = |number: usize| {
        json!({
            "recipient_id": format!("r{number:03}"), "recipient": { "home": "eu" },
            "addresses": [{ "provider": "fcm", "token": format!("token-{number}"), "kind": "device", "environment": "production" }],
            "topics": [],
        })
    };
    let mut all: Vec<Value> = (1..MANY).map(line).collect();
    all.push(ann);
    import(&rig, &rig.key, &all).await;
    let theirs = json!({ "recipient_id": "r001", "addresses": [{ "provider": "fcm", "token": "of-the-bank" }] });
    import(&rig, &bank, &[theirs]).await;
    // What was removed is not exported.
    let gone = json!({ "recipient_id": "gone" });
    import(&rig, &rig.key, &[gone]).await;
    assert_eq!(rig.ask("DELETE", "/v1/recipients/gone", Value::Null).await.status, 204);

    let (mut lines, end) = export(&rig, &rig.key, "").await;
    // Addresses of one line are stored at the same time, in any order.
    let by_text = |line: &mut Value| {
        let addresses = line["addresses"].as_array_mut().unwrap();
        addresses.sort_by_key(ToString::to_string);
    };
    lines.iter_mut().for_each(by_text);
    all.iter_mut().for_each(by_text);
    all.sort_by_key(|line| line["recipient_id"].as_str().unwrap().to_owned());
    assert_eq!(sorted(&lines), all);

    // From any line on, the rest follows.
    for at in [0, 63, 64, 100, MANY - 1] {
        let query = format!("?cursor={}", lines[at]["cursor"].as_str().unwrap());
        let (mut rest, _) = export(&rig, &rig.key, &query).await;
        rest.iter_mut().for_each(by_text);
        assert_eq!(sorted(&rest), sorted(&lines[at + 1..]), "{at}");
    }
    let next = format!("?cursor={}", end["next"].as_str().unwrap());
    let (none, again) = export(&rig, &rig.key, &next).await;
    assert_eq!((none.len(), &again["next"]), (0, &end["next"]));
    // A cursor names places, not an app.
    let (others, _) = export(&rig, &bank, "").await;
    assert_eq!(others.len(), 1, "{others:?}");
    assert_eq!(others[0]["addresses"][0]["token"], "of-the-bank");
    let bad = rig.ask("GET", "/v1/exports?cursor=x", Value::Null).await;
    assert_eq!((bad.status, &bad.body["errors"][0]["field"]), (422, &json!("cursor")));

    // What one app exports another imports.
    import(&rig, &bank, &lines).await;
    let (mut copied, _) = export(&rig, &bank, "").await;
    copied.iter_mut().for_each(by_text);
    let mut copied = sorted(&copied);
    let both = copied.iter_mut().find(|line| line["recipient_id"] == "r001").unwrap();
    let addresses = both["addresses"].as_array_mut().unwrap();
    addresses.retain(|address| address["token"] != "of-the-bank");
    assert_eq!(copied, all);
}

/// Stores a dead letter of `app` for `recipient`.
async fn letter(rig: &Rig, app: &str, recipient: &str) {
    let mut headers = HeaderMap::new();
    headers.insert(version::VERSION, "1");
    headers.insert("Peal-Subject", format!("notify.push.eu.normal.{app}"));
    headers.insert("Peal-Reason", "timeout");
    let body = json!({ "event_id": format!("e-{recipient}"), "recipient": recipient, "push": { "title": "private" } });
    let subject = format!("dead.push.eu.{app}");
    let publishing = rig.js.publish_with_headers(subject, headers, body.to_string().into());
    publishing.await.unwrap().await.unwrap();
}

async fn letters(rig: &Rig, key: &str) -> Vec<String> {
    let answer = rig.call("GET", "/v1/dead-letters", Some(key), None).await;
    let letters = answer.body["dead_letters"].as_array().unwrap().clone();
    letters
        .iter()
        .map(|letter| letter["recipient"].as_str().unwrap_or_default().to_owned())
        .collect()
}

async fn tokens(rig: &Rig, key: &str, recipient: &str) -> Option<Vec<String>> {
    let (lines, _) = export(rig, key, "").await;
    let line = lines.into_iter().find(|line| line["recipient_id"] == recipient)?;
    let addresses = line["addresses"].as_array().unwrap();
    let token = |address: &Value| address["token"].as_str().unwrap().to_owned();
    Some(addresses.iter().map(token).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_removes_one_recipient_of_one_app_and_nothing_of_others() {
    let rig = Rig::start().await;
    let bank = rig.issue_key("bank", Scope::ALL).await;
    let fcm = |tokens: &[&str]| {
        let addresses = tokens.iter().map(|token| json!({ "provider": "fcm", "token": token }));
        addresses.collect::<Vec<_>>()
    };
    let line = |recipient: &str, tokens: &[&str]| {
        json!({
            "recipient_id": recipient, "recipient": { "locale": "de" }, "addresses": fcm(tokens), "topics": ["chess"],
            "preferences": { "channels": { "sms": false } },
        })
    };
    import(&rig, &rig.key, &[line("ann", &["ann-1", "moved"])]).await;
    import(&rig, &rig.key, &[line("bob", &["moved", "bob-1"])]).await;
    import(&rig, &bank, &[line("ann", &["ann-1"])]).await;
    for (app, recipient) in [("shop", "ann"), ("shop", "bob"), ("bank", "ann")] {
        letter(&rig, app, recipient).await;
    }

    // Another app can neither erase nor see.
    let weak = rig.issue_key("shop", &[Scope::RecipientsRead]).await;
    let refused = rig.call("POST", "/v1/recipients/ann/erase", Some(&weak), None).await;
    assert_eq!(refused.status, 403);
    let answer = rig.ask("POST", "/v1/recipients/ann/erase", Value::Null).await;
    assert_eq!(
        (answer.status, &answer.body["state"]),
        (202, &json!("pending")),
        "{answer:?}"
    );
    let path = answer.header("location").unwrap().to_owned();
    assert_eq!(rig.call("GET", &path, Some(&bank), None).await.status, 404);
    let is_done = async || {
        let proof = rig.ask("GET", &path, Value::Null).await;
        assert_eq!(proof.status, 200, "{proof:?}");
        proof.body["regions"]["eu"]["state"] == "done"
    };
    eventually("the region has erased", is_done).await;
    let proof = rig.ask("GET", &path, Value::Null).await.body;
    // Profile, preferences, one topic and one address: the other belongs to bob.
    let eu = &proof["regions"]["eu"];
    assert_eq!((&eu["facts"], &eu["dead_letters"]), (&json!(4), &json!(1)), "{proof}");
    assert_eq!(
        (&proof["regions"]["us"]["state"], &proof["state"]),
        (&json!("pending"), &json!("pending")),
        "no server runs it: {proof}"
    );
    assert_eq!(proof["remains"].as_array().unwrap().len(), 5);

    assert_eq!(rig.ask("GET", "/v1/recipients/ann", Value::Null).await.status, 404);
    assert_eq!(tokens(&rig, &rig.key, "ann").await, None);
    let mut bobs = tokens(&rig, &rig.key, "bob").await.unwrap();
    bobs.sort();
    assert_eq!(bobs, ["bob-1", "moved"], "a token that moved is not erased");
    assert_eq!(tokens(&rig, &bank, "ann").await.unwrap(), ["ann-1"]);
    assert_eq!(letters(&rig, &rig.key).await, ["bob"]);
    assert_eq!(letters(&rig, &bank).await, ["ann"]);

    // What is registered afterwards stays, also when the erasure is repeated some seconds later.
    import(&rig, &rig.key, &[line("ann", &["ann-2"])]).await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(tokens(&rig, &rig.key, "ann").await.unwrap(), ["ann-2"]);
    let answer = rig.ask("GET", "/v1/recipients/ann", Value::Null).await;
    assert_eq!(answer.body["locale"], "de", "{answer:?}");
    let unknown = "/v1/erasures/0197f3a0-0000-7000-8000-000000000001";
    assert_eq!(rig.ask("GET", unknown, Value::Null).await.status, 404);
}
