//! What a mesh is to be.

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf};

use shared::{
    app::{Ambiguity, App, Quota, Route},
    channel::Channel,
    nats::topology::Durability,
    private_host::PrivateHost,
    secret::Secret,
    spend::SpendCap,
};

use super::Former;
use crate::{links::Links, nats, network, providers::LogMode};

/// Where the alerts of apps are posted.
#[derive(Debug, Clone)]
pub struct Alerts {
    /// The URL.
    pub url: String,
    /// `whsec_` and 24 to 64 bytes in base64 (Standard Webhooks).
    pub secret: Secret,
}

/// What a mesh consists of, and how it is set.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Plan {
    /// This crate's program, which also runs as gateway and as worker.
    pub program: PathBuf,
    /// The nats-server to run.
    pub nats_server: PathBuf,
    /// The regions; the first is the app's default.
    pub regions: Vec<String>,
    /// Regions that a test adds later. The servers of all regions need to know their roles from the start.
    pub later: Vec<String>,
    /// Whether an admin gateway runs at the hub.
    pub admin: bool,
    /// The number of gateways in each region.
    pub gateways: usize,
    /// The number of edge workers in each region.
    pub workers: usize,
    /// The programs of the former version, where processes run as such. The app is then stored in its format, without
    /// what this plan says about residency, doubt, quota and alerts. The servers permit what those programs need, and work
    /// from other regions needs no proof.
    pub former: Option<Former>,
    /// Whether the workers of each region help the other regions.
    pub helpers: bool,
    /// The collector that receives spans, as a URL; none if absent.
    pub otlp_endpoint: Option<String>,
    /// The share of notifications that are traced, 0.0 to 1.0.
    pub sample_ratio: f64,
    /// How much the simulators record.
    pub log: LogMode,
    /// Whether the APNs simulator limits how often a team changes its provider token. Clients besides the workers cannot
    /// use a token of their own then.
    pub limit_token_updates: bool,
    /// The region that the app's data must not leave; anywhere if absent.
    pub residency: Option<String>,
    /// Whether the app has a server of its own with a stream `OUTBOX`, which its intakes source.
    pub outbox: bool,
    /// What the app wants done with a push that was sent without an answer, by channel.
    pub ambiguity: BTreeMap<Channel, Ambiguity>,
    /// By channel, the providers of the app in the order in which they are asked.
    pub routes: BTreeMap<Channel, Vec<Route>>,
    /// What else the app is to have.
    pub app: fn(&mut App),
    /// The most segments of text messages that the app may send.
    pub spend_caps: Vec<SpendCap>,
    /// The private hosts that the app's webhooks may reach; all hosts, also for other apps, if absent.
    pub allowed_hosts: Option<Vec<PrivateHost>>,
    /// The quota of the app's Google project, messages a minute; the usual one if absent.
    pub fcm_quota: Option<NonZeroU32>,
    /// Where alerts about the app's dead letters are sent.
    pub alerts: Option<Alerts>,
    /// What the app's callers may do, where it differs from the gateways' settings.
    pub quota: Quota,
    /// More settings of the workers, as TOML. They come before the other tables of the file, so they may begin with plain
    /// keys.
    pub worker_settings: String,
    /// More settings of the gateways, as TOML tables at the end of the file.
    pub gateway_settings: String,
    /// More settings of every provider, as TOML keys.
    pub provider_settings: String,
    /// More settings of SMTP, as TOML keys.
    pub smtp_settings: String,
    /// The most bytes that each stream of work may hold; -1 is no limit.
    pub max_bytes: i64,
    /// When the nats-servers flush to the disk.
    pub sync_interval: nats::SyncInterval,
    /// The durability that gateways and workers are configured for; it must fit the servers.
    pub durability: Durability,
    /// Whether connections to the nats-servers are encrypted; the benchmark measures without encryption.
    pub tls: bool,
    /// What the parts reach each other through.
    pub links: Links,
}

/// A quota that a load generator with a single API key does not use up.
pub const AMPLE_QUOTA: Quota = Quota {
    requests_per_s: Some(1_000_000),
    jobs_per_s: Some(10_000_000),
    in_flight: Some(8192),
    waiting_jobs: Some(10_000_000),
    stored_bytes: Some(1 << 40),
};

impl Plan {
    /// Two regions with two workers each. All notifications are sampled, but no collector receives their spans.
    pub fn new(program: PathBuf, nats_server: PathBuf) -> Self {
        Self {
            program,
            nats_server,
            regions: vec!["eu".into(), "us".into()],
            later: Vec::new(),
            gateways: 1,
            workers: 2,
            former: None,
            helpers: false,
            otlp_endpoint: None,
            sample_ratio: 1.0,
            log: LogMode::default(),
            limit_token_updates: true,
            residency: None,
            outbox: false,
            ambiguity: BTreeMap::new(),
            routes: BTreeMap::new(),
            app: |_| {},
            spend_caps: Vec::new(),
            allowed_hosts: None,
            fcm_quota: None,
            alerts: None,
            admin: false,
            quota: Quota::default(),
            worker_settings: String::new(),
            gateway_settings: String::new(),
            provider_settings: String::new(),
            smtp_settings: String::new(),
            max_bytes: -1,
            sync_interval: nats::SyncInterval::default(),
            durability: Durability::default(),
            tls: true,
            links: Links::Direct,
        }
    }

    /// The settings of the nats-servers of a domain.
    pub(super) fn nats_settings(&self, domain: &str) -> nats::Settings {
        nats::Settings {
            place: self.links.place(&match domain {
                network::HUB => domain.to_owned(),
                region => network::nats(region),
            }),
            sync_interval: self.sync_interval,
            clusters: self.durability.replicas() > 1,
            tls: self.tls,
            beside_former: self.former.is_some(),
            regions: self
                .regions
                .iter()
                .chain(&self.later)
                .map(|name| name.parse().expect("the name of a region"))
                .collect(),
            ..nats::Settings::new(&self.nats_server)
        }
    }
}
