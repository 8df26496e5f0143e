//! The edge worker as a program: takes settings, returns an exit code.

use std::{path::Path, process::ExitCode, time::Duration};

use shared::{
    clock::Clock,
    lifecycle::{End, Lifecycle},
    settings,
    telemetry::{self, Telemetry},
};

use crate::{EdgeWorker, config};

/// The exit code for bad settings: `EX_CONFIG` of sysexits.h.
const EXIT_BAD_SETTINGS: u8 = 78;

/// Runs until a signal ends it. Success means that all work in flight was finished.
pub async fn run(config: Option<&Path>) -> ExitCode {
    let settings: config::Settings = match settings::load(config::DEFAULTS, config) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("settings: {error}");
            return ExitCode::from(EXIT_BAD_SETTINGS);
        }
    };
    match work(settings).await {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(end) => {
            tracing::error!(?end, "the process ends with unfinished work");
            // A disk that refuses writes would block a thread, and with it the end of the program, forever.
            #[expect(clippy::exit, reason = "all work that could be finished is finished")]
            std::process::exit(1)
        }
        Err(error) => {
            tracing::error!(%error, "cannot start");
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(settings: config::Settings) -> Result<End, Box<dyn std::error::Error>> {
    telemetry::start_logs(&settings.telemetry)?;
    let telemetry = Telemetry::start(
        &settings.telemetry,
        "peal-edge-worker",
        &settings.name,
        &settings.mesh.region,
    )?;
    let lifecycle = Lifecycle::default();
    let grace = Duration::from_secs(settings.grace_s);
    let worker = EdgeWorker::start(settings, telemetry.clone(), Clock::system(), &lifecycle).await?;
    tracing::info!(admin = %worker.admin(), "started");
    let end = lifecycle.run(grace).await?;
    telemetry.stop().await;
    Ok(end)
}
