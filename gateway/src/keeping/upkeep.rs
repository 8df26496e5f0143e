//! Keeps the region's streams, sources and consumers as the mesh requires, while regions and apps are added and removed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::{self, stream::Config as Stream};
use jiff::Timestamp;
use shared::{
    app::App,
    clock::Clock,
    id::AppId,
    lifecycle::Lifecycle,
    nats::{
        border::Border,
        config::Config,
        refusal::unless_refused,
        topology::{self, ApplyError, Mesh, RegionSettings, Retired, Waker},
    },
    telemetry::metric::Metrics,
};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep},
};

use super::facts::FactsUpkeep;

/// How often streams and consumers are checked. What was deleted is back within a second.
const MEND_INTERVAL: Duration = Duration::from_millis(500);

/// How often sources are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often sources are checked while the server has paused some of them.
const CHECK_SLEEPING_INTERVAL: Duration = Duration::from_millis(50);

/// After a cut link, the other streams are woken this much later than jobs and facts. After a minute there are as many records
/// and receipts as notifications, and the first notifications would wait behind them.
const OTHER_STREAMS_DELAY: Duration = Duration::from_millis(500);

/// How often a gateway logs what it is waiting for.
const REMINDER_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum number of intakes that one check looks at: they are looked at in turn.
const INTAKES_PER_CHECK: usize = 20;

/// How long an intake is unwanted before it is retired.
const RETIRED_AFTER: Duration = Duration::from_secs(5);

/// An intake whose app has no services, as far as this gateway has read.
#[derive(Debug)]
struct Unwanted {
    since: Instant,
    /// The log says that it is still there.
    told: bool,
}

impl Unwanted {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            told: false,
        }
    }
}

/// The streams, sources and consumers of this region.
#[derive(Debug)]
pub(crate) struct Upkeep {
    js: jetstream::Context,
    config: Config,
    mesh: Mesh,
    intakes: watch::Sender<BTreeSet<AppId>>,
    /// Whether no stream was missing when they were last checked.
    complete: watch::Sender<bool>,
    facts: FactsUpkeep,
}

impl Upkeep {
    /// Waits until the hub's configuration lists this region, and then makes the region's streams match. `None` if the
    /// process starts to finish before that.
    ///
    /// # Errors
    /// When the server refuses for lack of a permission.
    pub(crate) async fn begin(
        js: jetstream::Context,
        here: RegionSettings,
        config: Config,
        (border, metrics): (Border, Metrics),
        lifecycle: &Lifecycle,
    ) -> Result<Option<Self>, ApplyError> {
        let copy = [here.config_stream()];
        let client = js.client();
        let applying = || async { unless_refused(&client, |_| true, topology::apply(&js, &copy)).await? };
        if retry(applying, lifecycle).await?.is_none() {
            return Ok(None);
        }
        lifecycle.spawn_endless("config", config.clone().follow(js.clone()));
        let (mut changes, mut check, mut reminded) = (config.changes(), interval(CHECK_INTERVAL), Instant::now());
        let mut waker = Waker::default();
        while !config.tenants().regions.contains_key(&here.region) {
            tokio::select! {
                update = changes.changed() => if update.is_err() { return Ok(None) },
                _ = check.tick() => drop(waker.wake(&js, &copy).await),
                () = lifecycle.finishing() => return Ok(None),
            }
            if reminded.elapsed() >= REMINDER_INTERVAL {
                reminded = Instant::now();
                tracing::warn!(region = %here.region, "waiting until the hub's configuration lists this region; provision it there");
            }
        }
        let mesh = mesh(here, &config);
        let applied = retry(|| apply(&js, &config, &mesh), lifecycle).await?;
        let complete = watch::channel(true).0;
        let facts = FactsUpkeep::new(js.clone(), mesh.here.region.clone(), border, metrics);
        Ok(applied.map(|()| Self {
            facts,
            js,
            config,
            mesh,
            intakes: watch::Sender::default(),
            complete,
        }))
    }

    /// The apps that have an intake in this region.
    pub(crate) fn intakes(&self) -> watch::Receiver<BTreeSet<AppId>> {
        self.intakes.subscribe()
    }

    /// Whether no stream of this region is missing.
    pub(crate) fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// Whether the bucket of recipients is not being restored.
    pub(crate) fn facts(&self) -> watch::Receiver<bool> {
        self.facts.complete()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(self, clock: Clock) {
        let (changed, mesh) = watch::channel(self.mesh.clone());
        // Facts too: a job must not arrive long before the consent that was given or withdrawn ahead of it.
        let first = |stream: &Stream| [topology::NOTIFY, topology::RECIPIENTS].contains(&stream.name.as_str());
        tokio::join!(
            self.mend(changed),
            self.keep_intakes(&clock),
            keep_awake(&self.js, &mesh, Waker::default(), first),
            keep_awake(&self.js, &mesh, Waker::after(OTHER_STREAMS_DELAY), |stream| !first(
                stream
            )),
        );
    }

    async fn mend(&self, changed: watch::Sender<Mesh>) {
        let mut check = interval(MEND_INTERVAL);
        loop {
            check.tick().await;
            let mesh = mesh(self.mesh.here.clone(), &self.config);
            if changed.borrow().regions != mesh.regions {
                match apply(&self.js, &self.config, &mesh).await {
                    Ok(()) => drop(changed.send_replace(mesh)),
                    Err(error) => tracing::warn!(%error, "cannot change the streams of this region; retrying"),
                }
            }
            let streams = changed.borrow().streams();
            if let Err(error) = self.mend_streams(streams).await {
                tracing::warn!(%error, "cannot check or recreate the streams of this region; retrying");
            }
            let overflow = self.config.tenants().is_upgraded();
            topology::mend_consumers(&self.js, &self.mesh.here.region, overflow).await;
        }
    }

    /// Creates the streams that are missing. Readiness says so until the next check finds them.
    async fn mend_streams(&self, wanted: Vec<Stream>) -> Result<(), ApplyError> {
        let missing = topology::missing_streams(&self.js, wanted).await?;
        self.complete.send_replace(missing.is_empty());
        if missing.iter().any(|stream| stream.name == topology::RECIPIENTS) {
            self.facts.is_missing();
        }
        topology::recreate(&self.js, &missing, self.facts.bucket()).await?;
        self.facts.check().await;
        Ok(())
    }
}

impl Upkeep {
    /// Makes an intake and a status feed for each app whose services publish, mends what is missing, and removes those of other apps.
    async fn keep_intakes(&self, clock: &Clock) {
        let (mut config, mut check) = (self.config.changes(), interval(CHECK_INTERVAL));
        let (mut made, mut unwanted, mut turn) = (HashMap::new(), HashMap::new(), 0);
        loop {
            tokio::select! {
                _ = check.tick() => {}
                changed = config.changed() => if changed.is_err() { return },
            }
            // While the configuration is being read, apps that are not read yet must not lose their intakes.
            if !self.config.is_loaded() {
                continue;
            }
            let tenants = self.config.tenants();
            let here = &self.mesh.here.region;
            let publishes =
                |app: &&Arc<App>| app.services && app.residency.as_ref().is_none_or(|region| region == here);
            let mut apps: Vec<&Arc<App>> = tenants.apps.values().filter(publishes).collect();
            apps.sort_by(|one, other| one.id.cmp(&other.id));
            made.retain(|id, _| apps.iter().any(|app| app.id == *id));
            let is_made = |app: &App| made.get(&app.id) == Some(&app.account_name().to_owned());
            let (old, new): (Vec<&Arc<App>>, Vec<_>) = apps.into_iter().partition(|app| is_made(app));
            let checked: Vec<_> = old
                .iter()
                .cycle()
                .skip(turn)
                .take(INTAKES_PER_CHECK.min(old.len()))
                .collect();
            turn = if old.is_empty() {
                0
            } else {
                (turn + checked.len()) % old.len()
            };
            for app in new.iter().chain(checked) {
                match topology::apply_intake(&self.js, &self.mesh.here, app).await {
                    Ok(()) => drop(made.insert(app.id.clone(), app.account_name().to_owned())),
                    Err(error) => tracing::warn!(app = %app.id, %error, "cannot make the intake of an app; retrying"),
                }
            }
            self.publish_intakes(&made, &tenants.apps, &mut unwanted, clock).await;
        }
    }

    /// Retires the intakes of apps whose services publish no more, and tells the door which there are to be worked off.
    async fn publish_intakes(
        &self,
        made: &HashMap<AppId, String>,
        apps: &HashMap<AppId, Arc<App>>,
        unwanted: &mut HashMap<AppId, Unwanted>,
        clock: &Clock,
    ) {
        let mut all: BTreeSet<AppId> = made.keys().cloned().collect();
        match topology::intakes(&self.js).await {
            Ok(found) => {
                unwanted.retain(|id, _| found.contains(id) && !made.contains_key(id));
                for id in found.into_iter().filter(|id| !made.contains_key(id)) {
                    let has_app = apps.contains_key(&id);
                    let known = unwanted.entry(id.clone()).or_insert_with(Unwanted::new);
                    // Without the app's configuration nothing of it can be accepted.
                    if self.retire(&id, has_app, known, clock.now()).await && has_app {
                        all.insert(id);
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "cannot list the intakes; retrying"),
        }
        self.intakes.send_if_modified(|known| {
            let differs = *known != all;
            *known = all;
            differs
        });
    }

    /// Retires one intake, and returns whether it is still there.
    async fn retire(&self, id: &AppId, has_app: bool, known: &mut Unwanted, now: Timestamp) -> bool {
        // Another gateway may have read of a new app before this one.
        if known.since.elapsed() < RETIRED_AFTER {
            return true;
        }
        let retired = topology::retire_intake(&self.js, id, has_app, now).await;
        let is_news = !std::mem::replace(&mut known.told, true);
        match retired {
            Ok(Retired::Removed(0)) => {
                tracing::info!(app = %id, "removed the intake and the status feed of an app without services");
                return false;
            }
            Ok(Retired::Removed(waiting)) => {
                tracing::error!(app = %id, waiting, "removed an intake in which messages waited longer than a notification lives");
                return false;
            }
            Ok(Retired::Waits(waiting)) if is_news && has_app => {
                tracing::info!(app = %id, waiting, "closed the intake of an app without services; it goes when it is worked off");
            }
            Ok(Retired::Waits(waiting)) if is_news => {
                tracing::error!(app = %id, waiting, "messages wait in the intake of an app that is gone; an operator must decide");
            }
            Err(error) if is_news => tracing::warn!(app = %id, %error, "cannot remove an intake; retrying"),
            Ok(Retired::Waits(_)) | Err(_) => {}
        }
        true
    }
}

/// Keeps the sources of some streams awake.
async fn keep_awake(
    js: &jetstream::Context,
    mesh: &watch::Receiver<Mesh>,
    mut waker: Waker,
    some: impl Fn(&Stream) -> bool,
) {
    loop {
        let mut streams = mesh.borrow().streams();
        streams.retain(&some);
        let awake = waker.wake(js, &streams).await;
        sleep(if awake { CHECK_INTERVAL } else { CHECK_SLEEPING_INTERVAL }).await;
    }
}

/// Retries until the attempt succeeds: three servers that have just started need some seconds to elect a leader. `None`
/// if the process starts to finish before that.
///
/// # Errors
/// When the server refuses for lack of a permission, because a retry would not help.
async fn retry<T, F>(attempt: impl Fn() -> F, lifecycle: &Lifecycle) -> Result<Option<T>, ApplyError>
where
    F: Future<Output = Result<T, ApplyError>>,
{
    loop {
        match attempt().await {
            Ok(done) => return Ok(Some(done)),
            Err(error @ ApplyError::Forbidden(_)) => return Err(error),
            Err(error) => tracing::warn!(%error, "cannot create the streams of this region yet; retrying"),
        }
        tokio::select! {
            () = sleep(CHECK_INTERVAL) => {}
            () = lifecycle.finishing() => return Ok(None),
        }
    }
}

async fn apply(js: &jetstream::Context, config: &Config, mesh: &Mesh) -> Result<(), ApplyError> {
    topology::apply_region(js, mesh, config.tenants().is_upgraded()).await?;
    tracing::info!(
        regions = mesh.regions.len(),
        "the streams of this region match the mesh"
    );
    Ok(())
}

fn mesh(here: RegionSettings, config: &Config) -> Mesh {
    Mesh {
        here,
        regions: config.tenants().regions.keys().cloned().collect(),
    }
}
