//! The ledger's file.
//!
//! Layout: `entries` is a log: a number to the packed records of one group commit, 43 bytes each, behind 8 bytes of
//! time. Appending in order is the cheapest thing a B-tree can do (3 µs for a random row, 0.1 µs for a packed record).
//! `outgoing` holds the receipts of this worker that are not yet known to be in the stream. `meta` holds the name this
//! file writes under, the number of the last entry that was pruned, and the last sequence applied of the stream it follows.
//!
//! A group commit is one durable transaction. A file that cannot be opened is held aside and reported: it is evidence,
//! and what it knew comes back from the stream of receipts.

use std::{
    panic::catch_unwind,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use shared::{
    id::{AddressId, JobId},
    receipt::State,
};
use uuid::Uuid;

use super::index;

const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
const OUTGOING: TableDefinition<u64, (&str, &[u8])> = TableDefinition::new("outgoing");
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
const WRITER: &str = "writer";
const FOLLOWED: &str = "followed";
const PRUNED: &str = "pruned";

const ENTRY_HEAD_BYTES: usize = 8;
const RECORD_BYTES: usize = 43;

/// What one attempt of one delivery came to, without what only people want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The job.
    pub job: JobId,
    /// The address; `None` if the job was settled without one.
    pub address: Option<AddressId>,
    /// Number of the attempt.
    pub attempt: u32,
    /// What it came to.
    pub state: State,
}

/// A message with receipts that the stream is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number; with the writer's name it is the message id.
    pub number: u64,
    /// Where it goes.
    pub subject: String,
    /// Its body.
    pub payload: bytes::Bytes,
}

/// Where following the stream of receipts stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Followed {
    /// Last sequence applied.
    pub sequence: u64,
    /// When the stream was created, in milliseconds since 1970.
    pub created_at: i64,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened, read or written.
    #[error("ledger: {0}")]
    Redb(Box<redb::Error>),
    /// The file could not be opened again after a failed write.
    #[error("ledger: closed")]
    Closed,
    /// The file holds something that is no record.
    #[error("ledger: damaged")]
    Damaged,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

/// The file.
#[derive(Debug)]
pub struct Store {
    /// Absent while it could not be opened again.
    database: RwLock<Option<Database>>,
    path: PathBuf,
    writer: String,
}

/// What one group commit writes.
#[derive(Debug, Default)]
pub struct Commit {
    /// The records, with the entry that spoke of the same job before.
    pub records: Vec<(Record, Option<u64>)>,
    /// Receipts to be published.
    pub outgoing: Vec<Outgoing>,
    /// Numbers of receipts that are in the stream by now.
    pub sent: Vec<u64>,
    /// How far the stream was followed, if further than before.
    pub followed: Option<Followed>,
}

impl Store {
    /// Opens the ledger at `path`, or begins one written under `worker` and a random suffix. A damaged file is held
    /// aside; its path is returned.
    ///
    /// # Errors
    /// When not even a new file can be written.
    pub fn open(path: &Path, worker: &str, random: u32) -> Result<(Self, Option<PathBuf>), StoreError> {
        match catch_unwind(|| Self::open_file(path, worker, random)).unwrap_or(Err(StoreError::Damaged)) {
            Ok(store) => Ok((store, None)),
            // A disk that is full or not writable says nothing about the file.
            Err(StoreError::Redb(error)) if is_of_the_disk(&error) => Err(StoreError::Redb(error)),
            Err(error) => {
                let aside = path.with_extension(format!("damaged-{random:08x}"));
                tracing::error!(%error, aside = %aside.display(), "ledger is damaged; held aside, rebuilding from receipts");
                std::fs::rename(path, &aside).map_err(|error| StoreError::Redb(Box::new(redb::Error::Io(error))))?;
                Ok((Self::open_file(path, worker, random)?, Some(aside)))
            }
        }
    }

    fn open_file(path: &Path, worker: &str, random: u32) -> Result<Self, StoreError> {
        let mut database = create(path)?;
        // Reads do not look at checksums; a record with a wrong bit would only be one that is not found.
        if !database.check_integrity()? {
            return Err(StoreError::Damaged);
        }
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        let writer = {
            transaction.open_table(ENTRIES)?;
            transaction.open_table(OUTGOING)?;
            let mut meta = transaction.open_table(META)?;
            let known = meta.get(WRITER)?.map(|writer| writer.value().to_owned());
            let writer = known.unwrap_or_else(|| format!("{worker}-{random:08x}"));
            meta.insert(WRITER, writer.as_str())?;
            writer
        };
        transaction.commit()?;
        Ok(Self {
            database: RwLock::new(Some(database)),
            path: path.to_owned(),
            writer,
        })
    }

    /// Closes the file and opens it again: after a failed write redb refuses all others.
    ///
    /// # Errors
    /// When it still cannot be written. Then nothing can be read either, and jobs wait.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Two at a time are refused.
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

    /// The name under which this file's receipts are published. A new file has a new name.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// How far the stream of receipts was followed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn followed(&self) -> Result<Followed, StoreError> {
        self.with(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            let text = meta.get(FOLLOWED)?;
            let parsed = text.as_ref().and_then(|text| {
                let (sequence, created_at) = text.value().split_once('@')?;
                Some(Followed {
                    sequence: sequence.parse().ok()?,
                    created_at: created_at.parse().ok()?,
                })
            });
            Ok(parsed.unwrap_or_default())
        })
    }

    /// The highest number that an entry ever had, pruned ones included: ids of messages are made of it. 0 if there was none.
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

    /// Receipts not yet known to be in the stream, oldest first.
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
                    number: number.value(),
                    subject: subject.to_owned(),
                    payload: payload.to_vec().into(),
                });
            }
            Ok(all)
        })
    }

    /// Writes one group commit as entry `number`, at `now` (milliseconds since 1970). Blocks for a disk write.
    ///
    /// # Errors
    /// When the file cannot be written; nothing was.
    pub fn commit(&self, number: u64, now: i64, commit: &Commit) -> Result<(), StoreError> {
        self.with(|database| write(database, number, now, commit))
    }

    /// The records of `job` in entry `number`, and the entry that spoke of it before.
    pub(super) fn records_of(&self, number: u64, job: JobId) -> Result<(Vec<Record>, Option<u64>), StoreError> {
        let entry = self.entries(|entries| Ok(entries.get_owned(number)?))?;
        let Some(entry) = entry else {
            return Ok((Vec::new(), None));
        };
        let mut earlier = None;
        let mut found = Vec::new();
        for packed in records(entry.value())? {
            let (record, before) = unpack(packed)?;
            // Whoever shares the index's key shares the chain.
            if index::key(record.job) == index::key(job) {
                earlier = before.filter(|before| *before < number).or(earlier);
            }
            if record.job == job {
                found.push(record);
            }
        }
        Ok((found, earlier))
    }

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

    /// Removes entries from before `cutoff` (milliseconds since 1970), at most a thousand; returns the jobs they spoke of.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn prune(&self, cutoff: i64) -> Result<Vec<(JobId, u64)>, StoreError> {
        self.with(|database| {
            let mut forgotten = Vec::new();
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut entries = transaction.open_table(ENTRIES)?;
                let mut old = Vec::new();
                for row in entries.iter()?.take(1000) {
                    let (number, entry) = row?;
                    let (time, _) = entry.value().split_first_chunk().ok_or(StoreError::Damaged)?;
                    if i64::from_be_bytes(*time) >= cutoff {
                        break;
                    }
                    for packed in records(entry.value())? {
                        forgotten.push((unpack(packed)?.0.job, number.value()));
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
            Ok(forgotten)
        })
    }
}

fn create(path: &Path) -> Result<Database, StoreError> {
    Ok(Database::builder().set_cache_size(8 << 20).create(path)?)
}

/// Whether an error is of the disk and not of what the file holds.
fn is_of_the_disk(error: &redb::Error) -> bool {
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
        if let Some(Followed { sequence, created_at }) = commit.followed {
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
    for (record, before) in records {
        packed.extend_from_slice(record.job.0.as_bytes());
        packed.extend_from_slice(record.address.map_or(Uuid::nil(), |address| address.0).as_bytes());
        packed.extend_from_slice(&before.unwrap_or(0).to_be_bytes());
        packed.extend_from_slice(&u16::try_from(record.attempt).unwrap_or(u16::MAX).to_be_bytes());
        packed.push(code(record.state));
    }
    packed
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
    let before = u64::from_be_bytes(packed[32..40].try_into().map_err(|_| StoreError::Damaged)?);
    let record = Record {
        job: JobId(uuid(0)?),
        address: (!address.is_nil()).then_some(AddressId(address)),
        attempt: u16::from_be_bytes([packed[40], packed[41]]).into(),
        state: state(packed[42])?,
    };
    Ok((record, (before != 0).then_some(before)))
}

/// The byte of a state in the file. Never change one: files outlive versions.
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
    }
}

fn state(byte: u8) -> Result<State, StoreError> {
    State::ALL
        .iter()
        .copied()
        .find(|state| code(*state) == byte)
        .ok_or(StoreError::Damaged)
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
        fn records_are_read_as_they_were_written(job: u128, address: u128, attempt in 0u32..65_536, state in 0usize..State::ALL.len(), before: u64) {
            let written = record(job, address, attempt, State::ALL[state]);
            let before = (before != 0).then_some(before);
            let packed = pack(1, &[(written, before)]);
            let read: Vec<_> = records(&packed).unwrap().map(|packed| unpack(packed).unwrap()).collect();
            prop_assert_eq!(read, vec![(written, before)]);
        }

        #[test]
        fn no_entry_makes_it_panic(entry in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(found) = records(&entry) {
                for packed in found {
                    drop(unpack(packed));
                }
            }
        }
    }

    #[test]
    fn what_is_not_sent_survives_and_what_is_sent_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let outgoing = |number| Outgoing {
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
            store.writer().to_owned()
        };
        let (store, _) = Store::open(&path, "w", 2).unwrap();
        assert_eq!(store.outgoing().unwrap(), vec![outgoing(2)]);
        assert_eq!(store.writer(), writer, "the same file writes under the same name");
    }

    #[test]
    fn a_damaged_file_is_held_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        std::fs::write(&path, b"damage").unwrap();
        let (_, aside) = Store::open(&path, "w", 1).unwrap();
        assert_eq!(std::fs::read(aside.unwrap()).unwrap(), b"damage");
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
        // All others sort before it, next to it: every commit frees the page that it was read from.
        commit(u64::MAX);
        let read = JobId(Uuid::from_u128(u64::MAX.into()));
        std::thread::scope(|threads| {
            let writing = threads.spawn(|| (1..2000).for_each(commit));
            while !writing.is_finished() {
                assert_eq!(store.records_of(u64::MAX, read).unwrap().0.len(), 1);
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
        assert!(store.records_of(1, JobId(Uuid::from_u128(1))).unwrap().0.is_empty());
    }
}
