//! A whole Peal: nats-servers, simulators, gateways and edge workers, each in a process of its own, on this machine.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use gateway::provision::{self, NewAlerts, NewApns, NewApp, NewFcm};
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    app::Ambiguity,
    channel::Channel,
    nats::{connect::Nats, roles::Role, topology::Durability},
    seal::MeshKey,
    site::Site,
};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::{
    faults::{Between, Proxy, Trouble, Wire},
    nats,
    network::{self, Network, Place},
    process::Process,
    providers::{Apns, ApnsConfig, Authority, Fcm, FcmConfig, LogMode, apns::JwtMode, reachable},
};

/// The app that every test mesh has.
pub const APP: &str = "shop";

/// The bundle id of that app.
pub const TOPIC: &str = "com.example.shop";

/// How long a process may take to be ready, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a mesh is to be like.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program of this crate, which is also gateway and worker.
    pub program: PathBuf,
    /// The nats-server to run.
    pub nats_server: PathBuf,
    /// The regions; the first is the app's default.
    pub regions: Vec<String>,
    /// Regions that are to be added later; servers must be told who may do what there.
    pub later: Vec<String>,
    /// Edge workers in each region.
    pub workers: usize,
    /// Whether the workers of each region stand by to help the others.
    pub helpers: bool,
    /// Where spans go.
    pub otlp_endpoint: Option<String>,
    /// Share of notifications that are traced.
    pub sample_ratio: f64,
    /// What the simulators remember.
    pub log: LogMode,
    /// Whether Apple bears only the workers' provider tokens, and no other of the same team.
    pub limit_token_updates: bool,
    /// The region that the app's data must not leave.
    pub residency: Option<String>,
    /// What the app does in doubt.
    pub ambiguity: BTreeMap<Channel, Ambiguity>,
    /// Messages a minute that Google lets the app's project send, if it is not the usual number.
    pub fcm_quota: Option<NonZeroU32>,
    /// Where the app's developers are told of dead letters.
    pub alerts: Option<NewAlerts>,
    /// More settings of the workers, as TOML tables and keys that come first in the file.
    pub worker_settings: String,
    /// More settings of the gateways, as TOML tables that come last in the file.
    pub gateway_settings: String,
    /// Settings of every provider.
    pub provider_settings: String,
    /// Most bytes of the streams of work.
    pub max_bytes: i64,
    /// When the nats-servers flush to the disk.
    pub sync_interval: nats::SyncInterval,
    /// What gateways and workers are told of that.
    pub durability: Durability,
    /// Whether connections to the nats-servers are encrypted; the benchmark measures them without.
    pub tls: bool,
    /// What the parts reach each other through.
    pub links: Links,
}

/// What the parts of a mesh reach each other through.
#[derive(Debug, Clone, Default)]
pub enum Links {
    /// Nothing but this machine's loopback.
    #[default]
    Direct,
    /// Proxies that can make trouble, and their seed.
    Proxies(u64),
    /// A network in which each party is alone.
    Network(Arc<Network>),
}

impl Plan {
    /// Two regions with two workers each, everything traced into nothing, by the program that runs.
    ///
    /// # Errors
    /// When the path of the running program is unknown or there is no nats-server to be had.
    pub fn new(program: PathBuf, nats_server: PathBuf) -> Self {
        Self {
            program,
            nats_server,
            regions: vec!["eu".into(), "us".into()],
            later: Vec::new(),
            workers: 2,
            helpers: false,
            otlp_endpoint: None,
            sample_ratio: 1.0,
            log: LogMode::default(),
            limit_token_updates: true,
            residency: None,
            ambiguity: BTreeMap::new(),
            fcm_quota: None,
            alerts: None,
            worker_settings: String::new(),
            gateway_settings: String::new(),
            provider_settings: String::new(),
            max_bytes: -1,
            sync_interval: nats::SyncInterval::default(),
            durability: Durability::default(),
            tls: true,
            links: Links::Direct,
        }
    }
}

impl Plan {
    fn nats_settings(&self, domain: &str) -> nats::Settings {
        nats::Settings {
            place: self.place(&match domain {
                "hub" => domain.to_owned(),
                region => network::nats(region),
            }),
            sync_interval: self.sync_interval,
            clusters: self.durability.replicas() > 1,
            tls: self.tls,
            regions: self
                .regions
                .iter()
                .chain(&self.later)
                .map(|name| name.parse().expect("the name of a region"))
                .collect(),
            ..nats::Settings::new(&self.nats_server)
        }
    }

    /// Where a party is.
    fn place(&self, party: &str) -> Place {
        match &self.links {
            Links::Network(network) => network.place(party).clone(),
            Links::Direct | Links::Proxies(_) => Place::default(),
        }
    }
}

/// The running mesh. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Peal {
    /// The nats-servers.
    pub nats: nats::Mesh,
    /// Apple.
    pub apns: Apns,
    /// Google.
    pub fcm: Fcm,
    /// The regions in the order of the plan.
    pub regions: Vec<Region>,
    /// An API key of [`APP`] that may do everything.
    pub key: String,
    /// For asking the mesh.
    pub http: reqwest::Client,
    /// What can make trouble between the parts, if anything can.
    pub links: Vec<Link>,
    mesh_key: String,
    plan: Plan,
    folder: TempDir,
}

/// What stands between two parts.
#[derive(Debug)]
pub struct Link {
    /// Which parts.
    pub between: Between,
    /// The region it belongs to.
    pub region: String,
    /// The other region that it leads to, if it is the way of helpers.
    pub helped: Option<String>,
    carrier: Carrier,
}

#[derive(Debug)]
enum Carrier {
    Proxy(Proxy),
    Wire(Wire),
}

impl Link {
    /// Whether it ends in this region.
    pub fn touches(&self, region: &str) -> bool {
        self.region == region || self.helped.as_deref() == Some(region)
    }

    /// Makes this trouble from now on, and no other.
    ///
    /// # Errors
    /// When such a link cannot make it.
    pub fn set(&self, trouble: &Trouble) -> anyhow::Result<()> {
        match &self.carrier {
            Carrier::Proxy(proxy) => proxy.set(trouble),
            Carrier::Wire(wire) => wire.set(trouble),
        }
    }
}

/// The processes of one region.
#[derive(Debug)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// The gateway.
    pub gateway: Program,
    /// The edge workers.
    pub workers: Vec<Program>,
}

/// A gateway or worker that can be started again as it was.
#[derive(Debug)]
pub struct Program {
    /// The process.
    pub process: Process,
    /// Where it answers HTTP.
    pub url: String,
    kind: &'static str,
    config: PathBuf,
    log: PathBuf,
    place: Place,
}

impl Region {
    async fn wait_ready(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        for program in self.workers.iter_mut().chain([&mut self.gateway]) {
            program.wait_ready(http).await?;
        }
        Ok(())
    }
}

impl Program {
    fn start(program: &Path, kind: &'static str, config: PathBuf, port: u16, place: Place) -> anyhow::Result<Self> {
        let log = config.with_extension("log");
        let process = launch(program, kind, &config, &log, (&[], &[]), &place)?;
        Ok(Self {
            process,
            url: format!("http://{}:{port}", place.address()),
            kind,
            config,
            log,
            place,
        })
    }

    /// Starts it again after it was ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, program: &Path) -> anyhow::Result<()> {
        self.restart_with(program, &[], &[])
    }

    /// Starts it again with more arguments, and more in its environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_with(
        &mut self,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let more = (arguments, environment);
        self.process = launch(program, self.kind, &self.config, &self.log, more, &self.place)?;
        Ok(())
    }

    /// Its settings file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Where it keeps its files, if it is a worker.
    pub fn data(&self) -> PathBuf {
        self.config.with_extension("")
    }

    /// Waits until it is ready to work.
    ///
    /// # Errors
    /// When it ends, or is not ready after half a minute.
    pub async fn wait_ready(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.url);
        self.process.wait_ready(http, &url, PATIENCE).await
    }
}

fn launch(
    program: &Path,
    kind: &str,
    config: &Path,
    log: &Path,
    (arguments, environment): (&[&str], &[(&str, &str)]),
    place: &Place,
) -> anyhow::Result<Process> {
    let config = config.to_str().context("path is not UTF-8")?;
    let name = Path::new(config)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(kind)
        .to_owned();
    Process::start(
        &name,
        program,
        &[&[kind, "--config", config], arguments].concat(),
        environment,
        log,
        place,
    )
}

impl Peal {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When any part does not come up; the error holds the end of its output.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let names: Vec<&str> = plan.regions.iter().map(String::as_str).collect();
        let mut links = Vec::new();
        let settings = |domain: &str| plan.nats_settings(domain);
        let nats =
            nats::Mesh::start_linked(settings, &names, |region, hub| leaf_url(&plan, &mut links, region, hub)).await?;
        links.extend(ways_of_helpers(&plan));
        let authority = Authority::generate()?;
        let provider = plan.place("provider");
        let listen = SocketAddr::from((provider.address(), 0));
        let apns = ApnsConfig {
            listen,
            authority: Some(authority.clone()),
            jwt: JwtMode::Strict,
            limit_token_updates: plan.limit_token_updates,
            log: plan.log,
            ..ApnsConfig::default()
        };
        let here = Handle::current();
        let apns = provider.run(|| here.block_on(Apns::start(apns)))??;
        let fcm = FcmConfig {
            listen,
            authority: Some(authority.clone()),
            log: plan.log,
            ..FcmConfig::default()
        };
        let fcm = provider.run(|| here.block_on(Fcm::start(fcm)))??;
        std::fs::write(folder.path().join("ca.pem"), authority.pem())?;
        let mesh_key = STANDARD.encode(rand::random::<[u8; 32]>());
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let key = provision(&nats, &plan, &mesh_key, &apns, &fcm).await?;
        let mut peal = Self {
            nats,
            apns,
            fcm,
            regions: Vec::new(),
            key,
            http,
            links,
            mesh_key,
            plan,
            folder,
        };
        for name in peal.plan.regions.clone() {
            let region = peal.start_region(&name)?;
            peal.regions.push(region);
        }
        for region in &mut peal.regions {
            region.wait_ready(&peal.http).await?;
        }
        peal.wait_configured().await?;
        Ok(peal)
    }

    /// Adds a region to the running mesh, and waits until it is ready. Nothing else is told or started again.
    ///
    /// # Errors
    /// When any part does not come up.
    pub async fn add_region(&mut self, name: &str) -> anyhow::Result<()> {
        let hub = leaf_url(&self.plan, &mut self.links, name, self.nats.hub())?;
        self.nats.add(self.plan.nats_settings(name), name, hub).await?;
        let operator = Role::Operator(self.nats.hub().domain().parse()?);
        let client = self.nats.hub().connect(&operator).await?;
        let site = site(&self.nats, &self.plan, name)?;
        provision::write_region(&provision::hub(client), &name.parse()?, &site).await?;
        let mut region = self.start_region(name)?;
        region.wait_ready(&self.http).await?;
        self.regions.push(region);
        self.wait_configured().await
    }

    /// Waits until the API key, written at the hub, is known in every region.
    async fn wait_configured(&self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for region in &self.regions {
            while self.ask("GET", &region.name, "/v1/recipients/nobody", None).await?.0 == 401 {
                if tokio::time::Instant::now() >= deadline {
                    bail!("the API key did not reach {}", region.name);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// The program to start again what was ended.
    pub fn program(&self) -> PathBuf {
        self.plan.program.clone()
    }

    /// A region by name.
    ///
    /// # Panics
    /// When the mesh has no such region.
    pub fn region(&self, name: &str) -> &Region {
        self.regions
            .iter()
            .find(|region| region.name == name)
            .expect("a region of the plan")
    }

    /// A region by name, to end and restart its processes.
    ///
    /// # Panics
    /// When the mesh has no such region.
    pub fn region_mut(&mut self, name: &str) -> &mut Region {
        self.regions
            .iter_mut()
            .find(|region| region.name == name)
            .expect("a region of the plan")
    }

    /// A connection to a region's NATS for what a test does to it, which may be everything.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect(&self, region: &str) -> anyhow::Result<async_nats::Client> {
        self.nats.region(region).connect_as_test().await
    }

    /// A connection to a region's NATS, as a service of [`APP`] there has.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect_as_service(&self, region: &str) -> anyhow::Result<async_nats::Client> {
        let service = Role::Service(region.parse()?, APP.parse()?);
        self.nats.region(region).connect(&service).await
    }

    /// A connection to the hub, from which an operator reads every region.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect_as_operator(&self) -> anyhow::Result<async_nats::Client> {
        let hub = self.nats.hub();
        hub.connect(&Role::Operator(hub.domain().parse()?)).await
    }

    /// Asks a region's gateway.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(
        &self,
        method: &str,
        region: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let url = format!("{}{path}", self.region(region).gateway.url);
        let mut request = self.http.request(method.parse()?, url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Registers a recipient who lives in `home`, with devices `(provider, token)`.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn register(&self, recipient: &str, home: &str, devices: &[(&str, &str)]) -> anyhow::Result<()> {
        self.register_at(home, recipient, home, devices).await
    }

    /// As [`Self::register`], by the gateway of the region `at`.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn register_at(
        &self,
        at: &str,
        recipient: &str,
        home: &str,
        devices: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let path = format!("/v1/recipients/{recipient}");
        self.expect("PUT", at, &path, Some(&json!({ "home": home }))).await?;
        for (provider, token) in devices {
            let body = json!({ "provider": provider, "token": token });
            self.expect("POST", at, &format!("{path}/addresses"), Some(&body))
                .await?;
        }
        Ok(())
    }

    /// Waits until `region` has heard that `recipient` was registered.
    ///
    /// # Errors
    /// When it has not after half a minute.
    pub async fn wait_known(&self, region: &str, recipient: &str) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let path = format!("/v1/recipients/{recipient}");
        while self.ask("GET", region, &path, None).await?.0 != 200 {
            if tokio::time::Instant::now() >= deadline {
                bail!("{region} has not heard of {recipient}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Asks and insists on success.
    ///
    /// # Errors
    /// When the answer is not a success; the error holds it.
    pub async fn expect(&self, method: &str, region: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.ask(method, region, path, body).await?;
        if !(200..300).contains(&status) {
            bail!("{method} {path} in {region}: {status} {answer}");
        }
        Ok(answer)
    }

    fn start_region(&mut self, name: &str) -> anyhow::Result<Region> {
        let place = self.plan.place(&network::edge(name));
        let port = free_port()?;
        let config = format!(
            "listen = \"{}:{port}\"\n{}\n{}",
            place.address(),
            self.common(name, &Role::Gateway(name.parse()?), 5)?,
            self.plan.gateway_settings
        );
        let gateway = self.write_config(&format!("gateway-{name}"), &config)?;
        let gateway = Program::start(&self.plan.program, "gateway", gateway, port, place)?;
        let workers = (1..=self.plan.workers)
            .map(|number| self.start_worker(name, number))
            .collect::<Result<_, _>>()?;
        Ok(Region {
            name: name.to_owned(),
            gateway,
            workers,
        })
    }

    fn start_worker(&mut self, region: &str, number: usize) -> anyhow::Result<Program> {
        let port = free_port()?;
        let place = self.plan.place(&network::edge(region));
        let (apns, fcm) = (self.apns.addr(), self.fcm.addr());
        let apns = via(&self.plan, &mut self.links, Between::Provider, region, apns)?;
        let fcm = via(&self.plan, &mut self.links, Between::Provider, region, fcm)?;
        let common = self.common(region, &Role::Worker(region.parse()?), 10)?;
        let name = format!("worker-{region}-{number}");
        let folder = self.folder.path();
        let config = format!(
            "name = \"{name}\"\nadmin_listen = \"{}:{port}\"\ndata = \"{}\"\n{}\n{}\n\
             [providers.apns]\nproduction = [\"{}\"]\nca_file = \"{ca}\"\n{more}\n\
             [providers.fcm]\nendpoints = [\"https://{}\"]\nca_file = \"{ca}\"\n{more}\n",
            place.address(),
            folder.join(&name).display(),
            self.plan.worker_settings,
            common,
            reachable(apns),
            reachable(fcm),
            more = self.plan.provider_settings,
            ca = folder.join("ca.pem").display(),
        );
        Program::start(
            &self.plan.program,
            "edge-worker",
            self.write_config(&name, &config)?,
            port,
            place,
        )
    }

    /// Settings that gateways and workers share.
    fn common(&mut self, region: &str, role: &Role, grace_s: u64) -> anyhow::Result<String> {
        let nats = self.nats.region(region).nats(role)?;
        let mut urls = Vec::new();
        for server in self.nats.servers(region) {
            let address = (server.address(), server.port()).into();
            let address = via(&self.plan, &mut self.links, Between::Nats, region, address)?;
            urls.push(format!("nats://{address}"));
        }
        let otlp = self
            .plan
            .otlp_endpoint
            .as_ref()
            .map(|url| format!("otlp_endpoint = \"{url}\"\n"))
            .unwrap_or_default();
        Ok(format!(
            "grace_s = {grace_s}\nmesh_key = \"{}\"\n[nats]\nurl = \"{}\"\n{}[mesh]\nregion = \"{region}\"\nmax_bytes = {}\ndurability = {}\n[telemetry]\n{otlp}sample_ratio = {:?}\n",
            self.mesh_key,
            urls.join(","),
            files(&nats),
            self.plan.max_bytes,
            serde_json::to_string(&self.plan.durability)?,
            self.plan.sample_ratio,
        ))
    }

    fn write_config(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// The output of every process that has something to say above `INFO`, for a test that failed.
    pub fn complaints(&self) -> String {
        let programs = self
            .regions
            .iter()
            .flat_map(|region| region.workers.iter().chain([&region.gateway]));
        programs
            .flat_map(|program| {
                let name = program
                    .log
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let lines = program.process.output();
                let bad = |line: &&str| line.contains("WARN") || line.contains("ERROR") || line.contains("panicked");
                lines
                    .lines()
                    .filter(bad)
                    .map(|line| format!("{name}: {line}\n"))
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

/// The address by which `region` reaches what listens on `address`: a proxy's, if there are to be proxies.
fn via(
    plan: &Plan,
    links: &mut Vec<Link>,
    between: Between,
    region: &str,
    address: SocketAddr,
) -> anyhow::Result<SocketAddr> {
    let (carrier, address) = match &plan.links {
        Links::Direct => return Ok(address),
        Links::Proxies(seed) => {
            let proxy = Proxy::start(address, seed ^ links.len() as u64)?;
            let address = proxy.address();
            (Carrier::Proxy(proxy), address)
        }
        // All programs of a region have one cable.
        Links::Network(_)
            if links
                .iter()
                .any(|link| link.between == between && link.region == region) =>
        {
            return Ok(address);
        }
        Links::Network(network) => {
            let (from, to) = match between {
                Between::Regions => (network::nats(region), "hub".to_owned()),
                Between::Nats => (network::edge(region), network::nats(region)),
                Between::Provider => (network::edge(region), "provider".to_owned()),
            };
            (Carrier::Wire(network.wire(&from, &to)), address)
        }
    };
    links.push(Link {
        between,
        region: region.to_owned(),
        helped: None,
        carrier,
    });
    Ok(address)
}

/// The ways of helpers to the servers of the regions that they help, where each party is alone in a network.
fn ways_of_helpers(plan: &Plan) -> Vec<Link> {
    let (Links::Network(network), true) = (&plan.links, plan.helpers) else {
        return Vec::new();
    };
    let helpers = plan.regions.iter();
    let pairs = helpers.flat_map(|helper| plan.regions.iter().map(move |helped| (helper, helped)));
    let link = |(helper, helped): (&String, &String)| Link {
        between: Between::Regions,
        region: helper.clone(),
        helped: Some(helped.clone()),
        carrier: Carrier::Wire(network.wire(&network::edge(helper), &network::nats(helped))),
    };
    pairs.filter(|(helper, helped)| helper != helped).map(link).collect()
}

/// Where `region` reaches the hub.
fn leaf_url(plan: &Plan, links: &mut Vec<Link>, region: &str, hub: &nats::Server) -> anyhow::Result<String> {
    let address = via(
        plan,
        links,
        Between::Regions,
        region,
        (hub.address(), hub.leaf_port()).into(),
    )?;
    Ok(format!("nats-leaf://{address}"))
}

/// What the mesh is told of a region.
fn site(nats: &nats::Mesh, plan: &Plan, region: &str) -> anyhow::Result<Site> {
    if !plan.helpers {
        return Ok(Site::default());
    }
    let others = plan.regions.iter().filter(|other| *other != region);
    Ok(Site {
        nats: Some(nats.region(region).url()),
        helpers: others.map(|other| other.parse()).collect::<Result<_, _>>()?,
    })
}

async fn provision(nats: &nats::Mesh, plan: &Plan, mesh_key: &str, apns: &Apns, fcm: &Fcm) -> anyhow::Result<String> {
    let operator = Role::Operator(nats.hub().domain().parse()?);
    let hub = provision::hub(nats.hub().connect(&operator).await?);
    provision::prepare_hub(&hub, 1).await?;
    for region in &plan.regions {
        provision::write_region(&hub, &region.parse()?, &site(nats, plan, region)?).await?;
    }
    let app = NewApp {
        id: APP.parse()?,
        default_region: plan.regions.first().context("a mesh has a region")?.parse()?,
        residency: plan.residency.as_deref().map(str::parse).transpose()?,
        ambiguity: plan.ambiguity.clone(),
        alerts: plan.alerts.clone(),
        apns: Some(NewApns {
            team_id: apns.key().team_id.clone(),
            key_id: apns.key().key_id.clone(),
            topic: TOPIC.into(),
            private_key: apns.key().pem.clone(),
        }),
        fcm: Some(NewFcm {
            project_id: fcm.account().project_id.clone(),
            service_account: fcm.service_account_json(),
            quota_per_minute: plan.fcm_quota,
        }),
    };
    let keys = provision::write_app(&hub, &MeshKey::from_base64(mesh_key)?, &app, &[Scope::ALL.to_vec()]).await?;
    keys.into_iter().next().context("an API key")
}

/// The settings that name files, as lines of TOML.
fn files(nats: &Nats) -> String {
    let files = [
        ("nkey_file", &nats.nkey_file),
        ("ca_file", &nats.ca_file),
        ("cert_file", &nats.cert_file),
        ("key_file", &nats.key_file),
    ];
    files
        .into_iter()
        .filter_map(|(name, file)| Some(format!("{name} = \"{}\"\n", file.as_ref()?.display())))
        .collect()
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
