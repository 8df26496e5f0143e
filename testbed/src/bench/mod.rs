//! The benchmark: Peal against what its parts can do.
//!
//! One run measures, in interleaved rounds and with the same bytes,
//!
//! - a: raw `JetStream`, published, pulled and acknowledged by one process;
//! - b: a raw HTTP/2 sender to the very APNs simulator that Peal sends to;
//! - c: Peal from HTTP requests at the gateway to pushes at the simulator.
//!
//! Everything shares the machine, so what a and b leave for a system that does both is S = 1 ÷ (1/a + 1/b). This
//! process is the simulator and measures; the load comes from a process of its own, so that each can be charged for the
//! CPU time it used.
//!
//! `bench broadcast` measures one notification to the members of a topic in two regions.
//!
//! `bench durable` measures what it costs that an acknowledgement survives a power cut.

mod broadcast;
mod cold;
mod cpu;
mod durable;
mod figures;
mod load;
mod machine;
mod report;
mod rig;
mod round;
mod sample;
mod single;

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use serde::Serialize;

use self::{cold::Cold, machine::Machine, rig::Rig, round::Round};
use crate::nats;

/// How the benchmark runs.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// What is measured.
    #[arg(value_enum, default_value_t)]
    pub what: What,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// For how many seconds each measurement sends.
    #[arg(long, default_value_t = 4)]
    pub seconds: u64,
    /// How many facts are put into the bucket that an empty cache is filled from.
    #[arg(long, default_value_t = 200_000)]
    pub facts: u64,
    /// How many recipients a broadcast has.
    #[arg(long, default_value_t = 1_000_000)]
    pub recipients: usize,
    /// One round, a second each, few facts: whether it works, not how fast.
    #[arg(long)]
    pub quick: bool,
    /// Also writes all figures here.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The nats-server to run; otherwise one on the PATH that is new enough, or the Python package.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// Makes load as told on standard input: how the benchmark starts its other process.
    #[arg(long, hide = true)]
    pub load: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub enum What {
    /// Peal against what its parts can do.
    #[default]
    Mesh,
    /// Publishing to a server that flushes to the disk before it acknowledges.
    Durable,
    /// One notification to all members of a topic.
    Broadcast,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, Serialize)]
struct Scale {
    rounds: usize,
    lasts: Duration,
    singles: usize,
    facts: u64,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Results {
    scale: Scale,
    machine: Machine,
    rounds: Vec<Round>,
    cold: Cold,
}

impl BenchArgs {
    fn scale(&self) -> Scale {
        if self.quick {
            return Scale {
                rounds: 1,
                lasts: Duration::from_secs(1),
                singles: 40,
                facts: self.facts.min(20_000),
            };
        }
        let rounds = self.rounds.max(1);
        Scale {
            rounds,
            lasts: Duration::from_secs(self.seconds.max(1)),
            singles: 200_usize.div_ceil(rounds),
            facts: self.facts,
        }
    }
}

/// Runs the benchmark. It fails when a notification was lost or doubled, never for being slow.
///
/// # Errors
/// When the mesh does not come up, or a notification was lost or doubled.
pub async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    if args.load {
        load::make().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let scale = args.scale();
    let given = args.nats_server.clone();
    let nats_server = tokio::task::spawn_blocking(move || nats::obtain(given)).await??;
    let machine = Machine::watch(&nats_server).await?;
    let (text, json) = match args.what {
        // The future has some kilobytes.
        What::Mesh => Box::pin(mesh(scale, machine, nats_server)).await?,
        What::Broadcast => {
            let recipients = if args.quick {
                args.recipients.min(5_000)
            } else {
                args.recipients
            };
            let results = Box::pin(broadcast::measure(scale, recipients, machine, nats_server)).await?;
            (results.markdown()?, serde_json::to_vec_pretty(&results)?)
        }
        What::Durable => {
            let results = durable::measure(scale, machine, nats_server).await?;
            (results.markdown()?, serde_json::to_vec_pretty(&results)?)
        }
    };
    if let Some(file) = &args.json {
        std::fs::write(file, json).with_context(|| file.display().to_string())?;
    }
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The tables and the figures behind them.
async fn mesh(scale: Scale, mut machine: Machine, nats_server: PathBuf) -> anyhow::Result<(String, Vec<u8>)> {
    eprintln!("starting a region, a gateway and an edge worker");
    let mut rig = Rig::start(nats_server).await?;
    let mut rounds = Vec::new();
    for number in 1..=scale.rounds {
        machine.probe().await?;
        let round = Box::pin(round::measure(&rig, scale, number)).await?;
        rounds.push(round);
    }
    let cold = Box::pin(cold::measure(&mut rig, scale.facts)).await?;
    machine.finish();
    let results = Results {
        scale,
        machine,
        rounds,
        cold,
    };
    Ok((report::markdown(&results)?, serde_json::to_vec_pretty(&results)?))
}
