//! One nats-server process that can be killed, restarted and paused.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use async_nats::Client;
use futures::future::try_join_all;
use rand::Rng;
use shared::{
    id::{AppId, Region},
    nats::{
        accounts::{self, Names},
        connect::{self, Nats},
        roles::{self, Parties},
    },
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Key, Keys};
use crate::{app::APP, network::Place, port};

const HUB_CONF: &str = include_str!("../../../deploy/nats/hub.conf");
const REGION_CONF: &str = include_str!("../../../deploy/nats/region.conf");
const APP_CONF: &str = include_str!("../../../deploy/nats/app.conf");
const CLUSTER_CONF: &str = include_str!("../../../deploy/nats/cluster.conf");
const TLS_CONF: &str = include_str!("../../../deploy/nats/tls.conf");

/// The list of users of the first account, Peal's, and of all others.
const USERS: &str = "    users: [\n";

/// The user of the test itself, added to Peal's account; only test meshes have it.
const TEST_USER: &str = "      { nkey: $PEAL_NKEY_TEST }\n";

/// How long a server may take to start or to end. One with a million keys starts in 1 s; 30 s allow for a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How a server runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program, from [`obtain`](super::obtain).
    pub program: PathBuf,
    /// When it flushes files to the disk.
    pub sync_interval: SyncInterval,
    /// The maximum size of all streams of a server together, bytes; it refuses messages beyond that.
    pub max_file_store: u64,
    /// Where it runs.
    pub place: Place,
    /// Regions that have roles, including those that are not started.
    pub regions: Vec<Region>,
    /// Apps that have services, each with an account of its own.
    pub apps: Vec<AppId>,
    /// Whether the servers also permit what programs of the former version need.
    pub beside_former: bool,
    /// Whether each region has three servers.
    pub clusters: bool,
    /// Whether connections are encrypted, and clients must present certificates.
    pub tls: bool,
    /// Changes to the configuration files: texts to replace, and their replacements.
    pub edits: Vec<(String, String)>,
}

impl Settings {
    /// The defaults of nats-server, with at most 8 GiB a server. [`APP`] has services.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            sync_interval: SyncInterval::default(),
            max_file_store: 8 << 30,
            place: Place::default(),
            regions: Vec::new(),
            apps: vec![APP.parse().expect("the name of the test's app")],
            beside_former: false,
            clusters: false,
            tls: true,
            edits: Vec::new(),
        }
    }
}

impl From<PathBuf> for Settings {
    fn from(program: PathBuf) -> Self {
        Self::new(program)
    }
}

impl From<&Path> for Settings {
    fn from(program: &Path) -> Self {
        Self::new(program)
    }
}

/// When a server flushes its files to the disk. It matters for power cuts only: a killed process loses nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SyncInterval {
    /// Every two minutes, the server's own default.
    #[default]
    Default,
    /// At this interval.
    Every(Duration),
    /// Before each acknowledgement.
    Always,
}

impl SyncInterval {
    fn value(self) -> String {
        match self {
            Self::Default => quoted("2m"),
            Self::Every(period) => quoted(&format!("{}ms", period.as_millis())),
            Self::Always => quoted("always"),
        }
    }
}

/// The role of a server in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It accepts leaf links. Also suits a single region without a hub.
    Hub,
    /// It connects to the hub.
    Region {
        /// The hub's [`Server::leaf_url`].
        hub: String,
    },
    /// An app's own server, which connects to a region. Its domain is the app's id, and clients need no key.
    App {
        /// The region's [`Server::leaf_url`].
        region: String,
    },
}

/// A nats-server process, whose ports and folder stay the same over restarts.
///
/// Dropping it kills the process and removes the folder. If a test is failing, the folder with the log is kept and its
/// path is printed.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    keys: Keys,
    domain: String,
    name: String,
    role: Role,
    ports: Ports,
    /// The cluster ports of this server and its siblings, its own first; empty without a cluster.
    cluster: Vec<u16>,
    folder: Option<TempDir>,
    process: Mutex<Option<Child>>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    leaf: u16,
}

impl Server {
    /// Starts a server with this `JetStream` domain, and waits until it accepts clients. Users are identified by `keys`.
    pub async fn start(settings: impl Into<Settings>, keys: Keys, domain: &str, role: Role) -> anyhow::Result<Self> {
        let mut server = Self::new(settings.into(), keys, domain, role, Vec::new())?;
        for _ in 0..4 {
            match server.run().await {
                Err(_) if server.log().contains("address already in use") => {
                    fs::remove_file(server.log_path())?;
                    server.ports = Ports::free()?;
                }
                result => return result.map(|()| server),
            }
        }
        server.run().await.map(|()| server)
    }

    /// Starts the three servers of one domain, which can keep three copies of each stream.
    pub async fn start_cluster(
        settings: impl Into<Settings>,
        keys: Keys,
        domain: &str,
        role: Role,
    ) -> anyhow::Result<Vec<Self>> {
        let settings = settings.into();
        let mut ports = vec![port::reserve()?, port::reserve()?, port::reserve()?];
        let mut servers = Vec::new();
        for _ in 0..3 {
            let (keys, role) = (keys.clone(), role.clone());
            servers.push(Self::new(settings.clone(), keys, domain, role, ports.clone())?);
            ports.rotate_left(1);
        }
        try_join_all(servers.iter().map(Self::run)).await?;
        Ok(servers)
    }

    fn new(settings: Settings, keys: Keys, domain: &str, role: Role, cluster: Vec<u16>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix(&format!("nats-{domain}-")).tempdir()?;
        let server = Self {
            settings,
            keys,
            domain: domain.to_owned(),
            // Unique, so that parallel test runs on one machine do not mistake each other's servers for their own.
            name: format!("{domain}-{:08x}", rand::rng().random::<u32>()),
            role,
            ports: Ports::free()?,
            cluster,
            folder: Some(folder),
            process: Mutex::new(None),
        };
        server.write_config()?;
        Ok(server)
    }

    /// The URL for clients.
    pub fn url(&self) -> String {
        format!("nats://{}:{}", self.address(), self.ports.client)
    }

    /// The URL by which regions connect, if this is a hub, or apps' own servers, if it is a region.
    pub fn leaf_url(&self) -> String {
        format!("nats-leaf://{}:{}", self.address(), self.ports.leaf)
    }

    /// The address on which it listens.
    pub fn address(&self) -> Ipv4Addr {
        self.settings.place.address()
    }

    /// The settings of a client with `role`.
    pub fn nats(&self, role: &roles::Role) -> anyhow::Result<Nats> {
        Ok(self.nats_with(self.keys.of(role)?))
    }

    /// The settings of the test itself, which has all permissions.
    pub fn nats_of_test(&self) -> anyhow::Result<Nats> {
        Ok(self.nats_with(self.keys.of_test()?))
    }

    fn nats_with(&self, key: Key) -> Nats {
        let tls = |file: PathBuf| self.settings.tls.then_some(file);
        Nats {
            url: self.url(),
            nkey_file: Some(key.file),
            creds_file: None,
            ca_file: tls(self.keys.ca()),
            cert_file: tls(self.keys.cert()),
            key_file: tls(self.keys.key()),
        }
    }

    /// Connects as `role`.
    pub async fn connect(&self, role: &roles::Role) -> anyhow::Result<Client> {
        Ok(connect::connect(&self.nats(role)?, role, "testbed").await?)
    }

    /// Connects as the test itself, with all permissions.
    pub async fn connect_as_test(&self) -> anyhow::Result<Client> {
        let operator = roles::Role::Operator(self.domain.parse()?);
        Ok(connect::connect(&self.nats_of_test()?, &operator, "testbed").await?)
    }

    /// Replaces its accounts from its next start or [`Self::reload`] on. The test's own user is gone then.
    pub fn replace_roles(&self, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.folder().join("roles.conf"), text)?)
    }

    /// Connects as `role` with a file of a JWT and a seed, to a server that has an operator.
    pub async fn connect_by_creds(&self, role: &roles::Role, creds: &Path) -> anyhow::Result<Client> {
        let nats = Nats {
            nkey_file: None,
            creds_file: Some(creds.to_owned()),
            ..self.nats_of_test()?
        };
        Ok(connect::connect(&nats, role, "testbed").await?)
    }

    /// Connects without a key, to an app's own server.
    pub async fn connect_without_key(&self) -> anyhow::Result<Client> {
        let nats = Nats {
            nkey_file: None,
            ..self.nats_of_test()?
        };
        let service = roles::Role::Service(self.domain.parse()?);
        Ok(connect::connect(&nats, &service, "testbed").await?)
    }

    /// The port of [`Self::leaf_url`].
    pub fn leaf_port(&self) -> u16 {
        self.ports.leaf
    }

    /// The folder of its streams.
    pub fn store(&self) -> PathBuf {
        self.folder().join("store")
    }

    /// The port of [`Self::url`].
    pub fn port(&self) -> u16 {
        self.ports.client
    }

    /// The `JetStream` domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The certificates and keys of its mesh.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The process id; `None` while it is not running.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Child::id)
    }

    /// The file with the output of the server, over all restarts.
    pub fn log_path(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// Kills the process (SIGKILL). Does nothing if it is not running.
    pub fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process().take() {
            process.kill().context("killing nats-server")?;
            process.wait().context("waiting for nats-server")?;
        }
        Ok(())
    }

    /// Asks the process to end (SIGTERM), and waits until it has ended.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.signal("TERM")?;
        let deadline = Instant::now() + READY_WITHIN;
        while !self.has_ended()? {
            ensure!(Instant::now() < deadline, "nats-server {} does not end", self.name);
            sleep(Duration::from_millis(10)).await;
        }
        self.kill()
    }

    /// Starts the process again with the same ports and files, and waits until it accepts clients. Kills it first if it
    /// is running.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.kill()?;
        self.run().await
    }

    /// Asks the process to read its configuration again (SIGHUP), and waits until it has. Changes of its environment do not
    /// reach it.
    pub async fn reload(&self) -> anyhow::Result<()> {
        let reloads = || self.log().matches("Reloaded server configuration").count();
        let before = reloads();
        self.signal("HUP")?;
        let deadline = Instant::now() + READY_WITHIN;
        while reloads() == before {
            ensure!(
                Instant::now() < deadline,
                "nats-server {} does not reload: {}",
                self.name,
                self.log_tail()
            );
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Suspends the process (SIGSTOP) within milliseconds: its connections stay open, but it does not answer.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// Resumes the process after [`Self::pause`] (SIGCONT).
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    async fn run(&self) -> anyhow::Result<()> {
        self.spawn()?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if self.has_ended()? {
                bail!("nats-server {} ended: {}", self.name, self.log_tail());
            }
            if self.accepts_clients().await {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("nats-server {} does not answer: {}", self.name, self.log_tail());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn spawn(&self) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.settings.program);
        command
            .arg("--config")
            .arg(self.config_path())
            .envs(self.variables()?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let spawned = self.settings.place.run(|| command.spawn())?;
        let child = spawned.with_context(|| format!("starting {}", self.settings.program.display()))?;
        *self.process() = Some(child);
        Ok(())
    }

    /// The environment variables that the configuration files use.
    fn variables(&self) -> anyhow::Result<Vec<(String, String)>> {
        let path = |path: PathBuf| quoted(&path.to_string_lossy());
        let mut variables = vec![
            ("PEAL_SERVER_NAME", self.name.clone()),
            ("PEAL_DOMAIN", self.domain.clone()),
            ("PEAL_SERVER_TAG", format!("region:{}", self.domain)),
            ("PEAL_HOST", self.address().to_string()),
            ("PEAL_PORT", self.ports.client.to_string()),
            ("PEAL_LEAF_PORT", self.ports.leaf.to_string()),
            ("PEAL_MONITOR_PORT", 0.to_string()),
            ("PEAL_JWT_DIR", path(self.folder().join("jwt"))),
            ("PEAL_STORE_DIR", quoted(&self.store().to_string_lossy())),
            ("PEAL_MAX_FILE_STORE", self.settings.max_file_store.to_string()),
            ("PEAL_SYNC_INTERVAL", self.settings.sync_interval.value()),
            ("PEAL_TLS_CERT", path(self.keys.cert())),
            ("PEAL_TLS_KEY", path(self.keys.key())),
            ("PEAL_TLS_CA", path(self.keys.ca())),
            ("PEAL_TLS_VERIFY", true.to_string()),
            ("PEAL_NKEY_TEST", self.keys.of_test()?.public),
        ];
        if let Role::Region { hub } = &self.role {
            let leaf = roles::Role::Leaf(self.domain.parse()?);
            variables.push(("PEAL_HUB_LEAF_URL", quoted(hub)));
            variables.push(("PEAL_LEAF_SEED", self.keys.of(&leaf)?.seed));
        }
        if let Role::App { region } = &self.role {
            let service = roles::Role::Service(self.domain.parse()?);
            variables.push(("PEAL_REGION_LEAF_URL", quoted(region)));
            variables.push(("PEAL_APP_SEED", self.keys.of(&service)?.seed));
            variables.push(("PEAL_APP", self.domain.clone()));
        }
        if let Some(own) = self.cluster.first() {
            variables.push(("PEAL_CLUSTER_PORT", own.to_string()));
            for (name, port) in ["PEAL_ROUTE_1", "PEAL_ROUTE_2", "PEAL_ROUTE_3"]
                .iter()
                .zip(&self.cluster)
            {
                variables.push((name, quoted(&format!("nats-route://{}:{port}", self.address()))));
            }
        }
        let mut variables: Vec<_> = variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        for role in self.roles()? {
            variables.push((role.variable(), self.keys.of(&role)?.public));
        }
        variables.push(("PEAL_NKEY_SYS".to_owned(), self.keys.of_system()?.public));
        Ok(variables)
    }

    fn write_config(&self) -> anyhow::Result<()> {
        let mut config = match self.role {
            Role::Hub => HUB_CONF,
            Role::Region { .. } => REGION_CONF,
            Role::App { .. } => APP_CONF,
        }
        .to_owned();
        let mut roles = self.roles_conf()?;
        for (from, to) in &self.settings.edits {
            config = config.replace(from, to);
            roles = roles.replace(from, to);
        }
        fs::write(self.config_path(), config)?;
        fs::write(self.folder().join("roles.conf"), roles)?;
        let included = |wanted: bool, text| if wanted { text } else { "" };
        fs::write(self.folder().join("tls.conf"), included(self.settings.tls, TLS_CONF))?;
        let cluster = included(!self.cluster.is_empty(), CLUSTER_CONF);
        fs::write(self.folder().join("cluster.conf"), cluster)?;
        Ok(())
    }

    /// The roles that may connect, in all accounts.
    fn roles(&self) -> anyhow::Result<Vec<roles::Role>> {
        let parties = self.parties();
        Ok(match self.role {
            Role::Hub => roles::of_hub(&parties.regions),
            Role::Region { .. } => {
                let (here, helpers) = self.region()?;
                let mut roles = roles::of_region(&here, &helpers, &parties);
                roles.extend(parties.apps.into_iter().map(roles::Role::Service));
                roles
            }
            Role::App { .. } => Vec::new(),
        })
    }

    /// The file of accounts, with the test's own user.
    fn roles_conf(&self) -> anyhow::Result<String> {
        let parties = self.parties();
        let accounts = match self.role {
            Role::Hub => accounts::of_hub(&parties),
            Role::Region { .. } => {
                let (here, helpers) = self.region()?;
                accounts::of_region(&here, &helpers, &parties, &Names::plain(&parties.apps))
            }
            Role::App { .. } => return Ok(String::new()),
        };
        let text = accounts::conf(&accounts, &parties.regions);
        ensure!(text.contains(USERS), "roles.conf has no list of users");
        Ok(text.replacen(USERS, &format!("{USERS}{TEST_USER}"), 1))
    }

    /// Its region, and those that may help it.
    fn region(&self) -> anyhow::Result<(Region, Vec<Region>)> {
        let here = self.domain.parse()?;
        let others = self.settings.regions.iter().filter(|region| **region != here);
        let helpers = others.cloned().collect();
        Ok((here, helpers))
    }

    fn parties(&self) -> Parties {
        Parties {
            regions: self.settings.regions.clone(),
            apps: self.settings.apps.clone(),
            beside_former: self.settings.beside_former,
        }
    }

    fn config_path(&self) -> PathBuf {
        self.folder().join("nats.conf")
    }

    /// Whether this server, and not another on its port, accepts a client. It listens only after `JetStream` is restored.
    async fn accepts_clients(&self) -> bool {
        let greeting = async {
            let stream = TcpStream::connect((self.address(), self.ports.client)).await?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await?;
            std::io::Result::Ok(line)
        };
        let own_name = format!("\"server_name\":\"{}\"", self.name);
        matches!(timeout(Duration::from_secs(1), greeting).await, Ok(Ok(line)) if line.contains(&own_name))
    }

    fn has_ended(&self) -> anyhow::Result<bool> {
        match self.process().as_mut() {
            Some(process) => Ok(process.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// Sends a signal with the `kill` command, because the system call would need unsafe code.
    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self
            .pid()
            .with_context(|| format!("nats-server {} is not running", self.name))?;
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(pid.to_string())
            .status()
            .context("running kill")?;
        ensure!(
            status.success(),
            "kill -{signal} of nats-server {} failed: {status}",
            self.name
        );
        Ok(())
    }

    fn log(&self) -> String {
        fs::read(self.log_path()).map_or_else(
            |error| format!("no log: {error}"),
            |log| String::from_utf8_lossy(&log).into_owned(),
        )
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn folder(&self) -> &Path {
        self.folder
            .as_ref()
            .expect("the folder is removed only when the server is dropped")
            .path()
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        // Servers must be killed even after a panic elsewhere in the test.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("nats-server {} may still run: {error:#}", self.name);
        }
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("nats-server {}: files kept in {}", self.name, folder.keep().display());
        }
    }
}

impl Ports {
    fn free() -> anyhow::Result<Self> {
        Ok(Self {
            client: port::reserve()?,
            leaf: port::reserve()?,
        })
    }
}

/// Quotes a value, so that nats-server does not read it as a number: 2m would be two million.
fn quoted(value: &str) -> String {
    format!("\"{value}\"")
}
