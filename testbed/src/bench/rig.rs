//! The mesh that is measured: a region with one gateway and one edge worker.

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
use shared::{app::Route, channel::Channel, provider::Provider};
use tokio::time::Instant;

use super::{
    cpu::{CpuPerNotification, Processes},
    figures::{Latency, rate},
    load::{self, Endpoints, GatewayClient, Order, Work},
    sample,
};
use crate::{
    peal::{AMPLE_QUOTA, Peal, Plan, Region},
    providers::{LogMode, now_s},
};

/// The run fails after this time without a push while some are missing.
const PROGRESS_WITHIN: Duration = Duration::from_secs(20);

/// The wait after the last expected push: receipts are still being written, and a duplicate could still arrive.
const DUPLICATES_WITHIN: Duration = Duration::from_millis(300);

/// The running mesh and its addresses.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) peal: Peal,
    pub(super) endpoints: Endpoints,
    program: PathBuf,
}

/// The figures of one measurement.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    /// Notifications sent.
    pub(super) count: u64,
    pub(super) per_second: f64,
    /// Requests that were repeated because the gateway did not accept them.
    pub(super) repeated: u64,
    pub(super) cpu_us: CpuPerNotification,
    /// Zero unless this measurement includes latency.
    pub(super) latency: Latency,
}

/// The addresses and credentials that a load process needs.
pub(super) fn endpoints(peal: &Peal) -> anyhow::Result<Endpoints> {
    let gateway = &peal.region(sample::REGION).gateway.url;
    Ok(Endpoints {
        nats: peal.nats.region(sample::REGION).nats_of_test()?,
        gateway: gateway.trim_start_matches("http://").parse()?,
        key: peal.key.clone(),
        apns: peal.simulators.apns.addr().port(),
        ca_pem: peal.simulators.apns.ca_pem().to_owned(),
        provider_token: peal.simulators.apns.key().provider_token(now_s())?,
    })
}

/// A mesh with one worker in each region, without traces, whose simulators only count pushes.
pub(super) fn plan(regions: &[&str], program: &Path, nats_server: PathBuf) -> Plan {
    Plan {
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        workers: 1,
        sample_ratio: 0.0,
        log: LogMode::Counting,
        tls: false,
        // The raw sender has a provider token of its own, which would count as an update.
        limit_token_updates: false,
        quota: AMPLE_QUOTA,
        ..Plan::new(program.to_owned(), nats_server)
    }
}

impl Rig {
    /// Starts the mesh, with recipients whose only address is of this provider.
    pub(super) async fn start(nats_server: PathBuf, provider: Provider) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut plan = plan(&[sample::REGION], &program, nats_server);
        for channel in [Channel::Email, Channel::Sms] {
            if provider.carries(channel) {
                plan.routes.insert(channel, vec![Route { provider, weight: 100 }]);
            }
        }
        let peal = Peal::start(plan).await?;
        let endpoints = endpoints(&peal)?;
        let rig = Self {
            peal,
            endpoints,
            program,
        };
        rig.register(provider).await?;
        let warm_up = Work::Gateway {
            connections: 16,
            recipients: 1,
            provider,
        };
        rig.measure(warm_up, Duration::from_millis(500))
            .await
            .context("warming up")?;
        Ok(rig)
    }

    pub(super) fn gateway(&self) -> anyhow::Result<GatewayClient> {
        GatewayClient::new(self.endpoints.gateway, &self.endpoints.key)
    }

    /// Registers all recipients of a provider, with several requests in parallel.
    async fn register(&self, provider: Provider) -> anyhow::Result<()> {
        const PARALLEL_REGISTRATIONS: usize = 32;
        let gateway = self.gateway()?;
        stream::iter((0..PARALLEL_REGISTRATIONS).map(anyhow::Ok))
            .try_for_each_concurrent(PARALLEL_REGISTRATIONS, |offset| {
                let gateway = gateway.clone();
                async move {
                    let mut connection = gateway.connect().await?;
                    for number in (offset..sample::RECIPIENTS).step_by(PARALLEL_REGISTRATIONS) {
                        let (recipient, token) = sample::recipient_at(provider, number);
                        let path = format!("/v1/recipients/{recipient}");
                        let home = json!({ "home": sample::REGION }).to_string();
                        let device = self.peal.address(provider, &token).to_string();
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

    /// Runs `work` in a load process and waits until every push it caused has arrived.
    ///
    /// # Errors
    /// When a notification is lost or duplicated.
    pub(super) async fn measure(&self, work: Work, duration: Duration) -> anyhow::Result<Measured> {
        let provider = match work {
            Work::Gateway { provider, .. } => provider,
            _ => Provider::Apns,
        };
        let log = self.peal.simulators.of(provider)?.log();
        log.clear();
        if matches!(work, Work::JetStream | Work::PubAck { .. } | Work::PublishSingly { .. }) {
            load::prepare(&self.endpoints.nats).await?;
        }
        let before = self.processes().cpu();
        let order = Order {
            endpoints: self.endpoints.clone(),
            work,
            duration,
        };
        let done = load::run(&self.program, &order).await?;
        let mut took = done.took;
        match work {
            Work::JetStream | Work::PublishSingly { .. } | Work::PublishBatched { .. } | Work::PubAck { .. } => {}
            // The sender sends four pushes before it starts the clock.
            Work::Sender => self.expect(provider, done.count + 4).await?,
            Work::Gateway { .. } | Work::Accept { .. } | Work::Door { .. } | Work::FormerPublish => {
                self.expect(provider, done.count).await?;
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
            cpu_us: used.per_notification(done.count),
            latency: Latency::of(done.latencies_us),
        })
    }

    /// Waits until `count` messages have arrived at a provider, and checks that no more arrive and none arrived twice.
    pub(super) async fn expect(&self, provider: Provider, count: u64) -> anyhow::Result<()> {
        let log = self.peal.simulators.of(provider)?.log();
        let (mut arrived, mut progressed_at) = (log.delivered_count(), Instant::now());
        while arrived < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = log.delivered_count();
            if now > arrived {
                (arrived, progressed_at) = (now, Instant::now());
            } else if progressed_at.elapsed() > PROGRESS_WITHIN {
                bail!(
                    "LOST: {} of {count} notifications did not arrive\n{}",
                    count - now,
                    self.peal.complaints()
                );
            }
        }
        tokio::time::sleep(DUPLICATES_WITHIN).await;
        let stats = log.stats();
        if stats.delivered != count || stats.duplicates != 0 {
            let (delivered, duplicates) = (stats.delivered, stats.duplicates);
            bail!(
                "DUPLICATED: {count} notifications, {delivered} pushes, {duplicates} of them duplicates\n{}",
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
