//! Faults of disks and of the files on them.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use super::{Injector, Victim};
use crate::faults::{
    damage::{self, DamageKind, DataFile},
    disk::Disk,
    scenario::VictimKind,
};

/// A gateway must report within this time that nothing is stored any more.
const FULL_DISK_REPORTED_WITHIN: Duration = Duration::from_mins(1);

/// A supervisor restarts a server that stores nothing for this long after its disk has space again.
const RESTART_SERVER_AFTER: Duration = Duration::from_secs(5);

/// The size of a file system that is to be filled or to lose power.
const DISK_MEGABYTES: u64 = 96;

impl Injector {
    /// Damages a data file of each victim while it does not run.
    pub(super) async fn damage(&mut self, file: DataFile, how: DamageKind, region: Option<&str>) -> anyhow::Result<()> {
        for victim in self.choose(VictimKind::Worker, region) {
            self.stop(victim).await?;
            let data = self.program(victim).context("a worker")?.data();
            damage::damage(&data, file, how, &mut self.random)?;
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Keeps a copy of a worker's files, and restores it after `hold`, while the worker does not run.
    pub(super) async fn set_back(&mut self, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        for victim in self.choose(VictimKind::Worker, region) {
            self.kill(victim).await?;
            let data = self.files(victim);
            let copy = tempfile::tempdir()?;
            damage::replace(copy.path(), &data)?;
            self.start(victim).await?;
            sleep(hold).await;
            self.kill(victim).await?;
            damage::replace(&data, copy.path())?;
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Kills two workers of a region, and starts both with the files of the first.
    pub(super) async fn copy_files(&mut self, region: Option<&str>) -> anyhow::Result<()> {
        for victim in self.choose(VictimKind::Worker, region) {
            let is_sibling = |other: &Victim| match (victim, other) {
                (Victim::Worker(here, this), Victim::Worker(there, other)) => here == *there && this != *other,
                _ => false,
            };
            let sibling = self.everyone().into_iter().find(is_sibling);
            let sibling = sibling.context("a second worker in the region")?;
            self.kill(victim).await?;
            self.kill(sibling).await?;
            let (original, copy) = (self.files(victim), self.files(sibling));
            damage::replace(&copy, &original)?;
            self.start(victim).await?;
            self.start(sibling).await?;
        }
        Ok(())
    }

    /// Fills the disk for a while. A process that ends because of it is started again, as a supervisor would do.
    pub(super) async fn fill_disk(
        &mut self,
        kind: VictimKind,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        for victim in self.choose(kind, region) {
            self.stop(victim).await?;
            let disk = Disk::over(&self.files(victim), DISK_MEGABYTES).await?;
            self.start(victim).await?;
            disk.fill()?;
            let region = match victim {
                Victim::Nats(region, _) => Some(region),
                _ => None,
            };
            if let Some(region) = region {
                let reported = self.is_ready(region, false, FULL_DISK_REPORTED_WITHIN).await;
                ensure!(reported, "the gateway does not report that nothing is stored");
            }
            sleep(hold).await;
            disk.free()?;
            self.disks.push(disk);
            // After a full disk a server may refuse writes until it is restarted, which its gateway reports.
            if let Some(region) = region
                && !self.is_ready(region, true, RESTART_SERVER_AFTER).await
            {
                self.stop(victim).await?;
            }
            if self.has_ended(victim)? {
                self.start(victim).await?;
            }
        }
        Ok(())
    }

    /// Waits for at most `within` until a region's gateway is `ready`, or until it is not; whether it came to that.
    pub(super) async fn is_ready(&self, region: usize, ready: bool, within: Duration) -> bool {
        let url = format!("{}/readyz", self.peal.regions[region].gateway.url);
        let is_so = async || {
            let answer = self.peal.http.get(&url).send().await;
            answer.is_ok_and(|answer| answer.status().is_success() == ready)
        };
        let waiting = async {
            while !is_so().await {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(within, waiting).await.is_ok()
    }

    /// Lets each victim work on a file system of its own for a while, then restores that to what had reached the blocks.
    pub(super) async fn lose_power(
        &mut self,
        kind: VictimKind,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        for victim in self.choose(kind, region) {
            self.stop(victim).await?;
            let disk = Disk::of_blocks(&self.files(victim), DISK_MEGABYTES).await?;
            self.start(victim).await?;
            sleep(hold).await;
            self.signal(victim, "STOP").await?;
            disk.remember().await?;
            self.kill(victim).await?;
            disk.go_back().await?;
            self.disks.push(disk);
            self.start(victim).await?;
        }
        Ok(())
    }

    /// Lets every flush of the victim fail. If it ends because of it, it is started again, as a supervisor would do.
    pub(super) async fn fail_flushes(
        &mut self,
        kind: VictimKind,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        for victim in self.choose(kind, region) {
            let pid = match self.program(victim) {
                Some(program) => program.process.id(),
                None => self.server(victim).pid(),
            };
            let pid = pid.context("a running process")?.to_string();
            let mut tracer = Command::new("strace")
                .args([
                    "--quiet=all",
                    "--follow-forks",
                    "--attach",
                    &pid,
                    "--output",
                    "/dev/null",
                ])
                .args(["--inject=fsync,fdatasync:error=EIO", "--trace=fsync,fdatasync"])
                .kill_on_drop(true)
                .spawn()?;
            sleep(hold).await;
            let id = tracer.id().context("strace has ended")?;
            // On SIGTERM it detaches from the process.
            Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
            tracer.wait().await?;
            if self.has_ended(victim)? {
                self.start(victim).await?;
            }
        }
        Ok(())
    }
}

/// Whether strace is installed and permitted.
pub(in crate::faults) fn may_trace() -> bool {
    let tried = std::process::Command::new("strace")
        .args(["--output", "/dev/null", "true"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}
