//! The machine, and how much of its time other processes took during the measurements.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::process::Command;

use super::figures::float;

/// How long a probe spins.
const PROBE_DURATION: Duration = Duration::from_millis(250);

/// No step of the spinning loop takes this long, so that a longer gap is time that another process had.
const GAP_MIN: Duration = Duration::from_micros(50);

/// If other processes take more than this share of the time, the figures are not comparable.
const NOISY_PERCENT: f64 = 5.0;

/// The machine, and its load before and during the run.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) nats_server: String,
    /// The load average at the start: over one, five and fifteen minutes.
    pub(super) load: String,
    /// For each probe, the share of time in which a loop on every core stood still while no load was running.
    pub(super) gap_percent: Vec<f64>,
    /// The share of all CPU time that the hypervisor gave to other machines during the run.
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
        let version = Command::new(nats_server).arg("--version").output().await?.stdout;
        let version = String::from_utf8_lossy(&version).trim().replace(": v", " ");
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Self {
            cores: cores(),
            nats_server: version,
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            gap_percent: Vec::new(),
            steal_percent: 0.0,
            ticks_at_start: ticks(),
        })
    }

    /// Measures how much other processes use the machine. Call it while no load is running.
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

    /// The highest share of time that other processes had in any probe, percent.
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

/// Runs one loop on each core. Returns the share of time in which the loops stood still, percent.
fn gap_percent() -> f64 {
    let loops: Vec<_> = (0..cores()).map(|_| thread::spawn(spin)).collect();
    let lost: Duration = loops.into_iter().filter_map(|spinner| spinner.join().ok()).sum();
    100.0 * lost.as_secs_f64() / (PROBE_DURATION.as_secs_f64() * float(cores() as u64))
}

/// Reads the clock in a loop. Returns the sum of the gaps between readings, which is time that other processes had.
fn spin() -> Duration {
    let began = Instant::now();
    let (mut before, mut lost) = (began, Duration::ZERO);
    while before - began < PROBE_DURATION {
        let now = Instant::now();
        if now - before > GAP_MIN {
            lost += now - before;
        }
        before = now;
    }
    lost
}

/// The first line of `/proc/stat` (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal.
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
