//! The permissions of each role, built from the same names as streams and subjects. [`super::accounts`] puts
//! them into the configuration of a nats-server.
//!
//! The server refuses everything that a role is not permitted. Inboxes are named by region and role, so that no role can
//! read the answers to another.
//!
//! A server reports the hops of a traced message in the name of its publisher, and refuses the message if the publisher
//! may not publish that report.

use std::time::Duration;

use super::{
    accounts, config,
    subject::{self, TRACE_HOPS},
    topology::{
        self, ALERTS_CONSUMER, CONFIG, CONFIG_BUCKET, DEAD, DIRECTORY, Domain, Durability, FEEDBACK, HUB, IDEMPOTENCY,
        INTAKE_CONSUMER, MOVED_CONSUMER, Mesh, NOTIFY, PLANNED, QUOTA, RECEIPTS, RECIPIENTS, RegionSettings, SCHEDULE,
        SPEND, consumers, work_for, workers_consumers,
    },
};
use crate::{
    channel::Channel,
    id::{AppId, Region},
};

/// The role of a client of a region's servers, or of the hub's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Accepts notifications, keeps facts, and keeps the region's streams as they should be.
    Gateway(Region),
    /// Delivers the jobs of its region.
    Worker(Region),
    /// A worker of the second region that stands by to help the first.
    Helper(Region, Region),
    /// A service of one app, or the app's own leaf node, in the app's own account.
    Service(AppId),
    /// A service as 0.1 has it: in Peal's account, where it publishes jobs of one app onto the workers' subjects.
    FormerService(Region, AppId),
    /// A person who administers and reads streams: at the hub those of the whole mesh, in a region those of the region.
    Operator(Region),
    /// Writes apps, keys and regions into the hub's configuration, for operators and apps who show a key for it.
    Admin,
    /// The servers of a region, as the hub sees them.
    Leaf(Region),
}

/// Subjects that a role may use; the server refuses all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects to which it may publish.
    pub publish: Vec<String>,
    /// Subjects to which it may subscribe.
    pub subscribe: Vec<String>,
    /// Whether it may answer requests, once each and within [`ANSWER_WITHIN`], on whatever subject they name for answers.
    pub answers: bool,
}

/// How long a role that answers requests may take for an answer; longer than a gateway works on a request.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(12);

/// Who takes part in a mesh: all that permissions depend on.
#[derive(Debug, Clone, Default)]
pub struct Parties {
    /// Every region.
    pub regions: Vec<Region>,
    /// The apps that have services.
    pub apps: Vec<AppId>,
    /// Whether programs of 0.1 run in the mesh too, during an upgrade. They need more than programs of this version.
    pub beside_former: bool,
}

impl Role {
    /// The prefix of this role's inboxes.
    pub fn inbox(&self) -> String {
        match self {
            Self::Gateway(region) => format!("_INBOX.{region}.gateway"),
            Self::Worker(region) => format!("_INBOX.{region}.worker"),
            Self::Helper(region, from) => format!("_INBOX.{region}.helper.{from}"),
            // The usual prefix: the account has no other roles.
            Self::Service(_) => "_INBOX".to_owned(),
            Self::FormerService(region, app) => format!("_INBOX.{region}.service.{app}"),
            Self::Operator(region) => format!("_INBOX.{region}.operator"),
            Self::Admin => format!("_INBOX.{HUB}.admin"),
            Self::Leaf(region) => format!("_INBOX.{region}"),
        }
    }

    /// Its name in files of keys, such as `gateway-eu`. A worker has one name at home and where it helps.
    pub fn title(&self) -> String {
        match self {
            Self::Gateway(region) => format!("gateway-{region}"),
            Self::Worker(region) | Self::Helper(_, region) => format!("worker-{region}"),
            Self::Service(app) => format!("app-{app}"),
            Self::FormerService(_, app) => format!("service-{app}"),
            Self::Operator(_) => "operator".to_owned(),
            Self::Admin => "admin".to_owned(),
            Self::Leaf(region) => format!("leaf-{region}"),
        }
    }

    /// The environment variable from which a nats-server reads the public key of this role, such as `PEAL_NKEY_GATEWAY`.
    pub fn variable(&self) -> String {
        let name = match self {
            Self::Gateway(_) => "GATEWAY".to_owned(),
            Self::Worker(_) => "WORKER".to_owned(),
            Self::Helper(_, from) => format!("HELPER_{from}"),
            Self::Service(app) => format!("APP_{app}"),
            Self::FormerService(_, app) => format!("SERVICE_{app}"),
            Self::Operator(_) => "OPERATOR".to_owned(),
            Self::Admin => "ADMIN".to_owned(),
            Self::Leaf(region) => format!("LEAF_{region}"),
        };
        format!("PEAL_NKEY_{}", name.to_uppercase().replace('-', "_"))
    }

    /// The permissions of this role in a mesh of `parties`.
    pub fn permissions(&self, parties: &Parties) -> Permissions {
        let mesh = |here: &Region| Mesh {
            here: RegionSettings {
                region: here.clone(),
                durability: Durability::default(),
                max_bytes: -1,
                intake_max_bytes: -1,
            },
            regions: parties.regions.clone(),
        };
        let inbox = format!("{}.>", self.inbox());
        let (publish, subscribe) = match self {
            Self::Gateway(here) => {
                let mut allowed = gateway(&mesh(here), &parties.apps);
                if parties.beside_former {
                    allowed.extend(former_gateway(&mesh(here)));
                }
                (
                    allowed,
                    [vec![inbox, subject::ask(here)], requests_of_services()].concat(),
                )
            }
            Self::Worker(here) => {
                let mut allowed = [worker(&mesh(here)), quotas()].concat();
                // It has its gateways write again what the bucket of recipients has lost.
                allowed.push(subject::ask(here));
                if parties.beside_former {
                    allowed.extend(former_worker(&mesh(here)));
                }
                (allowed, vec![inbox, subject::alive_filter(here)])
            }
            Self::Helper(here, _) => (worker(&mesh(here)), vec![inbox, subject::alive_filter(here)]),
            Self::Service(app) => accounts::service(app),
            Self::FormerService(here, app) => (
                former_service(&mesh(here), app),
                [
                    vec![inbox, subject::dead_of(here, app)],
                    subject::receipts_of(here, app).to_vec(),
                ]
                .concat(),
            ),
            // The region in its settings does not matter: at the hub an operator works for all regions.
            Self::Operator(here) => (
                operator(here),
                [&["_INBOX.*.operator.>", "$JS.EVENT.>"], TRACES]
                    .concat()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
            ),
            Self::Admin => (admin(), vec![inbox, subject::ADMIN_FILTER.to_owned()]),
            Self::Leaf(there) => leaf(&mesh(there), inbox, parties.beside_former),
        };
        Permissions {
            publish,
            subscribe,
            answers: matches!(self, Self::Gateway(_)),
        }
    }
}

/// The reports of hops: those of Peal's account, and those of apps.
const TRACES: &[&str] = &[TRACE_HOPS, subject::TRACE_HOPS_OF_APPS];

impl Mesh {
    /// Every region, this one first.
    fn all(&self) -> impl Iterator<Item = &Region> {
        std::iter::once(&self.here.region).chain(self.others())
    }
}

fn gateway(mesh: &Mesh, apps: &[AppId]) -> Vec<String> {
    let here = &mesh.here.region;
    // What it publishes.
    let mut allowed: Vec<String> = mesh.all().flat_map(work_for).collect();
    allowed.extend(mesh.others().map(subject::fact_filter));
    allowed.extend([
        subject::FACTS_FILTER.to_owned(),
        subject::directory_filter(here),
        subject::idempotency_filter(here),
        subject::receipt_origin_filter(here, here),
        subject::feedback_filter(here),
        TRACE_HOPS.to_owned(),
    ]);
    // It creates and updates streams and consumers, each by name, and removes none.
    for stream in mesh.streams() {
        for verb in ["INFO", "CREATE", "UPDATE"] {
            allowed.push(api(Domain::Here, &format!("STREAM.{verb}.{}", stream.name)));
        }
    }
    for (stream, config) in consumers(here, true) {
        let name = config.durable_name.unwrap_or_default();
        let create = format!("CONSUMER.CREATE.{stream}.{name}.{}", config.filter_subject);
        allowed.push(api(Domain::Here, &create));
        allowed.push(api(Domain::Here, &format!("CONSUMER.INFO.{stream}.{name}")));
    }
    // Dead letters of what breaks a rule. The intake of each app, which all gateways of the region work off, and the status feed
    // of each app.
    allowed.push(subject::dead_refused_filter(here));
    allowed.push(api(Domain::Here, "STREAM.NAMES"));
    for app in apps {
        let stream = topology::intake(app);
        for verb in ["INFO", "CREATE", "UPDATE", "PURGE", "DELETE"] {
            allowed.push(api(Domain::Here, &format!("STREAM.{verb}.{stream}")));
        }
        allowed.push(api(
            Domain::Here,
            &format!("CONSUMER.CREATE.{stream}.{INTAKE_CONSUMER}.>"),
        ));
        allowed.extend(consume(&stream, INTAKE_CONSUMER));
        let feed = topology::feed_consumer(app);
        allowed.push(api(Domain::Here, &format!("CONSUMER.CREATE.{RECEIPTS}.{feed}")));
        allowed.push(api(Domain::Here, &format!("CONSUMER.INFO.{RECEIPTS}.{feed}")));
    }
    allowed.extend(planned());
    // What it reads here.
    allowed.extend([DIRECTORY, CONFIG, RECEIPTS].into_iter().flat_map(follow));
    allowed.extend([RECEIPTS, FEEDBACK, IDEMPOTENCY, DIRECTORY].map(|stream| direct(Domain::Here, stream)));
    allowed.extend(consume(DEAD, ALERTS_CONSUMER));
    // Dead letters and facts. It asks the gateways of other regions for theirs, and answers them.
    allowed.extend(dead_and_facts(Domain::Here));
    for other in mesh.others() {
        allowed.push(subject::ask(other));
        allowed.push(format!("{}.>", Role::Gateway(other.clone()).inbox()));
    }
    // What its facts and directory hold at this moment: only the leader of a stream knows.
    allowed.extend([RECIPIENTS, DIRECTORY].map(newest));
    // It relays writes of apps.
    allowed.push(subject::admin(here));
    // Jobs whose recipients moved, from its workers.
    allowed.extend(consume(SCHEDULE, MOVED_CONSUMER));
    // It asks how much of its outbox they have copied.
    allowed.extend(mesh.others().map(outbox_copied));
    // It checks that the origins of its sources exist.
    allowed.extend(origins(mesh).map(|(prefix, stream)| format!("{prefix}.STREAM.INFO.{stream}")));
    allowed
}

/// What waits for its time, and its consumers, one for each app: nobody else may touch it.
fn planned() -> Vec<String> {
    let requests = [
        "CONSUMER.NAMES.PLANNED",
        "CONSUMER.CREATE.PLANNED.>",
        "CONSUMER.INFO.PLANNED.*",
        "CONSUMER.DELETE.PLANNED.*",
        "CONSUMER.MSG.NEXT.PLANNED.*",
        "STREAM.PURGE.PLANNED",
    ];
    let mut allowed: Vec<String> = requests.iter().map(|request| api(Domain::Here, request)).collect();
    allowed.extend([
        subject::PLANNED_FILTER.to_owned(),
        format!("$JS.ACK.{PLANNED}.>"),
        direct(Domain::Here, PLANNED),
        newest(PLANNED),
    ]);
    allowed
}

/// The requests of services, and the questions that every NATS micro service answers.
fn requests_of_services() -> Vec<String> {
    let questions = ["PING", "INFO", "STATS"];
    let questions = questions
        .iter()
        .flat_map(|verb| [format!("$SRV.{verb}"), format!("$SRV.{verb}.>")]);
    std::iter::once(subject::SEND_NOW_FILTER.to_owned())
        .chain(questions)
        .collect()
}

/// What gateways of 0.1 need in addition: they create these consumers for all channels.
fn former_gateway(mesh: &Mesh) -> Vec<String> {
    let consumers = [
        (topology::retry_consumer(Channel::Push), subject::DUE_FILTER),
        (topology::spill_consumer(Channel::Push), subject::SPILL_FILTER),
    ];
    let mut allowed: Vec<String> = consumers
        .into_iter()
        .map(|(name, filter)| api(Domain::Here, &format!("CONSUMER.CREATE.{SCHEDULE}.{name}.{filter}")))
        .collect();
    // They read facts and dead letters of other regions themselves.
    for other in mesh.others() {
        allowed.extend(dead_and_facts(Domain::Region(other)));
    }
    allowed
}

/// Workers of 0.1 publish the jobs of recipients who moved to another region themselves.
fn former_worker(mesh: &Mesh) -> Vec<String> {
    mesh.others().flat_map(work_for).collect()
}

fn worker(mesh: &Mesh) -> Vec<String> {
    let here = &mesh.here.region;
    let mut allowed = vec![
        // What it publishes: its presence, receipts, dead letters, retries, slices, jobs whose recipients moved, what it
        // spends, and removals of addresses.
        subject::alive_filter(here),
        subject::receipt_filter(here),
        subject::dead_filter(here),
        subject::SCHEDULE_FILTER.to_owned(),
        subject::SLICE_FILTER.to_owned(),
        subject::SPLIT_FILTER.to_owned(),
        subject::MOVED_FILTER.to_owned(),
        subject::SPEND_FILTER.to_owned(),
        subject::ADDRESSES_FILTER.to_owned(),
        subject::directory_owner_filter(here),
        TRACE_HOPS.to_owned(),
    ];
    for stream in mesh.streams() {
        allowed.push(api(Domain::Here, &format!("STREAM.INFO.{}", stream.name)));
    }
    // The work of its region. Purging finished work loses no more than acknowledging it, which is permitted anyway.
    for (stream, config) in workers_consumers(here) {
        allowed.extend(consume(stream, &config.durable_name.unwrap_or_default()));
    }
    allowed.push(api(Domain::Here, &format!("STREAM.PURGE.{NOTIFY}")));
    // What it reads.
    allowed.extend([RECIPIENTS, CONFIG, RECEIPTS, DIRECTORY].into_iter().flat_map(follow));
    allowed.extend([NOTIFY, RECIPIENTS, SCHEDULE, DIRECTORY, FEEDBACK].map(|stream| direct(Domain::Here, stream)));
    allowed.extend([RECIPIENTS, DIRECTORY, SPEND].map(newest));
    allowed
}

/// Taking leases from the pools of this region and of the hub.
fn quotas() -> Vec<String> {
    let mut allowed = vec![subject::QUOTA_FILTER.to_owned(), direct(Domain::Here, QUOTA)];
    allowed.extend(hubs_quotas());
    allowed
}

fn hubs_quotas() -> [String; 3] {
    [
        api(Domain::Hub, &format!("STREAM.INFO.{QUOTA}")),
        direct(Domain::Hub, QUOTA),
        topology::at_hub(subject::QUOTA_FILTER),
    ]
}

fn former_service(mesh: &Mesh, app: &AppId) -> Vec<String> {
    let lanes = Mesh::lanes();
    lanes
        .flat_map(|(channel, class)| {
            mesh.all().map(move |region| {
                let lane = subject::Lane {
                    channel,
                    region: region.clone(),
                    class,
                    app: app.clone(),
                };
                lane.notify()
            })
        })
        .chain([TRACE_HOPS.to_owned()])
        .collect()
}

fn operator(here: &Region) -> Vec<String> {
    let mut allowed = vec!["$JS.FC.>".to_owned()];
    // Not all subjects of an API: a server takes a message to `$JS.<domain>.API.$KV.>` as one to `$KV.>`.
    for request in ["INFO", "STREAM.>", "CONSUMER.>", "DIRECT.>"] {
        allowed.push(api(Domain::Here, request));
        allowed.push(format!("$JS.*.API.{request}"));
    }
    if here.as_str() == HUB {
        allowed.push(format!("$KV.{CONFIG_BUCKET}.>"));
    }
    allowed
}

/// An admin gateway reads the configuration and writes apps, keys and regions. The keys of operators and what the mesh has
/// once, such as the key of ids, only an operator at the hub writes.
fn admin() -> Vec<String> {
    let kinds = config::KINDS_OF_ADMIN.iter();
    let mut allowed: Vec<String> = kinds.map(|kind| format!("$KV.{CONFIG_BUCKET}.{kind}.*")).collect();
    allowed.extend(follow(CONFIG));
    allowed.push(newest(CONFIG));
    // Not the right to answer on whatever subject a request names: that could be an entry of the configuration.
    allowed.push("_INBOX.*.gateway.>".to_owned());
    allowed.push(TRACE_HOPS.to_owned());
    allowed
}

/// The subjects that a region's servers may publish to the hub, and those that they may subscribe to there.
fn leaf(mesh: &Mesh, inbox: String, beside_former: bool) -> (Vec<String>, Vec<String>) {
    // In other regions: the requests of its gateways, and the sources of its streams.
    let mut publish: Vec<String> = Vec::new();
    for (prefix, stream) in origins(mesh) {
        publish.push(format!("{prefix}.STREAM.INFO.{stream}"));
        publish.push(format!("{prefix}.CONSUMER.CREATE.{stream}"));
        publish.push(format!("{prefix}.CONSUMER.CREATE.{stream}.>"));
        publish.push(format!("{prefix}.CONSUMER.DELETE.{stream}.*"));
    }
    publish.extend(mesh.others().map(subject::ask));
    publish.push(subject::admin(&mesh.here.region));
    publish.extend(mesh.others().map(outbox_copied));
    if beside_former {
        publish.extend(mesh.others().flat_map(|other| dead_and_facts(Domain::Region(other))));
    }
    publish.extend(hubs_quotas());
    // What servers exchange about sources, and answers.
    let between = [&["$JS.S.>", "$JS.FC.>", "$JSC.R.>", "_R_.>"], TRACES].concat();
    let between: Vec<String> = between.into_iter().map(str::to_owned).collect();
    publish.extend(between.clone());
    publish.push("_INBOX.>".to_owned());
    let mut subscribe = vec![
        api(Domain::Region(&mesh.here.region), ">"),
        subject::ask(&mesh.here.region),
        inbox,
    ];
    subscribe.extend(between);
    (publish, subscribe)
}

/// The streams that this region sources: the API prefix of the origin, and the stream's name.
fn origins(mesh: &Mesh) -> impl Iterator<Item = (String, String)> {
    let sources = mesh.streams().into_iter().filter_map(|stream| stream.sources).flatten();
    let mut origins: Vec<_> = sources
        .filter_map(|source| Some((source.external?.api_prefix, source.name)))
        .collect();
    origins.sort();
    origins.dedup();
    origins.into_iter()
}

fn api(domain: Domain<'_>, request: &str) -> String {
    format!("{}.{request}", domain.api())
}

/// Reading messages of a stream by sequence or subject.
fn direct(domain: Domain<'_>, stream: &str) -> String {
    api(domain, &format!("DIRECT.GET.{stream}"))
}

/// Reading messages of a stream from its leader.
fn newest(stream: &str) -> String {
    api(Domain::Here, &format!("STREAM.MSG.GET.{stream}"))
}

/// Following a stream of this region through an ephemeral consumer, which is recreated under another name if it is lost.
fn follow(stream: &str) -> [String; 5] {
    [
        api(Domain::Here, &format!("STREAM.INFO.{stream}")),
        api(Domain::Here, &format!("CONSUMER.CREATE.{stream}")),
        api(Domain::Here, &format!("CONSUMER.CREATE.{stream}.>")),
        // Of durable consumers, a followed stream has only the status feeds of apps, which gateways make again.
        api(Domain::Here, &format!("CONSUMER.DELETE.{stream}.*")),
        format!("$JS.FC.{stream}.>"),
    ]
}

/// Pulling from a durable consumer of this region.
fn consume(stream: &str, consumer: &str) -> [String; 3] {
    [
        api(Domain::Here, &format!("CONSUMER.INFO.{stream}.{consumer}")),
        api(Domain::Here, &format!("CONSUMER.MSG.NEXT.{stream}.{consumer}")),
        format!("$JS.ACK.{stream}.{consumer}.>"),
    ]
}

/// Asking how much `other` has copied of this region's outbox.
fn outbox_copied(other: &Region) -> String {
    api(Domain::Region(other), &format!("STREAM.INFO.{NOTIFY}"))
}

/// A gateway's access to dead letters and facts: read both, delete letters.
fn dead_and_facts(domain: Domain<'_>) -> [String; 3] {
    [
        direct(domain, DEAD),
        api(domain, &format!("STREAM.MSG.DELETE.{DEAD}")),
        direct(domain, RECIPIENTS),
    ]
}

/// The roles in Peal's account at the servers of `region`, with helpers from `helpers`.
pub fn of_region(region: &Region, helpers: &[Region], parties: &Parties) -> Vec<Role> {
    let mut roles = vec![
        Role::Gateway(region.clone()),
        Role::Worker(region.clone()),
        Role::Operator(region.clone()),
    ];
    roles.extend(
        helpers
            .iter()
            .map(|helper| Role::Helper(region.clone(), helper.clone())),
    );
    if parties.beside_former {
        let services = parties.apps.iter();
        roles.extend(services.map(|app| Role::FormerService(region.clone(), app.clone())));
    }
    roles
}

/// The roles in Peal's account at the servers of the hub.
pub fn of_hub(regions: &[Region]) -> Vec<Role> {
    let hub = HUB.parse().expect("the hub's name is a valid region name");
    let mut roles = vec![Role::Operator(hub), Role::Admin];
    roles.extend(regions.iter().cloned().map(Role::Leaf));
    roles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_roles_share_an_inbox_or_a_key() {
        let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let apps = ["shop".parse().unwrap(), "shop-eu".parse().unwrap()];
        let services = apps.clone().map(Role::Service);
        let parties = Parties {
            regions: vec![eu.clone(), us.clone()],
            apps: apps.into(),
            beside_former: true,
        };
        let mut roles = of_region(&eu, std::slice::from_ref(&us), &parties);
        roles.extend(of_hub(&parties.regions));
        for service in &services {
            assert!(roles.iter().all(|role| role.variable() != service.variable()));
        }
        for (at, role) in roles.iter().enumerate() {
            for other in &roles[..at] {
                assert!(role.inbox() != other.inbox());
                let both_operators = matches!((role, other), (Role::Operator(_), Role::Operator(_)));
                assert_eq!(role.variable() == other.variable(), both_operators);
            }
        }
    }
}
