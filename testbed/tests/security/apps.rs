//! Apps by the API: created in one region and used in another, by those who may and nobody else, also with a stolen region.

use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use reqwest::header::IF_MATCH;
use serde_json::{Value, json};
use shared::nats::{config, connect, roles::Role, subject};
use testbed::{
    links::{Between, Trouble},
    peal::{Links, Peal, Plan},
    providers::ApnsKey,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    controls,
    rig::{TIMEOUT, app, plan, region},
    roles::Intruder,
};

/// A device of bank's recipient.
const TOKEN: &str = "ba00000000000000000000000000000000000000000000000000000000000000";

pub(crate) struct Answer {
    pub(crate) status: u16,
    version: Option<String>,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

pub(crate) async fn ask(
    peal: &Peal,
    key: &str,
    (method, at, path): (&str, &str, &str),
    body: Option<&Value>,
) -> Answer {
    ask_if(peal, key, (method, at, path), body, None).await
}

async fn ask_if(
    peal: &Peal,
    key: &str,
    (method, at, path): (&str, &str, &str),
    body: Option<&Value>,
    version: Option<&str>,
) -> Answer {
    let url = format!("{}{path}", peal.region(at).gateway.url);
    let mut request = peal.http.request(method.parse().unwrap(), url).bearer_auth(key);
    if let Some(body) = body {
        request = request.json(body);
    }
    if let Some(version) = version {
        request = request.header(IF_MATCH, version);
    }
    let answer = request.send().await.unwrap();
    let version = answer
        .headers()
        .get("etag")
        .map(|version| version.to_str().unwrap().to_owned());
    Answer {
        status: answer.status().as_u16(),
        version,
        body: serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default(),
    }
}

/// Waits until the answer is as wanted, and returns how long that took.
pub(crate) async fn eventually(
    what: &str,
    ask: impl AsyncFn() -> Answer,
    is_right: impl Fn(&Answer) -> bool,
) -> Duration {
    let begun = Instant::now();
    loop {
        let answer = ask().await;
        if is_right(&answer) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < TIMEOUT, "{what}: {} {}", answer.status, answer.body);
        sleep(Duration::from_millis(20)).await;
    }
}

/// The app bank as an operator writes it.
fn bank(peal: &Peal) -> Value {
    let credential = peal.simulators.apns.credential("com.example.bank");
    json!({
        "id": "bank",
        "default_region": "eu",
        "quota": { "jobs_per_s": 100 },
        "apns": {
            "team_id": credential.team_id,
            "key_id": credential.key_id,
            "topic": credential.topic,
            "private_key": credential.private_key.reveal(),
        },
        "keys": [{ "name": "all", "scopes": [
            "notifications:write", "notifications:read", "recipients:write", "recipients:read", "apps:write", "apps:read",
            "controls:write",
        ] }],
    })
}

fn push(event: &str) -> Value {
    json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "Hi", "ttl": 3600 } })
}

/// Sends in `at` and waits until the delivery is in this state.
async fn send(peal: &Peal, key: &str, at: &str, event: &str, state: &str) {
    let sent = ask(peal, key, ("POST", at, "/v1/notifications"), Some(&push(event))).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    wait_state(peal, key, at, event, state).await;
}

async fn wait_state(peal: &Peal, key: &str, at: &str, event: &str, state: &str) {
    let path = format!("/v1/notifications?event_id={event}");
    let begun = Instant::now();
    loop {
        let answer = ask(peal, key, ("GET", at, &path), None).await;
        let delivery = &answer.body["notifications"][0]["deliveries"][0];
        if delivery["state"] == state {
            return;
        }
        assert!(
            begun.elapsed() < TIMEOUT * 3,
            "{event}: {}\n{}",
            answer.body,
            peal.complaints()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

async fn start() -> Peal {
    let plan = Plan {
        admin: true,
        links: Links::Proxies(1),
        ..plan()
    };
    Peal::start(plan).await.unwrap()
}

/// What a server of the hub that is not to be trusted could keep of the questions of eu.
async fn listen(peal: &Peal) -> async_nats::Subscriber {
    let hub = peal.nats.hub().connect_as_test().await.unwrap();
    let listening = hub.subscribe(subject::admin(&region("eu"))).await.unwrap();
    hub.flush().await.unwrap();
    listening
}

/// Whether an admin gateway answers this question, sent by somebody with the key of eu's gateways.
async fn is_answered(stolen: &Client, question: &[u8]) -> bool {
    let asking = stolen.request(subject::admin(&region("eu")), question.to_vec().into());
    timeout(Duration::from_secs(2), asking)
        .await
        .is_ok_and(|answer| answer.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_lives_and_ends_by_the_api() {
    let mut peal = start().await;
    let operator = peal.operator_key().await.unwrap();
    let second = peal.operator_key().await.unwrap();
    for at in ["eu", "us"] {
        for key in [&operator, &second] {
            let list = async || ask(&peal, key, ("GET", at, "/v1/apps"), None).await;
            eventually("the region knows the operator", list, |answer| answer.status == 200).await;
        }
    }
    let listening = &mut listen(&peal).await;

    // Created in eu, used from us.
    let document = bank(&peal);
    let planned = ask(
        &peal,
        &operator,
        ("PUT", "eu", "/v1/apps/bank?plan=true"),
        Some(&document),
    )
    .await;
    assert_eq!(
        (planned.status, &planned.body["keys"]),
        (200, &json!(1)),
        "{}",
        planned.body
    );
    let begun = Instant::now();
    let created = ask(&peal, &operator, ("PUT", "eu", "/v1/apps/bank"), Some(&document)).await;
    assert_eq!(created.status, 201, "{}", created.body);
    assert!(!created.body.to_string().contains("PRIVATE"), "{}", created.body);
    let key = created.body["keys"][0]["key"].as_str().unwrap().to_owned();
    let put = async || {
        ask(
            &peal,
            &key,
            ("PUT", "us", "/v1/recipients/ann"),
            Some(&json!({ "home": "us" })),
        )
        .await
    };
    eventually("us knows the key", put, |answer| answer.status < 300).await;
    let address = json!({ "provider": "apns", "token": TOKEN });
    let registered = ask(
        &peal,
        &key,
        ("POST", "us", "/v1/recipients/ann/addresses"),
        Some(&address),
    )
    .await;
    assert!(registered.status < 300, "{}", registered.body);
    send(&peal, &key, "us", "first", "delivered").await;
    eprintln!("from its creation in eu to a delivery from us: {:?}", begun.elapsed());

    rotation(&peal, &operator, &key).await;

    // Written back as it is shown, nothing changes.
    let shown = ask(&peal, &operator, ("GET", "eu", "/v1/apps/bank"), None).await;
    let same = ask(&peal, &operator, ("PUT", "eu", "/v1/apps/bank"), Some(&shown.body)).await;
    assert_eq!((same.status, &same.version), (200, &shown.version), "{}", same.body);

    tenants(&peal, &key, &shown.body).await;

    // Two operators write what both have read: one is refused.
    let write = async |key: &str, jobs: u32| {
        let mut document = shown.body.clone();
        document["quota"]["jobs_per_s"] = json!(jobs);
        let version = shown.version.as_deref();
        ask_if(&peal, key, ("PUT", "eu", "/v1/apps/bank"), Some(&document), version).await
    };
    let (one, other) = tokio::join!(write(&operator, 200), write(&second, 300));
    let mut codes = [(one.status, one.code()), (other.status, other.code())];
    codes.sort_unstable();
    assert_eq!(codes, [(200, ""), (412, "version_conflict")]);

    controls::obeyed(&peal, &operator, &key).await;
    suspension(&mut peal, &operator, &key).await;
    revocation(&mut peal, &operator, &key, listening).await;

    // Cut off from the hub: what exists is served and read, and nothing is written.
    let trouble = |trouble: &Trouble| {
        let links = peal.links.iter().filter(|link| link.between == Between::Regions);
        links.for_each(|link| link.set(trouble).unwrap());
    };
    trouble(&Trouble::Cut);
    let cut = ask(&peal, &operator, ("PUT", "us", "/v1/apps/bank"), Some(&bank(&peal))).await;
    assert_eq!((cut.status, cut.code()), (503, "admin_unreachable"), "{}", cut.body);
    let read = ask(&peal, &operator, ("GET", "us", "/v1/apps/bank"), None).await;
    assert_eq!(read.status, 200);
    let shops = json!({ "to": { "recipients": ["nobody"] }, "push": { "title": "Hi" } });
    let sent = ask(&peal, &peal.key, ("POST", "us", "/v1/notifications"), Some(&shops)).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    trouble(&Trouble::None);
    let delete = async || ask(&peal, &operator, ("DELETE", "us", "/v1/apps/bank"), None).await;
    let refused = eventually("the hub is back", delete, |answer| {
        answer.status != 503 && answer.status != 412
    })
    .await;
    eprintln!("writes are answered {refused:?} after the cut");
    assert_eq!(delete().await.code(), "validation_failed", "it is not suspended");
}

/// How long workers of every region may take to use a new credential.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// A new APNs key under traffic of both regions. Two seconds after it was written the former is revoked at Apple: whoever still
/// used it would need another attempt.
async fn rotation(peal: &Peal, operator: &str, key: &str) {
    let bob = json!({ "home": "eu" });
    let put = ask(peal, key, ("PUT", "eu", "/v1/recipients/bob"), Some(&bob)).await;
    assert!(put.status < 300, "{}", put.body);
    let address = json!({ "provider": "apns", "token": TOKEN.replace("ba", "b0") });
    let registered = ask(
        peal,
        key,
        ("POST", "eu", "/v1/recipients/bob/addresses"),
        Some(&address),
    )
    .await;
    assert!(registered.status < 300, "{}", registered.body);
    let former = peal.simulators.apns.key().clone();
    let new = ApnsKey::generate(&former.team_id, "PEALKEY002").unwrap();
    let pem = new.pem.clone();
    peal.simulators.apns.register_key(&new.into()).unwrap();

    let each = async |phase: &str, number: usize| {
        let (at, who) = if number.is_multiple_of(2) {
            ("eu", "bob")
        } else {
            ("us", "ann")
        };
        let event = format!("{phase}-{number}");
        let body = json!({ "event_id": event, "to": { "recipients": [who] }, "push": { "title": "Hi" } });
        let sent = ask(peal, key, ("POST", at, "/v1/notifications"), Some(&body)).await;
        assert_eq!(sent.status, 202, "{}", sent.body);
        (at, event)
    };
    let traffic = async || {
        let mut sent = Vec::new();
        for number in 0..200 {
            sent.push(each("during", number).await);
        }
        sent
    };
    let rotate = async || {
        let mut document = bank(peal);
        document["apns"]["key_id"] = json!("PEALKEY002");
        document["apns"]["private_key"] = json!(pem);
        let put = ask(peal, operator, ("PUT", "eu", "/v1/apps/bank"), Some(&document)).await;
        assert_eq!(put.status, 200, "{}", put.body);
        sleep(SEEN_WITHIN).await;
        peal.simulators.apns.revoke_key(&former.team_id, &former.key_id);
    };
    let (during, ()) = tokio::join!(traffic(), rotate());
    for (at, event) in &during {
        wait_state(peal, key, at, event, "delivered").await;
    }
    for number in 0..20 {
        let (at, event) = each("after", number).await;
        wait_state(peal, key, at, &event, "delivered").await;
        let path = format!("/v1/notifications?event_id={event}");
        let answer = ask(peal, key, ("GET", at, &path), None).await;
        let attempts = &answer.body["notifications"][0]["deliveries"][0]["attempts"];
        assert_eq!(attempts.as_array().unwrap().len(), 1, "{event}: {}", answer.body);
    }
}

/// What the holder of bank's key can do with it to shop, and to bank itself.
async fn tenants(peal: &Peal, key: &str, bank: &Value) {
    let own = ask(peal, key, ("GET", "eu", "/v1/apps"), None).await;
    let seen: Vec<_> = own.body["apps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|app| &app["id"])
        .collect();
    assert_eq!(seen, ["bank"]);
    let mut shop = bank.clone();
    shop["id"] = json!("shop");
    let key_of_shop = format!("/v1/apps/shop/keys/{}", &peal.key[5..21]);
    let made = json!({ "scopes": ["notifications:read"] });
    for (method, path, body) in [
        ("GET", "/v1/apps/shop", None),
        ("PUT", "/v1/apps/shop", Some(&shop)),
        ("PUT", "/v1/apps/shop?plan=true", Some(&shop)),
        ("DELETE", "/v1/apps/shop", None),
        ("POST", "/v1/apps/shop/keys", Some(&made)),
        ("DELETE", &key_of_shop, None),
        ("DELETE", &key_of_shop.replace("shop", "bank"), None),
    ] {
        let answer = ask(peal, key, (method, "eu", path), body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (404, "not_found"),
            "{method} {path}: {}",
            answer.body
        );
    }
    for (member, value) in [
        ("quota", json!({ "jobs_per_s": 101 })),
        ("quota", json!({})),
        ("default_region", json!("us")),
        ("residency", json!("eu")),
        ("services", json!(true)),
        ("account", json!(format!("A{}", "B".repeat(55)))),
        ("suspended", json!(true)),
        ("sms_countries", json!(["CH"])),
        ("allowed_hosts", json!(["127.0.0.1"])),
        ("spend_caps", json!([{ "segments": 1000, "window_s": 3600 }])),
        ("senders", json!({ "sms": ["Bank"] })),
        (
            "alerts",
            json!({ "url": "http://169.254.169.254/", "secret": "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" }),
        ),
        ("credentials", json!({ "smtp": { "host": "127.0.0.1", "port": 4222 } })),
    ] {
        let mut changed = bank.clone();
        changed[member] = value;
        let answer = ask(peal, key, ("PUT", "eu", "/v1/apps/bank"), Some(&changed)).await;
        assert_eq!(
            (answer.status, answer.code()),
            (403, "forbidden"),
            "{member}: {}",
            answer.body
        );
    }
    let regions = ask(
        peal,
        key,
        ("PUT", "eu", "/v1/regions/eu"),
        Some(&json!({ "helpers": ["us"] })),
    )
    .await;
    assert_eq!(regions.status, 403, "{}", regions.body);
    let beyond = json!({ "scopes": ["notifications:broadcast"] });
    let beyond = ask(peal, key, ("POST", "eu", "/v1/apps/bank/keys"), Some(&beyond)).await;
    assert_eq!(
        beyond.status, 403,
        "a key makes no key with a scope that it lacks: {}",
        beyond.body
    );
    // What it may: a credential of its own that signs.
    let mut changed = bank.clone();
    changed["credentials"] = json!({ "log": {} });
    let answer = ask(peal, key, ("PUT", "eu", "/v1/apps/bank"), Some(&changed)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    changed["apns"]["private_key"] = json!("PEM");
    let answer = ask(peal, key, ("PUT", "eu", "/v1/apps/bank"), Some(&changed)).await;
    assert_eq!(answer.body["errors"][0]["field"], "apns.private_key", "{}", answer.body);
    let answer = ask(peal, key, ("PUT", "eu", "/v1/apps/bank"), Some(bank)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

async fn set_suspended(peal: &Peal, operator: &str, suspended: bool) {
    let shown = ask(peal, operator, ("GET", "eu", "/v1/apps/bank"), None).await;
    let mut document = shown.body;
    document["suspended"] = json!(suspended);
    let version = shown.version.as_deref();
    let put = ask_if(peal, operator, ("PUT", "eu", "/v1/apps/bank"), Some(&document), version).await;
    assert_eq!(put.status, 200, "{}", put.body);
}

/// A suspended app is refused, its work waits, and nothing of it is lost.
async fn suspension(peal: &mut Peal, operator: &str, key: &str) {
    for worker in &mut peal.region_mut("us").workers {
        worker.process.kill().await.unwrap();
    }
    let waits = ask(peal, key, ("POST", "us", "/v1/notifications"), Some(&push("waits"))).await;
    assert_eq!(waits.status, 202, "{}", waits.body);
    set_suspended(peal, operator, true).await;
    let refused = async || ask(peal, key, ("POST", "us", "/v1/notifications"), Some(&push("refused"))).await;
    let seen = eventually("us refuses", refused, |answer| answer.status == 403).await;
    assert_eq!(refused().await.code(), "app_suspended");
    eprintln!("us refuses a suspended app after {seen:?}");
    let own = ask(peal, key, ("GET", "us", "/v1/apps/bank"), None).await;
    assert_eq!(own.code(), "app_suspended");
    let program = peal.program();
    for worker in &mut peal.region_mut("us").workers {
        worker.restart(&program).unwrap();
    }
    let js = connect::jetstream(peal.connect("us").await.unwrap());
    let deadline = Instant::now() + TIMEOUT;
    while js.get_stream("SCHEDULE").await.unwrap().cached_info().state.messages == 0 {
        assert!(
            Instant::now() < deadline,
            "the job does not wait\n{}",
            peal.complaints()
        );
        sleep(Duration::from_millis(50)).await;
    }
    set_suspended(peal, operator, false).await;
    wait_state(peal, key, "us", "waits", "delivered").await;
}

/// A revoked key is refused everywhere, and so is what was relayed with it.
async fn revocation(peal: &mut Peal, operator: &str, key: &str, listening: &mut async_nats::Subscriber) {
    let path = format!("/v1/apps/bank/keys/{}", &key[5..21]);
    let revoked = ask(peal, operator, ("DELETE", "us", &path), None).await;
    assert_eq!(revoked.status, 204, "{}", revoked.body);
    let read = async || ask(peal, key, ("GET", "eu", "/v1/apps/bank"), None).await;
    eventually("eu refuses the key", read, |answer| answer.status == 401).await;
    let mut questions = Vec::new();
    while let Ok(Some(question)) = timeout(Duration::from_millis(200), listening.next()).await {
        questions.push(question.payload);
    }
    assert!(questions.len() > 20, "only {} questions were relayed", questions.len());

    // With the key of eu's gateways: nothing of its own is answered, and nothing that was asked before.
    let before = ask(peal, operator, ("GET", "eu", "/v1/apps/bank"), None).await.version;
    let stolen = peal
        .nats
        .region("eu")
        .connect(&Role::Gateway(region("eu")))
        .await
        .unwrap();
    for question in [b"{}".to_vec(), questions[1].to_vec()] {
        assert!(!is_answered(&stolen, &question).await);
    }
    // An admin gateway that has just started remembers no question. It asks for the key again.
    let (program, http) = (peal.program(), peal.http.clone());
    let admin = peal.admin.as_mut().unwrap();
    admin.process.kill().await.unwrap();
    admin.restart(&program).unwrap();
    admin.wait_ready(&http).await.unwrap();
    for question in &questions {
        is_answered(&stolen, question).await;
    }
    let hub = gateway::provision::hub(peal.connect_as_operator().await.unwrap());
    let known = config::read(&hub).await.unwrap();
    let keys: Vec<_> = known.keys.values().filter(|key| key.app == app("bank")).collect();
    assert!(!keys.iter().any(|known| known.key_id == key[5..21]), "the key is back");
    let version = known.version_of_app(&app("bank"));
    assert_eq!(Some(format!("\"{version}\"")), before, "something was written again");

    let mut gateway = Intruder::of(peal.nats.region("eu"), &Role::Gateway(region("eu"))).await;
    let publishes = [
        "admin.us",
        "$KV.config.key.x",
        "$KV.config.operator.x",
        "$JS.hub.API.$KV.config.operator.x",
    ];
    gateway
        .assert_forbidden("a gateway", &publishes, &["admin.eu", "admin.*"])
        .await;
    let mut admin = Intruder::of(peal.nats.hub(), &Role::Admin).await;
    let publishes = [
        "$KV.config.operator.x",
        "$KV.config.mesh.id_key",
        "$JS.API.STREAM.PURGE.KV_config",
        "$JS.API.STREAM.DELETE.KV_config",
        "_INBOX.eu.worker.1",
        "admin.eu",
        "notify.push.eu.normal.shop",
    ];
    admin
        .assert_forbidden("an admin gateway", &publishes, &[">", "_INBOX.>", "$KV.config.>"])
        .await;
}
