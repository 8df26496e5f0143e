//! Facts in redb.
//!
//! The file has three tables:
//!
//! - `facts` maps `<app>.<recipient>.<name>`, the key in the region's bucket, to a 4-byte checksum, an 8-byte revision
//!   (the sequence in the bucket's stream, big endian) and the fact as JSON. The checksum covers the key, the revision
//!   and the JSON: redb does not verify its own checksums when it reads, and one flipped bit in a token may address
//!   another device. The JSON of an address is sealed under its key in the bucket, so that the file alone reveals no token.
//!   All facts of a recipient are adjacent, so one short range read serves a job.
//! - `members` is an index of the topics. It maps `<app>.<topic>.<recipient>` to a 4-byte checksum and the time of
//!   joining (8 bytes, milliseconds since 1970, big endian). A recipient who joins again without leaving keeps the first
//!   time: many applications subscribe again at every start, and a broadcast in progress must not lose those recipients. A
//!   recipient who moved away keeps the row, with the time of the move in 8 more bytes, until they return or the file is
//!   refilled: this region forwards the broadcasts that were accepted before the move.
//! - `meta` holds the last applied sequence and the time when the bucket was created. With a new version in a table's name
//!   every worker replaces its file, as nothing of a former format may remain in it; change it together with what is filled.
//!
//! A batch of changes and the sequence that it reaches are one transaction. After a crash the file is at an earlier
//! sequence, and following resumes there. When something cannot be read, the copy is worthless: the store replaces the
//! file and is refilled.
//!
//! Every read names the position that the copy must have reached, and fails if it has not.

use std::{
    borrow::Cow,
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
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    TableHandle,
};
use shared::{
    id::{AppId, Topic},
    nats::subject,
    recipient::{Fact, FactName, Membership, Recipient, RecipientKey},
    seal::Vault,
};
use tokio::sync::watch;

use crate::private_file;

const FACTS: TableDefinition<&str, &[u8]> = TableDefinition::new("facts.3");
const MEMBERS: TableDefinition<&str, &[u8]> = TableDefinition::new("members.1");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta.4");
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
    /// The tables as of the last commit. Opening a read transaction costs more than the read itself.
    tables: ArcSwap<Tables>,
    /// The position of `tables`, for those who wait.
    applied: watch::Sender<Position>,
    path: PathBuf,
    /// Seals addresses.
    vault: Vault,
    damaged: AtomicBool,
}

#[derive(Debug)]
struct Tables {
    facts: Facts,
    members: Facts,
    position: Position,
}

type Facts = ReadOnlyTable<&'static str, &'static [u8]>;

/// A position in the region's bucket. The default is the position of an empty file, and none reaches it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// The sequence of a change in the bucket's stream.
    pub sequence: u64,
    /// When the bucket was created, in milliseconds since 1970: a recreated bucket counts anew.
    pub created_at_ms: i64,
}

impl Position {
    /// Whether a copy at this position contains all that the bucket contained at `other`.
    pub fn reaches(self, other: Self) -> bool {
        other != Self::default() && self.created_at_ms == other.created_at_ms && self.sequence >= other.sequence
    }
}

/// A range of a topic's members, in key order.
#[derive(Debug, Clone, Copy)]
pub struct Range<'a> {
    /// The app that owns the topic.
    pub app: &'a AppId,
    /// The topic.
    pub topic: &'a Topic,
    /// Excludes this recipient and all before, escaped as in keys. `None` starts with the first.
    pub after: Option<&'a str>,
    /// The last recipient to include, escaped as in keys. `None` ends with the last.
    pub up_to: Option<&'a str>,
    /// Includes only recipients who were members at this time.
    pub as_of: Timestamp,
}

/// One change to apply to the cache.
#[derive(Debug, Clone)]
pub struct Change {
    /// The fact's key in the region's bucket: `<app>.<recipient>.<name>`.
    pub key: String,
    /// The sequence of the change in the bucket's stream.
    pub revision: u64,
    /// What to do with the fact.
    pub action: Action,
}

/// What a change does with a fact.
#[derive(Debug, Clone)]
pub enum Action {
    /// Stores the fact, which is JSON, in place of any older value.
    Put(Vec<u8>),
    /// Removes the fact.
    Remove,
    /// Removes the fact because its recipient moved to another region at this time. This region still sends the
    /// broadcasts that were accepted before.
    MoveAway(Timestamp),
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened, read or written.
    #[error("cache: {0}")]
    Redb(Box<redb::Error>),
    /// A checksum does not match, a row is not a fact, or redb panicked.
    #[error("cache: damaged")]
    Damaged,
    /// A former version wrote the file.
    #[error("cache: of a former format")]
    Former,
    /// A newer version wrote a fact that this one cannot read. The file is not damaged.
    #[error("cache: a fact of a newer version")]
    Newer,
    /// The file has not reached the position that the reader needs. It is not damaged.
    #[error("cache: behind its bucket")]
    Behind,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

impl Store {
    /// Opens the cache at `path`, whose addresses `vault` seals. Creates an empty one if the file is missing, damaged or of a
    /// former format.
    ///
    /// # Errors
    /// When even a new file cannot be written.
    pub fn open(path: &Path, vault: Vault) -> Result<Self, StoreError> {
        let database = match unless_panics(|| open(path)) {
            Ok(database) => database,
            Err(error) => {
                if matches!(error, StoreError::Former) {
                    tracing::info!("the cache has a former format; it will be refilled");
                } else {
                    tracing::error!(%error, "cache is damaged; it will be refilled");
                }
                remove(path);
                open(path)?
            }
        };
        let tables = tables(&database)?;
        let inner = Inner {
            applied: watch::Sender::new(tables.position),
            tables: ArcSwap::from_pointee(tables),
            database: ArcSwap::from_pointee(database),
            path: path.to_owned(),
            vault,
            damaged: AtomicBool::new(false),
        };
        Ok(Self { inner: inner.into() })
    }

    /// All facts of a recipient except their topics; empty for an unknown recipient.
    ///
    /// # Errors
    /// When the file cannot be read, or has not reached `needed`; the caller then reads the region's bucket.
    pub fn recipient(&self, key: &RecipientKey, needed: Position) -> Result<Recipient, StoreError> {
        self.read(needed, |tables| read_recipient(&tables.facts, &self.inner.vault, key))
    }

    /// Calls `each` with every member in `range`, in key order and escaped as in keys, until it breaks.
    ///
    /// # Errors
    /// When the file cannot be read, or has not reached `needed`.
    pub fn members(
        &self,
        range: Range<'_>,
        needed: Position,
        each: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.read(needed, |tables| each_member(&tables.members, range, each))
    }

    /// Up to `limit` facts, each its key and its JSON, in the order of keys; those after the key `after`, if one is given.
    /// Whatever position the file has reached.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn facts_after(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.read(self.position(), |tables| {
            let rows = tables.facts.range::<&str>((from, Bound::Unbounded))?.take(limit);
            rows.map(|row| {
                let (key, value) = row?;
                let json = read_fact(&self.inner.vault, key.value(), value.value())?.1.into_owned();
                Ok((key.value().to_owned(), json))
            })
            .collect()
        })
    }

    /// The JSON of the fact under `key`, whatever position the file has reached.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn fact(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(self.position(), |tables| {
            let Some(value) = tables.facts.get(key)? else {
                return Ok(None);
            };
            let (_, json) = read_fact(&self.inner.vault, key, value.value())?;
            Ok(Some(json.into_owned()))
        })
    }

    fn read<T>(&self, needed: Position, read: impl FnOnce(&Tables) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let tables = self.inner.tables.load();
        if !tables.position.reaches(needed) {
            return Err(StoreError::Behind);
        }
        let read = unless_panics(|| read(&tables));
        if !matches!(read, Ok(_) | Err(StoreError::Newer)) {
            self.inner.damaged.store(true, Ordering::Relaxed);
        }
        read
    }

    /// The position up to which changes were applied.
    pub fn position(&self) -> Position {
        self.inner.tables.load().position
    }

    /// Waits until the file has reached `needed`.
    pub async fn reached(&self, needed: Position) {
        let mut applied = self.inner.applied.subscribe();
        // The sender lives as long as this store.
        drop(applied.wait_for(|position| position.reaches(needed)).await);
    }

    /// Applies changes in one transaction that reaches `position`. Blocks for a disk write.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing was applied.
    pub fn apply(&self, mut changes: Vec<Change>, position: Position) -> Result<(), StoreError> {
        // Sorted keys fill whole pages, which is 3 times faster than random order for a million facts. The sort is
        // stable, so the last change of a key stays last.
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        let database = self.inner.database.load();
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        {
            let mut facts = transaction.open_table(FACTS)?;
            let mut value = Vec::new();
            let mut memberships = Vec::new();
            for Change { key, revision, action } in changes {
                if let Some(member) = member_key(&key) {
                    memberships.push((member, MembershipChange::of(&action)));
                }
                match action {
                    Action::Put(fact) => {
                        value.clear();
                        value.extend_from_slice(&[0; 4]);
                        value.extend_from_slice(&revision.to_be_bytes());
                        if is_address(&key) {
                            value.extend_from_slice(&self.inner.vault.seal(key.as_bytes(), &fact));
                        } else {
                            value.extend_from_slice(&fact);
                        }
                        let sum = checksum(&key, &value[4..]);
                        value[..4].copy_from_slice(&sum);
                        facts.insert(key.as_str(), value.as_slice())?;
                    }
                    Action::Remove | Action::MoveAway(_) => {
                        facts.remove(key.as_str())?;
                    }
                }
            }
            index_members(&mut transaction.open_table(MEMBERS)?, memberships)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert(SEQUENCE, position.sequence.cast_signed())?;
            meta.insert(CREATED_AT, position.created_at_ms)?;
        }
        transaction.commit()?;
        self.show(tables(&database)?);
        Ok(())
    }

    /// Makes `tables` those that readers see.
    fn show(&self, tables: Tables) {
        let position = tables.position;
        self.inner.tables.store(tables.into());
        self.inner.applied.send_replace(position);
    }

    /// The number of facts in the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn facts(&self) -> Result<u64, StoreError> {
        Ok(self.inner.tables.load().facts.len()?)
    }

    /// Whether a read has failed since the file was opened or replaced.
    pub fn is_damaged(&self) -> bool {
        self.inner.damaged.load(Ordering::Relaxed)
    }

    /// Replaces the file with an empty one.
    ///
    /// # Errors
    /// When the new file cannot be written.
    pub fn reset(&self) -> Result<(), StoreError> {
        // Readers may still use the old file, so the new one is created beside it and then takes its name.
        let fresh = self.inner.path.with_extension("fresh");
        remove(&fresh);
        let database = open(&fresh)?;
        std::fs::rename(&fresh, &self.inner.path)
            .map_err(|error| StoreError::Redb(Box::new(redb::Error::Io(error))))?;
        self.show(tables(&database)?);
        self.inner.database.store(database.into());
        self.inner.damaged.store(false, Ordering::Relaxed);
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    private_file::tighten(path).map_err(redb::Error::Io)?;
    let database = Database::builder().set_cache_size(64 << 20).create(path)?;
    if database
        .begin_read()?
        .list_tables()?
        .any(|table| !is_current(table.name()))
    {
        return Err(StoreError::Former);
    }
    // This also shows that the file can be read and written.
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(FACTS)?;
    transaction.open_table(MEMBERS)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    Ok(database)
}

fn is_current(table: &str) -> bool {
    [FACTS.name(), MEMBERS.name(), META.name()].contains(&table)
}

/// Whether the fact under `key` is an address: `<app>.<recipient>.address.<address>`.
fn is_address(key: &str) -> bool {
    key.split('.').nth(2) == Some("address")
}

pub(super) fn checksum(key: &str, value: &[u8]) -> [u8; 4] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    sum.update(value);
    sum.finalize().to_be_bytes()
}

fn tables(database: &Database) -> Result<Tables, StoreError> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name: &str| Ok::<_, StoreError>(meta.get(name)?.map(|number| number.value()).unwrap_or_default());
    Ok(Tables {
        facts: transaction.open_table(FACTS)?,
        members: transaction.open_table(MEMBERS)?,
        position: Position {
            sequence: number(SEQUENCE)?.cast_unsigned(),
            created_at_ms: number(CREATED_AT)?,
        },
    })
}

/// The key in the index for the fact under `key`, if that is a membership: `<app>.<recipient>.topic.<topic>`.
fn member_key(key: &str) -> Option<String> {
    let mut parts = key.splitn(4, '.');
    let (app, recipient, kind, topic) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (kind == "topic").then(|| format!("{app}.{topic}.{recipient}"))
}

/// A change of one membership. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
enum MembershipChange {
    Joined(i64),
    Left,
    MovedAway(i64),
}

impl MembershipChange {
    fn of(action: &Action) -> Self {
        match action {
            Action::Put(fact) => member_since(fact).map_or(Self::Left, Self::Joined),
            Action::Remove => Self::Left,
            Action::MoveAway(moved) => Self::MovedAway(moved.as_millisecond()),
        }
    }
}

/// A row of the index. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Member {
    since: i64,
    /// When the recipient moved away. They remain a member for the broadcasts that were accepted before.
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

    fn was_member(self, as_of: i64) -> bool {
        self.since <= as_of && self.until.is_none_or(|until| as_of < until)
    }
}

/// The time from which a fact makes its recipient a member, in milliseconds since 1970.
fn member_since(fact: &[u8]) -> Option<i64> {
    let membership: Result<Membership, _> = serde_json::from_slice(fact);
    if membership.is_err() {
        tracing::error!("a membership cannot be read; its recipient is treated as no member");
    }
    Some(membership.ok()?.begins().as_millisecond())
}

/// Applies changes of memberships, each under its key in the index.
fn index_members(
    members: &mut Table<'_, &str, &[u8]>,
    mut changes: Vec<(String, MembershipChange)>,
) -> Result<(), StoreError> {
    // Stable, as for the facts.
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, change) in changes {
        let before = || {
            let row = members.get(key.as_str())?;
            row.map(|row| Member::read(&key, row.value())).transpose()
        };
        let member = match change {
            MembershipChange::Joined(since) => {
                let still = before()?.filter(|before| before.until.is_none());
                Some(Member {
                    since: still.map_or(since, |still| still.since.min(since)),
                    until: None,
                })
            }
            MembershipChange::Left => None,
            MembershipChange::MovedAway(until) => before()?.map(|before| Member {
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
    // `/` is the character after the dot, so every key below the topic sorts before this bound.
    let (first, beyond) = (key(""), format!("{path}/"));
    let (after, up_to) = (range.after.map(key), range.up_to.map(key));
    let from = after
        .as_deref()
        .map_or(Bound::Included(first.as_str()), Bound::Excluded);
    let to = up_to
        .as_deref()
        .map_or(Bound::Excluded(beyond.as_str()), Bound::Included);
    let as_of = range.as_of.as_millisecond();
    for member in members.range::<&str>((from, to))? {
        let (key, value) = member?;
        let key = key.value();
        if !Member::read(key, value.value())?.was_member(as_of) {
            continue;
        }
        let recipient = key.strip_prefix(first.as_str()).ok_or(StoreError::Damaged)?;
        if each(recipient).is_break() {
            break;
        }
    }
    Ok(())
}

/// Works on a file. redb panics on some kinds of damage; a damaged copy must not stop the worker.
pub(super) fn unless_panics<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(StoreError::Damaged))
}

pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "damaged cache cannot be removed");
    }
}

/// Revision and JSON of the fact under `key`, from its row.
fn read_fact<'a>(vault: &Vault, key: &str, row: &'a [u8]) -> Result<(u64, Cow<'a, [u8]>), StoreError> {
    let (sum, value) = row.split_first_chunk().ok_or(StoreError::Damaged)?;
    if *sum != checksum(key, value) {
        return Err(StoreError::Damaged);
    }
    let (revision, json) = value.split_first_chunk().ok_or(StoreError::Damaged)?;
    let json = if is_address(key) {
        // The mesh key was changed: nothing of the former file can be read.
        let opened = vault.open(key.as_bytes(), json);
        Cow::Owned(opened.map_err(|_| StoreError::Damaged)?)
    } else {
        Cow::Borrowed(json)
    };
    Ok((u64::from_be_bytes(*revision), json))
}

fn read_recipient(facts: &Facts, vault: &Vault, key: &RecipientKey) -> Result<Recipient, StoreError> {
    let mut from = subject::recipient_path(key);
    from.push('.');
    // Topics sort last and are left out: their members are looked up in the index.
    let to = format!("{from}topic.");
    let mut recipient = Recipient::default();
    for fact in facts.range(from.as_str()..to.as_str())? {
        let (row, value) = fact?;
        let (revision, json) = read_fact(vault, row.value(), value.value())?;
        let name = row
            .value()
            .strip_prefix(from.as_str())
            .and_then(subject::parse_fact_name);
        // A kind of fact that this version does not know.
        let Some(name) = name else { continue };
        // The checksum is right, so a newer version wrote a fact that cannot be read. A recipient can be reached without one
        // address, but not without consent and home.
        let is_address = matches!(name, FactName::Address(_));
        match Fact::decode(name, &json) {
            Ok(fact) => recipient.learn(fact, revision),
            Err(_) if is_address => recipient.is_incomplete = true,
            Err(_) => return Err(StoreError::Newer),
        }
    }
    Ok(recipient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::{preferences::Preferences, provider::Provider, testing};

    fn vault() -> Vault {
        testing::mesh_key().vault("cache")
    }

    fn open_in(folder: &tempfile::TempDir) -> Store {
        Store::open(&folder.path().join("cache.redb"), vault()).unwrap()
    }

    #[test]
    fn the_file_is_private_and_reveals_no_token() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.redb");
        std::fs::write(&path, b"").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let token = "c0ffee".repeat(10);
        let address = testing::address(&"shop".parse().unwrap(), Provider::Apns, &token);
        let fact = Fact::Address(address.clone());
        let ann = key("ann");
        let put = change(subject::fact_key(&ann, fact.name()), 1, Action::Put(fact.encode()));
        let store = open_in(&folder);
        store.apply(vec![put], at(1)).unwrap();
        assert_eq!(store.recipient(&ann, at(1)).unwrap().addresses, [(address, 1)]);
        drop(store);
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        // Nobody else's key opens it; the worker refills its file then.
        let other = shared::seal::MeshKey::from_base64("CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=").unwrap();
        let store = Store::open(&path, other.vault("cache")).unwrap();
        assert!(matches!(store.recipient(&ann, at(1)), Err(StoreError::Damaged)));
    }

    #[test]
    fn nothing_of_a_former_format_remains_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.redb");
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let former: TableDefinition<&str, &[u8]> = TableDefinition::new("facts.2");
            let mut table = transaction.open_table(former).unwrap();
            table
                .insert("shop.ann.address.1", &b"a token in clear text"[..])
                .unwrap();
        }
        transaction.commit().unwrap();
        drop(database);
        assert_eq!(open_in(&folder).facts().unwrap(), 0);
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(7).any(|part| part == b"a token"));
    }

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

    fn at(sequence: u64) -> Position {
        Position {
            sequence,
            created_at_ms: 7,
        }
    }

    fn change(key: String, revision: u64, action: Action) -> Change {
        Change { key, revision, action }
    }

    #[test]
    fn only_the_recipients_own_facts_are_read_and_the_last_change_wins() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(&folder);
        // Their keys are adjacent.
        let mut changes = Vec::new();
        for name in ["ann", "ann-2", "ann.b"] {
            let (key, value) = preferences(name);
            changes.push(change(key, 1, Action::Put(value)));
        }
        let (removed, _) = preferences("ann-2");
        changes.push(change(removed, 2, Action::Remove));
        store.apply(changes, at(2)).unwrap();
        assert!(
            !store
                .recipient(&key("ann"), store.position())
                .unwrap()
                .preferences
                .channels
                .is_empty()
        );
        assert_eq!(
            store.recipient(&key("ann-2"), store.position()).unwrap(),
            Recipient::default()
        );
        assert_eq!(store.position(), at(2));
        assert_eq!(store.facts().unwrap(), 2);
    }

    #[tokio::test]
    async fn a_reader_gets_nothing_older_than_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(&folder);
        let (fact, value) = preferences("ann");
        store.apply(vec![change(fact, 1, Action::Put(value))], at(1)).unwrap();
        assert!(store.recipient(&key("ann"), at(1)).is_ok());
        let recreated = Position {
            created_at_ms: 8,
            ..at(1)
        };
        for needed in [at(2), recreated, Position::default()] {
            let read = store.recipient(&key("ann"), needed);
            assert!(matches!(read, Err(StoreError::Behind)), "{needed:?}");
        }
        assert!(!store.is_damaged());
        let reached = tokio::spawn({
            let store = store.clone();
            async move { store.reached(at(2)).await }
        });
        store.apply(Vec::new(), at(2)).unwrap();
        reached.await.unwrap();
        assert!(store.recipient(&key("ann"), at(2)).is_ok());
        store.reset().unwrap();
        let read = store.recipient(&key("ann"), at(2));
        assert!(matches!(read, Err(StoreError::Behind)), "it is refilled");
    }

    #[test]
    fn a_damaged_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.redb");
        let (fact, value) = preferences("ann");
        Store::open(&path, vault())
            .unwrap()
            .apply(vec![change(fact, 1, Action::Put(value))], at(1))
            .unwrap();
        std::fs::write(&path, b"not a database").unwrap();
        let store = Store::open(&path, vault()).unwrap();
        assert_eq!(store.position(), Position::default());
        assert_eq!(store.facts().unwrap(), 0);
    }

    #[test]
    fn a_flipped_bit_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(&folder);
        let (fact, value) = preferences("ann");
        store
            .apply(vec![change(fact.clone(), 1, Action::Put(value))], at(1))
            .unwrap();
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
        assert!(matches!(
            store.recipient(&key("ann"), store.position()),
            Err(StoreError::Damaged)
        ));
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
        change(key, 1, Action::Put(fact.encode()))
    }

    fn leave(recipient: &str, topic: &str) -> Change {
        change(join(recipient, topic, 0).key, 1, Action::Remove)
    }

    fn depart(recipient: &str, topic: &str, ms: i64) -> Change {
        let moved = Timestamp::from_millisecond(ms).unwrap();
        change(join(recipient, topic, 0).key, 1, Action::MoveAway(moved))
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
        store.members(range, store.position(), each).unwrap();
        found
    }

    #[test]
    fn members_are_found_by_topic_range_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(&folder);
        let changes = vec![
            join("ann", "news", 10),
            join("bob", "news", 20),
            join("ä.b", "news", 10),
            join("eve", "news-2", 10),
            join("zoe", "new", 10),
            join("topic", "topic", 10),
        ];
        store.apply(changes, at(1)).unwrap();
        assert_eq!(members(&store, "news", None, None, 10), ["=C3=A4=2Eb", "ann"]);
        assert_eq!(members(&store, "news", None, None, 20), ["=C3=A4=2Eb", "ann", "bob"]);
        assert_eq!(members(&store, "news", Some("=C3=A4=2Eb"), Some("ann"), 20), ["ann"]);
        assert_eq!(members(&store, "news", Some("ann"), None, 20), ["bob"]);
        assert_eq!(members(&store, "topic", None, None, 20), ["topic"]);
        assert!(members(&store, "other", None, None, 20).is_empty());
        assert_eq!(
            store.recipient(&key("ann"), store.position()).unwrap(),
            Recipient::default(),
            "a recipient is read without their topics"
        );
    }

    #[test]
    fn joining_again_keeps_the_first_time_unless_the_recipient_left() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(&folder);
        store
            .apply(vec![join("ann", "news", 10), join("bob", "news", 10)], at(1))
            .unwrap();
        let changes = vec![join("ann", "news", 30), leave("bob", "news"), join("bob", "news", 30)];
        store.apply(changes, at(2)).unwrap();
        assert_eq!(members(&store, "news", None, None, 20), ["ann"]);
        assert_eq!(members(&store, "news", None, None, 30), ["ann", "bob"]);
        store.apply(vec![leave("ann", "news")], at(3)).unwrap();
        assert_eq!(members(&store, "news", None, None, 30), ["bob"]);
    }

    #[test]
    fn a_recipient_who_moves_is_a_member_in_exactly_one_of_their_homes() {
        let folder = tempfile::tempdir().unwrap();
        let store = |name: &str| Store::open(&folder.path().join(name), vault()).unwrap();
        let (from, to) = (store("from"), store("to"));
        from.apply(vec![join("ann", "news", 10), join("bob", "news", 10)], at(1))
            .unwrap();
        to.apply(vec![arrive("ann", "news", 10, Some(30))], at(1)).unwrap();
        from.apply(vec![depart("ann", "news", 30), depart("eve", "news", 30)], at(2))
            .unwrap();
        for (as_of, there, here) in [(9, "", ""), (29, "ann bob", ""), (30, "bob", "ann"), (99, "bob", "ann")] {
            assert_eq!(members(&from, "news", None, None, as_of).join(" "), there, "{as_of}");
            assert_eq!(members(&to, "news", None, None, as_of).join(" "), here, "{as_of}");
        }
        from.apply(vec![arrive("ann", "news", 10, Some(50)), leave("bob", "news")], at(3))
            .unwrap();
        assert_eq!(members(&from, "news", None, None, 49), [""; 0]);
        assert_eq!(members(&from, "news", None, None, 50), ["ann"]);
    }

    #[test]
    fn all_facts_are_read_in_parts_and_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(&folder);
        let address = testing::address(&"shop".parse().unwrap(), Provider::Apns, &"ab".repeat(32));
        let fact = Fact::Address(address);
        let mut expected = vec![(subject::fact_key(&key("ann"), fact.name()), fact.encode())];
        expected.extend(["ann", "bob"].map(preferences));
        expected.sort();
        let puts = expected.iter().cloned();
        let puts = puts.map(|(key, value)| change(key, 1, Action::Put(value))).collect();
        store.apply(puts, at(1)).unwrap();
        let mut found = store.facts_after(None, 2).unwrap();
        assert_eq!(found.len(), 2);
        found.extend(store.facts_after(Some(&found[1].0), 2).unwrap());
        assert_eq!(found, expected);
        assert_eq!(store.fact(&expected[0].0).unwrap().as_ref(), Some(&expected[0].1));
        assert_eq!(store.fact("shop.ann").unwrap(), None);
    }

    #[test]
    fn a_file_can_be_replaced_while_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(&folder);
        let (fact, value) = preferences("ann");
        store.apply(vec![change(fact, 1, Action::Put(value))], at(1)).unwrap();
        store.reset().unwrap();
        assert_eq!(store.position(), Position::default());
        drop(store);
        assert_eq!(open_in(&folder).facts().unwrap(), 0);
    }
}
