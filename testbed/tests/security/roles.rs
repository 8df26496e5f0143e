//! What each role may do, and that it may do nothing else.

use std::fs;

use async_nats::{Client, ConnectOptions, Event};
use shared::nats::{connect::Nats, roles::Role};
use testbed::nats::Server;
use tokio::{sync::mpsc, time::timeout};

use crate::rig::{TIMEOUT, mesh, region};

/// No role may publish here, so that its refusal marks a place in the order of refusals.
const MARK_SUBJECT: &str = "mark";

/// A client with a role's key that tries forbidden acts, and the errors that the server sends it.
pub(crate) struct Intruder {
    client: Client,
    errors: mpsc::UnboundedReceiver<String>,
}

impl Intruder {
    async fn new(nats: &Nats, role: &Role) -> Self {
        let (report, errors) = mpsc::unbounded_channel();
        let seed = fs::read_to_string(nats.nkey_file.as_ref().unwrap()).unwrap();
        let client = ConnectOptions::with_nkey(seed)
            .add_root_certificates(nats.ca_file.clone().unwrap())
            .add_client_certificate(nats.cert_file.clone().unwrap(), nats.key_file.clone().unwrap())
            .require_tls(true)
            .custom_inbox_prefix(role.inbox())
            .event_callback(move |event| {
                let reported = if let Event::ServerError(error) = event {
                    report.send(error.to_string()).is_ok()
                } else {
                    true
                };
                async move { assert!(reported) }
            })
            .connect(&nats.url)
            .await
            .unwrap();
        Self { client, errors }
    }

    pub(crate) async fn of(server: &Server, role: &Role) -> Self {
        Self::new(&server.nats(role).unwrap(), role).await
    }

    /// Whether the server refuses this publish.
    async fn is_publish_refused(&mut self, subject: &str) -> bool {
        self.client.publish(subject.to_owned(), "{}".into()).await.unwrap();
        self.was_refused("Publish", subject).await
    }

    /// Whether the server refuses this subscription.
    async fn is_subscribe_refused(&mut self, subject: &str) -> bool {
        let subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
        let refused = self.was_refused("Subscription", subject).await;
        drop(subscription);
        refused
    }

    /// Whether the server has refused this act. Refusals arrive in the order of the acts, so it has if it does so
    /// before the mark.
    async fn was_refused(&mut self, what: &str, subject: &str) -> bool {
        self.client.publish(MARK_SUBJECT, "".into()).await.unwrap();
        let mut refused = false;
        loop {
            let error = timeout(TIMEOUT, self.errors.recv()).await.unwrap().unwrap();
            if error.contains(&format!("Publish to \"{MARK_SUBJECT}\"")) {
                return refused;
            }
            refused |= error.contains(&format!("{what} to \"{subject}\""));
        }
    }

    pub(crate) async fn assert_forbidden(&mut self, who: &str, publishes: &[&str], subscriptions: &[&str]) {
        for subject in publishes {
            assert!(self.is_publish_refused(subject).await, "{who} may publish to {subject}");
        }
        for subject in subscriptions {
            assert!(
                self.is_subscribe_refused(subject).await,
                "{who} may subscribe to {subject}"
            );
        }
    }

    async fn assert_allowed(&mut self, who: &str, publishes: &[&str]) {
        for subject in publishes {
            assert!(
                !self.is_publish_refused(subject).await,
                "{who} may not publish to {subject}"
            );
        }
    }
}

/// Subjects to which a gateway of eu may not publish.
const FORBIDDEN_TO_GATEWAY: &[&str] = &[
    // Taking work, and whatever only workers publish.
    "$JS.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
    "$JS.API.CONSUMER.MSG.NEXT.SCHEDULE.retry",
    "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
    "$JS.ACK.SCHEDULE.retry.1.1.1.1.0",
    "dead.push.eu.shop",
    "schedule.job.address",
    "due.push.eu.normal.shop",
    "receipt.eu.us.shop",
    // Streams and consumers of others, and acts that cannot be undone.
    "$JS.API.CONSUMER.CREATE.NOTIFY.mine",
    "$JS.API.CONSUMER.CREATE.NOTIFY.mine.notify.push.eu.normal.>",
    "$JS.API.CONSUMER.CREATE.KV_recipients.mine",
    "$JS.API.CONSUMER.DELETE.NOTIFY.push-normal",
    "$JS.API.STREAM.CREATE.MINE",
    "$JS.API.STREAM.DELETE.NOTIFY",
    "$JS.API.STREAM.DELETE.KV_recipients",
    "$JS.API.STREAM.PURGE.NOTIFY",
    "$JS.API.STREAM.PURGE.KV_config",
    "$JS.API.STREAM.MSG.DELETE.RECEIPTS",
    // Other regions, and regions that do not exist.
    "receipt.us.us.shop",
    "directory.us.home.shop.ann",
    "directory.us.suppressed.shop.7c9e6679742580de944be07fc1f90ae7",
    "directory.us.suppressed.mark",
    "idempotency.us.shop.key",
    "notify.push.ap.normal.shop",
    "notify.fax.eu.normal.shop",
    "$JS.us.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
    "$JS.us.API.STREAM.UPDATE.NOTIFY",
    "$JS.us.API.STREAM.PURGE.DEAD",
    "ask.eu",
    "_INBOX.us.worker.1",
    // Tenants.
    "$KV.config.app.shop",
    "$JS.hub.API.$KV.config.app.shop",
    "$JS.hub.API.STREAM.DELETE.KV_config",
    // The quotas that workers share.
    "$KV.quota.project",
    "$JS.hub.API.$KV.quota.project",
    // What workers have spent.
    "spend.shop.cap.0",
    "$JS.API.STREAM.PURGE.SPEND",
    "$JS.API.STREAM.MSG.DELETE.SPEND",
    // What waits for its time in other regions.
    "$JS.us.API.planned.wait.shop.id",
    "$JS.us.API.STREAM.PURGE.PLANNED",
    "$JS.us.API.CONSUMER.MSG.NEXT.PLANNED.due_shop",
    "$JS.API.STREAM.DELETE.PLANNED",
];

/// Subjects to which a worker of eu may not publish.
const FORBIDDEN_TO_WORKER: &[&str] = &[
    // Handing out work, and whatever only gateways publish.
    "notify.push.eu.normal.shop",
    "due.push.eu.normal.shop",
    "fact.us.shop.ann.profile",
    "directory.eu.home.shop.ann",
    "directory.eu.suppressed.shop.7c9e6679742580de944be07fc1f90ae7",
    "directory.eu.suppressed.mark",
    "idempotency.eu.shop.key",
    "$KV.recipients.shop.ann.profile",
    "$KV.recipients.shop.ann.preferences",
    "planned.wait.shop.id",
    "planned.due.shop.id",
    "planned.fate.shop.id",
    "$JS.API.CONSUMER.MSG.NEXT.PLANNED.due_shop",
    "$JS.ACK.PLANNED.due_shop.1.1.1.1.0",
    "$JS.API.DIRECT.GET.PLANNED",
    "$JS.API.STREAM.PURGE.PLANNED",
    "$KV.config.app.shop",
    "$JS.hub.API.$KV.config.app.shop",
    // Other regions.
    "receipt.us.eu.shop",
    "dead.push.us.shop",
    "ask.us",
    "$JS.us.API.CONSUMER.MSG.NEXT.NOTIFY.push-normal",
    "$JS.us.API.CONSUMER.INFO.NOTIFY.push-normal",
    "$JS.us.API.STREAM.PURGE.NOTIFY",
    "$JS.us.API.DIRECT.GET.KV_recipients",
    "$JS.us.API.$KV.quota.project",
    "$JS.us.API.spend.shop.cap.0",
    "$JS.us.API.STREAM.MSG.GET.SPEND",
    // Streams, and consumers other than its own.
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
    "$JS.API.STREAM.PURGE.SPEND",
    "$JS.API.STREAM.DELETE.SPEND",
    "$JS.API.STREAM.MSG.DELETE.SPEND",
    "$JS.API.CONSUMER.CREATE.NOTIFY.mine",
    "$JS.API.CONSUMER.CREATE.NOTIFY.push-normal.notify.push.eu.normal.>",
    "$JS.API.CONSUMER.DELETE.NOTIFY.push-normal",
    "$JS.API.CONSUMER.MSG.NEXT.DEAD.alerts",
    "$JS.ACK.DEAD.alerts.1.1.1.1.0",
    "$JS.ACK.NOTIFY.other.1.1.1.1.0",
];

/// Subjects to which an operator may not publish.
const FORBIDDEN_TO_OPERATOR: &[&str] = &[
    "notify.push.eu.normal.shop",
    "receipt.eu.eu.shop",
    "dead.push.eu.shop",
    "spend.shop.cap.0",
    "planned.wait.shop.id",
    "planned.fate.shop.id",
    "$KV.recipients.shop.ann.profile",
    "$JS.us.API.$KV.recipients.shop.ann.profile",
    "directory.eu.home.shop.ann",
    "directory.eu.suppressed.shop.7c9e6679742580de944be07fc1f90ae7",
    "$JS.ACK.NOTIFY.push-normal.1.1.1.1.0",
];

#[tokio::test(flavor = "multi_thread")]
async fn each_role_is_refused_everything_beyond_its_permissions() {
    let peal = mesh().await;
    let (hub, eu) = (peal.nats.hub(), peal.nats.region("eu"));

    let mut gateway = Intruder::of(eu, &Role::Gateway(region("eu"))).await;
    gateway
        .assert_allowed(
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
        .assert_forbidden("a gateway", FORBIDDEN_TO_GATEWAY, &subscriptions)
        .await;

    let mut worker = Intruder::of(eu, &Role::Worker(region("eu"))).await;
    worker
        .assert_allowed(
            "a worker",
            &[
                "receipt.eu.us.shop",
                "spend.shop.cap.0",
                "$JS.API.CONSUMER.INFO.NOTIFY.push-bulk",
            ],
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
    worker
        .assert_forbidden("a worker", FORBIDDEN_TO_WORKER, &subscriptions)
        .await;

    for server in [hub, eu] {
        let mut operator = Intruder::of(server, &Role::Operator(region("eu"))).await;
        operator
            .assert_allowed("an operator", &["$JS.us.API.STREAM.INFO.NOTIFY"])
            .await;
        let subscriptions = [">", "notify.>", "_INBOX.>", "_INBOX.eu.gateway.>"];
        operator
            .assert_forbidden("an operator", FORBIDDEN_TO_OPERATOR, &subscriptions)
            .await;
    }
}
