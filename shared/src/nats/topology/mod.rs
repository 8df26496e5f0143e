//! Streams, consumers and buckets as data, and making the server match.

mod apply;
mod streams;
mod wake;

use serde::{Deserialize, Serialize};

pub(super) use self::streams::work_for;
pub use self::{
    apply::{ApplyError, Change, apply, apply_region, mend_consumers, wait_for_region},
    streams::{consumers, hub_streams, workers_consumers},
    wake::{Sourced, Waker, sources},
};
use crate::{
    channel::{Channel, Class},
    id::Region,
};

/// Work to do in this region.
pub const NOTIFY: &str = "NOTIFY";
/// Work and facts on their way to other regions.
pub const OUTBOX: &str = "OUTBOX";
/// Retries that wait for their time, and those that are due; slices of broadcasts.
pub const SCHEDULE: &str = "SCHEDULE";
/// What happened.
pub const RECEIPTS: &str = "RECEIPTS";
/// What could not be delivered.
pub const DEAD: &str = "DEAD";
/// Who lives where, and whose an address is; every region holds all of it.
pub const DIRECTORY: &str = "DIRECTORY";
/// The bucket of facts about the recipients who live in this region.
pub const RECIPIENTS_BUCKET: &str = "recipients";
/// The stream under that bucket.
pub const RECIPIENTS: &str = "KV_recipients";
/// The bucket of apps, keys and credentials; written at the hub, copied into every region.
pub const CONFIG_BUCKET: &str = "config";
/// The stream under that bucket.
pub const CONFIG: &str = "KV_config";
/// The stream of the bucket of pools from which workers take their part of a provider's quota; one in each region and one
/// at the hub.
pub const QUOTA: &str = "KV_quota";
/// The `JetStream` domain of the hub. No region may have this name.
pub const HUB: &str = "hub";

/// What idempotency keys were used for; every region holds all of it.
pub const IDEMPOTENCY: &str = "IDEMPOTENCY";

/// Whose JetStream is asked.
#[derive(Debug, Clone, Copy)]
pub enum Domain<'a> {
    /// That of the server one is connected to.
    Here,
    /// That of another region.
    Region(&'a Region),
    /// The hub's.
    Hub,
}

impl<'a> Domain<'a> {
    /// That of `region`, seen from `here`.
    pub fn of(region: &'a Region, here: &Region) -> Self {
        if region == here {
            Self::Here
        } else {
            Self::Region(region)
        }
    }

    /// The prefix of its API's subjects.
    pub fn api(&self) -> String {
        match self {
            Self::Here => "$JS.API".to_owned(),
            Self::Region(region) => api(region.as_str()),
            Self::Hub => api(HUB),
        }
    }

    /// Where it is asked how `stream` stands, and what time it is.
    pub(super) fn info_of(&self, stream: &str) -> String {
        format!("{}.STREAM.INFO.{stream}", self.api())
    }
}

/// The durable consumer on [`SCHEDULE`] for work that is due again.
pub const RETRY_CONSUMER: &str = "retry";

/// The durable consumer on [`SCHEDULE`] for what a region's own workers could not send and others may.
pub const SPILL_CONSUMER: &str = "spill";

/// The durable consumer on [`DEAD`] from which gateways tell developers of dead letters.
pub const ALERTS_CONSUMER: &str = "alerts";
/// This region, as its processes are told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Here {
    /// Its name.
    pub region: Region,
    /// What is stored survives what; the same in every process of the region.
    #[serde(default)]
    pub durability: Durability,
    /// Most bytes of [`NOTIFY`] and [`OUTBOX`] each; a full stream refuses. -1 for no limit but the disk.
    #[serde(default = "unlimited")]
    pub max_bytes: i64,
}

fn unlimited() -> i64 {
    -1
}

/// The mesh as one region sees it.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// This region.
    pub here: Here,
    /// Every region of the mesh; this one may be among them.
    pub regions: Vec<Region>,
}

/// What a region's servers are trusted with. A process that is killed loses nothing with any of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// One copy. A power cut loses what was not yet flushed to the disk: of a server's own default, two minutes.
    #[default]
    Demo,
    /// One copy, on the disk before it is acknowledged (`sync_interval: always`). A power cut loses nothing.
    Single,
    /// Three copies, each on its disk before it counts. The loss of a whole server loses nothing either.
    Production,
}

impl Durability {
    /// Copies of every stream, each on a server of its own.
    pub fn replicas(self) -> usize {
        match self {
            Self::Demo | Self::Single => 1,
            Self::Production => 3,
        }
    }

    /// Whether a flush to the disk is waited for that only an atomic batch shares. Where none is waited for, and where
    /// three copies agree, which they do in groups, single publishes are faster.
    pub fn wants_batches(self) -> bool {
        match self {
            Self::Single => true,
            Self::Demo | Self::Production => false,
        }
    }
}

impl Mesh {
    /// The other regions.
    pub fn others(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(|region| **region != self.here.region)
    }

    /// The lanes of fresh work that every region has.
    pub fn lanes() -> impl Iterator<Item = (Channel, Class)> {
        Channel::CARRIED
            .iter()
            .flat_map(|channel| Class::ALL.iter().map(|class| (*channel, *class)))
    }
}

/// The durable consumer of one lane.
pub fn lane_consumer(channel: Channel, class: Class) -> String {
    format!("{channel}-{class}")
}

/// The durable consumer on [`SCHEDULE`] of the slices of one lane.
pub fn slice_consumer(channel: Channel, class: Class) -> String {
    format!("slice-{channel}-{class}")
}

/// Where a publish to `subject`, which the hub keeps, goes from any region: links between domains do not carry `$KV.>`; under
/// the hub's API prefix its server takes it from anywhere.
pub(super) fn at_hub(subject: &str) -> String {
    format!("{}.{subject}", api(HUB))
}

/// The prefix of the API of a domain's `JetStream`.
fn api(domain: &str) -> String {
    format!("$JS.{domain}.API")
}

#[cfg(test)]
fn mesh_of_two(here: &str) -> Mesh {
    let parse = |name: &str| name.parse().unwrap();
    Mesh {
        here: Here {
            region: parse(here),
            durability: Durability::default(),
            max_bytes: -1,
        },
        regions: vec![parse("eu"), parse("us")],
    }
}
