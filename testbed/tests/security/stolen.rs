//! A stolen NKey of one region, without the mesh key: what it does to another region has no effect.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID, jetstream};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{
    channel::Channel,
    clock::Clock,
    id::{AddressId, JobId, NotificationId},
    nats::{audit::Break, connect, current, envelope, follow, publish, roles::Role, spend, subject, topology},
    provider::Provider,
    receipt::{Batch, Receipt, State},
    recipient::{Fact, FactName, Profile, RecipientKey},
    testing,
};
use testbed::{
    audit::Audit,
    nats,
    peal::{APP, Peal, Plan},
};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::{
    rig::{TIMEOUT, app, region},
    roles::Intruder,
};

/// bob's token, an APNs device in us.
const TOKEN: &str = "b0b0000000000000000000000000000000000000000000000000000000000000";

/// A mesh in which work from other regions needs a proof, and bob lives in us.
async fn mesh() -> Peal {
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("bob", "us", &[("apns", TOKEN)]).await.unwrap();
    peal
}

/// JetStream at eu's servers with a stolen key.
async fn stolen(peal: &Peal, role: &Role) -> jetstream::Context {
    connect::jetstream(peal.nats.region("eu").connect(role).await.unwrap())
}

/// A job of the attacker for bob.
fn forged(event: &str) -> (HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, event);
    headers.insert(envelope::ORIGIN, "eu");
    let body = json!({ "event_id": event, "recipient": "bob", "push": { "title": "forged" } });
    (headers, body.to_string().into_bytes())
}

async fn publish_forged(js: &jetstream::Context, subject: &str, event: &str) {
    let (headers, body) = forged(event);
    publish::store(js, subject.to_owned(), headers, body.into())
        .await
        .unwrap_or_else(|error| panic!("{subject}: {error}"));
}

fn bob() -> RecipientKey {
    RecipientKey {
        app: APP.parse().unwrap(),
        recipient: "bob".parse().unwrap(),
    }
}

/// Sends to bob from `region` and waits until he has it.
async fn reach_bob(peal: &Peal, from: &str, event: &str) {
    let body = json!({ "event_id": event, "to": { "recipients": ["bob"] }, "push": { "title": "genuine" } });
    let answer = peal
        .expect("POST", from, "/v1/notifications", Some(&body))
        .await
        .unwrap();
    let id = answer["notification_id"].as_str().unwrap();
    let states = ended(peal, from, id).await;
    assert_eq!(
        states,
        [("us".to_owned(), "delivered".to_owned(), String::new())],
        "{event}"
    );
}

/// Region, state and reason of the deliveries of a notification, once one has ended.
async fn ended(peal: &Peal, from: &str, id: &str) -> Vec<(String, String, String)> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (_, status) = peal
            .ask("GET", from, &format!("/v1/notifications/{id}"), None)
            .await
            .unwrap();
        let deliveries: Vec<Value> = status["deliveries"].as_array().cloned().unwrap_or_default();
        let open = ["parked", "attempting"].map(Value::from);
        if !deliveries.is_empty() && !deliveries.iter().any(|delivery| open.contains(&delivery["state"])) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let each = deliveries.iter();
            return each
                .map(|one| (text(&one["region"]), text(&one["state"]), text(&one["reason"])))
                .collect();
        }
        assert!(Instant::now() < deadline, "{id}: {status}\n{}", peal.complaints());
        sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn id_of(event: &str) -> String {
    NotificationId::of(&APP.parse().unwrap(), &event.parse().unwrap())
        .0
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_pushes_to_nobody_elsewhere() {
    let peal = mesh().await;
    let gateway = stolen(&peal, &Role::Gateway(region("eu"))).await;
    let worker = stolen(&peal, &Role::Worker(region("eu"))).await;

    // Straight into the lane of the other region, as a job and as a broadcast.
    publish_forged(&gateway, "notify.push.us.urgent.shop", "straight").await;
    let broadcast = json!({ "event_id": "to-all", "topic": "news", "push": { "title": "forged" } });
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, "to-all");
    publish::store(
        &gateway,
        "notify.push.us.urgent.shop".into(),
        headers,
        broadcast.to_string().into(),
    )
    .await
    .unwrap();
    // The first step of a plan, which has expired before its proof is looked at.
    let steps = json!([{ "channel": "webhook" }, { "channel": "push" }]);
    let planned = json!({
        "event_id": "planned", "recipient": "bob", "plan": { "mode": "fallback", "steps": steps },
        "webhook": { "type": "forged", "ttl": 1 }, "push": { "title": "forged" },
    });
    let (mut headers, _) = forged("planned");
    let before = Clock::system().now() - jiff::SignedDuration::from_mins(1);
    headers.insert(envelope::ACCEPTED_AT, before.as_millisecond().to_string());
    publish::store(
        &gateway,
        "notify.webhook.us.urgent.shop".into(),
        headers,
        planned.to_string().into(),
    )
    .await
    .unwrap();
    // By way of eu's workers, who believe that bob lived in eu and moved.
    let moved = Fact::Profile(Profile {
        home: region("us"),
        locale: None,
        timezone: None,
        updated_at: Clock::system().now(),
    });
    let profile = subject::fact(&bob(), moved.name());
    publish::store(&gateway, profile, HeaderMap::new(), moved.encode().into())
        .await
        .unwrap();
    publish_forged(&gateway, "notify.push.eu.urgent.shop", "laundered").await;
    // As a job that a worker hands over, and as one that waited.
    publish_forged(&worker, "moved.push.us.urgent.shop", "handed-over").await;
    let (mut headers, body) = forged("parked");
    envelope::schedule(&mut headers, Clock::system().now(), "due.push.eu.urgent.shop".into());
    publish::store(&worker, "schedule.parked.whole".into(), headers, body.into())
        .await
        .unwrap();
    // A proof of another notification to bob, which eu's gateway made.
    reach_bob(&peal, "eu", "genuine").await;
    let proof = proof_in_outbox(&peal).await;
    let (mut headers, body) = forged("borrowed");
    headers.insert(envelope::PROOF, proof);
    publish::store(&gateway, "notify.push.us.urgent.shop".into(), headers, body.into())
        .await
        .unwrap();

    for event in ["straight", "laundered", "handed-over", "parked", "borrowed"] {
        let expected = ("us".to_owned(), "suppressed".to_owned(), "unproven".to_owned());
        assert_eq!(ended(&peal, "eu", &id_of(event)).await, [expected], "{event}");
    }
    let audit = Audit::read_settled(&peal, TIMEOUT).await.unwrap();
    assert!(audit.equation().is_settled(), "{}", audit.equation());
    let expired = ("us".to_owned(), "expired".to_owned(), "expired".to_owned());
    assert_eq!(
        ended(&peal, "eu", &id_of("planned")).await,
        [expired],
        "no step follows"
    );
    assert_eq!(peal.simulators.apns.stats().delivered, 1, "only the genuine one");
}

/// The proof of the newest job in eu's outbox that has one.
async fn proof_in_outbox(peal: &Peal) -> String {
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let mut proof = None;
    let each = |entry: &follow::Entry| {
        proof = envelope::header(&entry.headers, envelope::PROOF)
            .map(str::to_owned)
            .or(proof.take());
    };
    follow::read(
        &js,
        topology::OUTBOX,
        subject::NOTIFY_FILTER,
        follow::Start::Sequence(1),
        each,
    )
    .await
    .unwrap();
    proof.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_cancels_and_removes_nothing_elsewhere() {
    let peal = mesh().await;
    let gateway = stolen(&peal, &Role::Gateway(region("eu"))).await;
    let publish = async |subject: String, value: Value| {
        publish::store(&gateway, subject.clone(), HeaderMap::new(), value.to_string().into())
            .await
            .unwrap_or_else(|error| panic!("{subject}: {error}"));
    };
    let (eu, now) = (region("eu"), Clock::system().now());
    // us's next notification is withdrawn before it is sent.
    let id: NotificationId = NotificationId(id_of("withdrawn").parse().unwrap());
    publish(subject::directory_cancelled(&eu, &bob().app, id), json!({ "at": now })).await;
    // bob lives in eu, and his device belongs to mallory.
    publish(subject::directory_home(&eu, &bob()), json!({ "is": "eu", "at": now })).await;
    let (_, known) = peal
        .ask("GET", "us", "/v1/recipients/bob/addresses", None)
        .await
        .unwrap();
    let address = known["addresses"][0]["address_id"].as_str().unwrap().parse().unwrap();
    let owner = subject::directory_owner(&eu, &bob().app, AddressId(address));
    publish(owner, json!({ "is": "mallory", "at": now, "was": ["bob"] })).await;
    // bob has another device, lost his own, and wants nothing.
    let (path, mallory) = (
        subject::fact_outbound(&region("us"), &bob(), FactName::Preferences),
        testing::address(&bob().app, Provider::Apns, &"a".repeat(64)),
    );
    publish(path, json!({ "channels": { "push": false }, "categories": {} })).await;
    let path = subject::fact_outbound(&region("us"), &bob(), FactName::Address(mallory.id));
    publish(path, serde_json::from_slice(&Fact::Address(mallory).encode()).unwrap()).await;
    let path = subject::fact_outbound(&region("us"), &bob(), FactName::Address(AddressId(address)));
    let mut removal = HeaderMap::new();
    removal.insert("KV-Operation", "DEL");
    publish::store(&gateway, path, removal, "".into()).await.unwrap();
    // us's next request was answered already.
    let key = shared::digest::derive("idempotency", &["answered"]);
    publish(
        subject::idempotency(&eu, &bob().app, key),
        json!({ "request": uuid::Uuid::nil(), "at": now }),
    )
    .await;
    // us's suppression is lifted, and another mailbox of its app is suppressed.
    let wanted = json!({ "channel": "email", "address": "bob@example.com" });
    let genuine = peal
        .expect("POST", "us", "/v1/suppressions", Some(&wanted))
        .await
        .unwrap();
    let id = genuine["id"].as_str().unwrap().parse().unwrap();
    let later = now + std::time::Duration::from_mins(1);
    let lifted = subject::directory_suppressed(&eu, &bob().app, id);
    publish(lifted, json!({ "is": null, "at": later })).await;
    let other = "7c9e6679742580de944be07fc1f90ae7".parse().unwrap();
    let forged = json!({ "channel": "email", "reason": "manual", "source": "mallory", "created_at": now });
    let added = subject::directory_suppressed(&eu, &bob().app, other);
    publish(added, json!({ "is": forged, "at": later })).await;
    // A signed entry of eu shows that us has copied all of these.
    peal.register("eve", "eu", &[("apns", &"e".repeat(64))]).await.unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while peal.ask("GET", "us", "/v1/recipients/eve", None).await.unwrap().0 != 200 {
        assert!(Instant::now() < deadline, "{}", peal.complaints());
        sleep(std::time::Duration::from_millis(50)).await;
    }
    let list = peal.expect("GET", "us", "/v1/suppressions", None).await.unwrap();
    assert_eq!(list["suppressions"], json!([genuine]));
    for event in ["withdrawn", "answered"] {
        reach_bob(&peal, "us", event).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_receipts_for_another_region_are_not_believed() {
    let peal = mesh().await;
    peal.register("eve", "eu", &[("apns", &"e".repeat(64))]).await.unwrap();
    peal.wait_known("us", "eve").await.unwrap();
    // eu does not deliver, and the stolen key says that it did.
    for worker in &peal.region("eu").workers {
        worker.process.signal("STOP").await.unwrap();
    }
    let body = json!({ "event_id": "claimed", "to": { "recipients": ["eve"] }, "push": { "title": "genuine" } });
    peal.expect("POST", "us", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    let app = APP.parse().unwrap();
    let job = JobId::of(
        &peal.ids,
        &app,
        &"claimed".parse().unwrap(),
        &"eve".parse().unwrap(),
        Channel::Push,
    );
    let notification = NotificationId(id_of("claimed").parse().unwrap());
    let now = Clock::system().now();
    let forged = Batch {
        app: app.clone(),
        origin: region("us"),
        region: region("eu"),
        writer: "thief".to_owned(),
        accepted: Vec::new(),
        receipts: vec![Receipt::new(notification, job, Channel::Push, State::Delivered, now)],
        handled: Vec::new(),
    };
    let worker = stolen(&peal, &Role::Worker(region("eu"))).await;
    let subject = subject::receipt(&region("eu"), &region("us"), &app);
    let payload = serde_json::to_vec(&forged).unwrap();
    publish::store(&worker, subject, HeaderMap::new(), payload.into())
        .await
        .unwrap();
    // us has copied it once it complains of it.
    let deadline = Instant::now() + TIMEOUT;
    while !peal.complaints().contains("without a signature") {
        assert!(Instant::now() < deadline, "{}", peal.complaints());
        sleep(std::time::Duration::from_millis(50)).await;
    }
    let (_, status) = peal
        .ask("GET", "us", &format!("/v1/notifications/{}", id_of("claimed")), None)
        .await
        .unwrap();
    assert_eq!(status["deliveries"].as_array().map(Vec::len), Some(0), "{status}");
    let report = Audit::read(&peal).await.unwrap().report;
    let found: Vec<_> = report.broken.iter().map(|broken| (broken.how, broken.count)).collect();
    assert_eq!(found, [(Break::Unproven, 1)]);
    assert_eq!(report.total().in_flight, 1, "it is not delivered");

    for worker in &peal.region("eu").workers {
        worker.process.signal("CONT").await.unwrap();
    }
    let end = ended(&peal, "us", &id_of("claimed")).await;
    assert_eq!(end, [("eu".to_owned(), "delivered".to_owned(), String::new())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_that_it_replaced_are_in_the_bucket_again() {
    let mut peal = mesh().await;
    let gateway = stolen(&peal, &Role::Gateway(region("eu"))).await;
    let (_, known) = peal
        .ask("GET", "us", "/v1/recipients/bob/addresses", None)
        .await
        .unwrap();
    let address = known["addresses"][0]["address_id"].as_str().unwrap().parse().unwrap();
    let path = |name| subject::fact_outbound(&region("us"), &bob(), name);
    let mut removal = HeaderMap::new();
    removal.insert("KV-Operation", "DEL");
    let js = connect::jetstream(peal.connect("us").await.unwrap());
    let bucket = js.get_stream(topology::RECIPIENTS).await.unwrap();
    let before = bucket.cached_info().state.last_sequence;
    // One that is replaced by nonsense, and one that is removed.
    for (name, headers, value) in [
        (
            FactName::Profile,
            HeaderMap::new(),
            r#"{"home":"eu","updated_at":"2030-01-01T00:00:00Z"}"#,
        ),
        (FactName::Address(AddressId(address)), removal, ""),
    ] {
        publish::store(&gateway, path(name), headers, value.into())
            .await
            .unwrap();
    }
    // The bucket holds the genuine facts again, so that a cache can be filled from it, and a gateway that is asked knows them.
    let deadline = Instant::now() + TIMEOUT;
    for name in [FactName::Profile, FactName::Address(AddressId(address))] {
        let subject = subject::fact(&bob(), name.clone());
        loop {
            let found = bucket.get_last_raw_message_by_subject(&subject).await.unwrap();
            if found.sequence > before && !envelope::is_foreign(&found.headers) {
                break;
            }
            assert!(Instant::now() < deadline, "{name:?}\n{}", peal.complaints());
            sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let program = peal.program();
    let worker = &mut peal.region_mut("us").workers[0];
    worker.process.kill().await.unwrap();
    std::fs::remove_file(worker.data().join("cache.redb")).unwrap();
    worker.restart(&program).unwrap();
    reach_bob(&peal, "us", "after").await;
    let known = peal.expect("GET", "us", "/v1/recipients/bob/addresses", None).await;
    assert_eq!(known.unwrap()["addresses"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reads_nothing_elsewhere() {
    let peal = mesh().await;
    let eu = peal.nats.region("eu");
    let streams = [
        "$JS.us.API.DIRECT.GET.KV_recipients",
        "$JS.us.API.DIRECT.GET.DEAD",
        "$JS.us.API.STREAM.MSG.DELETE.DEAD",
    ];
    for role in [Role::Gateway(region("eu")), Role::Worker(region("eu"))] {
        let mut intruder = Intruder::of(eu, &role).await;
        intruder.assert_forbidden(&role.inbox(), &streams, &[]).await;
    }
    let mut worker = Intruder::of(eu, &Role::Worker(region("eu"))).await;
    let lanes = [
        "notify.push.us.urgent.shop",
        "notify.push.eu.urgent.shop",
        "fact.us.shop.bob.profile",
    ];
    worker.assert_forbidden("a worker", &lanes, &[]).await;
    // What a worker counts, its own region counts.
    let [here, there] = ["eu", "us"].map(region);
    let eus = stolen(&peal, &Role::Worker(here)).await;
    let counter = subject::spend(&app(APP), Uuid::from_u128(1), Timestamp::UNIX_EPOCH);
    let add = async |id: &str| spend::count(&eus, counter.clone(), id.to_owned(), 5).await.unwrap();
    assert_eq!([add("1").await, add("1").await, add("2").await], [5, 5, 10]);
    let uss = connect::jetstream(peal.nats.region("us").connect(&Role::Worker(there)).await.unwrap());
    let found = current::last(&uss, topology::SPEND, &counter).await.unwrap();
    assert!(found.is_none());
    let gateway = stolen(&peal, &Role::Gateway(region("eu"))).await;
    let client = gateway.client();
    // It may ask, but cannot seal a question.
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    // What a genuine gateway of eu is answered arrives in inboxes that the key may read.
    let mut overheard = client.subscribe("_INBOX.eu.gateway.>").await.unwrap();
    let question = json!({ "nonce": uuid::Uuid::nil(), "facts": { "filters": ["$KV.recipients.>"] } });
    client
        .publish_with_reply(subject::ask(&region("us")), inbox, question.to_string().into())
        .await
        .unwrap();
    client.flush().await.unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let known = loop {
        // eu learns of bob's home a moment later.
        let asked = peal.ask("GET", "eu", "/v1/recipients/bob/addresses", None).await;
        let (status, known) = asked.unwrap();
        if status == 200 {
            break known;
        }
        assert!(Instant::now() < deadline, "{known}\n{}", peal.complaints());
        sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(
        known["addresses"].as_array().map(Vec::len),
        Some(1),
        "a gateway is answered"
    );
    let short = std::time::Duration::from_millis(500);
    assert!(timeout(short, answers.next()).await.is_err(), "a question was answered");
    // The gateway also gets answers of its own region there, again and again.
    let (mut heard, until) = (0, Instant::now() + std::time::Duration::from_secs(2));
    while let Ok(Some(message)) = tokio::time::timeout_at(until, overheard.next()).await {
        heard += 1;
        // The key may read the directory of its own region.
        let stream = message.headers.as_ref().and_then(|headers| headers.get("Nats-Stream"));
        if stream.is_some_and(|stream| stream.as_str() == topology::DIRECTORY) {
            continue;
        }
        let text = String::from_utf8_lossy(&message.payload);
        assert!(!text.contains(TOKEN) && !text.contains("bob"), "{text}");
    }
    assert!(heard > 0, "the answers arrive in these inboxes");
}
