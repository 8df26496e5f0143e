//! Makes a server's streams and consumers match the wanted ones.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{PullConsumer, pull},
    context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind},
    stream::{Config, ConsumerError, ConsumerErrorKind, Info, Source},
};
use futures::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::{
    CONFIG, FORMER_KEY, INTAKE_CONSUMER, Mesh, PLANNED, RECEIPTS, RECIPIENTS, RegionSettings, VERSION, VERSION_KEY,
    app_of_intake, app_of_planned, consumers, feed_consumer, former_consumers, intake, planned_consumer,
    streams::{WORK_MAX_AGE, due_consumer, feed, intake_consumer},
};
use crate::{
    app::App,
    clock::Clock,
    id::{AppId, Region},
    nats::{
        follow::{self, StreamState},
        refusal::{Forbidden, is_about, unless_refused},
        restore::Former,
        subject,
    },
};

/// What [`apply`] did to one stream or consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was missing.
    Created(String),
    /// It differed, in these settings, and was made to match.
    Updated(String, Vec<String>),
    /// It differs, in these settings, and they cannot be changed on an existing stream.
    Drifted(String, Vec<String>),
    /// A newer gateway made it; it was left as it is.
    Newer(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created(name) => write!(f, "created {name}"),
            Self::Updated(name, settings) => write!(f, "updated {name}: {}", settings.join("; ")),
            Self::Drifted(name, settings) => write!(f, "{name} differs and cannot be changed: {}", settings.join("; ")),
            Self::Newer(name) => write!(f, "{name} was made by a newer gateway and stays"),
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
    /// The key is not that of this process's role, or the server's configuration is outdated.
    #[error("{0}; the server's roles.conf and nats.nkey_file must be of this role and region")]
    Forbidden(#[from] Forbidden),
}

/// Makes the server's streams match `wanted`; safe to repeat and to run from several processes at once. If only some of
/// them are missing, those are created as [`recreate`] does.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn apply(js: &jetstream::Context, wanted: &[Config]) -> Result<Vec<Change>, ApplyError> {
    let mut found = Vec::with_capacity(wanted.len());
    for config in wanted {
        found.push(info(js, &config.name).await?);
    }
    let begins = if found.iter().flatten().any(is_established) {
        Begins::AboveAnyFormer
    } else {
        Begins::AtOne
    };
    let mut changes = Vec::new();
    for (config, info) in wanted.iter().zip(found) {
        let name = config.name.clone();
        let Some(info) = info else {
            if Box::pin(create(js, config, begins, None)).await? {
                changes.push(Change::Created(name));
            }
            continue;
        };
        if is_newer(&info.config.metadata) {
            changes.push(Change::Newer(name));
            continue;
        }
        let config = &with_starts_of(config, &info.config);
        let mut differences = differences(config, &info.config);
        if version_of(&info.config.metadata) < VERSION {
            differences.push(format!(
                "version is {}, should be {VERSION}",
                version_of(&info.config.metadata)
            ));
        }
        if differences.is_empty() {
            continue;
        }
        let updated = Box::pin(js.update_stream(config.clone())).await;
        changes.push(match updated {
            Ok(_) => Change::Updated(name, differences),
            Err(_) => Change::Drifted(name, differences),
        });
    }
    Ok(changes)
}

/// Within this time a gateway creates all streams of a new region.
const CREATED_TOGETHER_WITHIN: SignedDuration = SignedDuration::from_secs(20);

/// At which sequence a stream that is created begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// At 1: there was none before.
    AtOne,
    /// Above any sequence that a former stream of this name can have had. So whoever has followed or sourced that one goes
    /// on from its position and skips nothing.
    AboveAnyFormer,
}

/// The first sequence of a stream that replaces a former one: the microseconds since 1970. No stream stores a message a
/// microsecond for years, and up to 2^53 every JSON reader understands the number.
fn above_any_former() -> Option<u64> {
    u64::try_from(Clock::system().now().as_microsecond()).ok()
}

/// `wanted` with what [`create`] gave to `found`, which replaces a deleted stream: the times at which its sources begin, and
/// the mark of what it replaces.
pub(super) fn with_starts_of(wanted: &Config, found: &Config) -> Config {
    let mut wanted = wanted.clone();
    let origin = |source: &Source| {
        let external = source.external.as_ref().map(|external| external.api_prefix.clone());
        (source.name.clone(), external)
    };
    for source in wanted.sources.iter_mut().flatten() {
        let known = found
            .sources
            .iter()
            .flatten()
            .find(|known| origin(known) == origin(source));
        if let Some(start_time) = known.and_then(|known| known.start_time) {
            (source.start_sequence, source.start_time) = (None, Some(start_time));
        }
    }
    if let Some(former) = found.metadata.get(FORMER_KEY) {
        wanted.metadata.insert(FORMER_KEY.to_owned(), former.clone());
    }
    wanted
}

/// When a stream with this configuration replaced one that was deleted, or that nobody can rule out; `None` if it is the
/// first of its name.
pub fn recreated_at(config: &Config) -> Option<Timestamp> {
    let first = i64::try_from(config.first_sequence?).ok()?;
    // A year's worth of microseconds: sequences of another origin are smaller.
    (first > 365 * 24 * 3600 * 1_000_000)
        .then(|| Timestamp::from_microsecond(first).ok())
        .flatten()
}

/// Whether a stream shows that its region has been at work before. The copy of the configuration does not, because it is
/// created first; nor does a stream that another gateway may be creating now, together with the others.
fn is_established(info: &Info) -> bool {
    let created = follow::timestamp(info.created.unix_timestamp_nanos());
    info.config.name != CONFIG && Clock::system().now().duration_since(created) > CREATED_TOGETHER_WITHIN
}

/// Creates a stream; `false` if another process was faster.
///
/// The facts that other regions have sent are not fetched once more into a bucket of recipients that was deleted: many were
/// replaced since, and consent that was withdrawn here would come back. Workers restore it; for them it says which one it
/// replaces, of which `former` is the last known state.
async fn create(
    js: &jetstream::Context,
    config: &Config,
    begins: Begins,
    former: Option<StreamState>,
) -> Result<bool, ApplyError> {
    let mut config = config.clone();
    if begins == Begins::AboveAnyFormer {
        config.first_sequence = above_any_former();
    }
    if begins == Begins::AboveAnyFormer && config.name == RECIPIENTS {
        let now = async_nats::datetime::from_nanos(Clock::system().now().as_nanosecond()).ok();
        for source in config.sources.iter_mut().flatten() {
            (source.start_sequence, source.start_time) = (None, now);
        }
        config.metadata.insert(FORMER_KEY.to_owned(), Former::of(former));
    }
    let name = config.name.clone();
    match js.create_stream(config).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), CreateStreamErrorKind::JetStream(ref e) if e.error_code() == jetstream::ErrorCode::STREAM_NAME_EXIST) => {
            Ok(false)
        }
        Err(error) => Err(ApplyError::Create(name, error)),
    }
}

/// Those of `wanted` that the server does not have. One request, whatever their number.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn missing_streams(js: &jetstream::Context, wanted: Vec<Config>) -> Result<Vec<Config>, ApplyError> {
    let listing = js.stream_names().try_collect::<HashSet<String>>();
    let listed = unless_refused(&js.client(), |subject| is_about(subject, "NAMES"), listing).await?;
    let listed = listed.map_err(|error| ApplyError::Read("names".to_owned(), error.to_string()))?;
    Ok(wanted
        .into_iter()
        .filter(|config| !listed.contains(&config.name))
        .collect())
}

/// Creates streams that were deleted. Each begins above any sequence that the former had. `bucket` is the last known state of
/// the bucket of recipients.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn recreate(
    js: &jetstream::Context,
    missing: &[Config],
    bucket: Option<StreamState>,
) -> Result<(), ApplyError> {
    for config in missing {
        if Box::pin(create(js, config, Begins::AboveAnyFormer, bucket)).await? {
            let stream = &config.name;
            if config.name == RECIPIENTS {
                tracing::error!(
                    stream,
                    "a stream was deleted and is created again; workers restore what it held"
                );
            } else {
                tracing::error!(
                    stream,
                    "a stream was deleted and is created again; what it held is lost"
                );
            }
        }
    }
    Ok(())
}

/// Makes a region's streams and consumers match, and logs the changes; `overflow` is whether its lanes have an overflow.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn apply_region(js: &jetstream::Context, mesh: &Mesh, overflow: bool) -> Result<(), ApplyError> {
    let applying = async {
        log(apply(js, &mesh.streams()).await?);
        for (stream, config) in consumers(&mesh.here.region, overflow) {
            apply_consumer(js, stream, config).await?;
        }
        Ok(())
    };
    unless_refused(&js.client(), |_| true, applying).await?
}

/// Makes the intake of `app` and its consumer match, and creates the app's status feed if it is missing.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn apply_intake(js: &jetstream::Context, here: &RegionSettings, app: &App) -> Result<(), ApplyError> {
    let stream = here.intake_stream(app);
    let applying = async {
        // Whether there was one before is not known. A letter names what it is about by its sequence there.
        if info(js, &stream.name).await?.is_none()
            && Box::pin(create(js, &stream, Begins::AboveAnyFormer, None)).await?
        {
            tracing::info!(stream = stream.name, "created an intake");
        }
        log(apply(js, std::slice::from_ref(&stream)).await?);
        apply_consumer(js, &stream.name, intake_consumer(app)).await?;
        let name = feed_consumer(&app.id);
        if !has_consumer(js, RECEIPTS, &name).await? {
            let created = js.create_consumer_on_stream(feed(&app.id), RECEIPTS).await;
            created.map_err(|error| ApplyError::Consumer(name, error.to_string()))?;
        }
        Ok(())
    };
    let feed = feed_consumer(&app.id);
    let concerns = |subject: &str| is_about(subject, &stream.name) || is_about(subject, &feed);
    unless_refused(&js.client(), concerns, applying).await?
}

/// The apps that have an intake at this server.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn intakes(js: &jetstream::Context) -> Result<Vec<AppId>, ApplyError> {
    let concerns = |subject: &str| subject.ends_with("STREAM.NAMES");
    let listing = js.stream_names().try_collect::<Vec<String>>();
    let names = unless_refused(&js.client(), concerns, listing).await?;
    let names = names.map_err(|error| ApplyError::Read("names".to_owned(), error.to_string()))?;
    Ok(names.iter().filter_map(|name| app_of_intake(name)).collect())
}

/// The apps that have a consumer of what is due, at this server.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn planned(js: &jetstream::Context) -> Result<HashSet<AppId>, ApplyError> {
    let listing = async {
        let failed = |error: &dyn fmt::Display| ApplyError::Read(PLANNED.to_owned(), error.to_string());
        let stream = js.get_stream_no_info(PLANNED).await.map_err(|error| failed(&error))?;
        let names = stream.consumer_names().try_collect::<Vec<String>>().await;
        let names = names.map_err(|error| failed(&error))?;
        Ok(names.iter().filter_map(|name| app_of_planned(name)).collect())
    };
    unless_refused(&js.client(), |subject| is_about(subject, PLANNED), listing).await?
}

/// Creates the consumer of what is due of `app`.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn apply_planned(js: &jetstream::Context, app: &AppId) -> Result<(), ApplyError> {
    let applying = apply_consumer(js, PLANNED, due_consumer(app));
    unless_refused(&js.client(), |subject| is_about(subject, PLANNED), applying).await?
}

/// Removes everything that is planned of `app`, which is gone, and the consumer of what is due of it. Returns the number of
/// messages that were removed.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn retire_planned(js: &jetstream::Context, app: &AppId) -> Result<u64, ApplyError> {
    let name = planned_consumer(app);
    let retiring = async {
        let failed = |error: &dyn fmt::Display| ApplyError::Read(PLANNED.to_owned(), error.to_string());
        let stream = js.get_stream_no_info(PLANNED).await.map_err(|error| failed(&error))?;
        let purged = stream.purge().filter(subject::planned_of(app)).await;
        let purged = purged.map_err(|error| failed(&error))?.purged;
        match js.delete_consumer_from_stream(&name, PLANNED).await {
            Err(error) if !is_missing(&error) => Err(ApplyError::Consumer(name.clone(), error.to_string())),
            _ => Ok(purged),
        }
    };
    unless_refused(&js.client(), |subject| is_about(subject, PLANNED), retiring).await?
}

/// What became of an intake that is wanted no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// It is gone, and so is the status feed. This many messages were in it that nobody worked off.
    Removed(u64),
    /// It takes nothing more, and this many messages wait in it.
    Waits(u64),
}

/// Closes the intake of `app`, whose services publish no more, and removes it with the status feed of the app once nothing
/// waits in it, or once all that waits has outlived every notification at `now`. Until then what was acknowledged can still be
/// worked off. `has_app` is whether the app is still there; without it nobody reads the feed, which goes at once.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn retire_intake(
    js: &jetstream::Context,
    app: &AppId,
    has_app: bool,
    now: Timestamp,
) -> Result<Retired, ApplyError> {
    let (name, feed) = (intake(app), feed_consumer(app));
    let failed = |error: &dyn fmt::Display| ApplyError::Read(name.clone(), error.to_string());
    let retiring = async {
        let Some(found) = info(js, &name).await? else {
            return Ok(Retired::Removed(0));
        };
        close(js, &found.config).await.map_err(|error| failed(&error))?;
        // Nothing can be stored any more, so what is found now is all.
        let stream = js.get_stream(&name).await.map_err(|error| failed(&error))?;
        let state = stream.cached_info().state.clone();
        let consumer: Result<PullConsumer, _> = stream.get_consumer(INTAKE_CONSUMER).await;
        let waiting = consumer.map_or(state.messages, |consumer| {
            let info = consumer.cached_info();
            info.num_pending + info.num_ack_pending as u64
        });
        let newest = follow::timestamp(state.last_timestamp.unix_timestamp_nanos());
        let outlived = now.duration_since(newest).unsigned_abs() > WORK_MAX_AGE && newest < now;
        let is_over = waiting == 0 || outlived;
        if is_over || !has_app {
            match js.delete_consumer_from_stream(&feed, RECEIPTS).await {
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(ApplyError::Consumer(feed.clone(), error.to_string())),
            }
        }
        if !is_over {
            return Ok(Retired::Waits(waiting));
        }
        js.delete_stream(&name).await.map_err(|error| failed(&error))?;
        Ok(Retired::Removed(waiting))
    };
    let concerns = |subject: &str| is_about(subject, &name) || is_about(subject, &feed);
    unless_refused(&js.client(), concerns, retiring).await?
}

/// Lets an intake take nothing more: the smallest body, `{}`, is larger than what it stores. [`apply_intake`] opens it again.
async fn close(js: &jetstream::Context, found: &Config) -> Result<(), CreateStreamError> {
    let closed = Config {
        max_message_size: 1,
        sources: None,
        ..found.clone()
    };
    if found.max_message_size != closed.max_message_size || found.sources.as_ref().is_some_and(|all| !all.is_empty()) {
        Box::pin(js.update_stream(closed)).await?;
    }
    Ok(())
}

fn log(changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Created(_) | Change::Updated(..) | Change::Newer(_) => tracing::info!(%change, "topology"),
            Change::Drifted(..) => tracing::error!(%change, "topology drifted; an operator must decide"),
        }
    }
}

/// How often [`wait_for_region`] checks.
const REGION_CHECKED_EVERY: Duration = Duration::from_millis(200);

/// Waits until a region's gateway has created the region's streams and the consumers of its workers.
///
/// # Errors
/// When the server refuses.
pub async fn wait_for_region(js: &jetstream::Context, region: &Region) -> Result<(), ApplyError> {
    let mut logged = None;
    loop {
        let missing = match unless_refused(&js.client(), |_| true, missing(js, region)).await? {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            // Three servers that have just started need some seconds to elect a leader.
            Err(error) => error.to_string(),
        };
        if logged.as_ref() != Some(&missing) {
            tracing::info!(%region, missing, "waiting for the region's gateway");
            logged = Some(missing);
        }
        tokio::time::sleep(REGION_CHECKED_EVERY).await;
    }
}

/// The first missing consumer of workers among those that a gateway of the version before makes, too. If there is none, no stream
/// is missing: a gateway creates streams first.
async fn missing(js: &jetstream::Context, region: &Region) -> Result<Option<String>, ApplyError> {
    for (stream, config) in former_consumers(region) {
        let name = config.durable_name.unwrap_or_default();
        if !has_consumer(js, stream, &name).await? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// What the server reports about a stream; `None` if there is no such stream.
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
    Ok(consumer_metadata(js, stream, name).await?.is_some())
}

/// The metadata of a consumer; `None` if there is no such consumer.
async fn consumer_metadata(
    js: &jetstream::Context,
    stream: &str,
    name: &str,
) -> Result<Option<HashMap<String, String>>, ApplyError> {
    let found: Result<PullConsumer, _> = js.get_consumer_from_stream(name, stream).await;
    match found {
        Ok(consumer) => Ok(Some(consumer.cached_info().config.metadata.clone())),
        Err(error) => match error.kind() {
            ConsumerErrorKind::JetStream(error) if error.code() == 404 => Ok(None),
            _ => Err(ApplyError::Consumer(name.to_owned(), error.to_string())),
        },
    }
}

fn is_missing(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(error) if error.code() == 404)
}

/// Recreates the consumers of `region` that are missing. Only a gateway is permitted to.
pub async fn mend_consumers(js: &jetstream::Context, region: &Region, overflow: bool) {
    for (stream, config) in consumers(region, overflow) {
        let name = config.durable_name.clone().unwrap_or_default();
        if matches!(has_consumer(js, stream, &name).await, Ok(false)) {
            match js.create_consumer_on_stream(config, stream).await {
                Ok(_) => tracing::warn!(stream, name, "recreated a missing consumer"),
                Err(error) => tracing::error!(stream, name, %error, "a consumer is missing and cannot be recreated"),
            }
        }
    }
}

/// Makes a consumer match.
///
/// # Errors
/// When the server does not answer or refuses.
async fn apply_consumer(js: &jetstream::Context, stream: &str, config: pull::Config) -> Result<(), ApplyError> {
    let name = config.durable_name.clone().unwrap_or_default();
    if let Some(metadata) = consumer_metadata(js, stream, &name).await?
        && is_newer(&metadata)
    {
        return Ok(());
    }
    js.create_consumer_on_stream(config, stream)
        .await
        .map(|_| ())
        .map_err(|error| ApplyError::Consumer(name, error.to_string()))
}

/// Whether a newer gateway made the stream or consumer with this metadata.
pub(super) fn is_newer(metadata: &HashMap<String, String>) -> bool {
    version_of(metadata) > VERSION
}

pub(super) fn version_of(metadata: &HashMap<String, String>) -> u32 {
    // A gateway of 0.1 writes no version; one that cannot be read is a newer gateway's.
    metadata
        .get(VERSION_KEY)
        .map_or(1, |text| text.parse().unwrap_or(u32::MAX))
}

/// Settings in which `found` differs from `wanted`. Settings that `wanted` leaves at their default are the server's choice.
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

/// `value` without empty members, which the server adds and drops freely.
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
    use crate::nats::topology::{NOTIFY, mesh_of_two};

    #[test]
    fn defaults_filled_in_by_the_server_are_no_difference() {
        for wanted in mesh_of_two("eu").streams() {
            let mut found = wanted.clone();
            found.max_consumers = -1;
            found.metadata.insert("_nats.ver".into(), "2.15.1".into());
            assert_eq!(differences(&wanted, &found), Vec::<String>::new());
        }
    }

    #[test]
    fn what_a_newer_gateway_made_is_newer() {
        let stream = &mesh_of_two("eu").streams()[0];
        assert!(!is_newer(&stream.metadata) && version_of(&stream.metadata) == VERSION);
        assert!(is_newer(&[(VERSION_KEY.to_owned(), (VERSION + 1).to_string())].into()));
        assert_eq!(version_of(&HashMap::new()), 1, "0.1");
    }

    #[test]
    fn a_source_keeps_the_time_at_which_it_begins() {
        let wanted = mesh_of_two("eu").streams();
        let wanted = wanted.iter().find(|stream| stream.name == RECIPIENTS).unwrap();
        let mut found = wanted.clone();
        let source = &mut found.sources.as_mut().unwrap()[0];
        (source.start_sequence, source.start_time) = (None, async_nats::datetime::from_nanos(1).ok());
        assert_eq!(with_starts_of(wanted, &found).sources, found.sources);
        assert_eq!(with_starts_of(wanted, wanted).sources, wanted.sources);
    }

    #[test]
    fn a_changed_setting_is_named() {
        let wanted = mesh_of_two("eu")
            .streams()
            .into_iter()
            .find(|stream| stream.name == NOTIFY)
            .unwrap();
        let found = Config {
            max_age: Duration::from_hours(1),
            ..wanted.clone()
        };
        assert_eq!(differences(&wanted, &found).len(), 1);
        assert!(differences(&wanted, &found)[0].starts_with("max_age is 3600"));
    }
}
