//! The gateway as a program: settings in, exit code out.

use std::{path::Path, process::ExitCode};

use shared::{
    clock::Clock,
    lifecycle::{End, Lifecycle},
    telemetry::{self, Telemetry},
};
use uuid::Uuid;

use crate::{Gateway, StartError, config::Settings};

/// Bad settings: `EX_CONFIG` of sysexits.h. Repeating without a change of settings is useless.
pub const BAD_SETTINGS: u8 = 78;

/// Serves until a signal ends it. Success means that every request under way was answered.
pub async fn run(config: Option<&Path>) -> ExitCode {
    let settings = match Settings::load(config) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("settings: {error}");
            return ExitCode::from(BAD_SETTINGS);
        }
    };
    match serve(settings).await {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(end) => {
            tracing::error!(?end, "left unfinished");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            match error.downcast_ref() {
                Some(StartError::Settings(_)) => ExitCode::from(BAD_SETTINGS),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn serve(settings: Settings) -> Result<End, Box<dyn std::error::Error>> {
    telemetry::start_logs(&settings.telemetry)?;
    let instance = format!("gateway-{}-{}", settings.mesh.region, Uuid::new_v4().simple());
    let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", &instance, &settings.mesh.region)?;
    let lifecycle = Lifecycle::default();
    let grace = settings.grace();
    let gateway = Gateway::start(settings, telemetry.clone(), Clock::system(), &lifecycle).await?;
    tracing::info!(listen = %gateway.addr(), "started");
    let end = lifecycle.run(grace).await?;
    telemetry.stop().await;
    Ok(end)
}
