//! The testbed as a program: the demo, the benchmark, the simulators.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::{bench, child, demo, faults, push, simulate};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(version, about = "Tries Peal on this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a mesh of two regions, sends notifications, and shows what became of each.
    Demo(demo::DemoArgs),
    /// Measures Peal against what its parts can do.
    Bench(bench::BenchArgs),
    /// Breaks a mesh in every way there is, and checks that nothing is lost.
    Faults(faults::FaultsArgs),
    /// Simulates APNs and FCM for any client.
    Simulate(simulate::SimulateArgs),
    /// Pushes with Peal's own APNs client to any server.
    #[command(hide = true)]
    Push(push::PushArgs),
    /// Runs a gateway.
    #[command(hide = true)]
    Gateway(child::ChildArgs),
    /// Runs an edge worker.
    #[command(hide = true)]
    EdgeWorker(child::ChildArgs),
    /// Runs `peal`.
    #[command(hide = true)]
    Peal(gateway::cli::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Gateway(args) => return child::gateway(args).await,
        Command::EdgeWorker(args) => return child::edge_worker(args).await,
        Command::Peal(args) => return child::peal(args).await,
        Command::Demo(args) => demo::run(args).await,
        // The future has some kilobytes.
        Command::Bench(args) => Box::pin(bench::run(args)).await,
        Command::Faults(args) => faults::run(args).await,
        Command::Push(args) => push::run(args).await,
        Command::Simulate(args) => simulate::run(args).await.map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
