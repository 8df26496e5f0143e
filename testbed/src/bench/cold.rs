//! How long an edge worker needs until it can work: with an empty data folder, and with the one it left.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use shared::nats::{connect, follow, topology};

use super::{figures::rate, rig::Rig, sample};
use crate::peal::Program;

/// How long a start may take.
const READY_WITHIN: Duration = Duration::from_mins(3);

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
    let passive = |number| {
        sample::facts(
            &sample::region(),
            &format!("passive-{number}"),
            &format!("{number:064x}"),
        )
    };
    sample::fill(&js, (0..facts / 2).map(passive)).await?;
    let held = follow::stream_state(&js, topology::RECIPIENTS).await?.messages;
    let receipts = follow::stream_state(&js, topology::RECEIPTS).await?.messages;
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
    while begun.elapsed() < READY_WITHIN {
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
        "the worker is not ready after {READY_WITHIN:?}:\n{}",
        worker.process.output()
    )
}
