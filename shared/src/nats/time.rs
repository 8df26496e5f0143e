//! The time by the region's servers. They fire schedules and stamp messages by their own clocks; a process whose clock is
//! wrong would park a retry for an hour too long, or let a notification expire that need not.

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
const LOOK: Duration = Duration::from_secs(5);

/// Differences below this are left alone: an answer takes its time, and clocks that are kept by NTP are closer.
const NEAR: SignedDuration = SignedDuration::from_secs(1);

/// A way to a server that takes longer says too little about its time.
const SLOW: Duration = Duration::from_secs(1);

/// What the clock of the server that keeps `stream` shows.
///
/// # Errors
/// [`NoAnswer`], within a second.
pub(super) async fn ask(client: &Client, domain: &Domain<'_>, stream: &str) -> Result<Timestamp, NoAnswer> {
    #[derive(Deserialize)]
    struct Info {
        ts: Timestamp,
    }
    let subject = domain.info_of(stream);
    let asking = client.request(subject.clone(), "".into());
    let asking = unless_refused(client, |refused| is_same(refused, &subject), asking);
    let answer = timeout(SLOW, asking).await.map_err(|_| NoAnswer::Silent)?;
    let answer = answer.map_err(|_| NoAnswer::Forbidden)?;
    let answer = answer.map_err(|_| NoAnswer::Silent)?;
    let info: Info = serde_json::from_slice(&answer.payload).map_err(|_| NoAnswer::Silent)?;
    Ok(info.ts)
}

/// Keeps a clock near that of the servers.
#[derive(Debug)]
pub struct Timekeeper {
    client: Client,
    region: Region,
    own: Clock,
    ahead_us: Arc<AtomicI64>,
}

impl Timekeeper {
    /// A clock that shows what `own` does until [`Self::look`] finds that the servers of `region` show something else.
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

    /// Looks for ever.
    pub async fn run(self) {
        let mut looks = interval(LOOK);
        loop {
            looks.tick().await;
            self.look().await;
        }
    }

    /// Asks the servers once. Without an answer everything stays as it was.
    pub async fn look(&self) {
        match self.ahead().await {
            Ok(ahead) => self.correct(ahead),
            Err(error) => tracing::debug!(%error, "the servers do not tell the time"),
        }
    }

    /// How far this process's clock is ahead of the servers', which told theirs between question and answer.
    async fn ahead(&self) -> Result<SignedDuration, NoAnswer> {
        let asked = self.own.now();
        let told = ask(&self.client, &Domain::Region(&self.region), topology::RECEIPTS).await?;
        let way = self.own.now().duration_since(asked) / 2;
        Ok(asked.duration_since(told) + way)
    }

    fn correct(&self, ahead: SignedDuration) {
        let wanted = if ahead.abs() < NEAR {
            SignedDuration::ZERO
        } else {
            ahead
        };
        let used = SignedDuration::from_micros(self.ahead_us.load(Ordering::Relaxed));
        if (wanted - used).abs() < NEAR {
            return;
        }
        let micros = i64::try_from(wanted.as_micros()).unwrap_or_default();
        self.ahead_us.store(micros, Ordering::Relaxed);
        tracing::warn!(ahead = %wanted, "this machine's clock is not that of the region's servers; theirs is used");
    }
}
