//! The cost of acknowledgements that survive a power cut: the server flushes to the disk before it acknowledges.
//!
//! Interleaved rounds with the same bytes compare single publishes, with one or many of them unacknowledged, with the
//! gateway's batcher; and HTTP requests to two gateways, one of which uses the batcher.

use std::{fmt, path::PathBuf};

use serde::Serialize;
use shared::{nats::topology::Durability, provider::Provider};

use super::{
    Scale,
    figures::{Spread, rate},
    load::{self, Endpoints, Order, Work},
    machine::Machine,
    report, rig, sample,
};
use crate::{
    nats::SyncInterval,
    peal::{AMPLE_QUOTA, Peal, Plan},
    providers::LogMode,
};

/// Numbers of messages that are unacknowledged at one time.
const WINDOWS: [usize; 4] = [1, 64, 1024, 4096];

/// Loads of HTTP requests: connections, and recipients of each request.
const REQUEST_LOADS: [(usize, usize); 2] = [(128, 1), (16, 100)];

/// All figures of `bench durable`.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    scale: Scale,
    machine: Machine,
    rounds: Vec<Round>,
}

/// The figures of one round: messages a second, in the order of [`WINDOWS`] and [`REQUEST_LOADS`].
#[derive(Debug, Default, Serialize)]
struct Round {
    /// Published without the batcher.
    singly: Vec<f64>,
    /// Published by the batcher.
    batched: Vec<f64>,
    /// Accepted by the gateway without a batcher.
    accepted_singly: Vec<f64>,
    /// Accepted by the gateway with a batcher.
    accepted_batched: Vec<f64>,
}

/// A region without workers, whose server flushes before it acknowledges.
struct FlushingRegion {
    endpoints: Endpoints,
    _peal: Peal,
}

impl FlushingRegion {
    async fn start(program: PathBuf, nats_server: PathBuf, durability: Durability) -> anyhow::Result<Self> {
        let plan = Plan {
            regions: vec![sample::REGION.to_owned()],
            workers: 0,
            sample_ratio: 0.0,
            log: LogMode::Counting,
            sync_interval: SyncInterval::Always,
            durability,
            quota: AMPLE_QUOTA,
            ..Plan::new(program, nats_server)
        };
        let peal = Peal::start(plan).await?;
        Ok(Self {
            endpoints: rig::endpoints(&peal)?,
            _peal: peal,
        })
    }
}

/// Measures all rounds.
pub(super) async fn measure(scale: Scale, mut machine: Machine, nats_server: PathBuf) -> anyhow::Result<Results> {
    let program = std::env::current_exe()?;
    eprintln!("starting two regions whose servers flush before they acknowledge");
    let unbatched = FlushingRegion::start(program.clone(), nats_server.clone(), Durability::Demo).await?;
    let batched = FlushingRegion::start(program.clone(), nats_server, Durability::Single).await?;
    let per_second = async |endpoints: &Endpoints, work| {
        let order = Order {
            endpoints: endpoints.clone(),
            work,
            duration: scale.duration,
        };
        let done = load::run(&program, &order).await?;
        anyhow::Ok(rate(done.count, done.took))
    };
    let mut rounds = Vec::new();
    for number in 1..=scale.rounds {
        machine.probe().await?;
        let mut round = Round::default();
        for window in WINDOWS {
            load::prepare(&batched.endpoints.nats).await?;
            round
                .singly
                .push(per_second(&batched.endpoints, Work::PublishSingly { window }).await?);
            load::prepare(&batched.endpoints.nats).await?;
            round
                .batched
                .push(per_second(&batched.endpoints, Work::PublishBatched { window }).await?);
        }
        for (connections, recipients) in REQUEST_LOADS {
            let work = Work::Gateway {
                connections,
                recipients,
                provider: Provider::Apns,
            };
            round
                .accepted_singly
                .push(per_second(&unbatched.endpoints, work).await?);
            round.accepted_batched.push(per_second(&batched.endpoints, work).await?);
        }
        eprintln!("round {number}: {round:.0?}");
        rounds.push(round);
    }
    machine.finish();
    Ok(Results { scale, machine, rounds })
}

impl Round {
    /// The best rate of the batcher ÷ the best rate of single publishes.
    fn gain(&self) -> f64 {
        best(&self.batched) / best(&self.singly)
    }
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

impl Results {
    /// The figures as Markdown tables.
    pub(super) fn markdown(&self) -> Result<String, fmt::Error> {
        use fmt::Write;

        let mut text = String::new();
        report::machine(&mut text, self.scale, &self.machine)?;
        writeln!(
            text,
            "| stored with `sync_interval: always`, one copy | messages/s |\n|---|---|"
        )?;
        let mut rows = |what: &str, of: &dyn Fn(&Round) -> f64, digits| {
            report::row(&mut text, what, Spread::of(self.rounds.iter().map(of)), digits)
        };
        for (at, window) in WINDOWS.iter().enumerate() {
            rows(
                &format!("single publishes, {window} at a time"),
                &|round| round.singly[at],
                0,
            )?;
        }
        for (at, window) in WINDOWS.iter().enumerate() {
            rows(&format!("batcher, {window} at a time"), &|round| round.batched[at], 0)?;
        }
        rows("**best of the batcher ÷ best of single publishes**", &Round::gain, 2)?;
        for (at, (connections, recipients)) in REQUEST_LOADS.iter().enumerate() {
            let requests = format!("{connections} connections, {recipients} recipients a request");
            rows(
                &format!("accepted over HTTP, single publishes, {requests}"),
                &|round| round.accepted_singly[at],
                0,
            )?;
            rows(
                &format!("accepted over HTTP, batcher, {requests}"),
                &|round| round.accepted_batched[at],
                0,
            )?;
            rows(
                "ratio",
                &|round| round.accepted_batched[at] / round.accepted_singly[at],
                2,
            )?;
        }
        Ok(text)
    }
}
