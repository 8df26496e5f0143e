//! Who lives where, and whose an address is. Every region writes its own entries and holds everybody's; the newest wins.
//!
//! Regions that are cut off from each other may both register one address, for two recipients. So an entry about an
//! address also names those whose it was: whoever follows the directory learns of every recipient who may still have it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    direct,
    follow::{self, Entry},
    publish,
    subject::{self, DirectoryKey},
    topology::{self, Domain},
};
use crate::{
    digest::derive,
    id::{AddressId, AppId, RecipientId, Region},
    recipient::RecipientKey,
};

/// One entry as stored. Nothing in it says that what was known is forgotten; the entry stays, because an older one of
/// another region would otherwise count again.
#[derive(Debug, Serialize, Deserialize)]
struct Said<T> {
    is: Option<T>,
    at: Timestamp,
}

/// Former owners that an entry names, the latest last; more regions than that never disagree about one address.
const FORMER: usize = 16;

/// How often an entry is written again that somebody else wrote meanwhile.
const AGAIN: usize = 8;

/// What one region says of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Whose it is; nobody's once its provider called it gone or its owner removed it.
    pub is: Option<RecipientId>,
    /// Since when: the registration, or the moment from which on it was gone.
    pub at: Timestamp,
    /// Whose it was, as far as this region knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub was: Vec<RecipientId>,
}

impl Ownership {
    /// The newer of two words of one region, with all names that either knows.
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
        was.drain(..was.len().saturating_sub(FORMER));
        newer.was = was;
        newer
    }
}

/// What every region says of an address.
///
/// # Errors
/// When this region's stream does not answer.
pub async fn ownerships(
    js: &jetstream::Context,
    app: &AppId,
    address: AddressId,
) -> Result<Vec<Ownership>, direct::NoAnswer> {
    let found = read(js, subject::directory_owner_anywhere(app, address)).await?;
    Ok(found.into_iter().map(|(_, said)| said).collect())
}

async fn read(js: &jetstream::Context, filter: String) -> Result<Vec<(u64, Ownership)>, direct::NoAnswer> {
    let found = direct::last_of(js, &Domain::Here, topology::DIRECTORY, &[filter]).await?;
    let entry = |found: direct::Found| match serde_json::from_slice(&found.payload) {
        Ok(said) => Some((found.sequence, said)),
        Err(error) => {
            tracing::error!(%error, "directory entry cannot be read");
            None
        }
    };
    Ok(found.into_iter().filter_map(entry).collect())
}

/// Writes for `here` that an address is somebody's or nobody's, and whose it was. A word that is older than what this
/// region said before adds its names and changes nothing else.
///
/// # Errors
/// When the stream did not say that it stored it.
pub async fn put_ownership(
    js: &jetstream::Context,
    here: &Region,
    app: &AppId,
    address: AddressId,
    said: Ownership,
) -> Result<Ownership, publish::NotStored> {
    let subject = subject::directory_owner(here, app, address);
    for _ in 0..AGAIN {
        let known = read(js, subject.clone()).await.map_err(|error| match error {
            direct::NoAnswer::Silent => publish::NotStored::NoAnswer,
            direct::NoAnswer::Forbidden => publish::NotStored::Forbidden,
        })?;
        let known = known.into_iter().next();
        let sequence = known.as_ref().map_or(0, |(sequence, _)| *sequence);
        let merged = match known {
            Some((_, known)) => known.merge(said.clone()),
            None => said.clone(),
        };
        let value = serde_json::to_vec(&merged).expect("directory entries always serialize");
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.to_string());
        match publish::store(js, subject.clone(), headers, value.into()).await {
            Ok(_) => return Ok(merged),
            Err(publish::NotStored::Refused) => {}
            Err(error) => return Err(error),
        }
    }
    Err(publish::NotStored::Refused)
}

/// The directory in memory: about 60 bytes a recipient and 120 bytes an address. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    known: Arc<RwLock<Known>>,
    loaded: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    homes: HashMap<u128, (Option<Region>, Timestamp)>,
    owners: HashMap<u128, (Option<RecipientId>, Timestamp)>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            loaded: watch::channel(false).0,
        }
    }
}

impl Directory {
    /// The home of a recipient, if anyone registered one.
    pub fn home(&self, key: &RecipientKey) -> Option<Region> {
        self.read().homes.get(&home_hash(key))?.0.clone()
    }

    /// Whose an address is.
    pub fn owner(&self, app: &AppId, address: AddressId) -> Option<RecipientId> {
        self.read().owners.get(&owner_hash(app, address))?.0.clone()
    }

    /// Whether everything that was there at start has been read.
    pub fn is_loaded(&self) -> bool {
        *self.loaded.borrow()
    }

    /// Follows the stream for ever. Tells of each address of which it learns that another recipient may have it besides
    /// its owner, and whether that is news: everything is told again at every start.
    pub async fn follow(self, js: jetstream::Context, contested: impl Fn(AppId, AddressId, bool)) {
        let learn = |entry: &Entry| {
            if let Some((app, address)) = self.learn(&entry.subject, &entry.payload) {
                contested(app, address, self.is_loaded());
            }
        };
        let caught_up = || {
            self.loaded.send_replace(true);
        };
        follow::follow_forever(&js, topology::DIRECTORY, ">", learn, caught_up).await;
    }

    /// Writes that `key` lives in `home`, and knows it at once.
    ///
    /// # Errors
    /// When the stream did not say that it stored it.
    pub async fn put_home(
        &self,
        js: &jetstream::Context,
        here: &Region,
        key: &RecipientKey,
        home: &Region,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        self.put(js, subject::directory_home(here, key), &Said { is: Some(home), at })
            .await
    }

    /// Writes that an address is somebody's or nobody's since `at`, and knows it at once.
    ///
    /// # Errors
    /// When the stream did not say that it stored it.
    pub async fn put_owner(
        &self,
        js: &jetstream::Context,
        here: &Region,
        app: &AppId,
        address: AddressId,
        owner: Option<RecipientId>,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        let was = self.owner(app, address).into_iter().collect();
        let said = Ownership { is: owner, at, was };
        let said = put_ownership(js, here, app, address, said).await?;
        self.learn_owner(app, address, said);
        Ok(())
    }

    /// Writes that nobody lives anywhere by the name of `key`.
    ///
    /// # Errors
    /// When the stream did not say that it stored it.
    pub async fn forget_home(
        &self,
        js: &jetstream::Context,
        here: &Region,
        key: &RecipientKey,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        self.put(js, subject::directory_home(here, key), &Said::<Region> { is: None, at })
            .await
    }

    async fn put(
        &self,
        js: &jetstream::Context,
        subject: String,
        said: &Said<impl Serialize>,
    ) -> Result<(), publish::NotStored> {
        let value = serde_json::to_vec(said).expect("directory entries always serialize");
        publish::store(js, subject.clone(), HeaderMap::new(), value.clone().into()).await?;
        self.learn(&subject, &value);
        Ok(())
    }

    /// Returns an address that another recipient may have besides its owner.
    fn learn(&self, subject: &str, value: &[u8]) -> Option<(AppId, AddressId)> {
        let learnt = match DirectoryKey::parse(subject)? {
            DirectoryKey::Home(key) => serde_json::from_slice(value).map(|said: Said<Region>| {
                newest(&mut self.write().homes, home_hash(&key), said.is, said.at);
                None
            }),
            DirectoryKey::Owner(app, address) => serde_json::from_slice(value).map(|said: Ownership| {
                let contested = self.learn_owner(&app, address, said);
                contested.then_some((app, address))
            }),
        };
        learnt.unwrap_or_else(|error| {
            tracing::error!(%error, "directory entry cannot be read");
            None
        })
    }

    fn learn_owner(&self, app: &AppId, address: AddressId, said: Ownership) -> bool {
        let key = owner_hash(app, address);
        let owners = &mut self.write().owners;
        let another = owners.get(&key).is_some_and(|(known, _)| *known != said.is);
        let contested = another || !said.was.is_empty();
        newest(owners, key, said.is, said.at);
        contested
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two words of one moment are told apart by what they say, so that all regions believe the same.
fn newest<T: Ord>(map: &mut HashMap<u128, (Option<T>, Timestamp)>, key: u128, is: Option<T>, at: Timestamp) {
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

    #[test]
    fn the_newest_word_wins_whatever_the_order() {
        let directory = Directory::default();
        let key = RecipientKey {
            app: "shop".parse().unwrap(),
            recipient: "ann".parse().unwrap(),
        };
        let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let say = |from: &Region, home: &Region, at: i64| {
            let said = Said {
                is: Some(home),
                at: Timestamp::from_second(at).unwrap(),
            };
            directory.learn(
                &subject::directory_home(from, &key),
                &serde_json::to_vec(&said).unwrap(),
            );
        };
        assert_eq!(directory.home(&key), None);
        say(&eu, &eu, 10);
        say(&us, &us, 30);
        say(&eu, &eu, 20);
        assert_eq!(directory.home(&key), Some(us.clone()));
        let forgotten = Said::<Region> {
            is: None,
            at: Timestamp::from_second(40).unwrap(),
        };
        directory.learn(
            &subject::directory_home(&eu, &key),
            &serde_json::to_vec(&forgotten).unwrap(),
        );
        say(&us, &eu, 35);
        assert_eq!(
            directory.home(&key),
            None,
            "what is older than forgetting does not come back"
        );
    }

    #[test]
    fn an_older_word_adds_names_and_nothing_else() {
        let said = |is: Option<&str>, at: i64, was: &[&str]| Ownership {
            is: is.map(|name| name.parse().unwrap()),
            at: Timestamp::from_second(at).unwrap(),
            was: was.iter().map(|name| name.parse().unwrap()).collect(),
        };
        let bob = said(Some("ann"), 10, &["eve"]).merge(said(Some("bob"), 20, &["ann"]));
        assert_eq!(bob, said(Some("bob"), 20, &["eve", "ann"]));
        let gone = said(None, 15, &["ann"]);
        assert_eq!(bob.clone().merge(gone), bob, "it was registered again since");
        let gone = bob.merge(said(None, 30, &["bob"]));
        assert_eq!(gone, said(None, 30, &["eve", "ann", "bob"]));
        let again = gone.merge(said(Some("ann"), 40, &[]));
        assert_eq!(again, said(Some("ann"), 40, &["eve", "bob"]));
        let many = (0..100).fold(again, |known, at| {
            known.merge(said(Some(&format!("r{at}")), 50 + at, &[]))
        });
        assert_eq!(many.was.len(), FORMER);
        assert_eq!(many.was.last(), Some(&"r98".parse().unwrap()));
    }

    #[test]
    fn an_address_with_more_than_one_name_is_told_of() {
        let directory = Directory::default();
        let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let (app, address): (AppId, AddressId) = ("shop".parse().unwrap(), AddressId(uuid::Uuid::from_u128(1)));
        let say = |from: &Region, is: Option<&str>, at: i64| {
            let said = Ownership {
                is: is.map(|name| name.parse().unwrap()),
                at: Timestamp::from_second(at).unwrap(),
                was: Vec::new(),
            };
            let subject = subject::directory_owner(from, &app, address);
            directory.learn(&subject, &serde_json::to_vec(&said).unwrap())
        };
        assert_eq!(say(&eu, Some("ann"), 10), None);
        assert_eq!(say(&us, Some("ann"), 10), None);
        let contested = Some((app.clone(), address));
        assert_eq!(say(&us, Some("bob"), 5), contested, "the older word is another's");
        assert_eq!(directory.owner(&app, address), Some("ann".parse().unwrap()));
        assert_eq!(say(&eu, None, 20), contested);
        assert_eq!(directory.owner(&app, address), None);
    }
}
