//! The machine, and how much of it others took while we measured.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::process::Command;

use super::figures::float;

/// For how long a probe spins.
const PROBE_LASTS: Duration = Duration::from_millis(250);

/// Nothing that belongs to a spinning loop takes as long as this; a gap is time that someone else had.
const GAP_MIN: Duration = Duration::from_micros(50);

/// From this share of time taken by others on, figures are not worth comparing.
const NOISY_PERCENT: f64 = 5.0;

/// What is known of the machine and its rest.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) nats_server: String,
    /// As the system gave it at the start: one, five and fifteen minutes.
    pub(super) load: String,
    /// Per probe: the share of time in which a loop on every core, while nothing of ours ran, stood still.
    pub(super) gap_percent: Vec<f64>,
    /// The share of all CPU time that the hypervisor gave to others during the run.
    pub(super) steal_percent: f64,
    #[serde(skip)]
    ticks_at_start: Ticks,
}

#[derive(Debug, Clone, Copy, Default)]
struct Ticks {
    steal: u64,
    all: u64,
}

impl Machine {
    pub(super) async fn watch(nats_server: &Path) -> anyhow::Result<Self> {
        let said = Command::new(nats_server).arg("--version").output().await?.stdout;
        let said = String::from_utf8_lossy(&said).trim().replace(": v", " ");
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Self {
            cores: cores(),
            nats_server: said,
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            gap_percent: Vec::new(),
            steal_percent: 0.0,
            ticks_at_start: ticks(),
        })
    }

    /// Looks whether others use the machine. To be called while nothing of ours runs.
    pub(super) async fn probe(&mut self) -> anyhow::Result<()> {
        let gap = tokio::task::spawn_blocking(gap_percent).await?;
        self.gap_percent.push(gap);
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        let now = ticks();
        let all = float(now.all.saturating_sub(self.ticks_at_start.all)).max(1.0);
        self.steal_percent = 100.0 * float(now.steal.saturating_sub(self.ticks_at_start.steal)) / all;
    }

    /// The worst probe.
    pub(super) fn worst_gap(&self) -> f64 {
        self.gap_percent.iter().copied().fold(0.0, f64::max)
    }

    pub(super) fn was_noisy(&self) -> bool {
        self.worst_gap() > NOISY_PERCENT || self.steal_percent > NOISY_PERCENT
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// One loop on each core.
fn gap_percent() -> f64 {
    let loops: Vec<_> = (0..cores()).map(|_| thread::spawn(spin)).collect();
    let lost: Duration = loops.into_iter().filter_map(|spinning| spinning.join().ok()).sum();
    100.0 * lost.as_secs_f64() / (PROBE_LASTS.as_secs_f64() * float(cores() as u64))
}

/// Asks for the time again and again; what lies between two answers that are far apart was not ours.
fn spin() -> Duration {
    let begun = Instant::now();
    let (mut before, mut lost) = (begun, Duration::ZERO);
    while before - begun < PROBE_LASTS {
        let now = Instant::now();
        if now - before > GAP_MIN {
            lost += now - before;
        }
        before = now;
    }
    lost
}

/// proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
fn ticks() -> Ticks {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    Ticks {
        steal: fields.get(7).copied().unwrap_or_default(),
        all: fields.iter().sum(),
    }
}
