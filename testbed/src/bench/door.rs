//! The cost of the door for services: the former direct publish of jobs, and the door with one and with many notifications
//! in a message, in interleaved rounds, each from the publish to the pushes at the simulator.

use std::{fmt, path::PathBuf};

use serde::Serialize;
use shared::provider::Provider;

use super::{
    Scale,
    figures::Spread,
    load::Work,
    machine::Machine,
    report,
    rig::{Measured, Rig},
};

/// Notifications in one message where many share it.
const MANY: usize = 100;

/// All figures of `bench door`.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    scale: Scale,
    machine: Machine,
    rounds: Vec<Round>,
}

/// The figures of one round.
#[derive(Debug, Serialize)]
struct Round {
    former: Measured,
    one: Measured,
    many: Measured,
}

/// Measures all rounds.
pub(super) async fn measure(scale: Scale, mut machine: Machine, nats_server: PathBuf) -> anyhow::Result<Results> {
    eprintln!("starting a region, a gateway and an edge worker");
    let rig = Rig::start(nats_server, Provider::Apns).await?;
    let mut rounds = Vec::new();
    for number in 1..=scale.rounds {
        machine.probe().await?;
        let round = Round {
            former: rig.measure(Work::FormerPublish, scale.duration).await?,
            one: rig.measure(Work::Door { many: 1 }, scale.duration).await?,
            many: rig.measure(Work::Door { many: MANY }, scale.duration).await?,
        };
        eprintln!(
            "round {number}: former {:.0}/s, door {:.0}/s, {MANY} a message {:.0}/s",
            round.former.per_second, round.one.per_second, round.many.per_second
        );
        rounds.push(round);
    }
    machine.finish();
    Ok(Results { scale, machine, rounds })
}

impl Results {
    /// The figures as a Markdown table.
    pub(super) fn markdown(&self) -> Result<String, fmt::Error> {
        use fmt::Write;

        let mut text = String::new();
        report::machine(&mut text, self.scale, &self.machine)?;
        writeln!(text, "| from publish to push | notifications/s |\n|---|---|")?;
        let mut row = |what: &str, of: &dyn Fn(&Round) -> f64, digits| {
            report::row(&mut text, what, Spread::of(self.rounds.iter().map(of)), digits)
        };
        row("former: jobs published directly", &|round| round.former.per_second, 0)?;
        row("door, one a message", &|round| round.one.per_second, 0)?;
        row(
            "ratio to the former",
            &|round| round.one.per_second / round.former.per_second,
            2,
        )?;
        row(&format!("door, {MANY} a message"), &|round| round.many.per_second, 0)?;
        row(
            "ratio to the former",
            &|round| round.many.per_second / round.former.per_second,
            2,
        )?;
        Ok(text)
    }
}
