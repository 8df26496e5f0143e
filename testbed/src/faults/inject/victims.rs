//! The processes that faults can hit: which of them a scenario means, and how each is stopped and started.

use std::{path::PathBuf, time::Duration};

use rand::Rng;

use super::Injector;
use crate::{faults::scenario::VictimKind, nats::Server, peal::Program};

/// How long a process may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(25);

/// One process that faults can hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    /// A gateway, by the indices of the region and of the gateway in it.
    Gateway(usize, usize),
    /// A worker, by the indices of the region and of the worker in it.
    Worker(usize, usize),
    /// A nats-server, by the indices of the region and of the server in it.
    Nats(usize, usize),
    /// The nats-server of the hub.
    Hub,
}

impl Injector {
    /// Every process of the mesh.
    pub(super) fn everyone(&self) -> Vec<Victim> {
        let each = self.peal.regions.iter().enumerate();
        let regions = each.flat_map(|(region, parts)| {
            let workers = (0..parts.workers.len()).map(move |worker| Victim::Worker(region, worker));
            let servers = self.peal.nats.servers(&parts.name).len();
            let servers = (0..servers).map(move |server| Victim::Nats(region, server));
            let gateways = (0..parts.gateways().count()).map(move |gateway| Victim::Gateway(region, gateway));
            servers.chain(workers).chain(gateways)
        });
        [Victim::Hub].into_iter().chain(regions).collect()
    }

    /// Everyone for [`VictimKind::All`] and [`VictimKind::Programs`], else one of those who are meant.
    pub(super) fn choose(&mut self, kind: VictimKind, region: Option<&str>) -> Vec<Victim> {
        let meant = |victim: &Victim| match (kind, victim) {
            (VictimKind::All, _)
            | (VictimKind::Hub, Victim::Hub)
            | (VictimKind::Programs, Victim::Gateway(..) | Victim::Worker(..))
            | (VictimKind::Any, Victim::Gateway(..) | Victim::Worker(..) | Victim::Nats(..)) => true,
            (VictimKind::Gateway, Victim::Gateway(at, _))
            | (VictimKind::Worker, Victim::Worker(at, _))
            | (VictimKind::Nats, Victim::Nats(at, _)) => {
                region.is_none_or(|region| self.peal.regions[*at].name == region)
            }
            _ => false,
        };
        let mut victims = self.everyone();
        victims.retain(meant);
        if !matches!(kind, VictimKind::All | VictimKind::Programs) && !victims.is_empty() {
            let one = self.random.random_range(0..victims.len());
            victims = vec![victims[one]];
        }
        victims
    }

    /// The given region, or a random one.
    pub(super) fn choose_region(&mut self, region: Option<&str>) -> String {
        let any = self.random.random_range(0..self.peal.regions.len());
        region.unwrap_or(&self.peal.regions[any].name).to_owned()
    }

    pub(super) fn program(&mut self, victim: Victim) -> Option<&mut Program> {
        match victim {
            Victim::Gateway(region, 0) => Some(&mut self.peal.regions[region].gateway),
            Victim::Gateway(region, further) => Some(&mut self.peal.regions[region].more_gateways[further - 1]),
            Victim::Worker(region, worker) => Some(&mut self.peal.regions[region].workers[worker]),
            Victim::Nats(..) | Victim::Hub => None,
        }
    }

    pub(super) fn server(&self, victim: Victim) -> &Server {
        match victim {
            Victim::Nats(region, server) => self.peal.nats.servers(&self.peal.regions[region].name)[server],
            _ => self.peal.nats.hub(),
        }
    }

    pub(super) async fn kill(&mut self, victim: Victim) -> anyhow::Result<()> {
        self.kills += usize::from(matches!(victim, Victim::Worker(..)));
        match self.program(victim) {
            Some(program) => program.process.kill().await,
            None => self.server(victim).kill(),
        }
    }

    pub(super) async fn stop(&mut self, victim: Victim) -> anyhow::Result<()> {
        match self.program(victim) {
            Some(program) => program.process.terminate(END_WITHIN).await,
            None => self.server(victim).stop().await,
        }
    }

    /// Starts a process that has ended, and waits until it is ready.
    pub(super) async fn start(&mut self, victim: Victim) -> anyhow::Result<()> {
        let (path, http) = (self.program.clone(), self.peal.http.clone());
        match self.program(victim) {
            Some(program) => {
                program.restart(&path)?;
                program.wait_ready(&http).await
            }
            None => self.server(victim).restart().await,
        }
    }

    pub(super) async fn signal(&mut self, victim: Victim, name: &str) -> anyhow::Result<()> {
        match self.program(victim) {
            Some(program) => program.process.signal(name).await,
            None if name == "STOP" => self.server(victim).pause(),
            None => self.server(victim).resume(),
        }
    }

    pub(super) fn has_ended(&mut self, victim: Victim) -> anyhow::Result<bool> {
        match self.program(victim) {
            Some(program) => program.process.has_ended(),
            None => Ok(self.server(victim).pid().is_none()),
        }
    }

    /// The folder with its files.
    pub(super) fn files(&mut self, victim: Victim) -> PathBuf {
        match self.program(victim) {
            Some(worker) => worker.data(),
            None => self.server(victim).store(),
        }
    }
}
