//! One notification to all members of a topic, half of whom live in each of two regions.
//!
//! It compares the rate of pushes at the simulator, from the request until the last push, with the rate of the raw sender
//! to the same simulator, measured before and after. It also counts the messages between the regions, and measures the
//! growth of each worker's memory.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    id::Region,
    nats::{
        connect,
        follow::{self, Start},
        subject, topology,
    },
    recipient::{Fact, Membership},
};
use tokio::time::{Instant, sleep};

use super::{
    Scale,
    figures::{Spread, float, rate},
    load::{self, Order, Work},
    machine::Machine,
    report, rig, sample,
};
use crate::{audit::Audit, peal::Peal, process::memory_of};

const REGIONS: [&str; 2] = [sample::REGION, "us"];

/// The run fails after this time without a push while some are missing, or without a final status.
const PROGRESS_WITHIN: Duration = Duration::from_mins(2);

/// How often memory and statuses are read.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// All figures of `bench broadcast`.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    scale: Scale,
    machine: Machine,
    recipients: usize,
    /// Pushes a second of the raw sender, before and after.
    sender: Vec<f64>,
    /// Pushes a second of the broadcast.
    per_second: f64,
    /// Messages with work that the accepting region stored for the other.
    sent_to_others: u64,
    /// Messages with receipts that came back.
    receipts_from_others: u64,
    /// Slices in both regions together.
    slices: u64,
    /// The largest growth of each worker's memory, bytes.
    memory: Vec<u64>,
    /// The ledger equation at the end.
    equation: String,
}

/// Stores the members in two regions, and measures a broadcast to them.
pub(super) async fn measure(
    scale: Scale,
    recipients: usize,
    mut machine: Machine,
    nats_server: PathBuf,
) -> anyhow::Result<Results> {
    let program = std::env::current_exe()?;
    let peal = Peal::start(rig::plan(&REGIONS, &program, nats_server)).await?;
    eprintln!("storing {recipients} members of a topic");
    for (number, region) in REGIONS.iter().enumerate() {
        store_members(&peal, region, (number..recipients).step_by(REGIONS.len())).await?;
    }
    // The workers have read all members before they read the last one, to whom this broadcast goes.
    broadcast(&peal, "warm-up").await?;
    machine.probe().await?;
    let mut sender = vec![send_raw(&program, &peal, scale).await?];

    let log = peal.simulators.apns.log();
    log.clear();
    let before: Vec<u64> = workers(&peal).map(memory_of).collect();
    let (sent_before, received_before) = between_regions(&peal).await?;
    let began_us = Clock::system().now().as_microsecond();
    let notification = begin(&peal, "news").await?;
    let peaks = watch(&peal, recipients as u64).await?;
    let took = u64::try_from(log.last_delivered_us() - began_us).unwrap_or_default();
    let regions = done(&peal, &notification).await?["broadcast"]["by_region"].take();
    let slices = regions.as_object().context("the regions")?.values();
    let (sent, received) = between_regions(&peal).await?;
    let stats = log.stats();
    ensure!(
        stats.delivered == recipients as u64 && stats.duplicates == 0,
        "{recipients} recipients, {} pushes, {} of them duplicates\n{}",
        stats.delivered,
        stats.duplicates,
        peal.complaints()
    );
    sender.push(send_raw(&program, &peal, scale).await?);
    let audit = Audit::read_settled(&peal, PROGRESS_WITHIN).await?;
    ensure!(audit.equation().is_settled(), "{}", audit.equation());
    machine.finish();
    Ok(Results {
        scale,
        machine,
        recipients,
        sender,
        per_second: rate(recipients as u64, Duration::from_micros(took)),
        sent_to_others: sent - sent_before,
        receipts_from_others: received - received_before,
        slices: slices.filter_map(|region| region["slices"].as_u64()).sum(),
        memory: peaks
            .iter()
            .zip(before)
            .map(|(peak, before)| peak.saturating_sub(before))
            .collect(),
        equation: audit.equation().to_string(),
    })
}

async fn send_raw(program: &Path, peal: &Peal, scale: Scale) -> anyhow::Result<f64> {
    let order = Order {
        endpoints: rig::endpoints(peal)?,
        work: Work::Sender,
        duration: scale.duration,
    };
    let done = load::run(program, &order).await?;
    Ok(rate(done.count, done.took))
}

fn workers(peal: &Peal) -> impl Iterator<Item = u32> {
    let workers = peal.regions.iter().flat_map(|region| &region.workers);
    workers.filter_map(|worker| worker.process.id())
}

/// Waits until this many pushes have arrived. Returns the peak memory of each worker, bytes.
async fn watch(peal: &Peal, pushes: u64) -> anyhow::Result<Vec<u64>> {
    let log = peal.simulators.apns.log();
    let mut peaks: Vec<u64> = workers(peal).map(|_| 0).collect();
    let (mut arrived, mut progressed_at) = (0, Instant::now());
    while arrived < pushes {
        for (peak, worker) in peaks.iter_mut().zip(workers(peal)) {
            *peak = memory_of(worker).max(*peak);
        }
        let now = log.delivered_count();
        if now > arrived {
            (arrived, progressed_at) = (now, Instant::now());
        } else if progressed_at.elapsed() > PROGRESS_WITHIN {
            bail!(
                "LOST: {} of {pushes} did not arrive\n{}",
                pushes - now,
                peal.complaints()
            );
        }
        sleep(POLL_EVERY).await;
    }
    Ok(peaks)
}

/// The messages with work that the accepting region has stored for the other, and those with receipts from there.
async fn between_regions(peal: &Peal) -> anyhow::Result<(u64, u64)> {
    let js = connect::jetstream(peal.connect(sample::REGION).await?);
    let [here, there] = REGIONS;
    let receipts = subject::receipt_origin_filter(&there.parse()?, &here.parse()?);
    let count = async |stream, filter: &str| {
        let mut messages = 0;
        follow::read(&js, stream, filter, Start::Sequence(1), |_| messages += 1).await?;
        anyhow::Ok(messages)
    };
    let sent = count(topology::OUTBOX, subject::NOTIFY_FILTER).await?;
    Ok((sent, count(topology::RECEIPTS, &receipts).await?))
}

async fn broadcast(peal: &Peal, topic: &str) -> anyhow::Result<Value> {
    let notification = begin(peal, topic).await?;
    done(peal, &notification).await
}

async fn begin(peal: &Peal, topic: &str) -> anyhow::Result<String> {
    let body = json!({ "to": { "topic": topic }, "class": "bulk", "push": sample::push() });
    let answer = peal
        .expect("POST", sample::REGION, "/v1/notifications", Some(&body))
        .await?;
    Ok(answer["notification_id"].as_str().context("the id")?.to_owned())
}

/// Waits until a broadcast is done. Returns its status.
async fn done(peal: &Peal, notification: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/notifications/{notification}");
    let began = Instant::now();
    loop {
        let (_, status) = peal.ask("GET", sample::REGION, &path, None).await?;
        if status["state"] == "done" {
            return Ok(status);
        }
        ensure!(
            began.elapsed() < PROGRESS_WITHIN,
            "the broadcast is not done: {status}\n{}",
            peal.complaints()
        );
        sleep(POLL_EVERY).await;
    }
}

/// Stores facts as the gateway does: each recipient has a profile, a device and a membership. One more recipient is the
/// only member of the topic for the warm-up.
async fn store_members(peal: &Peal, region: &str, numbers: impl Iterator<Item = usize>) -> anyhow::Result<()> {
    let js = connect::jetstream(peal.connect(region).await?);
    let home: Region = region.parse()?;
    let recipients = numbers.map(|number| (format!("member-{number:07}"), "news"));
    let recipients = recipients.chain([(format!("first-in-{region}"), "warm-up")]);
    let members = recipients.map(|(recipient, topic)| {
        let (key, mut facts) = sample::facts(&home, &recipient, &sample::token(&recipient))?;
        let since = Clock::system().now();
        facts.push(Fact::Topic(topic.parse()?, Membership { since, moved: None }));
        Ok((key, facts))
    });
    sample::store(&js, members).await
}

impl Results {
    /// The figures as Markdown tables.
    pub(super) fn markdown(&self) -> Result<String, fmt::Error> {
        use fmt::Write;
        let mut text = String::new();
        report::machine(&mut text, self.scale, &self.machine)?;
        let sender = Spread::of(self.sender.iter().copied());
        writeln!(
            text,
            "| a broadcast to {} members in two regions | |\n|---|---|",
            self.recipients
        )?;
        report::row(&mut text, "b: raw HTTP/2 sender to the simulator, pushes/s", sender, 0)?;
        writeln!(text, "| broadcast, pushes/s | {:.0} |", self.per_second)?;
        writeln!(text, "| **broadcast ÷ b** | {:.2} |", self.per_second / sender.median)?;
        writeln!(text, "| messages to the other region | {} |", self.sent_to_others)?;
        let received = self.receipts_from_others;
        writeln!(text, "| messages with receipts from there | {received} |")?;
        writeln!(text, "| slices in both regions | {} |", self.slices)?;
        let growth = Spread::of(self.memory.iter().map(|bytes| float(*bytes) / f64::from(1 << 20)));
        report::row(&mut text, "largest growth of a worker's memory, MiB", growth, 0)?;
        writeln!(text, "\n{}", self.equation)?;
        Ok(text)
    }
}
