//! `peal-gateway`: the gateway and the commands of its operators.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use gateway::{documents, program};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Accepts notifications over HTTP and publishes them to `JetStream`.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A TOML file with settings, which override the defaults; environment variables `PEAL_…` override both.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests; this is the default command.
    Run,
    /// Write the regions and apps of a file to the mesh, and print the API keys that were issued.
    Provision {
        /// A TOML file with `[region.<name>]` and `[[app]]` entries.
        file: PathBuf,
    },
    /// Print the `AsyncAPI` document of the messages that services publish and read.
    Asyncapi,
    /// Print the `OpenAPI` document of the HTTP API.
    Openapi,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { config, command } = Arguments::parse();
    match command.unwrap_or(Command::Run) {
        Command::Run => program::run(config.as_deref()).await,
        Command::Provision { file } => program::provision(config.as_deref(), &file).await,
        Command::Asyncapi => print(&documents::asyncapi::document()),
        Command::Openapi => print(&documents::openapi()),
    }
}

fn print(text: &str) -> ExitCode {
    writeln!(io::stdout(), "{}", text.trim_end()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
