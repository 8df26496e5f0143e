//! How long an edge worker needs until it can work: with an empty data folder, and with the one it left.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use async_nats::{HeaderMap, jetstream};
use jiff::Timestamp;
use serde::Serialize;
use shared::{
    channel::Provider,
    clock::Clock,
    id::AddressId,
    nats::{connect, follow, publish, subject, topology},
    recipient::{Address, AddressKind, Environment, Fact, Profile, RecipientKey, Token},
};

use super::{figures::rate, rig::Rig, sample};
use crate::peal::{APP, Program};

/// Publishes that are unacknowledged at one time.
const WINDOW: usize = 1024;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_mins(3);

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Cold {
    /// Facts in the bucket.
    pub(super) facts: u64,
    /// Receipts in the stream, which an empty ledger is filled from.
    pub(super) receipts: u64,
    /// From starting the process.
    pub(super) empty: Start,
    /// After it was told to end.
    pub(super) warm: Start,
    /// After it was killed.
    pub(super) killed: Start,
}

/// How a start went, seconds from starting the process.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Start {
    /// Until the cache held every fact.
    pub(super) cache_s: f64,
    /// Until the worker was ready.
    pub(super) ready_s: f64,
}

/// Fills the bucket and starts the worker three times.
pub(super) async fn measure(rig: &mut Rig, facts: u64) -> anyhow::Result<Cold> {
    eprintln!("{facts} facts for an empty cache");
    let js = connect::jetstream(rig.peal.connect(sample::REGION).await?);
    fill(&js, facts).await?;
    let held = follow::standing(&js, topology::RECIPIENTS).await?.messages;
    let receipts = follow::standing(&js, topology::RECEIPTS).await?.messages;
    let (http, program) = (rig.peal.http.clone(), rig.peal.program());
    let worker = rig
        .peal
        .region_mut(sample::REGION)
        .workers
        .first_mut()
        .context("the region has a worker")?;
    let mut start = async |way: Way| {
        match way {
            Way::Killed => worker.process.kill().await?,
            Way::Empty | Way::Warm => worker.process.terminate(Duration::from_secs(30)).await?,
        }
        if matches!(way, Way::Empty) {
            tokio::fs::remove_dir_all(worker.data()).await?;
        }
        let begun = Instant::now();
        worker.restart(&program)?;
        ready(worker, &http, begun).await
    };
    let empty = start(Way::Empty).await?;
    let warm = start(Way::Warm).await?;
    let killed = start(Way::Killed).await?;
    Ok(Cold {
        facts: held,
        receipts,
        empty,
        warm,
        killed,
    })
}

/// How the worker was before it is started.
#[derive(Debug, Clone, Copy)]
enum Way {
    Empty,
    Warm,
    Killed,
}

impl Cold {
    /// Facts a second into an empty cache.
    pub(super) fn facts_per_second(&self) -> f64 {
        rate(self.facts, Duration::from_secs_f64(self.empty.cache_s))
    }
}

/// Asks the worker how far it is until it is ready.
async fn ready(worker: &Program, http: &reqwest::Client, begun: Instant) -> anyhow::Result<Start> {
    let url = format!("{}/readyz", worker.url);
    let mut cache_s = None;
    while begun.elapsed() < PATIENCE {
        if let Ok(answer) = http.get(&url).send().await {
            let ready = answer.status().is_success();
            let state: serde_json::Value = answer.json().await.unwrap_or_default();
            let now = begun.elapsed().as_secs_f64();
            if cache_s.is_none() && state["cache"] == true {
                cache_s = Some(now);
            }
            if ready {
                return Ok(Start {
                    cache_s: cache_s.unwrap_or(now),
                    ready_s: now,
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!(
        "the worker is not ready after {PATIENCE:?}:\n{}",
        worker.process.output()
    )
}

/// Puts facts where the gateway puts them, in the form in which it does: a profile and an address of each recipient.
async fn fill(js: &jetstream::Context, facts: u64) -> anyhow::Result<()> {
    let now = Clock::system().now();
    let mut waiting = VecDeque::with_capacity(WINDOW);
    for number in 0..facts {
        if waiting.len() == WINDOW
            && let Some(oldest) = waiting.pop_front()
        {
            stored(oldest).await?;
        }
        let (key, fact) = fact(number, now)?;
        let subject = subject::fact(&key, fact.name());
        waiting.push_back(publish::send(js, subject, HeaderMap::new(), fact.encode().into()).await?);
    }
    for rest in waiting {
        stored(rest).await?;
    }
    Ok(())
}

async fn stored(ack: impl Future<Output = Result<publish::Stored, publish::NotStored>>) -> anyhow::Result<()> {
    ack.await?;
    Ok(())
}

fn fact(number: u64, now: Timestamp) -> anyhow::Result<(RecipientKey, Fact)> {
    let app = APP.parse()?;
    let recipient = format!("passive-{}", number / 2);
    if number.is_multiple_of(2) {
        let profile = Profile {
            home: sample::region(),
            locale: None,
            timezone: None,
            updated_at: now,
        };
        return Ok((
            RecipientKey {
                app,
                recipient: recipient.parse()?,
            },
            Fact::Profile(profile),
        ));
    }
    let token = format!("{number:064x}");
    let address = Address {
        id: AddressId::of(&app, Provider::Apns, &token),
        provider: Provider::Apns,
        token: Token::new(Provider::Apns, token)?,
        kind: AddressKind::Device,
        environment: Environment::Production,
        topic: None,
        registered_at: now,
    };
    Ok((
        RecipientKey {
            app,
            recipient: recipient.parse()?,
        },
        Fact::Address(address),
    ))
}
