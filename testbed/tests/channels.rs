//! Every channel from a request to a receipt, by the provider that sends nothing where the app has no other. What each provider
//! sends is shown by its own tests.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use shared::{
    app::{Ambiguity, Route},
    channel::Channel,
    provider::Provider,
};
use testbed::{
    audit::Audit,
    nats,
    peal::{PUBLIC_URL, Peal, Plan},
    providers::{Answer, RetryAfter, Rule},
};
use tokio::time::{Instant, sleep};

const DONE_WITHIN: Duration = Duration::from_secs(20);

async fn start() -> Peal {
    let only_log = vec![Route {
        provider: Provider::Log,
        weight: 100,
    }];
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        routes: [Channel::Email, Channel::Sms, Channel::Webhook]
            .map(|channel| (channel, only_log.clone()))
            .into(),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    Peal::start(plan).await.unwrap()
}

/// Sends a notification at `at` and returns its deliveries once it is done.
async fn send(peal: &Peal, at: &str, body: &Value) -> Vec<Value> {
    let accepted = peal.expect("POST", at, "/v1/notifications", Some(body)).await.unwrap();
    done(peal, at, &accepted, DONE_WITHIN).await
}

/// The deliveries of an accepted notification once it is done.
async fn done(peal: &Peal, at: &str, accepted: &Value, within: Duration) -> Vec<Value> {
    let path = format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap());
    let deadline = Instant::now() + within;
    loop {
        let status = peal.expect("GET", at, &path, None).await.unwrap();
        if status["state"] == "done" {
            return status["deliveries"].as_array().unwrap().clone();
        }
        assert!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The address of each delivery, with its state, provider and reason.
fn ends(deliveries: &[Value]) -> BTreeMap<&str, [&str; 3]> {
    deliveries
        .iter()
        .map(|delivery| {
            let text = |member: &str| delivery[member].as_str().unwrap_or_default();
            (text("address_id"), [text("state"), text("provider"), text("reason")])
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_content_reaches_the_addresses_of_its_channel() {
    let peal = start().await;
    peal.register("ann", "eu", &[]).await.unwrap();
    let register = async |address: Value| {
        let path = "/v1/recipients/ann/addresses";
        let answer = peal.expect("POST", "eu", path, Some(&address)).await.unwrap();
        (answer["address_id"].as_str().unwrap().to_owned(), answer)
    };
    let (device, _) = register(json!({ "provider": "fcm", "token": "ann-1" })).await;
    let (mailbox, answer) = register(json!({ "type": "email", "email": "Ann@Example.COM" })).await;
    assert_eq!(
        (&answer["masked"], answer.get("provider")),
        (&json!("A…@example.com"), None)
    );
    let (phone, answer) = register(json!({ "type": "phone", "phone": "+41791234567" })).await;
    assert_eq!(answer["masked"], "+41…67");
    let chat = json!({ "type": "webhook", "url": "https://chat.example/hook", "format": "chat" });
    let (chat, _) = register(chat).await;
    let signed = json!({ "type": "webhook", "url": "https://api.example/hook" });
    let (receiver, first) = register(signed.clone()).await;
    assert!(first["secret"].as_str().unwrap().starts_with("whsec_"));
    let (again, second) = register(signed).await;
    assert_eq!(
        (again, second.get("secret")),
        (receiver.clone(), None),
        "the secret is made once and shown once"
    );
    peal.wait_known("us", "ann").await.unwrap();

    let to = json!({ "recipients": ["ann"] });
    let delivered = ["delivered", "log", ""];
    let email = json!({ "to": to, "email": { "subject": "Shipped", "text": "On its way" } });
    assert_eq!(
        ends(&send(&peal, "us", &email).await),
        [(mailbox.as_str(), delivered)].into()
    );
    let sms = json!({ "to": to, "channel": "sms", "class": "urgent", "sms": { "text": "Your code is 1234" } });
    assert_eq!(
        ends(&send(&peal, "eu", &sms).await),
        [(phone.as_str(), delivered)].into()
    );
    let spared = ["suppressed", "log", "nothing_for_target"];
    let webhook = json!({ "to": to, "webhook": { "text": "Shipped" } });
    assert_eq!(
        ends(&send(&peal, "eu", &webhook).await),
        [(chat.as_str(), delivered), (receiver.as_str(), spared)].into()
    );
    let webhook =
        json!({ "to": to, "webhook": { "type": "order.shipped", "text": "Shipped", "data": { "order": 42 } } });
    assert_eq!(
        ends(&send(&peal, "us", &webhook).await),
        [(chat.as_str(), delivered), (receiver.as_str(), delivered)].into()
    );
    let push = json!({ "to": to, "push": { "title": "Shipped" } });
    assert_eq!(
        ends(&send(&peal, "eu", &push).await),
        [(device.as_str(), ["delivered", "fcm", ""])].into()
    );

    let opted_out = json!({ "channels": { "sms": false } });
    let path = "/v1/recipients/ann/preferences";
    peal.expect("PUT", "eu", path, Some(&opted_out)).await.unwrap();
    let deliveries = send(&peal, "eu", &sms).await;
    assert_eq!(
        (&deliveries[0]["state"], &deliveries[0]["reason"]),
        (&json!("suppressed"), &json!("opted_out"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_a_request_is_reached_once_whichever_region_takes_the_request() {
    let peal = start().await;
    let phone = json!({ "type": "phone", "phone": "+41790000001" });
    let code = json!({
        "event_id": "code-1", "class": "urgent", "to": { "address": phone }, "sms": { "text": "Your code is 1234" },
    });
    let deliveries = send(&peal, "us", &code).await;
    let [delivery] = &deliveries[..] else {
        panic!("{deliveries:?}")
    };
    assert_eq!(
        (&delivery["state"], &delivery["region"], delivery.get("recipient")),
        (&json!("delivered"), &json!("eu"), None)
    );
    let again = peal
        .expect("POST", "eu", "/v1/notifications", Some(&code))
        .await
        .unwrap();
    assert_eq!(again["duplicates"], 1, "{again}");
    let (status, problem) = peal
        .ask(
            "POST",
            "eu",
            "/v1/notifications",
            Some(&json!({ "to": { "address": phone }, "push": { "title": "x" } })),
        )
        .await
        .unwrap();
    assert_eq!(
        (status, &problem["errors"][0]["field"]),
        (422, &json!("to.address")),
        "{problem}"
    );
    let device = json!({ "to": { "address": { "provider": "fcm", "token": "guest" } }, "push": { "title": "x" } });
    assert_eq!(send(&peal, "us", &device).await[0]["provider"], "fcm");
    assert_eq!(peal.simulators.fcm.log().delivered_to("guest").len(), 1);
    let audit = Audit::read_settled(&peal, DONE_WITHIN).await.unwrap();
    assert!(audit.equation().holds(), "{:?}", audit.equation());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_app_may_not_send_is_refused_by_name() {
    let peal = start().await;
    let refused = async |body: Value| {
        let (status, problem) = peal.ask("POST", "eu", "/v1/notifications", Some(&body)).await.unwrap();
        assert_eq!(status, 422, "{problem}");
        problem["errors"][0]["field"].as_str().unwrap_or_default().to_owned()
    };
    let to = json!({ "recipients": ["ann"] });
    let email = json!({ "subject": "Hi", "text": "x" });
    for (field, body) in [
        ("push", json!({ "to": to })),
        ("sms", json!({ "to": to, "email": email, "sms": { "text": "x" } })),
        ("channel", json!({ "to": to, "channel": "push", "email": email })),
        ("sms.text", json!({ "to": to, "sms": { "text": "" } })),
        ("sms.from", json!({ "to": to, "sms": { "text": "x", "from": "Bank" } })),
        (
            "email.from.email",
            json!({ "to": to, "email": { "subject": "Hi", "text": "x", "from": { "email": "ceo@bank.example" } } }),
        ),
    ] {
        assert_eq!(refused(body.clone()).await, field, "{body}");
    }

    let bank = peal.add_app("bank").await.unwrap();
    let url = format!("{}/v1/notifications", peal.region("eu").gateway.url);
    let body = json!({ "to": to, "email": email });
    let answer = peal.http.post(url).bearer_auth(bank).json(&body).send().await.unwrap();
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], "channel_unavailable", "{problem}");
}

/// The number of `ann` in tests of plans.
const ANN: &str = "+41791234567";

/// A mesh whose app sends texts by Twilio, holds pushes in doubt, and knows `ann` with a phone and a mailbox.
async fn start_with_ann() -> Peal {
    let only = |provider| vec![Route { provider, weight: 100 }];
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        routes: [
            (Channel::Sms, only(Provider::Twilio)),
            (Channel::Email, only(Provider::Log)),
        ]
        .into(),
        ambiguity: [(Channel::Push, Ambiguity::Hold)].into(),
        provider_settings: "timeout_ms = 2000".into(),
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("smtp", "ann@example.com")])
        .await
        .unwrap();
    let phone = json!({ "type": "phone", "phone": ANN });
    let path = "/v1/recipients/ann/addresses";
    peal.expect("POST", "eu", path, Some(&phone)).await.unwrap();
    peal.wait_known("us", "ann").await.unwrap();
    peal
}

/// Registers a device of `ann` by this token, and tells what APNs answers about it.
async fn add_device(peal: &Peal, token: &str, answer: Answer) {
    peal.simulators
        .apns
        .script()
        .add(Rule::token(token).answer(answer))
        .unwrap();
    let device = json!({ "provider": "apns", "token": token });
    let path = "/v1/recipients/ann/addresses";
    peal.expect("POST", "eu", path, Some(&device)).await.unwrap();
}

/// A notification to `ann` by push, text and e-mail, with this plan.
fn planned(event: &str, mode: &str) -> Value {
    let channels = ["push", "sms", "email"].map(|channel| json!({ "channel": channel }));
    json!({
        "event_id": event,
        "to": { "recipients": ["ann"] },
        "plan": { "mode": mode, "steps": channels },
        "push": { "title": "Shipped" },
        "sms": { "text": "Shipped" },
        "email": { "subject": "Shipped", "text": "Shipped" },
    })
}

/// The step, channel, state and reason of each delivery.
fn steps(deliveries: &[Value]) -> Vec<(Option<u64>, &str, &str, &str)> {
    let mut steps: Vec<_> = deliveries
        .iter()
        .map(|delivery| {
            let text = |member: &str| delivery[member].as_str().unwrap_or_default();
            (
                delivery["step"].as_u64(),
                text("channel"),
                text("state"),
                text("reason"),
            )
        })
        .collect();
    steps.sort_unstable();
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_follows_when_the_one_before_has_failed_and_is_sent_once() {
    let mut peal = start_with_ann().await;
    let gone = || Answer::reason("Unregistered").timestamp_ms(4_000_000_000_000);
    let texts = |peal: &Peal| peal.simulators.twilio.log().delivered_to(ANN).len();

    add_device(&peal, "aaaa", gone()).await;
    let deliveries = send(&peal, "us", &planned("gone", "fallback")).await;
    let expected = [
        (Some(0), "push", "rejected", "Unregistered"),
        (Some(1), "sms", "delivered", ""),
    ];
    assert_eq!((steps(&deliveries).as_slice(), texts(&peal)), (expected.as_slice(), 1));

    // The device is gone: nothing is sent by the first step.
    let deliveries = send(&peal, "us", &planned("first", "first")).await;
    let expected = [
        (Some(0), "push", "suppressed", "no_address"),
        (Some(1), "sms", "delivered", ""),
    ];
    assert_eq!((steps(&deliveries).as_slice(), texts(&peal)), (expected.as_slice(), 2));

    // The step by which she can be reached stays the one, although it fails.
    add_device(&peal, "bbbb", gone()).await;
    let deliveries = send(&peal, "eu", &planned("chosen", "first")).await;
    let expected = [(Some(0), "push", "rejected", "Unregistered")];
    assert_eq!((steps(&deliveries).as_slice(), texts(&peal)), (expected.as_slice(), 2));

    let deliveries = send(&peal, "us", &planned("all", "all")).await;
    let expected = [
        (None, "email", "delivered", ""),
        (None, "push", "suppressed", "no_address"),
        (None, "sms", "delivered", ""),
    ];
    assert_eq!((steps(&deliveries).as_slice(), texts(&peal)), (expected.as_slice(), 3));

    // Taken without an answer: nobody knows whether it arrived.
    add_device(&peal, "cccc", Answer::close().delivered(true)).await;
    let deliveries = send(&peal, "us", &planned("unknown", "fallback")).await;
    let expected = [(Some(0), "push", "unknown", "connection_lost")];
    assert_eq!((steps(&deliveries).as_slice(), texts(&peal)), (expected.as_slice(), 3));
    let devices = "/v1/recipients/ann/addresses";
    let listed = peal.expect("GET", "eu", devices, None).await.unwrap();
    for address in listed["addresses"].as_array().unwrap() {
        if address["provider"] == "apns" {
            let path = format!("{devices}/{}", address["address_id"].as_str().unwrap());
            peal.expect("DELETE", "eu", &path, None).await.unwrap();
        }
    }

    // The worker ends after it has stored the next step and before it records the first.
    let (program, http) = (peal.program(), peal.http.clone());
    let worker = &mut peal.region_mut("eu").workers[0];
    worker.process.terminate(Duration::from_secs(20)).await.unwrap();
    let crash = ["--crash-at", "worker.after-next-step=1"];
    worker.restart_with(&program, &crash, &[]).unwrap();
    worker.wait_ready(&http).await.unwrap();
    let body = planned("crash", "fallback");
    let accepted = peal
        .expect("POST", "us", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    let begun = Instant::now();
    while !peal.region_mut("eu").workers[0].process.has_ended().unwrap() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the next step was not stored"
        );
        sleep(Duration::from_millis(20)).await;
    }
    let report = Audit::read(&peal).await.unwrap().report;
    assert!(report.holds(), "{:?}", report.broken);
    peal.region_mut("eu").workers[0].restart(&program).unwrap();
    let deliveries = done(&peal, "us", &accepted, Duration::from_mins(1)).await;
    let expected = [
        (Some(0), "push", "suppressed", "no_address"),
        (Some(1), "sms", "delivered", ""),
    ];
    assert_eq!(steps(&deliveries), expected);

    let audit = Audit::read_settled(&peal, Duration::from_mins(1)).await.unwrap();
    assert!(audit.report.holds(), "{:?}", audit.report.broken);
    // Two of each pair of steps, one of those that ended with the first, three of `all`.
    assert_eq!(audit.equation().accepted, 2 + 2 + 1 + 3 + 1 + 2, "{}", audit.equation());
    assert_eq!(texts(&peal), 4, "nothing is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_cannot_be_followed_is_refused_by_name() {
    let peal = start().await;
    let refused = async |change: Value| {
        let mut body = planned("refused", "fallback");
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let (status, problem) = peal.ask("POST", "eu", "/v1/notifications", Some(&body)).await.unwrap();
        assert_eq!(status, 422, "{problem}");
        let code = problem["code"].as_str().unwrap().to_owned();
        (
            code,
            problem["errors"][0]["field"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let invalid = |field: &str| ("validation_failed".to_owned(), field.to_owned());
    let not_built = |field: &str| ("not_built".to_owned(), field.to_owned());
    for (change, expected) in [
        (json!({ "plan": null }), invalid("email")),
        (json!({ "channel": "push" }), invalid("channel")),
        (json!({ "plan": { "mode": "fallback" } }), invalid("plan.steps")),
        (
            json!({ "to": { "address": { "type": "phone", "phone": "+41790000001" } } }),
            invalid("plan"),
        ),
        (json!({ "to": { "topic": "news" } }), not_built("plan.mode")),
        (
            json!({ "plan": { "mode": "fallback", "steps": [{ "channel": "push", "until": "opened" }] } }),
            not_built("plan.steps[0].until"),
        ),
        (
            json!({ "plan": { "mode": "fallback", "steps": [{ "channel": "push", "wait_s": 60 }] } }),
            invalid("plan.steps[0].wait_s"),
        ),
        (json!({ "sms": { "text": "" } }), invalid("sms.text")),
    ] {
        assert_eq!(refused(change.clone()).await, expected, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_recipient_mutes_is_not_sent_and_every_region_may_say_so() {
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        app: |app| {
            let categories = json!({ "codes": { "kind": "critical" }, "offers": { "kind": "commercial" } });
            app.categories = serde_json::from_value(categories).unwrap();
        },
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    for name in ["ann", "bob"] {
        peal.register(name, "eu", &[("apns", &token_of(name))]).await.unwrap();
        peal.wait_known("us", name).await.unwrap();
        let path = format!("/v1/recipients/{name}/topics/news");
        peal.expect("PUT", "eu", &path, None).await.unwrap();
    }
    let path = "/v1/recipients/ann/preferences";

    // What was put through another region travels as a fact, and a change that comes later must come later there too.
    for round in 0..20 {
        let wanted = json!({ "categories": { format!("round-{round}"): { "sms": false } } });
        peal.expect("PUT", "us", path, Some(&wanted)).await.unwrap();
        let change = |region: &str| json!({ "topics": { format!("from-{region}-{round}"): false } });
        let (from_us, from_eu) = (change("us"), change("eu"));
        let changed = peal.expect("PATCH", "us", path, Some(&from_us)).await.unwrap();
        assert_eq!(changed["categories"], wanted["categories"], "{round}");
        let again = json!({ "channels": { "sms": false } });
        let (us, eu) = tokio::join!(
            peal.expect("PATCH", "us", path, Some(&again)),
            peal.expect("PATCH", "eu", path, Some(&from_eu)),
        );
        us.unwrap();
        eu.unwrap();
        let stored = peal.expect("GET", "eu", path, None).await.unwrap();
        assert_eq!(
            (
                &stored["categories"],
                stored["topics"].as_object().unwrap().len(),
                &stored["channels"]
            ),
            (&wanted["categories"], 2, &again["channels"]),
            "{round}: {stored}"
        );
    }

    // By the page, at a gateway that is not at home.
    let link = peal
        .expect("POST", "eu", "/v1/recipients/ann/preference-link", None)
        .await
        .unwrap();
    let link = link["url"].as_str().unwrap().strip_prefix(PUBLIC_URL).unwrap();
    let page = format!("{}{link}", peal.region("us").gateway.url);
    let form = [("mute", "forever"), ("mute-was", "off")];
    let saved = peal.http.post(&page).form(&form).send().await.unwrap();
    assert!(saved.status().is_success() && saved.text().await.unwrap().contains("Saved."));
    let push =
        |category: &str| json!({ "to": { "recipients": ["ann"] }, "category": category, "push": { "title": "Hi" } });
    for (category, end) in [("news", ["suppressed", "muted"]), ("codes", ["delivered", ""])] {
        let deliveries = send(&peal, "us", &push(category)).await;
        let found = ["state", "reason"].map(|member| deliveries[0][member].as_str().unwrap_or_default());
        assert_eq!(found, end, "{category}: {deliveries:?}");
    }
    peal.expect(
        "PATCH",
        "eu",
        path,
        Some(&json!({ "muted": null, "topics": { "news": false } })),
    )
    .await
    .unwrap();

    // A topic that is muted stays the recipient's, and what is sent to the recipient itself comes.
    let broadcast = json!({ "to": { "topic": "news" }, "push": { "title": "Hi" } });
    let sent = |name: &str| peal.simulators.apns.log().delivered_to(&token_of(name)).len();
    let before = [sent("ann"), sent("bob")];
    peal.expect("POST", "us", "/v1/notifications", Some(&broadcast))
        .await
        .unwrap();
    wait(|| sent("bob") == before[1] + 1).await;
    assert_eq!(sent("ann"), before[0]);
    assert_eq!(send(&peal, "us", &push("news")).await[0]["state"], "delivered");

    // It is asked at every attempt: who mutes the topic while a retry waits gets nothing.
    let busy = Rule::token(&token_of("bob"))
        .times(1)
        .answer(Answer::reason("ServiceUnavailable").retry_after(RetryAfter::Seconds(8)));
    peal.simulators.apns.script().add(busy).unwrap();
    let tried = peal.simulators.apns.log().requests_for(&token_of("bob")).len();
    peal.expect("POST", "us", "/v1/notifications", Some(&broadcast))
        .await
        .unwrap();
    wait(|| peal.simulators.apns.log().requests_for(&token_of("bob")).len() == tried + 1).await;
    let mute = json!({ "topics": { "news": false } });
    peal.expect("PATCH", "us", "/v1/recipients/bob/preferences", Some(&mute))
        .await
        .unwrap();
    let audit = Audit::read_settled(&peal, DONE_WITHIN + DONE_WITHIN).await.unwrap();
    assert!(audit.equation().holds(), "{:?}", audit.equation());
    assert_eq!(sent("bob"), before[1] + 1);
}

/// The token of a recipient's device.
fn token_of(name: &str) -> String {
    if name == "ann" { "aa" } else { "bb" }.repeat(16)
}

async fn wait(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + DONE_WITHIN;
    while !holds() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        sleep(Duration::from_millis(20)).await;
    }
}
