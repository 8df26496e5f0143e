//! Facts in redb.
//!
//! Layout: `facts` maps `<app>.<recipient>.<name>`, the key of the region's bucket, to 4 bytes of checksum over all that
//! follows and the key, 8 bytes of revision (the sequence in the bucket's stream, big endian) and the fact as JSON. redb
//! does not look at its own checksums when it reads, and one wrong bit is another device's token. All facts of a
//! recipient lie side by side, so one short range answers a job. `members` is an index of the topics: it maps
//! `<app>.<topic>.<recipient>` to 4 bytes of checksum and 8 bytes of time since when, in milliseconds since 1970, big
//! endian. Who joins again without having left keeps that time: a broadcast under way must not lose those whose
//! application says at every start what it has said before. Who moved away stays, with 8 bytes
//! more in the same form, until they come back or the file is filled anew: a broadcast accepted before that time is sent
//! on from here. `meta` holds the last applied sequence and when the bucket was created; its name changes when what is
//! filled does, and the file is then filled over.
//!
//! A batch of facts and the sequence it reaches are one transaction: after a crash the file is at some earlier
//! sequence, and following resumes there. What cannot be read is no longer a copy of anything: the store moves to a new
//! file and is filled again.

use std::{
    ops::{Bound, ControlFlow},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition};
use shared::{
    id::{AppId, Topic},
    nats::subject,
    recipient::{Fact, Membership, Recipient, RecipientKey},
};

const FACTS: TableDefinition<&str, &[u8]> = TableDefinition::new("facts.2");
const MEMBERS: TableDefinition<&str, &[u8]> = TableDefinition::new("members.1");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta.3");
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
    /// The tables as of the last commit. Beginning to read costs more than reading.
    tables: ArcSwap<Tables>,
    path: PathBuf,
    damaged: AtomicBool,
}

#[derive(Debug)]
struct Tables {
    facts: Facts,
    members: Facts,
}

type Facts = ReadOnlyTable<&'static str, &'static [u8]>;

/// A part of the members of a topic, in the order of their keys.
#[derive(Debug, Clone, Copy)]
pub struct Range<'a> {
    /// The tenant.
    pub app: &'a AppId,
    /// Which topic.
    pub topic: &'a Topic,
    /// Only those behind this one, as its recipient is written in keys.
    pub after: Option<&'a str>,
    /// Only those up to this one.
    pub up_to: Option<&'a str>,
    /// Only those who were members then.
    pub as_of: Timestamp,
}

/// One change to apply: the fact's key, its revision, and what became of it.
pub type Change = (String, u64, Became);

/// What became of a fact.
#[derive(Debug, Clone)]
pub enum Became {
    /// It is so now.
    Fact(Vec<u8>),
    /// It was removed.
    Nothing,
    /// It went along when its recipient moved. Broadcasts accepted before this are still this region's to send.
    TakenAlong(Timestamp),
}

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
            tables: ArcSwap::from_pointee(tables(&database)?),
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
        self.read(|tables| read(&tables.facts, key))
    }

    /// Hands the members in `range` to `each`, in the order of their keys and as recipients are written there, until it
    /// breaks off.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn members(&self, range: Range<'_>, each: impl FnMut(&str) -> ControlFlow<()>) -> Result<(), StoreError> {
        self.read(|tables| each_member(&tables.members, range, each))
    }

    fn read<T>(&self, read: impl FnOnce(&Tables) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let tables = self.inner.tables.load();
        // redb panics on some kinds of damage; a damaged copy must not take the worker down.
        let read = catch_unwind(AssertUnwindSafe(|| read(&tables))).unwrap_or(Err(StoreError::Damaged));
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
            let mut joined = Vec::new();
            for (key, revision, change) in changes {
                if let Some(member) = member_key(&key) {
                    joined.push((member, Joining::of(&change)));
                }
                match change {
                    Became::Fact(fact) => {
                        value.clear();
                        value.extend_from_slice(&[0; 4]);
                        value.extend_from_slice(&revision.to_be_bytes());
                        value.extend_from_slice(&fact);
                        let sum = checksum(&key, &value[4..]);
                        value[..4].copy_from_slice(&sum);
                        facts.insert(key.as_str(), value.as_slice())?;
                    }
                    Became::Nothing | Became::TakenAlong(_) => {
                        facts.remove(key.as_str())?;
                    }
                }
            }
            index(&mut transaction.open_table(MEMBERS)?, joined)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert(SEQUENCE, sequence.cast_signed())?;
            meta.insert(CREATED_AT, created_at)?;
        }
        transaction.commit()?;
        self.inner.tables.store(tables(&database)?.into());
        Ok(())
    }

    /// Facts held.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn facts(&self) -> Result<u64, StoreError> {
        Ok(self.inner.tables.load().facts.len()?)
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
        self.inner.tables.store(tables(&database)?.into());
        self.inner.database.store(database.into());
        self.inner.damaged.store(false, Ordering::Relaxed);
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let database = Database::builder().set_cache_size(64 << 20).create(path)?;
    // Also proves that the file can be read and written.
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(FACTS)?;
    transaction.open_table(MEMBERS)?;
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

fn tables(database: &Database) -> Result<Tables, StoreError> {
    let transaction = database.begin_read()?;
    Ok(Tables {
        facts: transaction.open_table(FACTS)?,
        members: transaction.open_table(MEMBERS)?,
    })
}

/// The place in the index of the fact under `key`, if that is a membership: `<app>.<recipient>.topic.<topic>`.
fn member_key(key: &str) -> Option<String> {
    let mut parts = key.splitn(4, '.');
    let (app, recipient, kind, topic) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (kind == "topic").then(|| format!("{app}.{topic}.{recipient}"))
}

/// What happened to a membership. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
enum Joining {
    Joined(i64),
    Left,
    Moved(i64),
}

impl Joining {
    fn of(change: &Became) -> Self {
        match change {
            Became::Fact(fact) => since(fact).map_or(Self::Left, Self::Joined),
            Became::Nothing => Self::Left,
            Became::TakenAlong(moved) => Self::Moved(moved.as_millisecond()),
        }
    }
}

/// A line of the index.
#[derive(Debug, Clone, Copy)]
struct Member {
    since: i64,
    /// Whose recipient moved away is a member for what was accepted before this.
    until: Option<i64>,
}

impl Member {
    fn read(key: &str, value: &[u8]) -> Result<Self, StoreError> {
        let (sum, times) = value.split_first_chunk().ok_or(StoreError::Damaged)?;
        if *sum != checksum(key, times) {
            return Err(StoreError::Damaged);
        }
        let (since, until) = times.split_first_chunk().ok_or(StoreError::Damaged)?;
        let until = match until {
            [] => None,
            until => Some(i64::from_be_bytes(until.try_into().map_err(|_| StoreError::Damaged)?)),
        };
        Ok(Self {
            since: i64::from_be_bytes(*since),
            until,
        })
    }

    fn write(self, key: &str) -> Vec<u8> {
        let mut times = self.since.to_be_bytes().to_vec();
        times.extend(self.until.iter().flat_map(|until| until.to_be_bytes()));
        [&checksum(key, &times)[..], &times].concat()
    }

    fn was_one(self, as_of: i64) -> bool {
        self.since <= as_of && self.until.is_none_or(|until| as_of < until)
    }
}

/// Since when a fact says that its recipient is a member, in milliseconds since 1970.
fn since(fact: &[u8]) -> Option<i64> {
    let membership: Result<Membership, _> = serde_json::from_slice(fact);
    if membership.is_err() {
        tracing::error!("a membership cannot be read; its recipient is not taken for a member");
    }
    Some(membership.ok()?.begins().as_millisecond())
}

/// Who joined and who left.
fn index(members: &mut Table<'_, &str, &[u8]>, mut joined: Vec<(String, Joining)>) -> Result<(), StoreError> {
    // Stable, as for the facts.
    joined.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, change) in joined {
        let before = || {
            let line = members.get(key.as_str())?;
            line.map(|line| Member::read(&key, line.value())).transpose()
        };
        let member = match change {
            Joining::Joined(since) => {
                let still = before()?.filter(|before| before.until.is_none());
                Some(Member {
                    since: still.map_or(since, |still| still.since.min(since)),
                    until: None,
                })
            }
            Joining::Left => None,
            Joining::Moved(until) => before()?.map(|before| Member {
                until: Some(until),
                ..before
            }),
        };
        match member {
            Some(member) => members.insert(key.as_str(), member.write(&key).as_slice())?,
            None => members.remove(key.as_str())?,
        };
    }
    Ok(())
}

fn each_member(
    members: &Facts,
    range: Range<'_>,
    mut each: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let path = format!("{}.{}", range.app, range.topic);
    let key = |recipient: &str| format!("{path}.{recipient}");
    // The character after the dot: everything below the topic sorts before it.
    let (all, beyond) = (key(""), format!("{path}/"));
    let (after, up_to) = (range.after.map(key), range.up_to.map(key));
    let from = after.as_deref().map_or(Bound::Included(all.as_str()), Bound::Excluded);
    let to = up_to
        .as_deref()
        .map_or(Bound::Excluded(beyond.as_str()), Bound::Included);
    let as_of = range.as_of.as_millisecond();
    for member in members.range::<&str>((from, to))? {
        let (key, value) = member?;
        let key = key.value();
        if !Member::read(key, value.value())?.was_one(as_of) {
            continue;
        }
        let recipient = key.strip_prefix(all.as_str()).ok_or(StoreError::Damaged)?;
        if each(recipient).is_break() {
            break;
        }
    }
    Ok(())
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
    // Topics sort last, and whose members are wanted is asked of the index.
    let to = format!("{from}topic.");
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
            changes.push((key, 1, Became::Fact(value)));
        }
        let (removed, _) = preferences("ann-2");
        changes.push((removed, 2, Became::Nothing));
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
            .apply(vec![(fact, 1, Became::Fact(value))], 1, 7)
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
        store.apply(vec![(fact.clone(), 1, Became::Fact(value))], 1, 7).unwrap();
        let database = store.inner.database.load();
        let transaction = database.begin_write().unwrap();
        {
            let mut facts = transaction.open_table(FACTS).unwrap();
            let mut value = facts.get(fact.as_str()).unwrap().unwrap().value().to_vec();
            *value.last_mut().unwrap() ^= 1;
            facts.insert(fact.as_str(), value.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        store.inner.tables.store(tables(&database).unwrap().into());
        assert!(matches!(store.recipient(&key("ann")), Err(StoreError::Damaged)));
        assert!(store.is_damaged());
    }

    fn join(recipient: &str, topic: &str, ms: i64) -> Change {
        arrive(recipient, topic, ms, None)
    }

    fn arrive(recipient: &str, topic: &str, ms: i64, moved: Option<i64>) -> Change {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let membership = Membership {
            since: at(ms),
            moved: moved.map(at),
        };
        let fact = Fact::Topic(topic.parse().unwrap(), membership);
        let key = subject::fact_key(&key(recipient), fact.name());
        (key, 1, Became::Fact(fact.encode()))
    }

    fn leave(recipient: &str, topic: &str) -> Change {
        let (key, revision, _) = join(recipient, topic, 0);
        (key, revision, Became::Nothing)
    }

    fn depart(recipient: &str, topic: &str, ms: i64) -> Change {
        let (key, revision, _) = join(recipient, topic, 0);
        (
            key,
            revision,
            Became::TakenAlong(Timestamp::from_millisecond(ms).unwrap()),
        )
    }

    fn members(store: &Store, topic: &str, after: Option<&str>, up_to: Option<&str>, ms: i64) -> Vec<String> {
        let range = Range {
            app: &"shop".parse().unwrap(),
            topic: &topic.parse().unwrap(),
            after,
            up_to,
            as_of: Timestamp::from_millisecond(ms).unwrap(),
        };
        let mut found = Vec::new();
        let each = |member: &str| {
            found.push(member.to_owned());
            ControlFlow::Continue(())
        };
        store.members(range, each).unwrap();
        found
    }

    #[test]
    fn members_are_found_by_topic_range_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache.redb")).unwrap();
        let changes = vec![
            join("ann", "news", 10),
            join("bob", "news", 20),
            join("ä.b", "news", 10),
            join("eve", "news-2", 10),
            join("zoe", "new", 10),
            join("topic", "topic", 10),
        ];
        store.apply(changes, 1, 7).unwrap();
        assert_eq!(members(&store, "news", None, None, 10), ["=C3=A4=2Eb", "ann"]);
        assert_eq!(members(&store, "news", None, None, 20), ["=C3=A4=2Eb", "ann", "bob"]);
        assert_eq!(members(&store, "news", Some("=C3=A4=2Eb"), Some("ann"), 20), ["ann"]);
        assert_eq!(members(&store, "news", Some("ann"), None, 20), ["bob"]);
        assert_eq!(members(&store, "topic", None, None, 20), ["topic"]);
        assert!(members(&store, "other", None, None, 20).is_empty());
        assert_eq!(
            store.recipient(&key("ann")).unwrap(),
            Recipient::default(),
            "not read with the rest"
        );
    }

    #[test]
    fn who_joins_again_keeps_the_time_unless_who_left() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache.redb")).unwrap();
        store
            .apply(vec![join("ann", "news", 10), join("bob", "news", 10)], 1, 7)
            .unwrap();
        let changes = vec![join("ann", "news", 30), leave("bob", "news"), join("bob", "news", 30)];
        store.apply(changes, 2, 7).unwrap();
        assert_eq!(members(&store, "news", None, None, 20), ["ann"]);
        assert_eq!(members(&store, "news", None, None, 30), ["ann", "bob"]);
        store.apply(vec![leave("ann", "news")], 3, 7).unwrap();
        assert_eq!(members(&store, "news", None, None, 30), ["bob"]);
    }

    #[test]
    fn every_broadcast_is_for_one_of_the_homes_of_who_moves() {
        let folder = tempfile::tempdir().unwrap();
        let store = |name: &str| Store::open(&folder.path().join(name)).unwrap();
        let (from, to) = (store("from"), store("to"));
        from.apply(vec![join("ann", "news", 10), join("bob", "news", 10)], 1, 7)
            .unwrap();
        to.apply(vec![arrive("ann", "news", 10, Some(30))], 1, 7).unwrap();
        from.apply(vec![depart("ann", "news", 30), depart("eve", "news", 30)], 2, 7)
            .unwrap();
        for (as_of, there, here) in [(9, "", ""), (29, "ann bob", ""), (30, "bob", "ann"), (99, "bob", "ann")] {
            assert_eq!(members(&from, "news", None, None, as_of).join(" "), there, "{as_of}");
            assert_eq!(members(&to, "news", None, None, as_of).join(" "), here, "{as_of}");
        }
        from.apply(vec![arrive("ann", "news", 10, Some(50)), leave("bob", "news")], 3, 7)
            .unwrap();
        assert_eq!(members(&from, "news", None, None, 49), [""; 0]);
        assert_eq!(members(&from, "news", None, None, 50), ["ann"]);
    }

    #[test]
    fn a_store_can_be_replaced_while_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache.redb")).unwrap();
        let (fact, value) = preferences("ann");
        store.apply(vec![(fact, 1, Became::Fact(value))], 1, 7).unwrap();
        store.begin_anew().unwrap();
        assert_eq!(store.standing().unwrap(), None);
        drop(store);
        assert_eq!(
            Store::open(&folder.path().join("cache.redb")).unwrap().facts().unwrap(),
            0
        );
    }
}
