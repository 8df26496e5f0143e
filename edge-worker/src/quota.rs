//! Takes this worker's part of what Google lets each project send in a minute: leases from the region's pool, then from
//! the hub's; and lends to the hub's pool what the region does not need. The rules are `shared::nats::quota`'s.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream;
use shared::{
    id::Region,
    nats::{
        config::Config,
        publish::NotStored,
        quota::{self, CLOCK_MARGIN, LEASE_DURATION, LOAN_DURATION, PoolBucket, Unusable},
    },
    telemetry::metric::Metrics,
};
use tokio::time::{Instant, sleep};

use crate::providers::{Granted, Providers, Quota, Use};

/// How often a bucket in use is filled.
const REFILL_EVERY: Duration = Duration::from_millis(20);

/// How often a worker that sends looks at what it needs.
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// The same while it has nothing: its siblings give back what they took in excess at their own next look.
const RENEW_EMPTY_EVERY: Duration = Duration::from_millis(100);

/// How often a worker looks who wants to be lent.
const LEND_EVERY: Duration = Duration::from_secs(2);

/// Messages a minute that a worker asks for which sends at all.
const MIN_ASKED_PER_MINUTE: u64 = 60;

/// How many looks a need is remembered for, so that a short pause is no reason to give up what others could take.
const NEEDS_REMEMBERED: usize = 10;

/// A pool that somebody else replaced is read again so often before the next look.
const MAX_POOL_REREADS: usize = 4;

/// Share of a region's share that is never lent, one in so many, so that its first pushes need not wait for a loan's end.
const UNLENT_SHARE_DIVISOR: u64 = 10;

/// What deals with the quotas of all projects.
#[derive(Debug)]
pub(crate) struct Quotas {
    home: PoolBucket,
    hub: PoolBucket,
    region: Region,
    /// Names this process among all workers; a restarted one is another.
    holder: String,
    config: Config,
    providers: Arc<Providers>,
    metrics: Metrics,
}

/// What of a project's quota is this region's, and whether there are others to lend.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// Messages a minute, of the whole project.
    quota: u64,
    /// Of this region, as long as nothing is lent.
    share: u64,
    shared: bool,
}

impl Quotas {
    pub(crate) fn new(
        js: &jetstream::Context,
        region: Region,
        name: &str,
        config: Config,
        providers: Arc<Providers>,
        metrics: Metrics,
    ) -> Self {
        Self {
            home: PoolBucket::here(js.clone()),
            hub: PoolBucket::hub(js.clone()),
            holder: format!("{region}/{name}/{:08x}", rand::random::<u32>()),
            region,
            config,
            providers,
            metrics,
        }
    }

    /// Deals with them for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let serving = async {
            let mut known = BTreeSet::new();
            loop {
                for quota in self.providers.quotas() {
                    if known.insert(quota.project().to_owned()) {
                        // What is under way when the process is to finish still needs its leases.
                        tokio::spawn(self.clone().serve(quota));
                    }
                }
                self.providers.more_quotas().await;
            }
        };
        tokio::join!(serving, self.lend());
    }

    async fn serve(self: Arc<Self>, quota: Arc<Quota>) {
        let filling = async {
            loop {
                if quota.refill() {
                    sleep(REFILL_EVERY).await;
                } else {
                    quota.granted().await;
                }
            }
        };
        tokio::join!(filling, self.renew(&quota));
    }

    /// Holds what the project needs here, and nothing once it needs nothing: leases end by themselves.
    async fn renew(&self, quota: &Quota) {
        let mut needs = Needs::default();
        let mut held = [None, None];
        let mut looked = Instant::now();
        loop {
            let used = quota.used();
            self.metrics.quota(quota.project(), quota.rate(), used.taken);
            let terms = self.terms(quota.project());
            let wants = needs.learn(used, looked.elapsed()).min(terms.quota);
            looked = Instant::now();
            if wants == 0 {
                if quota.rate() == 0 {
                    quota.wanted().await;
                } else {
                    sleep(RENEW_EVERY).await;
                }
                continue;
            }
            let [home, lent] = &mut held;
            self.hold(&self.home, quota, (Granted::Home, terms.share, wants), home)
                .await;
            let more = wants.saturating_sub(home.map_or(0, |held: Held| held.rate));
            if terms.shared && (more > 0 || lent.is_some()) {
                self.hold(&self.hub, quota, (Granted::Lent, 0, more), lent).await;
            }
            sleep(if quota.rate() == 0 {
                RENEW_EMPTY_EVERY
            } else {
                RENEW_EVERY
            })
            .await;
        }
    }

    /// Renews what is held of a pool, if that is due or something else is wanted.
    async fn hold(&self, bucket: &PoolBucket, quota: &Quota, ask: (Granted, u64, u64), held: &mut Option<Held>) {
        let (_, own, wants) = ask;
        let still = held.filter(|held| held.ends > Instant::now());
        *held = still;
        if still.is_some_and(|held| held.suffices(own, wants)) {
            return;
        }
        match self.take(bucket, quota, ask, still).await {
            Ok(taken) => *held = taken,
            Err(error) => {
                tracing::debug!(project = quota.project(), %error, "no lease; what is held lasts until it ends")
            }
        }
    }

    async fn take(
        &self,
        bucket: &PoolBucket,
        quota: &Quota,
        (from, own, wants): (Granted, u64, u64),
        held: Option<Held>,
    ) -> Result<Option<Held>, Unusable> {
        let name = quota::name(quota.project());
        let mut refused = 0;
        loop {
            let moment = Instant::now();
            let now = bucket.at(moment).await?;
            let (mut pool, revision) = bucket.read(name).await?;
            let before = pool.lease(&self.holder, now);
            let lease = pool.take(own, &self.holder, wants, now);
            if let (Some(held), Some(before)) = (held, before)
                && held.is_young()
                && (before.rate, before.wants) == (lease.rate, lease.wants)
            {
                return Ok(Some(held));
            }
            // What is given back is not used any more before anybody can take it.
            if let Some(held) = held.filter(|held| held.rate > lease.rate) {
                quota.grant(from, lease.rate, held.ends);
            }
            match bucket.write(name, &pool, revision).await {
                Ok(()) => {
                    let ends = moment + LEASE_DURATION;
                    quota.grant(from, lease.rate, ends);
                    let held = Held { rate: lease.rate, ends };
                    return Ok((wants > 0).then_some(held));
                }
                Err(Unusable::Write(NotStored::Refused)) if refused < MAX_POOL_REREADS => refused += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Lends, for as long as others want it, what this region does not need.
    async fn lend(&self) {
        loop {
            sleep(LEND_EVERY.mul_f64(rand::random_range(0.75..1.25))).await;
            let quotas = self.providers.quotas();
            if quotas.is_empty() || self.config.tenants().regions.len() < 2 {
                continue;
            }
            // At most some pools: nobody writes them but who wants more than its region has.
            let pools = match self.hub.read_all().await {
                Ok(pools) => pools,
                Err(error) => {
                    tracing::debug!(%error, "the hub's quotas cannot be read; nothing is lent or borrowed");
                    continue;
                }
            };
            for (name, _) in pools {
                if let Some(quota) = quotas.iter().find(|quota| quota::name(quota.project()) == name)
                    && let Err(error) = self.lend_of(quota).await
                {
                    tracing::debug!(project = quota.project(), %error, "nothing could be lent");
                }
            }
        }
    }

    async fn lend_of(&self, quota: &Quota) -> Result<(), Unusable> {
        let name = quota::name(quota.project());
        let terms = self.terms(quota.project());
        let moment = Instant::now();
        let (pool, _) = self.hub.read(name).await?;
        let hubs = async |later: Duration| self.hub.at(moment + later).await;
        let wanted = pool.wanted_of(&self.region, hubs(Duration::ZERO).await?, hubs(LEASE_DURATION).await?);
        let lent = pool.lent_by(&self.region, hubs(Duration::ZERO).await?);
        let lasting = pool.lent_by(&self.region, hubs(LOAN_DURATION / 2).await?);
        let (mut home, revision) = self.home.read(name).await?;
        let now = self.home.at(moment).await?;
        let spare = home
            .spare(terms.share, now)
            .saturating_sub(terms.share / UNLENT_SHARE_DIVISOR);
        let amount = wanted.min(spare);
        // What the region needs again is not prolonged.
        if !terms.shared || amount == 0 || amount < lent || amount == lasting {
            return Ok(());
        }
        let until = self.home.at(moment + LOAN_DURATION + CLOCK_MARGIN).await?;
        let rate = home.set_aside(terms.share, amount, now, until);
        self.home.write(name, &home, revision).await?;
        let mut refused = 0;
        loop {
            let (mut pool, revision) = self.hub.read(name).await?;
            pool.lend(
                &self.region,
                rate,
                hubs(Duration::ZERO).await?,
                hubs(LOAN_DURATION).await?,
            );
            match self.hub.write(name, &pool, revision).await {
                Err(Unusable::Write(NotStored::Refused)) if refused < MAX_POOL_REREADS => refused += 1,
                written => return written,
            }
        }
    }

    /// The least quota that any app gives the project. An app that resides in one region has it there alone; else regions
    /// have equal shares.
    fn terms(&self, project: &str) -> Terms {
        let tenants = self.config.tenants();
        let apps = || {
            let apps = tenants.apps.values();
            apps.filter_map(|app| {
                app.fcm
                    .as_ref()
                    .filter(|fcm| fcm.project_id == project)
                    .map(|fcm| (app, fcm))
            })
        };
        let quota = apps().map(|(_, fcm)| fcm.quota()).min().unwrap_or(0);
        let regions = tenants.regions.len().max(1) as u64;
        let resides_here = apps().all(|(app, _)| app.residency.as_ref() == Some(&self.region));
        let shared = regions > 1 && !resides_here;
        let share = if shared { quota / regions } else { quota };
        Terms { quota, share, shared }
    }
}

/// A lease that this worker has.
#[derive(Debug, Clone, Copy)]
struct Held {
    rate: u64,
    ends: Instant,
}

impl Held {
    fn is_young(&self) -> bool {
        self.ends.saturating_duration_since(Instant::now()) > LEASE_DURATION / 2
    }

    /// Whether nothing is to be said to anybody: it is enough, not so much that others miss it, and not all that the region
    /// has of its `own`, where a sibling that begins finds nothing.
    fn suffices(&self, own: u64, wants: u64) -> bool {
        let is_all = own > 0 && wants >= own;
        self.is_young() && wants <= self.rate && self.rate / 4 <= wants && !is_all
    }
}

/// What was needed at the last looks, in messages a minute.
#[derive(Debug, Default)]
struct Needs(VecDeque<u64>);

impl Needs {
    /// Learns what was used in `time`. Returns what to ask for: twice the most that was used, and all if that was too little.
    fn learn(&mut self, used: Use, time: Duration) -> u64 {
        let needed = match used {
            Use { starved: true, .. } => u64::MAX,
            Use { taken: 0, .. } => 0,
            Use { taken, .. } => {
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
                (2 * taken * 60_000 / millis).max(MIN_ASKED_PER_MINUTE)
            }
        };
        self.0.truncate(NEEDS_REMEMBERED - 1);
        self.0.push_front(needed);
        self.0.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_all_looks_whether_a_sibling_wants_some() {
        let held = |rate| Held {
            rate,
            ends: Instant::now() + LEASE_DURATION,
        };
        assert!(held(300).suffices(600, 300) && held(600).suffices(0, 600));
        assert!(!held(600).suffices(600, 600));
        assert!(!held(300).suffices(600, 400) && !held(300).suffices(600, 10));
    }

    #[test]
    fn a_need_is_remembered_for_a_while() {
        let mut needs = Needs::default();
        let used = |taken, starved| Use { taken, starved };
        let second = Duration::from_secs(1);
        assert_eq!(needs.learn(used(0, false), second), 0);
        assert_eq!(needs.learn(used(10, false), second), 1200);
        assert_eq!(needs.learn(used(1, true), second), u64::MAX);
        for _ in 1..NEEDS_REMEMBERED {
            assert_eq!(needs.learn(used(1, false), second), u64::MAX);
        }
        assert_eq!(needs.learn(used(1, false), second), 120);
    }
}
