//! The benchmark: compares Peal with what its parts can do alone.
//!
//! One run measures, in interleaved rounds and with the same bytes,
//!
//! - a: raw `JetStream`: one process publishes, pulls and acknowledges;
//! - b: a raw HTTP/2 sender to the same APNs simulator that Peal sends to;
//! - c: Peal from HTTP requests at the gateway to pushes at the simulator.
//!
//! All processes share the machine, so a system that does both a and b can reach at most S = 1 ÷ (1/a + 1/b). This
//! process runs the simulator and measures; a separate process makes the load, so that CPU time is attributed to each.
//!
//! `bench broadcast` measures one notification to all members of a topic in two regions.
//!
//! `bench door` measures services that publish over NATS.
//!
//! `bench channels` measures every channel beside pushes to Apple.
//!
//! `bench imports` measures the bulk import of devices.
//!
//! `bench durable` measures the cost of acknowledgements that survive a power cut.

mod broadcast;
mod channels;
mod cold;
mod cpu;
mod door;
mod durable;
mod figures;
mod imports;
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
use shared::provider::Provider;

use self::{cold::Cold, machine::Machine, rig::Rig, round::Round};
use crate::nats;

/// How the benchmark runs.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value_t)]
    pub what: What,
    /// The number of rounds.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// How long each measurement sends, in seconds.
    #[arg(long, default_value_t = 4)]
    pub seconds: u64,
    /// The number of facts from which an empty cache is filled.
    #[arg(long, default_value_t = 200_000)]
    pub facts: u64,
    /// The number of recipients of the broadcast.
    #[arg(long, default_value_t = 1_000_000)]
    pub recipients: usize,
    /// One round of 1 s for each measurement, with few facts: checks that it works, not how fast it is.
    #[arg(long)]
    pub quick: bool,
    /// Also writes all figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The nats-server to run; by default one on the PATH that is new enough, or the one in the Python package.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// Makes the load that standard input describes; the benchmark starts its load process with this option.
    #[arg(long, hide = true)]
    pub load: bool,
}

/// What to measure.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub enum What {
    /// Peal compared with what its parts can do alone.
    #[default]
    Mesh,
    /// Publishing to a server that flushes to the disk before it acknowledges.
    Durable,
    /// Services that publish over NATS.
    Door,
    /// Every channel, compared with pushes to Apple.
    Channels,
    /// One notification to all members of a topic.
    Broadcast,
    /// The bulk import of devices.
    Imports,
}

/// How many measurements there are, and how long each takes.
#[derive(Debug, Clone, Copy, Serialize)]
struct Scale {
    rounds: usize,
    duration: Duration,
    /// Notifications of each round that are sent one after another.
    singles: usize,
    facts: u64,
}

/// All figures of `bench mesh`.
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
                duration: Duration::from_secs(1),
                singles: 40,
                facts: self.facts.min(20_000),
            };
        }
        let rounds = self.rounds.max(1);
        Scale {
            rounds,
            duration: Duration::from_secs(self.seconds.max(1)),
            singles: 200_usize.div_ceil(rounds),
            facts: self.facts,
        }
    }
}

/// Runs the benchmark. It fails when a notification is lost or duplicated, never for being slow.
///
/// # Errors
/// When the mesh does not start, or a notification is lost or duplicated.
pub async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    if args.load {
        load::serve_order().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let scale = args.scale();
    let given_nats_server = args.nats_server.clone();
    let nats_server = tokio::task::spawn_blocking(move || nats::obtain(given_nats_server)).await??;
    let machine = Machine::watch(&nats_server).await?;
    let (text, json) = match args.what {
        // Boxed because the future takes several kilobytes.
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
        What::Door => {
            let results = Box::pin(door::measure(scale, machine, nats_server)).await?;
            (results.markdown()?, serde_json::to_vec_pretty(&results)?)
        }
        What::Channels => {
            let results = Box::pin(channels::measure(scale, machine, nats_server)).await?;
            (results.markdown()?, serde_json::to_vec_pretty(&results)?)
        }
        What::Imports => {
            let results = Box::pin(imports::measure(scale, args.quick, machine, nats_server)).await?;
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

/// Measures Peal and its parts. Returns the report in Markdown, and the figures as JSON.
async fn mesh(scale: Scale, mut machine: Machine, nats_server: PathBuf) -> anyhow::Result<(String, Vec<u8>)> {
    eprintln!("starting a region, a gateway and an edge worker");
    let mut rig = Rig::start(nats_server, Provider::Apns).await?;
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
