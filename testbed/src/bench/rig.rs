//! The mesh that is measured: one region with one gateway and one edge worker.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use http::Method;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::{
    cpu::{Each, Processes},
    figures::{Latency, rate},
    load::{self, Door, Order, Target, Work},
    sample,
};
use crate::{
    peal::{Peal, Plan, Region},
    providers::{LogMode, now_s},
};

/// The longest time without a push while some are missing.
const PROGRESS_WITHIN: Duration = Duration::from_secs(20);

/// After the last push: receipts are still written, and a push too many would still come.
const AFTERMATH: Duration = Duration::from_millis(300);

/// The running mesh and where it is.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) peal: Peal,
    pub(super) target: Target,
    program: PathBuf,
}

/// What one measurement said.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    pub(super) count: u64,
    pub(super) per_second: f64,
    /// Requests that had to be repeated.
    pub(super) repeated: u64,
    pub(super) cpu_us: Each,
    /// Where it was measured.
    pub(super) latency: Latency,
}

/// Where everything of a mesh is.
pub(super) fn target(peal: &Peal) -> anyhow::Result<Target> {
    let gateway = &peal.region(sample::REGION).gateway.url;
    Ok(Target {
        nats: peal.nats.region(sample::REGION).nats_of_test()?,
        gateway: gateway.trim_start_matches("http://").parse()?,
        key: peal.key.clone(),
        apns: peal.simulators.apns.addr().port(),
        ca_pem: peal.simulators.apns.ca_pem().to_owned(),
        provider_token: peal.simulators.apns.key().provider_token(now_s())?,
    })
}

/// One worker a region; nothing is traced, and nothing logged of a push.
pub(super) fn plan(regions: &[&str], program: &Path, nats_server: PathBuf) -> Plan {
    Plan {
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        workers: 1,
        sample_ratio: 0.0,
        log: LogMode::Counting,
        tls: false,
        // The bare sender has a token of its own.
        limit_token_updates: false,
        ..Plan::new(program.to_owned(), nats_server)
    }
}

impl Rig {
    pub(super) async fn start(nats_server: PathBuf) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let peal = Peal::start(plan(&[sample::REGION], &program, nats_server)).await?;
        let target = target(&peal)?;
        let rig = Self { peal, target, program };
        rig.register().await?;
        let warm_up = Work::Gateway {
            connections: 16,
            recipients: 1,
        };
        rig.measure(warm_up, Duration::from_millis(500))
            .await
            .context("warming up")?;
        Ok(rig)
    }

    pub(super) fn door(&self) -> anyhow::Result<Door> {
        Door::new(self.target.gateway, &self.target.key)
    }

    /// Registers all recipients, many at a time.
    async fn register(&self) -> anyhow::Result<()> {
        const AT_A_TIME: usize = 32;
        let door = self.door()?;
        stream::iter((0..AT_A_TIME).map(anyhow::Ok))
            .try_for_each_concurrent(AT_A_TIME, |lane| {
                let door = door.clone();
                async move {
                    let mut connection = door.connect().await?;
                    for number in (lane..sample::RECIPIENTS).step_by(AT_A_TIME) {
                        let path = format!("/v1/recipients/{}", sample::recipient(number));
                        let home = json!({ "home": sample::REGION }).to_string();
                        let device = json!({ "provider": "apns", "token": sample::device(number) }).to_string();
                        let steps = [
                            (Method::PUT, path.clone(), home),
                            (Method::POST, format!("{path}/addresses"), device),
                        ];
                        for (method, path, body) in steps {
                            let status = connection.ask(method, &path, Bytes::from(body)).await?;
                            ensure!(status.is_success(), "registering {path}: {status}");
                        }
                    }
                    Ok(())
                }
            })
            .await
    }

    /// Lets a load process do `work` and waits until everything it handed over has arrived.
    ///
    /// # Errors
    /// When anything was lost or doubled.
    pub(super) async fn measure(&self, work: Work, lasts: Duration) -> anyhow::Result<Measured> {
        let log = self.peal.simulators.apns.log();
        log.clear();
        if matches!(work, Work::JetStream | Work::PubAck { .. }) {
            load::prepare(&self.target.nats).await?;
        }
        let before = self.processes().cpu();
        let order = Order {
            target: self.target.clone(),
            work,
            lasts,
        };
        let done = load::start(&self.program, &order).await?;
        let mut took = done.took;
        match work {
            Work::JetStream | Work::Singly { .. } | Work::Together { .. } | Work::PubAck { .. } => {}
            // Four pushes come before the clock is started.
            Work::Sender => self.expect(done.count + 4).await?,
            Work::Gateway { .. } | Work::Accept { .. } => {
                self.expect(done.count).await?;
                let arrived = u64::try_from(log.last_delivered_us() - done.began_us).unwrap_or_default();
                took = Duration::from_micros(arrived);
            }
        }
        let mut used = self.processes().cpu().since(before);
        used.load = done.cpu;
        Ok(Measured {
            count: done.count,
            per_second: rate(done.count, took),
            repeated: done.repeated,
            cpu_us: used.each(done.count),
            latency: Latency::of(done.latencies_us),
        })
    }

    /// Waits until `count` pushes have arrived, and checks that no more arrive and none arrived twice.
    pub(super) async fn expect(&self, count: u64) -> anyhow::Result<()> {
        let log = self.peal.simulators.apns.log();
        let (mut arrived, mut since) = (log.delivered_count(), Instant::now());
        while arrived < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = log.delivered_count();
            if now > arrived {
                (arrived, since) = (now, Instant::now());
            } else if since.elapsed() > PROGRESS_WITHIN {
                bail!(
                    "LOST: {} of {count} notifications did not arrive\n{}",
                    count - now,
                    self.peal.complaints()
                );
            }
        }
        tokio::time::sleep(AFTERMATH).await;
        let stats = log.stats();
        if stats.delivered != count || stats.duplicates != 0 {
            let (delivered, doubled) = (stats.delivered, stats.duplicates);
            bail!(
                "DOUBLED: {count} notifications, {delivered} pushes, {doubled} of them repeated\n{}",
                self.peal.complaints()
            );
        }
        Ok(())
    }

    fn region(&self) -> &Region {
        self.peal.region(sample::REGION)
    }

    fn processes(&self) -> Processes {
        let region = self.region();
        Processes {
            gateway: region.gateway.process.id(),
            worker: region.workers.first().and_then(|worker| worker.process.id()),
            nats: self.peal.nats.region(sample::REGION).pid(),
            hub: self.peal.nats.hub().pid(),
        }
    }
}
