//! What devices of each provider get, from a request over HTTP to the simulators, and the receipts of those that get nothing.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    nats,
    peal::{Peal, Plan, TOPIC},
    providers::{Answer, Rule},
};
use tokio::time::{Instant, sleep};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The devices of the recipient, one of each provider.
const IPHONE: &str = "aaaa";
const ANDROID: &str = "android-of-ann";

/// The other tokens of the recipient's iPhone: kind, activity, token, and what Apple adds to the bundle id.
const USES: [(&str, Option<&str>, &str, &str); 11] = [
    ("live_activity", None, "a0", ".push-type.liveactivity"),
    ("live_activity", Some("ride-1"), "a1", ".push-type.liveactivity"),
    ("live_activity", Some("ride-2"), "a2", ".push-type.liveactivity"),
    ("live_activity_start", None, "a3", ".push-type.liveactivity"),
    ("voip", None, "a4", ".voip"),
    ("complication", None, "a5", ".complication"),
    ("fileprovider", None, "a6", ".pushkit.fileprovider"),
    ("pushtotalk", None, "a7", ".voip-ptt"),
    ("location", None, "a8", ".location-query"),
    ("widgets", None, "a9", ".push-type.widgets"),
    ("controls", None, "af", ".push-type.controls"),
];

/// A push, and what both devices get: the whole payload of APNs, and FCM's message without its target, time to live, priority
/// and tag. `Null` stands for nothing.
struct Case {
    name: &'static str,
    push: Value,
    apns: Value,
    fcm: Value,
    /// The only token of the iPhone that the push is for.
    token: &'static str,
}

fn case(name: &'static str, push: Value, apns: Value, fcm: Value) -> Case {
    let token = IPHONE;
    Case {
        name,
        push,
        apns,
        fcm,
        token,
    }
}

impl Case {
    fn to(self, token: &'static str) -> Self {
        Self { token, ..self }
    }
}

#[expect(clippy::too_many_lines, reason = "a list")]
fn cases() -> Vec<Case> {
    let background = json!({ "aps": { "content-available": 1 }, "order": "42" });
    let data = json!({ "order": "42" });
    vec![
        case(
            "D1: silent with an image",
            json!({ "silent": true, "image": "https://example.com/a.png", "data": data }),
            background.clone(),
            json!({ "data": data, "android": {} }),
        ),
        case(
            "D2: silent with badge and sound",
            json!({ "silent": true, "badge": 3, "sound": "default", "data": data }),
            background.clone(),
            json!({ "data": data, "android": {} }),
        ),
        case(
            "D2: silent with overrides that would show something",
            json!({
                "silent": true,
                "data": data,
                "apns": { "payload": { "aps": { "alert": "x", "sound": "y", "badge": 1 } } },
                "fcm": { "android": { "notification": { "title": "x" } }, "webpush": { "notification": { "title": "x" } } },
            }),
            background,
            json!({ "data": data, "android": {} }),
        ),
        case(
            "D2: a background push with text for others",
            json!({ "title": "Hello", "apns": { "push_type": "background" } }),
            json!({ "aps": { "content-available": 1 } }),
            json!({ "notification": { "title": "Hello" }, "android": { "notification": {} } }),
        ),
        case(
            "D3: a type that only Apple has",
            json!({ "title": "Call", "data": data, "apns": { "push_type": "voip" } }),
            json!({ "aps": { "alert": { "title": "Call" } }, "order": "42" }),
            Value::Null,
        )
        .to("a4"),
        of_use("a complication", "complication", "a5"),
        of_use("a file provider", "fileprovider", "a6"),
        of_use("a talk", "pushtotalk", "a7"),
        of_use("a location", "location", "a8"),
        of_use("a widget", "widgets", "a9"),
        of_use("a control", "controls", "af"),
        live("an update of every activity without a name", "update", None, "a0"),
        live("an update of one activity", "update", Some("ride-1"), "a1"),
        live("the end of another activity", "end", Some("ride-2"), "a2"),
        live("the start of an activity", "start", None, "a3"),
        case(
            "a second line and a group",
            json!({ "title": "Lunch", "subtitle": "Today", "thread": "menu", "badge": 1 }),
            json!({ "aps": { "alert": { "title": "Lunch", "subtitle": "Today" }, "badge": 1, "thread-id": "menu" } }),
            json!({
                "notification": { "title": "Lunch" },
                "android": { "notification": { "notification_count": 1 } },
                "apns": { "headers": { "apns-priority": "10" }, "payload": {
                    "aps": { "alert": { "title": "Lunch", "subtitle": "Today" }, "badge": 1, "thread-id": "menu" },
                } },
            }),
        ),
        case(
            "an override for Apple's devices behind Google",
            json!({ "title": "Hello", "fcm": {
                "apns": { "headers": { "apns-priority": "5" }, "fcmOptions": { "image": "https://example.com/a.png" } },
                "fcm_options": { "analyticsLabel": "spring" },
            } }),
            json!({ "aps": { "alert": { "title": "Hello" } } }),
            json!({
                "notification": { "title": "Hello" },
                "android": { "notification": {} },
                "apns": {
                    "headers": { "apns-priority": "5" },
                    "payload": { "aps": { "alert": { "title": "Hello" } } },
                    "fcm_options": { "image": "https://example.com/a.png" },
                },
                "fcm_options": { "analytics_label": "spring" },
            }),
        ),
        case(
            "D3: overrides for Apple alone",
            json!({ "apns": { "payload": { "aps": { "alert": "Hello" } } } }),
            json!({ "aps": { "alert": "Hello" } }),
            Value::Null,
        ),
        case(
            "D4: overrides for FCM alone",
            json!({ "fcm": { "android": { "notification": { "title": "Hello" } } } }),
            Value::Null,
            json!({ "android": { "notification": { "title": "Hello" } } }),
        ),
        case(
            "D5: a badge alone",
            json!({ "badge": 3 }),
            json!({ "aps": { "badge": 3 } }),
            Value::Null,
        ),
        case(
            "D5: a badge with text",
            json!({ "badge": 3, "title": "Hello" }),
            json!({ "aps": { "alert": { "title": "Hello" }, "badge": 3 } }),
            json!({ "notification": { "title": "Hello" }, "android": { "notification": { "notification_count": 3 } } }),
        ),
        case(
            "D6: a subtitle beside title and body",
            json!({
                "title": "Hello",
                "body": "World",
                "apns": { "payload": { "aps": { "alert": { "subtitle": "again" } } } },
            }),
            json!({ "aps": { "alert": { "title": "Hello", "subtitle": "again", "body": "World" } } }),
            json!({ "notification": { "title": "Hello", "body": "World" }, "android": { "notification": {} } }),
        ),
        case(
            "either spelling of Google's names",
            json!({
                "title": "Hello",
                "collapse_key": "score",
                "fcm": { "android": {
                    "collapseKey": "other",
                    "notification": { "channelId": "news", "notification_count": 2 },
                } },
            }),
            json!({ "aps": { "alert": { "title": "Hello" } } }),
            json!({
                "notification": { "title": "Hello" },
                "android": { "collapse_key": "other", "notification": { "channel_id": "news", "notification_count": 2 } },
            }),
        ),
        case(
            "D10: an override for browsers alone",
            json!({ "fcm": { "webpush": { "notification": { "title": "Hello", "requireInteraction": true } } } }),
            Value::Null,
            json!({
                "android": {},
                "webpush": { "notification": { "title": "Hello", "requireInteraction": true } },
            }),
        ),
        case(
            "D12: a key that Google does not reserve",
            json!({ "title": "Hello", "data": { "gcm.x": "1" } }),
            json!({ "aps": { "alert": { "title": "Hello" } }, "gcm.x": "1" }),
            json!({
                "data": { "gcm.x": "1" },
                "notification": { "title": "Hello" },
                "android": { "notification": {} },
            }),
        ),
        large(
            "D11: a call of more than 4096 bytes",
            json!({ "data": { "sdp": "x".repeat(4400) }, "apns": { "push_type": "voip" } }),
            [true, false],
        )
        .to("a4"),
        large(
            "D11: more than 4096 bytes for Android and browsers together",
            json!({
                "title": "Hello",
                "fcm": {
                    "android": { "notification": { "body": "x".repeat(2500) } },
                    "webpush": { "notification": { "body": "x".repeat(2500) } },
                },
            }),
            [true, true],
        ),
        large(
            "D11: 4000 bytes of text, which JSON escapes, for FCM alone",
            json!({ "fcm": { "android": { "data": { "text": "\"".repeat(4000) } } } }),
            [false, true],
        ),
    ]
}

/// A push of a type that only Apple has.
fn of_use(name: &'static str, push_type: &str, token: &'static str) -> Case {
    let push = json!({ "apns": { "push_type": push_type, "payload": { "aps": {} } } });
    case(name, push, json!({ "aps": {} }), Value::Null).to(token)
}

fn live(name: &'static str, event: &str, activity: Option<&str>, token: &'static str) -> Case {
    let payload = json!({ "aps": { "event": event, "timestamp": 1, "content-state": { "minutes": 3 } } });
    let push = json!({
        "apns": { "push_type": "liveactivity", "payload": payload, "activity_id": activity },
    });
    case(name, push, payload, Value::Null).to(token)
}

/// A case whose content is too long to be repeated: only who gets something is compared.
fn large(name: &'static str, push: Value, gets: [bool; 2]) -> Case {
    let something = |gets: bool| if gets { json!("something") } else { Value::Null };
    case(name, push, something(gets[0]), something(gets[1]))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_device_gets_what_its_provider_can_show_or_nothing() {
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    let devices = [("apns", IPHONE), ("fcm", ANDROID)];
    peal.register("ann", "eu", &devices).await.unwrap();
    // The simulator answers a push of another use with `DeviceTokenNotForTopic`.
    peal.simulators.apns.devices().register(IPHONE, TOPIC);
    for (kind, activity, token, suffix) in USES {
        peal.simulators
            .apns
            .devices()
            .register(token, &format!("{TOPIC}{suffix}"));
        let address = json!({ "type": "apns", "token": token, "kind": kind, "activity_id": activity });
        let answer = peal
            .expect("POST", "eu", "/v1/recipients/ann/addresses", Some(&address))
            .await
            .unwrap();
        assert_eq!(
            (&answer["kind"], &answer["activity_id"]),
            (&json!(kind), &json!(activity))
        );
    }
    // The worker may know a device some milliseconds later.
    let hello = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hello" } });
    while done(&peal, &hello).await["deliveries"].as_array().unwrap().len() < devices.len() {}
    for Case {
        name,
        push,
        apns,
        fcm,
        token,
    } in cases()
    {
        peal.simulators.apns.log().clear();
        peal.simulators.fcm.log().clear();
        let body = json!({ "to": { "recipients": ["ann"] }, "push": push });
        let status = done(&peal, &body).await;
        let delivered = |token: &str| {
            let simulator = if token == ANDROID {
                peal.simulators.fcm.log()
            } else {
                peal.simulators.apns.log()
            };
            let pushes = simulator.pushes();
            assert!(pushes.iter().all(|push| push.token == token), "{name}: {pushes:?}");
            assert!(
                pushes.len() <= 1 && pushes.iter().all(|push| push.delivered),
                "{name}: {pushes:?}"
            );
            let payload = pushes
                .first()
                .map(|push| serde_json::from_slice(&push.payload).unwrap());
            payload.unwrap_or(Value::Null)
        };
        for (provider, expected, found) in [
            ("apns", &apns, delivered(token)),
            ("fcm", &fcm, message(delivered(ANDROID))),
        ] {
            if expected == "something" {
                assert!(!found.is_null(), "{name}: {provider} got nothing");
            } else {
                assert_eq!(&found, expected, "{name}: {provider}");
            }
            let deliveries = status["deliveries"].as_array().unwrap();
            assert_eq!(deliveries.len(), devices.len(), "{name}: {status}");
            let delivery = deliveries
                .iter()
                .find(|delivery| delivery["provider"] == provider)
                .unwrap();
            let attempts = delivery["attempts"].as_array().unwrap();
            let (state, reason) = if expected.is_null() {
                (json!("suppressed"), json!("nothing_for_target"))
            } else {
                (json!("delivered"), Value::Null)
            };
            assert_eq!(
                (&delivery["state"], &attempts[0]["reason"]),
                (&state, &reason),
                "{name}: {delivery}"
            );
            assert_eq!(attempts.len(), 1, "{name}: {delivery}");
        }
    }
}

/// A browser subscribes, its address is registered over HTTP, and it decrypts what it gets. The last push finds that it has
/// unsubscribed.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_decrypts_what_a_request_asked_for() {
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    let service = &peal.simulators.web_push;
    let subscription = service.subscribe().unwrap();
    let browser = subscription.endpoint.rsplit('/').next().unwrap();
    peal.register("eve", "eu", &[]).await.unwrap();
    let addresses = "/v1/recipients/eve/addresses";
    let of = |endpoint: &str, p256dh: &str, auth: &str| json!({ "type": "web_push", "endpoint": endpoint, "p256dh": p256dh, "auth": auth });
    let (endpoint, p256dh, auth) = (&subscription.endpoint, &subscription.p256dh, &subscription.auth);
    for (field, address) in [
        ("endpoint", of("https://10.0.0.1/push/a", p256dh, auth)),
        ("endpoint", of(&endpoint.replace("https", "http"), p256dh, auth)),
        ("p256dh", of(endpoint, auth, auth)),
        ("auth", of(endpoint, p256dh, "AAAA")),
    ] {
        let (status, problem) = peal.ask("POST", "eu", addresses, Some(&address)).await.unwrap();
        assert_eq!(
            (status, &problem["errors"][0]["field"]),
            (422, &json!(field)),
            "{problem}"
        );
    }
    let address = of(endpoint, p256dh, auth);
    let answer = peal.expect("POST", "eu", addresses, Some(&address)).await.unwrap();
    assert_eq!(answer["type"], "web_push");
    for secret in [browser, p256dh, auth] {
        assert!(!answer.to_string().contains(secret), "{answer}");
    }

    let to = json!({ "recipients": ["eve"] });
    let order = json!({ "order": "42" });
    for (push, payload) in [
        (
            json!({
                "title": "On its way", "body": "It arrives today.", "url": "https://shop.example/orders/42", "badge": 1,
                "data": order, "collapse_key": "order-42",
            }),
            json!({
                "web_push": 8030,
                "notification": {
                    "title": "On its way", "body": "It arrives today.", "navigate": "https://shop.example/orders/42",
                    "tag": "order-42", "data": order,
                },
                "app_badge": 1,
            }),
        ),
        (json!({ "silent": true, "data": order }), json!({ "data": order })),
        (json!({ "badge": 1 }), Value::Null),
    ] {
        service.log().clear();
        let status = done(&peal, &json!({ "to": to, "push": push })).await;
        let delivery = &status["deliveries"][0];
        let got = service.log().delivered_to(browser);
        let got = got.first().map(|push| serde_json::from_slice(&push.payload).unwrap());
        assert_eq!(got.unwrap_or(Value::Null), payload, "{delivery}");
        let state = if payload.is_null() { "suppressed" } else { "delivered" };
        assert_eq!(
            (&delivery["state"], &delivery["provider"]),
            (&json!(state), &json!("web_push")),
            "{delivery}"
        );
    }
    let long = json!({ "to": to, "push": { "title": "x".repeat(4000) } });
    let status = done(&peal, &long).await;
    let attempt = &status["deliveries"][0]["attempts"][0];
    assert_eq!(attempt["reason"], "too_large", "{status}");
    let meant = json!({ "to": to, "push": { "title": "x".repeat(4000), "web_push": { "urgency": "low" } } });
    let (status, problem) = peal.ask("POST", "eu", "/v1/notifications", Some(&meant)).await.unwrap();
    assert_eq!(
        (status, &problem["errors"][0]["field"]),
        (422, &json!("push")),
        "{problem}"
    );

    let gone = Rule::token(browser).answer(Answer::reason("Unregistered"));
    service.script().add(gone).unwrap();
    let status = done(&peal, &json!({ "to": to, "push": { "title": "Anybody there?" } })).await;
    let delivery = &status["deliveries"][0];
    assert_eq!(
        (&delivery["state"], &delivery["attempts"][0]["reason"]),
        (&json!("rejected"), &json!("gone"))
    );
    let deadline = Instant::now() + TIMEOUT;
    while peal.expect("GET", "eu", addresses, None).await.unwrap()["addresses"] != json!([]) {
        assert!(Instant::now() < deadline, "the address stays");
        sleep(Duration::from_millis(20)).await;
    }
}

/// FCM's message without the members that a case does not state.
fn message(mut request: Value) -> Value {
    if request.is_null() {
        return request;
    }
    let message = &mut request["message"];
    message.as_object_mut().unwrap().remove("token").unwrap();
    let android = message["android"].as_object_mut().unwrap();
    for name in ["priority", "ttl"] {
        android.remove(name).unwrap();
    }
    if let Some(notification) = android.get_mut("notification") {
        notification.as_object_mut().unwrap().remove("tag").unwrap();
    }
    if let Some(headers) = message.get_mut("apns").and_then(|apns| apns.get_mut("headers")) {
        headers.as_object_mut().unwrap().remove("apns-collapse-id").unwrap();
    }
    message.take()
}

/// Sends, and returns the status once all is done.
async fn done(peal: &Peal, body: &Value) -> Value {
    let answer = peal
        .expect("POST", "eu", "/v1/notifications", Some(body))
        .await
        .unwrap();
    let path = format!("/v1/notifications/{}", answer["notification_id"].as_str().unwrap());
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let status = peal.expect("GET", "eu", &path, None).await.unwrap();
        if status["state"] == "done" {
            return status;
        }
        assert!(Instant::now() < deadline, "{body}: {status}");
        sleep(Duration::from_millis(20)).await;
    }
}
