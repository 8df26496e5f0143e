//! A hub and its regions.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use shared::nats::topology::{self, HUB};
use tokio::time::{Instant, sleep, timeout};

use super::{Keys, Role, Server, Settings};

/// How long links may take to connect. Reconnecting after a cut takes one or two seconds.
const LINKED_WITHIN: Duration = Duration::from_secs(30);

/// A hub, and regions that are linked to it as leaf nodes. Each region is a `JetStream` domain with the region's name; the
/// hub's domain is `hub`.
#[derive(Debug)]
pub struct Mesh {
    keys: Keys,
    hub: Server,
    regions: Vec<Server>,
    /// The second and third servers of regions that have three.
    siblings: Vec<Server>,
}

impl Mesh {
    /// Starts the hub and the regions, and waits until each reaches the others.
    pub async fn start(settings: impl Into<Settings>, regions: &[&str]) -> anyhow::Result<Self> {
        let mut settings = settings.into();
        for name in regions {
            let region = name.parse()?;
            if !settings.regions.contains(&region) {
                settings.regions.push(region);
            }
        }
        Self::start_linked(|_| settings.clone(), regions, |_, hub| Ok(hub.leaf_url())).await
    }

    /// As [`Self::start`]. `settings` returns the settings of a domain's server, which must name every region. `link`
    /// returns the URL by which a region reaches the hub.
    pub async fn start_linked(
        settings: impl Fn(&str) -> Settings,
        regions: &[&str],
        mut link: impl FnMut(&str, &Server) -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let keys = Keys::generate()?;
        let hub = Server::start(settings(HUB), keys.clone(), HUB, Role::Hub).await?;
        let roles: Vec<Role> = regions
            .iter()
            .map(|name| link(name, &hub).map(|hub| Role::Region { hub }))
            .collect::<anyhow::Result<_>>()?;
        let starting = regions.iter().zip(roles);
        let starting = starting.map(|(name, role)| start_region(settings(name), keys.clone(), name, role));
        let (regions, siblings): (Vec<_>, Vec<_>) = try_join_all(starting).await?.into_iter().unzip();
        let siblings = siblings.into_iter().flatten().collect();
        let mesh = Self {
            keys,
            hub,
            regions,
            siblings,
        };
        mesh.linked().await?;
        Ok(mesh)
    }

    /// Starts one more region that reaches the hub at `hub`, and waits until it reaches the others.
    pub async fn add(&mut self, settings: Settings, region: &str, hub: String) -> anyhow::Result<()> {
        let server = Server::start(settings, self.keys.clone(), region, Role::Region { hub }).await?;
        self.regions.push(server);
        self.linked().await
    }

    /// The hub.
    pub fn hub(&self) -> &Server {
        &self.hub
    }

    /// The certificates and keys of all servers and roles.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The server of the region with this name; the first of three in a cluster.
    ///
    /// # Panics
    /// If the mesh was started without it.
    pub fn region(&self, name: &str) -> &Server {
        self.regions
            .iter()
            .find(|region| region.domain() == name)
            .unwrap_or_else(|| panic!("this mesh has no region {name}"))
    }

    /// The servers of the region with this name, one or three.
    ///
    /// # Panics
    /// If the mesh was started without it.
    pub fn servers(&self, name: &str) -> Vec<&Server> {
        let siblings = self.siblings.iter().filter(|server| server.domain() == name);
        std::iter::once(self.region(name)).chain(siblings).collect()
    }

    /// One server of each region, in the order in which the regions were given.
    pub fn regions(&self) -> impl Iterator<Item = &Server> {
        self.regions.iter()
    }

    /// Waits until every running server reaches the `JetStream` of every other running server. Call it after a restart.
    pub async fn linked(&self) -> anyhow::Result<()> {
        let running: Vec<&Server> = std::iter::once(&self.hub)
            .chain(&self.regions)
            .filter(|server| server.pid().is_some())
            .collect();
        let deadline = Instant::now() + LINKED_WITHIN;
        try_join_all(running.iter().map(|server| wait_reaches(server, &running, deadline))).await?;
        Ok(())
    }
}

/// Starts the servers of a region. Returns the first, and the others if it has three.
async fn start_region(settings: Settings, keys: Keys, name: &str, role: Role) -> anyhow::Result<(Server, Vec<Server>)> {
    if !settings.clusters {
        return Ok((Server::start(settings, keys, name, role).await?, Vec::new()));
    }
    let mut servers = Server::start_cluster(settings, keys, name, role).await?;
    Ok((servers.remove(0), servers))
}

async fn wait_reaches(from: &Server, all: &[&Server], deadline: Instant) -> anyhow::Result<()> {
    let client = from
        .connect_as_test()
        .await
        .with_context(|| format!("connecting to {}", from.domain()))?;
    for to in all.iter().filter(|to| to.domain() != from.domain()) {
        // The links let requests for these streams through. An answer that the stream does not exist also counts.
        let stream = if to.domain() == HUB {
            topology::CONFIG
        } else {
            topology::OUTBOX
        };
        let subject = format!("$JS.{}.API.STREAM.INFO.{stream}", to.domain());
        loop {
            let answer = client.request(subject.clone(), "".into());
            if let Ok(Ok(_)) = timeout(Duration::from_millis(500), answer).await {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{} does not reach {}",
                from.domain(),
                to.domain()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}
