//! Where in the ledger's file the records of a job are.

use std::collections::HashMap;

use shared::id::JobId;

use super::{Store, StoreError};

/// For each job the newest entry that speaks of it; entries know their predecessor. 17 bytes a job at full load, up to
/// 40 after growing.
///
/// The key is half of the job's id. Two jobs that share it (one pair among 6 billion jobs) share a chain of entries;
/// the records themselves carry the whole id, so neither is taken for the other.
#[derive(Debug, Default)]
pub struct Index(HashMap<u64, u64, std::hash::BuildHasherDefault<Identity>>);

impl Index {
    pub(super) fn build(store: &Store) -> Result<Self, StoreError> {
        let mut index = Self::default();
        store.for_each_job(|job, entry| {
            index.replace(job, entry);
        })?;
        Ok(index)
    }

    /// The newest entry that speaks of `job`.
    pub fn last(&self, job: JobId) -> Option<u64> {
        self.0.get(&key(job)).copied()
    }

    /// Makes `entry` the newest that speaks of `job`; returns its predecessor.
    pub fn replace(&mut self, job: JobId, entry: u64) -> Option<u64> {
        self.0.insert(key(job), entry)
    }

    /// Forgets `job` unless something newer than `entry` speaks of it.
    pub fn forget(&mut self, job: JobId, entry: u64) {
        if self.last(job) == Some(entry) {
            self.0.remove(&key(job));
        }
    }

    /// Jobs remembered.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Job ids are digests, but bits of the first half are the UUID's version; the second half has only two fixed ones.
fn key(job: JobId) -> u64 {
    job.0.as_u64_pair().1
}

/// The keys are parts of a digest; hashing them again would gain nothing.
#[derive(Debug, Default)]
pub(super) struct Identity(u64);

impl std::hash::Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        // The table takes its control bits from the top and its place from the bottom. The UUID's variant, two fixed bits
        // at the top, goes in between: a table in use has far fewer than 2^46 places.
        self.0 = value.rotate_right(16);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::Hasher};

    use super::*;

    #[test]
    fn jobs_are_spread_over_the_whole_table() {
        const PLACES: u64 = 1 << 18;
        let hash = |number: u64| {
            let mut hasher = Identity::default();
            hasher.write_u64(key(JobId(shared::digest::derive("job", &[&number.to_string()]))));
            hasher.finish()
        };
        let taken = |part: fn(u64) -> u64| (0..PLACES).map(hash).map(part).collect::<HashSet<_>>().len();
        // As many balls in as many bins leave 1/e of them empty.
        assert!(taken(|hash| hash % PLACES) > 160_000);
        assert_eq!(taken(|hash| hash >> 57), 128, "control bits");
    }
}
