//! The time of the region's servers. They fire schedules and stamp messages by their own clocks; a process with a wrong
//! clock could park a retry for an hour too long, or let a notification expire too early.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_nats::Client;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::time::{interval, timeout};

use super::{
    direct::NoAnswer,
    refusal::{is_same, unless_refused},
    topology::{self, Domain},
};
use crate::{clock::Clock, id::Region};

/// How often the servers are asked.
const SERVERS_ASKED_EVERY: Duration = Duration::from_secs(5);

/// Smaller differences are ignored: answers take time, and clocks kept by NTP are closer.
const DIFFERENCE_IGNORED: SignedDuration = SignedDuration::from_secs(1);

/// A later answer says too little about the server's time.
const ANSWER_COUNTS_WITHIN: Duration = Duration::from_secs(1);

/// The time of the server that keeps `stream`.
///
/// # Errors
/// [`NoAnswer`], after at most one second.
pub(super) async fn ask(client: &Client, domain: &Domain<'_>, stream: &str) -> Result<Timestamp, NoAnswer> {
    #[derive(Deserialize)]
    struct Info {
        ts: Timestamp,
    }
    let subject = domain.info_of(stream);
    let asking = client.request(subject.clone(), "".into());
    let asking = unless_refused(client, |refused| is_same(refused, &subject), asking);
    let answer = timeout(ANSWER_COUNTS_WITHIN, asking)
        .await
        .map_err(|_| NoAnswer::Silent)?;
    let answer = answer.map_err(|_| NoAnswer::Forbidden)?;
    let answer = answer.map_err(|_| NoAnswer::Silent)?;
    let info: Info = serde_json::from_slice(&answer.payload).map_err(|_| NoAnswer::Silent)?;
    Ok(info.ts)
}

/// Keeps a clock close to that of the servers.
#[derive(Debug)]
pub struct Timekeeper {
    client: Client,
    region: Region,
    own: Clock,
    ahead_us: Arc<AtomicI64>,
}

impl Timekeeper {
    /// Returns a clock that follows `own`, until [`Self::synchronize`] finds that the servers of `region` show another
    /// time.
    pub fn new(client: Client, region: Region, own: Clock) -> (Clock, Self) {
        let ahead_us = Arc::new(AtomicI64::new(0));
        let (read, by) = (own.clone(), Arc::clone(&ahead_us));
        let kept = Clock::from_fn(move || {
            let now = read.now();
            let ahead = SignedDuration::from_micros(by.load(Ordering::Relaxed));
            now.checked_sub(ahead).unwrap_or(now)
        });
        let keeper = Self {
            client,
            region,
            own,
            ahead_us,
        };
        (kept, keeper)
    }

    /// Asks the servers regularly until the process ends.
    pub async fn run(self) {
        let mut checks = interval(SERVERS_ASKED_EVERY);
        loop {
            checks.tick().await;
            self.synchronize().await;
        }
    }

    /// Asks the servers for their time once and corrects the clock. Without an answer the clock keeps its correction.
    pub async fn synchronize(&self) {
        match self.ahead().await {
            Ok(ahead) => self.correct(ahead),
            Err(error) => tracing::debug!(%error, "could not ask the servers for the time"),
        }
    }

    /// How far this process's clock is ahead of the servers' clock, which was read halfway between request and answer.
    async fn ahead(&self) -> Result<SignedDuration, NoAnswer> {
        let asked = self.own.now();
        let servers = ask(&self.client, &Domain::Region(&self.region), topology::RECEIPTS).await?;
        let half_way = self.own.now().duration_since(asked) / 2;
        Ok(asked.duration_since(servers) + half_way)
    }

    fn correct(&self, ahead: SignedDuration) {
        let wanted = if ahead.abs() < DIFFERENCE_IGNORED {
            SignedDuration::ZERO
        } else {
            ahead
        };
        let used = SignedDuration::from_micros(self.ahead_us.load(Ordering::Relaxed));
        if (wanted - used).abs() < DIFFERENCE_IGNORED {
            return;
        }
        let micros = i64::try_from(wanted.as_micros()).unwrap_or_default();
        self.ahead_us.store(micros, Ordering::Relaxed);
        tracing::warn!(ahead = %wanted, "this machine's clock differs from the region's servers'; using theirs");
    }
}
