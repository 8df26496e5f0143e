//! The ledger's file.
//!
//! The file has three tables:
//!
//! - `entries` is a log. It maps a number to one group commit: 8 bytes of time, then the packed records, 43 bytes each.
//!   Appending in order is the cheapest operation of a B-tree (3 µs for a random row, 0.1 µs for a packed record).
//! - `outgoing` holds the receipts of this file that are not yet known to be in the stream.
//! - `meta` holds the writer's name of the last start, the number of the last pruned entry, and the position in the stream
//!   of receipts.
//!
//! **Each start writes under a new writer's name.** A folder may be set back to an older copy, or copied and used twice.
//! Then the same numbers are given to other receipts, and only the name tells them apart. A message that an earlier start
//! left unpublished keeps the name under which it was committed, which its batch contains.
//!
//! A group commit is one durable transaction. A file that cannot be opened is moved aside as evidence and reported; its
//! records are read again from the stream of receipts.

use std::{
    panic::catch_unwind,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Deserialize;
use shared::{
    id::{AddressId, JobId},
    receipt::{Receipt, State},
};
use uuid::Uuid;

use super::index;
use crate::private_file;

const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
const OUTGOING: TableDefinition<u64, (&str, &[u8])> = TableDefinition::new("outgoing");
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
const VERSION: &str = "version";
const WRITER: &str = "writer";
const FOLLOWED: &str = "followed";
const PRUNED: &str = "pruned";

/// The version of the file's format; 1 for a file without one. A new state needs no new version: a program that does not
/// know it gives the job back.
const CURRENT_VERSION: u32 = 1;

const ENTRY_HEAD_BYTES: usize = 8;
const RECORD_BYTES: usize = 43;

/// Bounds the time that one transaction of pruning keeps commits waiting.
const ENTRIES_PER_PRUNE: usize = 1000;

/// The state after one attempt of one delivery: a receipt without the details that only people need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The job.
    pub job: JobId,
    /// The address; `None` if the job ended as a whole.
    pub address: Option<AddressId>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The state after the attempt.
    pub state: State,
}

impl Record {
    pub(super) fn of(receipt: &Receipt) -> Self {
        Self {
            job: receipt.job,
            address: receipt.address,
            attempt: receipt.attempt,
            state: receipt.state,
        }
    }
}

/// A message with receipts, to be published to the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The writer under whose name it was committed.
    pub writer: Arc<str>,
    /// Unique in the file. With the writer's name it forms the message id.
    pub number: u64,
    /// The subject to publish to.
    pub subject: String,
    /// The batch of receipts as JSON.
    pub payload: bytes::Bytes,
}

/// A position in the stream of receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The last applied sequence.
    pub sequence: u64,
    /// When the stream was created, in milliseconds since 1970. Another stream counts from 1 again.
    pub created_at: i64,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened, read or written.
    #[error("ledger: {0}")]
    Redb(Box<redb::Error>),
    /// The file could not be reopened after a failed write.
    #[error("ledger: closed")]
    Closed,
    /// The file contains something that is not a record, or redb panicked.
    #[error("ledger: damaged")]
    Damaged,
    /// A newer version wrote the file. It is not changed, because it may hold receipts that are not published yet.
    #[error("ledger: the file has version {0}, this program reads {CURRENT_VERSION}; start the newer program again")]
    Newer(u32),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

/// The file.
#[derive(Debug)]
pub struct Store {
    /// `None` after a failed write, until the file could be reopened.
    database: RwLock<Option<Database>>,
    path: PathBuf,
    /// The name of this start.
    writer: Arc<str>,
    /// The name of the start before; that of this one for a new file.
    former: Arc<str>,
}

/// What one entry has about a job.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) records: Vec<Record>,
    /// When the entry was committed, in milliseconds since 1970.
    pub(super) at: i64,
    /// The previous entry that mentions the job.
    pub(super) earlier: Option<u64>,
}

/// The contents of one group commit.
#[derive(Debug, Default)]
pub struct Commit {
    /// The records, each with the previous entry that mentions the same job.
    pub records: Vec<(Record, Option<u64>)>,
    /// The messages to be published.
    pub outgoing: Vec<Outgoing>,
    /// The numbers of messages that the stream now contains.
    pub sent: Vec<u64>,
    /// The new position in the stream, if it was followed further.
    pub position: Option<Position>,
}

impl Store {
    /// Opens the ledger at `path`, or creates one. The writer of this start is named after `worker` with `random` as suffix.
    /// A damaged file is moved aside, and its new path is returned.
    ///
    /// # Errors
    /// When even a new file cannot be written, the disk refuses, or a newer version wrote the file.
    pub fn open(path: &Path, worker: &str, random: u32) -> Result<(Self, Option<PathBuf>), StoreError> {
        match catch_unwind(|| Self::open_file(path, worker, random)).unwrap_or(Err(StoreError::Damaged)) {
            Ok(store) => Ok((store, None)),
            Err(error @ StoreError::Newer(_)) => Err(error),
            // A disk that is full or not writable does not mean that the file is damaged.
            Err(StoreError::Redb(error)) if is_disk_error(&error) => Err(StoreError::Redb(error)),
            Err(error) => {
                let aside = path.with_extension(format!("damaged-{random:08x}"));
                tracing::error!(%error, aside = %aside.display(), "ledger is damaged; it was moved aside and is rebuilt from the receipts");
                std::fs::rename(path, &aside).map_err(|error| StoreError::Redb(Box::new(redb::Error::Io(error))))?;
                Ok((Self::open_file(path, worker, random)?, Some(aside)))
            }
        }
    }

    fn open_file(path: &Path, worker: &str, random: u32) -> Result<Self, StoreError> {
        let mut database = create(path)?;
        // Reads do not verify checksums: after a flipped bit a record would silently not be found.
        if !database.check_integrity()? {
            return Err(StoreError::Damaged);
        }
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        let writer = format!("{worker}-{random:08x}");
        let former = {
            transaction.open_table(ENTRIES)?;
            transaction.open_table(OUTGOING)?;
            let mut meta = transaction.open_table(META)?;
            let version = meta.get(VERSION)?.map_or(Ok(1), |text| text.value().parse());
            let version = version.map_err(|_| StoreError::Damaged)?;
            if version > CURRENT_VERSION {
                return Err(StoreError::Newer(version));
            }
            meta.insert(VERSION, CURRENT_VERSION.to_string().as_str())?;
            let former = meta.insert(WRITER, writer.as_str())?;
            former.map_or_else(|| writer.as_str().into(), |former| former.value().into())
        };
        transaction.commit()?;
        Ok(Self {
            database: RwLock::new(Some(database)),
            path: path.to_owned(),
            writer: writer.into(),
            former,
        })
    }

    /// Closes the file and opens it again: after a failed write redb refuses all further ones.
    ///
    /// # Errors
    /// When it still cannot be opened. Then nothing can be read either, and jobs wait.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // redb refuses to open a file twice at the same time.
        *database = None;
        *database = Some(create(&self.path)?);
        Ok(())
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(StoreError::Closed)?)
    }

    fn entries<T>(
        &self,
        work: impl FnOnce(ReadOnlyTable<u64, &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with(|database| work(database.begin_read()?.open_table(ENTRIES)?))
    }

    /// The name under which this start's receipts are published.
    pub fn writer(&self) -> &Arc<str> {
        &self.writer
    }

    /// The position that this file has reached in the stream of receipts; the default for a new file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn position(&self) -> Result<Position, StoreError> {
        self.with(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            let text = meta.get(FOLLOWED)?;
            let parsed = text.as_ref().and_then(|text| {
                let (sequence, created_at) = text.value().split_once('@')?;
                Some(Position {
                    sequence: sequence.parse().ok()?,
                    created_at: created_at.parse().ok()?,
                })
            });
            Ok(parsed.unwrap_or_default())
        })
    }

    /// The highest number that any entry has had, including pruned ones: message ids are derived from it. 0 for a new file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn last_number(&self) -> Result<u64, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            if let Some((number, _)) = transaction.open_table(ENTRIES)?.last()? {
                return Ok(number.value());
            }
            let pruned = transaction.open_table(META)?.get(PRUNED)?;
            pruned.map_or(Ok(0), |text| text.value().parse().map_err(|_| StoreError::Damaged))
        })
    }

    /// The messages that are not yet known to be in the stream, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn outgoing(&self) -> Result<Vec<Outgoing>, StoreError> {
        self.with(|database| {
            let outgoing = database.begin_read()?.open_table(OUTGOING)?;
            let mut all = Vec::new();
            for row in outgoing.iter()? {
                let (number, value) = row?;
                let (subject, payload) = value.value();
                all.push(Outgoing {
                    writer: self.writer_of(payload),
                    number: number.value(),
                    subject: subject.to_owned(),
                    payload: payload.to_vec().into(),
                });
            }
            Ok(all)
        })
    }

    /// The name in a batch of this file. A batch that cannot be read is of the start before.
    fn writer_of(&self, batch: &[u8]) -> Arc<str> {
        #[derive(Deserialize)]
        struct Written {
            writer: String,
        }
        match serde_json::from_slice(batch) {
            Ok(Written { writer }) if *writer == *self.writer => self.writer.clone(),
            Ok(Written { writer }) => writer.into(),
            Err(_) => self.former.clone(),
        }
    }

    /// Whether message `number` is not yet known to be in the stream.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn is_outgoing(&self, number: u64) -> Result<bool, StoreError> {
        self.with(|database| Ok(database.begin_read()?.open_table(OUTGOING)?.get(number)?.is_some()))
    }

    /// Writes one group commit as entry `number`, at `now` (milliseconds since 1970). Blocks for a disk write.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing was.
    pub fn commit(&self, number: u64, now: i64, commit: &Commit) -> Result<(), StoreError> {
        self.with(|database| write(database, number, now, commit))
    }

    /// The records of `job` in entry `number`. An entry that was pruned has none.
    pub(super) fn records_of(&self, number: u64, job: JobId) -> Result<Found, StoreError> {
        let entry = self.entries(|entries| Ok(entries.get_owned(number)?))?;
        let mut found = Found::default();
        let Some(entry) = entry else {
            return Ok(found);
        };
        found.at = committed_at(entry.value())?;
        for packed in records(entry.value())? {
            let (record, previous) = unpack(packed)?;
            // Jobs with the same key in the index share a chain of entries.
            if index::key(record.job) == index::key(job) {
                found.earlier = previous.filter(|previous| *previous < number).or(found.earlier);
            }
            if record.job == job {
                found.records.push(record);
            }
        }
        Ok(found)
    }

    /// Calls `each` with the job and the entry of every record, oldest first.
    pub(super) fn for_each_job(&self, mut each: impl FnMut(JobId, u64)) -> Result<(), StoreError> {
        self.entries(|entries| {
            for row in entries.iter()? {
                let (number, entry) = row?;
                for packed in records(entry.value())? {
                    each(unpack(packed)?.0.job, number.value());
                }
            }
            Ok(())
        })
    }

    /// Removes up to a thousand entries from before `cutoff` (milliseconds since 1970). Returns the job and the
    /// entry of every removed record.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn prune(&self, cutoff: i64) -> Result<Vec<(JobId, u64)>, StoreError> {
        self.with(|database| {
            let mut removed = Vec::new();
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut entries = transaction.open_table(ENTRIES)?;
                let mut old = Vec::new();
                for row in entries.iter()?.take(ENTRIES_PER_PRUNE) {
                    let (number, entry) = row?;
                    let (time, _) = entry.value().split_first_chunk().ok_or(StoreError::Damaged)?;
                    if i64::from_be_bytes(*time) >= cutoff {
                        break;
                    }
                    for packed in records(entry.value())? {
                        removed.push((unpack(packed)?.0.job, number.value()));
                    }
                    old.push(number.value());
                }
                for number in &old {
                    entries.remove(number)?;
                }
                if let Some(last) = old.last() {
                    transaction
                        .open_table(META)?
                        .insert(PRUNED, last.to_string().as_str())?;
                }
            }
            transaction.commit()?;
            Ok(removed)
        })
    }
}

fn create(path: &Path) -> Result<Database, StoreError> {
    private_file::tighten(path).map_err(redb::Error::Io)?;
    Ok(Database::builder().set_cache_size(8 << 20).create(path)?)
}

/// Whether the disk caused `error`, not the contents of the file.
fn is_disk_error(error: &redb::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let disk = [
        Kind::StorageFull,
        Kind::QuotaExceeded,
        Kind::PermissionDenied,
        Kind::ReadOnlyFilesystem,
    ];
    match error {
        redb::Error::Io(error) => disk.contains(&error.kind()),
        redb::Error::DatabaseAlreadyOpen => true,
        _ => false,
    }
}

fn write(database: &Database, number: u64, now: i64, commit: &Commit) -> Result<(), StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        if !commit.records.is_empty() {
            transaction
                .open_table(ENTRIES)?
                .insert(number, pack(now, &commit.records).as_slice())?;
        }
        let mut outgoing = transaction.open_table(OUTGOING)?;
        for sent in &commit.sent {
            outgoing.remove(sent)?;
        }
        for message in &commit.outgoing {
            outgoing.insert(message.number, (message.subject.as_str(), &*message.payload))?;
        }
        if let Some(Position { sequence, created_at }) = commit.position {
            transaction
                .open_table(META)?
                .insert(FOLLOWED, format!("{sequence}@{created_at}").as_str())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn pack(now: i64, records: &[(Record, Option<u64>)]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(ENTRY_HEAD_BYTES + records.len() * RECORD_BYTES);
    packed.extend_from_slice(&now.to_be_bytes());
    for (record, previous) in records {
        packed.extend_from_slice(record.job.0.as_bytes());
        packed.extend_from_slice(record.address.map_or(Uuid::nil(), |address| address.0).as_bytes());
        packed.extend_from_slice(&previous.unwrap_or(0).to_be_bytes());
        packed.extend_from_slice(&u16::try_from(record.attempt).unwrap_or(u16::MAX).to_be_bytes());
        packed.push(code(record.state));
    }
    packed
}

fn committed_at(entry: &[u8]) -> Result<i64, StoreError> {
    let at = entry.first_chunk().ok_or(StoreError::Damaged)?;
    Ok(i64::from_be_bytes(*at))
}

fn records(entry: &[u8]) -> Result<std::slice::ChunksExact<'_, u8>, StoreError> {
    let packed = entry.get(ENTRY_HEAD_BYTES..).ok_or(StoreError::Damaged)?;
    if packed.len() % RECORD_BYTES == 0 {
        Ok(packed.chunks_exact(RECORD_BYTES))
    } else {
        Err(StoreError::Damaged)
    }
}

fn unpack(packed: &[u8]) -> Result<(Record, Option<u64>), StoreError> {
    let uuid = |at: usize| Uuid::from_slice(&packed[at..at + 16]).map_err(|_| StoreError::Damaged);
    let address = uuid(16)?;
    let previous = u64::from_be_bytes(packed[32..40].try_into().map_err(|_| StoreError::Damaged)?);
    let record = Record {
        job: JobId(uuid(0)?),
        address: (!address.is_nil()).then_some(AddressId(address)),
        attempt: u16::from_be_bytes([packed[40], packed[41]]).into(),
        state: state(packed[42]),
    };
    Ok((record, (previous != 0).then_some(previous)))
}

/// The byte of a state in the file. Never change an existing one: files outlive versions.
const fn code(state: State) -> u8 {
    match state {
        State::Delivered => 1,
        State::Suppressed => 2,
        State::Expired => 3,
        State::Cancelled => 4,
        State::Rejected => 5,
        State::Dead => 6,
        State::Parked => 7,
        State::Unknown => 8,
        State::Attempting => 9,
        State::Expanded => 10,
        State::Deferred => 11,
        State::Unrecognized => u8::MAX,
    }
}

/// The state of `byte`; [`State::Unrecognized`] for a byte that a newer version wrote.
fn state(byte: u8) -> State {
    let known = State::ALL.iter().copied().find(|state| code(*state) == byte);
    known.unwrap_or(State::Unrecognized)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(job: u128, address: u128, attempt: u32, state: State) -> Record {
        Record {
            job: JobId(Uuid::from_u128(job)),
            address: (address != 0).then(|| AddressId(Uuid::from_u128(address))),
            attempt,
            state,
        }
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(job: u128, address: u128, attempt in 0u32..65_536, state in 0usize..State::ALL.len(), previous: u64) {
            let written = record(job, address, attempt, State::ALL[state]);
            let previous = (previous != 0).then_some(previous);
            let packed = pack(1, &[(written, previous)]);
            let read: Vec<_> = records(&packed).unwrap().map(|packed| unpack(packed).unwrap()).collect();
            prop_assert_eq!(read, vec![(written, previous)]);
        }

        #[test]
        fn no_entry_makes_reading_panic(entry in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(found) = records(&entry) {
                for packed in found {
                    drop(unpack(packed));
                }
            }
        }
    }

    #[test]
    fn unsent_messages_survive_a_restart_and_sent_ones_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let outgoing = |number| Outgoing {
            writer: "w-00000001".into(),
            number,
            subject: "a.subject".into(),
            payload: vec![1, 2].into(),
        };
        let writer = {
            let (store, aside) = Store::open(&path, "w", 1).unwrap();
            assert_eq!(aside, None);
            let commit = Commit {
                outgoing: vec![outgoing(1), outgoing(2)],
                ..Commit::default()
            };
            store.commit(1, 5, &commit).unwrap();
            store
                .commit(
                    2,
                    6,
                    &Commit {
                        sent: vec![1],
                        ..Commit::default()
                    },
                )
                .unwrap();
            store.writer().clone()
        };
        let (store, _) = Store::open(&path, "w", 2).unwrap();
        assert_eq!(
            store.outgoing().unwrap(),
            vec![outgoing(2)],
            "under the name of the start that committed it"
        );
        assert_ne!(store.writer(), &writer, "each start has a name of its own");
    }

    #[test]
    fn a_damaged_file_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        std::fs::write(&path, b"damage").unwrap();
        let (_, aside) = Store::open(&path, "w", 1).unwrap();
        assert_eq!(std::fs::read(aside.unwrap()).unwrap(), b"damage");
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let (store, _) = Store::open(&path, "w", 1).unwrap();
        store
            .with(|database| {
                let transaction = database.begin_write()?;
                transaction.open_table(META)?.insert(VERSION, "2")?;
                Ok(transaction.commit()?)
            })
            .unwrap();
        drop(store);
        assert!(matches!(Store::open(&path, "w", 2), Err(StoreError::Newer(2))));
        assert!(path.exists());
    }

    #[test]
    fn a_state_of_a_newer_version_is_unrecognized() {
        let mut packed = pack(1, &[(record(1, 2, 1, State::Delivered), None)]);
        *packed.last_mut().unwrap() = 200;
        let packed = records(&packed).unwrap().next().unwrap();
        assert_eq!(unpack(packed).unwrap().0.state, State::Unrecognized);
    }

    #[test]
    fn records_are_read_while_others_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("ledger.redb"), "w", 1).unwrap();
        let commit = |number: u64| {
            let records = vec![(record(number.into(), 9, 1, State::Delivered), None)];
            let commit = Commit {
                records,
                ..Commit::default()
            };
            store.commit(number, 1, &commit).unwrap();
        };
        // All other entries sort directly before this one, so every commit frees the page that it was read from.
        commit(u64::MAX);
        let read = JobId(Uuid::from_u128(u64::MAX.into()));
        std::thread::scope(|threads| {
            let writing = threads.spawn(|| (1..2000).for_each(commit));
            while !writing.is_finished() {
                assert_eq!(store.records_of(u64::MAX, read).unwrap().records.len(), 1);
            }
        });
    }

    #[test]
    fn old_entries_are_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("ledger.redb"), "w", 1).unwrap();
        for number in 1..=3u64 {
            let records = vec![(record(number.into(), 9, 1, State::Delivered), None)];
            store
                .commit(
                    number,
                    number.cast_signed() * 10,
                    &Commit {
                        records,
                        ..Commit::default()
                    },
                )
                .unwrap();
        }
        assert_eq!(store.prune(30).unwrap().len(), 2);
        assert_eq!(store.last_number().unwrap(), 3);
        assert!(
            store
                .records_of(1, JobId(Uuid::from_u128(1)))
                .unwrap()
                .records
                .is_empty()
        );
    }
}
