//! A whole Peal: nats-servers, simulators, gateways and edge workers, each in a process of its own, on this machine.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
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
    nats::{connect::Nats, roles::Role},
    seal::MeshKey,
};
use tempfile::TempDir;

use crate::{
    faults::{Between, Proxy},
    nats,
    process::Process,
    providers::{Apns, ApnsConfig, Authority, Fcm, FcmConfig, LogMode},
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
    /// Edge workers in each region.
    pub workers: usize,
    /// Where spans go.
    pub otlp_endpoint: Option<String>,
    /// Share of notifications that are traced.
    pub sample_ratio: f64,
    /// What the simulators remember.
    pub log: LogMode,
    /// What the app does in doubt.
    pub ambiguity: BTreeMap<Channel, Ambiguity>,
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
    /// Whether connections to the nats-servers are encrypted; the benchmark measures them without.
    pub tls: bool,
    /// Whether the parts reach each other through proxies that can make trouble, and the seed of those.
    pub proxies: Option<u64>,
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
            workers: 2,
            otlp_endpoint: None,
            sample_ratio: 1.0,
            log: LogMode::default(),
            ambiguity: BTreeMap::new(),
            alerts: None,
            worker_settings: String::new(),
            gateway_settings: String::new(),
            provider_settings: String::new(),
            max_bytes: -1,
            tls: true,
            proxies: None,
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
    /// The proxies, if there are any.
    pub links: Vec<Link>,
    mesh_key: String,
    plan: Plan,
    folder: TempDir,
}

/// A proxy between two parts.
#[derive(Debug)]
pub struct Link {
    /// Which parts.
    pub between: Between,
    /// The region it belongs to.
    pub region: String,
    /// The proxy.
    pub proxy: Proxy,
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
}

impl Program {
    fn start(program: &Path, kind: &'static str, config: PathBuf, port: u16) -> anyhow::Result<Self> {
        let log = config.with_extension("log");
        let process = launch(program, kind, &config, &log, &[])?;
        Ok(Self {
            process,
            url: format!("http://127.0.0.1:{port}"),
            kind,
            config,
            log,
        })
    }

    /// Starts it again after it was ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, program: &Path) -> anyhow::Result<()> {
        self.restart_with(program, &[])
    }

    /// Starts it again with more arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_with(&mut self, program: &Path, arguments: &[&str]) -> anyhow::Result<()> {
        self.process = launch(program, self.kind, &self.config, &self.log, arguments)?;
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

fn launch(program: &Path, kind: &str, config: &Path, log: &Path, more: &[&str]) -> anyhow::Result<Process> {
    let config = config.to_str().context("path is not UTF-8")?;
    let name = Path::new(config)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(kind)
        .to_owned();
    Process::start(&name, program, &[&[kind, "--config", config], more].concat(), log)
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
        let settings = nats::Settings {
            tls: plan.tls,
            ..nats::Settings::new(&plan.nats_server)
        };
        let nats = nats::Mesh::start_linked(settings, &names, |region, hub| {
            let port = via(&plan, &mut links, Between::Regions, region, hub.leaf_port())?;
            Ok(format!("nats-leaf://127.0.0.1:{port}"))
        })
        .await?;
        let authority = Authority::generate()?;
        let apns = ApnsConfig {
            authority: Some(authority.clone()),
            log: plan.log,
            ..ApnsConfig::default()
        };
        let apns = Apns::start(apns).await?;
        let fcm = FcmConfig {
            authority: Some(authority.clone()),
            log: plan.log,
            ..FcmConfig::default()
        };
        let fcm = Fcm::start(fcm).await?;
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
            region.gateway.wait_ready(&peal.http).await?;
            for worker in &mut region.workers {
                worker.wait_ready(&peal.http).await?;
            }
        }
        peal.wait_configured().await?;
        Ok(peal)
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
        let path = format!("/v1/recipients/{recipient}");
        self.expect("PUT", home, &path, Some(&json!({ "home": home }))).await?;
        for (provider, token) in devices {
            let body = json!({ "provider": provider, "token": token });
            self.expect("POST", home, &format!("{path}/addresses"), Some(&body))
                .await?;
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
        let port = free_port()?;
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\n{}\n{}",
            self.common(name, &Role::Gateway(name.parse()?), 5)?,
            self.plan.gateway_settings
        );
        let gateway = self.write_config(&format!("gateway-{name}"), &config)?;
        let gateway = Program::start(&self.plan.program, "gateway", gateway, port)?;
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
        let (apns, fcm) = (self.apns.addr().port(), self.fcm.addr().port());
        let apns = via(&self.plan, &mut self.links, Between::Provider, region, apns)?;
        let fcm = via(&self.plan, &mut self.links, Between::Provider, region, fcm)?;
        let common = self.common(region, &Role::Worker(region.parse()?), 10)?;
        let name = format!("worker-{region}-{number}");
        let folder = self.folder.path();
        let config = format!(
            "name = \"{name}\"\nadmin_listen = \"127.0.0.1:{port}\"\ndata = \"{}\"\n{}\n{}\n\
             [providers.apns]\nproduction = [\"localhost:{}\"]\nca_file = \"{ca}\"\n{more}\n\
             [providers.fcm]\nendpoints = [\"https://localhost:{}\"]\nca_file = \"{ca}\"\n{more}\n",
            folder.join(&name).display(),
            self.plan.worker_settings,
            common,
            apns,
            fcm,
            more = self.plan.provider_settings,
            ca = folder.join("ca.pem").display(),
        );
        Program::start(
            &self.plan.program,
            "edge-worker",
            self.write_config(&name, &config)?,
            port,
        )
    }

    /// Settings that gateways and workers share.
    fn common(&mut self, region: &str, role: &Role, grace_s: u64) -> anyhow::Result<String> {
        let server = self.nats.region(region);
        let (nats, port) = (server.nats(role)?, server.port());
        let port = via(&self.plan, &mut self.links, Between::Nats, region, port)?;
        let otlp = self
            .plan
            .otlp_endpoint
            .as_ref()
            .map(|url| format!("otlp_endpoint = \"{url}\"\n"))
            .unwrap_or_default();
        Ok(format!(
            "grace_s = {grace_s}\nmesh_key = \"{}\"\n[nats]\nurl = \"nats://127.0.0.1:{port}\"\n{}[mesh]\nregion = \"{region}\"\nregions = {:?}\nmax_bytes = {}\n[telemetry]\n{otlp}sample_ratio = {:?}\n",
            self.mesh_key,
            files(&nats),
            self.plan.regions,
            self.plan.max_bytes,
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

/// The port by which `region` reaches what listens on `port`: a proxy's, if there are to be proxies.
fn via(plan: &Plan, links: &mut Vec<Link>, between: Between, region: &str, port: u16) -> anyhow::Result<u16> {
    let Some(seed) = plan.proxies else { return Ok(port) };
    let proxy = Proxy::start(port, seed ^ links.len() as u64)?;
    let port = proxy.port();
    links.push(Link {
        between,
        region: region.to_owned(),
        proxy,
    });
    Ok(port)
}

async fn provision(nats: &nats::Mesh, plan: &Plan, mesh_key: &str, apns: &Apns, fcm: &Fcm) -> anyhow::Result<String> {
    let operator = Role::Operator(nats.hub().domain().parse()?);
    let hub = provision::hub(nats.hub().connect(&operator).await?);
    provision::prepare_hub(&hub, 1).await?;
    let app = NewApp {
        id: APP.parse()?,
        default_region: plan.regions.first().context("a mesh has a region")?.parse()?,
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
