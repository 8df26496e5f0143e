//! Sending notifications: what is stored, repeated and refused.

use std::collections::HashSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{StreamExt, future::join_all};
use gateway::provision;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    clock::Clock,
    digest::{derive, of_content},
    job::Job,
    nats::{
        border::Border,
        config::Config,
        connect, envelope, follow,
        idempotency::{self, Answer, Claim, Fingerprint, Reply},
        publish,
        roles::Role,
        subject, topology, version,
    },
    seal::MeshKey,
    testing,
};
use testbed::nats::{self, Mesh};

use crate::rig::{Rig, app, eventually, region, send};

/// Every job that a stream holds, with its subject and headers.
async fn jobs(rig: &Rig, stream: &str) -> Vec<(String, async_nats::HeaderMap, Job)> {
    if rig.count(stream).await == 0 {
        return Vec::new();
    }
    let ids = rig.ids().await;
    let mut entries = follow::follow(&rig.js, stream, ">", 1).await.unwrap();
    let mut jobs = Vec::new();
    while let Some(entry) = entries.next().await {
        let entry = entry.unwrap();
        if entry.subject.starts_with("notify.") {
            let job = envelope::open(
                &entry.subject,
                &entry.headers,
                &entry.payload,
                entry.stored_at,
                &region("eu"),
                &ids,
            );
            jobs.push((entry.subject, entry.headers, job.unwrap()));
        }
        if entry.pending == 0 {
            break;
        }
    }
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn each_accepted_job_is_stored_for_the_home_region_of_its_recipient() {
    let rig = Rig::start().await;
    assert_eq!(
        rig.ask("PUT", "/v1/recipients/far", json!({ "home": "us" }))
            .await
            .status,
        201
    );
    let body = json!({
        "event_id": "order-42",
        "to": { "recipients": ["near", "far", "ünknown/§"] },
        "class": "urgent",
        "category": "orders",
        "push": { "title": "Hi \"there\"", "data": { "k": "v" }, "ttl": 60 },
    });
    let answer = rig.ask("POST", "/v1/notifications", body.clone()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(
        (&answer.body["jobs"], &answer.body["duplicates"]),
        (&json!(3), &json!(0))
    );
    assert_eq!(answer.body["event_id"], "order-42");
    assert_eq!(answer.body.get("trace_id"), None);
    let id = answer.body["notification_id"].as_str().unwrap();
    assert_eq!(
        answer.header("location"),
        Some(format!("/v1/notifications/{id}").as_str())
    );

    let near = jobs(&rig, topology::NOTIFY).await;
    let far = jobs(&rig, topology::OUTBOX).await;
    let names = |jobs: &[(String, _, Job)]| {
        jobs.iter()
            .map(|(_, _, job)| job.recipient().unwrap().to_string())
            .collect::<HashSet<_>>()
    };
    assert_eq!(names(&near), HashSet::from(["near".to_owned(), "ünknown/§".to_owned()]));
    assert_eq!(names(&far), HashSet::from(["far".to_owned()]));
    assert_eq!(far[0].0, "notify.push.us.urgent.shop");
    for (_, headers, job) in near.iter().chain(&far) {
        assert_eq!(job.notification.to_string(), id);
        assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), job.id.to_string());
        assert_eq!(job.origin, region("eu"));
        assert_eq!(job.category.as_ref().unwrap().as_str(), "orders");
        assert_eq!(
            serde_json::to_value(job.body()).unwrap()["push"]["title"],
            "Hi \"there\""
        );
        assert_eq!(headers.get("traceparent"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeating_an_event_stores_nothing_twice() {
    let rig = Rig::start().await;
    let first = rig.notify("e1", &["ann", "bob"]).await;
    let again = rig.notify("e1", &["ann", "bob", "eve"]).await;
    assert_eq!((first.status, again.status), (202, 202));
    assert_eq!(first.body["notification_id"], again.body["notification_id"]);
    assert_eq!((&again.body["jobs"], &again.body["duplicates"]), (&json!(3), &json!(2)));
    assert_eq!(rig.count(topology::NOTIFY).await, 3);

    // The header names the event too; without either, every request is a new event.
    let body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
    let request = || {
        rig.request("POST", "/v1/notifications")
            .bearer_auth(&rig.key)
            .json(&body)
    };
    assert_eq!(
        send(request().header("Idempotency-Key", "e1")).await.body["duplicates"],
        1
    );
    assert_ne!(
        send(request()).await.body["event_id"],
        send(request()).await.body["event_id"]
    );
    assert_eq!(rig.count(topology::NOTIFY).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_idempotency_key_gets_the_first_answer() {
    let rig = Rig::start().await;
    let ask = async |key: &str, recipient: &str| {
        let body = json!({ "to": { "recipients": [recipient] }, "push": { "title": "Hi" } });
        let request = rig.request("POST", "/v1/notifications").bearer_auth(&rig.key);
        send(request.header("Idempotency-Key", key).json(&body)).await
    };
    let first = ask("k1", "ann").await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (202, None));
    for _ in 0..2 {
        let again = ask("k1", "ann").await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (202, Some("true")));
        assert_eq!(
            (&again.body, again.header("location")),
            (&first.body, first.header("location"))
        );
    }
    let other = ask("k1", "bob").await;
    assert_eq!(
        (other.status, other.code()),
        (422, "idempotency_key_reused"),
        "{other:?}"
    );
    assert_eq!(rig.count(topology::NOTIFY).await, 1);

    // A request that stored nothing does not use up its key.
    let too_large = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "x".repeat(5000) } });
    let request = rig.request("POST", "/v1/notifications").bearer_auth(&rig.key);
    let refused = send(request.header("Idempotency-Key", "k2").json(&too_large)).await;
    assert_eq!(
        (refused.status, refused.code()),
        (422, "validation_failed"),
        "{refused:?}"
    );
    assert_eq!(ask("k2", "ann").await.status, 202);

    // Another app's key of the same name is another key.
    let key = rig.issue_key("bank", Scope::ALL).await;
    let body = json!({ "to": { "recipients": ["eve"] }, "push": { "title": "Hi" } });
    let request = rig.request("POST", "/v1/notifications").bearer_auth(&key);
    let others = send(request.header("Idempotency-Key", "k1").json(&body)).await;
    assert_eq!((others.status, others.header("idempotent-replayed")), (202, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_json_in_another_order_is_the_same_request() {
    let rig = Rig::start().await;
    let ask = async |key: &str, body: &'static str| {
        let request = rig.request("POST", "/v1/notifications").bearer_auth(&rig.key);
        let request = request.header("Idempotency-Key", key);
        send(request.header("Content-Type", "application/json").body(body)).await
    };
    let first = r#"{"to":{"recipients":["ann"]},"push":{"title":"Hi","apns":{"payload":{"a":1,"b":{"c":2,"d":3}}}}}"#;
    let reordered = r#"
        { "push": { "apns": { "payload": { "b": { "d": 3, "c": 2 }, "a": 1 } }, "title": "H\u0069" },
          "to": { "recipients": ["ann"] } }"#;
    let other = r#"{"to":{"recipients":["ann"]},"push":{"title":"Hi","apns":{"payload":{"a":1,"b":{"c":2,"d":4}}}}}"#;
    assert_eq!(ask("k", first).await.status, 202);
    let again = ask("k", reordered).await;
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (202, Some("true")),
        "{again:?}"
    );
    assert_eq!(ask("k", other).await.code(), "idempotency_key_reused");
    assert_eq!(rig.count(topology::NOTIFY).await, 1);

    // A record of version 0.1 knows the bytes alone.
    let subject = subject::idempotency(&region("eu"), &app(), derive("idempotency", &["former"]));
    let record = json!({
        "request": of_content(first.as_bytes()),
        "at": Clock::system().now(),
        "answer": { "event_id": "former", "jobs": 1, "duplicates": 0 },
    });
    let stored = publish::store(&rig.js, subject, version::headers(), record.to_string().into()).await;
    assert!(stored.is_ok());
    let again = ask("former", first).await;
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (202, Some("true")),
        "{again:?}"
    );
    assert_eq!(ask("former", reordered).await.code(), "idempotency_key_reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_an_encoding_or_a_value_of_a_wrong_type_is_refused_and_named() {
    let rig = Rig::start().await;
    for (encoding, status) in [("gzip", 415), ("br, identity", 415), ("identity", 202)] {
        let body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
        let request = rig.request("POST", "/v1/notifications").bearer_auth(&rig.key);
        let answer = send(request.header("Content-Encoding", encoding).json(&body)).await;
        assert_eq!(answer.status, status, "{answer:?}");
        if status == 415 {
            assert_eq!(answer.code(), "unsupported_media_type");
            assert_eq!(answer.header("accept-encoding"), Some("identity"));
        }
    }
    for (members, field) in [
        (json!({ "class": 5 }), "class"),
        (json!({ "push": { "title": "Hi", "priority": 10 } }), "push.priority"),
        (json!({ "push": { "title": "Hi", "data": { "a": [] } } }), "push.data.a"),
        (json!({ "to": { "recipients": ["ann", 7] } }), "to.recipients[1]"),
        (json!({ "to": ["ann"] }), "to"),
    ] {
        let mut body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        let answer = rig.ask("POST", "/v1/notifications", body).await;
        assert_eq!((answer.status, answer.code()), (422, "validation_failed"), "{answer:?}");
        assert_eq!(answer.body["errors"][0]["field"], field, "{answer:?}");
    }
    let nulls = json!({
        "to": { "recipients": ["ann"], "topic": null },
        "class": null,
        "channel": null,
        "category": null,
        "push": { "title": "Hi", "data": null, "badge": null, "priority": null, "silent": null, "apns": null, "fcm": null },
    });
    assert_eq!(rig.ask("POST", "/v1/notifications", nulls).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_requests_with_one_key_one_is_processed() {
    let rig = Rig::start().await;
    let body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
    for round in 0..5 {
        let asked = join_all((0..16).map(|_| {
            let request = rig.request("POST", "/v1/notifications").bearer_auth(&rig.key);
            send(request.header("Idempotency-Key", format!("k{round}")).json(&body))
        }));
        let (mut fresh, mut ids) = (0, HashSet::new());
        for answer in asked.await {
            match answer.status {
                202 => {
                    fresh += usize::from(answer.header("idempotent-replayed").is_none());
                    ids.insert(answer.body["notification_id"].to_string());
                }
                409 => {
                    assert_eq!(answer.code(), "idempotency_key_in_use");
                    assert_eq!(answer.header("retry-after"), Some("1"));
                }
                _ => panic!("{answer:?}"),
            }
        }
        assert_eq!((fresh, ids.len()), (1, 1));
    }
    assert_eq!(rig.count(topology::NOTIFY).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_used_in_one_region_is_known_in_the_others() {
    let nats = Mesh::start(nats::from_env().unwrap(), &["eu", "us"]).await.unwrap();
    let mut regions = Vec::new();
    for name in ["eu", "us"] {
        let client = nats.region(name).connect(&Role::Gateway(region(name))).await.unwrap();
        if regions.is_empty() {
            let hub = nats.hub().connect(&Role::Operator(region("hub"))).await.unwrap();
            let mesh_key = MeshKey::from_base64(&STANDARD.encode([7; 32])).unwrap();
            provision::prepare_hub(&provision::hub(hub), &mesh_key, 1)
                .await
                .unwrap();
        }
        let mesh = topology::Mesh {
            here: topology::RegionSettings {
                region: region(name),
                durability: topology::Durability::default(),
                max_bytes: -1,
                intake_max_bytes: -1,
            },
            regions: vec![region("eu"), region("us")],
        };
        let js = connect::jetstream(client);
        topology::apply_region(&js, &mesh, true).await.unwrap();
        let (kept, streams) = (js.clone(), mesh.streams());
        tokio::spawn(async move {
            let mut waker = topology::Waker::default();
            loop {
                waker.wake(&kept, &streams).await;
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        });
        regions.push((region(name), js));
    }
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let border = Border::new(Config::new(testing::mesh_key()));
    let claim = async |at: usize, content: &[u8]| {
        let (here, js) = &regions[at];
        idempotency::claim(
            js,
            &border,
            here,
            &app(),
            &"k1".parse().unwrap(),
            Fingerprint::of(content),
            now,
        )
        .await
        .unwrap()
    };
    let Claim::Held(held) = claim(0, b"a").await else {
        panic!("the key should be free")
    };
    eventually("us knows that eu holds it", async || match claim(1, b"a").await {
        Claim::InProgress => true,
        Claim::Held(held) => {
            held.release(&regions[1].1, true).await;
            false
        }
        other => panic!("{other:?}"),
    })
    .await;
    let answer = Reply::One(Answer {
        event_id: "k1".parse().unwrap(),
        jobs: 1,
        duplicates: 0,
        trace_id: None,
    });
    held.complete(&regions[0].1, answer.clone()).await;
    eventually(
        "eu has answered",
        async || matches!(claim(1, b"a").await, Claim::Answered(answered) if answered == answer),
    )
    .await;
    assert!(matches!(claim(1, b"b").await, Claim::OtherRequest));
    assert!(matches!(claim(0, b"b").await, Claim::OtherRequest));
}

/// Bodies that break a rule, with the status, the code and the field of the answer. The answer must not repeat the
/// value 5551234.
#[expect(clippy::too_many_lines, reason = "a list")]
fn invalid_bodies() -> Vec<(Value, u16, &'static str, &'static str)> {
    let to = |recipients: Value, push: Value| json!({ "to": { "recipients": recipients }, "push": push });
    let with = |member: &str, value: Value| {
        let mut body = to(json!(["ann"]), json!({ "title": "Hi" }));
        body[member] = value;
        body
    };
    let push = |member: &str, value: Value| {
        let mut body = to(json!(["ann"]), json!({ "title": "Hi" }));
        body["push"][member] = value;
        body
    };
    vec![
        (
            with("event_id", json!("has spaces 5551234")),
            422,
            "validation_failed",
            "event_id",
        ),
        (with("class", json!("5551234")), 422, "validation_failed", "class"),
        (
            with("channel", json!("fax5551234")),
            422,
            "validation_failed",
            "channel",
        ),
        (with("channel", json!("email")), 422, "validation_failed", "channel"),
        (
            with("email", json!({ "subject": "5551234", "text": "x" })),
            422,
            "validation_failed",
            "email",
        ),
        (with("digest", json!({ "key": "5551234" })), 422, "not_built", "digest"),
        (
            json!({ "notifications": "5551234" }),
            422,
            "validation_failed",
            "notifications",
        ),
        (
            with("category", json!("Offers 5551234")),
            422,
            "validation_failed",
            "category",
        ),
        (with("region", json!("eu5551234")), 422, "validation_failed", "region"),
        (with("to", json!({})), 422, "validation_failed", "to"),
        (
            to(json!([]), json!({ "title": "Hi" })),
            422,
            "validation_failed",
            "to.recipients",
        ),
        (
            to(json!(["a", "b", "c", "d"]), json!({ "title": "Hi" })),
            422,
            "validation_failed",
            "to.recipients",
        ),
        (
            to(json!(["a", "b", "a"]), json!({ "title": "Hi" })),
            422,
            "validation_failed",
            "to.recipients[2]",
        ),
        (
            to(json!(["a", "b 5551234"]), json!({ "title": "Hi" })),
            422,
            "validation_failed",
            "to.recipients[1]",
        ),
        (to(json!(["ann"]), json!({})), 422, "validation_failed", "push.title"),
        (push("title", json!(5_551_234)), 422, "validation_failed", "push.title"),
        (push("tilte", json!("5551234")), 422, "validation_failed", "push.tilte"),
        (
            with(
                "plan",
                json!({ "mode": "first", "steps": [{ "channel": "push", "until": "opened" }] }),
            ),
            422,
            "not_built",
            "plan.steps[0].until",
        ),
        (push("ttl", json!(5_551_234)), 422, "validation_failed", "push.ttl"),
        (push("badge", json!(-5_551_234)), 422, "validation_failed", "push.badge"),
        (push("silent", json!(true)), 422, "validation_failed", "push.silent"),
        (
            push("image", json!("http://5551234/")),
            422,
            "validation_failed",
            "push.image",
        ),
        (
            push("data", json!({ "aps": "5551234" })),
            422,
            "validation_failed",
            "push.data",
        ),
        (
            push("body", json!("5551234".repeat(600))),
            422,
            "validation_failed",
            "push",
        ),
        (
            push("apns", json!({ "priority": 55 })),
            422,
            "validation_failed",
            "push.apns.priority",
        ),
        (
            push("apns", json!({ "push_type": "5551234" })),
            422,
            "validation_failed",
            "push.apns.push_type",
        ),
        (json!([5_551_234]), 422, "validation_failed", "body"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_field_is_named_and_its_value_never_repeated() {
    let rig = Rig::with(|settings| settings.limits.recipients = 3).await;
    for (body, status, code, field) in invalid_bodies() {
        let answer = rig.ask("POST", "/v1/notifications", body.clone()).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{body}: {answer:?}");
        if !field.is_empty() {
            assert_eq!(answer.body["errors"][0]["field"], field, "{body}: {answer:?}");
        }
        assert!(!answer.body.to_string().contains("5551234"), "{answer:?}");
    }
    assert_eq!(rig.count(topology::NOTIFY).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_answered_with_problems() {
    let rig = Rig::with(|settings| settings.limits.body_bytes = 1000).await;
    let post = || rig.request("POST", "/v1/notifications").bearer_auth(&rig.key);
    let json = |body: &str| {
        post()
            .header("content-type", "application/json; charset=utf-8")
            .body(body.to_owned())
    };
    let valid = r#"{"to":{"recipients":["ann"]},"push":{"title":"Hi"}}"#;
    let cases = [
        (json("{"), 400, "malformed_json"),
        (json(""), 400, "malformed_json"),
        (json(&format!("{valid} x")), 400, "malformed_json"),
        (post().body(valid), 415, "unsupported_media_type"),
        (
            post().header("content-type", "text/plain").body(valid),
            415,
            "unsupported_media_type",
        ),
        (json(&format!("{valid}{}", " ".repeat(1000))), 413, "too_large"),
        (
            json(valid).header("Idempotency-Key", "with space"),
            422,
            "validation_failed",
        ),
        (
            json(r#"{"event_id":"a","to":{"recipients":["ann"]},"push":{"title":"Hi"}}"#)
                .header("Idempotency-Key", "b"),
            422,
            "validation_failed",
        ),
        (
            rig.request("PUT", "/v1/notifications").bearer_auth(&rig.key),
            405,
            "method_not_allowed",
        ),
        (
            rig.request("GET", "/v1/nothing").bearer_auth(&rig.key),
            404,
            "not_found",
        ),
        (rig.request("GET", "/"), 404, "not_found"),
    ];
    for (request, status, code) in cases {
        let answer = send(request).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{answer:?}");
    }
    let answer = send(rig.request("PUT", "/v1/notifications").header("x-request-id", "mine-1")).await;
    assert_eq!(
        (answer.header("allow"), answer.header("x-request-id")),
        (Some("POST,GET,HEAD,DELETE"), Some("mine-1"))
    );
    assert_eq!(rig.count(topology::NOTIFY).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_requests_at_once_do_not_block_each_other_forever() {
    let rig = Rig::start().await;
    // Together they have more messages than may be unacknowledged at once.
    let requests = (0..12).map(|request| {
        let rig = &rig;
        async move {
            let names: Vec<String> = (0..1000).map(|n| format!("r{request}-{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            rig.notify("", &names).await
        }
    });
    for answer in join_all(requests).await {
        assert_eq!((answer.status, &answer.body["jobs"]), (202, &json!(1000)), "{answer:?}");
    }
    assert_eq!(rig.count(topology::NOTIFY).await, 12_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_the_callers_trace_is_passed_on_unchanged() {
    let rig = Rig::start().await;
    for (recipient, sent, is_trace) in [
        (
            "unsampled",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            true,
        ),
        (
            "sampled",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            true,
        ),
        ("nonsense", "00-zz-zz-01", false),
    ] {
        let body = json!({ "to": { "recipients": [recipient] }, "push": { "title": "Hi" } });
        let request = rig
            .request("POST", "/v1/notifications")
            .bearer_auth(&rig.key)
            .json(&body);
        let answer = send(request.header("traceparent", sent)).await;
        assert_eq!((answer.status, answer.body.get("trace_id")), (202, None));
        let jobs = jobs(&rig, topology::NOTIFY).await;
        let (_, headers, _) = jobs
            .iter()
            .find(|(_, _, job)| job.recipient().is_some_and(|found| found.as_str() == recipient))
            .unwrap();
        let stored = headers.get("traceparent").map(ToString::to_string);
        assert_eq!(stored, is_trace.then(|| sent.to_owned()), "{recipient}");
    }
}
