//! Scopes and tenants: the cases are generated from the API's description, so that no operation is forgotten.

use std::time::Duration;

use async_nats::HeaderMap;
use base64::{Engine, engine::general_purpose::STANDARD};
use gateway::{Gateway, provision};
use serde_json::{Value, json};
use shared::provider::Credential;
use shared::{
    api_key::{ApiKey, NewKey, Scope},
    clock::Clock,
    id_key::IdKey,
    nats::{
        config, direct, envelope, key_use, publish, subject,
        topology::{self, Domain},
    },
};

use crate::rig::{Rig, app, eventually};

/// One operation of the API, with ids of `shop` in its path.
#[derive(Debug)]
struct Operation {
    method: String,
    path: String,
    scope: Option<Scope>,
    takes_body: bool,
}

/// Every operation that the API describes.
fn operations(
    Samples {
        notification,
        planned,
        address,
        suppression,
        erasure,
    }: &Samples,
) -> Vec<Operation> {
    let api: Value = serde_json::from_str(&gateway::documents::openapi()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        // Regions are of operators, who have keys of their own.
        let item = item
            .as_object()
            .unwrap()
            .iter()
            .filter(|_| !path.starts_with("/v1/regions"));
        for (method, operation) in item {
            let scope = operation["security"][0]["api_key"][0]
                .as_str()
                .map(|scope| scope.parse().unwrap());
            // A replay removes its letter.
            let letter = if path.ends_with("/replay") { "eu-2" } else { "eu-1" };
            let notification = if method == "patch" { planned } else { notification };
            operations.push(Operation {
                method: method.to_uppercase(),
                path: path
                    .replace("{letter_id}", letter)
                    .replace("{notification_id}", notification)
                    .replace("{recipient_id}", "ann")
                    .replace("{topic}", "news")
                    .replace("{address_id}", address)
                    .replace("{erasure_id}", erasure)
                    .replace("{id}", suppression)
                    .replace("{app}", "shop")
                    .replace("{key_id}", "0123456789abcdef")
                    .replace("{schedule_id}", "yearly")
                    + match (method.as_str(), path.as_str()) {
                        ("get", "/v1/notifications") => "?event_id=e1",
                        ("delete", "/v1/notifications") => "?group_key=room",
                        _ => "",
                    },
                scope,
                takes_body: operation.get("requestBody").is_some(),
            });
        }
    }
    operations
}

impl Operation {
    /// A valid body for the operation, if it takes one.
    fn body(&self) -> Option<Value> {
        let body = match self.path.rsplit('/').next().unwrap() {
            _ if self.changes_what_waits() => json!({ "send_at": Clock::system().now() + Duration::from_hours(48) }),
            "yearly" => yearly(),
            "keys" => json!({ "scopes": [] }),
            "shop" => json!({
                "id": "shop",
                "default_region": "eu",
                "services": true,
                "senders": { "email": ["news@shop.example"], "sms": ["Shop"] },
                "credentials": { "log": {} },
            }),
            "notifications" => json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } }),
            "addresses" => json!({ "provider": "fcm", "token": "t1" }),
            "replay" => json!({ "reason": "none of them" }),
            "preferences" => json!({ "channels": { "push": true } }),
            "suppressions" => json!({ "channel": "email", "address": "ann@example.com" }),
            "controls" => json!({ "action": "pause", "app": "shop", "category": "news", "why": "a test" }),
            "imports" => json!({
                "recipient_id": "ann",
                "recipient": { "locale": "en" },
                "addresses": [{ "provider": "fcm", "token": "t1" }],
                "preferences": { "channels": { "push": true } },
                "topics": ["news"],
            }),
            _ => json!({ "locale": "en" }),
        };
        self.takes_body.then_some(body)
    }
}

impl Operation {
    fn changes_what_waits(&self) -> bool {
        self.method == "PATCH" && self.path.starts_with("/v1/notifications/")
    }
}

fn yearly() -> Value {
    json!({
        "cron": "0 8 1 1 *",
        "timezone": "UTC",
        "notification": { "to": { "recipients": ["ann"] }, "push": { "title": "A new year" } },
    })
}

/// The ids of what [`store_samples`] stores.
struct Samples {
    notification: String,
    planned: String,
    address: String,
    suppression: String,
    erasure: String,
}

/// Stores for `shop` a notification, one that waits, a schedule, and an address of ann, who opts out, a mailbox that is suppressed, the erasure of bob, and
/// two dead letters.
async fn store_samples(rig: &Rig) -> Samples {
    let sent = rig.notify("e1", &["ann"]).await;
    let address = rig
        .ask(
            "POST",
            "/v1/recipients/ann/addresses",
            json!({ "provider": "fcm", "token": "t1" }),
        )
        .await;
    let planned = json!({
        "event_id": "later",
        "to": { "recipients": ["ann"] },
        "group_key": "room",
        "send_at": Clock::system().now() + Duration::from_hours(24),
        "push": { "title": "Hi" },
    });
    let planned = rig.ask("POST", "/v1/notifications", planned).await;
    assert_eq!(rig.ask("PUT", "/v1/schedules/yearly", yearly()).await.status, 201);
    let wanted = json!({ "channel": "email", "address": "ann@example.com", "reason": "unsubscribe" });
    let suppressed = rig.ask("POST", "/v1/suppressions", wanted).await;
    let erased = rig.ask("POST", "/v1/recipients/bob/erase", Value::Null).await;
    let refusal = json!({ "channels": { "push": false }, "categories": {} });
    assert_eq!(
        rig.ask("PUT", "/v1/recipients/ann/preferences", refusal).await.status,
        200
    );
    for id in ["a", "b"] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        headers.insert(envelope::SUBJECT, "notify.push.eu.normal.shop");
        headers.insert(envelope::REASON, "InternalServerError");
        headers.insert(envelope::EVENT_ID, "e1");
        let body = json!({ "recipient": "ann", "push": { "title": "Hi" } }).to_string();
        publish::store(&rig.js, "dead.push.eu.shop".into(), headers, body.into())
            .await
            .unwrap();
    }
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Samples {
        notification: text(&sent.body["notification_id"]),
        planned: text(&planned.body["notification_id"]),
        address: text(&address.body["address_id"]),
        suppression: text(&suppressed.body["id"]),
        erasure: text(&erased.body["erasure_id"]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_needs_its_scope_and_no_other() {
    let rig = Rig::start().await;
    let samples = store_samples(&rig).await;
    let operations = operations(&samples);
    let open: Vec<&str> = operations
        .iter()
        .filter(|op| op.scope.is_none())
        .map(|op| op.path.as_str())
        .collect();
    // Callbacks are signed by their provider; the tests of the channels try them.
    let callbacks = "/v1/callbacks/{provider}/shop";
    assert_eq!(open, ["/healthz", "/metrics", "/readyz", callbacks, "/v1/openapi.json"]);

    let mut forged = rig.key.clone();
    let flipped = if forged.ends_with('A') { "E" } else { "A" };
    forged.replace_range(forged.len() - 1.., flipped);
    let past = jiff::Timestamp::UNIX_EPOCH;
    let ended = NewKey {
        expires_at: Some(past),
        ..NewKey::with(Scope::ALL)
    };
    let (ended, ended_text) = ApiKey::issue(&rig.mesh_key, app(), ended, past);
    config::put_key(&rig.hub, &ended).await.unwrap();
    for &scope in Scope::ALL {
        let only = rig.issue_key("shop", &[scope]).await;
        let others: Vec<Scope> = Scope::ALL.iter().copied().filter(|other| *other != scope).collect();
        let others = rig.issue_key("shop", &others).await;
        for operation in operations.iter().filter(|operation| operation.scope == Some(scope)) {
            let ask = async |key| {
                rig.call(&operation.method, &operation.path, key, operation.body())
                    .await
            };
            for bad in [None, Some("peal_x"), Some(forged.as_str()), Some(ended_text.as_str())] {
                let answer = ask(bad).await;
                assert_eq!(
                    (answer.status, answer.code()),
                    (401, "unauthenticated"),
                    "{operation:?}"
                );
                assert!(
                    answer.header("www-authenticate").unwrap().starts_with("Bearer"),
                    "{answer:?}"
                );
            }
            let answer = ask(Some(&others)).await;
            assert_eq!((answer.status, answer.code()), (403, "forbidden"), "{operation:?}");
            assert!(
                answer.body["detail"].as_str().unwrap().contains(scope.as_str()),
                "{answer:?}"
            );
            // A deletion would remove what the next operation needs.
            if operation.method != "DELETE" {
                let answer = ask(Some(&only)).await;
                assert!((200..300).contains(&answer.status), "{operation:?}: {answer:?}");
            }
        }
    }
}

/// An answer without its cursors, which are new in each, and without when keys were used, which is known some seconds later: one
/// document, or the lines of an export.
fn without_cursors(body: Value) -> Value {
    let lines = match body {
        Value::String(text) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        document => vec![document],
    };
    let lines = lines.into_iter().map(|mut line: Value| {
        for cursor in ["cursor", "next"] {
            line.as_object_mut().unwrap().remove(cursor);
        }
        forget_uses(&mut line);
        line
    });
    Value::Array(lines.collect())
}

fn forget_uses(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.remove("used_at");
            members.values_mut().for_each(forget_uses);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_uses),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_key_sends_and_reads_and_may_do_nothing_else() {
    let rig = Rig::start().await;
    let samples = store_samples(&rig).await;
    let for_tests = NewKey {
        test: true,
        ..NewKey::with(Scope::ALL)
    };
    let key = rig.issue(rig.new_app("shop"), for_tests).await;
    for operation in operations(&samples)
        .iter()
        .filter(|operation| operation.scope.is_some())
    {
        let answer = rig
            .call(&operation.method, &operation.path, Some(&key), operation.body())
            .await;
        // What an erasure came to is told with the scope that asks for it.
        let may = operation.path == "/v1/notifications"
            || operation.method == "GET" && operation.scope != Some(Scope::RecipientsWrite);
        if may {
            assert!((200..300).contains(&answer.status), "{operation:?}: {answer:?}");
        } else {
            assert_eq!((answer.status, answer.code()), (403, "forbidden"), "{operation:?}");
            let detail = answer.body["detail"].as_str().unwrap();
            assert!(detail.starts_with("A test key"), "{operation:?}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_shows_in_which_hour_its_keys_were_used() {
    let rig = Rig::start().await;
    let now = || Clock::system().now();
    let (unused, _) = ApiKey::issue(
        &rig.mesh_key,
        app(),
        NewKey::with(&[Scope::Send]),
        jiff::Timestamp::UNIX_EPOCH,
    );
    config::put_key(&rig.hub, &unused).await.unwrap();
    let key_id = rig.key[5..21].to_owned();
    let used_at = async |key_id: &str| {
        let shown = rig.ask("GET", "/v1/apps/shop", Value::Null).await.body;
        let key = shown["keys"]
            .as_array()?
            .iter()
            .find(|key| key["id"] == key_id)?
            .clone();
        key["used_at"]
            .as_str()
            .map(|text| text.parse::<jiff::Timestamp>().unwrap())
    };
    let before = now();
    eventually("the key is shown as used", async || used_at(&key_id).await.is_some()).await;
    let hour = used_at(&key_id).await.unwrap();
    let began = [before, now()].map(key_use::hour);
    assert!(began.contains(&hour), "{hour} {began:?}");
    assert_eq!(used_at(&unused.key_id).await, None);

    // Another gateway of the region writes nothing more in this hour.
    let written = async || {
        let filter = subject::directory_used_anywhere(&key_id);
        let found = direct::last_of(&rig.js, &Domain::Here, topology::DIRECTORY, &[filter])
            .await
            .unwrap();
        assert_eq!(found.len(), 1);
        found[0].sequence
    };
    let first = written().await;
    let other = rig.another_gateway(STANDARD.encode([7; 32])).await;
    let url = format!("http://{}/v1/apps", other.addr());
    eventually("the other gateway answers", async || {
        let answer = rig.http.get(&url).bearer_auth(&rig.key).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(written().await == first || key_use::hour(now()) != hour);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_app_never_sees_or_changes_data_of_another() {
    let rig = Rig::start().await;
    let samples = store_samples(&rig).await;
    let rival = rig.issue_key("rival", Scope::ALL).await;
    let operations = operations(&samples);
    let reads = || operations.iter().filter(|op| op.scope.is_some() && op.method == "GET");
    let view = async |key: &str| {
        let mut view = Vec::new();
        for read in reads() {
            let answer = rig.call("GET", &read.path, Some(key), None).await;
            let shown = if answer.status == 200 {
                without_cursors(answer.body)
            } else {
                json!(answer.code())
            };
            view.push((read.path.clone(), answer.status, shown));
        }
        view
    };
    eventually("the notification has a status", async || {
        rig.ask(
            "GET",
            &format!("/v1/notifications/{}", samples.notification),
            Value::Null,
        )
        .await
        .status
            == 200
    })
    .await;
    let before = view(&rig.key).await;
    assert!(before.iter().all(|(_, status, _)| *status == 200), "{before:?}");
    for (path, status, shown) in view(&rival).await {
        let shown = if status == 200 { &shown[0] } else { &shown };
        let own_only = shown["apps"]
            .as_array()
            .is_some_and(|apps| apps.iter().all(|app| app["id"] == "rival"));
        // No server runs the region `us`, which the only line of an export without recipients says.
        let none_exported = shown["unreachable"] == json!(["us"]) && shown.get("recipient_id").is_none();
        let nothing = status == 404
            || own_only
            || none_exported
            || ["controls", "dead_letters", "notifications", "schedules", "suppressions"]
                .iter()
                .any(|list| shown[list] == json!([]));
        assert!(nothing, "{path} is visible to another app");
    }
    // Deletions come first: writes give the other app a recipient of its own with the same name.
    let (deletes, writes): (Vec<_>, Vec<_>) = operations
        .iter()
        .filter(|operation| operation.scope.is_some() && operation.method != "GET")
        .partition(|operation| operation.method == "DELETE");
    for operation in deletes.into_iter().chain(writes) {
        let answer = rig
            .call(&operation.method, &operation.path, Some(&rival), operation.body())
            .await;
        let of_shop = operation.path.contains("/eu-") || operation.path.starts_with("/v1/apps/shop");
        // There is no link for one whom the other app does not know, or has just erased.
        let is_link = operation.path.ends_with("/preference-link");
        // Repeating a deletion is harmless, and so is one of nothing.
        let of_nothing = operation.path.ends_with("group_key=room") || operation.path.ends_with("/yearly");
        let is_right = if operation.method == "DELETE" && of_nothing {
            answer.status < 300
        } else if operation.method == "DELETE" || of_shop || is_link || operation.changes_what_waits() {
            answer.status == 404
        } else if operation.path == "/v1/controls" {
            answer.body["errors"][0]["field"] == "app"
        } else {
            answer.status < 300
        };
        assert!(is_right, "{operation:?}: {answer:?}");
        assert_eq!(
            view(&rig.key).await,
            before,
            "{operation:?} by another app changed something"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_provisioned_from_a_file_can_send() {
    let rig = Rig::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apps.toml");
    let pem = include_str!("../../../edge-worker/src/providers/testdata/p256.pem");
    std::fs::write(folder.path().join("key.p8"), pem).unwrap();
    let apps = r#"
        [[operator]]
        name = "ops"
        scopes = ["apps:write"]
        [[app]]
        id = "news"
        default_region = "eu"
        keys = [
            { scopes = ["notifications:write"], name = "order service", expires_at = "2999-01-01T00:00:00Z" },
            { scopes = ["recipients:read", "recipients:write"], signing = true },
        ]
        [app.apns]
        team_id = "TEAM"
        key_id = "KEY"
        topic = "com.example.news"
        private_key_file = "key.p8"
    "#;
    std::fs::write(&file, apps).unwrap();
    let run = || provision::run(rig.hub.client(), &rig.mesh_key, 1, &file);
    let issued = run().await.unwrap();
    assert_eq!(issued.len(), 3);
    assert!(issued[2].app.is_none(), "an operator's");
    let again = run().await.unwrap();
    assert!(again.is_empty(), "provisioning again issues no more keys");
    let body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
    eventually("the gateway accepts the new key", async || {
        rig.call("POST", "/v1/notifications", Some(&issued[0].text), Some(body.clone()))
            .await
            .status
            == 202
    })
    .await;
    std::fs::write(&file, apps.replace("2999", "2998")).unwrap();
    let successor = run().await.unwrap();
    assert_eq!(successor.len(), 1, "a key with another end is issued beside the former");
    std::fs::write(&file, apps.replace("2999", "1999")).unwrap();
    let refused = run().await.unwrap_err().to_string();
    assert_eq!(refused, "app news: keys[0].expires_at: must be in the future");
    let known = config::read(&rig.hub).await.unwrap();
    let of_news = known.keys.values().filter(|key| key.app.as_str() == "news");
    assert_eq!(of_news.filter(|key| key.signing()).count(), 1);
    let credentials = known.apps[&"news".parse().unwrap()].credentials(&rig.mesh_key);
    let [Credential::Apns(credential)] = &*credentials.unwrap() else {
        panic!("not the credential that the file names")
    };
    assert_eq!(credential.private_key.reveal(), pem.trim_end());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_mesh_key_is_never_ready() {
    let rig = Rig::start().await;
    let gateway = rig.another_gateway(STANDARD.encode([8; 32])).await;
    let url = format!("http://{}/readyz", gateway.addr());
    eventually("only the key is missing", async || {
        let ready: Value = rig.http.get(&url).send().await.unwrap().json().await.unwrap();
        ready["missing"] == json!(["mesh_key"])
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        !gateway.is_ready(),
        "it would compute ids that no other process computes"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_key_is_replaced_while_gateways_serve() {
    let rig = Rig::start().await;
    let (old, new) = (STANDARD.encode([7; 32]), STANDARD.encode([9; 32]));
    let signing = NewKey {
        signing: true,
        ..NewKey::with(Scope::ALL)
    };
    let (signer, text) = ApiKey::issue(&rig.mesh_key, app(), signing, jiff::Timestamp::UNIX_EPOCH);
    config::put_key(&rig.hub, &signer).await.unwrap();
    let ids = rig.ids().await.derive("job", &["order-1"]);
    let gateway = async |mesh_key: String| rig.another_gateway(mesh_key).await;
    let sends = async |gateway: &Gateway, event: &str| {
        let body = json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
        eventually("it accepts keys that were issued under the old key", async || {
            let url = format!("http://{}/v1/notifications", gateway.addr());
            let mut accepted = true;
            for key in [&rig.key, &text] {
                let sent = rig.http.post(&url).bearer_auth(key).json(&body).send().await.unwrap();
                accepted &= sent.status() == 202;
            }
            accepted
        })
        .await;
    };
    let both = gateway(format!("{old} {new}")).await;
    sends(&both, "e1").await;
    let switched = gateway(format!("{new} {old}")).await;
    sends(&switched, "e2").await;
    // As `peal reseal` does.
    let mesh_key = shared::seal::MeshKey::from_base64(&format!("{new} {old}")).unwrap();
    let changed = config::reseal(&rig.hub, &mesh_key).await.unwrap();
    for entry in [
        "app.shop",
        &format!("key.{}", signer.key_id),
        "mesh.id_key",
        "mesh.legacies",
    ] {
        assert!(changed.iter().any(|name| name == entry), "{entry}: {changed:?}");
    }
    assert_eq!(
        config::reseal(&rig.hub, &mesh_key).await.unwrap(),
        [""; 0],
        "it may be repeated"
    );
    let alone = gateway(new.clone()).await;
    sends(&alone, "e3").await;
    eventually("the gateway is ready", async || alone.is_ready()).await;
    // Those that still have both go on, and take what the new one stored for a repetition.
    for (gateway, event) in [(&both, "e3"), (&switched, "e1"), (&alone, "e1")] {
        sends(gateway, event).await;
    }
    let mesh_key = shared::seal::MeshKey::from_base64(&new).unwrap();
    let known = config::read(&rig.hub).await.unwrap();
    assert_eq!(
        known.id_key(&mesh_key).unwrap().derive("job", &["order-1"]),
        ids,
        "the ids stay"
    );
    assert!(known.keys[&signer.key_id].signing_secret(&mesh_key).is_some());
    // The record of e1 is signed by the old key, and what was refused would be an error here.
    known.audit_keys(&mesh_key).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_keeps_the_ids_with_which_it_began() {
    let rig = Rig::start().await;
    let id = async || rig.ids().await.derive("job", &["order-1"]);
    let began_with = id().await;
    assert_ne!(
        began_with,
        IdKey::unkeyed().derive("job", &["order-1"]),
        "the ids are keyed"
    );
    provision::prepare_hub(&rig.hub, &rig.mesh_key, 1).await.unwrap();
    let another = IdKey::generate(&rig.mesh_key);
    config::create_id_key(&rig.hub, another).await.unwrap();
    assert_eq!(id().await, began_with, "provisioning again replaces no key");

    // As version 0.1 leaves a mesh: with regions and without a key.
    let bucket = rig.hub.get_stream(topology::CONFIG).await.unwrap();
    bucket.purge().filter("$KV.*.mesh.>").await.unwrap();
    provision::prepare_hub(&rig.hub, &rig.mesh_key, 1).await.unwrap();
    assert_eq!(id().await, IdKey::unkeyed().derive("job", &["order-1"]));
}
