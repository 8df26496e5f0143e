//! Takes this worker's part of what a provider lets each credential send in a minute: leases from the region's pool, then
//! from the hub's; and lends to the hub's pool what the region does not need. The rules are `shared::nats::quota`'s.

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

use crate::providers::{Allowance, Providers, Source, Use};

/// How often a bucket in use is filled.
const REFILL_EVERY: Duration = Duration::from_millis(20);

/// How often a worker that sends reviews what it needs.
const REVIEW_EVERY: Duration = Duration::from_millis(500);

/// The same while it has nothing: other workers give back what they took in excess at their own next review.
const REVIEW_EMPTY_EVERY: Duration = Duration::from_millis(100);

/// How often a worker looks which regions want to borrow.
const LEND_EVERY: Duration = Duration::from_secs(2);

/// A worker that sends at all asks for at least this many messages a minute.
const MIN_RATE: u64 = 60;

/// A need is remembered for this many reviews, so that a short pause does not give up the lease.
const NEEDS_REMEMBERED: usize = 10;

/// A pool that another worker replaced meanwhile is read again this often before the next review.
const MAX_REREADS: usize = 4;

/// One part in this many of a region's share is never lent, so that its first pushes need not wait for a loan's end.
const KEPT_PART: u64 = 10;

/// Manages the allowances of all credentials.
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

/// This region's part of a quota, and whether other regions may borrow.
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

    /// Runs until the process ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let serving = async {
            let mut known = BTreeSet::new();
            loop {
                for allowance in self.providers.allowances() {
                    if known.insert(allowance.name().to_owned()) {
                        // Jobs in flight when the process is asked to finish still need leases.
                        tokio::spawn(self.clone().serve(allowance));
                    }
                }
                self.providers.more_allowances().await;
            }
        };
        tokio::join!(serving, self.lend());
    }

    async fn serve(self: Arc<Self>, allowance: Arc<Allowance>) {
        let filling = async {
            loop {
                if allowance.refill() {
                    sleep(REFILL_EVERY).await;
                } else {
                    allowance.granted().await;
                }
            }
        };
        tokio::join!(filling, self.renew(&allowance));
    }

    /// Holds the leases that the credential needs here, and none once it needs none: leases end by themselves.
    async fn renew(&self, allowance: &Allowance) {
        let mut needs = Needs::default();
        let mut held = [None, None];
        let mut reviewed = Instant::now();
        loop {
            let used = allowance.used();
            self.metrics.quota(allowance.name(), allowance.rate(), used.taken);
            let terms = self.terms(allowance);
            let wants = needs.learn(used, reviewed.elapsed()).min(terms.quota);
            reviewed = Instant::now();
            if wants == 0 {
                if allowance.rate() == 0 {
                    allowance.wanted().await;
                } else {
                    sleep(REVIEW_EVERY).await;
                }
                continue;
            }
            let [home, lent] = &mut held;
            self.hold(&self.home, allowance, (Source::Home, terms.share, wants), home)
                .await;
            let more = wants.saturating_sub(home.map_or(0, |held: Held| held.rate));
            if terms.shared && (more > 0 || lent.is_some()) {
                self.hold(&self.hub, allowance, (Source::Lent, 0, more), lent).await;
            }
            sleep(if allowance.rate() == 0 {
                REVIEW_EMPTY_EVERY
            } else {
                REVIEW_EVERY
            })
            .await;
        }
    }

    /// Renews the lease from a pool, if that is due or another rate is wanted.
    async fn hold(&self, bucket: &PoolBucket, allowance: &Allowance, ask: (Source, u64, u64), held: &mut Option<Held>) {
        let (_, own, wants) = ask;
        let still = held.filter(|held| held.ends > Instant::now());
        *held = still;
        if still.is_some_and(|held| held.suffices(own, wants)) {
            return;
        }
        match self.take(bucket, allowance, ask, still).await {
            Ok(taken) => *held = taken,
            Err(error) => {
                tracing::debug!(project = allowance.name(), %error, "no lease; what is held lasts until it ends")
            }
        }
    }

    async fn take(
        &self,
        bucket: &PoolBucket,
        allowance: &Allowance,
        (from, own, wants): (Source, u64, u64),
        held: Option<Held>,
    ) -> Result<Option<Held>, Unusable> {
        let name = quota::name(allowance.name());
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
                allowance.grant(from, lease.rate, held.ends);
            }
            match bucket.write(name, &pool, revision).await {
                Ok(()) => {
                    let ends = moment + LEASE_DURATION;
                    allowance.grant(from, lease.rate, ends);
                    let held = Held { rate: lease.rate, ends };
                    return Ok((wants > 0).then_some(held));
                }
                Err(Unusable::Write(NotStored::Refused)) if refused < MAX_REREADS => refused += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Lends what this region does not need, for as long as others want it.
    async fn lend(&self) {
        loop {
            sleep(LEND_EVERY.mul_f64(rand::random_range(0.75..1.25))).await;
            let allowances = self.providers.allowances();
            if allowances.is_empty() || self.config.tenants().regions.len() < 2 {
                continue;
            }
            // There are few pools: only workers that want more than their region has write them.
            let pools = match self.hub.read_all().await {
                Ok(pools) => pools,
                Err(error) => {
                    tracing::debug!(%error, "the hub's quota pools cannot be read; nothing is lent or borrowed");
                    continue;
                }
            };
            for (name, _) in pools {
                if let Some(allowance) = allowances
                    .iter()
                    .find(|allowance| quota::name(allowance.name()) == name)
                    && let Err(error) = self.lend_of(allowance).await
                {
                    tracing::debug!(project = allowance.name(), %error, "nothing could be lent");
                }
            }
        }
    }

    async fn lend_of(&self, allowance: &Allowance) -> Result<(), Unusable> {
        let name = quota::name(allowance.name());
        let terms = self.terms(allowance);
        let moment = Instant::now();
        let (pool, _) = self.hub.read(name).await?;
        let hubs = async |later: Duration| self.hub.at(moment + later).await;
        let wanted = pool.wanted_of(&self.region, hubs(Duration::ZERO).await?, hubs(LEASE_DURATION).await?);
        let lent = pool.lent_by(&self.region, hubs(Duration::ZERO).await?);
        let lasting = pool.lent_by(&self.region, hubs(LOAN_DURATION / 2).await?);
        let (mut home, revision) = self.home.read(name).await?;
        let now = self.home.at(moment).await?;
        let spare = home.spare(terms.share, now).saturating_sub(terms.share / KEPT_PART);
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
                Err(Unusable::Write(NotStored::Refused)) if refused < MAX_REREADS => refused += 1,
                written => return written,
            }
        }
    }

    /// The lowest quota that any app with a credential states for the project. An app that resides in one region has it
    /// there alone; otherwise regions have equal shares.
    fn terms(&self, allowance: &Allowance) -> Terms {
        let tenants = self.config.tenants();
        let claims = self.providers.claims(allowance);
        let quota = claims.iter().map(|claim| claim.per_minute).min().unwrap_or(0);
        let regions = tenants.regions.len().max(1) as u64;
        let resides_here = claims.iter().all(|claim| {
            let app = tenants.apps.get(&claim.app);
            app.is_none_or(|app| app.residency.as_ref() == Some(&self.region))
        });
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

    /// Whether the lease needs no change: it is enough, not so much that others miss it, and not all of the region's
    /// `own`, where a worker that begins would find nothing.
    fn suffices(&self, own: u64, wants: u64) -> bool {
        let is_all = own > 0 && wants >= own;
        self.is_young() && wants <= self.rate && self.rate / 4 <= wants && !is_all
    }
}

/// What was needed at the last reviews, in messages a minute.
#[derive(Debug, Default)]
struct Needs(VecDeque<u64>);

impl Needs {
    /// Records what was used in `time`. Returns what to ask for: twice the maximum that was used, and all if that was too
    /// little.
    fn learn(&mut self, used: Use, time: Duration) -> u64 {
        let needed = match used {
            Use { starved: true, .. } => u64::MAX,
            Use { taken: 0, .. } => 0,
            Use { taken, .. } => {
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
                (2 * taken * 60_000 / millis).max(MIN_RATE)
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
    fn a_worker_that_holds_all_checks_whether_another_wants_some() {
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
