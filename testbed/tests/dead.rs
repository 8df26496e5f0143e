//! Dead letters, and deliveries whose outcome is unknown: listed, shown, replayed and deleted.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use axum::{Router, http::HeaderMap, http::StatusCode, routing::post};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use shared::{
    app::Ambiguity,
    channel::Channel,
    clock::Clock,
    id::AddressId,
    nats::{
        connect, current, envelope,
        follow::{self, Start},
        publish, subject, topology, version,
    },
    recipient::{FactName, RecipientKey},
};
use testbed::{
    audit::Audit,
    nats,
    peal::{APP, Alerts, Peal, Plan},
    providers::script::{Answer, Rule},
};

const TIMEOUT: Duration = Duration::from_mins(1);

fn plan() -> Plan {
    Plan {
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    }
}

async fn send(peal: &Peal, event: &str, recipient: &str) -> String {
    let body = json!({ "event_id": event, "to": { "recipients": [recipient] }, "push": { "title": "Hello" } });
    let sent = peal.expect("POST", "eu", "/v1/notifications", Some(&body)).await;
    sent.unwrap()["notification_id"].as_str().unwrap().to_owned()
}

/// Starts a receiver of webhooks. Returns its URL and the requests that it received, each with its headers.
async fn receiver() -> (String, Arc<Mutex<Vec<(HeaderMap, String)>>>) {
    let received: Arc<Mutex<Vec<_>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let requests = received.clone();
    let take = async move |headers: HeaderMap, body: String| {
        let mut received = requests.lock().unwrap();
        received.push((headers, body));
        // The first request is refused, and must be repeated.
        if received.len() == 1 {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::NO_CONTENT
        }
    };
    let app = Router::new().route("/hook", post(take));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, received)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_of_dead_letters_is_repeated_until_it_is_accepted() {
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let (url, received) = receiver().await;
    let plan = Plan {
        regions: vec!["eu".into()],
        worker_settings: "max_attempts = 1".into(),
        gateway_settings: "[alerts]\nevery_s = 1".into(),
        alerts: Some(Alerts {
            url,
            secret: SECRET.to_owned().into(),
        }),
        ..plan()
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    let refuse = Rule::always().answer(Answer::reason("InternalServerError"));
    peal.simulators.apns.script().add(refuse).unwrap();
    for event in ["e0", "e1", "e2"] {
        let notification = send(&peal, event, "ann").await;
        settled(&peal, &notification, "dead").await;
    }
    let reported = |received: &[(HeaderMap, String)]| -> u64 {
        let alerts = received
            .iter()
            .skip(1)
            .map(|(_, body)| serde_json::from_str::<Value>(body).unwrap());
        alerts
            .map(|alert| alert["data"]["dead_letters"].as_u64().unwrap())
            .sum()
    };
    let begun = Instant::now();
    while reported(&received.lock().unwrap()) < 3 {
        assert!(
            begun.elapsed() < TIMEOUT,
            "{:?}\n{}",
            received.lock().unwrap(),
            peal.complaints()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let received = received.lock().unwrap().clone();
    assert_eq!(
        reported(&received),
        3,
        "each is reported once, except in the refused request"
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(&SECRET[6..]).unwrap());
    for (headers, body) in &received {
        let header = |name: &str| headers[name].to_str().unwrap();
        let signed = format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp"));
        let signature = STANDARD
            .decode(header("webhook-signature").strip_prefix("v1,").unwrap())
            .unwrap();
        hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
        let alert: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&alert["type"], &alert["data"]["app"]),
            (&json!("dead_letters.created"), &json!("shop"))
        );
        let group = &alert["data"]["groups"][0];
        assert_eq!(
            (&group["channel"], &group["reason"]),
            (&json!("push"), &json!("InternalServerError"))
        );
        assert!(
            !body.contains("Hello") && !body.contains("aaaa"),
            "no content, no address"
        );
    }
}

/// Starts a receiver of webhooks that answers those about shop after `delay`, and others at once. Returns its URL and the apps
/// about which it was told, in order.
async fn slow_receiver(delay: Duration) -> (String, Arc<Mutex<Vec<String>>>) {
    let told: Arc<Mutex<Vec<_>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let apps = told.clone();
    let take = async move |body: String| {
        let alert: Value = serde_json::from_str(&body).unwrap();
        let app = alert["data"]["app"].as_str().unwrap().to_owned();
        let slow = app == "shop";
        apps.lock().unwrap().push(app);
        if slow {
            tokio::time::sleep(delay).await;
        }
        StatusCode::NO_CONTENT
    };
    let app = Router::new().route("/hook", post(take));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_whose_webhook_is_slow_delays_no_alert_of_another() {
    // As long as a receiver may take.
    const SLOW: Duration = Duration::from_secs(14);
    let (url, told) = slow_receiver(SLOW).await;
    let plan = Plan {
        regions: vec!["eu".into()],
        worker_settings: "max_attempts = 1".into(),
        gateway_settings: "[alerts]\nevery_s = 1".into(),
        alerts: Some(Alerts {
            url,
            secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into(),
        }),
        ..plan()
    };
    let peal = Peal::start(plan).await.unwrap();
    let bank = peal.add_app("bank").await.unwrap();
    let refuse = Rule::always().answer(Answer::reason("InternalServerError"));
    peal.simulators.apns.script().add(refuse).unwrap();
    let ask = async |key: &str, method: &str, path: &str, body: Value| {
        let url = format!("{}{path}", peal.region("eu").gateway.url);
        let request = peal.http.request(method.parse().unwrap(), url).bearer_auth(key);
        let answer = request.json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    };
    for key in [&peal.key, &bank] {
        ask(key, "PUT", "/v1/recipients/ann", json!({ "home": "eu" })).await;
        let device = json!({ "provider": "apns", "token": "aaaa" });
        ask(key, "POST", "/v1/recipients/ann/addresses", device).await;
    }
    let send = async |key: &str, event: &str| {
        let body = json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "Hello" } });
        ask(key, "POST", "/v1/notifications", body).await;
    };
    let alerts_of = |app: &str| told.lock().unwrap().iter().filter(|told| *told == app).count();
    let wait_for = async |app: &str, alerts: usize| {
        let begun = Instant::now();
        while alerts_of(app) < alerts {
            assert!(begun.elapsed() < TIMEOUT, "{app}: {told:?}\n{}", peal.complaints());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    send(&peal.key, "shop-1").await;
    wait_for("shop", 1).await;
    let begun = Instant::now();
    for number in 1..=3 {
        send(&bank, &format!("bank-{number}")).await;
        wait_for("bank", number).await;
    }
    let (took, of_shop) = (begun.elapsed(), alerts_of("shop"));
    assert!(
        took < SLOW && of_shop == 1,
        "{took:?}, while shop's receiver had not answered"
    );
    eprintln!("three alerts one after another within {took:?}");
}

/// Waits until the only delivery of a notification is in `state`, and returns the delivery.
async fn settled(peal: &Peal, notification: &str, state: &str) -> Value {
    let begun = Instant::now();
    loop {
        let path = format!("/v1/notifications/{notification}");
        let (_, status) = peal.ask("GET", "eu", &path, None).await.unwrap();
        if status["deliveries"][0]["state"] == state {
            return status["deliveries"][0].clone();
        }
        assert!(begun.elapsed() < TIMEOUT, "{status}\n{}", peal.complaints());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn letters(peal: &Peal, region: &str, query: &str) -> Vec<Value> {
    let path = format!("/v1/dead-letters{query}");
    let listed = peal.expect("GET", region, &path, None).await.unwrap();
    listed["dead_letters"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_errors_and_attempts_before_a_replay_do_not_count_towards_the_limit() {
    let plan = Plan {
        regions: vec!["eu".into()],
        worker_settings: "max_attempts = 2".into(),
        ..plan()
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    // The first error is the credential's and does not count, the next two use up the attempts, and the last one, after the
    // replay, is followed by another attempt.
    for (times, reason) in [(1, "InvalidProviderToken"), (3, "InternalServerError")] {
        let refuse = Rule::always().times(times).answer(Answer::reason(reason));
        peal.simulators.apns.script().add(refuse).unwrap();
    }
    let notification = send(&peal, "e0", "ann").await;
    let last = |delivery: Value| delivery["attempts"].as_array().unwrap().last().unwrap()["attempt"].clone();
    assert_eq!(last(settled(&peal, &notification, "dead").await), 3);

    let letter = letters(&peal, "eu", "").await.remove(0);
    let replay = format!("/v1/dead-letters/{}/replay", letter["id"].as_str().unwrap());
    peal.expect("POST", "eu", &replay, None).await.unwrap();
    assert_eq!(last(settled(&peal, &notification, "delivered").await), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_listed_replayed_and_deleted_from_any_region() {
    let plan = Plan {
        worker_settings: "max_attempts = 1".into(),
        ..plan()
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "us", &[("apns", "aaaa")]).await.unwrap();
    peal.wait_known("eu", "ann").await.unwrap();
    peal.simulators
        .apns
        .script()
        .add(Rule::always().answer(Answer::reason("InternalServerError")))
        .unwrap();
    let mut sent = Vec::new();
    for event in ["e0", "e1", "e2"] {
        let notification = send(&peal, event, "ann").await;
        settled(&peal, &notification, "dead").await;
        sent.push(notification);
    }
    peal.simulators.apns.script().clear();

    let all = letters(&peal, "eu", "").await;
    assert_eq!(all.len(), 3, "{all:?}");
    let first = &all[0];
    assert_eq!(
        (
            &first["region"],
            &first["reason"],
            &first["attempt"],
            &first["recipient"]
        ),
        (&json!("us"), &json!("InternalServerError"), &json!(1), &json!("ann"))
    );
    assert_eq!(first["notification_id"], sent[0].as_str());
    assert!(
        first.get("payload").is_none(),
        "content only when one letter is asked for"
    );
    assert!(letters(&peal, "eu", "?reason=Other").await.is_empty());
    assert!(letters(&peal, "eu", "?since=2100-01-01T00:00:00Z").await.is_empty());
    let (status, problem) = peal.ask("GET", "eu", "/v1/dead-letters?limit=0", None).await.unwrap();
    assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("limit")));

    // The same three, in pages of two.
    let page = peal
        .expect("GET", "us", "/v1/dead-letters?limit=2", None)
        .await
        .unwrap();
    assert_eq!(page["dead_letters"].as_array().unwrap().len(), 2);
    let rest = format!("?limit=2&cursor={}", page["next"].as_str().unwrap());
    assert_eq!(letters(&peal, "us", &rest).await[0]["id"], all[2]["id"]);

    let path = |letter: &Value| format!("/v1/dead-letters/{}", letter["id"].as_str().unwrap());
    let whole = peal.expect("GET", "eu", &path(first), None).await.unwrap();
    assert_eq!(whole["payload"]["push"]["title"], "Hello");

    // Replayed from the other region: the same delivery, with one more attempt.
    let replayed = peal
        .expect("POST", "eu", &format!("{}/replay", path(first)), None)
        .await;
    assert_eq!(replayed.unwrap(), json!({ "replayed": 1 }));
    let delivery = settled(&peal, &sent[0], "delivered").await;
    assert_eq!(delivery["attempts"].as_array().unwrap().len(), 2, "{delivery}");
    let pushes = peal.simulators.apns.log().requests_for("aaaa");
    assert_eq!(pushes[0].id, pushes.last().unwrap().id, "the same delivery");
    assert_eq!(peal.ask("GET", "eu", &path(first), None).await.unwrap().0, 404);

    let (status, _) = peal.ask("DELETE", "eu", &path(&all[1]), None).await.unwrap();
    assert_eq!(status, 204);
    let filter = json!({ "reason": "InternalServerError" });
    let replayed = peal
        .expect("POST", "us", "/v1/dead-letters/replay", Some(&filter))
        .await;
    assert_eq!(replayed.unwrap(), json!({ "replayed": 1, "more": false }));
    settled(&peal, &sent[2], "delivered").await;
    assert!(letters(&peal, "eu", "").await.is_empty());
    assert_eq!(
        (
            peal.simulators.apns.stats().delivered,
            peal.simulators.apns.stats().duplicates
        ),
        (2, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_holds_is_never_sent_twice() {
    let plan = Plan {
        ambiguity: [(Channel::Push, Ambiguity::Hold)].into(),
        ..plan()
    };
    let mut peal = Peal::start(plan).await.unwrap();
    let devices = [("ann", "aaaa"), ("bob", "bbbb"), ("eve", "eeee")];
    for (name, token) in devices {
        peal.register(name, "eu", &[("apns", token)]).await.unwrap();
    }
    let fine = send(&peal, "fine", "ann").await;
    settled(&peal, &fine, "delivered").await;

    // The provider accepts it, but the answer is lost.
    let lost = Rule::token("bbbb").answer(Answer::close().delivered(true));
    peal.simulators.apns.script().add(lost).unwrap();
    let doubtful = send(&peal, "doubtful", "bob").await;
    let delivery = settled(&peal, &doubtful, "unknown").await;
    assert_eq!(delivery["reason"], "connection_lost", "{delivery}");

    // The provider accepts it, and the worker dies before the answer arrives.
    let slow = Rule::token("eeee").answer(Answer::black_hole().delivered(true));
    peal.simulators.apns.script().add(slow).unwrap();
    let interrupted = send(&peal, "interrupted", "eve").await;
    while peal.simulators.apns.log().requests_for("eeee").is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let program = peal.program();
    let worker = &mut peal.region_mut("eu").workers[0];
    worker.process.kill().await.unwrap();
    worker.restart(&program).unwrap();
    // The server redelivers it after 30 s, and once more after the time in which an answer was due; only then is it settled.
    let delivery = settled(&peal, &interrupted, "unknown").await;
    assert_eq!(delivery["reason"], "interrupted", "{delivery}");

    for (_, token) in devices {
        assert_eq!(peal.simulators.apns.log().requests_for(token).len(), 1, "{token}");
    }
    let mut listed = letters(&peal, "us", "").await;
    listed.sort_by_key(|letter| letter["event_id"].to_string());
    let events: Vec<_> = listed.iter().map(|letter| letter["event_id"].clone()).collect();
    assert_eq!(events, ["doubtful", "interrupted"]);

    // A person replays it.
    peal.simulators.apns.script().clear();
    let path = format!("/v1/dead-letters/{}/replay", listed[0]["id"].as_str().unwrap());
    peal.expect("POST", "us", &path, None).await.unwrap();
    settled(&peal, &doubtful, "delivered").await;
}

/// Publishes to a lane of `shop` in eu, with more rights than a service has.
async fn publish(peal: &Peal, id: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) {
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let mut all = async_nats::HeaderMap::new();
    all.insert("Nats-Msg-Id", id);
    for (name, value) in headers {
        all.insert(*name, *value);
    }
    let subject = "notify.push.eu.normal.shop".to_owned();
    publish::store(&js, subject, all, body.into().into()).await.unwrap();
}

/// Waits until there are `count` letters.
async fn await_letters(peal: &Peal, count: usize) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let found = letters(peal, "eu", "").await;
        if found.len() == count {
            return found;
        }
        assert!(begun.elapsed() < TIMEOUT, "{found:?}\n{}", peal.complaints());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn alone() -> Plan {
    Plan {
        regions: vec!["eu".into()],
        ..plan()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_replayed_only_into_the_lane_of_its_own_app() {
    let peal = Peal::start(alone()).await.unwrap();
    // Whichever spelling a map yields first.
    for (number, name) in [
        "peal-subject",
        "PEAL-SUBJECT",
        "Peal-subject",
        "pEAL-SUBJECT",
        "Peal-Subject",
    ]
    .into_iter()
    .cycle()
    .take(20)
    .enumerate()
    {
        let foreign = [
            (name, "notify.push.eu.urgent.bank"),
            ("peal-reason", "forged"),
            ("peal-address", "forged"),
        ];
        publish(&peal, &format!("m{number}"), &foreign, r#"{"recipient":"ann"}"#).await;
    }
    for letter in await_letters(&peal, 20).await {
        assert_eq!(
            (&letter["reason"], letter.get("address_id")),
            (&json!("unreadable"), None),
            "{letter}"
        );
        let path = format!("/v1/dead-letters/{}/replay", letter["id"].as_str().unwrap());
        peal.expect("POST", "eu", &path, None).await.unwrap();
    }
    // Each replay is as unreadable as before.
    await_letters(&peal, 20).await;
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let mut lanes = Vec::new();
    follow::read(&js, topology::NOTIFY, ">", Start::Sequence(1), |entry| {
        lanes.push(entry.subject.clone())
    })
    .await
    .unwrap();
    assert_eq!(lanes.len(), 40);
    assert!(
        lanes.iter().all(|lane| lane == "notify.push.eu.normal.shop"),
        "{lanes:?}"
    );
    assert!(Audit::read_settled(&peal, TIMEOUT).await.unwrap().report.holds());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_replay_cannot_be_taken() {
    let plan = Plan {
        worker_settings: "max_attempts = 1".into(),
        ..alone()
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    let refuse = Rule::always().times(1).answer(Answer::reason("InternalServerError"));
    peal.simulators.apns.script().add(refuse).unwrap();
    let notification = send(&peal, "e0", "ann").await;
    settled(&peal, &notification, "dead").await;
    let letter = letters(&peal, "eu", "").await.remove(0)["id"]
        .as_str()
        .unwrap()
        .to_owned();
    publish(
        &peal,
        &format!("replay:{letter}"),
        &[],
        r#"{"recipient":"nobody","push":{"title":"Hi"}}"#,
    )
    .await;
    let replay = format!("/v1/dead-letters/{letter}/replay");
    peal.expect("POST", "eu", &replay, None).await.unwrap();
    settled(&peal, &notification, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_cannot_be_worked_on_becomes_a_letter_that_says_why() {
    let peal = Peal::start(alone()).await.unwrap();
    let job = r#"{"recipient":"ann","push":{"title":"Hi"}}"#;
    for (name, value) in [
        (envelope::ACCEPTED_AT, "1795000000"),
        (envelope::ACCEPTED_AT, "0"),
        (envelope::DISCOUNTED, "4294967295"),
        (envelope::ATTEMPT, "4294967295"),
    ] {
        publish(&peal, &format!("{name}-{value}"), &[(name, value)], job).await;
    }
    let named = |letter: &Value| letter["detail"].as_str().unwrap().split(':').next().unwrap().to_owned();
    let mut fields: Vec<String> = await_letters(&peal, 4).await.iter().map(named).collect();
    fields.sort();
    let expected = [
        envelope::ACCEPTED_AT,
        envelope::ACCEPTED_AT,
        envelope::ATTEMPT,
        envelope::DISCOUNTED,
    ];
    assert_eq!(fields, expected);

    // As large as the server takes it, so that the reason has no room beside it.
    let largest = 1_048_450;
    publish(&peal, "large", &[], vec![b'x'; largest]).await;
    let letters = await_letters(&peal, 5).await;
    let large = letters
        .iter()
        .find(|letter| letter.get("original_bytes").is_some())
        .unwrap();
    assert_eq!(large["original_bytes"], largest);
    let path = format!("/v1/dead-letters/{}/replay", large["id"].as_str().unwrap());
    let (status, problem) = peal.ask("POST", "eu", &path, None).await.unwrap();
    assert_eq!((status, &problem["code"]), (409, &json!("letter_unreadable")));
    assert!(Audit::read_settled(&peal, TIMEOUT).await.unwrap().report.holds());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_for_days_is_disabled_and_its_app_is_told() {
    let (url, received) = receiver().await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into();
    let plan = Plan {
        regions: vec!["eu".into()],
        gateway_settings: "[alerts]\nevery_s = 1".into(),
        alerts: Some(Alerts { url, secret }),
        ..plan()
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[]).await.unwrap();
    let receivers = &peal.simulators.webhook;
    let path = "/v1/recipients/ann/addresses";
    let register = async || {
        let wanted = json!({ "type": "webhook", "url": receivers.url("/hook"), "format": "chat" });
        let answer = peal.expect("POST", "eu", path, Some(&wanted)).await.unwrap();
        assert_eq!(answer["state"], "active", "a registration enables it");
        answer["address_id"].as_str().unwrap().parse().unwrap()
    };
    let shown = async || peal.expect("GET", "eu", path, None).await.unwrap()["addresses"][0].clone();
    let send = async |event: &str, state: &str| {
        let body = json!({ "event_id": event, "to": { "recipients": ["ann"] }, "webhook": { "text": "Hello" } });
        let sent = peal
            .expect("POST", "eu", "/v1/notifications", Some(&body))
            .await
            .unwrap();
        settled(&peal, sent["notification_id"].as_str().unwrap(), state).await
    };

    // As if it had failed for six days.
    let address: AddressId = register().await;
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let key = RecipientKey {
        app: APP.parse().unwrap(),
        recipient: "ann".parse().unwrap(),
    };
    let subject = subject::fact(&key, FactName::Address(address));
    let stored = current::last(&js, topology::RECIPIENTS, &subject)
        .await
        .unwrap()
        .unwrap();
    let mut fact: Value = serde_json::from_slice(&stored.payload).unwrap();
    let since = Clock::system().now() - Duration::from_hours(6 * 24);
    fact["trouble"] = json!({ "since": since, "alerted_percent": 90, "reason": "http_503" });
    publish::store(&js, subject, version::headers(), fact.to_string().into())
        .await
        .unwrap();
    let broken = Answer::default().status(503);
    receivers.script().add(Rule::token("/hook").answer(broken)).unwrap();
    let retried = send("e1", "suppressed").await;
    assert_eq!(retried["reason"], "receiver_disabled", "{retried}");
    let asked = receivers.log().request_count();
    assert_eq!(send("e2", "suppressed").await["reason"], "receiver_disabled");
    assert_eq!(receivers.log().request_count(), asked, "nothing is posted any more");
    let address = shown().await;
    assert_eq!([&address["state"], &address["reason"]], ["disabled", "failed_for_days"]);

    let begun = Instant::now();
    while received.lock().unwrap().len() < 2 {
        assert!(begun.elapsed() < TIMEOUT, "{}", peal.complaints());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = received.lock().unwrap().clone();
    assert_eq!(told[0].0["webhook-id"], told[1].0["webhook-id"], "it is repeated");
    let alert: Value = serde_json::from_str(&told[1].1).unwrap();
    assert_eq!(alert["type"], "endpoint.disabled");
    let endpoint = &alert["data"]["endpoints"][0];
    assert_eq!(endpoint["address_id"], address["address_id"]);
    assert_eq!(
        (&endpoint["recipient"], &endpoint["percent"]),
        (&json!("ann"), &json!(100))
    );
    assert!(
        !told[1].1.contains("/hook") && !told[1].1.contains("Hello"),
        "no URL, no content"
    );

    receivers.script().clear();
    register().await;
    send("e3", "delivered").await;
    let gone = Answer::default().status(410);
    receivers
        .script()
        .add(Rule::token("/hook").times(1).answer(gone))
        .unwrap();
    send("e4", "rejected").await;
    assert_eq!(send("e5", "suppressed").await["reason"], "receiver_disabled");
    assert_eq!(
        [&shown().await["state"], &shown().await["reason"]],
        ["disabled", "http_410"]
    );
    register().await;
    send("e6", "delivered").await;
}
