//! What each role may do, and that it may do nothing else.

use std::fs;

use async_nats::{Client, ConnectOptions, Event};
use shared::nats::{connect::Nats, roles::Role};
use testbed::nats::Server;
use tokio::{sync::mpsc, time::timeout};

use crate::rig::{PATIENCE, app, mesh, region};

/// Nobody but the test's own user may use it, so that its refusal marks a place in the order of refusals.
const MARK: &str = "mark";

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
