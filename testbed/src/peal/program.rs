//! Gateways and edge workers as processes.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::READY_WITHIN;
use crate::{network::Place, process::Process};

/// The gateway and the edge workers of one region.
#[derive(Debug)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// The gateway.
    pub gateway: Program,
    /// The edge workers.
    pub workers: Vec<Program>,
}

/// A gateway or a worker. It can be started again with the same settings, port and files.
#[derive(Debug)]
pub struct Program {
    /// The process.
    pub process: Process,
    /// The base URL of its HTTP endpoints.
    pub url: String,
    kind: &'static str,
    config: PathBuf,
    log: PathBuf,
    place: Place,
}

impl Region {
    pub(super) async fn wait_ready(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        for program in self.workers.iter_mut().chain([&mut self.gateway]) {
            program.wait_ready(http).await?;
        }
        Ok(())
    }
}

impl Program {
    pub(super) fn start(
        program: &Path,
        kind: &'static str,
        config: PathBuf,
        port: u16,
        place: Place,
    ) -> anyhow::Result<Self> {
        let log = config.with_extension("log");
        let process = launch(program, kind, &config, &log, (&[], &[]), &place)?;
        Ok(Self {
            process,
            url: format!("http://{}:{port}", place.address()),
            kind,
            config,
            log,
            place,
        })
    }

    /// Starts it again after it has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, program: &Path) -> anyhow::Result<()> {
        self.restart_with(program, &[], &[])
    }

    /// Starts it again with additional arguments and environment variables.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_with(
        &mut self,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let more = (arguments, environment);
        self.process = launch(program, self.kind, &self.config, &self.log, more, &self.place)?;
        Ok(())
    }

    /// The path of its settings file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The data folder, if it is a worker.
    pub fn data(&self) -> PathBuf {
        self.config.with_extension("")
    }

    /// The lines of its log above `INFO`, each with its name in front.
    pub(super) fn complaints(&self) -> Vec<String> {
        let name = self.log.file_stem().unwrap_or_default().to_string_lossy();
        let output = self.process.output();
        let is_bad = |line: &&str| line.contains("WARN") || line.contains("ERROR") || line.contains("panicked");
        let bad = output.lines().filter(is_bad);
        bad.map(|line| format!("{name}: {line}\n")).collect()
    }

    /// Waits until `/readyz` answers with success.
    ///
    /// # Errors
    /// When it ends, or is not ready within [`READY_WITHIN`].
    pub async fn wait_ready(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.url);
        self.process.wait_ready(http, &url, READY_WITHIN).await
    }
}

fn launch(
    program: &Path,
    kind: &str,
    config: &Path,
    log: &Path,
    (arguments, environment): (&[&str], &[(&str, &str)]),
    place: &Place,
) -> anyhow::Result<Process> {
    let config = config.to_str().context("path is not UTF-8")?;
    let name = Path::new(config)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(kind)
        .to_owned();
    Process::start(
        &name,
        program,
        &[&[kind, "--config", config], arguments].concat(),
        environment,
        log,
        place,
    )
}
