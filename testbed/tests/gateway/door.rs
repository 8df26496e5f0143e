//! The door for services: what they publish or ask for becomes the same jobs as over HTTP.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap, Message, Request,
    jetstream::consumer::{PullConsumer, pull},
};
use futures::StreamExt;
use serde_json::{Value, json};
use shared::{
    api_key::Scope as KeyScope,
    app::Quota,
    id::{AppId, NotificationId},
    nats::{
        audit::{self, Scope},
        follow,
        roles::Role,
        topology::{self, DEAD, INTAKE_CONSUMER, NOTIFY},
    },
};
use tokio::time::timeout;

use crate::rig::{Rig, app, eventually, region};

fn notification(event: &str) -> Value {
    json!({ "event_id": event, "to": { "recipients": ["ann", "bob"] }, "push": { "title": "Hi" } })
}

impl Rig {
    async fn service(&self) -> Client {
        let role = Role::Service(app());
        self.nats.region("eu").connect(&role).await.unwrap()
    }

    async fn wait_for_intake(&self, app: &AppId) {
        eventually("the app has an intake", async || {
            let found = self.js.get_stream(topology::intake(app)).await;
            found.is_ok_and(|stream| stream.cached_info().state.consumer_count == 1)
        })
        .await;
    }

    /// Waits until gateways have worked off everything that services of `app` published.
    async fn wait_worked_off(&self, app: &AppId) {
        eventually("the intake is worked off", async || {
            let Ok(intake) = self.js.get_stream(topology::intake(app)).await else {
                return false;
            };
            // A server counts a message as pending a moment after it acknowledged that the message is stored.
            let last = intake.cached_info().state.last_sequence;
            let consumer = intake.get_consumer::<pull::Config>(INTAKE_CONSUMER).await;
            consumer.is_ok_and(|consumer| {
                let info = consumer.cached_info();
                info.num_ack_pending == 0 && info.ack_floor.stream_sequence >= last
            })
        })
        .await;
    }

    /// The number of a letter's message in the intake of [`app`], from 1. An intake begins above all former sequences.
    async fn place(&self, letter: &Value) -> u64 {
        let intake = self.js.get_stream(topology::intake(&app())).await.unwrap();
        let first = intake.cached_info().state.first_sequence;
        letter["intake_sequence"].as_u64().unwrap() + 1 - first
    }

    async fn publish(
        &self,
        service: &Client,
        headers: HeaderMap,
        body: impl ToString,
    ) -> async_nats::jetstream::publish::PublishAck {
        let js = async_nats::jetstream::new(service.clone());
        let sent = js.publish_with_headers("send.shop", headers, body.to_string().into());
        sent.await.unwrap().await.unwrap()
    }

    async fn letters(&self) -> Vec<Value> {
        let answer = self.ask("GET", "/v1/dead-letters", Value::Null).await;
        answer.body["dead_letters"].as_array().unwrap().clone()
    }
}

fn header(name: &str, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, value);
    headers
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).unwrap()
}

#[tokio::test]
async fn a_published_message_becomes_the_jobs_of_a_request() {
    let rig = Rig::start().await;
    rig.wait_for_intake(&app()).await;
    let service = rig.service().await;
    rig.publish(&service, HeaderMap::new(), notification("order-1")).await;
    rig.wait_worked_off(&app()).await;
    assert_eq!(rig.count(NOTIFY).await, 2);
    // The same event over HTTP is the same notification.
    let answer = rig.ask("POST", "/v1/notifications", notification("order-1")).await;
    assert_eq!((answer.status, &answer.body["duplicates"]), (202, &json!(2)));
    let id = NotificationId::of(&app(), &"order-1".parse().unwrap());
    let status = rig.ask("GET", &format!("/v1/notifications/{id}"), Value::Null).await;
    assert_eq!((status.status, &status.body["jobs"]), (200, &json!(2)), "{status:?}");
    assert_eq!(status.body["event_id"], "order-1");
}

#[tokio::test]
async fn the_event_id_may_stand_in_a_header() {
    let rig = Rig::start().await;
    rig.wait_for_intake(&app()).await;
    let service = rig.service().await;
    let mut nameless = notification("");
    nameless.as_object_mut().unwrap().remove("event_id");
    rig.publish(&service, header("Nats-Msg-Id", "by-message-id"), &nameless)
        .await;
    rig.publish(&service, header("ce-id", "by-cloud-event"), &nameless)
        .await;
    rig.publish(&service, HeaderMap::new(), &nameless).await;
    rig.wait_worked_off(&app()).await;
    assert_eq!(rig.count(NOTIFY).await, 4);
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["reason"], "refused");
    assert!(
        letters[0]["detail"].as_str().unwrap().starts_with("event_id: "),
        "{letters:?}"
    );
    assert_eq!((rig.place(&letters[0]).await, letters[0].get("index")), (3, None));
}

#[tokio::test]
async fn each_refused_item_becomes_a_letter_and_the_books_hold() {
    let rig = Rig::start().await;
    rig.wait_for_intake(&app()).await;
    let service = rig.service().await;
    let mut reserved = notification("b");
    reserved["send_at_local"] = json!("2026-12-24T18:00:00Z");
    let items = json!({ "notifications": [notification("a"), reserved, notification("c"), { "event_id": "d" }] });
    rig.publish(&service, HeaderMap::new(), &items).await;
    rig.publish(&service, header("Nats-Msg-Id", "e"), "no JSON").await;
    rig.wait_worked_off(&app()).await;
    assert_eq!((rig.count(NOTIFY).await, rig.count(DEAD).await), (4, 3));
    let mut letters = rig.letters().await;
    // Messages are worked off side by side.
    letters.sort_by_key(|letter| (letter["intake_sequence"].as_u64(), letter["index"].as_u64()));
    let mut places = Vec::new();
    for letter in &letters {
        let (index, event) = (letter["index"].as_u64(), letter["event_id"].as_str());
        places.push((rig.place(letter).await, index, event));
    }
    assert_eq!(
        places,
        [(1, Some(1), Some("b")), (1, Some(3), Some("d")), (2, None, Some("e"))]
    );
    assert!(
        letters[0]["detail"]
            .as_str()
            .unwrap()
            .starts_with("notifications[1].send_at_local"),
        "{letters:?}"
    );
    let status = rig.ask("GET", "/v1/notifications?event_id=d", Value::Null).await;
    let delivery = &status.body["notifications"][0]["deliveries"][0];
    assert_eq!(
        (&delivery["state"], &delivery["reason"]),
        (&json!("dead"), &json!("refused")),
        "{status:?}"
    );
    // Only a person's correction helps: a replay would be refused again.
    let path = format!("/v1/dead-letters/{}/replay", letters[0]["id"].as_str().unwrap());
    assert_eq!(rig.ask("POST", &path, Value::Null).await.code(), "letter_unreadable");
    let report = audit::read(
        &rig.js.client(),
        &[region("eu")],
        &Scope::default(),
        rig.ids().await.into(),
    )
    .await
    .unwrap();
    assert!(report.holds(), "{:?}", report.broken);
    let total = report.total();
    assert_eq!((total.accepted, total.in_flight), (7, 4), "{total}");
}

#[tokio::test]
async fn requests_are_answered_like_those_over_http() {
    let rig = Rig::start().await;
    rig.wait_for_intake(&app()).await;
    let service = rig.service().await;
    let ask = async |body: Value| {
        let asked = async {
            loop {
                // Until the service listens, nobody answers.
                if let Ok(answer) = service.request("send.shop.now", body.to_string().into()).await {
                    return answer;
                }
            }
        };
        timeout(Duration::from_secs(10), asked).await.unwrap()
    };
    let answer = ask(notification("now-1")).await;
    assert_eq!(body(&answer)["jobs"], 2, "{answer:?}");
    let http = rig.ask("POST", "/v1/notifications", notification("now-1")).await;
    assert_eq!(
        (http.body["duplicates"].clone(), &http.body["notification_id"]),
        (json!(2), &body(&answer)["notification_id"])
    );

    let answer = ask(json!({ "event_id": "x", "to": {}, "push": { "title": "Hi" } })).await;
    let headers = answer.headers.clone().unwrap();
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "422");
    assert_eq!(headers.get("Nats-Service-Error").unwrap().as_str(), "validation_failed");
    assert_eq!(
        (&body(&answer)["code"], &body(&answer)["errors"][0]["field"]),
        (&json!("validation_failed"), &json!("to"))
    );

    let answer = ask(json!({ "notifications": [notification("m-1"), { "event_id": "m-2" }] })).await;
    let results = body(&answer);
    assert_eq!((&results["accepted"], &results["refused"]), (&json!(1), &json!(1)));
    assert_eq!(
        results["results"][1]["problem"]["errors"][0]["field"],
        "notifications[1].to"
    );

    // As any NATS micro service it can be found.
    let operator = rig.nats.region("eu").connect_as_test().await.unwrap();
    let found = operator.request("$SRV.INFO.peal-send", "".into()).await.unwrap();
    assert_eq!(body(&found)["endpoints"][0]["subject"], "send.*.now");
}

#[tokio::test]
async fn what_a_service_publishes_beyond_its_quota_waits_and_a_request_is_told_so() {
    let rig = Rig::start().await;
    rig.wait_for_intake(&app()).await;
    let service = rig.service().await;
    rig.publish(&service, HeaderMap::new(), notification("before")).await;
    rig.wait_worked_off(&app()).await;
    let quota = Quota {
        jobs_per_s: Some(1),
        ..Quota::default()
    };
    rig.issue_key_within(app().as_str(), KeyScope::ALL, quota).await;
    let begun = std::time::Instant::now();
    for event in ["one", "two", "three"] {
        rig.publish(&service, HeaderMap::new(), notification(event)).await;
    }
    eventually("a request is refused", async || {
        let request = service.request("send.shop.now", notification("now").to_string().into());
        let Ok(answer) = request.await else { return false };
        let headers = answer.headers.unwrap_or_default();
        headers
            .get("Nats-Service-Error-Code")
            .is_some_and(|code| code.as_str() == "429")
    })
    .await;
    rig.wait_worked_off(&app()).await;
    // Each has two jobs, and one job a second is admitted: the first goes at once.
    assert!(begun.elapsed() >= Duration::from_millis(3500), "{:?}", begun.elapsed());
    assert_eq!(rig.letters().await, Vec::<Value>::new());
    let mut work = rig.js.get_stream(NOTIFY).await.unwrap();
    assert!(work.info().await.unwrap().state.messages >= 8);
}

#[tokio::test]
async fn an_app_that_is_added_gets_an_intake_and_each_app_has_its_own_ids() {
    let rig = Rig::start().await;
    rig.issue_key("bank", &[]).await;
    let bank: AppId = "bank".parse().unwrap();
    rig.wait_for_intake(&bank).await;
    let js = &rig.js;
    for app in ["shop", "bank"] {
        let headers = header("Nats-Msg-Id", "order-1");
        let body = notification("order-1").to_string();
        let sent = js
            .publish_with_headers(format!("send.{app}"), headers, body.into())
            .await
            .unwrap();
        assert!(!sent.await.unwrap().duplicate, "{app}");
    }
    rig.wait_worked_off(&app()).await;
    rig.wait_worked_off(&bank).await;
    assert_eq!(rig.count(NOTIFY).await, 4);
}

impl Rig {
    /// Publishes to the intake of `app` with every permission.
    async fn publish_for(&self, app: &AppId, event: &str) -> bool {
        let sent = self
            .js
            .publish(format!("send.{app}"), notification(event).to_string().into());
        sent.await.unwrap().await.is_ok()
    }

    async fn has_intake(&self, app: &AppId) -> bool {
        self.js.get_stream(topology::intake(app)).await.is_ok()
    }

    async fn has_feed(&self, app: &AppId) -> bool {
        let feed: Result<PullConsumer, _> = self
            .js
            .get_consumer_from_stream(topology::feed_consumer(app), topology::RECEIPTS)
            .await;
        feed.is_ok()
    }
}

#[tokio::test]
async fn an_app_that_loses_its_services_loses_its_intake_once_it_is_worked_off_and_its_feed() {
    let rig = Rig::start().await;
    let bank: AppId = "bank".parse().unwrap();
    let quota = Quota {
        jobs_per_s: Some(2),
        ..Quota::default()
    };
    rig.issue_key_within("bank", &[], quota).await;
    rig.wait_for_intake(&bank).await;
    eventually("the app has a feed", async || rig.has_feed(&bank).await).await;
    // Its quota lets the last of them wait for more than the time after which an intake is retired.
    for event in 0..8 {
        assert!(rig.publish_for(&bank, &event.to_string()).await);
    }
    rig.end_services("bank", quota).await;
    eventually("the intake is closed", async || {
        let intake = rig.js.get_stream(topology::intake(&bank)).await.unwrap();
        intake.cached_info().config.max_message_size == 1
    })
    .await;
    assert!(!rig.publish_for(&bank, "late").await);
    eventually("the intake is gone", async || !rig.has_intake(&bank).await).await;
    assert!(!rig.has_feed(&bank).await);
    assert!(rig.has_intake(&app()).await && rig.has_feed(&app()).await);
    // Two recipients each.
    assert_eq!(rig.count(NOTIFY).await, 16);
}

#[tokio::test]
async fn what_waits_for_an_app_that_is_gone_is_kept_until_it_returns() {
    let rig = Rig::start().await;
    let bank: AppId = "bank".parse().unwrap();
    let quota = Quota {
        jobs_per_s: Some(1),
        ..Quota::default()
    };
    rig.issue_key_within("bank", &[], quota).await;
    rig.wait_for_intake(&bank).await;
    for event in 0..6 {
        assert!(rig.publish_for(&bank, &event.to_string()).await);
    }
    let mut headers = HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    let deleted = rig.hub.publish_with_headers("$KV.config.app.bank", headers, "".into());
    deleted.await.unwrap().await.unwrap();
    eventually("the feed is gone", async || !rig.has_feed(&bank).await).await;
    assert!(!rig.publish_for(&bank, "late").await, "the intake is closed");
    let jobs = rig.count(NOTIFY).await;
    assert!(rig.has_intake(&bank).await && jobs < 12, "{jobs}");
    let report = audit::read(
        &rig.js.client(),
        &[region("eu")],
        &Scope::default(),
        rig.ids().await.into(),
    )
    .await
    .unwrap();
    assert!(report.holds(), "{:?}", report.broken);
    assert_eq!(report.total().in_flight, 12, "{}", report.total());

    rig.issue_key("bank", &[]).await;
    rig.wait_worked_off(&bank).await;
    assert_eq!(rig.count(NOTIFY).await, 12);
    eventually("the app has a feed again", async || rig.has_feed(&bank).await).await;
    eventually("the intake is open again", async || rig.publish_for(&bank, "new").await).await;
}

#[tokio::test]
async fn many_over_http_are_accepted_or_refused_one_by_one() {
    let rig = Rig::start().await;
    let ask = async |body: &Value| {
        let request = rig.request("POST", "/v1/notifications").bearer_auth(&rig.key);
        crate::rig::send(request.header("Idempotency-Key", "batch-1").json(body)).await
    };
    let items = json!({ "notifications": [notification("a"), { "event_id": "b" }] });
    let first = ask(&items).await;
    assert_eq!(
        (first.status, &first.body["accepted"], &first.body["refused"]),
        (207, &json!(1), &json!(1))
    );
    assert_eq!(first.body["results"][0]["accepted"]["event_id"], "a");
    assert!(first.body["results"][1]["problem"].get("request_id").is_none());
    let again = ask(&items).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (207, Some("true")));
    assert_eq!(again.body, first.body);
    let other = ask(&json!({ "notifications": [notification("c")] })).await;
    assert_eq!(other.code(), "idempotency_key_reused");
    let all = rig
        .ask(
            "POST",
            "/v1/notifications",
            json!({ "notifications": [notification("c"), notification("d")] }),
        )
        .await;
    assert_eq!((all.status, &all.body["accepted"]), (202, &json!(2)));
    assert_eq!(rig.count(NOTIFY).await, 6);
}

#[tokio::test]
async fn no_header_of_a_service_changes_its_intake() {
    let rig = Rig::start().await;
    rig.wait_for_intake(&app()).await;
    let js = &rig.js;
    let before = rig.count(&topology::intake(&app())).await;
    for (name, value) in [
        ("Nats-Rollup", "all"),
        ("Nats-TTL", "1s"),
        ("Nats-Schedule", "@at 2030-01-01T00:00:00Z"),
        ("Nats-Incr", "+1"),
    ] {
        let sent = js.publish_with_headers("send.shop", header(name, value), notification("x").to_string().into());
        assert!(sent.await.unwrap().await.is_err(), "{name}");
    }
    let large = vec![b' '; 65_537];
    assert!(js.publish("send.shop", large.into()).await.unwrap().await.is_err());
    assert_eq!(rig.count(&topology::intake(&app())).await, before);
    // What Peal's own programs may say in headers, a service may not.
    let mut headers = header("Peal-Accepted-At", "0");
    headers.insert("peal-attempt", "9");
    headers.insert("PEAL-SUBJECT", "notify.push.eu.urgent.bank");
    let sent = js.publish_with_headers("send.shop", headers, notification("headers").to_string().into());
    sent.await.unwrap().await.unwrap();
    rig.wait_worked_off(&app()).await;
    let stream = js.get_stream(NOTIFY).await.unwrap();
    let job = stream.get_raw_message(1).await.unwrap();
    assert!(job.headers.get("Peal-Attempt").is_none(), "{:?}", job.headers);
    assert!(
        job.headers
            .iter()
            .all(|(_, values)| values.iter().all(|value| value.as_str() != "0"))
    );
}

#[tokio::test]
async fn life_counts_from_created_at() {
    let rig = Rig::start().await;
    let at = "2026-11-20T00:00:00Z".parse::<jiff::Timestamp>().unwrap();
    let at = at.max(shared::clock::Clock::system().now() - jiff::SignedDuration::from_hours(48));
    let mut old = notification("old");
    old["created_at"] = json!(at.to_string());
    assert_eq!(rig.ask("POST", "/v1/notifications", old.clone()).await.status, 202);
    let job = rig
        .js
        .get_stream(NOTIFY)
        .await
        .unwrap()
        .get_raw_message(1)
        .await
        .unwrap();
    let accepted_at = job.headers.get("Peal-Accepted-At").unwrap().as_str();
    assert_eq!(accepted_at, at.as_millisecond().to_string());
    old["created_at"] = json!("2020-01-01T00:00:00Z");
    let refused = rig.ask("POST", "/v1/notifications", old).await;
    assert_eq!(refused.body["errors"][0]["field"], "created_at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_cannot_leave_batches_open_that_take_the_places_of_others() {
    // More than a server stages at one time for all streams (1,000), or one stream (50).
    const BATCHES: usize = 1100;
    let rig = Rig::with_single_durability(|_| ()).await;
    rig.wait_for_intake(&app()).await;
    let service = rig.service().await;
    for number in 0..BATCHES {
        // Without `Nats-Batch-Commit`, which would end it.
        let mut headers = header("Nats-Batch-Id", &format!("open-{number}"));
        headers.insert("Nats-Batch-Sequence", "1");
        let request = Request::new()
            .headers(headers)
            .payload(notification("open").to_string().into());
        let answer = service.send_request("send.shop", request).await.unwrap();
        assert_eq!(body(&answer)["error"]["err_code"], 10174, "{answer:?}");
    }
    let recipients: Vec<String> = (0..100).map(|number| format!("r{number}")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let answer = rig.notify("batch", &recipients).await;
    assert_eq!((answer.status, &answer.body["jobs"]), (202, &json!(100)), "{answer:?}");
    let js = &rig.js;
    let mut entries = follow::follow(js, NOTIFY, "notify.>", 1).await.unwrap();
    let first = entries.next().await.unwrap().unwrap();
    assert!(first.headers.get("Nats-Batch-Id").is_some(), "the gateway's own batch");
    assert_eq!(rig.count(NOTIFY).await, 100);
}
