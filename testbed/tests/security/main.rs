//! Who may do what: every forbidden act is refused by real nats-servers, and whoever tries is told so.
//!
//! That the permissions are enough is what every other test of a whole mesh shows: all run under them.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{fs, time::Duration};

use async_nats::{Client, ConnectOptions, Event, HeaderMap};
use base64::{Engine, engine::general_purpose::STANDARD};
use edge_worker::EdgeWorker;
use futures::StreamExt;
use gateway::{
    Gateway,
    config::Settings,
    provision::{self, NewApp},
};
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    app::App,
    clock::Clock,
    id::{AppId, Region},
    lifecycle::Lifecycle,
    nats::{
        config,
        connect::{self, Nats},
        direct::{self, NoAnswer},
        follow,
        publish::{self, NotStored},
        roles::Role,
        topology::{self, Domain},
    },
    seal::MeshKey,
    site::Site,
    telemetry::Telemetry,
};
use testbed::{
    nats::{self, Keys, Mesh, Server},
    peal::{APP, Peal, Plan},
};
use tokio::{sync::mpsc, time::timeout};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nobody but the test's own user may use it, so that its refusal marks a place in the order of refusals.
const MARK: &str = "mark";

fn region(name: &str) -> Region {
    name.parse().unwrap()
}

fn app(name: &str) -> AppId {
    name.parse().unwrap()
}

fn settings() -> nats::Settings {
    nats::Settings::new(nats::from_env().unwrap())
}

/// A client of a role who tries things, and hears what the server says to that.
struct Intruder {
    client: Client,
    said: mpsc::UnboundedReceiver<String>,
}

impl Intruder {
    async fn new(nats: &Nats, role: &Role) -> Self {
        let (tell, said) = mpsc::unbounded_channel();
        let seed = fs::read_to_string(nats.nkey_file.as_ref().unwrap()).unwrap();
        let client = ConnectOptions::with_nkey(seed)
            .add_root_certificates(nats.ca_file.clone().unwrap())
            .add_client_certificate(nats.cert_file.clone().unwrap(), nats.key_file.clone().unwrap())
            .require_tls(true)
            .custom_inbox_prefix(role.inbox())
            .event_callback(move |event| {
                let told = if let Event::ServerError(error) = event {
                    tell.send(error.to_string()).is_ok()
                } else {
                    true
                };
                async move { assert!(told) }
            })
            .connect(&nats.url)
            .await
            .unwrap();
        Self { client, said }
    }

    async fn of(server: &Server, role: &Role) -> Self {
        Self::new(&server.nats(role).unwrap(), role).await
    }

    /// Whether the server refuses this publish.
    async fn is_refused(&mut self, subject: &str) -> bool {
        self.client.publish(subject.to_owned(), "{}".into()).await.unwrap();
        self.was_refused("Publish", subject).await
    }

    /// Whether the server refuses this subscription.
    async fn is_deaf(&mut self, subject: &str) -> bool {
        let subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
        let deaf = self.was_refused("Subscription", subject).await;
        drop(subscription);
        deaf
    }

    /// Refusals come in the order of what is refused.
    async fn was_refused(&mut self, what: &str, subject: &str) -> bool {
        self.client.publish(MARK, "".into()).await.unwrap();
        let mut refused = false;
        loop {
            let said = timeout(PATIENCE, self.said.recv()).await.unwrap().unwrap();
            if said.contains(&format!("Publish to \"{MARK}\"")) {
                return refused;
            }
            refused |= said.contains(&format!("{what} to \"{subject}\""));
        }
    }

    async fn is_refused_all(&mut self, who: &str, publishes: &[&str], subscriptions: &[&str]) {
        for subject in publishes {
            assert!(self.is_refused(subject).await, "{who} may publish to {subject}");
        }
        for subject in subscriptions {
            assert!(self.is_deaf(subject).await, "{who} may listen to {subject}");
        }
    }

    async fn may_all(&mut self, who: &str, publishes: &[&str]) {
        for subject in publishes {
            assert!(!self.is_refused(subject).await, "{who} may not publish to {subject}");
        }
    }
}

/// What a gateway of eu may not publish.
const NOT_FOR_GATEWAY: &[&str] = &[
    // Work, and whatever else workers say.
    "$JS.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
    "$JS.API.CONSUMER.MSG.NEXT.SCHEDULE.retry",
    "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
    "$JS.ACK.SCHEDULE.retry.1.1.1.1.0",
    "dead.push.eu.shop",
    "schedule.job.address",
    "due.push.eu.normal.shop",
    "receipt.eu.us.shop",
    // Streams and consumers of others, and what cannot be undone.
    "$JS.API.CONSUMER.CREATE.NOTIFY.mine",
    "$JS.API.CONSUMER.CREATE.NOTIFY.mine.notify.push.eu.normal.>",
    "$JS.API.CONSUMER.CREATE.KV_recipients.mine",
    "$JS.API.CONSUMER.DELETE.NOTIFY.push-normal",
    "$JS.API.STREAM.CREATE.MINE",
    "$JS.API.STREAM.DELETE.NOTIFY",
    "$JS.API.STREAM.PURGE.NOTIFY",
    "$JS.API.STREAM.MSG.DELETE.RECEIPTS",
    // Other regions, and regions that there are not.
    "receipt.us.us.shop",
    "directory.us.home.shop.ann",
    "idempotency.us.shop.key",
    "notify.push.ap.normal.shop",
    "notify.email.eu.normal.shop",
    "$JS.us.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
    "$JS.us.API.STREAM.UPDATE.NOTIFY",
    "$JS.us.API.STREAM.PURGE.DEAD",
    // Tenants.
    "$KV.config.app.shop",
    "$JS.hub.API.$KV.config.app.shop",
    "$JS.hub.API.STREAM.DELETE.KV_config",
    // What workers divide among themselves.
    "$KV.quota.project",
    "$JS.hub.API.$KV.quota.project",
];

/// What a worker of eu may not publish.
const NOT_FOR_WORKER: &[&str] = &[
    // Work, and whatever else gateways say.
    "notify.push.eu.normal.shop",
    "due.push.eu.normal.shop",
    "fact.us.shop.ann.profile",
    "directory.eu.home.shop.ann",
    "idempotency.eu.shop.key",
    "$KV.recipients.shop.ann.profile",
    "$KV.recipients.shop.ann.preferences",
    "$KV.config.app.shop",
    "$JS.hub.API.$KV.config.app.shop",
    // Other regions.
    "receipt.us.eu.shop",
    "dead.push.us.shop",
    "$JS.us.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
    "$JS.us.API.CONSUMER.INFO.NOTIFY.push-normal",
    "$JS.us.API.STREAM.PURGE.NOTIFY",
    "$JS.us.API.DIRECT.GET.KV_recipients",
    "$JS.us.API.$KV.quota.project",
    // Streams, and consumers beside its own.
    "$JS.API.STREAM.CREATE.NOTIFY",
    "$JS.API.STREAM.UPDATE.NOTIFY",
    "$JS.API.STREAM.DELETE.NOTIFY",
    "$JS.API.STREAM.MSG.DELETE.NOTIFY",
    "$JS.API.STREAM.MSG.DELETE.DEAD",
    "$JS.API.STREAM.PURGE.OUTBOX",
    "$JS.API.STREAM.PURGE.RECEIPTS",
    "$JS.API.STREAM.PURGE.SCHEDULE",
    "$JS.API.STREAM.PURGE.DEAD",
    "$JS.API.STREAM.PURGE.KV_recipients",
    "$JS.API.CONSUMER.CREATE.NOTIFY.mine",
    "$JS.API.CONSUMER.CREATE.NOTIFY.push-normal.notify.push.eu.normal.>",
    "$JS.API.CONSUMER.DELETE.NOTIFY.push-normal",
    "$JS.API.CONSUMER.MSG.NEXT.DEAD.alerts",
    "$JS.ACK.DEAD.alerts.1.1.1.1.0",
    "$JS.ACK.NOTIFY.other.1.1.1.1.0",
];

/// What a service of shop in eu may not publish.
const NOT_FOR_SERVICE: &[&str] = &[
    "notify.push.eu.normal.bank",
    "notify.push.us.urgent.bank",
    "notify.push.ap.normal.shop",
    "due.push.eu.normal.shop",
    "receipt.eu.eu.shop",
    "dead.push.eu.shop",
    "$KV.recipients.shop.ann.profile",
    "$KV.quota.project",
    "directory.eu.home.shop.ann",
    "$JS.API.STREAM.INFO.NOTIFY",
    "$JS.API.STREAM.MSG.GET.NOTIFY",
    "$JS.API.DIRECT.GET.RECEIPTS",
    "$JS.API.CONSUMER.CREATE.NOTIFY.mine",
    "$JS.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
    "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
];

/// What an operator may not publish.
const NOT_FOR_OPERATOR: &[&str] = &[
    "notify.push.eu.normal.shop",
    "receipt.eu.eu.shop",
    "dead.push.eu.shop",
    "$KV.recipients.shop.ann.profile",
    "$JS.us.API.$KV.recipients.shop.ann.profile",
    "directory.eu.home.shop.ann",
    "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
];

/// A mesh whose streams are there, so that an act that is not refused would be done.
async fn mesh() -> Peal {
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    Peal::start(plan).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_is_refused_what_is_not_its_own() {
    let peal = mesh().await;
    let (hub, eu) = (peal.nats.hub(), peal.nats.region("eu"));

    let mut gateway = Intruder::of(eu, &Role::Gateway(region("eu"))).await;
    gateway
        .may_all(
            "a gateway",
            &["notify.push.us.urgent.shop", "$JS.API.STREAM.INFO.NOTIFY"],
        )
        .await;
    let subscriptions = [
        ">",
        "notify.>",
        "$KV.recipients.>",
        "_INBOX.>",
        "_INBOX.eu.worker.>",
        "_INBOX.us.gateway.>",
    ];
    gateway
        .is_refused_all("a gateway", NOT_FOR_GATEWAY, &subscriptions)
        .await;

    let mut worker = Intruder::of(eu, &Role::Worker(region("eu"))).await;
    worker
        .may_all(
            "a worker",
            &["receipt.eu.us.shop", "$JS.API.CONSUMER.INFO.NOTIFY.push-bulk"],
        )
        .await;
    let subscriptions = [
        ">",
        "notify.>",
        "due.>",
        "_INBOX.>",
        "_INBOX.eu.gateway.>",
        "_INBOX.us.worker.>",
    ];
    worker.is_refused_all("a worker", NOT_FOR_WORKER, &subscriptions).await;

    let mut service = Intruder::of(eu, &Role::Service(region("eu"), app("shop"))).await;
    service
        .may_all("a service", &["notify.push.eu.bulk.shop", "notify.push.us.normal.shop"])
        .await;
    let subscriptions = [
        ">",
        "notify.>",
        "receipt.>",
        "_INBOX.>",
        "_INBOX.eu.gateway.>",
        "_INBOX.eu.service.bank.>",
        "receipt.eu.*.bank",
        "receipt.eu.*.members.bank",
        "receipt.eu.>",
        "dead.*.eu.bank",
    ];
    for own in ["receipt.eu.*.shop", "receipt.eu.*.members.shop", "dead.*.eu.shop"] {
        assert!(!service.is_deaf(own).await, "a service may not listen to {own}");
    }
    service
        .is_refused_all("a service", NOT_FOR_SERVICE, &subscriptions)
        .await;

    for server in [hub, eu] {
        let mut operator = Intruder::of(server, &Role::Operator(region("eu"))).await;
        operator
            .may_all("an operator", &["$JS.us.API.STREAM.INFO.NOTIFY"])
            .await;
        let subscriptions = [">", "notify.>", "_INBOX.>", "_INBOX.eu.gateway.>"];
        operator
            .is_refused_all("an operator", NOT_FOR_OPERATOR, &subscriptions)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_right_key_and_certificate() {
    let mesh = Mesh::start(settings(), &["eu"]).await.unwrap();
    let (eu, role) = (mesh.region("eu"), Role::Gateway(region("eu")));
    let good = eu.nats(&role).unwrap();
    connect::connect(&good, &role, "test").await.unwrap();

    let strangers = Keys::generate().unwrap();
    let of_strangers = strangers.of(&role).unwrap().file;
    let (ca, cert, key) = (strangers.ca(), strangers.cert(), strangers.key());
    let bad: [(&str, Nats); 7] = [
        (
            "another key",
            Nats {
                nkey_file: Some(of_strangers),
                ..good.clone()
            },
        ),
        (
            "another region's key",
            Nats {
                nkey_file: mesh.hub().nats(&Role::Gateway(region("us"))).unwrap().nkey_file,
                ..good.clone()
            },
        ),
        (
            "no key",
            Nats {
                nkey_file: None,
                ..good.clone()
            },
        ),
        (
            "no certificate",
            Nats {
                cert_file: None,
                key_file: None,
                ..good.clone()
            },
        ),
        (
            "a certificate that nobody vouches for",
            Nats {
                cert_file: Some(cert),
                key_file: Some(key),
                ..good.clone()
            },
        ),
        (
            "a server that nobody vouches for",
            Nats {
                ca_file: Some(ca),
                ..good.clone()
            },
        ),
        (
            "half a certificate",
            Nats {
                key_file: None,
                ..good.clone()
            },
        ),
    ];
    for (why, nats) in bad {
        let refused = timeout(PATIENCE, connect::connect(&nats, &role, "test")).await.unwrap();
        assert!(refused.is_err(), "{why}");
    }
}

/// What stands in the region's way to another region, taken away as by somebody who has its servers.
fn without_denials() -> Vec<(String, String)> {
    let config = include_str!("../../../deploy/nats/region.conf");
    ["deny_exports: [", "deny_imports: ["]
        .map(|list| {
            let (_, rest) = config.split_once(list).unwrap();
            let (denied, _) = rest.split_once(']').unwrap();
            (format!("{list}{denied}]"), String::new())
        })
        .to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_lets_no_region_speak_for_another() {
    let settings = nats::Settings {
        edits: without_denials(),
        ..settings()
    };
    let mesh = Mesh::start(settings, &["eu", "us"]).await.unwrap();
    let eu = mesh.region("eu").connect_as_test().await.unwrap();
    let hub = mesh.hub().connect_as_test().await.unwrap();
    let us = mesh.region("us").connect_as_test().await.unwrap();
    let forbidden = [
        "notify.push.us.normal.shop",
        "due.push.us.normal.shop",
        "receipt.us.us.shop",
        "dead.push.us.shop",
        "directory.us.home.shop.ann",
        "idempotency.us.shop.key",
        "$KV.recipients.shop.ann.profile",
        "$KV.config.app.shop",
        "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
        "$JS.API.STREAM.DELETE.NOTIFY",
    ];
    let of_regions = [
        "$JS.us.API.STREAM.DELETE.NOTIFY",
        "$JS.us.API.STREAM.PURGE.NOTIFY",
        "$JS.us.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
        "$JS.us.API.CONSUMER.CREATE.NOTIFY.mine",
        "$JS.hub.API.STREAM.DELETE.KV_config",
        "$JS.hub.API.$KV.config.app.shop",
    ];
    // From a region to the hub and on, and from the hub to a region.
    for (from, to, inbox, more) in [
        (&eu, &hub, "_INBOX.hub.test", &of_regions[..]),
        (&eu, &us, "_INBOX.us.test", &of_regions[..4]),
        (&hub, &us, "_INBOX.us.test", &[]),
    ] {
        let mut heard = Vec::new();
        for subject in forbidden.iter().chain(more).chain([&inbox]) {
            heard.push(to.subscribe(*subject).await.unwrap());
        }
        let mut heard = futures::stream::select_all(heard);
        // The last subscription is known when its first message comes, and the others are then known too.
        timeout(PATIENCE, async {
            loop {
                from.publish(inbox, "known".into()).await.unwrap();
                if timeout(Duration::from_millis(100), heard.next()).await.is_ok() {
                    break;
                }
            }
        })
        .await
        .unwrap();
        for subject in forbidden.iter().chain(more) {
            from.publish(*subject, "forged".into()).await.unwrap();
        }
        from.publish(inbox, "last".into()).await.unwrap();
        loop {
            let message = timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
            assert_eq!(message.subject.as_str(), inbox);
            if message.payload == "last" {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_lets_in_no_region_that_it_does_not_know() {
    let mesh = Mesh::start(settings(), &["eu"]).await.unwrap();
    let role = nats::Role::Region {
        hub: mesh.hub().leaf_url(),
    };
    let ap = Server::start(settings(), mesh.keys().clone(), "ap", role)
        .await
        .unwrap();
    let refused = async {
        while !fs::read_to_string(ap.log_path())
            .unwrap()
            .contains("Authorization Violation")
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_error_and_no_silence() {
    let peal = mesh().await;
    let eu = peal.nats.region("eu");
    let js = connect::jetstream(eu.connect(&Role::Service(region("eu"), app("shop"))).await.unwrap());
    let store = async |subject: &str| {
        let stored = publish::store(&js, subject.to_owned(), HeaderMap::new(), "{}".into()).await;
        stored.map(|stored| stored.stream)
    };
    assert_eq!(store("notify.push.eu.normal.bank").await, Err(NotStored::Forbidden));
    // One refusal ends the wait of all who wait for the same, and of nobody else.
    let many = (0..2000).map(|number| {
        let shop = number % 2 == 0;
        let subject = format!("notify.push.us.bulk.{}", if shop { "shop" } else { "bank" });
        let store = &store;
        async move { (shop, store(&subject).await) }
    });
    for (shop, stored) in futures::future::join_all(many).await {
        let expected = if shop {
            Ok(topology::OUTBOX.to_owned())
        } else {
            Err(NotStored::Forbidden)
        };
        assert_eq!(stored, expected);
    }
    let error = follow::standing(&js, topology::RECEIPTS).await.unwrap_err().to_string();
    assert!(
        error.contains("permission denied for $JS.API.STREAM.INFO.RECEIPTS"),
        "{error}"
    );
    let error = follow::follow(&js, topology::RECEIPTS, ">", 1).await.err().unwrap();
    assert!(error.to_string().contains("permission denied for"), "{error}");
    let found = direct::last_of(&js, &Domain::Here, topology::RECIPIENTS, &["x".to_owned()]).await;
    assert!(matches!(found, Err(NoAnswer::Forbidden)));
    // The hub's tenants are written by an operator there.
    let hub = provision::hub(eu.connect(&Role::Gateway(region("eu"))).await.unwrap());
    let forged = config::put_app(&hub, &tenants(&peal).await).await;
    assert_eq!(forged, Err(NotStored::Forbidden));
}

/// The app that the mesh has.
async fn tenants(peal: &Peal) -> App {
    let hub = provision::hub(peal.connect_as_operator().await.unwrap());
    let tenants = config::read(&hub).await.unwrap();
    App::clone(&tenants.apps[&app(APP)])
}

/// A gateway's settings, for whoever has this key.
fn gateway_settings(nats: Nats) -> Settings {
    let mut settings = Settings::load(None).unwrap();
    settings.listen = "127.0.0.1:0".parse().unwrap();
    settings.mesh_key = STANDARD.encode([7; 32]).into();
    settings.nats = nats;
    settings.mesh.region = region("eu");
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_the_key_of_another_role_ends_at_once_and_says_why() {
    let mesh = Mesh::start(settings(), &["eu"]).await.unwrap();
    let eu = mesh.region("eu");
    let lifecycle = Lifecycle::default();
    let (gateway, worker) = (Role::Gateway(region("eu")), Role::Worker(region("eu")));

    let settings = gateway_settings(eu.nats(&worker).unwrap());
    let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", "test", &region("eu")).unwrap();
    let started = Gateway::start(settings, telemetry.clone(), Clock::system(), &lifecycle).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("permission denied for _INBOX.eu.gateway."), "{error}");

    let mut settings: edge_worker::config::Settings =
        shared::settings::load(edge_worker::config::DEFAULTS, None).unwrap();
    let data = tempfile::tempdir().unwrap();
    settings.data = data.path().to_owned();
    settings.mesh_key = STANDARD.encode([7; 32]).into();
    settings.nats = eu.nats(&gateway).unwrap();
    settings.mesh.region = region("eu");
    let started = EdgeWorker::start(settings, telemetry, Clock::system(), &lifecycle).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("permission denied for _INBOX.eu.worker."), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_told_that_the_gateway_lacks_a_permission() {
    let settings = nats::Settings {
        edits: vec![("\"notify.push.eu.normal.>\"".into(), String::new())],
        ..settings()
    };
    let mesh = Mesh::start(settings, &["eu"]).await.unwrap();
    let operator = mesh.hub().connect(&Role::Operator(region("hub"))).await.unwrap();
    let hub = provision::hub(operator);
    provision::prepare_hub(&hub, 1).await.unwrap();
    let settings = gateway_settings(mesh.region("eu").nats(&Role::Gateway(region("eu"))).unwrap());
    let lifecycle = Lifecycle::default();
    let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", "test", &region("eu")).unwrap();
    let mesh_key = MeshKey::from_base64(settings.mesh_key.reveal()).unwrap();
    let shop = NewApp {
        id: app("shop"),
        default_region: region("eu"),
        residency: None,
        ambiguity: std::collections::BTreeMap::new(),
        alerts: None,
        apns: None,
        fcm: None,
    };
    provision::write_region(&hub, &region("eu"), &Site::default())
        .await
        .unwrap();
    let keys = provision::write_app(&hub, &mesh_key, &shop, &[Scope::ALL.to_vec()])
        .await
        .unwrap();
    let gateway = Gateway::start(settings, telemetry, Clock::system(), &lifecycle)
        .await
        .unwrap();

    let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    let send = async |class: &str| {
        let body = json!({ "to": { "recipients": ["ann"] }, "class": class, "push": { "title": "Hi" } });
        let url = format!("http://{}/v1/notifications", gateway.addr());
        let answer = http.post(url).bearer_auth(&keys[0]).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    // Until the gateway knows the key.
    let known = async { while matches!(send("urgent").await.0, 401 | 503) {} };
    timeout(PATIENCE, known).await.unwrap();
    assert_eq!(send("urgent").await.0, 202);
    let (status, problem) = send("normal").await;
    assert_eq!(
        (status, &problem["code"]),
        (500, &json!("gateway_not_permitted")),
        "{problem}"
    );
}
