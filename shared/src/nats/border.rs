//! The border between regions: every region copies the directory, the records of idempotency keys and the receipts of the
//! others. Writers sign them, and readers ignore copies without a signature, which the NATS key of one region can make.

use std::sync::Arc;

use arc_swap::Guard;
use async_nats::HeaderMap;
use jiff::Timestamp;

use super::{config::Config, direct::Found, envelope, follow::Entry, subject};
use crate::proof::Prover;

/// Signs what other regions copy, and checks what this region copied. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Border {
    config: Config,
}

impl Border {
    /// The border of the mesh with this configuration, which says whether the mesh requires signatures yet.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// The maker of proofs of work.
    pub fn prover(&self) -> Guard<Arc<Prover>> {
        self.config.prover()
    }

    /// The headers of a message for other regions: the version, and the signature of subject and body.
    pub fn headers(&self, subject: &str, payload: &[u8]) -> HeaderMap {
        let mut headers = super::version::headers();
        headers.insert(envelope::SIGNATURE, self.prover().message(subject, payload));
        headers
    }

    /// Whether the mesh has no region but this one.
    pub fn is_only_region(&self) -> bool {
        self.config.tenants().regions.len() == 1
    }

    /// Waits until it is known whether the mesh requires signatures.
    pub async fn ready(&self) {
        let mut changes = self.config.changes();
        // It cannot be closed: its sender lives as long as `config`.
        drop(changes.wait_for(|changes| *changes > 0).await);
    }

    /// Whether a message with these headers that was stored at `stored_at` must show who made it: it comes from another
    /// region, and no program of 0.1 runs any more.
    pub fn guards(&self, headers: &HeaderMap, stored_at: Timestamp) -> bool {
        let since = self.config.tenants().proofs_since;
        since.is_some_and(|since| stored_at >= since) && envelope::is_foreign(headers)
    }

    /// Whether this entry may be believed: it was written in this region, or is signed.
    pub fn admits_entry(&self, entry: &Entry) -> bool {
        self.admits(&entry.subject, &entry.headers, entry.stored_at, &entry.payload)
    }

    /// Whether this message may be believed: it was written in this region, or is signed.
    pub fn admits_found(&self, found: &Found) -> bool {
        self.admits(&found.subject, &found.headers, found.stored_at, &found.payload)
    }

    /// Adds to `headers` the signature of a fact, or of its removal, for the home of its recipient. `key` is the fact's key in
    /// the bucket there.
    pub fn sign_fact(&self, headers: &mut HeaderMap, key: &str, payload: &[u8]) {
        let signature = self.prover().message(&fact_name(key, headers), payload);
        headers.insert(envelope::SIGNATURE, signature);
    }

    /// Whether this fact, or removal, in the bucket of recipients may be believed: it was written in this region, or is signed.
    pub fn admits_fact(&self, subject: &str, headers: &HeaderMap, stored_at: Timestamp, payload: &[u8]) -> bool {
        // The bucket's source gives the fact another subject than the one under which it was published.
        let name = || fact_name(subject::fact_key_of(subject).unwrap_or(subject), headers);
        self.admits_as(name, headers, stored_at, payload)
    }

    fn admits(&self, subject: &str, headers: &HeaderMap, stored_at: Timestamp, payload: &[u8]) -> bool {
        self.admits_as(|| subject.to_owned(), headers, stored_at, payload)
    }

    fn admits_as(
        &self,
        name: impl FnOnce() -> String,
        headers: &HeaderMap,
        stored_at: Timestamp,
        payload: &[u8],
    ) -> bool {
        let signed = || {
            let signature = envelope::header(headers, envelope::SIGNATURE);
            signature.is_some_and(|signature| self.prover().signed_message(signature, &name(), payload))
        };
        let admitted = !self.guards(headers, stored_at) || signed();
        if !admitted {
            tracing::error!("an entry came from another region without a signature; it is ignored");
        }
        admitted
    }
}

/// What the signature of a fact covers beside its value: its key, and whether and why it is removed.
fn fact_name(key: &str, headers: &HeaderMap) -> String {
    let header = |name| envelope::header(headers, name).unwrap_or_default();
    format!("fact {key} {} {}", header("KV-Operation"), header(envelope::MOVED))
}
