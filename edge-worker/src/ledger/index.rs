//! Where in the ledger's file the records of a job are.

use std::collections::HashMap;

use shared::id::JobId;

use super::{Store, StoreError};

/// For each job the newest entry that speaks of it; entries know their predecessor. 10 bytes a job at full load, up to
/// 20 after growing.
///
/// The key is a part of the job's id. Two jobs that share it share a chain of entries (among 100 million jobs one in
/// forty); the records themselves carry the whole id, so neither is taken for the other.
#[derive(Debug, Default)]
pub struct Index {
    /// The low half of each entry's number. No two entries that are remembered are 2^32 apart: that would be months.
    entries: HashMap<u32, u32, std::hash::BuildHasherDefault<Spread>>,
    newest: u64,
}

impl Index {
    pub(super) fn build(store: &Store) -> Result<Self, StoreError> {
        let mut index = Self::default();
        store.for_each_job(|job, entry| {
            index.replace(job, entry);
        })?;
        Ok(index)
    }

    /// The newest entry that speaks of `job`, or of one that shares its key.
    pub fn last(&self, job: JobId) -> Option<u64> {
        self.entries.get(&key(job)).map(|low| self.whole(*low))
    }

    /// Makes `entry`, which no entry before it is newer than, the newest that speaks of `job`; returns its predecessor.
    pub fn replace(&mut self, job: JobId, entry: u64) -> Option<u64> {
        self.newest = self.newest.max(entry);
        let before = self.entries.insert(key(job), low(entry));
        before.map(|before| self.whole(before))
    }

    /// Forgets `job` unless something newer than `entry` speaks of it.
    pub fn forget(&mut self, job: JobId, entry: u64) {
        if self.last(job) == Some(entry) {
            self.entries.remove(&key(job));
        }
    }

    /// Jobs remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of an entry: the newest one's, less how far it is behind.
    fn whole(&self, entry: u32) -> u64 {
        self.newest - u64::from(low(self.newest).wrapping_sub(entry))
    }
}

/// The end of a job's id, which is a digest, and has no fixed bits there.
pub(super) fn key(job: JobId) -> u32 {
    low(job.0.as_u64_pair().1)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
fn low(number: u64) -> u32 {
    number as u32
}

/// Keys are parts of a digest; they are only to fill a whole word, of which the table takes control bits from the top and
/// its place from the bottom.
#[derive(Debug, Default)]
pub(super) struct Spread(u64);

impl std::hash::Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u32(&mut self, key: u32) {
        // 2^64 divided by the golden ratio.
        self.0 = u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::Hasher};

    use super::*;

    fn job(number: u64) -> JobId {
        JobId(shared::digest::derive("job", &[&number.to_string()]))
    }

    #[test]
    fn jobs_are_spread_over_the_whole_table() {
        const PLACES: u64 = 1 << 18;
        let hash = |number: u64| {
            let mut hasher = Spread::default();
            hasher.write_u32(key(job(number)));
            hasher.finish()
        };
        let taken = |part: fn(u64) -> u64| (0..PLACES).map(hash).map(part).collect::<HashSet<_>>().len();
        // As many balls in as many bins leave 1/e of them empty.
        assert!(taken(|hash| hash % PLACES) > 160_000);
        assert_eq!(taken(|hash| hash >> 57), 128, "control bits");
    }

    #[test]
    fn entries_keep_their_numbers_where_the_low_half_begins_anew() {
        let mut index = Index::default();
        let around = (1 << 32) - 2..(1 << 32) + 2;
        for entry in around.clone() {
            assert_eq!(index.replace(job(entry), entry), None);
        }
        for entry in around.clone() {
            assert_eq!(index.last(job(entry)), Some(entry));
        }
        assert_eq!(index.replace(job(around.start), around.end), Some(around.start));
        index.forget(job(around.start), around.start);
        assert_eq!(index.last(job(around.start)), Some(around.end));
        assert_eq!(index.len(), 4);
    }
}
