//! The program `peal-edge-worker`.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    edge_worker::program::run(Arguments::parse().config.as_deref()).await
}
