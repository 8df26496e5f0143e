//! Text messages and webhooks, from a request over HTTP to the provider and back to the status, with what the providers report
//! later.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{collections::BTreeMap, fmt::Write, slice::from_ref, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    app::Route,
    channel::Channel,
    clock::Clock,
    nats::{connect, roles::Role, topology},
    provider::Provider,
    signature,
    spend::SpendCap,
};
use testbed::{
    audit::Audit,
    nats,
    peal::{PUBLIC_URL, Peal, Plan},
    providers::{Answer, RecordedPush, Rule},
};
use tokio::time::{Instant, sleep};

/// The number of `ann`.
const ANN: &str = "+41791234567";

const DONE_WITHIN: Duration = Duration::from_secs(45);

/// A mesh whose app sends text messages by Twilio, and by Vonage if that fails.
async fn start() -> Peal {
    let routes = [(Provider::Twilio, 100), (Provider::Vonage, 0)];
    let routes = routes.map(|(provider, weight)| Route { provider, weight }).to_vec();
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        routes: [(Channel::Sms, routes)].into(),
        provider_settings: "timeout_ms = 2000".into(),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    Peal::start(plan).await.unwrap()
}

/// Registers `ann` with this address, and returns the answer.
async fn register(peal: &Peal, address: Value) -> Value {
    let path = "/v1/recipients/ann/addresses";
    let answer = peal.expect("POST", "eu", path, Some(&address)).await.unwrap();
    peal.wait_known("us", "ann").await.unwrap();
    answer
}

/// Sends a notification to `ann` and returns its only delivery once it is done.
async fn send(peal: &Peal, at: &str, content: Value) -> Value {
    let mut body = json!({ "to": { "recipients": ["ann"] } });
    body.as_object_mut()
        .unwrap()
        .extend(content.as_object().unwrap().clone());
    let accepted = peal.expect("POST", at, "/v1/notifications", Some(&body)).await.unwrap();
    only_delivery(peal, at, &accepted).await
}

/// The only delivery of a notification, once it is done.
async fn only_delivery(peal: &Peal, at: &str, accepted: &Value) -> Value {
    let path = format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap());
    let deadline = Instant::now() + DONE_WITHIN;
    loop {
        let status = peal.expect("GET", at, &path, None).await.unwrap();
        if status["state"] == "done" {
            let deliveries = status["deliveries"].as_array().unwrap();
            assert_eq!(deliveries.len(), 1, "{status}");
            return deliveries[0].clone();
        }
        assert!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn text(text: &str) -> Value {
    json!({ "sms": { "text": text } })
}

/// Compares the end of a delivery.
fn assert_end(delivery: &Value, state: &str, provider: &str, reason: &str) {
    let member = |name: &str| delivery[name].as_str().unwrap_or_default();
    assert_eq!(
        [member("state"), member("provider"), member("reason")],
        [state, provider, reason],
        "{delivery}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn text_messages_take_the_apps_route_and_double_nothing() {
    let peal = start().await;
    peal.register("ann", "eu", &[]).await.unwrap();
    register(&peal, json!({ "type": "phone", "phone": ANN })).await;
    let (twilio, vonage) = (&peal.simulators.twilio, &peal.simulators.vonage);

    let delivery = send(&peal, "us", text("Your code is 1234")).await;
    assert_end(&delivery, "delivered", "twilio", "");
    let sent = twilio.log().delivered_to(ANN);
    assert_eq!((sent.len(), sent[0].topic.as_deref()), (1, Some("Shop")));
    // The intent stands before the answer.
    let attempts = delivery["attempts"].as_array().unwrap();
    let states: Vec<_> = attempts
        .iter()
        .map(|attempt| attempt["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["attempting", "delivered"]);
    assert_eq!(attempts[1]["provider_id"], sent[0].id.as_str());

    // Taken, but not answered.
    let taken = Answer::close().delivered(true);
    twilio.script().add(Rule::token(ANN).times(1).answer(taken)).unwrap();
    assert_end(
        &send(&peal, "eu", text("Twice?")).await,
        "unknown",
        "twilio",
        "connection_lost",
    );
    assert_eq!((twilio.log().delivered_count(), vonage.log().delivered_count()), (2, 0));

    // Busy, then taken by the next provider.
    let busy = Answer::reason("20429");
    twilio.script().clear();
    twilio.script().add(Rule::token(ANN).times(1).answer(busy)).unwrap();
    assert_end(&send(&peal, "eu", text("Later")).await, "delivered", "vonage", "");

    // Nobody listens at Twilio.
    twilio.stop().await;
    // A message sent before the close arrives at the worker would be in doubt.
    sleep(Duration::from_millis(200)).await;
    assert_end(&send(&peal, "eu", text("At once")).await, "delivered", "vonage", "");
    let gone = Answer::reason("33");
    vonage.script().add(Rule::token(ANN).answer(gone)).unwrap();
    assert_end(
        &send(&peal, "eu", text("Gone")).await,
        "rejected",
        "vonage",
        "number_deactivated",
    );
    let delivery = send(&peal, "eu", text("Nobody")).await;
    assert_end(&delivery, "suppressed", "", "no_address");
}

fn form(push: &RecordedPush) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(&push.payload).into_owned().collect()
}

/// Posts a callback to the gateway of a region, and returns the status of its answer.
async fn call_back(peal: &Peal, at: &str, path: &str, header: (&str, &str), fields: &BTreeMap<String, String>) -> u16 {
    let url = format!("{}{path}", peal.region(at).gateway.url);
    let request = peal.http.post(url).form(fields).header(header.0, header.1);
    request.send().await.unwrap().status().as_u16()
}

/// What Twilio reports about the message with this callback URL, and its signature.
fn twilio_report(peal: &Peal, url: &str, status: &str, code: &str) -> (BTreeMap<String, String>, String) {
    let credential = peal.simulators.twilio.credential();
    let fields = [
        ("AccountSid", credential.account_sid.as_str()),
        ("ErrorCode", code),
        ("MessageSid", "SM1"),
        ("MessageStatus", status),
    ];
    let fields: BTreeMap<_, _> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut signed = url.to_owned();
    for (name, value) in &fields {
        write!(signed, "{name}{value}").unwrap();
    }
    let key = hmac::Key::new(
        hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        credential.secret.reveal().as_bytes(),
    );
    (fields, STANDARD.encode(hmac::sign(&key, signed.as_bytes())))
}

/// A header that signs nothing.
const UNSIGNED: (&str, &str) = ("x-request-id", "callback");

fn by_twilio(signature: &str) -> (&str, &str) {
    ("x-twilio-signature", signature)
}

/// The feedback at the only delivery of a notification, as words, once there are this many.
async fn feedback(peal: &Peal, at: &str, job: &Value, many: usize) -> Vec<String> {
    let path = format!("/v1/notifications/{}", job["notification"].as_str().unwrap());
    let deadline = Instant::now() + DONE_WITHIN;
    loop {
        let status = peal.expect("GET", at, &path, None).await.unwrap();
        let delivery = &status["deliveries"][0];
        let words: Vec<String> = {
            let all = delivery["feedback"].as_array().into_iter().flatten();
            all.map(|feedback| {
                assert_eq!(feedback["delivery_id"], delivery["delivery_id"]);
                feedback["type"].as_str().unwrap().to_owned()
            })
            .collect()
        };
        // A report may be known before the answer to the request.
        if words.len() >= many && status["state"] == "done" {
            assert_eq!(delivery["state"], "delivered", "{status}");
            return words;
        }
        assert!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Channel, state and reason of each step of a notification, once it is done.
async fn steps(peal: &Peal, accepted: &Value) -> Vec<[String; 3]> {
    let path = format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap());
    let deadline = Instant::now() + 4 * DONE_WITHIN;
    loop {
        let status = peal.expect("GET", "us", &path, None).await.unwrap();
        if status["state"] == "done" {
            let mut deliveries = status["deliveries"].as_array().unwrap().clone();
            deliveries.sort_by_key(|delivery| delivery["step"].as_u64());
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let each = |one: &Value| ["channel", "state", "reason"].map(|member| text(&one[member]));
            return deliveries.iter().map(each).collect();
        }
        assert!(Instant::now() < deadline, "{status}\n{}", peal.complaints());
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_needs_a_confirmation_is_followed_unless_it_comes() {
    let mut peal = start().await;
    peal.register("ann", "eu", &[("smtp", "ann@example.com")])
        .await
        .unwrap();
    register(&peal, json!({ "type": "phone", "phone": ANN })).await;
    let ask = async |peal: &Peal, text: &str| {
        let plan = json!({
            "mode": "fallback",
            "steps": [{ "channel": "sms", "until": "confirmed", "wait_s": 60 }, { "channel": "email" }],
        });
        let mail = json!({ "subject": text, "text": text });
        let body = json!({ "to": { "recipients": ["ann"] }, "plan": plan, "sms": { "text": text }, "email": mail });
        peal.expect("POST", "us", "/v1/notifications", Some(&body))
            .await
            .unwrap()
    };
    // The worker ends after it has sent the text and stored the next step, and before it records that.
    let (program, http) = (peal.program(), peal.http.clone());
    let worker = &mut peal.region_mut("eu").workers[0];
    worker.process.terminate(Duration::from_secs(20)).await.unwrap();
    let crash = ["--crash-at", "worker.after-next-step=1"];
    worker.restart_with(&program, &crash, &[]).unwrap();
    worker.wait_ready(&http).await.unwrap();
    let in_doubt = ask(&peal, "in doubt").await;
    let begun = Instant::now();
    while !peal.region_mut("eu").workers[0].process.has_ended().unwrap() {
        assert!(begun.elapsed() < DONE_WITHIN, "the next step was not stored");
        sleep(Duration::from_millis(20)).await;
    }
    peal.region_mut("eu").workers[0].restart(&program).unwrap();
    let mut accepted = Vec::new();
    for text in ["arrives", "comes back", "stays silent"] {
        accepted.push(ask(&peal, text).await);
    }
    let sent_all = Instant::now();
    assert!(peal.simulators.twilio.log().wait_delivered(4, DONE_WITHIN).await);
    for one in &accepted {
        let path = format!("/v1/notifications/{}", one["notification_id"].as_str().unwrap());
        while peal.expect("GET", "us", &path, None).await.unwrap()["deliveries"][0]["state"] != "delivered" {
            assert!(sent_all.elapsed() < DONE_WITHIN, "{}", peal.complaints());
            sleep(Duration::from_millis(50)).await;
        }
    }
    // One that ends while steps wait.
    let worker = &mut peal.region_mut("eu").workers[0];
    worker.process.kill().await.unwrap();
    worker.restart(&program).unwrap();
    for sent in peal.simulators.twilio.log().delivered_to(ANN) {
        let fields = form(&sent);
        let report = match fields["Body"].as_str() {
            "arrives" => ("delivered", ""),
            "comes back" => ("undelivered", "30005"),
            _ => continue,
        };
        let url = &fields["StatusCallback"];
        let (fields, signature) = twilio_report(&peal, url, report.0, report.1);
        let path = url.strip_prefix(PUBLIC_URL).unwrap();
        assert_eq!(call_back(&peal, "us", path, by_twilio(&signature), &fields).await, 204);
    }

    let sms = ["sms", "delivered", ""].map(String::from);
    let email = |state: &str, reason: &str| ["email", state, reason].map(String::from);
    let came_back = steps(&peal, &accepted[1]).await;
    assert_eq!(came_back, [sms.clone(), email("delivered", "")]);
    let at_once = sent_all.elapsed();
    assert_eq!(
        steps(&peal, &accepted[0]).await,
        [sms.clone(), email("suppressed", "plan_satisfied")]
    );
    assert_eq!(steps(&peal, &accepted[2]).await, [sms, email("delivered", "")]);
    let in_the_end = sent_all.elapsed();
    assert!(
        in_the_end >= Duration::from_mins(1) && at_once < in_the_end,
        "{at_once:?} {in_the_end:?}"
    );
    let stopped = [
        ["sms", "unknown", "interrupted"].map(String::from),
        email("suppressed", "plan_stopped"),
    ];
    assert_eq!(steps(&peal, &in_doubt).await, stopped);
    assert_eq!(peal.simulators.smtp.log().delivered_count(), 2);
    assert_eq!(peal.simulators.twilio.log().delivered_count(), 4);
    let audit = Audit::read_settled(&peal, DONE_WITHIN).await.unwrap();
    assert!(audit.report.holds(), "{:?}", audit.report.broken);
    assert_eq!(audit.equation().accepted, 8, "{}", audit.equation());
}

/// Waits until the only worker of `region` shows `value` for the metric whose line begins with `start`.
async fn wait_metric(peal: &Peal, region: &str, start: &str, value: u64) {
    let deadline = Instant::now() + DONE_WITHIN;
    loop {
        let page = peal.http.get(format!("{}/metrics", peal.region(region).workers[0].url));
        let page = page.send().await.unwrap().text().await.unwrap();
        let shown = page.lines().find(|line| line.starts_with(start));
        if shown.is_some_and(|line| line.ends_with(&format!(" {value}"))) {
            return;
        }
        assert!(Instant::now() < deadline, "{start}\n{page}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_providers_report_later_stands_at_the_delivery_and_changes_no_state() {
    let peal = start().await;
    peal.register("ann", "eu", &[]).await.unwrap();
    register(&peal, json!({ "type": "phone", "phone": ANN })).await;
    // Accepted in one region, worked on in another.
    let body = json!({ "to": { "recipients": ["ann"] }, "sms": { "text": "Your code is 1234" } });
    let accepted = peal
        .expect("POST", "us", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    let job = json!({ "notification": accepted["notification_id"] });
    let deadline = Instant::now() + DONE_WITHIN;
    while peal.simulators.twilio.log().delivered_to(ANN).is_empty() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(50)).await;
    }
    let sent = peal.simulators.twilio.log().delivered_to(ANN);
    let url = form(&sent[0])["StatusCallback"].clone();
    let path = url.strip_prefix(PUBLIC_URL).unwrap().to_owned();
    assert!(path.starts_with("/v1/callbacks/twilio/shop?peal_reference="), "{path}");

    // Any region takes the report, and however often it comes it counts once.
    let (fields, signature) = twilio_report(&peal, &url, "delivered", "");
    for at in ["us", "eu", "us"] {
        let status = call_back(&peal, at, &path, by_twilio(&signature), &fields).await;
        assert_eq!(status, 204, "{at}");
    }
    assert_eq!(feedback(&peal, "us", &job, 1).await, ["confirmed"]);

    // Nobody invents a report: neither a signature, nor a reference, nor the message of another app.
    assert_eq!(call_back(&peal, "eu", &path, by_twilio("AAAA"), &fields).await, 401);
    assert_eq!(call_back(&peal, "eu", &path, UNSIGNED, &fields).await, 401);
    let (head, last) = url.split_at(url.len() - 1);
    let forged = format!("{head}{}", if last == "A" { "B" } else { "A" });
    let (fields, signature) = twilio_report(&peal, &forged, "failed", "30005");
    let forged = forged.strip_prefix(PUBLIC_URL).unwrap();
    assert_eq!(
        call_back(&peal, "eu", forged, by_twilio(&signature), &fields).await,
        422
    );
    for nowhere in [
        "/v1/callbacks/twilio/nobody",
        "/v1/callbacks/pigeon/shop",
        "/v1/callbacks/twilio/a.b",
    ] {
        assert_eq!(
            call_back(&peal, "eu", nowhere, by_twilio(&signature), &fields).await,
            404,
            "{nowhere}"
        );
    }
    assert_eq!(feedback(&peal, "us", &job, 1).await, ["confirmed"]);

    // The worker, which could ask Vonage instead, sees how soon Twilio reports.
    let followed = r#"peal_reports_followed_total{provider="twilio",result="in_time""#;
    wait_metric(&peal, "eu", followed, 1).await;
    wait_metric(&peal, "eu", r#"peal_route_slow{provider="twilio""#, 0).await;

    // Vonage signs the fields.
    peal.simulators.twilio.stop().await;
    sleep(Duration::from_millis(200)).await;
    let accepted = peal
        .expect("POST", "eu", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    let job = json!({ "notification": accepted["notification_id"] });
    let deadline = Instant::now() + DONE_WITHIN;
    while peal.simulators.vonage.log().delivered_to(ANN).is_empty() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(50)).await;
    }
    let sent = form(&peal.simulators.vonage.log().delivered_to(ANN)[0]);
    assert_eq!(sent["callback"], format!("{PUBLIC_URL}/v1/callbacks/vonage/shop"));
    let key = peal.simulators.vonage.credential().webhook_key.unwrap();
    let report = |status: &str| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let fields = [
            ("client-ref", sent["client-ref"].clone()),
            ("err-code", "6".to_owned()),
            ("messageId", "0A0000000123ABCD1".to_owned()),
            ("status", status.to_owned()),
            ("timestamp", now.to_string()),
        ];
        let mut fields: BTreeMap<String, String> = fields.map(|(name, value)| (name.to_owned(), value)).into();
        let signed = fields.iter().fold(String::new(), |signed, (name, value)| {
            format!("{signed}&{name}={value}")
        });
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.reveal().as_bytes());
        let hex = hmac::sign(&key, signed.as_bytes());
        let hex: Vec<String> = hex.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        fields.insert("sig".to_owned(), hex.concat());
        fields
    };
    let path = "/v1/callbacks/vonage/shop";
    assert_eq!(call_back(&peal, "us", path, UNSIGNED, &report("failed")).await, 204);
    assert_eq!(feedback(&peal, "eu", &job, 1).await, ["undelivered"]);
    let other = report("delivered");
    let mut changed = other.clone();
    changed.insert("status".to_owned(), "failed".to_owned());
    assert_eq!(call_back(&peal, "us", path, UNSIGNED, &changed).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_messages_to_closed_countries_and_long_ones_are_refused() {
    let peal = start().await;
    peal.register("ann", "eu", &[]).await.unwrap();
    register(&peal, json!({ "type": "phone", "phone": "+18765550123" })).await;
    let delivery = send(&peal, "us", text("Your code is 1234")).await;
    assert_end(&delivery, "rejected", "twilio", "country_closed");
    let asked = [&*peal.simulators.twilio, &*peal.simulators.vonage].map(|simulator| simulator.log().request_count());
    assert_eq!(asked, [0, 0]);
    for (field, sms) in [
        ("sms.text", json!({ "text": "a".repeat(613) })),
        ("sms.text", json!({ "text": "ж".repeat(71), "max_segments": 1 })),
        ("sms.text", json!({ "text": "ç", "encoding": "gsm7" })),
        ("sms.max_segments", json!({ "text": "a", "max_segments": 11 })),
        (
            "sms.twilio.payload.To",
            json!({ "text": "a", "twilio": { "payload": { "To": "+41790000000" } } }),
        ),
    ] {
        let body = json!({ "to": { "recipients": ["ann"] }, "sms": sms });
        let (status, problem) = peal.ask("POST", "eu", "/v1/notifications", Some(&body)).await.unwrap();
        assert_eq!(
            (status, &problem["errors"][0]["field"]),
            (422, &json!(field)),
            "{problem}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_signed_repeated_under_one_id_and_end_with_410() {
    let peal = start().await;
    peal.register("ann", "eu", &[]).await.unwrap();
    let receivers = &peal.simulators.webhook;
    let answer = register(&peal, json!({ "type": "webhook", "url": receivers.url("/hook") })).await;
    let secret = answer["secret"].as_str().unwrap();
    receivers.expect("/hook", secret).unwrap();
    let event = json!({ "webhook": { "type": "order.paid", "data": { "order": 7 } } });
    assert_end(&send(&peal, "us", event.clone()).await, "delivered", "webhook", "");

    // For a day both secrets sign.
    let replaced = signature::new_secret();
    let again = json!({ "type": "webhook", "url": receivers.url("/hook"), "secret": replaced.reveal() });
    register(&peal, again).await;
    assert_end(&send(&peal, "us", event.clone()).await, "delivered", "webhook", "");
    receivers.expect("/hook", replaced.reveal()).unwrap();
    assert_end(&send(&peal, "eu", event.clone()).await, "delivered", "webhook", "");

    // Taken but not answered, then refused: it comes again under the same id.
    receivers.log().clear();
    let taken = Answer::close().delivered(true);
    receivers
        .script()
        .add(Rule::token("/hook").times(1).answer(taken))
        .unwrap();
    let busy = Answer::default().status(503);
    receivers
        .script()
        .add(Rule::token("/hook").times(1).answer(busy))
        .unwrap();
    assert_end(&send(&peal, "eu", event.clone()).await, "delivered", "webhook", "");
    let requests: Vec<RecordedPush> = receivers.log().requests_for("/hook");
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| request.id == requests[0].id));

    let gone = Answer::default().status(410);
    receivers.script().add(Rule::token("/hook").answer(gone)).unwrap();
    assert_end(
        &send(&peal, "eu", event.clone()).await,
        "rejected",
        "webhook",
        "http_410",
    );
    assert_end(
        &send(&peal, "eu", event).await,
        "suppressed",
        "webhook",
        "receiver_disabled",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_reaches_a_private_host_only_if_its_app_lists_it() {
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 1,
        allowed_hosts: Some(vec!["localhost".parse().unwrap()]),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    let receivers = &peal.simulators.webhook;
    let listed = receivers.url("/listed");
    let unlisted = receivers.url("/unlisted").replace("localhost", "127.0.0.1");
    for (recipient, url, state, reason) in [
        ("ann", &listed, "delivered", ""),
        ("bob", &unlisted, "rejected", "forbidden_address"),
    ] {
        peal.register(recipient, "eu", &[]).await.unwrap();
        let path = format!("/v1/recipients/{recipient}/addresses");
        let address = json!({ "type": "webhook", "url": url, "format": "chat" });
        peal.expect("POST", "eu", &path, Some(&address)).await.unwrap();
        let body = json!({ "to": { "recipients": [recipient] }, "webhook": { "text": "hello" } });
        let accepted = peal
            .expect("POST", "eu", "/v1/notifications", Some(&body))
            .await
            .unwrap();
        assert_end(&only_delivery(&peal, "eu", &accepted).await, state, "webhook", reason);
    }
    assert_eq!(receivers.log().requests_for("/listed").len(), 1);
    assert_eq!(receivers.log().requests_for("/unlisted").len(), 0);
}

/// Puts the number of `ann` on the app's list at a gateway of region `at`, and returns the answer.
async fn suppress(peal: &Peal, at: &str, more: Value) -> Value {
    let mut body = json!({ "channel": "sms", "address": ANN });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    peal.expect("POST", at, "/v1/suppressions", Some(&body)).await.unwrap()
}

async fn lift(peal: &Peal, at: &str, suppression: &Value) {
    let path = format!("/v1/suppressions/{}", suppression["id"].as_str().unwrap());
    peal.expect("DELETE", at, &path, None).await.unwrap();
    assert_eq!(
        peal.ask("DELETE", at, &path, None).await.unwrap().0,
        404,
        "it is lifted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_a_number_on_the_suppression_list() {
    let peal = start().await;
    peal.register("ann", "eu", &[]).await.unwrap();
    register(&peal, json!({ "type": "phone", "phone": ANN })).await;
    let (twilio, vonage) = (&peal.simulators.twilio, &peal.simulators.vonage);
    let sent = || twilio.log().delivered_count() + vonage.log().delivered_count();
    let is_suppressed = |delivery: &Value| assert_end(delivery, "suppressed", "twilio", "suppression_list");
    let is_sent = |delivery: &Value| assert_end(delivery, "delivered", "twilio", "");
    let offers = json!({ "sms": { "text": "Cheap" }, "category": "offers" });
    let direct = json!({ "to": { "address": { "type": "phone", "phone": ANN } }, "sms": { "text": "1234" } });

    // What is answered holds for what the region accepts next, each time.
    for _ in 0..5 {
        let listed = suppress(&peal, "eu", json!({})).await;
        is_suppressed(&send(&peal, "eu", text("No")).await);
        is_suppressed(&send(&peal, "eu", direct.clone()).await);
        lift(&peal, "eu", &listed).await;
    }
    assert_eq!(sent(), 0);
    is_sent(&send(&peal, "eu", text("Yes")).await);
    let listed = suppress(&peal, "eu", json!({ "category": "offers", "reason": "unsubscribe" })).await;
    is_suppressed(&send(&peal, "eu", offers.clone()).await);
    is_sent(&send(&peal, "eu", text("Yes")).await);
    lift(&peal, "eu", &listed).await;
    is_sent(&send(&peal, "eu", offers).await);

    // The address shows it, and so does the list, by digests alone.
    let listed = suppress(&peal, "eu", json!({ "reason": "unsubscribe" })).await;
    assert_eq!(
        suppress(&peal, "eu", json!({})).await,
        listed,
        "it is on the list already"
    );
    let path = "/v1/recipients/ann/addresses";
    let shown = peal.expect("GET", "eu", path, None).await.unwrap()["addresses"][0].clone();
    assert_eq!([&shown["state"], &shown["reason"]], ["suppressed", "unsubscribe"]);
    let list = peal.expect("GET", "eu", "/v1/suppressions", None).await.unwrap();
    assert_eq!(list, json!({ "suppressions": [listed], "next": null }));
    let filtered = "/v1/suppressions?reason=complaint";
    let none = peal.expect("GET", "eu", filtered, None).await.unwrap();
    assert_eq!(none["suppressions"], json!([]));
    assert!(!list.to_string().contains(&ANN[1..]));
    lift(&peal, "eu", &listed).await;

    // A retry that waits is not sent either.
    let busy = Answer::reason("20429");
    twilio.script().add(Rule::token(ANN).answer(busy)).unwrap();
    vonage.stop().await;
    let before = sent();
    let waiting = send(&peal, "eu", text("Later"));
    let suppressing = async {
        sleep(Duration::from_secs(1)).await;
        suppress(&peal, "eu", json!({})).await
    };
    let (delivery, listed) = tokio::join!(waiting, suppressing);
    is_suppressed(&delivery);
    assert!(delivery["attempts"].as_array().unwrap().len() > 1, "{delivery}");
    twilio.script().clear();
    lift(&peal, "eu", &listed).await;
    assert_eq!(sent(), before);

    // A gateway of another region: as soon as the entry has arrived.
    let listed = suppress(&peal, "us", json!({})).await;
    let deadline = Instant::now() + DONE_WITHIN;
    while send(&peal, "eu", text("Soon not")).await["state"] != "suppressed" {
        assert!(Instant::now() < deadline);
    }
    let list = peal.expect("GET", "eu", "/v1/suppressions", None).await.unwrap();
    assert_eq!(list["suppressions"], json!([listed]));
    // The newest entry counts, whichever region wrote it.
    lift(&peal, "eu", &listed).await;
    is_sent(&send(&peal, "eu", text("Yes")).await);
}

/// A mesh of one region with two workers, whose app may send so much in a day: 20 segments to numbers that begin with +41791, and
/// 60 to Switzerland.
async fn start_capped() -> Peal {
    let caps = json!([
        { "country": "CH", "segments": 60, "window_s": 86_400 },
        { "prefix": "+41791", "segments": 20, "window_s": 86_400 },
    ]);
    let caps: Vec<SpendCap> = serde_json::from_value(caps).unwrap();
    let now = Clock::system().now();
    let midnight = caps[0].window(now).end;
    // A window that ends during the test would allow as much again.
    let left = midnight.duration_since(now);
    if left < SignedDuration::from_mins(4) {
        sleep(left.unsigned_abs()).await;
    }
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 2,
        sample_ratio: 0.0,
        routes: [(
            Channel::Sms,
            vec![Route {
                provider: Provider::Twilio,
                weight: 100,
            }],
        )]
        .into(),
        spend_caps: caps,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    Peal::start(plan).await.unwrap()
}

/// Sends this text to a number that nobody registered, and returns the path of the status.
async fn send_to(peal: &Peal, number: &str, text: &str, ttl_s: u32) -> String {
    let body = json!({
        "to": { "address": { "type": "phone", "phone": number } },
        "sms": { "text": text, "ttl": ttl_s },
    });
    let accepted = peal
        .expect("POST", "eu", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap())
}

/// Waits until each of these has been sent, held back or ended, and returns the number of those in each state and reason.
async fn ends(peal: &Peal, paths: &[String]) -> BTreeMap<(String, String), usize> {
    let deadline = Instant::now() + DONE_WITHIN;
    let mut ends = BTreeMap::new();
    for path in paths {
        loop {
            let status = peal.expect("GET", "eu", path, None).await.unwrap();
            let deliveries = status["deliveries"].as_array().unwrap();
            let is_open = |delivery: &Value| delivery["state"] == "attempting";
            if !deliveries.is_empty() && !deliveries.iter().any(is_open) {
                for delivery in deliveries {
                    let member = |name: &str| delivery[name].as_str().unwrap_or_default().to_owned();
                    *ends.entry((member("state"), member("reason"))).or_default() += 1;
                }
                break;
            }
            assert!(Instant::now() < deadline, "{status}\n{}", peal.complaints());
            sleep(Duration::from_millis(50)).await;
        }
    }
    ends
}

fn count<const N: usize>(expected: [(&str, &str, usize); N]) -> BTreeMap<(String, String), usize> {
    expected
        .map(|(state, reason, count)| ((state.to_owned(), reason.to_owned()), count))
        .into()
}

const DAY_S: u32 = 86_400;

#[tokio::test(flavor = "multi_thread")]
async fn no_burst_through_two_workers_passes_a_cap_on_spending() {
    let peal = start_capped().await;
    let (peal, twilio) = (&peal, &peal.simulators.twilio);
    let burst = async |prefix: &str, text: &str, messages: usize| {
        let numbers: Vec<String> = (0..messages).map(|number| format!("{prefix}{number:05}")).collect();
        let sending = numbers.iter().map(|number| send_to(peal, number, text, DAY_S));
        ends(peal, &join_all(sending).await).await
    };
    // 60 messages of one segment; those beyond 20 wait for midnight as whole jobs, and use up nothing of the country's cap.
    let expected = count([("delivered", "", 20), ("deferred", "spend_cap", 40)]);
    assert_eq!(burst("+417911", "Hi", 60).await, expected);
    assert_eq!(twilio.log().delivered_count(), 20);
    let path = send_to(peal, "+41791234567", "Hi", DAY_S).await;
    assert_eq!(ends(peal, from_ref(&path)).await, count([("deferred", "spend_cap", 1)]));
    let status = peal.expect("GET", "eu", &path, None).await.unwrap();
    let next_at = status["deliveries"][0]["attempts"][0]["next_at"].as_str().unwrap();
    assert!(next_at.contains("T00:00:00"), "{status}");

    // What expires before midnight ends.
    let path = send_to(peal, "+41791234567", "Hi", 60).await;
    assert_eq!(ends(peal, &[path]).await, count([("suppressed", "spend_cap", 1)]));

    // Of two numbers one waits alone.
    peal.register("bob", "eu", &[]).await.unwrap();
    for number in ["+41791234567", "+41781234567"] {
        let address = json!({ "type": "phone", "phone": number });
        let path = "/v1/recipients/bob/addresses";
        peal.expect("POST", "eu", path, Some(&address)).await.unwrap();
    }
    let body = json!({ "to": { "recipients": ["bob"] }, "sms": { "text": "Hi", "ttl": DAY_S } });
    let accepted = peal
        .expect("POST", "eu", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    let path = format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap());
    let expected = count([("delivered", "", 1), ("parked", "spend_cap", 1)]);
    assert_eq!(ends(peal, &[path]).await, expected);

    // 39 of the country's 60 are left: 19 messages of two segments.
    let expected = count([("delivered", "", 19), ("deferred", "spend_cap", 11)]);
    assert_eq!(burst("+417811", &"a".repeat(161), 30).await, expected);
    assert_eq!(twilio.log().delivered_count(), 40);
    let audit = Audit::read(peal).await.unwrap();
    assert!(audit.report.holds(), "{:?}", audit.report.broken);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_while_segments_cannot_be_counted() {
    let mut peal = start_capped().await;
    for worker in &mut peal.region_mut("eu").workers {
        worker.process.terminate(Duration::from_secs(15)).await.unwrap();
    }
    let path = send_to(&peal, "+41781234567", "Hi", DAY_S).await;
    let gateway = &mut peal.region_mut("eu").gateway;
    gateway.process.terminate(Duration::from_secs(15)).await.unwrap();
    let operator = Role::Operator("eu".parse().unwrap());
    let js = connect::jetstream(peal.nats.region("eu").connect(&operator).await.unwrap());
    js.delete_stream(topology::SPEND).await.unwrap();

    // As with gateways of a version that makes no such stream.
    let (program, http) = (peal.program(), peal.http.clone());
    for worker in &mut peal.region_mut("eu").workers {
        worker.restart(&program).unwrap();
        worker.wait_ready(&http).await.unwrap();
    }
    sleep(Duration::from_secs(4)).await;
    assert_eq!(peal.simulators.twilio.log().delivered_count(), 0);

    let gateway = &mut peal.region_mut("eu").gateway;
    gateway.restart(&program).unwrap();
    gateway.wait_ready(&http).await.unwrap();
    assert_eq!(sent(&peal, &path).await, 1);
}

/// Waits until this notification is delivered, and returns how many messages the simulator took.
async fn sent(peal: &Peal, path: &str) -> u64 {
    let deadline = Instant::now() + DONE_WITHIN;
    loop {
        let status = peal.expect("GET", "eu", path, None).await.unwrap();
        if status["state"] == "done" {
            assert_end(&status["deliveries"][0], "delivered", "twilio", "");
            return peal.simulators.twilio.log().delivered_count();
        }
        assert!(Instant::now() < deadline, "{status}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}
