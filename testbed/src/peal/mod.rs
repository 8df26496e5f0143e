//! A whole Peal: nats-servers, simulators, gateways and edge workers on this machine. All but the simulators are
//! processes of their own.

mod ask;
mod former;
mod plan;
mod program;
mod provision;
mod settings;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use shared::{
    api_key::{NewKey, Scope},
    id_key::IdKey,
    nats::{audit::Keys, config, connect, roles::Role},
    proof::Prover,
    seal::MeshKey,
};
use tempfile::TempDir;
use tokio::runtime::Handle;

pub(crate) use self::former::is_meant;
pub use self::{
    former::{Build, Former},
    plan::{AMPLE_QUOTA, Alerts, Plan},
    program::{Program, Region},
    settings::PUBLIC_URL,
};
pub use crate::{
    app::{APP, TOPIC},
    links::{Link, Links},
};
use crate::{
    links::Between,
    nats, network,
    providers::{ApiConfig, ApnsConfig, Authority, FcmConfig, Simulators, apns::JwtMode},
};

/// How long a process may take until it is ready, also on a slow machine.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(30);

/// The file with the certificate authority of the simulators.
const CA_FILE: &str = "ca.pem";

/// The running mesh. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Peal {
    /// The nats-servers.
    pub nats: nats::Mesh,
    /// The simulators of the providers.
    pub simulators: Arc<Simulators>,
    /// The regions in the order of the plan.
    pub regions: Vec<Region>,
    /// The admin gateway at the hub, if the plan has one.
    pub admin: Option<Program>,
    /// An API key of [`APP`] with every scope.
    pub key: String,
    /// The mesh's key of ids.
    pub ids: IdKey,
    /// The client for requests to the mesh.
    pub http: reqwest::Client,
    /// The links on which trouble can be made; none with [`Links::Direct`].
    pub links: Vec<Link>,
    mesh_key: String,
    plan: Plan,
    folder: TempDir,
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
        if plan.helpers {
            links.extend(plan.links.of_helpers(&plan.regions));
        }
        let authority = Authority::generate()?;
        let simulators = Arc::new(start_simulators(&plan, &authority)?);
        std::fs::write(folder.path().join(CA_FILE), authority.pem())?;
        let mesh_key = STANDARD.encode(rand::random::<[u8; 32]>());
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let key = match &plan.former {
            Some(former) => {
                former
                    .provision(&nats, &plan, &mesh_key, &simulators, folder.path())
                    .await?
            }
            None => provision::provision(&nats, &plan, &mesh_key, &simulators).await?,
        };
        let ids = provision::id_key(&nats, &mesh_key).await?;
        let mut peal = Self {
            nats,
            simulators,
            regions: Vec::new(),
            admin: None,
            key,
            ids,
            http,
            links,
            mesh_key,
            plan,
            folder,
        };
        if peal.plan.admin {
            peal.admin = Some(peal.start_admin()?);
        }
        for name in peal.plan.regions.clone() {
            let region = peal.start_region(&name)?;
            peal.regions.push(region);
        }
        for region in &mut peal.regions {
            region.wait_ready(&peal.http).await?;
        }
        if let Some(admin) = &mut peal.admin {
            admin.wait_ready(&peal.http).await?;
        }
        peal.wait_configured().await?;
        Ok(peal)
    }

    /// Makes the key of an operator, who may write all apps and regions by the API.
    ///
    /// # Errors
    /// When the hub does not store it.
    pub async fn operator_key(&self) -> anyhow::Result<String> {
        let hub = gateway::provision::hub(self.connect_as_operator().await?);
        let mesh_key = MeshKey::from_base64(&self.mesh_key)?;
        let key = NewKey::with(&[Scope::AppsWrite, Scope::AppsRead, Scope::ControlsWrite]);
        Ok(gateway::provision::issue_operator_key(&hub, &mesh_key, key).await?)
    }

    /// Issues a further key of [`APP`], and returns it once every region knows it.
    ///
    /// # Errors
    /// When the hub does not store it, or a region does not learn of it.
    pub async fn issue_key(&self, new: NewKey) -> anyhow::Result<String> {
        let hub = gateway::provision::hub(self.connect_as_operator().await?);
        let mesh_key = MeshKey::from_base64(&self.mesh_key)?;
        let app = config::current_app(&hub, &APP.parse()?)
            .await?
            .value
            .context("an app")?;
        let keys = gateway::provision::write_app(&hub, &mesh_key, &app, &[new]).await?;
        let key = keys.into_iter().next().context("an API key")?;
        self.wait_configured_for(&key).await?;
        Ok(key)
    }

    /// Adds a region to the running mesh and waits until it is ready. No other program is configured or started again.
    ///
    /// # Errors
    /// When any part does not come up.
    pub async fn add_region(&mut self, name: &str) -> anyhow::Result<()> {
        let hub = leaf_url(&self.plan, &mut self.links, name, self.nats.hub())?;
        self.nats.add(self.plan.nats_settings(name), name, hub).await?;
        let operator = Role::Operator(self.nats.hub().domain().parse()?);
        let client = self.nats.hub().connect(&operator).await?;
        let site = provision::site(&self.nats, &self.plan, name)?;
        gateway::provision::write_region(&gateway::provision::hub(client), &name.parse()?, &site).await?;
        let mut region = self.start_region(name)?;
        region.wait_ready(&self.http).await?;
        self.regions.push(region);
        self.wait_configured().await
    }

    /// Adds an app with an iOS app of its own, and returns an API key with every scope once every region knows it.
    ///
    /// # Errors
    /// When the hub does not store it, or a region does not learn of it.
    pub async fn add_app(&self, id: &str) -> anyhow::Result<String> {
        let key = provision::add_app(self, id).await?;
        self.wait_configured_for(&key).await?;
        Ok(key)
    }

    /// The program that runs as gateway and as worker, to start one again.
    pub fn program(&self) -> PathBuf {
        self.plan.program.clone()
    }

    /// The programs of the former version, if the plan has them.
    pub fn former(&self) -> Option<&Former> {
        self.plan.former.as_ref()
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

    /// A connection to a region's NATS with every permission, for tests.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect(&self, region: &str) -> anyhow::Result<async_nats::Client> {
        self.nats.region(region).connect_as_test().await
    }

    /// Proves that work was accepted, as gateways do.
    ///
    /// # Errors
    /// When the mesh key cannot be read.
    pub fn prover(&self) -> anyhow::Result<Prover> {
        Ok(MeshKey::from_base64(&self.mesh_key)?.prover(&[]))
    }

    /// What an audit needs of the mesh key.
    ///
    /// # Errors
    /// When the hub's configuration cannot be read.
    pub async fn audit_keys(&self) -> anyhow::Result<Keys> {
        let hub = connect::jetstream(self.connect_as_operator().await?);
        let mesh_key = MeshKey::from_base64(&self.mesh_key)?;
        Ok(config::read(&hub).await?.audit_keys(&mesh_key)?)
    }

    /// A connection to a region's NATS as a service of [`APP`], in the app's own account.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect_as_app(&self, region: &str) -> anyhow::Result<async_nats::Client> {
        self.nats.region(region).connect(&Role::Service(APP.parse()?)).await
    }

    /// A connection to a region's NATS as a service of [`APP`] of the former version, in Peal's account. Only a mesh with
    /// former programs permits it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect_as_former_service(&self, region: &str) -> anyhow::Result<async_nats::Client> {
        let service = Role::FormerService(region.parse()?, APP.parse()?);
        self.nats.region(region).connect(&service).await
    }

    /// A connection to the hub with the permissions of an operator, who can read every region.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect_as_operator(&self) -> anyhow::Result<async_nats::Client> {
        let hub = self.nats.hub();
        hub.connect(&Role::Operator(hub.domain().parse()?)).await
    }

    /// The log lines of all gateways and workers above `INFO`, for a test that failed.
    pub fn complaints(&self) -> String {
        let programs = self
            .regions
            .iter()
            .flat_map(|region| region.workers.iter().chain(region.gateways()));
        programs.flat_map(Program::complaints).collect()
    }
}

/// Starts the simulators of all providers where the plan has them.
fn start_simulators(plan: &Plan, authority: &Authority) -> anyhow::Result<Simulators> {
    let place = plan.links.place(network::PROVIDER);
    let listen = SocketAddr::from((place.address(), 0));
    let apns = ApnsConfig {
        listen,
        authority: Some(authority.clone()),
        jwt: JwtMode::Strict,
        // The former version parks its pushes for 20 minutes if its first token is young when it changes.
        limit_token_updates: plan.limit_token_updates && plan.former.is_none(),
        log: plan.log,
        ..ApnsConfig::default()
    };
    let fcm = FcmConfig {
        listen,
        authority: Some(authority.clone()),
        log: plan.log,
        ..FcmConfig::default()
    };
    let config = |_| ApiConfig {
        listen,
        authority: Some(authority.clone()),
        log: plan.log,
        ..ApiConfig::default()
    };
    let runtime = Handle::current();
    place.run(|| runtime.block_on(Simulators::start(apns, fcm, config)))?
}

/// The URL by which `region` reaches the hub.
fn leaf_url(plan: &Plan, links: &mut Vec<Link>, region: &str, hub: &nats::Server) -> anyhow::Result<String> {
    let address = (hub.address(), hub.leaf_port()).into();
    let address = plan.links.connect(links, Between::Regions, region, address)?;
    Ok(format!("nats-leaf://{address}"))
}
