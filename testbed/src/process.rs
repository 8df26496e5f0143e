//! A child process whose output goes to a file, and which can be signalled, stopped and killed.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

use crate::network::Place;

/// A running program. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` at a place. `environment` is added to the inherited environment; all output is appended to the
    /// file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: &Path,
        place: &Place,
    ) -> anyhow::Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        let child = place
            .run(|| command.spawn())?
            .with_context(|| format!("starting {name} ({})", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// The process id; `None` after it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The output so far, standard output and standard error together.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the system cannot report the state of the process.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Asks it to end (SIGTERM) and waits for at most `within`.
    ///
    /// # Errors
    /// When it does not end in time, or ends with an error.
    pub async fn terminate(&mut self, within: Duration) -> anyhow::Result<()> {
        self.signal("TERM").await?;
        let status = tokio::time::timeout(within, self.child.wait())
            .await
            .with_context(|| format!("{} did not end within {within:?}", self.name))??;
        if !status.success() {
            bail!("{} ended with {status}:\n{}", self.name, tail(&self.output()));
        }
        Ok(())
    }

    /// Sends a signal by name, such as `STOP`.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let Some(id) = self.id() else {
            bail!("{} has ended", self.name)
        };
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(id.to_string())
            .status()
            .await?;
        if !status.success() {
            bail!("{} could not be signalled", self.name);
        }
        Ok(())
    }

    /// Waits until `url` answers with success.
    ///
    /// # Errors
    /// When the process ends, or is not ready `within` this time. The error includes the end of its output.
    pub async fn wait_ready(&mut self, http: &reqwest::Client, url: &str, within: Duration) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, tail(&self.output()));
            }
            if http
                .get(url)
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                bail!("{} is not ready after {within:?}:\n{}", self.name, tail(&self.output()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The CPU time that it has used, user and system (proc(5): `utime` and `stime` in ticks of 10 ms).
    pub fn cpu(&self) -> Duration {
        self.id().map(cpu_of).unwrap_or_default()
    }
}

/// The CPU time that process `id` has used; zero if it cannot be read.
pub fn cpu_of(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name in parentheses may contain spaces, so fields are counted from its end.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = |at: usize| {
        fields
            .split(' ')
            .nth(at)
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// The resident memory of process `id` (`VmRSS`), bytes; zero if it cannot be read.
pub fn memory_of(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
