//! What every room works with.

use async_nats::jetstream;
use shared::{
    clock::Clock,
    id::Region,
    nats::{config::Config, directory::Directory},
    recipient::RecipientKey,
    seal::MeshKey,
    telemetry::Telemetry,
};

/// What a running gateway knows of its mesh, and how it reaches it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) here: Region,
    pub(crate) js: jetstream::Context,
    pub(crate) directory: Directory,
    pub(crate) config: Config,
    pub(crate) mesh_key: MeshKey,
    pub(crate) clock: Clock,
    pub(crate) telemetry: Telemetry,
}

impl Context {
    /// Whether keys and homes are known. Without them a good key would be refused, and a recipient's job would go to
    /// the wrong region.
    pub(crate) fn is_informed(&self) -> bool {
        self.directory.is_loaded() && self.config.is_loaded()
    }

    pub(crate) fn is_region(&self, region: &Region) -> bool {
        self.config.tenants().regions.contains_key(region)
    }

    /// Every region of the mesh, this one too, in the order of their names.
    pub(crate) fn regions(&self) -> Vec<Region> {
        self.config.tenants().regions.keys().cloned().collect()
    }

    /// The home of `key`, registered or not: an unregistered recipient's facts are at `default` and nowhere else.
    pub(crate) fn home_or(&self, key: &RecipientKey, default: &Region) -> Region {
        self.directory.home(key).unwrap_or_else(|| default.clone())
    }
}
