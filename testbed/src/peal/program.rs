//! Gateways and edge workers as processes.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Build, Former, READY_WITHIN};
use crate::{network::Place, process::Process};

/// The gateway and the edge workers of one region.
#[derive(Debug)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// The gateway.
    pub gateway: Program,
    /// Further gateways beside it, where a plan has several.
    pub more_gateways: Vec<Program>,
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
    /// The program of the former version, if it runs as that and not as this crate's program.
    former: Option<PathBuf>,
    config: PathBuf,
    log: PathBuf,
    place: Place,
}

impl Region {
    /// The gateway and those beside it.
    pub fn gateways(&self) -> impl Iterator<Item = &Program> {
        [&self.gateway].into_iter().chain(&self.more_gateways)
    }

    pub(super) async fn wait_ready(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        let gateways = [&mut self.gateway].into_iter().chain(&mut self.more_gateways);
        for program in self.workers.iter_mut().chain(gateways) {
            program.wait_ready(http).await?;
        }
        Ok(())
    }
}

impl Program {
    pub(super) fn start(
        program: &Path,
        kind: &'static str,
        former: Option<PathBuf>,
        config: PathBuf,
        port: u16,
        place: Place,
    ) -> anyhow::Result<Self> {
        let log = config.with_extension("log");
        let file = former.as_deref().unwrap_or(program);
        let process = launch(
            file,
            subcommand(kind, former.as_ref()),
            &config,
            &log,
            (&[], &[]),
            &place,
        )?;
        Ok(Self {
            process,
            url: format!("http://{}:{port}", place.address()),
            kind,
            former,
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
        let file = self.former.as_deref().unwrap_or(program);
        let subcommand = subcommand(self.kind, self.former.as_ref());
        self.process = launch(file, subcommand, &self.config, &self.log, more, &self.place)?;
        Ok(())
    }

    /// From its next start on, it runs as the former version, or as this crate's program.
    pub fn set_build(&mut self, build: Build, former: &Former) {
        self.former = (build == Build::Former).then(|| former.program(self.kind));
    }

    /// Its name, such as `gateway-eu` or `worker-eu-1`.
    pub fn name(&self) -> &str {
        let stem = self.log.file_stem().unwrap_or_default();
        stem.to_str().unwrap_or_default()
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
        let name = self.name();
        let output = self.process.output();
        let is_bad = |line: &&str| line.contains("WARN") || line.contains("ERROR") || line.contains("panicked");
        let bad = output.lines().filter(is_bad);
        bad.map(|line| format!("{name}: {line}\n")).collect()
    }

    /// Waits until `/readyz` answers with success.
    ///
    /// # Errors
    /// When it ends, or is not ready within `READY_WITHIN`.
    pub async fn wait_ready(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.url);
        self.process.wait_ready(http, &url, READY_WITHIN).await
    }
}

/// The first argument on the command line. Former programs are the deployed binaries, which have no subcommand.
fn subcommand(kind: &'static str, former: Option<&PathBuf>) -> Option<&'static str> {
    former.is_none().then_some(kind)
}

fn launch(
    program: &Path,
    subcommand: Option<&str>,
    config: &Path,
    log: &Path,
    (arguments, environment): (&[&str], &[(&str, &str)]),
    place: &Place,
) -> anyhow::Result<Process> {
    let config = config.to_str().context("path is not UTF-8")?;
    let name = Path::new(config)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default()
        .to_owned();
    let first = subcommand.into_iter().chain(["--config", config]);
    Process::start(
        &name,
        program,
        &first.chain(arguments.iter().copied()).collect::<Vec<_>>(),
        environment,
        log,
        place,
    )
}
