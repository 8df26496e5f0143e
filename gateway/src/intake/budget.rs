//! What each app may store: jobs a second, jobs and bytes that wait, and its share of each lane.
//!
//! Every door stores jobs through [`super::accept`], which asks here first. Work within an app's share of a lane goes to the
//! lane; work beyond it goes to the lane's overflow, which has permits of its own. So nobody's work waits behind a flood of
//! another app's. What waits is followed by [`super::waiting`]. Each gateway counts for itself.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use shared::{
    app::{self, App},
    channel::{Channel, Class},
    id::{AppId, Region},
    invalid::Invalid,
    nats::subject::{Lane, Tier},
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    meter::{Left, Meter},
    waiting::Waiting,
};

/// Jobs a second that each app may put into a lane before its further jobs go to the lane's overflow.
const LANE_SHARE_PER_S: u32 = 500;

/// Jobs that each app may put into a lane at once before its further jobs go to the lane's overflow: those of one request.
const LANE_SHARE_BURST: u32 = 1000;

/// What a broadcast takes of its app's share of a lane: a worker reads all members of the topic to split it.
pub(super) const BROADCAST_SHARE: u64 = 100;

/// Jobs of an app that are published and not acknowledged, at most. All apps share one connection, on which a job waits
/// for those before it.
pub(super) const UNACKNOWLEDGED_JOBS_MAX: usize = 1024;

/// When to repeat what was refused because too much of the app's work waits.
const WAITING_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What an app's callers may do. `mesh.toml` may say otherwise for an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Requests a second, for each API key.
    pub requests_per_s: u32,
    /// Jobs a second.
    pub jobs_per_s: u32,
    /// Requests at one time, for each API key.
    pub in_flight: u32,
    /// Jobs that wait in a lane.
    pub waiting_jobs: u32,
    /// Bytes that wait in the lanes of a region.
    pub stored_bytes: u64,
}

impl Quota {
    /// This quota with what an app's own quota changes.
    pub(crate) fn with(self, own: &app::Quota) -> Self {
        Self {
            requests_per_s: own.requests_per_s.unwrap_or(self.requests_per_s),
            jobs_per_s: own.jobs_per_s.unwrap_or(self.jobs_per_s),
            in_flight: own.in_flight.unwrap_or(self.in_flight),
            waiting_jobs: own.waiting_jobs.unwrap_or(self.waiting_jobs),
            stored_bytes: own.stored_bytes.unwrap_or(self.stored_bytes),
        }
    }

    /// Checks the same limits as for an app.
    pub(crate) fn check(self) -> Result<(), Invalid> {
        let all = app::Quota {
            requests_per_s: Some(self.requests_per_s),
            jobs_per_s: Some(self.jobs_per_s),
            in_flight: Some(self.in_flight),
            waiting_jobs: Some(self.waiting_jobs),
            stored_bytes: Some(self.stored_bytes),
        };
        all.check()
    }
}

/// Too much: which member of the quota is used up, and when to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany {
    pub(crate) limit: &'static str,
    pub(crate) retry_after: Duration,
}

/// A lane as an app's budget counts it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LaneKey {
    pub(super) channel: Channel,
    pub(super) region: Region,
    pub(super) class: Class,
}

/// The jobs of one request for one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Portion {
    pub(super) lane: LaneKey,
    pub(super) jobs: u64,
    pub(super) bytes: u64,
    /// What the jobs take of the app's share of the lane.
    pub(super) share: u64,
}

/// The budgets of all apps.
#[derive(Debug)]
pub(crate) struct Budgets {
    defaults: Quota,
    apps: RwLock<HashMap<AppId, Arc<AppBudget>>>,
    /// The regions whose lanes have an overflow.
    overflowing: RwLock<HashSet<Region>>,
}

/// The budget of one app.
#[derive(Debug)]
pub(crate) struct AppBudget {
    quota: Quota,
    jobs: Meter,
    stock: Arc<Stock>,
}

/// What an app has in lanes. It outlives a change of the app's quota.
#[derive(Debug)]
struct Stock {
    /// One permit for each job that is published and not acknowledged.
    publishing: Semaphore,
    lanes: RwLock<HashMap<LaneKey, Arc<LaneBudget>>>,
    /// Bytes that wait in all lanes.
    bytes: AtomicU64,
}

/// The part of an app in one lane.
#[derive(Debug)]
pub(super) struct LaneBudget {
    share: Meter,
    waiting: Mutex<Waiting>,
}

impl Budgets {
    /// The region `here` is this gateway's own.
    pub(crate) fn new(defaults: Quota, here: Region) -> Self {
        Self {
            defaults,
            apps: RwLock::default(),
            overflowing: RwLock::new([here].into()),
        }
    }

    /// Whether the lanes of `region` have an overflow. In a region of the version before nobody would work it off.
    pub(super) fn has_overflow(&self, region: &Region) -> bool {
        let regions = self.overflowing.read().unwrap_or_else(PoisonError::into_inner);
        regions.contains(region)
    }

    /// Notes whether the lanes of `region` have an overflow.
    pub(super) fn set_overflow(&self, region: Region, has: bool) {
        let mut regions = self.overflowing.write().unwrap_or_else(PoisonError::into_inner);
        if has {
            regions.insert(region);
        } else {
            regions.remove(&region);
        }
    }

    /// The quota of `app`.
    pub(crate) fn quota(&self, app: &App) -> Quota {
        self.defaults.with(&app.quota)
    }

    /// The budget of `app`.
    pub(crate) fn of(&self, app: &App) -> Arc<AppBudget> {
        let quota = self.quota(app);
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = apps.get(&app.id).filter(|budget| budget.quota == quota) {
            return Arc::clone(budget);
        }
        drop(apps);
        let mut apps = self.apps.write().unwrap_or_else(PoisonError::into_inner);
        let stock = apps.get(&app.id).map(|former| Arc::clone(&former.stock));
        let budget = Arc::new(AppBudget::new(quota, stock.unwrap_or_default()));
        apps.insert(app.id.clone(), Arc::clone(&budget));
        budget
    }

    /// The tier of `lane` for one more job of `app`.
    pub(crate) fn tier(&self, app: &App, lane: &Lane) -> Tier {
        let key = LaneKey {
            channel: lane.channel,
            region: lane.region.clone(),
            class: lane.class,
        };
        let tier = self.of(app).lane(&key).take_share(1);
        if self.has_overflow(&lane.region) {
            tier
        } else {
            Tier::Main
        }
    }

    /// Every app's part in every lane in which some of its work waits.
    pub(super) fn waiting(&self) -> Vec<(LaneKey, Arc<LaneBudget>, Arc<AppBudget>)> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = Vec::new();
        for budget in apps.values() {
            let lanes = budget.stock.lanes.read().unwrap_or_else(PoisonError::into_inner);
            let some = lanes.iter().filter(|(_, lane)| lane.has_stored());
            waiting.extend(some.map(|(key, lane)| (key.clone(), Arc::clone(lane), Arc::clone(budget))));
        }
        waiting
    }
}

impl Default for Stock {
    fn default() -> Self {
        Self {
            publishing: Semaphore::new(UNACKNOWLEDGED_JOBS_MAX),
            lanes: RwLock::default(),
            bytes: AtomicU64::new(0),
        }
    }
}

impl AppBudget {
    fn new(quota: Quota, stock: Arc<Stock>) -> Self {
        Self {
            jobs: Meter::new(quota.jobs_per_s, quota.jobs_per_s),
            quota,
            stock,
        }
    }

    /// What is left of the jobs of this second.
    pub(crate) fn jobs_left(&self) -> Left {
        self.jobs.left()
    }

    /// Waits until the app may publish `jobs` more jobs. They count until the permit is dropped. A request with more jobs
    /// than may be unacknowledged is published alone.
    pub(super) async fn publish(&self, jobs: usize) -> SemaphorePermit<'_> {
        let permits = u32::try_from(jobs.min(UNACKNOWLEDGED_JOBS_MAX)).unwrap_or(u32::MAX);
        let permit = self.stock.publishing.acquire_many(permits).await;
        permit.expect("the semaphore is never closed")
    }

    /// Admits the jobs of one request, all of them or none, and says for each portion which tier of its lane it goes to.
    pub(super) fn admit(self: &Arc<Self>, portions: Vec<Portion>) -> Result<Admitted, TooMany> {
        let too_many = |limit, retry_after| TooMany { limit, retry_after };
        let bytes: u64 = portions.iter().map(|portion| portion.bytes).sum();
        let waiting_bytes = self.stock.bytes.load(Ordering::Relaxed);
        if waiting_bytes > 0 && waiting_bytes + bytes > self.quota.stored_bytes {
            return Err(too_many("stored_bytes", WAITING_RETRY_AFTER));
        }
        let lanes: Vec<_> = portions.iter().map(|portion| self.lane(&portion.lane)).collect();
        let most = u64::from(self.quota.waiting_jobs);
        for (portion, lane) in portions.iter().zip(&lanes) {
            let waiting = lane.waiting().jobs();
            if waiting > 0 && waiting + portion.jobs > most {
                return Err(too_many("waiting_jobs", WAITING_RETRY_AFTER));
            }
        }
        let jobs = portions.iter().map(|portion| portion.jobs).sum();
        self.jobs.take(jobs).map_err(|wait| too_many("jobs_per_s", wait))?;
        let admitted = portions.into_iter().zip(lanes).map(|(portion, lane)| {
            let tier = lane.take_share(portion.share);
            lane.waiting().begin(portion.jobs);
            self.stock.bytes.fetch_add(portion.bytes, Ordering::Relaxed);
            AdmittedPortion {
                portion,
                tier,
                lane,
                stored: false,
            }
        });
        Ok(Admitted {
            portions: admitted.collect(),
            budget: Arc::clone(self),
        })
    }

    /// `bytes` no longer wait.
    pub(super) fn release(&self, bytes: u64) {
        self.stock.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn lane(&self, key: &LaneKey) -> Arc<LaneBudget> {
        let lanes = self.stock.lanes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(key) {
            return Arc::clone(lane);
        }
        drop(lanes);
        let mut lanes = self.stock.lanes.write().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry(key.clone()).or_insert_with(|| {
            Arc::new(LaneBudget {
                share: Meter::new(LANE_SHARE_PER_S, LANE_SHARE_BURST),
                waiting: Mutex::default(),
            })
        });
        Arc::clone(lane)
    }
}

impl LaneBudget {
    /// The tier for work that takes this much of the app's share.
    fn take_share(&self, share: u64) -> Tier {
        match self.share.take(share) {
            Ok(_) => Tier::Main,
            Err(_) => Tier::Overflow,
        }
    }

    pub(super) fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_stored(&self) -> bool {
        self.waiting().has_stored()
    }
}

/// The admitted jobs of one request. What was not stored when it is dropped waits no longer.
#[derive(Debug)]
pub(super) struct Admitted {
    portions: Vec<AdmittedPortion>,
    budget: Arc<AppBudget>,
}

#[derive(Debug)]
struct AdmittedPortion {
    portion: Portion,
    tier: Tier,
    lane: Arc<LaneBudget>,
    stored: bool,
}

impl Admitted {
    /// The tier of the lane of `region` for these jobs.
    pub(super) fn tier(&self, region: &Region) -> Tier {
        let found = self
            .portions
            .iter()
            .find(|portion| portion.portion.lane.region == *region);
        found.map_or(Tier::Overflow, |portion| portion.tier)
    }

    /// Every job is stored; those for the region `here` at `sequence` or before.
    pub(super) fn stored(mut self, here: &Region, sequence: u64) {
        for admitted in &mut self.portions {
            let Portion { lane, jobs, bytes, .. } = &admitted.portion;
            let sequence = (lane.region == *here).then_some(sequence);
            admitted.lane.waiting().store(admitted.tier, *jobs, *bytes, sequence);
            admitted.stored = true;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        for admitted in self.portions.iter().filter(|admitted| !admitted.stored) {
            admitted.lane.waiting().give_up(admitted.portion.jobs);
            self.budget.release(admitted.portion.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota {
        requests_per_s: 10,
        jobs_per_s: 100_000,
        in_flight: 10,
        waiting_jobs: 5000,
        stored_bytes: 1 << 20,
    };

    fn portion(jobs: u64, bytes: u64) -> Vec<Portion> {
        vec![Portion {
            lane: LaneKey {
                channel: Channel::Push,
                region: region(),
                class: Class::Urgent,
            },
            jobs,
            bytes,
            share: jobs,
        }]
    }

    fn region() -> Region {
        "eu".parse().unwrap()
    }

    fn app(id: &str) -> App {
        App::new(id.parse().unwrap(), region())
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_goes_to_the_overflow_and_another_app_does_not() {
        let budgets = Budgets::new(QUOTA, region());
        let tier = |app: &str| {
            let admitted = budgets.of(&self::app(app)).admit(portion(1000, 0)).unwrap();
            admitted.tier(&region())
        };
        assert_eq!((tier("flood"), tier("flood")), (Tier::Main, Tier::Overflow));
        assert_eq!(tier("bank"), Tier::Main);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(tier("flood"), Tier::Main);
    }

    #[test]
    fn what_waits_is_bounded_until_it_was_pulled() {
        let budgets = Budgets::new(QUOTA, region());
        let budget = budgets.of(&app("shop"));
        let refused = |jobs, bytes| budget.admit(portion(jobs, bytes)).unwrap_err().limit;
        drop(budget.admit(portion(5000, 1 << 20)).unwrap());
        budget.admit(portion(5000, 1 << 19)).unwrap().stored(&region(), 7);
        assert_eq!((refused(1, 0), refused(1, 1 << 20)), ("waiting_jobs", "stored_bytes"));
        for (_, lane, budget) in budgets.waiting() {
            let released = lane.waiting().pulled(Tier::Main, 7);
            budget.release(released);
            let released = lane.waiting().pulled(Tier::Overflow, 7);
            budget.release(released);
        }
        budget.admit(portion(5000, 1 << 20)).unwrap();
    }

    #[test]
    fn a_changed_quota_applies_at_once_and_forgets_nothing() {
        let budgets = Budgets::new(QUOTA, region());
        let mut app = app("shop");
        budgets.of(&app).admit(portion(4000, 0)).unwrap().stored(&region(), 7);
        app.quota.waiting_jobs = Some(4000);
        let refused = budgets.of(&app).admit(portion(1, 0)).unwrap_err();
        assert_eq!(refused.limit, "waiting_jobs");
    }
}
