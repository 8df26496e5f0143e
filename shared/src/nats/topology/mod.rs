//! Streams, consumers and buckets as data, and making the server match.

use std::{collections::HashMap, fmt, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind},
        stream::{Config, ConsumerErrorKind, DiscardPolicy, External, Info, RetentionPolicy, Source, SubjectTransform},
    },
};
use futures::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    refusal::{Forbidden, unless_refused},
    subject,
};
use crate::{
    channel::{Channel, Class},
    id::Region,
    push::MAX_TTL_S,
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

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// How long a message id is remembered by the streams. The ledgers remember for days.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);

/// Work is kept longer than the longest time to live, so that expiry is always the worker's decision.
const WORK_AGE: Duration = Duration::from_secs(MAX_TTL_S as u64 + 2 * 24 * 3600);

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

impl Here {
    /// The copy of the hub's configuration. All else can be made once it is known which regions there are.
    pub fn config_stream(&self) -> Config {
        Config {
            max_messages_per_subject: 1,
            allow_rollup: true,
            deny_delete: true,
            // Not a mirror: a source can be woken after a cut (0.15 s), a mirror takes up to 39 s.
            sources: Some(vec![source(CONFIG, HUB, None)]),
            ..self.base(CONFIG, Vec::new())
        }
    }

    fn base(&self, name: &str, subjects: Vec<String>) -> Config {
        Config {
            name: name.to_owned(),
            subjects,
            discard: DiscardPolicy::New,
            num_replicas: self.durability.replicas(),
            allow_direct: true,
            ..Config::default()
        }
    }
}

impl Mesh {
    /// The other regions.
    pub fn others(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(|region| **region != self.here.region)
    }

    /// The streams of this region.
    pub fn streams(&self) -> Vec<Config> {
        [self.work(), self.records(), self.knowledge()].concat()
    }

    fn base(&self, name: &str, subjects: Vec<String>) -> Config {
        self.here.base(name, subjects)
    }

    /// What is to be done, here, elsewhere and later.
    fn work(&self) -> Vec<Config> {
        let here = &self.here.region;
        let notify = Config {
            max_age: WORK_AGE,
            max_bytes: self.here.max_bytes,
            duplicate_window: DUPLICATE_WINDOW,
            allow_atomic_publish: true,
            // One filter for all channels: the filter is part of the source's identity, and another one would replay all.
            sources: self.sources(|other| source(OUTBOX, other.as_str(), Some(subject::notify_all_filter(here)))),
            ..self.base(NOTIFY, work_for(here).collect())
        };
        let outbound = self
            .others()
            .flat_map(|other| work_for(other).chain([subject::fact_filter(other)]));
        let outbox = Config {
            max_age: WORK_AGE,
            max_bytes: self.here.max_bytes,
            duplicate_window: DUPLICATE_WINDOW,
            allow_atomic_publish: true,
            ..self.base(OUTBOX, outbound.collect())
        };
        let schedule = Config {
            // A retry is removed when it is done; only what waits is worth keeping.
            retention: RetentionPolicy::WorkQueue,
            max_age: WORK_AGE,
            duplicate_window: DUPLICATE_WINDOW,
            allow_message_schedules: true,
            allow_message_ttl: true,
            allow_rollup: true,
            allow_atomic_publish: true,
            // The server refuses schedules together with `New`; without other limits nothing is discarded but by age.
            discard: DiscardPolicy::Old,
            ..self.base(
                SCHEDULE,
                [
                    subject::SCHEDULE_FILTER,
                    subject::DUE_FILTER,
                    subject::SPILL_FILTER,
                    subject::SLICE_FILTER,
                    subject::SPLIT_FILTER,
                ]
                .map(str::to_owned)
                .to_vec(),
            )
        };
        // A mesh of one region has nothing to send elsewhere, and a stream needs subjects.
        if outbox.subjects.is_empty() {
            vec![notify, schedule]
        } else {
            vec![outbox, notify, schedule]
        }
    }

    /// What happened.
    fn records(&self) -> Vec<Config> {
        let here = &self.here.region;
        let receipts = Config {
            max_age: 3 * DAY,
            duplicate_window: HOUR,
            sources: self.sources(|other| {
                source(
                    RECEIPTS,
                    other.as_str(),
                    Some(subject::receipt_origin_filter(other, here)),
                )
            }),
            ..self.base(RECEIPTS, vec![subject::receipt_filter(here)])
        };
        let dead = Config {
            max_age: 28 * DAY,
            duplicate_window: HOUR,
            ..self.base(DEAD, vec![subject::dead_filter(here)])
        };
        let idempotency = Config {
            max_age: super::idempotency::KEPT,
            max_messages_per_subject: 1,
            sources: self
                .sources(|other| source(IDEMPOTENCY, other.as_str(), Some(subject::idempotency_filter(other)))),
            discard: DiscardPolicy::Old,
            ..self.base(IDEMPOTENCY, vec![subject::idempotency_filter(here)])
        };
        vec![receipts, dead, idempotency]
    }

    /// What is known of recipients and apps.
    fn knowledge(&self) -> Vec<Config> {
        let here = &self.here.region;
        let directory = Config {
            max_messages_per_subject: 1,
            sources: self.sources(|other| source(DIRECTORY, other.as_str(), Some(subject::directory_filter(other)))),
            discard: DiscardPolicy::Old,
            ..self.base(DIRECTORY, vec![subject::directory_filter(here)])
        };
        let recipients = Config {
            max_messages_per_subject: 1,
            allow_rollup: true,
            deny_delete: true,
            sources: self.sources(|other| Source {
                subject_transforms: vec![SubjectTransform {
                    source: subject::fact_filter(here),
                    destination: subject::FACTS_FILTER.into(),
                }],
                ..source(OUTBOX, other.as_str(), None)
            }),
            ..self.base(RECIPIENTS, vec![subject::FACTS_FILTER.into()])
        };
        let quota = Config {
            max_messages_per_subject: 1,
            max_age: HOUR,
            ..self.base(QUOTA, vec![subject::QUOTA_FILTER.into()])
        };
        vec![directory, recipients, quota, self.here.config_stream()]
    }

    fn sources(&self, of: impl Fn(&Region) -> Source) -> Option<Vec<Source>> {
        let sources: Vec<Source> = self.others().map(of).collect();
        (!sources.is_empty()).then_some(sources)
    }

    /// The lanes of fresh work that every region has.
    pub fn lanes() -> impl Iterator<Item = (Channel, Class)> {
        Channel::CARRIED
            .iter()
            .flat_map(|channel| Class::ALL.iter().map(|class| (*channel, *class)))
    }
}

/// The durable consumers of a region: the stream and the consumer.
pub fn consumers(region: &Region) -> Vec<(&'static str, pull::Config)> {
    let alerts = pull::Config {
        // What is old was told of, or was there before anybody wanted to be told.
        deliver_policy: DeliverPolicy::New,
        ack_wait: Duration::from_mins(2),
        ..consumer(ALERTS_CONSUMER, subject::dead_filter(region))
    };
    let mut all = workers_consumers(region);
    all.push((DEAD, alerts));
    all
}

/// Those that a region's workers share.
pub fn workers_consumers(region: &Region) -> Vec<(&'static str, pull::Config)> {
    let mut all: Vec<_> = Mesh::lanes()
        .map(|(channel, class)| {
            let filter = subject::notify_class_filter(channel, region, class);
            (NOTIFY, consumer(&lane_consumer(channel, class), filter))
        })
        .collect();
    all.push((SCHEDULE, consumer(RETRY_CONSUMER, subject::DUE_FILTER.into())));
    all.push((SCHEDULE, consumer(SPILL_CONSUMER, subject::SPILL_FILTER.into())));
    all.extend(Mesh::lanes().map(|(channel, class)| {
        let filter = subject::slice_class_filter(channel, class);
        (SCHEDULE, consumer(&slice_consumer(channel, class), filter))
    }));
    all
}

/// The subjects of every lane of `region`. No stream takes others, so whoever misspells a class is told by the server.
pub(super) fn work_for(region: &Region) -> impl Iterator<Item = String> {
    Mesh::lanes().map(move |(channel, class)| subject::notify_class_filter(channel, region, class))
}

/// The durable consumer of one lane.
pub fn lane_consumer(channel: Channel, class: Class) -> String {
    format!("{channel}-{class}")
}

/// The durable consumer on [`SCHEDULE`] of the slices of one lane.
pub fn slice_consumer(channel: Channel, class: Class) -> String {
    format!("slice-{channel}-{class}")
}

/// The streams of the hub.
pub fn hub_streams(replicas: usize) -> Vec<Config> {
    let base = Config {
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_direct: true,
        num_replicas: replicas,
        ..Config::default()
    };
    let config = Config {
        name: CONFIG.into(),
        subjects: vec![format!("$KV.{CONFIG_BUCKET}.>")],
        allow_rollup: true,
        deny_delete: true,
        ..base.clone()
    };
    let quota = Config {
        name: QUOTA.into(),
        subjects: vec![subject::QUOTA_FILTER.into()],
        // What nobody asks for any more is not looked at any more.
        max_age: Duration::from_mins(2),
        ..base
    };
    vec![config, quota]
}

/// Where a publish to `subject`, which the hub keeps, goes from any region: links between domains do not carry `$KV.>`; under
/// the hub's API prefix its server takes it from anywhere.
pub(super) fn at_hub(subject: &str) -> String {
    format!("{}.{subject}", api(HUB))
}

/// A source that misses nothing. Where the server knows no position, as when the destination was trimmed before the
/// first message came, it would begin at the time of the destination's last message and skip what is older, silently;
/// told to begin at 1 it replays instead, which message ids and ledgers make harmless.
fn source(stream: &str, domain: &str, filter_subject: Option<String>) -> Source {
    Source {
        name: stream.to_owned(),
        external: Some(External {
            api_prefix: api(domain),
            delivery_prefix: None,
        }),
        start_sequence: Some(1),
        filter_subject,
        ..Source::default()
    }
}

fn consumer(name: &str, filter: String) -> pull::Config {
    pull::Config {
        durable_name: Some(name.to_owned()),
        filter_subject: filter,
        ack_policy: AckPolicy::Explicit,
        // Longer than a provider's time-out, so that work in progress is not given to a sibling.
        ack_wait: Duration::from_secs(30),
        // Attempts are counted by the workers; the server would only make a message invisible.
        max_deliver: -1,
        max_ack_pending: 65_536,
        ..pull::Config::default()
    }
}

/// What [`apply`] did to one stream or consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was missing.
    Created(String),
    /// It differed, in these settings, and was made to match.
    Updated(String, Vec<String>),
    /// It differs in settings that cannot be changed on a living stream.
    Drifted(String, Vec<String>),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created(name) => write!(f, "created {name}"),
            Self::Updated(name, settings) => write!(f, "updated {name}: {}", settings.join("; ")),
            Self::Drifted(name, settings) => write!(f, "{name} differs and cannot be changed: {}", settings.join("; ")),
        }
    }
}

/// Why the topology could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A stream could not be read.
    #[error("stream {0}: {1}")]
    Read(String, String),
    /// A stream could not be created.
    #[error("stream {0}: {1}")]
    Create(String, CreateStreamError),
    /// A consumer could not be created, changed or read.
    #[error("consumer {0}: {1}")]
    Consumer(String, String),
    /// The key is not one of the role that this process has, or the server's configuration is an old one.
    #[error("{0}; the server's roles.conf and nats.nkey_file must be of this role and region")]
    Forbidden(#[from] Forbidden),
}

/// Makes the server's streams match `wanted`; safe to repeat and to run from several processes at once.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn apply(js: &jetstream::Context, wanted: &[Config]) -> Result<Vec<Change>, ApplyError> {
    let mut changes = Vec::new();
    for config in wanted {
        let name = config.name.clone();
        let Some(info) = info(js, &name).await? else {
            match js.create_stream(config.clone()).await {
                Ok(_) => changes.push(Change::Created(name)),
                // Another process was faster.
                Err(error) if matches!(error.kind(), CreateStreamErrorKind::JetStream(ref e) if e.error_code() == jetstream::ErrorCode::STREAM_NAME_EXIST) =>
                    {}
                Err(error) => return Err(ApplyError::Create(name, error)),
            }
            continue;
        };
        let differences = differences(config, &info.config);
        if differences.is_empty() {
            continue;
        }
        changes.push(match js.update_stream(config.clone()).await {
            Ok(_) => Change::Updated(name, differences),
            Err(_) => Change::Drifted(name, differences),
        });
    }
    Ok(changes)
}

/// Makes a region's streams and consumers match, and says in the log what was done about it.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn apply_region(js: &jetstream::Context, mesh: &Mesh) -> Result<(), ApplyError> {
    let applying = async {
        for change in apply(js, &mesh.streams()).await? {
            match change {
                Change::Created(_) | Change::Updated(..) => tracing::info!(%change, "topology"),
                Change::Drifted(..) => tracing::error!(%change, "topology drifted; an operator must decide"),
            }
        }
        apply_consumers(js, &mesh.here.region).await
    };
    unless_refused(&js.client(), |_| true, applying).await?
}

/// How often [`wait_for_region`] looks.
const WAIT: Duration = Duration::from_millis(200);

/// Waits until a region's streams and the consumers of its workers are there, which its gateway makes.
///
/// # Errors
/// When the server refuses.
pub async fn wait_for_region(js: &jetstream::Context, region: &Region) -> Result<(), ApplyError> {
    let mut said = None;
    loop {
        let missing = match unless_refused(&js.client(), |_| true, missing(js, region)).await? {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            // Three servers that have just started agree on nothing for some seconds.
            Err(error) => error.to_string(),
        };
        if said.as_ref() != Some(&missing) {
            tracing::info!(%region, missing, "waiting for the region's gateway");
            said = Some(missing);
        }
        tokio::time::sleep(WAIT).await;
    }
}

/// The first consumer of workers that is not there. A gateway makes the streams first.
async fn missing(js: &jetstream::Context, region: &Region) -> Result<Option<String>, ApplyError> {
    for (stream, config) in workers_consumers(region) {
        let name = config.durable_name.unwrap_or_default();
        if !has_consumer(js, stream, &name).await? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// How the server describes a stream; `None` if there is no such stream.
async fn info(js: &jetstream::Context, name: &str) -> Result<Option<Info>, ApplyError> {
    match js.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() == 404 => Ok(None),
            _ => Err(ApplyError::Read(name.to_owned(), error.to_string())),
        },
    }
}

async fn has_consumer(js: &jetstream::Context, stream: &str, name: &str) -> Result<bool, ApplyError> {
    let found: Result<PullConsumer, _> = js.get_consumer_from_stream(name, stream).await;
    match found {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ConsumerErrorKind::JetStream(error) if error.code() == 404 => Ok(false),
            _ => Err(ApplyError::Consumer(name.to_owned(), error.to_string())),
        },
    }
}

/// Makes the consumers of `region` again that somebody removed. Only a gateway may.
pub async fn mend_consumers(js: &jetstream::Context, region: &Region) {
    for (stream, config) in consumers(region) {
        let name = config.durable_name.clone().unwrap_or_default();
        if matches!(has_consumer(js, stream, &name).await, Ok(false)) {
            match js.create_consumer_on_stream(config, stream).await {
                Ok(_) => tracing::warn!(stream, name, "a consumer was missing and is made again"),
                Err(error) => tracing::error!(stream, name, %error, "a consumer is missing"),
            }
        }
    }
}

/// Makes the server's consumers match.
///
/// # Errors
/// When the server does not answer or refuses.
async fn apply_consumers(js: &jetstream::Context, region: &Region) -> Result<(), ApplyError> {
    for (stream, config) in consumers(region) {
        let name = config.durable_name.clone().unwrap_or_default();
        js.create_consumer_on_stream(config, stream)
            .await
            .map_err(|error| ApplyError::Consumer(name, error.to_string()))?;
    }
    Ok(())
}

/// How a stream stands with one of its sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced {
    /// The stream that is sourced.
    pub stream: String,
    /// The region whose stream it is.
    pub from: String,
    /// Messages that are not taken yet, when it was last heard of.
    pub lag: u64,
    /// For how long it was silent, if it was ever heard of. Awake, it is heard of every second.
    pub silent: Option<Duration>,
}

impl Sourced {
    /// Whether what it says is current.
    pub fn is_awake(&self) -> bool {
        self.silent.is_some_and(|silent| silent < ASLEEP)
    }
}

/// How the sources of `stream` in `region` stand. The client's own call does not say whose they are.
///
/// # Errors
/// When the server does not answer or has no such stream.
pub async fn sources(client: &Client, region: &Region, stream: &str) -> Result<Vec<Sourced>, async_nats::Error> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        sources: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        external: Option<Api>,
        #[serde(default)]
        lag: u64,
        #[serde(default)]
        active: i64,
    }
    #[derive(Deserialize)]
    struct Api {
        api: String,
    }
    let answer = client
        .request(Domain::Region(region).info_of(stream), "".into())
        .await?;
    let info: Info = serde_json::from_slice(&answer.payload)?;
    let sourced = info.sources.into_iter().filter_map(|source| {
        let prefix = source.external?.api;
        Some(Sourced {
            stream: source.name,
            from: prefix.split('.').nth(1)?.to_owned(),
            lag: source.lag,
            silent: u64::try_from(source.active).ok().map(Duration::from_nanos),
        })
    });
    Ok(sourced.collect())
}

/// The prefix of the API of a domain's `JetStream`.
fn api(domain: &str) -> String {
    format!("$JS.{domain}.API")
}

/// How long an origin may take to answer whether it is there.
const LOOK: Duration = Duration::from_secs(1);

/// An origin that says nothing is asked so often,
const QUESTIONS: u32 = 20;

/// and so long after the last question.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A source that was silent for this long sleeps: awake, it hears a heartbeat every second.
const ASLEEP: Duration = Duration::from_secs(5);

/// A source that was told anew has this long to reach its origin before it is told again.
const WAKING: Duration = Duration::from_secs(2);

/// Wakes sources. A server whose source lost its origin, or was made before the origin was, tries again only after up to
/// 45 seconds; told anew, it tries after 0.1 to 0.2 s.
#[derive(Debug, Default)]
pub struct Waker {
    /// How long after their origins were reached.
    later: Duration,
    /// When the sources of a stream were last told anew.
    woken: HashMap<String, Instant>,
}

impl Waker {
    /// Tells sources anew so long after their origins were reached, so that what matters more goes first: all that waits
    /// comes over one link.
    pub fn after(later: Duration) -> Self {
        Self {
            later,
            ..Self::default()
        }
    }

    /// Wakes the sources of `streams` whose origins can be reached; whether all were awake already. Until they are it
    /// costs little to look several times a second, and a network that is whole again is noticed as soon.
    pub async fn wake(&mut self, js: &jetstream::Context, streams: &[Config]) -> bool {
        let now = Instant::now();
        self.woken.retain(|_, woken| now.duration_since(*woken) < WAKING);
        let waking = |config: &Config| self.woken.contains_key(&config.name);
        let looked = streams.iter().filter(|config| !waking(config)).map(async |config| {
            let found = wake(js, config, self.later).await.unwrap_or_else(|error| {
                tracing::debug!(stream = config.name, %error, "sources could not be looked at");
                Found::Asleep
            });
            (config, found)
        });
        let looked = futures::future::join_all(looked).await;
        let told = looked.iter().filter(|(_, found)| *found == Found::Told);
        self.woken
            .extend(told.map(|(config, _)| (config.name.clone(), Instant::now())));
        self.woken.is_empty() && looked.iter().all(|(_, found)| *found == Found::Awake)
    }
}

/// How the sources of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Awake,
    /// Some sleep, and their origins cannot be reached.
    Asleep,
    /// Some slept, and were told anew.
    Told,
}

async fn wake(js: &jetstream::Context, config: &Config, later: Duration) -> Result<Found, async_nats::Error> {
    let Some(wanted) = &config.sources else {
        return Ok(Found::Awake);
    };
    let stream = js.get_stream(&config.name).await?;
    let found = &stream.cached_info().sources;
    let awake = found
        .iter()
        .filter(|source| source.active.is_some_and(|silent| silent < ASLEEP))
        .count();
    if awake == wanted.len() {
        return Ok(Found::Awake);
    }
    let mut answers: FuturesUnordered<_> = wanted.iter().map(|source| answers(js, source)).collect();
    let mut reachable = 0;
    // Which of them sleep is not told; but if more are reachable than are awake, one of those sleeps.
    while reachable <= awake {
        let Some(answers) = answers.next().await else {
            return Ok(Found::Asleep);
        };
        reachable += usize::from(answers);
    }
    tokio::time::sleep(later).await;
    js.update_stream(Config {
        sources: None,
        ..config.clone()
    })
    .await?;
    js.update_stream(config).await?;
    tracing::info!(stream = config.name, awake, "sources woken");
    Ok(Found::Told)
}

/// Whether the origin of `source` is there. Asked again while nothing is heard: a question that was on its way when the
/// network was cut is lost, and the next need not wait for it.
async fn answers(js: &jetstream::Context, source: &Source) -> bool {
    let Some(external) = &source.external else { return true };
    let (client, subject) = (
        js.client(),
        format!("{}.STREAM.INFO.{}", external.api_prefix, source.name),
    );
    let ask = async |nth: u32| {
        tokio::time::sleep(ASK_AGAIN * nth).await;
        tokio::time::timeout(LOOK, client.request(subject.clone(), "".into())).await
    };
    let asked = futures::future::select_ok((0..QUESTIONS).map(|nth| Box::pin(ask(nth)))).await;
    let Ok((Ok(answer), _)) = asked else { return false };
    serde_json::from_slice::<Map<String, Value>>(&answer.payload).is_ok_and(|info| !info.contains_key("error"))
}

/// Settings in which `found` differs from `wanted`. What `wanted` leaves at its default is the server's to choose.
fn differences(wanted: &Config, found: &Config) -> Vec<String> {
    let as_map = |config: &Config| match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (wanted, found, default) = (as_map(wanted), as_map(found), as_map(&Config::default()));
    let mut differences = Vec::new();
    for (key, value) in &wanted {
        let value = normal(value);
        let other = found.get(key).map_or(Value::Null, normal);
        if key != "metadata" && default.get(key).map(normal).as_ref() != Some(&value) && value != other {
            differences.push(format!("{key} is {other}, should be {value}"));
        }
    }
    if !wanted.contains_key("sources") && found.get("sources").is_some_and(|value| !is_empty(value)) {
        differences.push("sources should be empty".to_owned());
    }
    differences
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// `value` without members that say nothing, which the server adds or drops as it likes.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(k, v)| (k.clone(), normal(v)))
                .filter(|(_, v)| !is_empty(v))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(normal).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(region: &str) -> Mesh {
        let parse = |name: &str| name.parse().unwrap();
        Mesh {
            here: Here {
                region: parse(region),
                durability: Durability::default(),
                max_bytes: -1,
            },
            regions: vec![parse("eu"), parse("us")],
        }
    }

    #[test]
    fn what_the_server_fills_in_is_no_difference() {
        for wanted in mesh("eu").streams() {
            let mut found = wanted.clone();
            found.max_consumers = -1;
            found.metadata.insert("_nats.ver".into(), "2.15.1".into());
            assert_eq!(differences(&wanted, &found), Vec::<String>::new());
        }
    }

    #[test]
    fn a_changed_setting_is_named() {
        let wanted = mesh("eu")
            .streams()
            .into_iter()
            .find(|stream| stream.name == NOTIFY)
            .unwrap();
        let found = Config {
            max_age: HOUR,
            ..wanted.clone()
        };
        assert_eq!(differences(&wanted, &found).len(), 1);
        assert!(differences(&wanted, &found)[0].starts_with("max_age is 3600"));
    }

    #[test]
    fn no_region_stores_what_is_for_another_but_its_outbox() {
        let streams = mesh("eu").streams();
        for stream in &streams {
            let foreign = stream.subjects.iter().any(|subject| subject.contains(".us."));
            assert_eq!(foreign, stream.name == OUTBOX, "{}", stream.name);
        }
    }
}
