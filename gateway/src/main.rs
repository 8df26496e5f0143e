//! The program: settings, logs, and how it ends.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use gateway::{Gateway, StartError, asyncapi, config::Settings, provision};
use shared::{
    clock::Clock,
    lifecycle::{End, Lifecycle},
    nats::connect,
    seal::MeshKey,
    telemetry::{self, Telemetry},
};

/// `EX_CONFIG` of sysexits(3): repeating without a change of settings is useless.
const BAD_SETTINGS: u8 = 78;

/// Takes notifications over HTTP and publishes them to `JetStream`.
#[derive(Parser)]
#[command(name = "peal-gateway", version)]
struct Arguments {
    /// File with settings, laid over the defaults; variables `PEAL_…` are laid over both.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve; the default.
    Run,
    /// Make the apps of a file known to the mesh, and print the API keys that were issued.
    Provision {
        /// TOML with `[[app]]` entries.
        file: PathBuf,
    },
    /// Print the `AsyncAPI` description of what services publish and read.
    Asyncapi,
    /// Print the `OpenAPI` description of the HTTP API.
    Openapi,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let printed = match arguments.command {
        Some(Command::Asyncapi) => Some(asyncapi::document()),
        Some(Command::Openapi) => Some(gateway::openapi()),
        _ => None,
    };
    if let Some(text) = printed {
        return writeln!(io::stdout(), "{}", text.trim_end()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let settings = match Settings::load(arguments.config.as_deref()) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = telemetry::start_logs(&settings.telemetry) {
        return refuse(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match arguments.command {
        Some(Command::Provision { file }) => runtime.block_on(issue(settings, file)).unwrap_or_else(|error| {
            tracing::error!(error = format!("{error:#}"), "provisioning failed");
            ExitCode::FAILURE
        }),
        _ => runtime.block_on(serve(settings)),
    }
}

/// Says on standard error what is wrong with the settings; logging may not have started.
fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    // If even this cannot be said, the exit code still says it.
    let _said = writeln!(io::stderr(), "peal-gateway: {error}").is_ok();
    ExitCode::from(BAD_SETTINGS)
}

async fn serve(settings: Settings) -> ExitCode {
    let grace = settings.grace();
    let instance = format!("gateway-{}-{}", settings.mesh.region, std::process::id());
    let telemetry =
        match Telemetry::start(&settings.telemetry, "peal-gateway", &instance, &settings.mesh.region) {
            Ok(telemetry) => telemetry,
            Err(error) => return refuse(&error),
        };
    let lifecycle = Lifecycle::default();
    let gateway = match Gateway::start(settings, telemetry.clone(), Clock::system(), &lifecycle).await {
        Ok(gateway) => gateway,
        Err(StartError::Settings(error)) => return refuse(&error),
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let end = lifecycle.run(grace).await;
    drop(gateway);
    telemetry.stop().await;
    match end {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(end) => {
            tracing::error!(?end, "did not end cleanly");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(%error, "cannot listen to signals");
            ExitCode::FAILURE
        }
    }
}

async fn issue(settings: Settings, file: PathBuf) -> anyhow::Result<ExitCode> {
    let mesh_key = match MeshKey::from_base64(settings.mesh_key.reveal()) {
        Ok(mesh_key) => mesh_key,
        Err(error) => return Ok(refuse(&format_args!("mesh_key (PEAL_MESH_KEY): {error}"))),
    };
    let client = connect::connect(&settings.nats, "provision").await?;
    let issued = provision::run(client, &mesh_key, settings.mesh.replicas, &file).await?;
    let mut out = io::stdout().lock();
    for key in issued {
        let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        writeln!(out, "{}\t{}\t{}", key.app, scopes.join(","), key.text).context("cannot print a key")?;
    }
    Ok(ExitCode::SUCCESS)
}
