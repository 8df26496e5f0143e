//! What a provider lets a project send in a minute, divided without a word between those who cannot hear each other.
//!
//! Each region has a fixed share, and a pool in its own bucket from which its workers take leases. What a region does not
//! need it lends: it takes it out of its own pool until a certain time, and only then puts it, for a little less long, into
//! the pool at the hub, from which workers of other regions take leases too. A worker sends what its leases add up to and
//! stops when they end. So the sum never exceeds the quota, whoever is cut off from whom and at what moment: a region that
//! is cut off gets back what it lent when it ends, and has then its fixed share.
//!
//! A pool is one message, replaced only by who read the last one. Its times are those of the server that keeps it, so
//! that no worker's clock matters; servers' clocks and the way to them may be wrong by [`MARGIN`] together.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{direct, publish, subject, time, topology, topology::Domain};
use crate::{digest::derive, id::Region};

/// How long a worker may send on a lease.
pub const LEASE: Duration = Duration::from_secs(10);

/// How long a region lends.
pub const LOAN: Duration = Duration::from_secs(30);

/// A lease counts for so much longer than it lasts.
pub const MARGIN: Duration = Duration::from_secs(2);

/// How long a server's time is believed, counted on by the process's own monotonic clock.
const BELIEVED: Duration = Duration::from_mins(1);

/// Who holds, in a region's own pool, what it lends.
const LENT: &str = "lent";

/// Messages a minute, until a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Messages a minute.
    pub rate: u64,
    /// By the clock of the server that keeps the pool.
    pub until: Timestamp,
    /// What the holder would use, if it had it.
    #[serde(default)]
    pub wants: u64,
}

/// What is lent to it, if anything is, and what is taken from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// By region. Of the hub's pool only: a region's own pool holds its fixed share.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    loans: BTreeMap<String, Lease>,
    /// By holder.
    #[serde(default)]
    leases: BTreeMap<String, Lease>,
}

impl Pool {
    /// Takes or renews the lease of `holder`, who `wants` so much, from a pool that has `own` besides what is lent to it: as
    /// much as is fair, and free until it ends.
    pub fn take(&mut self, own: u64, holder: &str, wants: u64, now: Timestamp) -> Lease {
        self.forget(now);
        let until = after(now, LEASE);
        let fair = self.fair(own, holder, wants, now);
        let rate = fair.min(self.free(own, holder, now, until));
        let lease = Lease { rate, until, wants };
        self.leases.insert(holder.to_owned(), lease);
        lease
    }

    /// The lease of `holder`, if it has one that lasts.
    pub fn lease(&self, holder: &str, now: Timestamp) -> Option<Lease> {
        self.leases.get(holder).copied().filter(|lease| now < lease.until)
    }

    /// Takes at least `amount` out of a region's own pool until `until`, to lend it, or prolongs what is lent. Nothing
    /// that was lent comes back early: what is already taken from the hub's pool must stay covered.
    pub fn set_aside(&mut self, own: u64, amount: u64, now: Timestamp, until: Timestamp) -> u64 {
        self.forget(now);
        let lent = self.leases.get(LENT);
        let least = lent.map_or(0, |lent| lent.rate);
        let latest = lent.map_or(until, |lent| lent.until.max(until));
        let rate = amount.min(self.free(own, LENT, now, latest)).max(least);
        let wants = 0;
        self.leases.insert(
            LENT.to_owned(),
            Lease {
                rate,
                until: latest,
                wants,
            },
        );
        rate
    }

    /// Puts what `region` lends into the hub's pool, unless it has lent more, or for longer, already.
    pub fn lend(&mut self, region: &Region, rate: u64, now: Timestamp, until: Timestamp) {
        self.forget(now);
        let known = self.loans.get(region.as_str());
        if known.is_none_or(|known| known.rate <= rate && known.until <= until) {
            let wants = 0;
            self.loans.insert(region.to_string(), Lease { rate, until, wants });
        }
    }

    /// What `region` lends at `then`.
    pub fn lent_by(&self, region: &Region, then: Timestamp) -> u64 {
        let lent = self.loans.get(region.as_str());
        lent.filter(|lent| then < lent.until).map_or(0, |lent| lent.rate)
    }

    /// How much those who take from this pool want, and will not be lent at `then` by others than `region`.
    pub fn wanted_of(&self, region: &Region, now: Timestamp, then: Timestamp) -> u64 {
        let wanted: u64 = self.lasting(now).map(|(_, lease)| lease.wants).sum();
        let others = self
            .loans
            .iter()
            .filter(|(from, lent)| *from != region.as_str() && then < lent.until);
        wanted.saturating_sub(others.map(|(_, lent)| lent.rate).sum())
    }

    /// What nobody of this pool wants for himself.
    pub fn spare(&self, own: u64, now: Timestamp) -> u64 {
        let wanted = self.lasting(now).filter(|(holder, _)| *holder != LENT);
        own.saturating_sub(wanted.map(|(_, lease)| lease.wants.max(lease.rate)).sum())
    }

    fn lasting(&self, now: Timestamp) -> impl Iterator<Item = (&str, &Lease)> {
        let lasting = self
            .leases
            .iter()
            .filter(move |(_, lease)| now < after(lease.until, MARGIN));
        lasting.map(|(holder, lease)| (holder.as_str(), lease))
    }

    fn forget(&mut self, now: Timestamp) {
        self.leases.retain(|_, lease| now < after(lease.until, MARGIN));
        self.loans.retain(|_, lent| now < lent.until);
    }

    /// What is not taken by others at any moment from `now` to `until`. Leases only end in that time, so it is least at
    /// its beginning and where a loan ends.
    fn free(&self, own: u64, holder: &str, now: Timestamp, until: Timestamp) -> u64 {
        let ends = self.loans.values().map(|lent| lent.until);
        let moments = [now].into_iter().chain(ends.filter(|end| *end > now && *end < until));
        let free_at = |moment: Timestamp| {
            let lent = self.loans.values().filter(|lent| moment < lent.until);
            let there = own + lent.map(|lent| lent.rate).sum::<u64>();
            let others = self.lasting(moment).filter(|(other, _)| *other != holder);
            there.saturating_sub(others.map(|(_, lease)| lease.rate).sum())
        };
        moments.map(free_at).min().unwrap_or(0)
    }

    /// Max-min fair: who wants little gets it, the others get equal parts of what is left. What is lent is nobody's.
    fn fair(&self, own: u64, holder: &str, wants: u64, now: Timestamp) -> u64 {
        let lent_here: u64 = self.loans.values().map(|lent| lent.rate).sum();
        let lent_away = self.leases.get(LENT).map_or(0, |lent| lent.rate);
        let mut left = (own + lent_here).saturating_sub(lent_away);
        let others = self
            .lasting(now)
            .filter(|(other, _)| *other != holder && *other != LENT);
        let mut wanted: Vec<u64> = others.map(|(_, lease)| lease.wants).collect();
        wanted.sort_unstable();
        let mut sharers = wanted.len() as u64 + 1;
        for less in wanted.into_iter().take_while(|other| *other < wants) {
            left -= less.min(left / sharers);
            sharers -= 1;
        }
        wants.min(left / sharers)
    }
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// What a project is called in subjects: a digest, as its name may have characters that a subject may not.
pub fn name(project: &str) -> Uuid {
    derive("fcm-project", &[project])
}

/// Where pools are kept: this region's bucket, or the hub's.
#[derive(Debug)]
pub struct Place {
    js: jetstream::Context,
    domain: Domain<'static>,
    /// A moment, and what the server's clock showed then or later.
    clock: tokio::sync::Mutex<Option<(Instant, Timestamp)>>,
}

/// Why a pool cannot be used now.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum Unusable {
    /// The server does not answer, or too slowly, or does not permit it.
    #[error(transparent)]
    Read(#[from] direct::NoAnswer),
    /// Somebody else wrote it meanwhile, or it could not be written.
    #[error(transparent)]
    Write(#[from] publish::NotStored),
    /// What is stored is no pool.
    #[error("the stored pool cannot be read")]
    Unreadable,
}

impl Place {
    /// The bucket of the region.
    pub fn here(js: jetstream::Context) -> Self {
        let (domain, clock) = (Domain::Here, tokio::sync::Mutex::default());
        Self { js, domain, clock }
    }

    /// The hub's, as far as it can be reached.
    pub fn hub(js: jetstream::Context) -> Self {
        let domain = Domain::Hub;
        Self {
            domain,
            ..Self::here(js)
        }
    }

    /// What the server's clock shows at `moment`, or shortly before: a lease that is taken then may be used until as long
    /// after `moment` as it lasts.
    ///
    /// # Errors
    /// When the server does not say its time.
    pub async fn at(&self, moment: Instant) -> Result<Timestamp, Unusable> {
        let mut clock = self.clock.lock().await;
        let (then, time) = match *clock {
            Some(known) if known.0.elapsed() < BELIEVED => known,
            _ => *clock.insert(self.ask_time().await?),
        };
        let ahead = after(time, moment.saturating_duration_since(then));
        let behind = SignedDuration::try_from(then.saturating_duration_since(moment)).unwrap_or_default();
        Ok(ahead.checked_sub(behind).unwrap_or(ahead))
    }

    async fn ask_time(&self) -> Result<(Instant, Timestamp), Unusable> {
        let asked = Instant::now();
        Ok((
            asked,
            time::ask(&self.js.client(), &self.domain, topology::QUOTA).await?,
        ))
    }

    /// The pool of the project called `name`, and its revision.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn read(&self, name: Uuid) -> Result<(Pool, u64), Unusable> {
        let found = direct::last_of(&self.js, &self.domain, topology::QUOTA, &[subject::quota(name)]).await?;
        match found.first() {
            Some(found) => Ok((parse(found)?, found.sequence)),
            None => Ok((Pool::default(), 0)),
        }
    }

    /// Every pool, by what its project is called.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn read_all(&self) -> Result<Vec<(Uuid, Pool)>, Unusable> {
        let filter = subject::QUOTA_FILTER.to_owned();
        let found = direct::last_of(&self.js, &self.domain, topology::QUOTA, &[filter]).await?;
        let named = found
            .iter()
            .filter_map(|found| Some((subject::quota_of(&found.subject)?, found)));
        named.map(|(name, found)| Ok((name, parse(found)?))).collect()
    }

    /// Replaces the pool whose revision was `revision`.
    ///
    /// # Errors
    /// [`publish::NotStored::Refused`] if somebody else replaced it first.
    pub async fn write(&self, name: Uuid, pool: &Pool, revision: u64) -> Result<(), Unusable> {
        let value = serde_json::to_vec(pool).expect("pools always serialize");
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
        let subject = match self.domain {
            Domain::Here | Domain::Region(_) => subject::quota(name),
            Domain::Hub => topology::at_hub(&subject::quota(name)),
        };
        publish::store(&self.js, subject, headers, value.into()).await?;
        Ok(())
    }
}

fn parse(found: &direct::Found) -> Result<Pool, Unusable> {
    serde_json::from_slice(&found.payload).map_err(|_| Unusable::Unreadable)
}

#[cfg(test)]
mod tests;
