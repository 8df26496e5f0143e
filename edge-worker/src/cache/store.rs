//! Facts in redb.
//!
//! Layout: `facts` maps `<app>.<recipient>.<name>`, the key of the region's bucket, to 4 bytes of checksum over all that
//! follows and the key, 8 bytes of revision (the sequence in the bucket's stream, big endian) and the fact as JSON. redb
//! does not look at its own checksums when it reads, and one wrong bit is another device's token. All facts of a
//! recipient lie side by side, so one short range answers a job. `meta` holds the last applied sequence and when the
//! bucket was created.
//!
//! A batch of facts and the sequence it reaches are one transaction: after a crash the file is at some earlier
//! sequence, and following resumes there. What cannot be read is no longer a copy of anything: the store moves to a new
//! file and is filled again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata, TableDefinition};
use shared::{
    nats::subject,
    recipient::{Fact, Recipient, RecipientKey},
};

const FACTS: TableDefinition<&str, &[u8]> = TableDefinition::new("facts.2");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta.2");
const SEQUENCE: &str = "sequence";
const CREATED_AT: &str = "created_at_ms";

/// The cache file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: ArcSwap<Database>,
    /// The facts as of the last commit. Beginning to read costs more than reading.
    facts: ArcSwap<Facts>,
    path: PathBuf,
    damaged: AtomicBool,
}

type Facts = ReadOnlyTable<&'static str, &'static [u8]>;

/// One change to apply: the fact's key, its revision, and its value, or `None` for a removal.
pub type Change = (String, u64, Option<Vec<u8>>);

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened, read or written.
    #[error("cache: {0}")]
    Redb(Box<redb::Error>),
    /// The file holds something that is no fact.
    #[error("cache: damaged")]
    Damaged,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

impl Store {
    /// Opens the cache at `path`, or begins a new one if there is none or it is damaged.
    ///
    /// # Errors
    /// When not even a new file can be written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = catch_unwind(|| open(path)).unwrap_or(Err(StoreError::Damaged));
        let database = match opened {
            Ok(database) => database,
            Err(error) => {
                tracing::error!(%error, "cache is damaged and will be filled anew");
                remove(path);
                open(path)?
            }
        };
        let inner = Inner {
            facts: ArcSwap::from_pointee(facts(&database)?),
            database: ArcSwap::from_pointee(database),
            path: path.to_owned(),
            damaged: AtomicBool::new(false),
        };
        Ok(Self { inner: inner.into() })
    }

    /// What is known of a recipient.
    ///
    /// # Errors
    /// When the file cannot be read; the caller then asks the region's bucket.
    pub fn recipient(&self, key: &RecipientKey) -> Result<Recipient, StoreError> {
        let facts = self.inner.facts.load();
        // redb panics on some kinds of damage; a damaged copy must not take the worker down.
        let read = catch_unwind(AssertUnwindSafe(|| read(&facts, key))).unwrap_or(Err(StoreError::Damaged));
        if read.is_err() {
            self.inner.damaged.store(true, Ordering::Relaxed);
        }
        read
    }

    /// The sequence to resume after, and when the bucket it counts in was created (milliseconds since 1970).
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn standing(&self) -> Result<Option<(u64, i64)>, StoreError> {
        let transaction = self.inner.database.load().begin_read()?;
        let meta = match transaction.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (sequence, created) = (meta.get(SEQUENCE)?, meta.get(CREATED_AT)?);
        Ok(sequence
            .zip(created)
            .map(|(sequence, created)| (sequence.value().cast_unsigned(), created.value())))
    }

    /// Applies changes in one transaction that reaches `sequence`. Blocks for a disk write.
    ///
    /// # Errors
    /// When the file cannot be written; nothing was applied.
    pub fn apply(&self, mut changes: Vec<Change>, sequence: u64, created_at: i64) -> Result<(), StoreError> {
        // Sorted keys fill whole pages: 3 times faster than random order for a million facts. The sort is stable, so
        // the last change of a key stays last.
        changes.sort_by(|a, b| a.0.cmp(&b.0));
        let database = self.inner.database.load();
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        {
            let mut facts = transaction.open_table(FACTS)?;
            let mut value = Vec::new();
            for (key, revision, change) in changes {
                match change {
                    Some(fact) => {
                        value.clear();
                        value.extend_from_slice(&[0; 4]);
                        value.extend_from_slice(&revision.to_be_bytes());
                        value.extend_from_slice(&fact);
                        let sum = checksum(&key, &value[4..]);
                        value[..4].copy_from_slice(&sum);
                        facts.insert(key.as_str(), value.as_slice())?;
                    }
                    None => {
                        facts.remove(key.as_str())?;
                    }
                }
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(SEQUENCE, sequence.cast_signed())?;
            meta.insert(CREATED_AT, created_at)?;
        }
        transaction.commit()?;
        self.inner.facts.store(facts(&database)?.into());
        Ok(())
    }

    /// Facts held.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn facts(&self) -> Result<u64, StoreError> {
        Ok(self.inner.facts.load().len()?)
    }

    /// Whether a read failed since the store was opened or begun anew.
    pub fn is_damaged(&self) -> bool {
        self.inner.damaged.load(Ordering::Relaxed)
    }

    /// Begins a new, empty file in place of this one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin_anew(&self) -> Result<(), StoreError> {
        // Readers may still hold the former file, so the new one is made beside it and takes its name.
        let fresh = self.inner.path.with_extension("fresh");
        remove(&fresh);
        let database = open(&fresh)?;
        std::fs::rename(&fresh, &self.inner.path)
            .map_err(|error| StoreError::Redb(Box::new(redb::Error::Io(error))))?;
        self.inner.facts.store(facts(&database)?.into());
        self.inner.database.store(database.into());
        self.inner.damaged.store(false, Ordering::Relaxed);
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let database = Database::builder().set_cache_size(256 << 20).create(path)?;
    // Also proves that the file can be read and written.
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(FACTS)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    Ok(database)
}

fn checksum(key: &str, value: &[u8]) -> [u8; 4] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    sum.update(value);
    sum.finalize().to_be_bytes()
}

fn facts(database: &Database) -> Result<Facts, StoreError> {
    Ok(database.begin_read()?.open_table(FACTS)?)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "damaged cache cannot be removed");
    }
}

fn read(facts: &Facts, key: &RecipientKey) -> Result<Recipient, StoreError> {
    let mut from = subject::recipient_path(key);
    from.push('.');
    let mut to = from.clone();
    to.pop();
    // The character after the dot: everything below the recipient sorts before it.
    to.push('/');
    let mut recipient = Recipient::default();
    for fact in facts.range(from.as_str()..to.as_str())? {
        let (name, value) = fact?;
        let (sum, value) = value.value().split_first_chunk().ok_or(StoreError::Damaged)?;
        if *sum != checksum(name.value(), value) {
            return Err(StoreError::Damaged);
        }
        let name = name
            .value()
            .strip_prefix(from.as_str())
            .and_then(subject::parse_fact_name);
        let name = name.ok_or(StoreError::Damaged)?;
        let (revision, json) = value.split_first_chunk().ok_or(StoreError::Damaged)?;
        let fact = Fact::decode(name, json).map_err(|_| StoreError::Damaged)?;
        recipient.learn(fact, u64::from_be_bytes(*revision));
    }
    Ok(recipient)
}

#[cfg(test)]
mod tests {
    use redb::ReadableTable;

    use super::*;
    use shared::recipient::Preferences;

    fn key(recipient: &str) -> RecipientKey {
        RecipientKey {
            app: "shop".parse().unwrap(),
            recipient: recipient.parse().unwrap(),
        }
    }

    fn preferences(recipient: &str) -> (String, Vec<u8>) {
        let fact = Fact::Preferences(Preferences {
            channels: [(shared::channel::Channel::Push, false)].into(),
            ..Preferences::default()
        });
        (subject::fact_key(&key(recipient), fact.name()), fact.encode())
    }

    #[test]
    fn a_recipient_is_read_alone_and_the_last_change_wins() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache.redb")).unwrap();
        // Neighbours in key order must not be mixed up.
        let mut changes = Vec::new();
        for name in ["ann", "ann-2", "ann.b"] {
            let (key, value) = preferences(name);
            changes.push((key, 1, Some(value)));
        }
        let (removed, _) = preferences("ann-2");
        changes.push((removed, 2, None));
        store.apply(changes, 2, 7).unwrap();
        assert!(!store.recipient(&key("ann")).unwrap().preferences.channels.is_empty());
        assert_eq!(store.recipient(&key("ann-2")).unwrap(), Recipient::default());
        assert_eq!(store.standing().unwrap(), Some((2, 7)));
        assert_eq!(store.facts().unwrap(), 2);
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.redb");
        let (fact, value) = preferences("ann");
        Store::open(&path)
            .unwrap()
            .apply(vec![(fact, 1, Some(value))], 1, 7)
            .unwrap();
        std::fs::write(&path, b"not a database").unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.standing().unwrap(), None);
        assert_eq!(store.recipient(&key("ann")).unwrap(), Recipient::default());
    }

    #[test]
    fn a_wrong_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache.redb")).unwrap();
        let (fact, value) = preferences("ann");
        store.apply(vec![(fact.clone(), 1, Some(value))], 1, 7).unwrap();
        let database = store.inner.database.load();
        let transaction = database.begin_write().unwrap();
        {
            let mut facts = transaction.open_table(FACTS).unwrap();
            let mut value = facts.get(fact.as_str()).unwrap().unwrap().value().to_vec();
            *value.last_mut().unwrap() ^= 1;
            facts.insert(fact.as_str(), value.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        store.inner.facts.store(super::facts(&database).unwrap().into());
        assert!(matches!(store.recipient(&key("ann")), Err(StoreError::Damaged)));
        assert!(store.is_damaged());
    }

    #[test]
    fn a_store_can_be_replaced_while_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache.redb")).unwrap();
        let (fact, value) = preferences("ann");
        store.apply(vec![(fact, 1, Some(value))], 1, 7).unwrap();
        store.begin_anew().unwrap();
        assert_eq!(store.standing().unwrap(), None);
        drop(store);
        assert_eq!(
            Store::open(&folder.path().join("cache.redb")).unwrap().facts().unwrap(),
            0
        );
    }
}
