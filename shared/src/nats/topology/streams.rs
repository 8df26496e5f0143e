//! The streams and consumers of a region and of the hub, as data.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::{Config, DiscardPolicy, External, RetentionPolicy, Source, SubjectTransform},
};

use super::{
    ALERTS_CONSUMER, CONFIG, CONFIG_BUCKET, DEAD, DIRECTORY, FEEDBACK, HUB, IDEMPOTENCY, INTAKE_CONSUMER,
    MOVED_CONSUMER, Mesh, NOTIFY, OUTBOX, PLANNED, QUOTA, RECEIPTS, RECIPIENTS, RegionSettings, SCHEDULE, SPEND,
    VERSION, VERSION_KEY, api, feed_consumer, intake, lane_consumer, planned_consumer, retry_consumer, slice_consumer,
    spill_consumer,
};
use crate::{
    app::App,
    channel::Channel,
    content::MAX_LIFE_S,
    id::{AppId, Region},
    nats::{
        accounts,
        subject::{self, Tier},
    },
};

/// How long streams of work remember a message id. The workers' ledgers remember jobs for days.
pub const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);

/// How long [`RECEIPTS`], [`FEEDBACK`] and [`DEAD`] remember a message id.
const RECORDS_DUPLICATE_WINDOW: Duration = Duration::from_hours(1);

/// How long work is kept: longer than the longest time to live, so that expiry is always a worker's decision.
pub const WORK_MAX_AGE: Duration = Duration::from_secs(MAX_LIFE_S as u64 + 2 * 24 * 3600);

/// How long receipts are kept.
pub const RECEIPTS_MAX_AGE: Duration = Duration::from_hours(3 * 24);

/// How long feedback is kept.
const FEEDBACK_MAX_AGE: Duration = Duration::from_hours(90 * 24);

/// Reports about one notification that a region keeps of those that one region took; the oldest go first. An app that reports
/// without end about its own messages must not fill the disk.
const NOTIFICATION_FEEDBACK_MAX: i64 = 65_536;

/// How long dead letters are kept.
pub const LETTERS_MAX_AGE: Duration = Duration::from_hours(28 * 24);

/// How long the record of an idempotency key is kept.
pub const IDEMPOTENCY_MAX_AGE: Duration = Duration::from_hours(48);

/// How long a region's quota pool is kept after its last change.
const REGION_QUOTA_MAX_AGE: Duration = Duration::from_hours(1);

/// How long a counter of segments is kept after its last change: longer than the longest window, a day.
const SPEND_MAX_AGE: Duration = Duration::from_hours(48);

/// How long [`SPEND`] remembers what was counted.
const SPEND_DUPLICATE_WINDOW: Duration = Duration::from_hours(1);

/// How long a quota pool at the hub is kept after its last change: workers look at every pool that is there.
const HUB_QUOTA_MAX_AGE: Duration = Duration::from_mins(2);

/// How long the server waits for a worker's acknowledgement before it gives the message to another one. Must be longer
/// than an attempt and its settlement may take, or a second worker repeats an attempt that is still in progress.
pub const WORK_ACK_WAIT: Duration = Duration::from_secs(30);

/// How long the server waits for a gateway's acknowledgement of an alert before it gives the letter to another one.
pub const ALERTS_ACK_WAIT: Duration = Duration::from_mins(2);

/// Maximum size of a message of an intake with its headers: message ids are kept in memory, however long.
pub const INTAKE_MAX_MESSAGE_BYTES: i32 = 65_536;

/// How long the server waits for a gateway's acknowledgement of an intake's message. Longer than the streams have to
/// acknowledge jobs and letters.
const INTAKE_ACK_WAIT: Duration = Duration::from_secs(12);

/// Maximum number of messages that all gateways of a region together have pulled from one intake and not acknowledged.
const INTAKE_UNACKNOWLEDGED_MAX: i64 = 2048;

/// Maximum number of messages that all workers of a region together have pulled from one consumer and not acknowledged.
const CONSUMER_UNACKNOWLEDGED_MAX: i64 = 65_536;

/// Maximum number of messages that all services of one app together have pulled from its feed and not acknowledged.
const FEED_UNACKNOWLEDGED_MAX: i64 = 1024;

impl RegionSettings {
    /// The region's copy of the hub's configuration. It names the regions, which all other streams need.
    pub fn config_stream(&self) -> Config {
        Config {
            max_messages_per_subject: 1,
            allow_rollup: true,
            deny_delete: true,
            // Not a mirror: after a cut, a source can be woken within 0.15 s; a mirror takes up to 39 s.
            sources: Some(vec![source(CONFIG, HUB, None)]),
            ..self.base(CONFIG, Vec::new())
        }
    }

    /// The intake of `app`. Limits retention and not a work queue: a work queue forgets the ids of consumed messages when
    /// the server restarts. Everything by which one message could change others stays off.
    pub fn intake_stream(&self, app: &App) -> Config {
        Config {
            max_message_size: INTAKE_MAX_MESSAGE_BYTES,
            max_bytes: self.intake_max_bytes,
            duplicate_window: DUPLICATE_WINDOW,
            deny_delete: true,
            sources: app.outbox.then(|| vec![outbox_source(app)]),
            ..self.base(&intake(&app.id), vec![subject::send(app.account_name())])
        }
    }

    fn base(&self, name: &str, subjects: Vec<String>) -> Config {
        Config {
            name: name.to_owned(),
            subjects,
            discard: DiscardPolicy::New,
            num_replicas: self.durability.replicas(),
            allow_direct: true,
            metadata: version(),
            ..Config::default()
        }
    }
}

/// The metadata with which a gateway says which version of the topology it applied.
fn version() -> HashMap<String, String> {
    [(VERSION_KEY.to_owned(), VERSION.to_string())].into()
}

impl Mesh {
    /// All streams of this region.
    pub fn streams(&self) -> Vec<Config> {
        [self.work(), self.records(), self.knowledge()].concat()
    }

    fn base(&self, name: &str, subjects: Vec<String>) -> Config {
        self.here.base(name, subjects)
    }

    /// The streams of work: for this region, for others, and for later.
    fn work(&self) -> Vec<Config> {
        let here = &self.here.region;
        let notify = Config {
            max_age: WORK_MAX_AGE,
            max_bytes: self.here.max_bytes,
            duplicate_window: DUPLICATE_WINDOW,
            allow_atomic_publish: true,
            // One filter for all channels: it is part of the source's identity, so changing it would replay everything.
            sources: self.sources(|other| source(OUTBOX, other.as_str(), Some(subject::notify_all_filter(here)))),
            ..self.base(NOTIFY, work_for(here).collect())
        };
        let outbound = self
            .others()
            .flat_map(|other| work_for(other).chain([subject::fact_filter(other)]));
        let outbox = Config {
            max_age: WORK_MAX_AGE,
            max_bytes: self.here.max_bytes,
            duplicate_window: DUPLICATE_WINDOW,
            allow_atomic_publish: true,
            ..self.base(OUTBOX, outbound.collect())
        };
        let schedule = Config {
            // A retry is removed once it is acknowledged; only waiting ones are worth keeping.
            retention: RetentionPolicy::WorkQueue,
            max_age: WORK_MAX_AGE,
            duplicate_window: DUPLICATE_WINDOW,
            allow_message_schedules: true,
            allow_message_ttl: true,
            allow_rollup: true,
            allow_atomic_publish: true,
            // The server refuses schedules together with `New`. Without a size limit, age alone discards.
            discard: DiscardPolicy::Old,
            ..self.base(
                SCHEDULE,
                [
                    subject::SCHEDULE_FILTER,
                    subject::DUE_FILTER,
                    subject::SPILL_FILTER,
                    subject::SLICE_FILTER,
                    subject::SPLIT_FILTER,
                    subject::MOVED_FILTER,
                ]
                .map(str::to_owned)
                .to_vec(),
            )
        };
        let planned = Config {
            // No age and no size discards what waits. What is due goes when a gateway has accepted it, everything else by a time
            // to live of its own.
            retention: RetentionPolicy::WorkQueue,
            allow_message_schedules: true,
            allow_message_ttl: true,
            allow_rollup: true,
            discard: DiscardPolicy::Old,
            ..self.base(PLANNED, vec![subject::PLANNED_FILTER.to_owned()])
        };
        // A mesh of one region has no other to send to, and a stream needs subjects.
        if outbox.subjects.is_empty() {
            vec![notify, schedule, planned]
        } else {
            vec![outbox, notify, schedule, planned]
        }
    }

    /// The streams of records: receipts, feedback, dead letters and idempotency keys.
    fn records(&self) -> Vec<Config> {
        let here = &self.here.region;
        let receipts = Config {
            max_age: RECEIPTS_MAX_AGE,
            duplicate_window: RECORDS_DUPLICATE_WINDOW,
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
            max_age: LETTERS_MAX_AGE,
            duplicate_window: RECORDS_DUPLICATE_WINDOW,
            ..self.base(DEAD, vec![subject::dead_filter(here)])
        };
        let idempotency = Config {
            max_age: IDEMPOTENCY_MAX_AGE,
            // Nonces of signed requests are kept for minutes.
            allow_message_ttl: true,
            max_messages_per_subject: 1,
            sources: self
                .sources(|other| source(IDEMPOTENCY, other.as_str(), Some(subject::idempotency_filter(other)))),
            discard: DiscardPolicy::Old,
            ..self.base(IDEMPOTENCY, vec![subject::idempotency_filter(here)])
        };
        let feedback = Config {
            max_age: FEEDBACK_MAX_AGE,
            max_messages_per_subject: NOTIFICATION_FEEDBACK_MAX,
            duplicate_window: RECORDS_DUPLICATE_WINDOW,
            sources: self.sources(|other| {
                let filter = subject::feedback_home_filter(other, here);
                source(FEEDBACK, other.as_str(), Some(filter))
            }),
            ..self.base(FEEDBACK, vec![subject::feedback_filter(here)])
        };
        vec![receipts, feedback, dead, idempotency]
    }

    /// The streams of knowledge about recipients and apps, of quotas, and of what was spent.
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
            max_age: REGION_QUOTA_MAX_AGE,
            ..self.base(QUOTA, vec![subject::QUOTA_FILTER.into()])
        };
        let spend = Config {
            allow_message_counter: true,
            max_messages_per_subject: 1,
            max_age: SPEND_MAX_AGE,
            duplicate_window: SPEND_DUPLICATE_WINDOW,
            // The server refuses counters together with `New`. Without a size limit, age alone discards: a counter that is
            // lost too early would begin at 0 again. Caps and windows, which operators set, bound the number of counters.
            discard: DiscardPolicy::Old,
            ..self.base(SPEND, vec![subject::SPEND_FILTER.into()])
        };
        vec![directory, recipients, quota, spend, self.here.config_stream()]
    }

    fn sources(&self, of: impl Fn(&Region) -> Source) -> Option<Vec<Source>> {
        let sources: Vec<Source> = self.others().map(of).collect();
        (!sources.is_empty()).then_some(sources)
    }
}

/// The durable consumer of the intake of `app`.
pub(super) fn intake_consumer(app: &App) -> pull::Config {
    pull::Config {
        ack_wait: INTAKE_ACK_WAIT,
        max_ack_pending: INTAKE_UNACKNOWLEDGED_MAX,
        ..consumer(INTAKE_CONSUMER, subject::send(app.account_name()))
    }
}

/// The durable consumer of what is due of `app`.
pub(super) fn due_consumer(app: &AppId) -> pull::Config {
    pull::Config {
        ack_wait: INTAKE_ACK_WAIT,
        max_ack_pending: INTAKE_UNACKNOWLEDGED_MAX,
        ..consumer(&planned_consumer(app), subject::planned_dues_of(app))
    }
}

/// The durable consumers of a region, each with its stream; `overflow` is whether its lanes have an overflow, and whether there are
/// lanes for more than pushes.
pub fn consumers(region: &Region, overflow: bool) -> Vec<(&'static str, pull::Config)> {
    let alerts = pull::Config {
        // Older letters were reported, or came before anyone had asked for alerts.
        deliver_policy: DeliverPolicy::New,
        ack_wait: ALERTS_ACK_WAIT,
        ..consumer(ALERTS_CONSUMER, subject::dead_filter(region))
    };
    let mut all = if overflow {
        workers_consumers(region)
    } else {
        // A gateway of the version before has one consumer for the retries of all channels, and could not start beside others.
        former_consumers(region)
    };
    all.push((DEAD, alerts));
    all.push((SCHEDULE, consumer(MOVED_CONSUMER, subject::MOVED_FILTER.into())));
    all
}

/// The consumer on [`RECEIPTS`] from which services of `app` read what became of its notifications, from the oldest
/// receipt on that is still kept.
pub(super) fn feed(app: &AppId) -> pull::Config {
    pull::Config {
        filter_subject: String::new(),
        filter_subjects: subject::receipts_anywhere(app).into(),
        max_ack_pending: FEED_UNACKNOWLEDGED_MAX,
        ..consumer(&feed_consumer(app), String::new())
    }
}

/// The durable consumers that a region's workers share, each with its stream: those of the main tier, and those of the
/// overflow.
pub fn workers_consumers(region: &Region) -> Vec<(&'static str, pull::Config)> {
    let overflow = of_tier(region, Tier::Overflow, Channel::ALL);
    main_consumers(region, Channel::ALL)
        .into_iter()
        .chain(overflow)
        .collect()
}

/// Those of the main tier that a gateway of the version before makes, too: it knew pushes alone. Workers wait for these when they
/// start, and for each of the others before they pull from it.
pub fn former_consumers(region: &Region) -> Vec<(&'static str, pull::Config)> {
    main_consumers(region, &[Channel::Push])
}

/// The durable consumers of the main tier for these channels.
fn main_consumers(region: &Region, channels: &[Channel]) -> Vec<(&'static str, pull::Config)> {
    let spill = channels.iter().map(|channel| {
        let filter = subject::spill_channel_filter(*channel);
        (SCHEDULE, consumer(&spill_consumer(*channel), filter))
    });
    of_tier(region, Tier::Main, channels).into_iter().chain(spill).collect()
}

/// The consumers of one tier for these channels: fresh jobs and slices of each lane, and retries of each channel. So an outage
/// of one channel does not delay the retries of another.
fn of_tier(region: &Region, tier: Tier, channels: &[Channel]) -> Vec<(&'static str, pull::Config)> {
    let consumer = |stream, name, filter: String| (stream, consumer(&tier.consumer(name), tier.subject(&filter)));
    let lanes = Mesh::lanes().filter(|(channel, _)| channels.contains(channel));
    let lanes = lanes.flat_map(|(channel, class)| {
        let fresh = subject::notify_class_filter(channel, region, class);
        let slices = subject::slice_class_filter(channel, class);
        [
            consumer(NOTIFY, lane_consumer(channel, class), fresh),
            consumer(SCHEDULE, slice_consumer(channel, class), slices),
        ]
    });
    let retries = channels.iter().map(|channel| {
        let filter = subject::due_channel_filter(*channel);
        consumer(SCHEDULE, retry_consumer(*channel), filter)
    });
    lanes.chain(retries).collect()
}

/// The subjects of every lane of `region`. No stream accepts others, so the server refuses a misspelled class.
pub(in crate::nats) fn work_for(region: &Region) -> impl Iterator<Item = String> {
    Mesh::lanes().flat_map(move |(channel, class)| {
        let main = subject::notify_class_filter(channel, region, class);
        Tier::ALL.map(|tier| tier.subject(&main))
    })
}

/// The streams of the hub.
pub fn hub_streams(replicas: usize) -> Vec<Config> {
    let base = Config {
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_direct: true,
        num_replicas: replicas,
        metadata: version(),
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
        max_age: HUB_QUOTA_MAX_AGE,
        ..base
    };
    vec![config, quota]
}

/// How the intake of `app` takes what the app's own server kept in its stream `OUTBOX` while it was cut off.
fn outbox_source(app: &App) -> Source {
    Source {
        name: accounts::OUTBOX.to_owned(),
        external: Some(External {
            api_prefix: accounts::outbox_api(&app.id),
            delivery_prefix: Some(accounts::outbox_delivery(&app.id)),
        }),
        start_sequence: Some(1),
        subject_transforms: vec![SubjectTransform {
            source: accounts::OUTBOX_SUBJECT.to_owned(),
            destination: subject::send(app.account_name()),
        }],
        ..Source::default()
    }
}

/// A source that misses nothing. A server that knows no position, for example because the destination was trimmed before
/// its first message came, begins at the time of the destination's last message and silently skips older ones. With an
/// explicit start at 1 it replays instead, which message ids and ledgers make harmless.
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
        ack_wait: WORK_ACK_WAIT,
        // Workers count attempts; a limit here would only make a message invisible.
        max_deliver: -1,
        max_ack_pending: CONSUMER_UNACKNOWLEDGED_MAX,
        metadata: version(),
        ..pull::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use crate::nats::topology::{OUTBOX, mesh_of_two};

    #[test]
    fn no_region_stores_what_is_for_another_but_its_outbox() {
        let streams = mesh_of_two("eu").streams();
        for stream in &streams {
            let foreign = stream.subjects.iter().any(|subject| subject.contains(".us."));
            assert_eq!(foreign, stream.name == OUTBOX, "{}", stream.name);
        }
    }
}
