//! The NATS accounts at a region's or the hub's servers, as data.
//!
//! Services must not be clients of Peal's own account: a client names the subject of the answer, and the server publishes
//! the acknowledgement of a stream there with its own rights, also where the client may not publish. Through an import an
//! answer returns to the account that asked, whatever subject it names. So each app has an account, which imports what
//! Peal exports: the intake, the status feed, receipts and dead letters as they come.
//!
//! [`conf`] writes the accounts into the configuration of a server, [`claims`] as JWTs for a server with an operator.

pub mod claims;
mod conf;

use std::{collections::BTreeMap, time::Duration};

pub use self::conf::conf;
use super::{
    roles::{self, Parties, Permissions, Role},
    subject::{self, TRACE_HOPS},
    topology::{RECEIPTS, feed_consumer},
};
use crate::id::{AppId, Region};

/// Peal's own account. Another name is another store of streams.
pub const PEAL: &str = "APP";

/// The account of the servers themselves. Servers of one cluster must agree on it.
const SYSTEM: &str = "$SYS";

/// What that account is called for people.
const SYSTEM_TITLE: &str = "SYS";

/// The domain under which services find the stream [`RECEIPTS`]: `jetstream.with_domain("peal")` and its like in any client.
pub const FEED_DOMAIN: &str = "peal";

/// The stream in which an app's own server keeps what its services publish while it is cut off.
pub const OUTBOX: &str = "OUTBOX";

/// The subject of that stream. On the subject of the intake both streams would acknowledge.
pub const OUTBOX_SUBJECT: &str = "outbox.send";

/// How long the server remembers a request for an answer that has not come: from an intake, and from a gateway.
const ANSWERED_WITHIN: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(15)];

/// The accounts of one server or cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts {
    /// Peal's own first, that of the servers themselves last.
    pub all: Vec<Account>,
    /// The account that a region's link to the hub connects with the hub's account.
    pub linked: Option<String>,
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name, or under an operator its public key.
    pub name: String,
    /// What it is called for people.
    pub title: String,
    /// Its users.
    pub users: Vec<User>,
    /// What other accounts may import.
    pub exports: Vec<Export>,
    /// What it imports.
    pub imports: Vec<Import>,
    /// What all of its clients together may use.
    pub limits: Limits,
    /// Whether it may have streams.
    pub jetstream: bool,
    /// Whether servers report the hops of its messages whose `traceparent` is sampled.
    pub traced: bool,
}

/// A user of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name in files of keys, such as `gateway-eu`.
    pub title: String,
    /// The environment variable with its public key, such as `PEAL_NKEY_GATEWAY`.
    pub variable: String,
    /// What it may do; anything in its account if `None`.
    pub permissions: Option<Permissions>,
}

/// Subjects that other accounts may import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Requests to this account, or messages from it.
    pub kind: Kind,
    /// The subjects, as this account calls them.
    pub subject: String,
    /// Who may import them.
    pub to: Importers,
}

/// What an export or an import carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Messages from the exporting account.
    Stream,
    /// Requests to the exporting account, each with one answer.
    Service {
        /// Whether hops in the exporting account are reported to the account that asks.
        traced: bool,
        /// How long an answer may take; `None` for the server's default of two minutes.
        answered_within: Option<Duration>,
    },
    /// Requests with any number of answers. With any other kind a pull of 50 messages returns the first one, silently.
    ServiceOfMany,
}

/// Who may import an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Importers {
    /// Every account, each the subjects that have its own name as the token at this position, counted from one.
    Named(usize),
    /// One account.
    One(String),
    /// Every account.
    All,
}

/// Subjects that an account imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Requests to the exporting account, or messages from it.
    pub kind: Kind,
    /// The exporting account.
    pub from: String,
    /// The subjects, as the exporting account calls them.
    pub subject: String,
    /// The subjects, as this account calls them.
    pub local: String,
}

/// What the clients of an account may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, those of leaf nodes included.
    pub connections: u32,
    /// Connections of leaf nodes.
    pub leaf_nodes: u32,
    /// Subscriptions of each connection.
    pub subscriptions: u32,
    /// Bytes of each message, headers included. The server closes the connection on which a larger one comes.
    pub payload: u32,
}

impl Limits {
    /// For Peal's programs, and for all regions at the hub.
    const OF_PEAL: Self = Self {
        connections: 1024,
        leaf_nodes: 256,
        subscriptions: 65_536,
        payload: 1_048_576,
    };

    /// For the services of one app.
    const OF_APP: Self = Self {
        connections: 64,
        leaf_nodes: 4,
        subscriptions: 1024,
        payload: 65_536,
    };

    /// For people who look at servers.
    const OF_SYSTEM: Self = Self {
        connections: 16,
        leaf_nodes: 0,
        ..Self::OF_APP
    };
}

/// What accounts are called: by names in a server's configuration, by public keys under an operator.
#[derive(Debug, Clone)]
pub struct Names {
    /// Peal's own account.
    pub peal: String,
    /// The account of the servers themselves.
    pub system: String,
    /// The account of each app that has services.
    pub apps: BTreeMap<AppId, String>,
}

impl Names {
    /// The names in a server's configuration: that of an app's account is the app's id.
    pub fn plain(apps: &[AppId]) -> Self {
        Self {
            peal: PEAL.to_owned(),
            system: SYSTEM.to_owned(),
            apps: apps.iter().map(|app| (app.clone(), app.to_string())).collect(),
        }
    }
}

/// The accounts at the servers of `region`, with helpers from `helpers`: Peal's, one for each app that has services, and
/// that of the servers.
pub fn of_region(region: &Region, helpers: &[Region], parties: &Parties, names: &Names) -> Accounts {
    let roles = roles::of_region(region, helpers, parties);
    let exports = names.apps.iter().flat_map(|(app, name)| exports_for(region, app, name));
    let mut all = vec![Account {
        exports: exports_for_all().into_iter().chain(exports).collect(),
        imports: names.apps.iter().flat_map(|(app, name)| from_app(app, name)).collect(),
        ..peal(&roles, parties, names)
    }];
    all.extend(names.apps.iter().map(|(app, name)| of_app(region, app, name, names)));
    all.push(system(names));
    Accounts {
        all,
        linked: Some(names.peal.clone()),
    }
}

/// The accounts at the servers of the hub. Services connect to regions only.
pub fn of_hub(parties: &Parties) -> Accounts {
    let names = Names::plain(&[]);
    let peal = peal(&roles::of_hub(&parties.regions), parties, &names);
    Accounts {
        all: vec![peal, system(&names)],
        linked: None,
    }
}

/// The subjects that services of `app` or its leaf node may publish to, and those that they may subscribe to, in the app's
/// own account. The account is the fence: nothing leaves it but what it imports. These permissions make the server tell a
/// service of a wrong subject. It may publish to the intake of any app, of which the account imports its own: so the mistake
/// is answered at once (`no responders`), while many clients wait for their time-out after a refusal.
pub(super) fn service(app: &AppId) -> (Vec<String>, Vec<String>) {
    let name = app.as_str();
    let feed: Vec<String> = feed(app).map(|(_, _, local)| local).into();
    let publish = [
        &[subject::SEND_FILTER, subject::SEND_NOW_FILTER].map(str::to_owned)[..],
        &found_by(),
        &feed,
        &[TRACE_HOPS, "_INBOX.>", "_R_.>"].map(str::to_owned),
        &[delivered_from(app)],
    ];
    let subscribe = [
        &["_INBOX.>", "_R_.>", "receipt.>", "dead.>"].map(str::to_owned)[..],
        // A leaf node asks for these on behalf of its clients, and serves the API of the app's own streams, all of it.
        &[subject::send(name), subject::send_now(name)],
        &found_by(),
        &feed,
        &[
            format!("$JS.{app}.API.>"),
            format!("$JS.FC.{OUTBOX}.>"),
            format!("$JS.ACK.{OUTBOX}.>"),
        ],
    ];
    (publish.concat(), subscribe.concat())
}

fn peal(roles: &[Role], parties: &Parties, names: &Names) -> Account {
    let users = roles.iter().map(|role| User {
        title: role.title(),
        variable: role.variable(),
        permissions: Some(role.permissions(parties)),
    });
    Account {
        name: names.peal.clone(),
        title: PEAL.to_owned(),
        users: users.collect(),
        exports: Vec::new(),
        imports: Vec::new(),
        limits: Limits::OF_PEAL,
        jetstream: true,
        traced: true,
    }
}

fn system(names: &Names) -> Account {
    Account {
        name: names.system.clone(),
        title: SYSTEM_TITLE.to_owned(),
        users: vec![User {
            title: "sys".to_owned(),
            variable: "PEAL_NKEY_SYS".to_owned(),
            permissions: None,
        }],
        exports: Vec::new(),
        imports: Vec::new(),
        limits: Limits::OF_SYSTEM,
        jetstream: false,
        traced: false,
    }
}

/// The account of one app. It has no streams at the region's servers.
fn of_app(region: &Region, app: &AppId, name: &str, names: &Names) -> Account {
    let peal = |kind: Kind, subject: String, local: String| Import {
        kind,
        from: names.peal.clone(),
        subject,
        local,
    };
    let mut imports = vec![
        peal(requests(0), subject::send(name), subject::send(app.as_str())),
        peal(requests(1), subject::send_now(name), subject::send_now(app.as_str())),
    ];
    imports.extend(found_by().map(|subject| peal(Kind::ServiceOfMany, subject.clone(), subject)));
    imports.extend(feed(app).map(|(kind, subject, local)| peal(kind, subject, local)));
    imports.extend(seen_by(region, app).map(|subject| peal(Kind::Stream, subject.clone(), subject)));
    let role = Role::Service(app.clone());
    let mut exports = vec![
        (Kind::Stream, TRACE_HOPS.to_owned()),
        (Kind::Stream, delivered_from(app)),
    ];
    exports.extend(outbox_requests(app).map(|(subject, kind)| (kind, subject)));
    let exports = exports.into_iter().map(|(kind, subject)| Export {
        kind,
        subject,
        to: Importers::One(names.peal.clone()),
    });
    Account {
        name: name.to_owned(),
        title: app.to_string(),
        users: vec![User {
            title: role.title(),
            variable: role.variable(),
            permissions: Some(role.permissions(&Parties::default())),
        }],
        exports: exports.collect(),
        imports,
        limits: Limits::OF_APP,
        jetstream: false,
        traced: true,
    }
}

/// What every app may import, now and later: a line for each app is not needed.
fn exports_for_all() -> Vec<Export> {
    let own = |kind, subject| Export {
        kind,
        subject,
        to: Importers::Named(2),
    };
    let found = found_by().map(|subject| Export {
        kind: Kind::ServiceOfMany,
        subject,
        to: Importers::All,
    });
    let mut all = vec![
        own(requests(0), subject::SEND_FILTER.to_owned()),
        own(requests(1), subject::SEND_NOW_FILTER.to_owned()),
    ];
    all.extend(found);
    all
}

/// What one app alone may import.
fn exports_for(region: &Region, app: &AppId, name: &str) -> Vec<Export> {
    let one = |(kind, subject)| Export {
        kind,
        subject,
        to: Importers::One(name.to_owned()),
    };
    let feed = feed(app).map(|(kind, subject, _)| (kind, subject));
    let seen = seen_by(region, app).map(|subject| (Kind::Stream, subject));
    feed.into_iter().chain(seen).map(one).collect()
}

/// What Peal imports from one app: reports of hops, and the app's outbox.
fn from_app(app: &AppId, name: &str) -> Vec<Import> {
    let import = |kind, subject: String, local| Import {
        kind,
        from: name.to_owned(),
        subject,
        local,
    };
    let mut all = vec![
        import(Kind::Stream, TRACE_HOPS.to_owned(), subject::trace_hops_of(app)),
        import(Kind::Stream, delivered_from(app), delivered_from(app)),
    ];
    all.extend(outbox_requests(app).map(|(subject, kind)| {
        // A server takes a request with its own prefix for one to itself, so Peal calls the API of another without the `$`.
        let local = if subject.starts_with("$JS.FC.") {
            subject.clone()
        } else {
            subject.trim_start_matches('$').to_owned()
        };
        import(kind, subject, local)
    }));
    all
}

/// The prefix of the API of the stream [`OUTBOX`] at the app's own server, as the intake's source names it.
pub fn outbox_api(app: &AppId) -> String {
    format!("JS.{app}.API")
}

/// The prefix of the subjects on which the app's own server delivers from [`OUTBOX`].
pub fn outbox_delivery(app: &AppId) -> String {
    format!("deliver.{app}")
}

fn delivered_from(app: &AppId) -> String {
    format!("{}.>", outbox_delivery(app))
}

/// The requests by which an intake sources the app's [`OUTBOX`], as the app's account calls them.
fn outbox_requests(app: &AppId) -> [(String, Kind); 5] {
    let api = |request: &str| format!("$JS.{app}.API.{request}");
    let one = Kind::Service {
        traced: false,
        answered_within: None,
    };
    [
        (api(&format!("CONSUMER.CREATE.{OUTBOX}")), Kind::ServiceOfMany),
        (api(&format!("CONSUMER.CREATE.{OUTBOX}.>")), Kind::ServiceOfMany),
        (api(&format!("CONSUMER.DELETE.{OUTBOX}.>")), one),
        (api(&format!("STREAM.INFO.{OUTBOX}")), one),
        (format!("$JS.FC.{OUTBOX}.>"), one),
    ]
}

/// Requests to the intake (0), and requests that gateways answer (1).
fn requests(of: usize) -> Kind {
    Kind::Service {
        traced: true,
        answered_within: Some(ANSWERED_WITHIN[of]),
    }
}

/// The subjects by which a client finds Peal's micro service and asks for its figures.
fn found_by() -> [String; 3] {
    ["PING", "INFO", "STATS"].map(|verb| format!("$SRV.{verb}.{}", subject::SEND_SERVICE))
}

/// Receipts and dead letters of an app as they come.
fn seen_by(region: &Region, app: &AppId) -> [String; 3] {
    let [jobs, members] = subject::receipts_anywhere(app);
    [jobs, members, subject::dead_of(region, app)]
}

/// The subject on which an app asks for the next receipts of its feed, as the app calls it.
pub fn feed_next(app: &AppId) -> String {
    let [_, (_, _, next), _] = feed(app);
    next
}

/// What a pull from the app's durable consumer on [`RECEIPTS`] consists of: the kind, the subject as Peal calls it, and
/// the subject as the app calls it. Creating a consumer is not among them, because its creator names the subject to which
/// it delivers.
fn feed(app: &AppId) -> [(Kind, String, String); 3] {
    let consumer = feed_consumer(app);
    let one = Kind::Service {
        traced: false,
        answered_within: None,
    };
    let api = |kind, request: &str| {
        let request = format!("API.CONSUMER.{request}.{RECEIPTS}.{consumer}");
        (kind, format!("$JS.{request}"), format!("$JS.{FEED_DOMAIN}.{request}"))
    };
    // Acknowledgements name no domain.
    let acknowledgements = format!("$JS.ACK.{RECEIPTS}.{consumer}.>");
    [
        api(one, "INFO"),
        api(Kind::ServiceOfMany, "MSG.NEXT"),
        (one, acknowledgements.clone(), acknowledgements),
    ]
}
