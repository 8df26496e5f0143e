//! The messages that a provider lets a project send in a minute, divided among regions that may be unable to reach each
//! other.
//!
//! Each region has a fixed share, and a pool in its own bucket from which its workers take leases. A region lends what
//! it does not need: it first takes that part out of its own pool until a certain time, and only then puts it, for a
//! slightly shorter time, into the pool at the hub, from which workers of other regions take leases too. A worker sends
//! at the sum of its leases and stops when they end. So all workers together never exceed the quota, whichever regions
//! are cut off and whenever: when its loans end, a region that is cut off has its whole fixed share again.
//!
//! A pool is one message, replaced only by a writer that read the last version. Its times are those of the server that
//! keeps it, so that no worker's clock matters; the error of servers' clocks and the delay of answers may add up to
//! [`CLOCK_MARGIN`].

use std::{collections::BTreeMap, time::Duration};

use async_nats::{header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{direct, publish, subject, time, topology, topology::Domain};
use crate::{digest::derive, id::Region};

/// How long a lease lasts, in which a worker may send at its rate.
pub const LEASE_DURATION: Duration = Duration::from_secs(10);

/// How long a region's loan lasts.
pub const LOAN_DURATION: Duration = Duration::from_secs(30);

/// A lease is counted as taken for this much longer than it lasts, for differences between clocks.
pub const CLOCK_MARGIN: Duration = Duration::from_secs(2);

/// How long a server's time is extrapolated with the process's own monotonic clock before it is asked again.
const SERVER_TIME_REUSED_FOR: Duration = Duration::from_mins(1);

/// The holder, in a region's own pool, of the part that the region lends.
const LENT: &str = "lent";

/// The right to send a number of messages a minute, until a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Messages a minute.
    pub rate: u64,
    /// When it ends, by the clock of the server that keeps the pool.
    pub until: Timestamp,
    /// Messages a minute that the holder would use if it had them.
    #[serde(default)]
    pub wants: u64,
}

/// The loans to a pool, and the leases taken from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// By lending region. Only the hub's pool has any: the base of a region's own pool is its fixed share.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    loans: BTreeMap<String, Lease>,
    /// By holder: the id of a worker process, or [`LENT`].
    #[serde(default)]
    leases: BTreeMap<String, Lease>,
}

impl Pool {
    /// Takes or renews the lease of `holder`, which wants `wants` messages a minute, from a pool that consists of `own`
    /// and its loans. Returns a lease of the fair part, as far as that is free until the lease ends.
    pub fn take(&mut self, own: u64, holder: &str, wants: u64, now: Timestamp) -> Lease {
        self.remove_ended(now);
        let until = after(now, LEASE_DURATION);
        let fair = self.fair(own, holder, wants, now);
        let rate = fair.min(self.free(own, holder, now, until));
        let lease = Lease { rate, until, wants };
        self.leases.insert(holder.to_owned(), lease);
        lease
    }

    /// The lease of `holder`, if it has one that has not ended.
    pub fn lease(&self, holder: &str, now: Timestamp) -> Option<Lease> {
        self.leases.get(holder).copied().filter(|lease| now < lease.until)
    }

    /// Takes up to `amount` out of a region's own pool until `until`, to lend it, or prolongs an existing loan. A loan
    /// never shrinks or ends early, because leases already taken from the hub's pool must stay covered. Returns the
    /// lent rate.
    pub fn set_aside(&mut self, own: u64, amount: u64, now: Timestamp, until: Timestamp) -> u64 {
        self.remove_ended(now);
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

    /// Puts the loan of `region` into the hub's pool, unless that holds a larger or longer loan of it already.
    pub fn lend(&mut self, region: &Region, rate: u64, now: Timestamp, until: Timestamp) {
        self.remove_ended(now);
        let known = self.loans.get(region.as_str());
        if known.is_none_or(|known| known.rate <= rate && known.until <= until) {
            let wants = 0;
            self.loans.insert(region.to_string(), Lease { rate, until, wants });
        }
    }

    /// Messages a minute that `region` still lends at the time `then`.
    pub fn lent_by(&self, region: &Region, then: Timestamp) -> u64 {
        let lent = self.loans.get(region.as_str());
        lent.filter(|lent| then < lent.until).map_or(0, |lent| lent.rate)
    }

    /// Messages a minute that the holders of this pool want now, less the loans of regions other than `region` that last
    /// beyond `then`.
    pub fn wanted_of(&self, region: &Region, now: Timestamp, then: Timestamp) -> u64 {
        let wanted: u64 = self.lasting(now).map(|(_, lease)| lease.wants).sum();
        let others = self
            .loans
            .iter()
            .filter(|(from, lent)| *from != region.as_str() && then < lent.until);
        wanted.saturating_sub(others.map(|(_, lent)| lent.rate).sum())
    }

    /// The part of `own` that no holder of this pool wants.
    pub fn spare(&self, own: u64, now: Timestamp) -> u64 {
        let wanted = self.lasting(now).filter(|(holder, _)| *holder != LENT);
        own.saturating_sub(wanted.map(|(_, lease)| lease.wants.max(lease.rate)).sum())
    }

    fn lasting(&self, now: Timestamp) -> impl Iterator<Item = (&str, &Lease)> {
        let lasting = self
            .leases
            .iter()
            .filter(move |(_, lease)| now < after(lease.until, CLOCK_MARGIN));
        lasting.map(|(holder, lease)| (holder.as_str(), lease))
    }

    fn remove_ended(&mut self, now: Timestamp) {
        self.leases.retain(|_, lease| now < after(lease.until, CLOCK_MARGIN));
        self.loans.retain(|_, lent| now < lent.until);
    }

    /// The part that no other holder takes at any time from `now` to `until`. Leases can only end in that time, so the
    /// part is smallest at its beginning or where a loan ends.
    fn free(&self, own: u64, holder: &str, now: Timestamp, until: Timestamp) -> u64 {
        let ends = self.loans.values().map(|lent| lent.until);
        let times = [now].into_iter().chain(ends.filter(|end| *end > now && *end < until));
        let free_at = |time: Timestamp| {
            let lent = self.loans.values().filter(|lent| time < lent.until);
            let total = own + lent.map(|lent| lent.rate).sum::<u64>();
            let others = self.lasting(time).filter(|(other, _)| *other != holder);
            total.saturating_sub(others.map(|(_, lease)| lease.rate).sum())
        };
        times.map(free_at).min().unwrap_or(0)
    }

    /// Max-min fair: small wishes are met, the others get equal parts of the rest. The part that is lent is not divided.
    fn fair(&self, own: u64, holder: &str, wants: u64, now: Timestamp) -> u64 {
        let lent_here: u64 = self.loans.values().map(|lent| lent.rate).sum();
        let lent_away = self.leases.get(LENT).map_or(0, |lent| lent.rate);
        let mut left = (own + lent_here).saturating_sub(lent_away);
        let others = self
            .lasting(now)
            .filter(|(other, _)| *other != holder && *other != LENT);
        let mut wanted: Vec<u64> = others.map(|(_, lease)| lease.wants).collect();
        wanted.sort_unstable();
        let mut sharing = wanted.len() as u64 + 1;
        for smaller in wanted.into_iter().take_while(|other| *other < wants) {
            left -= smaller.min(left / sharing);
            sharing -= 1;
        }
        wants.min(left / sharing)
    }
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// The name of a project in subjects: a digest, because its own name may contain characters that a subject may not.
pub fn name(project: &str) -> Uuid {
    derive("fcm-project", &[project])
}

/// A bucket of pools: this region's, or the hub's.
#[derive(Debug)]
pub struct PoolBucket {
    js: jetstream::Context,
    domain: Domain<'static>,
    /// A local time, and the time that the server's clock showed then or later.
    clock: tokio::sync::Mutex<Option<(Instant, Timestamp)>>,
}

/// Why a pool cannot be used now.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum Unusable {
    /// The server does not answer in time, or does not permit the read.
    #[error(transparent)]
    Read(#[from] direct::NoAnswer),
    /// Another worker replaced the pool first, or it could not be written.
    #[error(transparent)]
    Write(#[from] publish::NotStored),
    /// The stored value is not a pool.
    #[error("the stored pool cannot be read")]
    Unreadable,
}

impl PoolBucket {
    /// The bucket of the region whose servers `js` is connected to.
    pub fn here(js: jetstream::Context) -> Self {
        let (domain, clock) = (Domain::Here, tokio::sync::Mutex::default());
        Self { js, domain, clock }
    }

    /// The hub's bucket, reached through the region's servers.
    pub fn hub(js: jetstream::Context) -> Self {
        let domain = Domain::Hub;
        Self {
            domain,
            ..Self::here(js)
        }
    }

    /// The time of the server's clock at `moment`, or slightly earlier: a lease taken at that time may be used for its
    /// full duration after `moment`.
    ///
    /// # Errors
    /// When the server does not report its time.
    pub async fn at(&self, moment: Instant) -> Result<Timestamp, Unusable> {
        let mut clock = self.clock.lock().await;
        let (then, time) = match *clock {
            Some(known) if known.0.elapsed() < SERVER_TIME_REUSED_FOR => known,
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

    /// The pool of the project with this [`name`], and its revision; an empty one with revision 0 if there is none.
    ///
    /// # Errors
    /// When the server does not answer, or the pool is unreadable.
    pub async fn read(&self, name: Uuid) -> Result<(Pool, u64), Unusable> {
        let found = direct::last_of(&self.js, &self.domain, topology::QUOTA, &[subject::quota(name)]).await?;
        match found.first() {
            Some(found) => Ok((parse(found)?, found.sequence)),
            None => Ok((Pool::default(), 0)),
        }
    }

    /// Every pool, with the [`name`] of its project.
    ///
    /// # Errors
    /// When the server does not answer, or a pool is unreadable.
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
    /// [`publish::NotStored::Refused`] if another worker replaced it first.
    pub async fn write(&self, name: Uuid, pool: &Pool, revision: u64) -> Result<(), Unusable> {
        let value = serde_json::to_vec(pool).expect("pools always serialize");
        let mut headers = super::version::headers();
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
