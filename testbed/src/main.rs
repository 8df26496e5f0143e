//! The testbed's program: the demo, the benchmark, the fault scenarios and the simulators.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::{bench, child, deliver, demo, faults, mail, post, push, simulate, web_push};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(version, about = "Tests Peal on this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a mesh of two regions, sends notifications, and shows the result of each.
    Demo(demo::DemoArgs),
    /// Measures Peal against the limits of its parts.
    Bench(bench::BenchArgs),
    /// Makes faults in a mesh, and checks that nothing is lost.
    Faults(faults::FaultsArgs),
    /// Simulates the providers for any client.
    Simulate(Box<simulate::SimulateArgs>),
    /// Sends pushes to any server with Peal's own APNs client.
    #[command(hide = true)]
    Push(push::PushArgs),
    /// Sends a push to a browser's subscription with Peal's own client.
    #[command(hide = true)]
    WebPush(web_push::WebPushArgs),
    /// Sends mails to any server with Peal's own SMTP client.
    #[command(hide = true)]
    Mail(mail::MailArgs),
    /// Sends a message to any server with Peal's own client of a provider.
    #[command(hide = true)]
    Deliver(Box<deliver::DeliverArgs>),
    /// Posts webhooks to any receiver with Peal's own client.
    #[command(hide = true)]
    Post(post::PostArgs),
    /// Runs a gateway.
    #[command(hide = true)]
    Gateway(child::ChildArgs),
    /// Runs an edge worker.
    #[command(hide = true)]
    EdgeWorker(child::ChildArgs),
    /// Runs `peal`.
    #[command(hide = true)]
    Peal(cli::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Gateway(args) => on_runtime(async { Ok(child::gateway(args).await) }),
        Command::EdgeWorker(args) => on_runtime(async { Ok(child::edge_worker(args).await) }),
        Command::Peal(args) => on_runtime(async { Ok(child::peal(args).await) }),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Bench(args) => on_runtime(bench::run(args)),
        Command::Faults(args) => faults::run(args),
        Command::Push(args) => on_runtime(push::run(args)),
        Command::WebPush(args) => on_runtime(web_push::run(args)),
        Command::Mail(args) => on_runtime(mail::run(args)),
        Command::Deliver(args) => on_runtime(deliver::run(*args)),
        Command::Post(args) => on_runtime(post::run(args)),
        Command::Simulate(args) => on_runtime(async { simulate::run(*args).await.map(|()| ExitCode::SUCCESS) }),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn on_runtime(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    Runtime::new()?.block_on(command)
}
