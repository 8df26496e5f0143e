//! Apps, API keys, the regions of the mesh and its key of ids: written at the hub, read from this region's copy.

mod reseal;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::{ArcSwap, Guard};
use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    audit::Keys,
    current,
    direct::NoAnswer,
    follow::{self, Entry},
    leader,
    publish::{self, NotStored},
    topology,
};
use crate::{
    api_key::ApiKey,
    app::App,
    control::Control,
    digest,
    id::{AppId, ControlId, Region},
    id_key::IdKey,
    invalid::Invalid,
    proof::Prover,
    seal::{Legacy, MeshKey, SealError, Sealed},
    site::Site,
    tolerant,
};

/// The name of the entry of the mesh's key of ids.
const ID_KEY: &str = "id_key";

/// The name of the entry about proofs.
const PROOFS: &str = "proofs";

/// The kinds of entries that an admin gateway writes.
pub(super) const KINDS_OF_ADMIN: [&str; 4] = [APP, KEY, REGION, CONTROL];

const APP: &str = "app";
const KEY: &str = "key";
const REGION: &str = "region";
const CONTROL: &str = "control";

/// Keys of operators are another kind than those of apps, so that no lookup of an app's key finds one. Former programs do not
/// know the kind and pass over it.
const OPERATOR: &str = "operator";

/// The name of the entry of what former mesh keys left, and of the seal of each legacy.
const LEGACIES: &str = "legacies";

/// A snapshot of all tenants and of the regions of the mesh.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    /// The apps, by name.
    pub apps: HashMap<AppId, Arc<App>>,
    /// The versions of the entries of apps and of regions, by name: the same text as long as the entry is the same.
    versions: HashMap<(&'static str, String), String>,
    /// The API keys, by key id.
    pub keys: HashMap<String, Arc<ApiKey>>,
    /// The keys of operators, by key id. The app that such a key names means nothing.
    pub operators: HashMap<String, Arc<ApiKey>>,
    /// The regions of the mesh, by name.
    pub regions: BTreeMap<Region, Site>,
    /// The controls by id. Those that are over stay until somebody removes them.
    pub controls: BTreeMap<ControlId, Arc<Control>>,
    /// Those that name no app.
    controls_on_all: Vec<Arc<Control>>,
    /// Those that name an app, by app: the number of those of one app makes no other's work slower.
    controls_on: HashMap<AppId, Vec<Arc<Control>>>,
    /// The mesh's key of ids; absent in a mesh that version 0.1 provisioned.
    id_key: Option<Sealed>,
    /// Since when messages that come from another region need a proof or a signature; `None` while programs of 0.1, which
    /// write none, may run in the mesh. Messages that were stored before need none.
    pub proofs_since: Option<Timestamp>,
    /// What former mesh keys left.
    legacies: Vec<Sealed>,
}

/// The entry of what former mesh keys left: the JSON of each legacy.
#[derive(Debug, Default, Serialize, Deserialize)]
struct LegaciesEntry {
    sealed: Vec<Sealed>,
}

/// The entry of the mesh's key of ids.
#[derive(Debug, Serialize, Deserialize)]
struct IdKeyEntry {
    sealed: Sealed,
}

/// The entry about proofs.
#[derive(Debug, Serialize, Deserialize)]
struct Proofs {
    since: Timestamp,
}

/// The tenants, updated with every change of the bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Config {
    mesh_key: MeshKey,
    current: Arc<ArcSwap<Tenants>>,
    id_key: Arc<ArcSwap<IdKey>>,
    /// What former mesh keys left, opened.
    legacies: Arc<ArcSwap<Vec<Legacy>>>,
    prover: Arc<ArcSwap<Prover>>,
    changed: watch::Sender<u64>,
}

impl Config {
    /// No tenants yet. `mesh_key` opens the mesh's key of ids.
    pub fn new(mesh_key: MeshKey) -> Self {
        Self {
            prover: Arc::new(ArcSwap::from_pointee(mesh_key.prover(&[]))),
            mesh_key,
            current: Arc::default(),
            id_key: Arc::new(ArcSwap::from_pointee(IdKey::unkeyed())),
            legacies: Arc::default(),
            changed: watch::channel(0).0,
        }
    }

    /// The current tenants.
    pub fn tenants(&self) -> Arc<Tenants> {
        self.current.load_full()
    }

    /// The mesh's key of ids. It is not to be used before the configuration is loaded.
    pub fn id_key(&self) -> Guard<Arc<IdKey>> {
        self.id_key.load()
    }

    /// What former mesh keys left to verify.
    pub fn legacies(&self) -> Guard<Arc<Vec<Legacy>>> {
        self.legacies.load()
    }

    /// The maker of proofs, which also verifies what former mesh keys signed.
    pub fn prover(&self) -> Guard<Arc<Prover>> {
        self.prover.load()
    }

    /// Whether all entries that the bucket had at start have been read, and the mesh's key of ids can be used.
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
                Ok(()) => {
                    // First the key: whoever sees an app computes ids of its jobs.
                    if next.id_key != self.current.load().id_key {
                        self.use_id_key(&next);
                    }
                    if next.legacies != self.current.load().legacies {
                        let legacies = opened(&next.legacies, &self.mesh_key);
                        self.prover.store(self.mesh_key.prover(&legacies).into());
                        self.legacies.store(legacies.into());
                    }
                    self.current.store(next.into());
                }
                Err(error) => {
                    tracing::error!(key = entry.subject, %error, "configuration entry cannot be read; the former one stays in use")
                }
            }
        };
        let caught_up = || {
            if self.use_id_key(&self.current.load()) {
                self.changed.send_modify(|version| *version += 1);
            }
        };
        follow::follow_forever(&js, topology::CONFIG, ">", learn, caught_up).await;
    }

    /// Whether the key of ids could be opened. Other ids than those of the other processes would send twice.
    fn use_id_key(&self, tenants: &Tenants) -> bool {
        match tenants.id_key(&self.mesh_key) {
            Ok(key) => {
                self.id_key.store(key.into());
                true
            }
            Err(error) => {
                tracing::error!(%error, "the mesh's key of ids cannot be used; this process has another mesh key than the mesh");
                self.changed.send_replace(0);
                false
            }
        }
    }
}

impl Tenants {
    /// The mesh's key of ids.
    ///
    /// # Errors
    /// When it was sealed under another mesh key.
    pub fn id_key(&self, mesh_key: &MeshKey) -> Result<IdKey, SealError> {
        match &self.id_key {
            Some(sealed) => IdKey::open(mesh_key, sealed),
            None => Ok(IdKey::unkeyed()),
        }
    }

    /// What an audit needs of `mesh_key`.
    ///
    /// # Errors
    /// When this is not the mesh's key.
    pub fn audit_keys(&self, mesh_key: &MeshKey) -> Result<Keys, SealError> {
        Ok(Keys {
            ids: self.id_key(mesh_key)?,
            proofs: self
                .proofs_since
                .map(|since| (mesh_key.prover(&opened(&self.legacies, mesh_key)), since)),
        })
    }

    /// Whether the mesh has a key of ids; one that version 0.1 provisioned has none.
    pub fn has_id_key(&self) -> bool {
        self.id_key.is_some()
    }

    /// Whether no program of 0.1 runs in the mesh any more. Only then do lanes have an overflow, which such programs neither
    /// make nor work off, and whose retries overlap with the filters of their consumers.
    pub fn is_upgraded(&self) -> bool {
        self.proofs_since.is_some()
    }

    /// The controls that may cover work of `app`: those that name it, and those that name none.
    pub fn controls_on(&self, app: &AppId) -> impl Iterator<Item = &Control> {
        let own = self.controls_on.get(app).into_iter().flatten();
        self.controls_on_all.iter().chain(own).map(AsRef::as_ref)
    }

    /// The list in which a control stands that names `app`, or none.
    fn controls_of(&mut self, app: Option<&AppId>) -> &mut Vec<Arc<Control>> {
        match app {
            Some(app) => self.controls_on.entry(app.clone()).or_default(),
            None => &mut self.controls_on_all,
        }
    }

    /// The version of an app's entry; empty if there is none.
    pub fn version_of_app(&self, app: &AppId) -> &str {
        self.version(APP, app.as_str())
    }

    /// The version of a region's entry; empty if there is none.
    pub fn version_of_region(&self, region: &Region) -> &str {
        self.version(REGION, region.as_str())
    }

    fn version(&self, kind: &'static str, name: &str) -> &str {
        self.versions.get(&(kind, name.to_owned())).map_or("", String::as_str)
    }

    /// Whether nothing was ever provisioned.
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty() && self.keys.is_empty() && self.regions.is_empty() && self.id_key.is_none()
    }

    /// Whether `mesh_key` is the mesh's: it opens the key of ids. In a mesh that 0.1 provisioned it opens a credential, or
    /// there is none.
    pub fn are_sealed_with(&self, mesh_key: &MeshKey) -> bool {
        if self.id_key.is_some() {
            return self.id_key(mesh_key).is_ok();
        }
        let mut any = false;
        let opens = |app: &Arc<App>| {
            let opens = app.is_sealed_with(mesh_key);
            any |= opens.is_some();
            opens == Some(true)
        };
        self.apps.values().any(opens) || !any
    }

    fn learn(&mut self, subject: &str, value: Option<&[u8]>) -> Result<(), Invalid> {
        let mut tokens = subject.rsplitn(3, '.');
        let (Some(name), Some(kind)) = (tokens.next(), tokens.next()) else {
            return Ok(());
        };
        match (kind, value) {
            (APP, Some(value)) => {
                let app: App = tolerant::read(value)?;
                self.versions.insert((APP, app.id.to_string()), version_of(value));
                self.apps.insert(app.id.clone(), app.into());
            }
            (APP, None) => {
                self.apps.retain(|id, _| id.as_str() != name);
                self.versions.remove(&(APP, name.to_owned()));
            }
            (KEY | OPERATOR, value) => {
                let keys = if kind == KEY {
                    &mut self.keys
                } else {
                    &mut self.operators
                };
                match value {
                    Some(value) => {
                        let key: ApiKey = tolerant::read(value)?;
                        keys.insert(key.key_id.clone(), key.into());
                    }
                    None => drop(keys.remove(name)),
                }
            }
            (REGION, Some(value)) => {
                let site: Site = tolerant::read(value)?;
                if let Ok(region) = name.parse() {
                    self.versions.insert((REGION, name.to_owned()), version_of(value));
                    self.regions.insert(region, site);
                }
            }
            (REGION, None) => {
                self.versions.remove(&(REGION, name.to_owned()));
                self.regions.retain(|region, _| region.as_str() != name);
            }
            (CONTROL, value) => {
                let Ok(id) = name.parse() else { return Ok(()) };
                let former = match value {
                    Some(value) => {
                        let control: Arc<Control> = tolerant::read::<Control>(value)?.into();
                        self.controls_of(control.scope.app.as_ref()).push(Arc::clone(&control));
                        self.controls.insert(id, control)
                    }
                    None => self.controls.remove(&id),
                };
                if let Some(former) = former {
                    let known = self.controls_of(former.scope.app.as_ref());
                    known.retain(|control| !Arc::ptr_eq(control, &former));
                }
            }
            // A removal changes nothing: every process would have to forget the key at the same time.
            ("mesh", Some(value)) if name == ID_KEY => {
                let entry: IdKeyEntry = tolerant::read(value)?;
                self.id_key = Some(entry.sealed);
            }
            ("mesh", Some(value)) if name == PROOFS => {
                let proofs: Proofs = tolerant::read(value)?;
                self.proofs_since = Some(proofs.since);
            }
            ("mesh", None) if name == PROOFS => self.proofs_since = None,
            ("mesh", Some(value)) if name == LEGACIES => {
                let entry: LegaciesEntry = tolerant::read(value)?;
                self.legacies = entry.sealed;
            }
            ("mesh", None) if name == LEGACIES => self.legacies.clear(),
            _ => {}
        }
        Ok(())
    }
}

/// The version of an entry with this value, as the header `ETag` has it.
fn version_of(value: &[u8]) -> String {
    digest::of_content(value).simple().to_string()
}

/// An entry as the hub's leader has it now.
#[derive(Debug, Clone)]
pub struct Current<T> {
    /// What it holds; `None` if there is no such entry.
    pub value: Option<T>,
    /// Its version; empty if there is no such entry.
    pub version: String,
    /// The sequence of its last change in the hub's stream, 0 if there was none: whoever replaces the entry states it, so
    /// that of two writers who read the same one is refused.
    sequence: u64,
}

async fn entry<T: DeserializeOwned>(
    hub: &jetstream::Context,
    kind: &str,
    name: &str,
) -> Result<Current<T>, NotCurrent> {
    let subject = format!("$KV.{}.{kind}.{name}", topology::CONFIG_BUCKET);
    let found = current::last(hub, topology::CONFIG, &subject).await?;
    let sequence = found.as_ref().map_or(0, |found| found.sequence);
    let Some(found) = found.filter(|found| !found.is_removal()) else {
        return Ok(Current {
            value: None,
            version: String::new(),
            sequence,
        });
    };
    let value = tolerant::read(&found.payload).map_err(|error| NotCurrent::Entry(subject, error))?;
    Ok(Current {
        value: Some(value),
        version: version_of(&found.payload),
        sequence,
    })
}

/// An entry could not be read at the hub.
#[derive(Debug, thiserror::Error)]
pub enum NotCurrent {
    /// The hub does not answer, or does not permit it.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// The entry cannot be read.
    #[error("configuration entry {0} cannot be read: {1}")]
    Entry(String, Invalid),
}

/// An app as it is at the hub. `hub` is a context of the hub's domain.
///
/// # Errors
/// [`NotCurrent`], within two seconds.
pub async fn current_app(hub: &jetstream::Context, app: &AppId) -> Result<Current<App>, NotCurrent> {
    entry(hub, APP, app.as_str()).await
}

/// An API key as it is at the hub; a key id is 16 hexadecimal digits.
///
/// # Errors
/// [`NotCurrent`], within two seconds.
pub async fn current_key(hub: &jetstream::Context, key_id: &str) -> Result<Current<ApiKey>, NotCurrent> {
    entry(hub, KEY, key_id).await
}

/// An operator's key as it is at the hub.
///
/// # Errors
/// [`NotCurrent`], within two seconds.
pub async fn current_operator(hub: &jetstream::Context, key_id: &str) -> Result<Current<ApiKey>, NotCurrent> {
    entry(hub, OPERATOR, key_id).await
}

/// What former mesh keys left, as it is at the hub.
///
/// # Errors
/// [`NotCurrent`], within two seconds.
pub async fn current_legacies(hub: &jetstream::Context, mesh_key: &MeshKey) -> Result<Vec<Legacy>, NotCurrent> {
    let entry: LegaciesEntry = entry(hub, "mesh", LEGACIES).await?.value.unwrap_or_default();
    Ok(opened(&entry.sealed, mesh_key))
}

/// A region as it is at the hub.
///
/// # Errors
/// [`NotCurrent`], within two seconds.
pub async fn current_region(hub: &jetstream::Context, region: &Region) -> Result<Current<Site>, NotCurrent> {
    entry(hub, REGION, region.as_str()).await
}

/// Writes a new control.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn create_control(hub: &jetstream::Context, control: &Control) -> Result<(), NotStored> {
    let value = serde_json::to_vec(control).expect("configuration always serializes");
    write(hub, expecting(0), CONTROL, &control.id.to_string(), value).await
}

/// Removes a control. Safe to repeat.
///
/// # Errors
/// When the hub did not confirm that it stored the removal.
pub async fn remove_control(hub: &jetstream::Context, id: ControlId) -> Result<(), NotStored> {
    let mut headers = super::version::headers();
    headers.insert("KV-Operation", "DEL");
    write(hub, headers, CONTROL, &id.to_string(), Vec::new()).await
}

/// Writes an app in the place of `former`. Returns its version.
///
/// # Errors
/// [`NotStored::Refused`] if somebody else has changed the entry meanwhile.
pub async fn replace_app(hub: &jetstream::Context, former: &Current<App>, app: &App) -> Result<String, NotStored> {
    replace(hub, former, APP, app.id.as_str(), app).await
}

/// Writes a region in the place of `former`.
///
/// # Errors
/// [`NotStored::Refused`] if somebody else has changed the entry meanwhile.
pub async fn replace_region(
    hub: &jetstream::Context,
    former: &Current<Site>,
    region: &Region,
    site: &Site,
) -> Result<String, NotStored> {
    replace(hub, former, REGION, region.as_str(), site).await
}

/// Removes an app. Its keys are entries of their own.
///
/// # Errors
/// [`NotStored::Refused`] if somebody else has changed the entry meanwhile.
pub async fn remove_app(hub: &jetstream::Context, former: &Current<App>, app: &AppId) -> Result<(), NotStored> {
    let mut headers = expecting(former.sequence);
    headers.insert("KV-Operation", "DEL");
    write(hub, headers, APP, app.as_str(), Vec::new()).await
}

/// Removes an API key.
///
/// # Errors
/// When the hub did not confirm that it stored the removal.
pub async fn remove_key(hub: &jetstream::Context, key_id: &str) -> Result<(), NotStored> {
    let mut headers = super::version::headers();
    headers.insert("KV-Operation", "DEL");
    write(hub, headers, KEY, key_id, Vec::new()).await
}

async fn replace<T>(
    hub: &jetstream::Context,
    former: &Current<T>,
    kind: &str,
    name: &str,
    value: &T,
) -> Result<String, NotStored>
where
    T: Serialize + Sync,
{
    let value = serde_json::to_vec(value).expect("configuration always serializes");
    let version = version_of(&value);
    write(hub, expecting(former.sequence), kind, name, value).await?;
    Ok(version)
}

fn expecting(sequence: u64) -> HeaderMap {
    let mut headers = super::version::headers();
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.to_string());
    headers
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

/// All tenants as they are now in the bucket that `js` reaches: the hub's, or the copy in a region. Waits for a leader.
///
/// # Errors
/// When the server does not answer or an entry cannot be read.
pub async fn read(js: &jetstream::Context) -> Result<Tenants, NotLoaded> {
    let may_pass = |error: &NotLoaded| matches!(error, NotLoaded::Follow(error) if error.may_pass());
    leader::patiently("the configuration", may_pass, async || read_once(js).await).await
}

/// The same without patience.
///
/// # Errors
/// When the server does not answer or an entry cannot be read.
pub async fn read_once(js: &jetstream::Context) -> Result<Tenants, NotLoaded> {
    let mut tenants = Tenants::default();
    for entry in entries(js).await? {
        let value = if entry.is_removal() {
            None
        } else {
            Some(&entry.payload[..])
        };
        tenants
            .learn(&entry.subject, value)
            .map_err(|error| NotLoaded::Entry(entry.subject.clone(), error))?;
    }
    Ok(tenants)
}

/// Writes an app at the hub. `hub` is a context of the hub's domain.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_app(hub: &jetstream::Context, app: &App) -> Result<(), publish::NotStored> {
    put(hub, APP, app.id.as_str(), app).await
}

/// Writes an API key at the hub.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_key(hub: &jetstream::Context, key: &ApiKey) -> Result<(), publish::NotStored> {
    let value = serde_json::to_vec(key).expect("configuration always serializes");
    write(hub, super::version::headers(), KEY, &key.key_id, value).await
}

/// Writes the key of an operator at the hub.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_operator(hub: &jetstream::Context, key: &ApiKey) -> Result<(), publish::NotStored> {
    put(hub, OPERATOR, &key.key_id, key).await
}

/// Writes a region at the hub.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_region(hub: &jetstream::Context, region: &Region, site: &Site) -> Result<(), publish::NotStored> {
    put(hub, REGION, region.as_str(), site).await
}

/// Writes the mesh's key of ids at the hub, unless there is one.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn create_id_key(hub: &jetstream::Context, sealed: Sealed) -> Result<(), publish::NotStored> {
    match put_with(hub, expecting(0), "mesh", ID_KEY, &IdKeyEntry { sealed }).await {
        // Another operator was faster.
        Err(publish::NotStored::Refused) => Ok(()),
        stored => stored,
    }
}

/// Writes at the hub since when messages that come from another region need a proof.
///
/// # Errors
/// When the hub did not confirm that it stored the entry.
pub async fn put_proofs(hub: &jetstream::Context, since: Timestamp) -> Result<(), publish::NotStored> {
    put(hub, "mesh", PROOFS, &Proofs { since }).await
}

/// Why the configuration could not be resealed. Repeating is safe.
#[derive(Debug, thiserror::Error)]
pub enum NotResealed {
    /// The bucket cannot be read.
    #[error(transparent)]
    NotLoaded(#[from] NotLoaded),
    /// No key of this process opens what an entry holds.
    #[error("configuration entry {0}: {1}")]
    Closed(String, SealError),
    /// The hub did not confirm that it stored an entry.
    #[error("the hub did not store {0}: {1}")]
    NotStored(String, NotStored),
}

/// Seals all secrets of the hub's configuration under the first of the mesh's keys, and keeps what the others leave, so that they can
/// be removed everywhere. Returns the entries that changed. Nothing that was changed meanwhile is overwritten; it is read again.
///
/// # Errors
/// [`NotResealed`], with what was resealed before kept.
pub async fn reseal(hub: &jetstream::Context, mesh_key: &MeshKey) -> Result<Vec<String>, NotResealed> {
    let mut changed = Vec::new();
    loop {
        let mut overtaken = false;
        let mut has_legacies = false;
        for entry in entries(hub).await?.into_iter().filter(|entry| !entry.is_removal()) {
            let name = entry.subject.rsplitn(3, '.').take(2).collect::<Vec<_>>();
            let [name, kind] = name[..] else { continue };
            has_legacies |= (kind, name) == ("mesh", LEGACIES);
            let key = format!("{kind}.{name}");
            let closed = |error| NotResealed::Closed(key.clone(), error);
            let Some(value) = reseal::entry(kind, name, &entry.payload, mesh_key).map_err(closed)? else {
                continue;
            };
            match put_with(hub, expecting(entry.sequence), kind, name, &value).await {
                Ok(()) => changed.push(key),
                Err(NotStored::Refused) => overtaken = true,
                Err(error) => return Err(NotResealed::NotStored(key, error)),
            }
        }
        if !has_legacies && !mesh_key.legacies().is_empty() {
            let entry = LegaciesEntry {
                sealed: reseal::legacies(&[], mesh_key),
            };
            match put_with(hub, expecting(0), "mesh", LEGACIES, &entry).await {
                Ok(()) => changed.push(format!("mesh.{LEGACIES}")),
                Err(NotStored::Refused) => overtaken = true,
                Err(error) => return Err(NotResealed::NotStored(format!("mesh.{LEGACIES}"), error)),
            }
        }
        if !overtaken {
            return Ok(changed);
        }
    }
}

/// What former mesh keys left, without what cannot be opened: it may be sealed under a key that this process is to get.
fn opened(sealed: &[Sealed], mesh_key: &MeshKey) -> Vec<Legacy> {
    let open = |sealed: &Sealed| serde_json::from_str(&mesh_key.open(LEGACIES, sealed).ok()?).ok();
    let legacies: Vec<Legacy> = sealed.iter().filter_map(open).collect();
    if legacies.len() < sealed.len() {
        tracing::error!("what a former mesh key left cannot be opened; what it signed is refused");
    }
    legacies
}

/// The newest entries of the bucket, removals included.
async fn entries(js: &jetstream::Context) -> Result<Vec<Entry>, NotLoaded> {
    let mut found = Vec::new();
    if follow::stream_state(js, topology::CONFIG).await?.messages == 0 {
        return Ok(found);
    }
    let mut entries = follow::follow(js, topology::CONFIG, ">", 1).await?;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        let is_last = entry.pending == 0;
        found.push(entry);
        if is_last {
            break;
        }
    }
    Ok(found)
}

async fn put(
    hub: &jetstream::Context,
    kind: &str,
    name: &str,
    value: &impl Serialize,
) -> Result<(), publish::NotStored> {
    put_with(hub, super::version::headers(), kind, name, value).await
}

async fn put_with(
    hub: &jetstream::Context,
    headers: HeaderMap,
    kind: &str,
    name: &str,
    value: &impl Serialize,
) -> Result<(), publish::NotStored> {
    let value = serde_json::to_vec(value).expect("configuration always serializes");
    let (value, subject) = (Bytes::from(value), subject_at_hub(kind, name));
    let may_pass = |error: &NotStored| matches!(error, NotStored::NoStream | NotStored::NoAnswer);
    let store = async || publish::store(hub, subject.clone(), headers.clone(), value.clone()).await;
    leader::patiently("the hub", may_pass, store).await.map(|_| ())
}

/// The same without patience, for the service that writes for callers who wait.
async fn write(
    hub: &jetstream::Context,
    headers: HeaderMap,
    kind: &str,
    name: &str,
    value: Vec<u8>,
) -> Result<(), NotStored> {
    let storing = publish::store(hub, subject_at_hub(kind, name), headers, value.into());
    storing.await.map(|_| ())
}

fn subject_at_hub(kind: &str, name: &str) -> String {
    topology::at_hub(&format!("$KV.{}.{kind}.{name}", topology::CONFIG_BUCKET))
}
