//! How sources stand, and waking those that sleep.

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

use super::Domain;
use crate::id::Region;

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
