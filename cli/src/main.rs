//! `peal`: the command-line program of Peal.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sends notifications, shows their status, and checks that nothing is lost.
#[derive(Debug, Parser)]
#[command(name = "peal", version)]
struct Program {
    #[command(flatten)]
    arguments: cli::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    cli::run(Program::parse().arguments).await
}
