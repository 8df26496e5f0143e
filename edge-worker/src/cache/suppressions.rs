//! The suppression lists of all apps in redb, copied from the region's directory.
//!
//! The table maps `<app>.<id>` to a 4-byte checksum of the key and the rest, the time of the newest entry and the end of the
//! suppression (16 bytes each, nanoseconds since 1970, big endian; none if it was lifted). Of the entries of several regions the
//! newest is kept, also if the directory was lost and is followed from its first message again: nobody becomes reachable
//! because a stream lost what it knew.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use async_nats::jetstream;
use futures::StreamExt;
use jiff::Timestamp;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use shared::{
    id::AppId,
    nats::{
        border::Border,
        follow::{self, Entry},
        subject,
        suppressions::Standing,
        topology,
    },
    suppression::SuppressionId,
};
use tokio::sync::{Notify, watch};

use super::{
    Position, StoreError,
    store::{checksum, remove, unless_panics},
    sync::FollowerError,
};
use crate::private_file;

const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("suppressions.1");
const META: TableDefinition<&str, i64> = TableDefinition::new("suppressions.meta.1");
const SEQUENCE: &str = "sequence";
const CREATED_AT: &str = "created_at_ms";

/// Entries in one transaction while the file is filled.
const ENTRIES_PER_TRANSACTION: usize = 100_000;

/// The pause before the directory is followed again after an interruption.
const RETRY_FOLLOW_AFTER: Duration = Duration::from_millis(200);

/// The suppression lists. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Suppressions {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: ArcSwap<Database>,
    /// As of the last commit.
    shown: ArcSwap<Shown>,
    /// How far the directory was read, by sequence, for those who wait.
    read_up_to: watch::Sender<u64>,
    caught_up: watch::Sender<bool>,
    damaged: Notify,
    path: PathBuf,
}

#[derive(Debug)]
struct Shown {
    entries: ReadOnlyTable<&'static str, &'static [u8]>,
    position: Position,
    /// Whether it held, at some time since it was opened, all that the directory held.
    is_complete: bool,
}

/// The key of a row, and what the newest entry says.
type Change = (String, Standing);

impl Suppressions {
    /// Opens the file at `path`. Creates an empty one if it is missing, damaged or of a former format.
    ///
    /// # Errors
    /// When even a new file cannot be written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = match unless_panics(|| create(path)) {
            Ok(database) => database,
            Err(error) => {
                tracing::error!(%error, "the copy of the suppression lists cannot be read; it will be refilled");
                remove(path);
                create(path)?
            }
        };
        let inner = Inner {
            shown: ArcSwap::from_pointee(show(&database, false)?),
            database: ArcSwap::from_pointee(database),
            read_up_to: watch::Sender::new(0),
            caught_up: watch::Sender::new(false),
            damaged: Notify::new(),
            path: path.to_owned(),
        };
        Ok(Self { inner: inner.into() })
    }

    /// Whether `app` must not send at `now`, by its entry under `id`.
    ///
    /// # Errors
    /// When the file cannot be read, or was never complete; nothing may be sent then.
    pub fn forbids(&self, app: &AppId, id: SuppressionId, now: Timestamp) -> Result<bool, StoreError> {
        let shown = self.inner.shown.load();
        if !shown.is_complete {
            return Err(StoreError::Behind);
        }
        let key = row_key(app, id);
        let read = unless_panics(|| {
            let row = shown.entries.get(key.as_str())?;
            row.map(|row| read_row(&key, row.value())).transpose()
        });
        if read.is_err() {
            self.inner.damaged.notify_one();
        }
        Ok(read?.is_some_and(|standing| standing.forbids(now)))
    }

    /// Becomes `true` once the file holds all that the directory held when it was opened.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.inner.caught_up.subscribe()
    }

    /// Whether everything up to `end` is known; see [`shared::nats::suppressions::end`].
    pub fn has_reached(&self, end: u64) -> bool {
        *self.inner.read_up_to.borrow() >= end
    }

    /// Waits until everything up to `end` is known.
    pub async fn reached(&self, end: u64) {
        // The sender lives as long as `self`.
        drop(self.inner.read_up_to.subscribe().wait_for(|read| *read >= end).await);
    }

    /// Follows the directory until the process ends, and believes what `border` admits.
    pub async fn follow_forever(self, js: jetstream::Context, border: Border) {
        border.ready().await;
        loop {
            if let Err(error) = self.follow(&js, &border).await {
                tracing::info!(%error, "following the suppression lists was interrupted; retrying");
                if matches!(error, FollowerError::Damaged | FollowerError::Store(_))
                    && let Err(error) = self.reset()
                {
                    tracing::error!(%error, "the copy of the suppression lists cannot be replaced");
                }
            }
            tokio::time::sleep(RETRY_FOLLOW_AFTER).await;
        }
    }

    async fn follow(&self, js: &jetstream::Context, border: &Border) -> Result<(), FollowerError> {
        let end = Position::end_of(&follow::stream_state(js, topology::DIRECTORY).await?);
        let at = |sequence| Position { sequence, ..end };
        if !end.reaches(self.position()) {
            // Another stream, or it was set back: its sequences mean something else.
            self.apply(Vec::new(), at(0)).await?;
        }
        let resume = self.position().sequence;
        self.inner.read_up_to.send_replace(resume);
        let filter = subject::SUPPRESSED_FILTER;
        let (entries, waiting) = follow::follow_and_count(js, topology::DIRECTORY, filter, resume + 1).await?;
        if waiting == 0 {
            // No message will say that the end is reached.
            self.complete()?;
        }
        let mut entries = entries.ready_chunks(8192);
        let mut changes: Vec<Change> = Vec::new();
        loop {
            let chunk = tokio::select! {
                chunk = entries.next() => chunk,
                () = self.inner.damaged.notified() => return Err(FollowerError::Damaged),
            };
            let Some(chunk) = chunk else { return Ok(()) };
            let (mut sequence, mut pending) = (0, 0);
            for entry in chunk {
                let entry = entry?;
                (sequence, pending) = (entry.sequence, entry.pending);
                if border.admits_entry(&entry) {
                    changes.extend(change(&entry));
                }
            }
            if pending > 0 && changes.len() < ENTRIES_PER_TRANSACTION {
                continue;
            }
            self.apply(std::mem::take(&mut changes), at(sequence)).await?;
            if pending == 0 {
                self.complete()?;
            }
        }
    }

    fn position(&self) -> Position {
        self.inner.shown.load().position
    }

    async fn apply(&self, changes: Vec<Change>, position: Position) -> Result<(), StoreError> {
        let this = self.clone();
        let applied = tokio::task::spawn_blocking(move || unless_panics(|| this.apply_now(changes, position)));
        applied.await.map_err(|_| StoreError::Damaged)?
    }

    /// Applies changes in one transaction that reaches `position`. Blocks for a disk write.
    fn apply_now(&self, mut changes: Vec<Change>, position: Position) -> Result<(), StoreError> {
        changes.sort_by(|a, b| a.0.cmp(&b.0));
        let database = self.inner.database.load();
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            for (key, standing) in changes {
                let known = match entries.get(key.as_str())? {
                    Some(row) => Some(read_row(&key, row.value())?),
                    None => None,
                };
                if known.is_none_or(|known| known < standing) {
                    entries.insert(key.as_str(), row(&key, standing).as_slice())?;
                }
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(SEQUENCE, position.sequence.cast_signed())?;
            meta.insert(CREATED_AT, position.created_at_ms)?;
        }
        transaction.commit()?;
        let is_complete = self.inner.shown.load().is_complete;
        self.inner.shown.store(show(&database, is_complete)?.into());
        self.inner.read_up_to.send_replace(position.sequence);
        Ok(())
    }

    /// Records that the file holds all that the directory held.
    fn complete(&self) -> Result<(), StoreError> {
        if !self.inner.shown.load().is_complete {
            self.inner.shown.store(show(&self.inner.database.load(), true)?.into());
            self.inner.caught_up.send_replace(true);
        }
        Ok(())
    }

    /// Replaces the file with an empty one.
    fn reset(&self) -> Result<(), StoreError> {
        let fresh = self.inner.path.with_extension("fresh");
        remove(&fresh);
        let database = create(&fresh)?;
        std::fs::rename(&fresh, &self.inner.path).map_err(redb::Error::Io)?;
        self.inner.caught_up.send_replace(false);
        self.inner.read_up_to.send_replace(0);
        self.inner.shown.store(show(&database, false)?.into());
        self.inner.database.store(database.into());
        Ok(())
    }
}

fn create(path: &Path) -> Result<Database, StoreError> {
    private_file::tighten(path).map_err(redb::Error::Io)?;
    let database = Database::builder().set_cache_size(16 << 20).create(path)?;
    let is_current = |name: &str| [ENTRIES.name(), META.name()].contains(&name);
    if database
        .begin_read()?
        .list_tables()?
        .any(|table| !is_current(table.name()))
    {
        return Err(StoreError::Former);
    }
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(ENTRIES)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    Ok(database)
}

fn show(database: &Database, is_complete: bool) -> Result<Shown, StoreError> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name: &str| Ok::<_, StoreError>(meta.get(name)?.map(|number| number.value()).unwrap_or_default());
    Ok(Shown {
        entries: transaction.open_table(ENTRIES)?,
        position: Position {
            sequence: number(SEQUENCE)?.cast_unsigned(),
            created_at_ms: number(CREATED_AT)?,
        },
        is_complete,
    })
}

fn row_key(app: &AppId, id: SuppressionId) -> String {
    format!("{app}.{id}")
}

/// What an entry changes; `None` for a mark.
fn change(entry: &Entry) -> Option<Change> {
    let (app, id) = subject::suppressed_of(&entry.subject)?;
    let standing = Standing::read(&entry.payload);
    let standing =
        standing.inspect_err(|error| tracing::error!(%error, "an entry of a suppression list cannot be read"));
    Some((row_key(&app, id), standing.ok()?))
}

fn row(key: &str, standing: Standing) -> Vec<u8> {
    let mut value = vec![0; 4];
    for time in [Some(standing.at), standing.until].into_iter().flatten() {
        value.extend_from_slice(&time.as_nanosecond().to_be_bytes());
    }
    let sum = checksum(key, &value[4..]);
    value[..4].copy_from_slice(&sum);
    value
}

fn read_row(key: &str, row: &[u8]) -> Result<Standing, StoreError> {
    let (sum, times) = row.split_first_chunk().ok_or(StoreError::Damaged)?;
    if *sum != checksum(key, times) {
        return Err(StoreError::Damaged);
    }
    let time = |bytes: &[u8]| {
        let bytes = bytes.try_into().ok()?;
        Timestamp::from_nanosecond(i128::from_be_bytes(bytes)).ok()
    };
    let (at, until) = times.split_at_checked(16).ok_or(StoreError::Damaged)?;
    Ok(Standing {
        at: time(at).ok_or(StoreError::Damaged)?,
        until: match until {
            [] => None,
            until => Some(time(until).ok_or(StoreError::Damaged)?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn position(sequence: u64) -> Position {
        Position {
            sequence,
            created_at_ms: 7,
        }
    }

    fn id() -> SuppressionId {
        "7c9e6679742580de944be07fc1f90ae7".parse().unwrap()
    }

    fn entry(made: i64, until: Option<Timestamp>) -> Change {
        let app: AppId = "shop".parse().unwrap();
        (row_key(&app, id()), Standing { at: at(made), until })
    }

    #[test]
    fn nothing_is_answered_before_the_copy_is_complete_and_then_the_newest_entry_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("suppressions.redb");
        let copy = Suppressions::open(&path).unwrap();
        let (app, other): (AppId, AppId) = ("shop".parse().unwrap(), "bank".parse().unwrap());
        let forbids = |copy: &Suppressions, app: &AppId, now: i64| copy.forbids(app, id(), at(now));
        assert!(matches!(forbids(&copy, &app, 0), Err(StoreError::Behind)));
        copy.complete().unwrap();
        assert!(!forbids(&copy, &app, 0).unwrap());
        copy.apply_now(vec![entry(20, Some(Timestamp::MAX))], position(3))
            .unwrap();
        assert!(copy.has_reached(3) && !copy.has_reached(4));
        assert!(forbids(&copy, &app, 100).unwrap());
        assert!(!forbids(&copy, &other, 100).unwrap(), "another app's list is its own");
        copy.apply_now(vec![entry(10, None)], position(4)).unwrap();
        assert!(forbids(&copy, &app, 100).unwrap(), "another region's older removal");
        copy.apply_now(vec![entry(30, None)], position(5)).unwrap();
        assert!(!forbids(&copy, &app, 100).unwrap());
        copy.apply_now(vec![entry(40, Some(at(50)))], position(6)).unwrap();
        assert!(forbids(&copy, &app, 49).unwrap() && !forbids(&copy, &app, 50).unwrap());

        // It goes on where it was, and is asked nothing until it has followed again.
        drop(copy);
        let copy = Suppressions::open(&path).unwrap();
        assert_eq!(copy.position(), position(6));
        assert!(matches!(forbids(&copy, &app, 49), Err(StoreError::Behind)));
        // The directory was lost: what is known stays.
        copy.apply_now(
            Vec::new(),
            Position {
                sequence: 0,
                created_at_ms: 8,
            },
        )
        .unwrap();
        copy.complete().unwrap();
        assert!(forbids(&copy, &app, 49).unwrap());
    }

    #[test]
    fn a_flipped_bit_sends_nothing_and_has_the_file_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let copy = Suppressions::open(&folder.path().join("suppressions.redb")).unwrap();
        let app: AppId = "shop".parse().unwrap();
        copy.complete().unwrap();
        copy.apply_now(vec![entry(20, None)], position(3)).unwrap();
        let database = copy.inner.database.load_full();
        let transaction = database.begin_write().unwrap();
        {
            let key = row_key(&app, id());
            let mut entries = transaction.open_table(ENTRIES).unwrap();
            let mut value = entries.get(key.as_str()).unwrap().unwrap().value().to_vec();
            *value.last_mut().unwrap() ^= 1;
            entries.insert(key.as_str(), value.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        copy.inner.shown.store(show(&database, true).unwrap().into());
        assert!(matches!(copy.forbids(&app, id(), at(30)), Err(StoreError::Damaged)));
        copy.reset().unwrap();
        assert!(matches!(copy.forbids(&app, id(), at(30)), Err(StoreError::Behind)));
        assert!(!*copy.caught_up().borrow());
    }
}
