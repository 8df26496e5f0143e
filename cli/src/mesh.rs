//! How commands connect to the streams: with the gateway's settings, which flags may override.

use std::path::PathBuf;

use async_nats::Client;
use clap::Args;
use gateway::config::Settings;
use shared::{
    id::Region,
    id_key::IdKey,
    nats::{
        audit::Keys,
        config::{self, Tenants},
        connect,
        roles::Role,
    },
    seal::{MeshKey, SealError},
    secret::Secret,
};

use super::Failure;

/// Which servers to connect to, and which regions to show.
#[derive(Debug, Args)]
pub(super) struct MeshArgs {
    /// The gateway's settings file; environment variables `PEAL_…` override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The NATS servers, instead of those in the settings: the hub's, or those of the only region to show.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// The file with the seed of an operator's `NKey`, instead of the one in the settings.
    #[arg(long, value_name = "FILE")]
    nkey: Option<PathBuf>,
    /// A region to show; may be repeated. Default: every region of the mesh.
    #[arg(long = "region", value_name = "REGION")]
    regions: Vec<Region>,
}

/// A connection to the hub, which reaches all regions, or to one region.
pub(super) struct MeshConnection {
    pub(super) client: Client,
    /// The regions to show.
    pub(super) regions: Vec<Region>,
    home: Region,
    mesh_key: Secret,
}

impl MeshArgs {
    pub(super) async fn connect(&self) -> Result<MeshConnection, Failure> {
        let mut settings = Settings::load(self.config.as_deref())?;
        if let Some(url) = &self.nats {
            settings.nats.url.clone_from(url);
        }
        if self.nkey.is_some() {
            settings.nats.nkey_file.clone_from(&self.nkey);
        }
        let operator = Role::Operator(settings.mesh.region.clone());
        let client = connect::connect(&settings.nats, &operator, "peal").await?;
        let mut regions = self.regions.clone();
        if regions.is_empty() {
            regions.extend(tenants(&client).await?.regions.into_keys());
        }
        Ok(MeshConnection {
            client,
            regions,
            home: settings.mesh.region,
            mesh_key: settings.mesh_key,
        })
    }

    /// Whether the flags name a region.
    pub(super) fn names_region(&self) -> bool {
        !self.regions.is_empty()
    }
}

impl MeshConnection {
    /// The region in the settings.
    pub(super) fn home(&self) -> &Region {
        &self.home
    }

    /// What an audit needs of the mesh key.
    pub(super) async fn keys(&self) -> Result<Keys, Failure> {
        let tenants = tenants(&self.client).await?;
        if !tenants.has_id_key() && tenants.proofs_since.is_none() {
            return Ok(IdKey::unkeyed().into());
        }
        tenants.audit_keys(&self.mesh_key()?).map_err(refused)
    }

    /// The keys of the mesh, from the settings.
    pub(super) fn mesh_key(&self) -> Result<MeshKey, Failure> {
        MeshKey::from_base64(self.mesh_key.reveal()).map_err(refused)
    }
}

fn refused(error: SealError) -> Failure {
    Failure::Arguments(format!("mesh_key: {error}; the settings or PEAL_MESH_KEY must give it"))
}

async fn tenants(client: &Client) -> Result<Tenants, Failure> {
    let tenants = config::read(&connect::jetstream(client.clone())).await;
    tenants.map_err(|error| Failure::Streams(error.to_string()))
}
