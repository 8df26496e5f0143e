//! The gateway, the edge worker and `peal` as subcommands of this crate's program, so that one build starts a whole mesh. They
//! run the very code of the programs that are deployed.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context;

/// How a child is started.
#[derive(Debug, Clone, clap::Args)]
pub struct ChildArgs {
    /// TOML file whose settings replace the defaults.
    #[arg(long)]
    pub config: PathBuf,
    /// Ends the process without warning when it passes this crash point for the n-th time.
    #[arg(long, value_name = "POINT=N", value_parser = crash_at)]
    pub crash_at: Option<(String, u64)>,
}

/// Runs a gateway.
pub async fn gateway(args: ChildArgs) -> ExitCode {
    arm(args.crash_at);
    gateway::program::run(Some(&args.config)).await
}

/// Runs an edge worker.
pub async fn edge_worker(args: ChildArgs) -> ExitCode {
    arm(args.crash_at);
    edge_worker::program::run(Some(&args.config)).await
}

fn crash_at(text: &str) -> anyhow::Result<(String, u64)> {
    let (point, passing) = text.split_once('=').context("must be POINT=N")?;
    Ok((point.to_owned(), passing.parse()?))
}

/// Sets the crash point. An abort, because a panic would be caught by the task it happens in.
fn arm(crash_at: Option<(String, u64)>) {
    let Some((point, passing)) = crash_at else { return };
    let passed = AtomicU64::new(0);
    let pass = move || {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == passing {
            std::process::abort();
        }
    };
    fail::cfg_callback(point, pass).expect("a callback has no syntax that could be wrong");
}

/// Runs `peal`.
pub async fn peal(args: cli::Arguments) -> ExitCode {
    cli::run(args).await
}
