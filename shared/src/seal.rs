//! Credentials at rest: AES-256-GCM under a key that only gateways and workers hold.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hmac,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::proof::Prover;

/// The mesh's secret: 32 bytes. Seals credentials and keys the HMAC of API keys.
#[derive(Clone)]
pub struct MeshKey {
    seal: std::sync::Arc<RandomizedNonceKey>,
    hmac: std::sync::Arc<hmac::Key>,
    root: std::sync::Arc<hmac::Key>,
}

/// Seals bytes for one purpose, under a key that is derived from the mesh key: AES-256-GCM with random nonces. Cheap to
/// clone.
#[derive(Clone)]
pub struct Vault(std::sync::Arc<RandomizedNonceKey>);

/// Bytes that sealing adds: a nonce before, a tag after.
const NONCE_BYTES: usize = 12;

/// A secret that only [`MeshKey::open`] can read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

/// Why a secret could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The mesh key is not 32 bytes of base64.
    #[error("the mesh key must be 32 bytes in base64")]
    Key,
    /// It was sealed under another mesh key or another name, or is damaged.
    #[error("cannot be opened with this mesh key")]
    Closed,
}

impl MeshKey {
    /// Reads the key from base64.
    ///
    /// # Errors
    /// [`SealError::Key`] if it is not 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| SealError::Key)?;
        if bytes.len() != 32 {
            return Err(SealError::Key);
        }
        // Two uses, two keys: the second is derived, so that neither use reveals anything about the other.
        let root = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        let for_hmac = hmac::sign(&root, b"peal api keys");
        let seal = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::Key)?;
        Ok(Self {
            seal: seal.into(),
            hmac: hmac::Key::new(hmac::HMAC_SHA256, for_hmac.as_ref()).into(),
            root: root.into(),
        })
    }

    /// The maker of proofs for this mesh.
    pub fn prover(&self) -> Prover {
        Prover::new(hmac::Key::new(hmac::HMAC_SHA256, self.derive("peal proofs").as_ref()))
    }

    /// The vault for `purpose`, such as `cache`. No other purpose can open what it seals.
    pub fn vault(&self, purpose: &str) -> Vault {
        let key = self.derive(&format!("peal vault {purpose}"));
        let key = RandomizedNonceKey::new(&AES_256_GCM, key.as_ref()).expect("SHA-256 gives a key of 32 bytes");
        Vault(key.into())
    }

    fn derive(&self, label: &str) -> hmac::Tag {
        hmac::sign(&self.root, label.as_bytes())
    }

    /// Seals `secret` under `name`, for example `shop/apns`; it opens only under the same name.
    pub fn seal(&self, name: &str, secret: &str) -> Sealed {
        let mut data = secret.as_bytes().to_vec();
        let nonce = self
            .seal
            .seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut data)
            .expect("a credential is far below AES-GCM's limit");
        let mut whole = nonce.as_ref().to_vec();
        whole.extend_from_slice(&data);
        Sealed(STANDARD.encode(whole))
    }

    /// Opens a secret that was sealed under `name`.
    ///
    /// # Errors
    /// [`SealError::Closed`].
    pub fn open(&self, name: &str, sealed: &Sealed) -> Result<String, SealError> {
        let whole = STANDARD.decode(&sealed.0).map_err(|_| SealError::Closed)?;
        let (nonce, data) = whole.split_at_checked(12).ok_or(SealError::Closed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Closed)?;
        let mut data = data.to_vec();
        let plain = self
            .seal
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut data)
            .map_err(|_| SealError::Closed)?;
        String::from_utf8(plain.to_vec()).map_err(|_| SealError::Closed)
    }

    pub(crate) fn hmac(&self) -> &hmac::Key {
        &self.hmac
    }
}

impl Vault {
    /// Seals `plain` under `name`; it opens only under the same name. 28 bytes longer than `plain`.
    pub fn seal(&self, name: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(NONCE_BYTES + plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&[0; NONCE_BYTES]);
        sealed.extend_from_slice(plain);
        let (nonce, data) = sealed.split_at_mut(NONCE_BYTES);
        let (used, tag) = self
            .0
            .seal_in_place_separate_tag(Aad::from(name), data)
            .expect("no message is near AES-GCM's limit");
        nonce.copy_from_slice(used.as_ref());
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Opens what was sealed under `name`.
    ///
    /// # Errors
    /// [`SealError::Closed`] if it was sealed under another mesh key, for another purpose or name, or is damaged.
    pub fn open(&self, name: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, data) = sealed.split_at_checked(NONCE_BYTES).ok_or(SealError::Closed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Closed)?;
        let mut data = data.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(name), &mut data);
        let length = opened.map_err(|_| SealError::Closed)?.len();
        data.truncate(length);
        Ok(data)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(hidden)")
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(hidden)")
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_under_its_name_and_key() {
        let key = MeshKey::from_base64(&STANDARD.encode([7; 32])).unwrap();
        let other = MeshKey::from_base64(&STANDARD.encode([8; 32])).unwrap();
        let sealed = key.seal("shop/apns", "secret");
        assert_eq!(key.open("shop/apns", &sealed).unwrap(), "secret");
        assert_eq!(key.open("shop/fcm", &sealed), Err(SealError::Closed));
        assert_eq!(other.open("shop/apns", &sealed), Err(SealError::Closed));
        assert_ne!(key.seal("shop/apns", "secret"), sealed, "the nonce is fresh");
        assert!(!format!("{sealed:?}{key:?}").contains("secret"));
    }

    #[test]
    fn a_vault_opens_only_what_it_sealed_under_the_name() {
        let key = MeshKey::from_base64(&STANDARD.encode([7; 32])).unwrap();
        let other = MeshKey::from_base64(&STANDARD.encode([8; 32])).unwrap();
        let vault = key.vault("cache");
        let sealed = vault.seal(b"ann", b"token");
        assert_eq!(sealed.len(), b"token".len() + 28);
        assert_eq!(vault.open(b"ann", &sealed).unwrap(), b"token");
        for (vault, name) in [
            (&vault, b"bob"),
            (&key.vault("facts"), b"ann"),
            (&other.vault("cache"), b"ann"),
        ] {
            assert_eq!(vault.open(name, &sealed), Err(SealError::Closed));
        }
        for length in 0..sealed.len() {
            assert_eq!(vault.open(b"ann", &sealed[..length]), Err(SealError::Closed));
        }
    }
}
