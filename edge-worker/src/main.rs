//! The edge worker as a program.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use edge_worker::{EdgeWorker, config};
use shared::{
    clock::Clock,
    lifecycle::{End, Lifecycle},
    settings,
    telemetry::{self, Telemetry},
};

/// Pulls notifications of its region and pushes them to the nearest provider endpoint.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// TOML file whose settings replace the defaults.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings: config::Settings = match settings::load(config::DEFAULTS, arguments.config.as_deref()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("settings: {error}");
            // EX_CONFIG of sysexits.h.
            return ExitCode::from(78);
        }
    };
    match run(settings).await {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(end) => {
            tracing::error!(?end, "left unfinished");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot work");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: config::Settings) -> anyhow::Result<End> {
    telemetry::start_logs(&settings.telemetry)?;
    let telemetry =
        Telemetry::start(&settings.telemetry, "peal-edge-worker", &settings.name, &settings.mesh.region)?;
    let lifecycle = Lifecycle::default();
    let grace = Duration::from_secs(settings.grace_s);
    let worker = EdgeWorker::start(settings, telemetry.clone(), Clock::system(), &lifecycle).await?;
    tracing::info!(admin = %worker.admin(), "started");
    let end = lifecycle.run(grace).await?;
    telemetry.stop().await;
    Ok(end)
}
