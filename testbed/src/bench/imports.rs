//! A bulk import of devices: lines a second until the last answer, compared with the messages a second that the same server
//! stores from one publisher.

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::ensure;
use serde::Serialize;
use serde_json::{Value, json};
use shared::provider::Provider;
use tokio::time::Instant;

use super::{
    Scale,
    figures::{Spread, rate},
    load::Work,
    machine::Machine,
    report,
    rig::Rig,
    sample,
};

/// Lines of each import; each is a recipient with one device.
const LINES: usize = 100_000;

/// Lines of an import of the quick form.
const LINES_QUICK: usize = 2_000;

/// Messages that a line with a new recipient stores: profile, home, address and owner.
const MESSAGES_OF_A_LINE: f64 = 4.0;

/// Messages that the publisher leaves unacknowledged, at most.
const UNACKNOWLEDGED_MAX: usize = 1024;

/// All figures of `bench imports`.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    scale: Scale,
    machine: Machine,
    lines: usize,
    rounds: Vec<Round>,
}

/// The figures of one round.
#[derive(Debug, Serialize)]
struct Round {
    /// Messages a second of the publisher.
    published: f64,
    /// Lines a second with new recipients.
    new: f64,
    /// Lines a second of the same import once more.
    again: f64,
}

/// Measures all rounds.
pub(super) async fn measure(
    scale: Scale,
    is_quick: bool,
    mut machine: Machine,
    nats_server: PathBuf,
) -> anyhow::Result<Results> {
    let rig = Rig::start(nats_server, Provider::Apns).await?;
    let lines = if is_quick { LINES_QUICK } else { LINES };
    let mut rounds = Vec::new();
    for number in 1..=scale.rounds {
        machine.probe().await?;
        let published = rig.measure(
            Work::PublishSingly {
                window: UNACKNOWLEDGED_MAX,
            },
            scale.duration,
        );
        let published = published.await?.per_second;
        let body = body(&rig, number, lines);
        let new = import(&rig, &body, lines, 201).await?;
        let again = import(&rig, &body, lines, 200).await?;
        eprintln!("round {number}: {published:.0} messages/s, {new:.0} and {again:.0} lines/s");
        rounds.push(Round { published, new, again });
    }
    machine.finish();
    Ok(Results {
        scale,
        machine,
        lines,
        rounds,
    })
}

fn body(rig: &Rig, round: usize, lines: usize) -> String {
    let lines = (0..lines).map(|number| {
        let recipient = format!("import-{round}-{number}");
        let device = rig.peal.address(Provider::Apns, &sample::token(&recipient));
        json!({ "recipient_id": recipient, "addresses": [device] }).to_string() + "\n"
    });
    lines.collect()
}

/// Imports all lines, and returns how many a second. Every line must be answered by `status`.
async fn import(rig: &Rig, body: &str, lines: usize, status: u16) -> anyhow::Result<f64> {
    let url = format!("{}/v1/imports", rig.peal.region(sample::REGION).gateway.url);
    let request = rig.peal.http.post(url).bearer_auth(&rig.peal.key);
    let request = request
        .header("content-type", "application/x-ndjson")
        .body(body.to_owned());
    let began = Instant::now();
    let answer = request
        .timeout(Duration::from_mins(10))
        .send()
        .await?
        .error_for_status()?;
    let answer = answer.text().await?;
    let took = began.elapsed();
    let mut stored = 0;
    for line in answer.lines() {
        let line: Value = serde_json::from_str(line)?;
        ensure!(line["status"] == status, "{line}");
        stored += 1;
    }
    ensure!(stored == lines, "{stored} of {lines} lines were answered");
    Ok(rate(lines as u64, took))
}

impl Results {
    /// The figures as a Markdown table.
    pub(super) fn markdown(&self) -> Result<String, fmt::Error> {
        use fmt::Write;

        let mut text = String::new();
        report::machine(&mut text, self.scale, &self.machine)?;
        writeln!(
            text,
            "| an import of {} recipients with one device each | |\n|---|---|",
            self.lines
        )?;
        let mut row = |what: &str, of: &dyn Fn(&Round) -> f64, digits| {
            report::row(&mut text, what, Spread::of(self.rounds.iter().map(of)), digits)
        };
        row("messages/s from one publisher", &|round| round.published, 0)?;
        row("new recipients, lines/s", &|round| round.new, 0)?;
        row(
            "messages of the lines ÷ the publisher's",
            &|round| MESSAGES_OF_A_LINE * round.new / round.published,
            2,
        )?;
        row("the same lines again, lines/s", &|round| round.again, 0)?;
        Ok(text)
    }
}
