//! What a notification costs on each channel, compared with a push to Apple in the same round.

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

/// What is compared; the first is the measure of the others. The other providers of e-mail and text messages are asked in the
/// same way as these.
const PROVIDERS: [Provider; 7] = [
    Provider::Apns,
    Provider::Fcm,
    Provider::WebPush,
    Provider::Smtp,
    Provider::SendGrid,
    Provider::Twilio,
    Provider::Webhook,
];

/// All figures of `bench channels`.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    scale: Scale,
    machine: Machine,
    /// In the order of [`PROVIDERS`].
    rounds: Vec<Vec<Measured>>,
}

/// Measures all rounds.
pub(super) async fn measure(scale: Scale, mut machine: Machine, nats_server: PathBuf) -> anyhow::Result<Results> {
    let mut rounds = Vec::new();
    for number in 1..=scale.rounds {
        machine.probe().await?;
        let mut round = Vec::new();
        for provider in PROVIDERS {
            // A mesh for each: an app asks one provider of a channel after another.
            let rig = Rig::start(nats_server.clone(), provider).await?;
            let work = Work::Gateway {
                connections: 16,
                recipients: 100,
                provider,
            };
            let measured = rig.measure(work, scale.duration).await?;
            eprintln!("round {number}: {provider} {:.0}/s", measured.per_second);
            round.push(measured);
        }
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
        writeln!(
            text,
            "| 100 recipients a request, one address each | notifications/s | ÷ `apns` | gateway + edge worker, µs | ÷ `apns` |\n\
             |---|---|---|---|---|"
        )?;
        for (place, provider) in PROVIDERS.iter().enumerate() {
            let median = |of: &dyn Fn(&[Measured]) -> f64| Spread::of(self.rounds.iter().map(|round| of(round))).median;
            let cpu = |measured: &Measured| measured.cpu_us.gateway + measured.cpu_us.worker;
            writeln!(
                text,
                "| `{provider}` | {:.0} | {:.2} | {:.0} | {:.2} |",
                median(&|round| round[place].per_second),
                median(&|round| round[place].per_second / round[0].per_second),
                median(&|round| cpu(&round[place])),
                median(&|round| cpu(&round[place]) / cpu(&round[0])),
            )?;
        }
        Ok(text)
    }
}
