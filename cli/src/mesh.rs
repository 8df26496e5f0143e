//! How commands reach the streams: by the gateway's settings, or by flags.

use std::path::PathBuf;

use async_nats::Client;
use clap::Args;
use shared::{
    id::Region,
    nats::{config, connect, roles::Role},
};

use super::Failure;
use gateway::config::Settings;

/// Where the streams are.
#[derive(Debug, Args)]
pub(super) struct MeshArgs {
    /// The gateway's settings file; variables `PEAL_…` replace what it says.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The NATS servers to ask, instead of those of the settings: the hub's, or those of the only region to look at.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// The seed of an operator's `NKey`, instead of that of the settings.
    #[arg(long, value_name = "FILE")]
    nkey: Option<PathBuf>,
    /// A region to look at; may be repeated. Default: every region of the mesh.
    #[arg(long = "region", value_name = "REGION")]
    regions: Vec<Region>,
}

/// A connection to the hub, by which all regions are reached, or to one of them.
pub(super) struct Reach {
    pub(super) client: Client,
    /// The regions to look at.
    pub(super) regions: Vec<Region>,
    home: Region,
}

impl MeshArgs {
    pub(super) async fn connect(&self) -> Result<Reach, Failure> {
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
            let tenants = config::read(&connect::jetstream(client.clone())).await;
            let tenants = tenants.map_err(|error| Failure::Streams(error.to_string()))?;
            regions.extend(tenants.regions.into_keys());
        }
        Ok(Reach {
            client,
            regions,
            home: settings.mesh.region,
        })
    }

    /// Whether a region was named.
    pub(super) fn names_region(&self) -> bool {
        !self.regions.is_empty()
    }
}

impl Reach {
    /// The region of the settings.
    pub(super) fn home(&self) -> &Region {
        &self.home
    }
}
