//! Every channel from a request to a receipt, by the provider that sends nothing where the app has no other. What each provider
//! sends is shown by its own tests.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use shared::{app::Route, channel::Channel, provider::Provider};
use testbed::{
    audit::Audit,
    nats,
    peal::{Peal, Plan},
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
    let path = format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap());
    let deadline = Instant::now() + DONE_WITHIN;
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
