//! The key of the ids of jobs: nobody outside a mesh can compute the id that a message will have, and take it first.

use std::{fmt, sync::Arc};

use aws_lc_rs::{constant_time, hmac, rand};
use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;

use crate::{
    digest,
    seal::{MeshKey, SealError, Sealed},
};

/// The name under which the key is sealed.
pub(crate) const SEAL_NAME: &str = "mesh/ids";

/// Bytes of [`IdKey::mac`]: half of SHA-256, which RFC 2104 §5 permits.
pub(crate) const MAC_BYTES: usize = 16;

/// The fewest bytes of an HMAC that RFC 2104 §5 permits.
pub(crate) const MAC_BYTES_MIN: usize = 10;

/// Derives the ids of jobs with HMAC-SHA-256. A mesh has one key, which is made when the mesh is provisioned and never
/// replaced: with another key, a repeated notification would be another job. Cheap to clone.
#[derive(Clone)]
pub struct IdKey(Option<Arc<hmac::Key>>);

impl IdKey {
    /// For a mesh without a key, which version 0.1 provisioned: ids are plain digests.
    pub const fn unkeyed() -> Self {
        Self(None)
    }

    /// Makes a key of 32 random bytes and seals it.
    ///
    /// # Panics
    /// When the operating system gives no randomness.
    pub fn generate(mesh_key: &MeshKey) -> Sealed {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).expect("the operating system gives randomness");
        mesh_key.seal(SEAL_NAME, &STANDARD.encode(bytes))
    }

    /// Opens the key of a mesh.
    ///
    /// # Errors
    /// When it was sealed under another mesh key.
    pub fn open(mesh_key: &MeshKey, sealed: &Sealed) -> Result<Self, SealError> {
        let text = mesh_key.open(SEAL_NAME, sealed)?;
        let bytes = STANDARD.decode(text).map_err(|_| SealError::Closed)?;
        Ok(Self(Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes).into())))
    }

    /// Whether there is a key, and so references and links can be made.
    pub const fn signs(&self) -> bool {
        self.0.is_some()
    }

    /// The HMAC over `parts`, each with its length; `None` without a key.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> Option<[u8; MAC_BYTES]> {
        let mut signing = hmac::Context::with_key(self.0.as_ref()?);
        // No id is derived from these bytes: those begin with letters.
        signing.update(&[0]);
        for part in parts {
            signing.update(&(part.len() as u64).to_be_bytes());
            signing.update(part);
        }
        signing.sign().as_ref()[..MAC_BYTES].try_into().ok()
    }

    /// Whether `given` is [`Self::mac`] of `parts`, or its first bytes, at least [`MAC_BYTES_MIN`].
    pub(crate) fn verifies(&self, parts: &[&[u8]], given: &[u8]) -> bool {
        let mac = self.mac(parts).filter(|_| given.len() >= MAC_BYTES_MIN);
        let mac = mac.as_ref().and_then(|mac| mac.get(..given.len()));
        mac.is_some_and(|mac| constant_time::verify_slices_are_equal(mac, given).is_ok())
    }

    /// The id that `parts` of this `kind` have in this mesh.
    pub fn derive(&self, kind: &str, parts: &[&str]) -> Uuid {
        match &self.0 {
            None => digest::derive(kind, parts),
            Some(key) => {
                let mut hash = hmac::Context::with_key(key);
                digest::each_part(kind, parts, |bytes| hash.update(bytes));
                digest::uuid(hash.sign().as_ref())
            }
        }
    }
}

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "IdKey(hidden)"
        } else {
            "IdKey(none)"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_depend_on_the_key_and_are_the_same_wherever_it_is_opened() {
        let mesh_key = |byte| MeshKey::from_base64(&STANDARD.encode([byte; 32])).unwrap();
        let (sealed, another) = (IdKey::generate(&mesh_key(7)), IdKey::generate(&mesh_key(7)));
        let id = |key: &IdKey| key.derive("job", &["shop", "order-1"]);
        let key = IdKey::open(&mesh_key(7), &sealed).unwrap();
        assert_eq!(id(&key), id(&IdKey::open(&mesh_key(7), &sealed).unwrap()));
        assert_ne!(id(&key), id(&IdKey::open(&mesh_key(7), &another).unwrap()));
        assert_ne!(id(&key), id(&IdKey::unkeyed()));
        assert_eq!(id(&IdKey::unkeyed()), digest::derive("job", &["shop", "order-1"]));
        assert_eq!(IdKey::open(&mesh_key(8), &sealed).unwrap_err(), SealError::Closed);
        assert_eq!(id(&key).get_version_num(), 8);
    }
}
