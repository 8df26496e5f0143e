//! The commands of the program `peal-gateway`: each loads the settings and returns an exit code.

use std::{
    error::Error,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use shared::{
    clock::Clock,
    id::AppId,
    lifecycle::{End, Lifecycle},
    nats::{connect, roles::Role},
    telemetry::{self, Telemetry},
};
use uuid::Uuid;

use crate::{
    Gateway, StartError,
    config::{Settings, Unusable},
    provision,
};

/// Exit code for bad settings: `EX_CONFIG` of sysexits.h. A restart does not help until the settings are changed.
pub const BAD_SETTINGS: u8 = 78;

/// Serves until a signal ends the process. Success means that every request in progress was answered.
pub async fn run(config: Option<&Path>) -> ExitCode {
    let settings = match load(config) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match serve(settings).await {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(end) => {
            tracing::error!(?end, "stopped before every request was answered");
            ExitCode::FAILURE
        }
        Err(error) => failed(error.as_ref()),
    }
}

/// Writes the regions and apps of `file` to the mesh, and prints the API keys that were issued: app (`-` for an operator), scopes
/// and key, separated by tabs. The text of a key is not stored anywhere.
pub async fn provision(config: Option<&Path>, file: &Path) -> ExitCode {
    let settings = match load(config) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match issue(&settings, file).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

fn load(config: Option<&Path>) -> Result<Settings, ExitCode> {
    Settings::load(config).map_err(|error| {
        eprintln!("settings: {error}");
        ExitCode::from(BAD_SETTINGS)
    })
}

fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("error: {error}");
    match error.downcast_ref() {
        Some(StartError::Settings(_)) => ExitCode::from(BAD_SETTINGS),
        _ if error.is::<Unusable>() => ExitCode::from(BAD_SETTINGS),
        _ => ExitCode::FAILURE,
    }
}

async fn serve(settings: Settings) -> Result<End, Box<dyn Error>> {
    telemetry::start_logs(&settings.telemetry)?;
    let instance = format!("gateway-{}-{}", settings.mesh.region, Uuid::new_v4().simple());
    let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", &instance, &settings.mesh.region)?;
    let lifecycle = Lifecycle::default();
    let grace = settings.grace();
    let (clock, telemetry_of) = (Clock::system(), telemetry.clone());
    let listen = if settings.admin {
        crate::start_admin(settings, telemetry_of, clock, &lifecycle).await?
    } else {
        Gateway::start(settings, telemetry_of, clock, &lifecycle).await?.addr()
    };
    tracing::info!(%listen, "started");
    let end = lifecycle.run(grace).await?;
    telemetry.stop().await;
    Ok(end)
}

async fn issue(settings: &Settings, file: &Path) -> Result<(), Box<dyn Error>> {
    telemetry::start_logs(&settings.telemetry)?;
    let mesh_key = settings.decode_mesh_key()?;
    let operator = Role::Operator(settings.mesh.region.clone());
    let client = connect::connect(&settings.nats, &operator, "provision").await?;
    let issued = provision::run(client, &mesh_key, settings.mesh.durability.replicas(), file).await?;
    let mut out = io::stdout().lock();
    for key in issued {
        let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        let app = key.app.as_ref().map_or("-", AppId::as_str);
        writeln!(out, "{app}\t{}\t{}", scopes.join(","), key.text)?;
    }
    Ok(())
}
