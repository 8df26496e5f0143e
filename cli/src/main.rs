//! `peal`: sends, watches and checks, for people.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sends notifications, shows what becomes of them, and checks that nothing is lost.
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
