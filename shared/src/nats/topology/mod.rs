//! The streams, consumers and buckets of the mesh.
//!
//! Their names stand here, their settings as data in `streams`; `apply` makes a server match them. `wake` reports how far
//! a stream has copied its sources, and wakes sources after a cut.

mod apply;
mod streams;
mod wake;

use serde::{Deserialize, Serialize};

pub(super) use self::streams::work_for;
pub use self::{
    apply::{
        ApplyError, Change, Retired, apply, apply_intake, apply_planned, apply_region, intakes, mend_consumers,
        missing_streams, planned, recreate, recreated_at, retire_intake, retire_planned, wait_for_region,
    },
    streams::{
        ALERTS_ACK_WAIT, DUPLICATE_WINDOW, IDEMPOTENCY_MAX_AGE, INTAKE_MAX_MESSAGE_BYTES, LETTERS_MAX_AGE,
        RECEIPTS_MAX_AGE, WORK_ACK_WAIT, WORK_MAX_AGE, consumers, former_consumers, hub_streams, workers_consumers,
    },
    wake::{Sourced, Waker, sources, version_at},
};
use crate::{
    channel::{Channel, Class},
    id::{AppId, Region},
};

/// Jobs and broadcasts to be worked on in this region.
pub const NOTIFY: &str = "NOTIFY";
/// Jobs, broadcasts and facts for other regions, which source it.
pub const OUTBOX: &str = "OUTBOX";
/// Retries that wait for their time or are due, and slices of broadcasts.
pub const SCHEDULE: &str = "SCHEDULE";
/// Receipts of attempts, and gateways' records of what they accepted.
pub const RECEIPTS: &str = "RECEIPTS";
/// What was reported about messages after their deliveries had ended. Only gateways write and read it.
pub const FEEDBACK: &str = "FEEDBACK";
/// Dead letters.
pub const DEAD: &str = "DEAD";
/// Homes of recipients, owners of addresses and withdrawals. Every region holds the entries of all regions.
pub const DIRECTORY: &str = "DIRECTORY";
/// The bucket of facts about the recipients whose home is this region.
pub const RECIPIENTS_BUCKET: &str = "recipients";
/// The stream under that bucket.
pub const RECIPIENTS: &str = "KV_recipients";
/// The bucket of apps, keys and credentials; written at the hub, copied into every region.
pub const CONFIG_BUCKET: &str = "config";
/// The stream under that bucket.
pub const CONFIG: &str = "KV_config";
/// The stream of the bucket of quota pools, from which workers lease their part of a provider's quota. Each region has
/// one, and so has the hub.
pub const QUOTA: &str = "KV_quota";
/// Counters of the segments of text messages, by app, cap and window.
pub const SPEND: &str = "SPEND";
/// Notifications that are not accepted before their time, and what was decided about them. Only gateways write and read it.
pub const PLANNED: &str = "PLANNED";
/// The `JetStream` domain of the hub. No region may have this name.
pub const HUB: &str = "hub";
/// Records of idempotency keys. Every region holds the records of all regions.
pub const IDEMPOTENCY: &str = "IDEMPOTENCY";

/// Which `JetStream` domain to address.
#[derive(Debug, Clone, Copy)]
pub enum Domain<'a> {
    /// The domain of the server that the client is connected to.
    Here,
    /// A region's, by name: another region's, or this one's whatever server the client is connected to.
    Region(&'a Region),
    /// The hub's.
    Hub,
}

impl<'a> Domain<'a> {
    /// The domain of `region`, seen from `here`.
    pub fn of(region: &'a Region, here: &Region) -> Self {
        if region == here {
            Self::Here
        } else {
            Self::Region(region)
        }
    }

    /// The prefix of its API's subjects, such as `$JS.eu.API`.
    pub fn api(&self) -> String {
        match self {
            Self::Here => "$JS.API".to_owned(),
            Self::Region(region) => api(region.as_str()),
            Self::Hub => api(HUB),
        }
    }

    /// The subject of requests for the state of `stream`; the answer also tells the server's time.
    pub(super) fn info_of(&self, stream: &str) -> String {
        format!("{}.STREAM.INFO.{stream}", self.api())
    }
}

/// The version of the topology that this program's gateways apply: raised with every change to a stream or consumer that
/// exists already. A gateway leaves what a newer one made. 0.1 had none, which counts as 1.
pub const VERSION: u32 = 4;

/// The first version in which lanes have an overflow.
pub const OVERFLOW_SINCE: u32 = 4;

/// The member of the metadata of streams and consumers that has the version.
const VERSION_KEY: &str = "peal.topology";

/// The member of the metadata of a bucket of recipients that says which deleted one it replaces.
pub(super) const FORMER_KEY: &str = "peal.former";

/// The durable consumer on [`SCHEDULE`] for retries of `channel` that are due. That of push has the name that it had when
/// it was the only one, so that workers of 0.1 find it.
pub fn retry_consumer(channel: Channel) -> String {
    of_channel("retry", channel)
}

/// The durable consumer on [`SCHEDULE`] for jobs of `channel` that a region's own workers could not send and helpers may.
/// For the name see [`retry_consumer`].
pub fn spill_consumer(channel: Channel) -> String {
    of_channel("spill", channel)
}

fn of_channel(name: &str, channel: Channel) -> String {
    match channel {
        Channel::Push => name.to_owned(),
        Channel::Email | Channel::Sms | Channel::Webhook => format!("{name}-{channel}"),
    }
}

/// The durable consumer on [`RECEIPTS`] from which services of `app` read what became of its notifications.
pub fn feed_consumer(app: &AppId) -> String {
    format!("svc_{app}")
}

/// The durable consumer on [`DEAD`] from which gateways alert developers to dead letters.
pub const ALERTS_CONSUMER: &str = "alerts";

/// The stream of what services of `app` publish in this region, until gateways have made jobs of it.
pub fn intake(app: &AppId) -> String {
    format!("INTAKE_{app}")
}

/// The app whose intake is the stream called `stream`.
pub fn app_of_intake(stream: &str) -> Option<AppId> {
    stream.strip_prefix("INTAKE_")?.parse().ok()
}

/// The durable consumer of every intake, which all gateways of the region share.
pub const INTAKE_CONSUMER: &str = "door";

/// The durable consumer on [`SCHEDULE`] from which gateways take the jobs whose recipients moved.
pub const MOVED_CONSUMER: &str = "moved";

/// The durable consumer on [`PLANNED`] of what is due of `app`, which all gateways of the region share. Each app has its own, so
/// that what one app's quota keeps waiting does not stop the others.
pub fn planned_consumer(app: &AppId) -> String {
    format!("due_{app}")
}

/// The app whose consumer on [`PLANNED`] this is.
pub fn app_of_planned(consumer: &str) -> Option<AppId> {
    consumer.strip_prefix("due_")?.parse().ok()
}

/// This region: the settings that all its processes share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionSettings {
    /// Its name.
    pub region: Region,
    /// Which failures stored messages survive; the same in every process of the region.
    #[serde(default)]
    pub durability: Durability,
    /// Maximum bytes of [`NOTIFY`] and of [`OUTBOX`]; a full stream refuses. -1: no limit but the disk.
    #[serde(default = "unlimited")]
    pub max_bytes: i64,
    /// Maximum bytes of the intake of each app; a full one refuses. -1: no limit but the disk.
    #[serde(default = "intake_bytes")]
    pub intake_max_bytes: i64,
}

/// 256 MiB: some hundred thousand notifications, which services may publish while no gateway runs.
fn intake_bytes() -> i64 {
    256 << 20
}

fn unlimited() -> i64 {
    -1
}

/// The mesh as one region sees it.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// This region.
    pub here: RegionSettings,
    /// Every region of the mesh; this one may be among them.
    pub regions: Vec<Region>,
}

/// How much a region's servers protect stored messages. None of the levels loses anything when a process is killed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// One copy. A power cut loses what was not yet flushed to the disk: by the server's default, up to two minutes.
    #[default]
    Demo,
    /// One copy, on the disk before it is acknowledged (`sync_interval: always`). A power cut loses nothing.
    Single,
    /// Three copies, each on its disk before it counts. The loss of a whole server loses nothing either.
    Production,
}

impl Durability {
    /// Number of copies of every stream, each on a different server.
    pub fn replicas(self) -> usize {
        match self {
            Self::Demo | Self::Single => 1,
            Self::Production => 3,
        }
    }

    /// Whether atomic batches pay off: each acknowledgement waits for a flush to the disk, which only a batch shares. Without
    /// that wait single publishes are faster, and so they are with three copies, which agree on messages in groups.
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
        Channel::ALL
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

/// The subject under which any region publishes to `subject` at the hub: links between domains do not carry `$KV.>`, but
/// the hub's server accepts it under the prefix of its API.
pub(super) fn at_hub(subject: &str) -> String {
    format!("{}.{subject}", api(HUB))
}

/// The API prefix of a `JetStream` domain.
fn api(domain: &str) -> String {
    format!("$JS.{domain}.API")
}

#[cfg(test)]
fn mesh_of_two(here: &str) -> Mesh {
    let parse = |name: &str| name.parse().unwrap();
    Mesh {
        here: RegionSettings {
            region: parse(here),
            durability: Durability::default(),
            max_bytes: -1,
            intake_max_bytes: -1,
        },
        regions: vec![parse("eu"), parse("us")],
    }
}
