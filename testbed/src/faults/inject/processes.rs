//! Faults of processes: too little CPU time, crashes at crash points, all workers gone, wrong clocks.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use rand::Rng;
use tokio::time::{Instant, sleep};

use super::{Injector, Victim};
use crate::{
    faults::{figures::Disturbance, scenario::VictimKind},
    peal::{Build, is_meant},
    providers::now_ms,
};

/// A crash point that is not passed within this time makes the scenario fail.
const CRASH_POINT_PASSED_WITHIN: Duration = Duration::from_secs(40);

impl Injector {
    /// Kills each victim and starts it again after `hold`.
    pub(super) async fn kill_and_start(
        &mut self,
        kind: VictimKind,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        for victim in self.choose(kind, region) {
            self.kill(victim).await?;
            sleep(hold).await;
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Stops each victim by a signal and lets it continue after `hold`.
    pub(super) async fn pause(&mut self, kind: VictimKind, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        for victim in self.choose(kind, region) {
            self.signal(victim, "STOP").await?;
            sleep(hold).await;
            self.signal(victim, "CONT").await?;
        }
        Ok(())
    }

    /// Ends each victim in order and starts it again.
    pub(super) async fn restart(&mut self, kind: VictimKind, region: Option<&str>) -> anyhow::Result<()> {
        for victim in self.choose(kind, region) {
            self.stop(victim).await?;
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Ends the processes that `whom` means one after another, and starts each again as another version.
    pub(super) async fn replace(&mut self, whom: &str, with: Build, kill: bool) -> anyhow::Result<()> {
        let former = self.peal.former().context("the former programs")?.clone();
        let mut victims = self.everyone();
        victims.retain(|victim| {
            self.program(*victim)
                .is_some_and(|program| is_meant(whom, program.name()))
        });
        ensure!(!victims.is_empty(), "there is no {whom}");
        for victim in victims {
            if kill {
                self.kill(victim).await?;
            } else {
                self.stop(victim).await?;
            }
            if let Some(program) = self.program(victim) {
                program.set_build(with, &former);
            }
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Kills two of the three nats-servers of a region at once, and starts them again.
    pub(super) async fn kill_majority(&mut self, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        let survivors = self.choose(VictimKind::Nats, region);
        let is_sibling = |other: &Victim, survivor: &Victim| match (other, survivor) {
            (Victim::Nats(region, other), Victim::Nats(of, survivor)) => region == of && other != survivor,
            _ => false,
        };
        let mut victims = self.everyone();
        victims.retain(|other| survivors.iter().any(|survivor| is_sibling(other, survivor)));
        ensure!(victims.len() == 2, "a region has three nats-servers");
        for victim in &victims {
            self.kill(*victim).await?;
        }
        sleep(hold).await;
        for victim in &victims {
            self.start(*victim).await?;
        }
        Ok(())
    }

    /// Lets each victim run for only a fifth of the time.
    pub(super) async fn squeeze(
        &mut self,
        kind: VictimKind,
        region: Option<&str>,
        hold: Duration,
    ) -> anyhow::Result<()> {
        for victim in self.choose(kind, region) {
            let end = Instant::now() + hold;
            while Instant::now() < end {
                self.signal(victim, "STOP").await?;
                sleep(Duration::from_millis(80)).await;
                self.signal(victim, "CONT").await?;
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Starts a victim so that it aborts at a crash point, waits until it has, and starts it again.
    pub(super) async fn crash(
        &mut self,
        point: &str,
        passing: (u64, u64),
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        let kind = if point.starts_with("gateway.") {
            VictimKind::Gateway
        } else {
            VictimKind::Worker
        };
        let at = format!("{point}={}", self.random.random_range(passing.0..=passing.1));
        for victim in self.choose(kind, region) {
            self.stop(victim).await?;
            let path = self.program.clone();
            let program = self.program(victim).context("a program")?;
            program.restart_with(&path, &["--crash-at", &at], &[])?;
            let deadline = Instant::now() + CRASH_POINT_PASSED_WITHIN;
            while !program.process.has_ended()? {
                ensure!(Instant::now() < deadline, "the crash point {at} was not passed");
                sleep(Duration::from_millis(10)).await;
            }
            sleep(hold).await;
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Kills all workers of a region, and starts them again.
    pub(super) async fn kill_workers(&mut self, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        let region = self.choose_region(region);
        let mut workers = self.everyone();
        workers.retain(|victim| matches!(victim, Victim::Worker(at, _) if self.peal.regions[*at].name == region));
        let from = now_ms();
        for worker in &workers {
            self.kill(*worker).await?;
        }
        sleep(hold).await;
        for worker in workers {
            self.start(worker).await?;
        }
        self.phases.disturbances.push(Disturbance {
            region,
            from,
            to: now_ms(),
        });
        Ok(())
    }

    /// Runs each victim with a clock that is wrong by `by_s` seconds.
    pub(super) async fn set_clock(
        &mut self,
        kind: VictimKind,
        by_s: i64,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        let library = faketime().context("libfaketime is not installed")?;
        let by = format!("{by_s:+}s");
        // Only the time of day is wrong, as on a real machine: its monotonic clock is right.
        let environment = [
            ("LD_PRELOAD", &*library),
            ("FAKETIME", &*by),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        for victim in self.choose(kind, region) {
            let (path, http) = (self.program.clone(), self.peal.http.clone());
            self.stop(victim).await?;
            let program = self.program(victim).context("a program")?;
            program.restart_with(&path, &[], &environment)?;
            program.wait_ready(&http).await?;
            sleep(hold).await;
            self.stop(victim).await?;
            self.start(victim).await?;
        }
        Ok(())
    }
}

/// The path of libfaketime, if it is installed.
pub(in crate::faults) fn faketime() -> Option<String> {
    let folders = ["/usr/lib64", "/usr/local/lib"].map(PathBuf::from).into_iter();
    let below = std::fs::read_dir("/usr/lib")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths = folders
        .chain(below)
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    paths.find(|path| path.exists())?.to_str().map(str::to_owned)
}
