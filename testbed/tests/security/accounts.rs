//! The accounts of apps: what their services can do, and that nothing of it reaches into Peal or another app.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    Client, HeaderMap, Message,
    jetstream::{self, consumer::PullConsumer},
};
use futures::StreamExt;
use shared::{
    app::App,
    nats::{
        accounts, connect,
        roles::Role,
        subject,
        topology::{self, Durability, Mesh as Topology, RegionSettings},
    },
};
use testbed::nats::{self, Mesh, Server, SyncInterval};
use tokio::{sync::mpsc, time::timeout};

use crate::rig::{TIMEOUT, app, region, settings};

/// Subjects in Peal's account that would do harm if a service could reach them.
const INSIDE: &[&str] = &[
    "$KV.recipients.shop.ann.profile",
    "$KV.config.app.shop",
    "$JS.API.STREAM.PURGE.NOTIFY",
    "$JS.API.STREAM.DELETE.NOTIFY",
    "$JS.API.CONSUMER.DELETE.NOTIFY.push-normal",
    "$JS.eu.API.STREAM.PURGE.NOTIFY",
    "$JS.hub.API.$KV.config.app.shop",
    "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
    "$JS.ACK.RECEIPTS.svc_bank.1.1.1.1.0",
    "directory.eu.cancelled.shop.0b6f2f3c-6f4e-5a3b-8c1d-0a9b8c7d6e5f",
    "notify.push.eu.normal.shop",
    "receipt.eu.eu.shop",
    "dead.push.eu.shop",
    "alive.eu.0",
    "due.push.eu.normal.shop",
    "schedule.job.whole",
    "idempotency.eu.canary",
    "spend.shop.cap.0",
    "fact.us.shop.ann.profile",
    "send.bank",
    "send.bank.now",
    "peal.trace.hops.bank",
    "$SYS.REQ.SERVER.PING",
    "_INBOX.eu.gateway.x",
];

/// Servers with two apps, without anything for the former version.
pub(crate) fn two_apps() -> nats::Settings {
    nats::Settings {
        apps: vec![app("shop"), app("bank")],
        beside_former: false,
        ..settings()
    }
}

/// As [`two_apps`], but the server lets shop use every subject in its account: the account alone is the fence.
fn without_permissions() -> nats::Settings {
    let anything = |subject: &str| {
        (
            format!("              \"{subject}\"\n"),
            "              \">\"\n".to_owned(),
        )
    };
    nats::Settings {
        edits: vec![anything("send.*"), anything("send.shop")],
        ..two_apps()
    }
}

pub(crate) fn here(name: &str) -> RegionSettings {
    RegionSettings {
        region: region(name),
        durability: Durability::default(),
        max_bytes: -1,
        intake_max_bytes: -1,
    }
}

/// An app as the configuration has it.
pub(crate) fn tenant(id: &str) -> App {
    App {
        services: true,
        ..App::new(app(id), region("eu"))
    }
}

/// The streams of a region, and intakes and feeds of both apps. Returns a connection with all permissions in Peal's account.
pub(crate) async fn prepare(server: &Server) -> Client {
    let client = server.connect_as_test().await.unwrap();
    let js = connect::jetstream(client.clone());
    let topology = Topology {
        here: here(server.domain()),
        regions: vec![region("eu"), region("us")],
    };
    topology::apply_region(&js, &topology, true).await.unwrap();
    for id in ["shop", "bank"] {
        topology::apply_intake(&js, &topology.here, &tenant(id)).await.unwrap();
    }
    client
}

/// The number of the last message of each stream.
async fn last_sequences(client: &Client) -> BTreeMap<String, u64> {
    let js = connect::jetstream(client.clone());
    let mut streams = js.streams();
    let mut last = BTreeMap::new();
    while let Some(stream) = streams.next().await {
        let stream = stream.unwrap();
        last.insert(stream.config.name, stream.state.last_sequence);
    }
    last
}

pub(crate) async fn messages(client: &Client, stream: &str) -> u64 {
    let js = connect::jetstream(client.clone());
    js.get_stream(stream).await.unwrap().cached_info().state.messages
}

/// The server of shop, once its link to the region carries messages.
async fn own_server(region: &Server) -> Server {
    linked_by(region, region.leaf_url()).await
}

/// The server of shop, which reaches the region by `url`.
pub(crate) async fn linked_by(region: &Server, url: String) -> Server {
    let settings = nats::Settings {
        sync_interval: SyncInterval::Always,
        ..settings()
    };
    let role = nats::Role::App { region: url };
    let server = Server::start(settings, region.keys().clone(), "shop", role)
        .await
        .unwrap();
    let client = server.connect_without_key().await.unwrap();
    let linked = async {
        while client.request("send.shop", "{}".into()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, linked).await.unwrap();
    server
}

/// Publishes to every subject of [`INSIDE`], and to the intake with every one of them as the subject of the answer.
/// Nothing may arrive in Peal's account but the messages of the intake, nor change a stream.
async fn assert_shut_out(who: &str, service: &Client, peal: &Client) {
    let before = last_sequences(peal).await;
    let mut seen = peal.subscribe(">").await.unwrap();
    subscribed(peal).await;
    for reply in INSIDE {
        service
            .publish_with_reply("send.shop", *reply, "{}".into())
            .await
            .unwrap();
        service.publish(*reply, "{}".into()).await.unwrap();
        service
            .publish_with_reply(*reply, "_INBOX.x", "{}".into())
            .await
            .unwrap();
    }
    service.flush().await.unwrap();
    // What comes after all of it has arrived after all of it.
    let js = connect::jetstream(service.clone());
    let stored = js.publish("send.shop", "last".into()).await.unwrap().await.unwrap();
    assert_eq!(stored.stream, "INTAKE_shop");
    loop {
        let message = timeout(TIMEOUT, seen.next()).await.unwrap().unwrap();
        let subject = message.subject.as_str();
        assert!(!INSIDE.contains(&subject), "{who} reached {subject}");
        if message.payload == "last" {
            break;
        }
    }
    let more = timeout(Duration::from_millis(300), async {
        while let Some(message) = seen.next().await {
            assert!(
                !INSIDE.contains(&message.subject.as_str()),
                "{who}: {}",
                message.subject
            );
        }
    });
    assert!(more.await.is_err());
    let mut after = last_sequences(peal).await;
    // The server itself refuses acknowledgements as subjects for the answer, and no others.
    let stored = after["INTAKE_shop"] - before["INTAKE_shop"];
    assert!(stored > 15, "{who} stored {stored}");
    after.insert("INTAKE_shop".into(), before["INTAKE_shop"]);
    assert_eq!(after, before, "{who}");
}

/// Waits until the server knows all subscriptions that a client has made.
async fn subscribed(client: &Client) {
    let mark = client.new_inbox();
    let mut marks = client.subscribe(mark.clone()).await.unwrap();
    client.publish(mark, "".into()).await.unwrap();
    timeout(TIMEOUT, marks.next()).await.unwrap();
}

/// Answers requests of services as a gateway of the region does. Returns what it is asked.
async fn answer_requests(server: &Server) -> mpsc::UnboundedReceiver<Message> {
    let role = Role::Gateway(region(server.domain()));
    let gateway = server.connect(&role).await.unwrap();
    let mut requests = gateway.subscribe(subject::SEND_NOW_FILTER).await.unwrap();
    // A gateway may not publish to its own inbox.
    let js = connect::jetstream(gateway.clone());
    js.get_stream(topology::NOTIFY).await.unwrap();
    let (asked, asks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = &request.reply {
                gateway.publish(reply.clone(), "answer".into()).await.unwrap();
            }
            if asked.send(request).is_err() {
                return;
            }
        }
    });
    asks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_reaches_nothing_inside_peal() {
    for settings in [two_apps(), without_permissions()] {
        let mesh = Mesh::start(settings, &["eu", "us"]).await.unwrap();
        let eu = mesh.region("eu");
        let peal = prepare(eu).await;
        let js = connect::jetstream(peal.clone());
        // What a purge or an acknowledgement would take away.
        js.publish("notify.push.eu.normal.shop", "{}".into())
            .await
            .unwrap()
            .await
            .unwrap();
        let service = eu.connect(&Role::Service(app("shop"))).await.unwrap();
        assert_shut_out("a service", &service, &peal).await;
        let own = own_server(eu).await;
        assert_shut_out("an app's own server", &own.connect_without_key().await.unwrap(), &peal).await;
        assert_eq!(messages(&peal, topology::NOTIFY).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_intake_refuses_headers_that_would_change_other_messages() {
    let mesh = Mesh::start(two_apps(), &["eu"]).await.unwrap();
    let eu = mesh.region("eu");
    let peal = prepare(eu).await;
    let service = eu.connect(&Role::Service(app("shop"))).await.unwrap();
    let js = connect::jetstream(service.clone());
    for id in ["1", "2"] {
        js.publish("send.shop", id.into()).await.unwrap().await.unwrap();
    }
    let headers = [
        ("Nats-Rollup", "all"),
        ("Nats-Rollup", "sub"),
        ("Nats-TTL", "1s"),
        ("Nats-Schedule", "@at 2030-01-01T00:00:00Z"),
        ("Nats-Schedule-Next", "purge"),
        ("Nats-Incr", "+1"),
        ("Nats-Batch-Id", "batch"),
        ("Nats-Stream-Source", "OUTBOX 1"),
    ];
    for (name, value) in headers {
        let mut map = HeaderMap::new();
        map.insert(name, value);
        if name == "Nats-Batch-Id" {
            map.insert("Nats-Batch-Sequence", "1");
            map.insert("Nats-Batch-Commit", "1");
        }
        let stored = js.publish_with_headers("send.shop", map, "{}".into()).await.unwrap();
        assert!(stored.await.is_err(), "{name}: {value}");
    }
    assert_eq!(messages(&peal, "INTAKE_shop").await, 2);
    // The server closes the connection on which a message comes that is too large.
    let large = js.publish("send.shop", vec![b'x'; 70_000].into()).await;
    let refused = match large {
        Ok(stored) => timeout(TIMEOUT, stored.into_future())
            .await
            .is_ok_and(|stored| stored.is_err()),
        Err(_) => true,
    };
    assert!(refused);
    assert_eq!(messages(&peal, "INTAKE_shop").await, 2);
}

/// Reads all of the feed, and returns the payloads in order.
async fn read_feed(client: &Client, id: &str) -> Vec<String> {
    let js = jetstream::with_domain(client.clone(), accounts::FEED_DOMAIN);
    let name = topology::feed_consumer(&app(id));
    let mut consumer: PullConsumer = js.get_consumer_from_stream(&name, topology::RECEIPTS).await.unwrap();
    let mut read = Vec::new();
    while consumer.info().await.unwrap().num_pending > 0 {
        let mut batch = consumer
            .fetch()
            .max_messages(50)
            .expires(Duration::from_secs(2))
            .messages()
            .await
            .unwrap();
        let before = read.len();
        while let Some(message) = batch.next().await {
            let message = message.unwrap();
            read.push(String::from_utf8(message.payload.to_vec()).unwrap());
            message.double_ack().await.unwrap();
        }
        // A pull that brought one message only would be an import without many answers.
        assert!(read.len() - before > 1, "{read:?}");
    }
    assert_eq!(consumer.info().await.unwrap().num_ack_pending, 0);
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn services_read_the_durable_feed_of_their_app_and_of_no_other() {
    let mesh = Mesh::start(two_apps(), &["eu"]).await.unwrap();
    let eu = mesh.region("eu");
    let peal = connect::jetstream(prepare(eu).await);
    let gateway = connect::jetstream(eu.connect(&Role::Gateway(region("eu"))).await.unwrap());
    for id in ["shop", "bank"] {
        topology::apply_intake(&gateway, &here("eu"), &tenant(id))
            .await
            .unwrap();
    }
    let service = eu.connect(&Role::Service(app("shop"))).await.unwrap();
    let mut live = service.subscribe("receipt.>").await.unwrap();
    subscribed(&service).await;
    let store = async |subject: &str, payload: String| {
        let stored = peal.publish(subject.to_owned(), payload.into()).await.unwrap();
        stored.await.unwrap();
    };
    for number in 0..3 {
        store("receipt.eu.eu.shop", format!("job {number}")).await;
        store("receipt.eu.eu.members.shop", format!("member {number}")).await;
        store("receipt.eu.eu.bank", format!("bank {number}")).await;
    }
    let expected: Vec<String> = (0..3)
        .flat_map(|n| [format!("job {n}"), format!("member {n}")])
        .collect();
    for one in &expected {
        let message = timeout(TIMEOUT, live.next()).await.unwrap().unwrap();
        assert_eq!(message.payload, one.as_bytes());
    }
    assert_eq!(read_feed(&service, "shop").await, expected);
    assert_eq!(read_feed(&service, "shop").await, Vec::<String>::new());

    // What is not acknowledged, and whoever else asks.
    let js = jetstream::with_domain(service.clone(), accounts::FEED_DOMAIN);
    let other: Result<PullConsumer, _> = js.get_consumer_from_stream("svc_bank", topology::RECEIPTS).await;
    assert!(other.is_err());
    assert!(js.get_stream(topology::NOTIFY).await.is_err());

    // Through the app's own server.
    let own = own_server(eu).await;
    let client = own.connect_without_key().await.unwrap();
    store("receipt.eu.eu.shop", "job 3".into()).await;
    store("receipt.eu.eu.shop", "job 4".into()).await;
    assert_eq!(read_feed(&client, "shop").await, ["job 3", "job 4"]);
    let mut live = client.subscribe("receipt.>").await.unwrap();
    // The subscription takes its time to the region.
    let seen = async {
        while timeout(Duration::from_millis(200), live.next()).await.is_err() {
            store("receipt.eu.eu.shop", "live".into()).await;
        }
    };
    timeout(TIMEOUT, seen).await.unwrap();
    let bank = eu.connect(&Role::Service(app("bank"))).await.unwrap();
    assert_eq!(read_feed(&bank, "bank").await, ["bank 0", "bank 1", "bank 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_services_publish_stays_in_its_region_and_says_who_sent_it() {
    let mesh = Mesh::start(two_apps(), &["eu", "us"]).await.unwrap();
    let (eu, us) = (mesh.region("eu"), mesh.region("us"));
    let (at_eu, at_us) = (prepare(eu).await, prepare(us).await);
    let service = eu.connect(&Role::Service(app("shop"))).await.unwrap();
    let js = connect::jetstream(service.clone());
    for _ in 0..10 {
        js.publish("send.shop", "{}".into()).await.unwrap().await.unwrap();
    }
    // Requests that gateways answer. There is a gateway in each region.
    let mut asked = answer_requests(eu).await;
    let mut elsewhere = answer_requests(us).await;
    let mut forged = HeaderMap::new();
    forged.insert("Nats-Request-Info", r#"{"acc":"bank"}"#);
    // From another region, with all permissions there.
    at_us
        .publish_with_headers("send.shop.now", forged.clone(), "forged".into())
        .await
        .unwrap();
    let request = timeout(TIMEOUT, elsewhere.recv()).await.unwrap().unwrap();
    assert_eq!(request.payload, "forged", "the forger's own region");
    let request = async_nats::Request::new().payload("mine".into()).headers(forged);
    let answer = timeout(TIMEOUT, service.send_request("send.shop.now", request)).await;
    assert_eq!(answer.unwrap().unwrap().payload, "answer");
    let request = timeout(TIMEOUT, asked.recv()).await.unwrap().unwrap();
    assert_eq!(request.payload, "mine", "nothing came from the other region");
    let info = request.headers.unwrap().get("Nats-Request-Info").unwrap().to_string();
    assert!(info.contains(r#""acc":"shop""#), "{info}");
    assert!(timeout(Duration::from_millis(500), elsewhere.recv()).await.is_err());
    assert_eq!(messages(&at_eu, "INTAKE_shop").await, 10);
    assert_eq!(messages(&at_us, "INTAKE_shop").await, 0);
}
