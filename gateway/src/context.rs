//! The state that all rooms share.

use async_nats::jetstream;
use shared::{
    app::App,
    clock::Clock,
    id::Region,
    nats::{ask::Regions, border::Border, config::Config, directory::Directory},
    recipient::RecipientKey,
    seal::MeshKey,
    telemetry::Telemetry,
};

/// A running gateway's knowledge of its mesh, and its connection to it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) here: Region,
    pub(crate) js: jetstream::Context,
    /// Reads facts and dead letters in this region and, through the gateways there, in others.
    pub(crate) stores: Regions,
    pub(crate) directory: Directory,
    pub(crate) config: Config,
    pub(crate) mesh_key: MeshKey,
    pub(crate) border: Border,
    pub(crate) clock: Clock,
    pub(crate) telemetry: Telemetry,
}

impl Context {
    /// Whether API keys and homes are loaded. Without them a valid key would be refused, and a recipient's job would be
    /// published to the wrong region.
    pub(crate) fn is_informed(&self) -> bool {
        self.directory.is_loaded() && self.config.is_loaded()
    }

    pub(crate) fn is_region(&self, region: &Region) -> bool {
        self.config.tenants().regions.contains_key(region)
    }

    /// Every region of the mesh, including this one, in alphabetical order.
    pub(crate) fn regions(&self) -> Vec<Region> {
        self.config.tenants().regions.keys().cloned().collect()
    }

    /// Number of jobs that a notification of `app` to a topic becomes.
    pub(crate) fn jobs_of_topic(&self, app: &App) -> usize {
        match app.residency {
            Some(_) => 1,
            None => self.config.tenants().regions.len(),
        }
    }

    /// The home of `key`. Facts of a recipient without a registered home are at `default` and nowhere else.
    pub(crate) fn home_or(&self, key: &RecipientKey, default: &Region) -> Region {
        self.directory.home(key).unwrap_or_else(|| default.clone())
    }
}
