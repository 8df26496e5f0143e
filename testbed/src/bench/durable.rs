//! What it costs that an acknowledgement survives a power cut: publishing to a server that flushes to the disk first.
//!
//! In interleaved rounds, with the same bytes: messages published each by itself, one after the other and many at a time;
//! the same through the batcher of the gateway; and whole requests at two gateways, of which one uses it.

use std::{fmt, path::PathBuf};

use serde::Serialize;
use shared::nats::topology::Durability;

use super::{
    Scale,
    figures::{Spread, rate},
    load::{self, Order, Target, Work},
    machine::Machine,
    report, rig, sample,
};
use crate::{
    nats::SyncInterval,
    peal::{Peal, Plan},
    providers::LogMode,
};

/// How many messages wait for their acknowledgement at one time.
const WINDOWS: [usize; 4] = [1, 64, 1024, 4096];

/// How requests come: connections, and recipients of each request.
const REQUESTS: [(usize, usize); 2] = [(128, 1), (16, 100)];

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    scale: Scale,
    machine: Machine,
    rounds: Vec<Round>,
}

/// What one round said: messages a second, in the order of [`WINDOWS`] and [`REQUESTS`].
#[derive(Debug, Default, Serialize)]
struct Round {
    singly: Vec<f64>,
    together: Vec<f64>,
    accepted_singly: Vec<f64>,
    accepted_together: Vec<f64>,
}

/// A region without workers whose server flushes before it acknowledges.
struct Region {
    target: Target,
    _peal: Peal,
}

impl Region {
    async fn start(program: PathBuf, nats_server: PathBuf, durability: Durability) -> anyhow::Result<Self> {
        let plan = Plan {
            regions: vec![sample::REGION.to_owned()],
            workers: 0,
            sample_ratio: 0.0,
            log: LogMode::Counting,
            sync_interval: SyncInterval::Always,
            durability,
            ..Plan::new(program, nats_server)
        };
        let peal = Peal::start(plan).await?;
        Ok(Self {
            target: rig::target(&peal)?,
            _peal: peal,
        })
    }
}

/// Measures all rounds.
pub(super) async fn measure(scale: Scale, mut machine: Machine, nats_server: PathBuf) -> anyhow::Result<Results> {
    let program = std::env::current_exe()?;
    eprintln!("starting two regions whose servers flush before they acknowledge");
    let plain = Region::start(program.clone(), nats_server.clone(), Durability::Demo).await?;
    let single = Region::start(program.clone(), nats_server, Durability::Single).await?;
    let per_second = async |target: &Target, work| {
        let order = Order {
            target: target.clone(),
            work,
            lasts: scale.lasts,
        };
        let done = load::start(&program, &order).await?;
        anyhow::Ok(rate(done.count, done.took))
    };
    let mut rounds = Vec::new();
    for number in 1..=scale.rounds {
        machine.probe().await?;
        let mut round = Round::default();
        for window in WINDOWS {
            load::prepare(&single.target.nats).await?;
            round
                .singly
                .push(per_second(&single.target, Work::Singly { window }).await?);
            load::prepare(&single.target.nats).await?;
            round
                .together
                .push(per_second(&single.target, Work::Together { window }).await?);
        }
        for (connections, recipients) in REQUESTS {
            let work = Work::Gateway {
                connections,
                recipients,
            };
            round.accepted_singly.push(per_second(&plain.target, work).await?);
            round.accepted_together.push(per_second(&single.target, work).await?);
        }
        eprintln!("round {number}: {round:.0?}");
        rounds.push(round);
    }
    machine.finish();
    Ok(Results { scale, machine, rounds })
}

impl Round {
    /// The batcher at its best against single publishes at their best.
    fn gain(&self) -> f64 {
        best(&self.together) / best(&self.singly)
    }
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

impl Results {
    /// The tables.
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
                &format!("each by itself, {window} at a time"),
                &|round| round.singly[at],
                0,
            )?;
        }
        for (at, window) in WINDOWS.iter().enumerate() {
            rows(&format!("batcher, {window} at a time"), &|round| round.together[at], 0)?;
        }
        rows("**best of the batcher ÷ best of the others**", &Round::gain, 2)?;
        for (at, (connections, recipients)) in REQUESTS.iter().enumerate() {
            let requests = format!("{connections} connections, {recipients} recipients a request");
            rows(
                &format!("accepted over HTTP, each by itself, {requests}"),
                &|round| round.accepted_singly[at],
                0,
            )?;
            rows(
                &format!("accepted over HTTP, batcher, {requests}"),
                &|round| round.accepted_together[at],
                0,
            )?;
            rows(
                "ratio",
                &|round| round.accepted_together[at] / round.accepted_singly[at],
                2,
            )?;
        }
        Ok(text)
    }
}
