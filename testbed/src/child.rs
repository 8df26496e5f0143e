//! The gateway, the edge worker and `peal` as subcommands of this crate's program, so that one build starts a whole mesh. They
//! run the very code of the programs that are deployed.

use std::{path::PathBuf, process::ExitCode};

/// How a child is started.
#[derive(Debug, Clone, clap::Args)]
pub struct ChildArgs {
    /// TOML file whose settings replace the defaults.
    #[arg(long)]
    pub config: PathBuf,
}

/// Runs a gateway.
pub async fn gateway(args: ChildArgs) -> ExitCode {
    gateway::program::run(Some(&args.config)).await
}

/// Runs an edge worker.
pub async fn edge_worker(args: ChildArgs) -> ExitCode {
    edge_worker::program::run(Some(&args.config)).await
}

/// Runs `peal`.
pub async fn peal(args: gateway::cli::Arguments) -> ExitCode {
    gateway::cli::run(args).await
}
