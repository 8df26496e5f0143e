//! The time from the start of an edge worker until it is ready, with an empty data folder and with an existing one.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use shared::nats::{connect, follow, topology};

use super::{figures::rate, rig::Rig, sample};
use crate::peal::Program;

/// A start that takes longer fails the run.
const READY_WITHIN: Duration = Duration::from_mins(3);

/// The figures of the worker's starts.
#[derive(Debug, Serialize)]
pub(super) struct Cold {
    /// Facts in the stream from which the cache is filled.
    pub(super) facts: u64,
    /// Messages in the stream of receipts, from which an empty ledger is filled.
    pub(super) receipts: u64,
    /// With an empty data folder.
    pub(super) empty: StartTimes,
    /// With the data folder that an orderly stop (SIGTERM) left.
    pub(super) warm: StartTimes,
    /// With the data folder that a kill (SIGKILL) left.
    pub(super) killed: StartTimes,
}

/// The times of one start, seconds since the process was started.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct StartTimes {
    /// Until the cache held every fact.
    pub(super) cache_s: f64,
    /// Until the worker was ready.
    pub(super) ready_s: f64,
}

/// Stores facts and starts the worker three times.
pub(super) async fn measure(rig: &mut Rig, facts: u64) -> anyhow::Result<Cold> {
    eprintln!("storing {facts} facts for an empty cache");
    let js = connect::jetstream(rig.peal.connect(sample::REGION).await?);
    let passive = |number| {
        sample::facts(
            &sample::region(),
            &format!("passive-{number}"),
            &format!("{number:064x}"),
        )
    };
    sample::store(&js, (0..facts / 2).map(passive)).await?;
    let stored = follow::stream_state(&js, topology::RECIPIENTS).await?.messages;
    let receipts = follow::stream_state(&js, topology::RECEIPTS).await?.messages;
    let (http, program) = (rig.peal.http.clone(), rig.peal.program());
    let worker = rig
        .peal
        .region_mut(sample::REGION)
        .workers
        .first_mut()
        .context("the region has a worker")?;
    let mut start = async |data: DataFolder| {
        match data {
            DataFolder::Killed => worker.process.kill().await?,
            DataFolder::Empty | DataFolder::Warm => worker.process.terminate(Duration::from_secs(30)).await?,
        }
        if matches!(data, DataFolder::Empty) {
            tokio::fs::remove_dir_all(worker.data()).await?;
        }
        let began = Instant::now();
        worker.restart(&program)?;
        wait_ready(worker, &http, began).await
    };
    let empty = start(DataFolder::Empty).await?;
    let warm = start(DataFolder::Warm).await?;
    let killed = start(DataFolder::Killed).await?;
    Ok(Cold {
        facts: stored,
        receipts,
        empty,
        warm,
        killed,
    })
}

/// What the worker's data folder holds when it is started.
#[derive(Debug, Clone, Copy)]
enum DataFolder {
    /// Nothing.
    Empty,
    /// The data of an orderly stop.
    Warm,
    /// The data of a kill.
    Killed,
}

impl Cold {
    /// The rate at which an empty cache is filled, facts a second.
    pub(super) fn facts_per_second(&self) -> f64 {
        rate(self.facts, Duration::from_secs_f64(self.empty.cache_s))
    }
}

/// Polls the worker until it is ready.
async fn wait_ready(worker: &Program, http: &reqwest::Client, began: Instant) -> anyhow::Result<StartTimes> {
    let url = format!("{}/readyz", worker.url);
    let mut cache_s = None;
    while began.elapsed() < READY_WITHIN {
        if let Ok(answer) = http.get(&url).send().await {
            let ready = answer.status().is_success();
            let state: serde_json::Value = answer.json().await.unwrap_or_default();
            let now = began.elapsed().as_secs_f64();
            if cache_s.is_none() && state["cache"] == true {
                cache_s = Some(now);
            }
            if ready {
                return Ok(StartTimes {
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
