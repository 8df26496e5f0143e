//! Homes of recipients and owners of addresses. Every region writes its own entries and holds those of all regions; the
//! newest wins.
//!
//! Regions that are cut off from each other may both register one address, for two recipients. So an entry about an
//! address also names its former owners: a reader of the directory learns of every recipient that may still have it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_nats::{header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    border::Border,
    current, direct,
    follow::{self, Entry},
    publish,
    subject::{self, DirectoryKey},
    topology,
};
use crate::{
    digest::derive,
    id::{AddressId, AppId, RecipientId, Region},
    recipient::RecipientKey,
};

/// One entry about a home as stored. `is: None` records that the recipient has no home any more. Such an entry is kept,
/// because an older entry of another region would count again without it.
#[derive(Debug, Serialize, Deserialize)]
struct HomeEntry<T> {
    is: Option<T>,
    at: Timestamp,
}

/// Every region's entry about one address.
#[derive(Debug, Clone)]
pub struct Owners {
    app: AppId,
    address: AddressId,
    entries: Vec<Ownership>,
    /// The subject of this region's entry, and its message.
    own: (String, Option<direct::Found>),
}

impl Owners {
    fn newest(&self) -> Option<&Ownership> {
        self.entries.iter().max_by_key(|entry| (entry.at, &entry.is))
    }

    /// The current owner, if there is one.
    pub fn owner(&self) -> Option<&RecipientId> {
        self.newest()?.is.as_ref()
    }

    /// When the newest entry was made.
    pub fn since(&self) -> Option<Timestamp> {
        Some(self.newest()?.at)
    }

    /// `now`, or a time just after the newest entry if that is not later: a registration that follows it is the newer one,
    /// whatever the clocks of two gateways say.
    pub fn next(&self, now: Timestamp) -> Timestamp {
        after(self.since(), now)
    }

    /// All recipients that the entries name, except the current owner.
    pub fn former(&self) -> Vec<&RecipientId> {
        let entries = self.entries.iter();
        let mut names: Vec<_> = entries.flat_map(|entry| entry.is.iter().chain(&entry.was)).collect();
        names.sort();
        names.dedup();
        names.retain(|name| self.owner() != Some(name));
        names
    }
}

/// Maximum number of former owners in an entry, the latest last. The oldest are dropped: more regions than this never
/// disagree about one address.
const MAX_FORMER_OWNERS: usize = 16;

/// How often to try writing an entry that other writers keep changing.
const MAX_WRITE_ATTEMPTS: usize = 8;

/// One region's entry about an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Its owner; none once its provider reported it gone or its owner removed it.
    pub is: Option<RecipientId>,
    /// When the address was registered, or reported gone.
    pub at: Timestamp,
    /// Former owners known to this region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub was: Vec<RecipientId>,
}

impl Ownership {
    /// The newer of two entries of one region, with all owners that either names.
    fn merge(self, other: Self) -> Self {
        let (older, mut newer) = if (self.at, &self.is) <= (other.at, &other.is) {
            (self, other)
        } else {
            (other, self)
        };
        let mut was: Vec<RecipientId> = Vec::new();
        for name in older.was.into_iter().chain(older.is).chain(newer.was) {
            was.retain(|known| *known != name);
            was.push(name);
        }
        was.retain(|name| newer.is.as_ref() != Some(name));
        was.drain(..was.len().saturating_sub(MAX_FORMER_OWNERS));
        newer.was = was;
        newer
    }
}

/// The home of a recipient, from every region's entry; `None` if none is registered. Misses nothing that this region
/// acknowledged before.
///
/// # Errors
/// When this region's directory does not answer.
pub async fn home(
    js: &jetstream::Context,
    border: &Border,
    key: &RecipientKey,
) -> Result<Option<Region>, direct::NoAnswer> {
    let filter = subject::directory_home_anywhere(key);
    let found = current::last_of(js, topology::DIRECTORY, &[filter]).await?;
    let entries = believed(border, &found).filter_map(entry::<HomeEntry<Region>>);
    let newest = entries.max_by(|a, b| (a.at, &a.is).cmp(&(b.at, &b.is)));
    Ok(newest.and_then(|entry| entry.is))
}

/// The entries that were written in this region, or are signed.
pub(super) fn believed<'a>(border: &Border, found: &'a [direct::Found]) -> impl Iterator<Item = &'a direct::Found> {
    found.iter().filter(|found| border.admits_found(found))
}

pub(super) fn entry<T: DeserializeOwned>(found: &direct::Found) -> Option<T> {
    let entry = serde_json::from_slice(&found.payload);
    entry
        .inspect_err(|error| tracing::error!(%error, "directory entry cannot be read"))
        .ok()
}

/// `at`, or a time just after `known` if that is not later: a change follows what its writer knew, whatever its clock says.
pub(super) fn after(known: Option<Timestamp>, at: Timestamp) -> Timestamp {
    let next = known.and_then(|known| known.checked_add(Duration::from_micros(1)).ok());
    next.map_or(at, |next| next.max(at))
}

/// Writes the entry of region `here` about an address. An entry older than the stored one adds its owners to the former
/// owners and changes nothing else.
///
/// # Errors
/// When the stream did not acknowledge the entry; [`publish::NotStored::Refused`] if other writers kept changing it.
pub async fn put_ownership(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    address: AddressId,
    entry: Ownership,
) -> Result<Ownership, publish::NotStored> {
    let subject = subject::directory_owner(here, app, address);
    let own = current::last(js, topology::DIRECTORY, &subject).await?;
    merge_ownership(js, border, &subject, own, entry).await
}

async fn merge_ownership(
    js: &jetstream::Context,
    border: &Border,
    subject: &str,
    own: Option<direct::Found>,
    entry: Ownership,
) -> Result<Ownership, publish::NotStored> {
    change(js, border, subject, own, |known: Option<Ownership>| match known {
        Some(known) => known.merge(entry.clone()),
        None => entry.clone(),
    })
    .await
}

/// Replaces the entry under `subject`, one of this region's, by what `change` makes of it, and returns that. `known` is the entry as
/// it was read; if another writer was faster, it is read again and `change` is called again.
///
/// # Errors
/// When the stream did not acknowledge the entry; [`publish::NotStored::Refused`] if other writers kept changing it.
pub(super) async fn change<T: Serialize + DeserializeOwned>(
    js: &jetstream::Context,
    border: &Border,
    subject: &str,
    mut known: Option<direct::Found>,
    change: impl Fn(Option<T>) -> T,
) -> Result<T, publish::NotStored> {
    for _ in 0..MAX_WRITE_ATTEMPTS {
        let sequence = known.as_ref().map_or(0, |known| known.sequence);
        let changed = change(known.as_ref().and_then(entry));
        let value = serde_json::to_vec(&changed).expect("directory entries always serialize");
        let mut headers = border.headers(subject, &value);
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.to_string());
        match publish::store(js, subject.to_owned(), headers, value.into()).await {
            Ok(_) => return Ok(changed),
            Err(publish::NotStored::Refused) => known = current::last(js, topology::DIRECTORY, subject).await?,
            Err(error) => return Err(error),
        }
    }
    Err(publish::NotStored::Refused)
}

/// The directory in memory: about 60 bytes a recipient and 120 bytes an address. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    border: Border,
    readers: current::Readers,
    known: Arc<RwLock<Known>>,
    loaded: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    homes: HashMap<u128, (Option<Region>, Timestamp)>,
    owners: HashMap<u128, (Option<RecipientId>, Timestamp)>,
}

impl Directory {
    /// An empty directory, which believes the entries that `border` admits.
    pub fn new(border: Border) -> Self {
        Self {
            border,
            readers: current::Readers::new(topology::DIRECTORY),
            known: Arc::default(),
            loaded: watch::channel(false).0,
        }
    }

    /// The home of a recipient, if one is registered.
    pub fn home(&self, key: &RecipientKey) -> Option<Region> {
        self.read().homes.get(&home_hash(key))?.0.clone()
    }

    /// As [`Self::home`], and never older than what this region acknowledged before.
    ///
    /// # Errors
    /// When this region's directory does not answer.
    pub async fn current_home(
        &self,
        js: &jetstream::Context,
        here: &Region,
        key: &RecipientKey,
    ) -> Result<Option<Region>, direct::NoAnswer> {
        let subject = subject::directory_home(here, key);
        for found in self.readers.last_of(js, &subject).await? {
            self.learn(&subject, &found.payload);
        }
        Ok(self.home(key))
    }

    /// Every region's entry about an address. Misses nothing that this region acknowledged before.
    ///
    /// # Errors
    /// When this region's directory does not answer.
    pub async fn current_owners(
        &self,
        js: &jetstream::Context,
        here: &Region,
        app: &AppId,
        address: AddressId,
    ) -> Result<Owners, direct::NoAnswer> {
        let filter = subject::directory_owner_anywhere(app, address);
        let mut found = self.readers.last_of(js, &filter).await?;
        let entries: Vec<Ownership> = believed(&self.border, &found).filter_map(entry).collect();
        for entry in &entries {
            self.learn_owner(app, address, entry.clone());
        }
        let subject = subject::directory_owner(here, app, address);
        let own = direct::take(&mut found, &subject);
        Ok(Owners {
            app: app.clone(),
            address,
            entries,
            own: (subject, own),
        })
    }

    /// Whether all entries that existed at start have been read.
    pub fn is_loaded(&self) -> bool {
        *self.loaded.borrow()
    }

    /// Follows the stream until the process ends. Calls `contested` for each address that another recipient may have
    /// besides its owner. Its flag is false for entries that existed at start, which are reported again at every start.
    pub async fn follow(self, js: jetstream::Context, contested: impl Fn(AppId, AddressId, bool)) {
        self.border.ready().await;
        let learn = |entry: &Entry| {
            if self.border.admits_entry(entry)
                && let Some((app, address)) = self.learn(&entry.subject, &entry.payload)
            {
                contested(app, address, self.is_loaded());
            }
        };
        let caught_up = || {
            self.loaded.send_replace(true);
        };
        follow::follow_forever(&js, topology::DIRECTORY, ">", learn, caught_up).await;
    }

    /// Writes that the home of `key` is `home` since `at`, or since the newest entry known here if that is not older;
    /// [`Self::home`] returns it at once.
    ///
    /// # Errors
    /// When the stream did not acknowledge the entry.
    pub async fn put_home(
        &self,
        js: &jetstream::Context,
        here: &Region,
        key: &RecipientKey,
        home: &Region,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        self.put(
            js,
            subject::directory_home(here, key),
            &HomeEntry {
                is: Some(home),
                at: self.after_home(key, at),
            },
        )
        .await
    }

    /// Writes that the address of `owners` has this owner, or none, since `at`; it is known here at once.
    ///
    /// # Errors
    /// When the stream did not acknowledge the entry.
    pub async fn put_owner(
        &self,
        js: &jetstream::Context,
        owners: Owners,
        owner: Option<RecipientId>,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        let was = owners.owner().cloned().into_iter().collect();
        let entry = Ownership { is: owner, at, was };
        let (subject, own) = owners.own;
        let entry = merge_ownership(js, &self.border, &subject, own, entry).await?;
        self.learn_owner(&owners.app, owners.address, entry);
        Ok(())
    }

    /// Writes that the recipient `key` has no home any more.
    ///
    /// # Errors
    /// When the stream did not acknowledge the entry.
    pub async fn forget_home(
        &self,
        js: &jetstream::Context,
        here: &Region,
        key: &RecipientKey,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        self.put(
            js,
            subject::directory_home(here, key),
            &HomeEntry::<Region> {
                is: None,
                at: self.after_home(key, at),
            },
        )
        .await
    }

    fn after_home(&self, key: &RecipientKey, at: Timestamp) -> Timestamp {
        let known = self.read().homes.get(&home_hash(key)).map(|(_, known)| *known);
        after(known, at)
    }

    async fn put(
        &self,
        js: &jetstream::Context,
        subject: String,
        entry: &HomeEntry<impl Serialize>,
    ) -> Result<(), publish::NotStored> {
        let value = serde_json::to_vec(entry).expect("directory entries always serialize");
        let headers = self.border.headers(&subject, &value);
        publish::store(js, subject.clone(), headers, value.clone().into()).await?;
        self.learn(&subject, &value);
        Ok(())
    }

    /// Takes in an entry. Returns its address if another recipient than the owner may have it too.
    fn learn(&self, subject: &str, value: &[u8]) -> Option<(AppId, AddressId)> {
        let learnt = match DirectoryKey::parse(subject)? {
            DirectoryKey::Home(key) => serde_json::from_slice(value).map(|entry: HomeEntry<Region>| {
                keep_newest(&mut self.write().homes, home_hash(&key), entry.is, entry.at);
                None
            }),
            DirectoryKey::Owner(app, address) => serde_json::from_slice(value).map(|entry: Ownership| {
                let contested = self.learn_owner(&app, address, entry);
                contested.then_some((app, address))
            }),
        };
        learnt.unwrap_or_else(|error| {
            tracing::error!(%error, "directory entry cannot be read");
            None
        })
    }

    fn learn_owner(&self, app: &AppId, address: AddressId, entry: Ownership) -> bool {
        let key = owner_hash(app, address);
        let owners = &mut self.write().owners;
        let another = owners.get(&key).is_some_and(|(known, _)| *known != entry.is);
        let contested = another || !entry.was.is_empty();
        keep_newest(owners, key, entry.is, entry.at);
        contested
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the newer entry. Entries of the same time are ordered by their content, so that all regions choose the same.
fn keep_newest<T: Ord>(map: &mut HashMap<u128, (Option<T>, Timestamp)>, key: u128, is: Option<T>, at: Timestamp) {
    match map.get(&key) {
        Some((known, then)) if (*then, known) > (at, &is) => {}
        _ => {
            map.insert(key, (is, at));
        }
    }
}

fn home_hash(key: &RecipientKey) -> u128 {
    derive("home", &[key.app.as_str(), key.recipient.as_str()]).as_u128()
}

fn owner_hash(app: &AppId, address: AddressId) -> u128 {
    derive("owner", &[app.as_str()]).as_u128() ^ address.0.as_u128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nats::config::Config, testing};

    fn directory() -> Directory {
        Directory::new(Border::new(Config::new(testing::mesh_key())))
    }

    #[test]
    fn the_newest_entry_wins_whatever_the_order() {
        let directory = directory();
        let key = RecipientKey {
            app: "shop".parse().unwrap(),
            recipient: "ann".parse().unwrap(),
        };
        let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let write = |from: &Region, home: &Region, at: i64| {
            let entry = HomeEntry {
                is: Some(home),
                at: Timestamp::from_second(at).unwrap(),
            };
            directory.learn(
                &subject::directory_home(from, &key),
                &serde_json::to_vec(&entry).unwrap(),
            );
        };
        assert_eq!(directory.home(&key), None);
        write(&eu, &eu, 10);
        write(&us, &us, 30);
        write(&eu, &eu, 20);
        assert_eq!(directory.home(&key), Some(us.clone()));
        let forgotten = HomeEntry::<Region> {
            is: None,
            at: Timestamp::from_second(40).unwrap(),
        };
        directory.learn(
            &subject::directory_home(&eu, &key),
            &serde_json::to_vec(&forgotten).unwrap(),
        );
        write(&us, &eu, 35);
        assert_eq!(
            directory.home(&key),
            None,
            "an entry older than the removal does not count again"
        );
    }

    #[test]
    fn an_older_entry_adds_names_and_nothing_else() {
        let entry = |is: Option<&str>, at: i64, was: &[&str]| Ownership {
            is: is.map(|name| name.parse().unwrap()),
            at: Timestamp::from_second(at).unwrap(),
            was: was.iter().map(|name| name.parse().unwrap()).collect(),
        };
        let bob = entry(Some("ann"), 10, &["eve"]).merge(entry(Some("bob"), 20, &["ann"]));
        assert_eq!(bob, entry(Some("bob"), 20, &["eve", "ann"]));
        let gone = entry(None, 15, &["ann"]);
        assert_eq!(bob.clone().merge(gone), bob, "the address was registered again since");
        let gone = bob.merge(entry(None, 30, &["bob"]));
        assert_eq!(gone, entry(None, 30, &["eve", "ann", "bob"]));
        let again = gone.merge(entry(Some("ann"), 40, &[]));
        assert_eq!(again, entry(Some("ann"), 40, &["eve", "bob"]));
        let many = (0..100).fold(again, |known, at| {
            known.merge(entry(Some(&format!("r{at}")), 50 + at, &[]))
        });
        assert_eq!(many.was.len(), MAX_FORMER_OWNERS);
        assert_eq!(many.was.last(), Some(&"r98".parse().unwrap()));
    }

    #[test]
    fn an_address_with_more_than_one_owner_is_contested() {
        let directory = directory();
        let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let (app, address): (AppId, AddressId) = ("shop".parse().unwrap(), AddressId(uuid::Uuid::from_u128(1)));
        let write = |from: &Region, is: Option<&str>, at: i64| {
            let entry = Ownership {
                is: is.map(|name| name.parse().unwrap()),
                at: Timestamp::from_second(at).unwrap(),
                was: Vec::new(),
            };
            let subject = subject::directory_owner(from, &app, address);
            directory.learn(&subject, &serde_json::to_vec(&entry).unwrap())
        };
        assert_eq!(write(&eu, Some("ann"), 10), None);
        assert_eq!(write(&us, Some("ann"), 10), None);
        let contested = Some((app.clone(), address));
        assert_eq!(
            write(&us, Some("bob"), 5),
            contested,
            "the older entry names another owner"
        );
        let owner = || directory.read().owners[&owner_hash(&app, address)].0.clone();
        assert_eq!(owner(), Some("ann".parse().unwrap()));
        assert_eq!(write(&eu, None, 20), contested);
        assert_eq!(owner(), None);
    }
}
