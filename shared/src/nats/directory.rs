//! Who lives where, and whose an address is. Every region writes its own entries and holds everybody's; the newest wins.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_nats::{HeaderMap, jetstream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    follow, publish,
    subject::{self, DirectoryKey},
    topology,
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

    /// Follows the stream for ever.
    pub async fn follow(self, js: jetstream::Context) {
        // An empty stream sends nothing that could say that it is empty.
        let nothing_there = follow::standing(&js, topology::DIRECTORY)
            .await
            .is_ok_and(|standing| standing.messages == 0);
        self.loaded.send_replace(nothing_there);
        follow::follow_forever(&js, topology::DIRECTORY, ">", |entry| {
            self.learn(&entry.subject, &entry.payload);
            if entry.pending == 0 {
                self.loaded.send_replace(true);
            }
        })
        .await;
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

    /// Writes that `address` is `owner`'s, and knows it at once.
    ///
    /// # Errors
    /// When the stream did not say that it stored it.
    pub async fn put_owner(
        &self,
        js: &jetstream::Context,
        here: &Region,
        owner: &RecipientKey,
        address: AddressId,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        self.put(
            js,
            subject::directory_owner(here, &owner.app, address),
            &Said {
                is: Some(&owner.recipient),
                at,
            },
        )
        .await
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

    /// Writes that `address` is nobody's.
    ///
    /// # Errors
    /// When the stream did not say that it stored it.
    pub async fn forget_owner(
        &self,
        js: &jetstream::Context,
        here: &Region,
        app: &AppId,
        address: AddressId,
        at: Timestamp,
    ) -> Result<(), publish::NotStored> {
        self.put(
            js,
            subject::directory_owner(here, app, address),
            &Said::<RecipientId> { is: None, at },
        )
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

    fn learn(&self, subject: &str, value: &[u8]) {
        let learnt = match DirectoryKey::parse(subject) {
            Some(DirectoryKey::Home(key)) => serde_json::from_slice(value).map(|said: Said<Region>| {
                newest(&mut self.write().homes, home_hash(&key), said);
            }),
            Some(DirectoryKey::Owner(app, address)) => serde_json::from_slice(value).map(|said: Said<RecipientId>| {
                newest(&mut self.write().owners, owner_hash(&app, address), said);
            }),
            None => Ok(()),
        };
        if let Err(error) = learnt {
            tracing::error!(%error, "directory entry cannot be read");
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn newest<T>(map: &mut HashMap<u128, (Option<T>, Timestamp)>, key: u128, said: Said<T>) {
    match map.get(&key) {
        Some((_, at)) if *at > said.at => {}
        _ => {
            map.insert(key, (said.is, said.at));
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
}
