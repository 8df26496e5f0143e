//! The notifications that the demo sends, and the deliveries that are expected of them.

use std::{io::Write, time::Instant};

use anyhow::Context;
use async_nats::HeaderMap;
use serde_json::{Value, json};
use shared::{
    id::NotificationId,
    nats::{connect, publish, subject, topology},
};

use super::{report, say};
use crate::{
    peal::{APP, Peal},
    providers::{Answer, Rule, now_s},
    sink::CollectedSpan,
};

/// Device tokens at APNs, 64 hexadecimal digits each. The simulator's script makes some of them fail.
const ANN_PHONE: &str = "a11ce0000000000000000000000000000000000000000000000000000000ea01";
const BOB_PHONE: &str = "b0b00000000000000000000000000000000000000000000000000000000005a1";
const BOB_TABLET: &str = "b0b00000000000000000000000000000000000000000000000000000000005a2";
const CAROL_PHONE: &str = "ca10100000000000000000000000000000000000000000000000000000000001";
const DAVE_OLD_PHONE: &str = "deaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddead";
const ERIN_PHONE: &str = "e1100000000000000000000000000000000000000000000000000000000000b5";

const FRANK_OLD_PHONE: &str = "deaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeaddeadf0a2";

/// A number to which Twilio sends nothing more, because its owner answered STOP.
const FRANK_NUMBER: &str = "+41790000002";

/// A number that nobody registered.
const GUEST_PHONE: &str = "+41790000099";

/// One notification that was sent.
#[derive(Debug)]
pub(super) struct Scene {
    /// The title, which says what it shows.
    pub(super) title: &'static str,
    /// The region that it was sent to.
    pub(super) region: String,
    /// The notification's id, if it has a status to ask for.
    pub(super) notification: Option<String>,
    /// Every delivery that must result from it.
    pub(super) expected: Vec<Expected>,
    /// The trace id, if the gateway returned one.
    pub(super) trace: Option<String>,
    /// The answer, for people.
    pub(super) answer: String,
}

/// One expected delivery: recipient, region, provider, state, and reason if it matters.
pub(super) type Expected = (String, String, Option<&'static str>, &'static str, Option<&'static str>);

fn want(
    recipient: &str,
    region: &str,
    provider: Option<&'static str>,
    state: &'static str,
    reason: Option<&'static str>,
) -> Expected {
    (recipient.to_owned(), region.to_owned(), provider, state, reason)
}

/// The regions where the demo's recipients live. Each further region has a guest.
pub(super) const STAGE: [&str; 2] = ["eu", "us"];

fn guests(peal: &Peal) -> Vec<(String, String)> {
    let names = peal.regions.iter().map(|region| region.name.clone());
    names
        .filter(|name| !STAGE.contains(&name.as_str()))
        .map(|name| (format!("guest-{name}"), name))
        .collect()
}

/// Registers the demo's recipients.
pub(super) async fn register(peal: &Peal) -> anyhow::Result<()> {
    peal.register("ann", "eu", &[("apns", ANN_PHONE), ("fcm", "fcm:ann-tablet")])
        .await?;
    let bob = [("apns", BOB_PHONE), ("apns", BOB_TABLET), ("fcm", "fcm:bob-watch")];
    peal.register("bob", "us", &bob).await?;
    for address in [
        json!({ "type": "email", "email": "ann@example.com" }),
        json!({ "type": "phone", "phone": "+41790000001" }),
        json!({ "type": "webhook", "url": peal.simulators.webhook.url("/ann"), "format": "chat" }),
    ] {
        peal.expect("POST", "eu", "/v1/recipients/ann/addresses", Some(&address))
            .await?;
    }
    peal.register("carol", "eu", &[("apns", CAROL_PHONE)]).await?;
    let opt_out = json!({ "channels": { "push": false } });
    peal.expect("PUT", "eu", "/v1/recipients/carol/preferences", Some(&opt_out))
        .await?;
    peal.register("dave", "us", &[("apns", DAVE_OLD_PHONE), ("fcm", "fcm:dave-new")])
        .await?;
    peal.register("erin", "us", &[("apns", ERIN_PHONE)]).await?;
    peal.register("frank", "us", &[("apns", FRANK_OLD_PHONE)]).await?;
    for address in [
        json!({ "type": "phone", "phone": FRANK_NUMBER }),
        json!({ "type": "email", "email": "frank@example.com" }),
    ] {
        peal.expect("POST", "us", "/v1/recipients/frank/addresses", Some(&address))
            .await?;
    }
    // The time must lie after the registration: a token that was registered again since then would be kept.
    let gone = Answer::reason("Unregistered").timestamp_ms(1000 * (now_s() + 1));
    for token in [DAVE_OLD_PHONE, FRANK_OLD_PHONE] {
        let apns = peal.simulators.apns.script();
        apns.add(Rule::token(token).answer(gone.clone()))?;
    }
    let stopped = Answer::reason("21610");
    peal.simulators
        .twilio
        .script()
        .add(Rule::token(FRANK_NUMBER).answer(stopped))?;
    peal.simulators.apns.script().add(
        Rule::token(ERIN_PHONE)
            .times(1)
            .answer(Answer::reason("ServiceUnavailable")),
    )?;
    say!(
        "Registered: ann (eu, 2 devices, mailbox, phone, chat), bob (us, 3), carol (eu, opted out), dave (us, one dead token), erin (us), \
         frank (us, a dead token, a number that answered STOP, mailbox)"
    )?;
    for (guest, region) in guests(peal) {
        let token = format!("fcm:{guest}");
        peal.register(&guest, &region, &[("fcm", &token)]).await?;
        say!("            {guest} ({region}, 1)")?;
    }
    say!("")?;
    wait_known(peal).await
}

/// Waits until the directory of each region knows the recipients of the other, which takes a short time.
async fn wait_known(peal: &Peal) -> anyhow::Result<()> {
    let guests = guests(peal);
    let people = ["ann", "bob", "carol", "dave", "erin", "frank"].into_iter();
    for recipient in people.chain(guests.iter().map(|(guest, _)| guest.as_str())) {
        for region in STAGE {
            peal.wait_known(region, recipient).await?;
        }
    }
    Ok(())
}

/// Sends the notifications of all scenes.
pub(super) async fn play(peal: &Peal) -> anyhow::Result<Vec<Scene>> {
    let order = json!({
        "event_id": "order-42-shipped",
        "to": { "recipients": ["ann", "bob"] },
        "category": "orders",
        "push": { "title": "Your order is on its way", "body": "Order 42", "data": { "order": "42" }, "badge": 1 },
    });
    let both = vec![
        want("ann", "eu", Some("apns"), "delivered", None),
        want("ann", "eu", Some("fcm"), "delivered", None),
        want("bob", "us", Some("apns"), "delivered", None),
        want("bob", "us", Some("apns"), "delivered", None),
        want("bob", "us", Some("fcm"), "delivered", None),
    ];
    let first = post(
        peal,
        "HTTP in eu, recipients in both regions",
        "eu",
        &order,
        both.clone(),
    )
    .await?;
    let again = post(peal, "The same event again: nothing is sent twice", "eu", &order, both).await?;
    let opted_out = post(
        peal,
        "A recipient who opted out",
        "eu",
        &json!({ "to": { "recipients": ["carol"] }, "push": { "title": "Sale" }, "class": "bulk" }),
        vec![want("carol", "eu", None, "suppressed", Some("opted_out"))],
    )
    .await?;
    let dead_token = post(
        peal,
        "A dead token, and a device that works",
        "eu",
        &json!({ "to": { "recipients": ["dave"] }, "push": { "title": "Your code is 1234" }, "class": "urgent" }),
        vec![
            want("dave", "us", Some("apns"), "rejected", Some("Unregistered")),
            want("dave", "us", Some("fcm"), "delivered", None),
        ],
    )
    .await?;
    let retried = post(
        peal,
        "Apple fails for a short time: the push is parked and sent again",
        "us",
        &json!({ "to": { "recipients": ["erin"] }, "push": { "title": "Hello" } }),
        vec![want("erin", "us", Some("apns"), "delivered", None)],
    )
    .await?;
    let nobody = post(
        peal,
        "An unknown recipient",
        "us",
        &json!({ "to": { "recipients": ["zoe"] }, "push": { "title": "Hello" } }),
        vec![want("zoe", "eu", None, "suppressed", Some("unknown_recipient"))],
    )
    .await?;
    let channels = on_every_channel(peal).await?;
    let plan = by_plan(peal).await?;
    let by_nats = publish_notification(peal).await?;
    let nonsense = publish_nonsense(peal).await?;
    let mut played = vec![first, again, opted_out, dead_token, retried, nobody];
    played.extend(channels);
    played.extend([plan, by_nats, nonsense]);
    for (guest, region) in guests(peal) {
        let body = json!({ "to": { "recipients": [guest] }, "push": { "title": "Welcome" } });
        let expected = vec![want(&guest, &region, Some("fcm"), "delivered", None)];
        played.push(post(peal, "A guest in a further region", "eu", &body, expected).await?);
    }
    Ok(played)
}

/// An e-mail, a text message, a message in a chat, and a code for a number that is not registered.
async fn on_every_channel(peal: &Peal) -> anyhow::Result<[Scene; 4]> {
    let ann = json!({ "recipients": ["ann"] });
    let of_ann = |provider| vec![want("ann", "eu", Some(provider), "delivered", None)];
    let email = json!({
        "to": ann,
        "email": {
            "subject": "Your order is on its way",
            "text": "Order 42 left our house today.",
            "html": "<p>Order <b>42</b> left our house today.</p>",
        },
    });
    let sms = json!({ "to": ann, "sms": { "text": "Order 42 arrives in 10 minutes" } });
    let chat = json!({ "to": ann, "webhook": { "text": "Order 42 was delivered" } });
    let code = json!({
        "to": { "address": { "type": "phone", "phone": GUEST_PHONE } },
        "class": "urgent",
        "sms": { "text": "Your code is 1234" },
    });
    let of_guest = vec![want("", "eu", Some("twilio"), "delivered", None)];
    Ok([
        post(peal, "An e-mail", "us", &email, of_ann("smtp")).await?,
        post(peal, "A text message", "eu", &sms, of_ann("twilio")).await?,
        post(peal, "A message in a chat", "eu", &chat, of_ann("webhook")).await?,
        post(
            peal,
            "A code for a number that nobody registered",
            "us",
            &code,
            of_guest,
        )
        .await?,
    ])
}

/// A push, else a text message, else an e-mail: the first two are refused.
async fn by_plan(peal: &Peal) -> anyhow::Result<Scene> {
    let body = json!({
        "to": { "recipients": ["frank"] },
        "plan": { "mode": "fallback", "steps": [{ "channel": "push" }, { "channel": "sms" }, { "channel": "email" }] },
        "push": { "title": "Your table is ready" },
        "sms": { "text": "Your table is ready" },
        "email": { "subject": "Your table is ready", "text": "We keep it for 15 minutes." },
    });
    let expected = vec![
        want("frank", "us", Some("apns"), "rejected", Some("Unregistered")),
        want("frank", "us", Some("twilio"), "rejected", Some("21610")),
        want("frank", "us", Some("smtp"), "delivered", None),
    ];
    let title = "A plan: push, then text message, then e-mail, until one is delivered";
    post(peal, title, "eu", &body, expected).await
}

async fn post(
    peal: &Peal,
    title: &'static str,
    region: &str,
    body: &Value,
    expected: Vec<Expected>,
) -> anyhow::Result<Scene> {
    let answer = peal.expect("POST", region, "/v1/notifications", Some(body)).await?;
    let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
    let duplicates = answer.get("duplicates").and_then(Value::as_u64).unwrap_or(0);
    let jobs = answer.get("jobs").and_then(Value::as_u64).unwrap_or(0);
    Ok(Scene {
        title,
        region: region.to_owned(),
        notification: text("notification_id"),
        expected,
        trace: text("trace_id"),
        answer: format!("202, {jobs} jobs, {duplicates} of them accepted before"),
    })
}

/// A service publishes to NATS in us, for a recipient in eu.
async fn publish_notification(peal: &Peal) -> anyhow::Result<Scene> {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let body = json!({
        "event_id": "invoice-7",
        "to": { "recipients": ["ann"] },
        "push": { "title": "Invoice 7 is paid" },
    });
    Ok(Scene {
        title: "NATS publish in us, recipient in eu",
        region: "eu".to_owned(),
        notification: Some(NotificationId::of(&APP.parse()?, &"invoice-7".parse()?).to_string()),
        expected: vec![
            want("ann", "eu", Some("apns"), "delivered", None),
            want("ann", "eu", Some("fcm"), "delivered", None),
        ],
        trace: None,
        answer: publish(peal, headers, body.to_string()).await?,
    })
}

/// A service publishes a message that breaks a rule.
async fn publish_nonsense(peal: &Peal) -> anyhow::Result<Scene> {
    let body = r#"{"event_id": "nonsense-1", "to": {"recipients": ["bob"]}, "push": {"titel": 1}}"#;
    Ok(Scene {
        title: "NATS publish of an invalid message: it becomes a dead letter, with the reason",
        region: "us".to_owned(),
        notification: None,
        expected: Vec::new(),
        trace: None,
        answer: publish(peal, HeaderMap::new(), body.to_owned()).await?,
    })
}

/// Publishes to the app's intake in us, in the app's own account, and says what acknowledged it.
async fn publish(peal: &Peal, headers: HeaderMap, body: String) -> anyhow::Result<String> {
    let js = connect::jetstream(peal.connect_as_app("us").await?);
    let stored = publish::store(&js, subject::send(APP), headers, body.into()).await?;
    Ok(format!("acknowledged by {} #{} of us", stored.stream, stored.sequence))
}

/// A broadcast reaches every member of a topic with one message to each region.
pub(super) async fn broadcast(peal: &Peal) -> anyhow::Result<Vec<String>> {
    for (recipient, home) in [("ann", "eu"), ("carol", "eu"), ("bob", "us")] {
        let path = format!("/v1/recipients/{recipient}/topics/football");
        peal.expect("PUT", home, &path, None).await?;
    }
    let body = json!({ "to": { "topic": "football" }, "push": { "title": "Goal" } });
    let scene = post(peal, "To a topic, members in both regions", "us", &body, Vec::new()).await?;
    let status = report::wait_done(peal, &scene, scene.notification.as_deref().unwrap_or_default()).await?;
    let broadcast = &status["broadcast"];
    say!("{} [{}: {}]", scene.title, scene.region, scene.answer)?;
    for (region, here) in broadcast["by_region"].as_object().into_iter().flatten() {
        let (done, total) = (&here["done"], &here["total"]);
        say!("  {region}: {done} of {total} members, {}", here["by_state"])?;
    }
    say!("")?;
    let expected = json!({ "delivered": 5, "suppressed": 1 });
    let held = broadcast["by_state"] == expected;
    Ok((!held)
        .then(|| format!("the broadcast must end as {expected}, not {}", broadcast["by_state"]))
        .into_iter()
        .collect())
}

/// All workers of eu are killed. The workers of us take over until they are back.
pub(super) async fn takeover(peal: &mut Peal) -> anyhow::Result<Vec<String>> {
    let program = peal.program();
    for worker in &mut peal.region_mut("eu").workers {
        worker.process.kill().await?;
    }
    let killed = Instant::now();
    let body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Still there" } });
    let expected = vec![
        want("ann", "eu", Some("apns"), "delivered", None),
        want("ann", "eu", Some("fcm"), "delivered", None),
    ];
    let title = "Every worker of eu is killed: the workers of us deliver for it";
    let scene = post(peal, title, "eu", &body, expected).await?;
    let failures = report::scene(peal, &scene).await?;
    say!(
        "  (accepted and delivered within {:.1?} of the kill)\n",
        killed.elapsed()
    )?;
    let http = peal.http.clone();
    for worker in &mut peal.region_mut("eu").workers {
        worker.restart(&program)?;
        worker.wait_ready(&http).await?;
    }
    Ok(failures)
}

/// Checks the state of the mesh after everything has been delivered.
pub(super) async fn aftermath(peal: &Peal) -> anyhow::Result<Vec<String>> {
    let mut failures = Vec::new();
    let addresses = peal.expect("GET", "us", "/v1/recipients/dave/addresses", None).await?;
    let left = addresses
        .get("addresses")
        .and_then(Value::as_array)
        .context("a list of addresses")?
        .len();
    if left != 1 {
        failures.push(format!("dave's dead token must be removed, {left} addresses are left"));
    }
    let js = connect::jetstream(peal.connect("us").await?);
    let dead = js.get_stream(topology::DEAD).await?;
    match dead
        .direct_get_last_for_subject(subject::dead_refused(&"us".parse()?, &APP.parse()?))
        .await
    {
        Ok(letter) => {
            let header = |name: &str| letter.headers.get(name).map(ToString::to_string).unwrap_or_default();
            say!("Dead letter: {} ({})\n", header("Peal-Reason"), header("Peal-Detail"))?;
            if header("Peal-Reason") != "refused" {
                failures.push("the dead letter must give the reason".to_owned());
            }
        }
        Err(error) => failures.push(format!("the invalid message must be a dead letter: {error}")),
    }
    Ok(failures)
}

/// Whether the trace of the first scene has everything: the request, a send for each recipient, and below each of them
/// processing with its attempts and its acknowledgement.
pub(super) fn is_complete(trace: &[CollectedSpan]) -> bool {
    let count = |start: &str| trace.iter().filter(|seen| seen.span.name.starts_with(start)).count();
    count("POST /v1/notifications") == 1
        && count("send notify") == 2
        && count("process notify") == 2
        && count("POST /3/device") == 3
        && count("POST /v1/projects") == 2
        && count("ack notify") == 2
        && count("send receipt") == 2
}
