//! Apps, API keys and the regions of the mesh: written at the hub, read from this region's copy.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use async_nats::jetstream;
use futures::StreamExt;
use tokio::sync::watch;

use super::{
    follow::{self, Entry},
    publish, topology,
};
use crate::{
    api_key::ApiKey,
    app::App,
    id::{AppId, Region},
    invalid::Invalid,
    site::Site,
    tolerant,
};

/// A snapshot of all tenants and of the regions of the mesh.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    /// The apps, by name.
    pub apps: HashMap<AppId, Arc<App>>,
    /// The API keys, by key id.
    pub keys: HashMap<String, Arc<ApiKey>>,
    /// The regions of the mesh, by name.
    pub regions: BTreeMap<Region, Site>,
}

/// The tenants, updated with every change of the bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Config {
    current: Arc<ArcSwap<Tenants>>,
    changed: watch::Sender<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            current: Arc::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Config {
    /// The current tenants.
    pub fn tenants(&self) -> Arc<Tenants> {
        self.current.load_full()
    }

    /// Whether all entries that the bucket had at start have been read.
    pub fn is_loaded(&self) -> bool {
        *self.changed.borrow() > 0
    }

    /// A number that increases whenever the tenants have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Follows the bucket forever.
    pub async fn follow(self, js: jetstream::Context) {
        let learn = |entry: &Entry| {
            let mut next = Tenants::clone(&self.current.load());
            match next.learn(
                &entry.subject,
                if entry.is_removal() { None } else { Some(&entry.payload) },
            ) {
                Ok(()) => self.current.store(next.into()),
                Err(error) => {
                    tracing::error!(key = entry.subject, %error, "configuration entry cannot be read; the former one stays in use")
                }
            }
        };
        let caught_up = || self.changed.send_modify(|version| *version += 1);
        follow::follow_forever(&js, topology::CONFIG, ">", learn, caught_up).await;
    }
}

impl Tenants {
    fn learn(&mut self, subject: &str, value: Option<&[u8]>) -> Result<(), Invalid> {
        let mut tokens = subject.rsplitn(3, '.');
        let (Some(name), Some(kind)) = (tokens.next(), tokens.next()) else {
            return Ok(());
        };
        match (kind, value) {
            ("app", Some(value)) => {
                let app: App = tolerant::read(value)?;
                self.apps.insert(app.id.clone(), app.into());
            }
            ("app", None) => {
                self.apps.retain(|id, _| id.as_str() != name);
            }
            ("key", Some(value)) => {
                let key: ApiKey = tolerant::read(value)?;
                self.keys.insert(key.key_id.clone(), key.into());
            }
            ("key", None) => {
                self.keys.remove(name);
            }
            ("region", Some(value)) => {
                let site: Site = tolerant::read(value)?;
                if let Ok(region) = name.parse() {
                    self.regions.insert(region, site);
                }
            }
            ("region", None) => {
                self.regions.retain(|region, _| region.as_str() != name);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The bucket could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NotLoaded {
    /// The server does not answer or has no such bucket.
    #[error(transparent)]
    Follow(#[from] follow::FollowError),
    /// An entry cannot be read.
    #[error("configuration entry {0} cannot be read: {1}")]
    Entry(String, Invalid),
}

/// All tenants as they are now in the bucket that `js` reaches: the hub's, or the copy in a region.
///
/// # Errors
/// When the server does not answer or an entry cannot be read.
pub async fn read(js: &jetstream::Context) -> Result<Tenants, NotLoaded> {
    let mut tenants = Tenants::default();
    if follow::stream_state(js, topology::CONFIG).await?.messages == 0 {
        return Ok(tenants);
    }
    let mut entries = follow::follow(js, topology::CONFIG, ">", 1).await?;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        let value = if entry.is_removal() {
            None
        } else {
            Some(&entry.payload[..])
        };
        tenants
            .learn(&entry.subject, value)
            .map_err(|error| NotLoaded::Entry(entry.subject.clone(), error))?;
        if entry.pending == 0 {
            break;
        }
    }
    Ok(tenants)
}

/// Writes an app at the hub. `hub` is a context of the hub's domain.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_app(hub: &jetstream::Context, app: &App) -> Result<(), publish::NotStored> {
    put(hub, "app", app.id.as_str(), app).await
}

/// Writes an API key at the hub.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_key(hub: &jetstream::Context, key: &ApiKey) -> Result<(), publish::NotStored> {
    put(hub, "key", &key.key_id, key).await
}

/// Writes a region at the hub.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_region(hub: &jetstream::Context, region: &Region, site: &Site) -> Result<(), publish::NotStored> {
    put(hub, "region", region.as_str(), site).await
}

async fn put(
    hub: &jetstream::Context,
    kind: &str,
    name: &str,
    value: &impl serde::Serialize,
) -> Result<(), publish::NotStored> {
    let value = serde_json::to_vec(value).expect("configuration always serializes");
    let subject = topology::at_hub(&format!("$KV.{}.{kind}.{name}", topology::CONFIG_BUCKET));
    publish::store(hub, subject, super::version::headers(), value.into())
        .await
        .map(|_| ())
}
