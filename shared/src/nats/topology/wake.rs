//! How far streams have copied their sources, and waking sources that sleep.

use std::{collections::HashMap, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self,
        stream::{Config, Source},
    },
};
use futures::{StreamExt, stream::FuturesUnordered};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    Domain, NOTIFY,
    apply::{is_newer, version_of, with_starts_of},
};
use crate::id::Region;

/// The state of one source of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced {
    /// The stream that is sourced.
    pub stream: String,
    /// The region whose stream it is.
    pub from: String,
    /// Messages not copied yet, as of the last contact.
    pub lag: u64,
    /// Time since the last contact; `None` if there was none yet. A source that is awake has contact every second.
    pub silent: Option<Duration>,
}

impl Sourced {
    /// Whether [`Self::lag`] is current.
    pub fn is_awake(&self) -> bool {
        self.silent.is_some_and(|silent| silent < ASLEEP_AFTER)
    }
}

/// The states of the sources of `stream` in `region`. The client's own call does not name their regions.
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

/// The version of the topology that a gateway of `region` applied; `None` if the server does not answer.
pub async fn version_at(client: &Client, region: &Region) -> Option<u32> {
    #[derive(Deserialize)]
    struct Info {
        config: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        metadata: HashMap<String, String>,
    }
    let asking = client.request(Domain::Region(region).info_of(NOTIFY), "".into());
    let answer = asking.await.ok()?;
    let info: Info = serde_json::from_slice(&answer.payload).ok()?;
    Some(version_of(&info.config.metadata))
}

/// How long to wait for each answer of an origin.
const ORIGIN_ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// How often a silent origin is asked.
const ORIGIN_QUESTIONS_MAX: u32 = 20;

/// Time between two questions to an origin.
const ORIGIN_ASKED_EVERY: Duration = Duration::from_millis(50);

/// A source without contact for this long is asleep: one that is awake gets a heartbeat every second.
const ASLEEP_AFTER: Duration = Duration::from_secs(5);

/// How long a source that was configured again has to reach its origin before that is repeated. After the origin was
/// deleted and created again the server needs up to 2.4 s, and each repetition before that would make it begin anew.
const WAKE_RETRIED_AFTER: Duration = Duration::from_secs(4);

/// Wakes sources. When a source has lost its origin, or was created before it, the server retries only after up to 45
/// seconds; when the source is configured again, it retries after 0.1 to 0.2 s.
#[derive(Debug, Default)]
pub struct Waker {
    /// How long to wait after the origins were reached.
    delay: Duration,
    /// When each stream's sources were last configured again.
    woken: HashMap<String, Instant>,
}

impl Waker {
    /// Wakes sources only after a further `delay`, so that more important streams go first: everything that waited comes
    /// over one link.
    pub fn after(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// Wakes the sources of `streams` whose origins can be reached, and returns whether all were awake already. Until they
    /// are, call this several times a second: it costs little, and the end of a cut is noticed soon.
    pub async fn wake(&mut self, js: &jetstream::Context, streams: &[Config]) -> bool {
        let now = Instant::now();
        self.woken
            .retain(|_, woken| now.duration_since(*woken) < WAKE_RETRIED_AFTER);
        let waking = |config: &Config| self.woken.contains_key(&config.name);
        let checked = streams.iter().filter(|config| !waking(config)).map(async |config| {
            let found = wake(js, config, self.delay).await.unwrap_or_else(|error| {
                tracing::debug!(stream = config.name, %error, "sources could not be checked");
                Found::Asleep
            });
            (config, found)
        });
        let checked = futures::future::join_all(checked).await;
        let woken = checked.iter().filter(|(_, found)| *found == Found::Woken);
        self.woken
            .extend(woken.map(|(config, _)| (config.name.clone(), Instant::now())));
        self.woken.is_empty() && checked.iter().all(|(_, found)| *found == Found::Awake)
    }
}

/// The state in which [`wake`] found a stream's sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Awake,
    /// Some are asleep, and their origins cannot be reached.
    Asleep,
    /// Some were asleep, and all were configured again.
    Woken,
}

async fn wake(js: &jetstream::Context, config: &Config, delay: Duration) -> Result<Found, async_nats::Error> {
    let Some(wanted) = &config.sources else {
        return Ok(Found::Awake);
    };
    let stream = js.get_stream(&config.name).await?;
    let info = stream.cached_info();
    // What a newer gateway made is woken as it is.
    let config = if is_newer(&info.config.metadata) {
        &info.config
    } else {
        &with_starts_of(config, &info.config)
    };
    let found = &info.sources;
    let awake = found
        .iter()
        .filter(|source| source.active.is_some_and(|silent| silent < ASLEEP_AFTER))
        .count();
    if awake == wanted.len() {
        return Ok(Found::Awake);
    }
    let mut answers: FuturesUnordered<_> = wanted.iter().map(|source| answers(js, source)).collect();
    let mut reachable = 0;
    // The server does not report which are asleep; but if more are reachable than awake, a reachable one is asleep.
    while reachable <= awake {
        let Some(answers) = answers.next().await else {
            return Ok(Found::Asleep);
        };
        reachable += usize::from(answers);
    }
    tokio::time::sleep(delay).await;
    js.update_stream(Config {
        sources: None,
        ..config.clone()
    })
    .await?;
    js.update_stream(config).await?;
    tracing::info!(stream = config.name, awake, "sources woken");
    Ok(Found::Woken)
}

/// Whether the origin of `source` answers. The request is repeated without waiting for the former one's time-out: a
/// request in flight when the network was cut is lost.
async fn answers(js: &jetstream::Context, source: &Source) -> bool {
    let Some(external) = &source.external else { return true };
    let (client, subject) = (
        js.client(),
        format!("{}.STREAM.INFO.{}", external.api_prefix, source.name),
    );
    let ask = async |nth: u32| {
        tokio::time::sleep(ORIGIN_ASKED_EVERY * nth).await;
        tokio::time::timeout(ORIGIN_ANSWERS_WITHIN, client.request(subject.clone(), "".into())).await
    };
    let asked = futures::future::select_ok((0..ORIGIN_QUESTIONS_MAX).map(|nth| Box::pin(ask(nth)))).await;
    let Ok((Ok(answer), _)) = asked else { return false };
    serde_json::from_slice::<Map<String, Value>>(&answer.payload).is_ok_and(|info| !info.contains_key("error"))
}
