//! Finds the records of a job in the ledger's file.

use std::collections::HashMap;

use shared::id::JobId;

use super::{Store, StoreError};

/// Maps each job to the newest entry that mentions it; each record links to the entry before. It needs 10 bytes per job
/// when the table is full, and up to 20 after it has grown.
///
/// The key is a part of the job's id. Two jobs with the same key share a chain of entries (one in forty among 100 million
/// jobs). The records contain the whole id, so they are never confused.
#[derive(Debug, Default)]
pub struct Index {
    /// The low half of each entry's number. Entries that are 2^32 apart are months apart, and the older one is pruned.
    entries: HashMap<u32, u32, std::hash::BuildHasherDefault<KeyHasher>>,
    /// The highest number of all entries.
    highest: u64,
}

impl Index {
    pub(super) fn build(store: &Store) -> Result<Self, StoreError> {
        let mut index = Self::default();
        store.for_each_job(|job, entry| {
            index.replace(job, entry);
        })?;
        Ok(index)
    }

    /// The newest entry that mentions `job`, or a job with the same key.
    pub fn newest(&self, job: JobId) -> Option<u64> {
        self.entries.get(&key(job)).map(|low| self.full_number(*low))
    }

    /// Records that `entry` is the newest entry that mentions `job`, and returns the previous one.
    pub fn replace(&mut self, job: JobId, entry: u64) -> Option<u64> {
        self.highest = self.highest.max(entry);
        let previous = self.entries.insert(key(job), low_half(entry));
        previous.map(|low| self.full_number(low))
    }

    /// Removes `job` unless an entry newer than `entry` mentions it.
    pub fn forget(&mut self, job: JobId, entry: u64) {
        if self.newest(job) == Some(entry) {
            self.entries.remove(&key(job));
        }
    }

    /// The number of jobs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no jobs.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number whose low half is `low`: the highest number, minus the distance to it.
    fn full_number(&self, low: u32) -> u64 {
        self.highest - u64::from(low_half(self.highest).wrapping_sub(low))
    }
}

/// The last four bytes of a job's id, which is a digest and has no fixed bits there.
pub(super) fn key(job: JobId) -> u32 {
    low_half(job.0.as_u64_pair().1)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
fn low_half(number: u64) -> u32 {
    number as u32
}

/// Spreads a key, which is a part of a digest, over a 64-bit word: the table takes control bits from the top and the slot
/// from the bottom.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl std::hash::Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u32(&mut self, key: u32) {
        // 2^64 divided by the golden ratio: Fibonacci hashing.
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
        const SLOTS: u64 = 1 << 18;
        let hash = |number: u64| {
            let mut hasher = KeyHasher::default();
            hasher.write_u32(key(job(number)));
            hasher.finish()
        };
        let taken = |part: fn(u64) -> u64| (0..SLOTS).map(hash).map(part).collect::<HashSet<_>>().len();
        // With as many balls as bins, 1/e of the bins stay empty.
        assert!(taken(|hash| hash % SLOTS) > 160_000);
        assert_eq!(taken(|hash| hash >> 57), 128, "control bits");
    }

    #[test]
    fn entries_keep_their_numbers_when_the_low_half_wraps_around() {
        let mut index = Index::default();
        let around = (1 << 32) - 2..(1 << 32) + 2;
        for entry in around.clone() {
            assert_eq!(index.replace(job(entry), entry), None);
        }
        for entry in around.clone() {
            assert_eq!(index.newest(job(entry)), Some(entry));
        }
        assert_eq!(index.replace(job(around.start), around.end), Some(around.start));
        index.forget(job(around.start), around.start);
        assert_eq!(index.newest(job(around.start)), Some(around.end));
        assert_eq!(index.len(), 4);
    }
}
