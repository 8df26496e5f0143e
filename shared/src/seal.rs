//! Credentials at rest: AES-256-GCM under a key that only gateways and workers hold.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hmac,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::proof::Prover;

/// The secrets of a mesh: 1 to 4 keys of 32 bytes. The first seals and signs; the others open and verify what they sealed and
/// signed when they were the first. What a mesh with several keys writes names its key; a mesh with one writes no names, as
/// programs of 0.1 expect. Cheap to clone.
#[derive(Clone)]
pub struct MeshKey(Arc<[OneKey]>);

/// One key of a mesh, with the keys that are derived from it, so that no use reveals anything about another.
struct OneKey {
    id: KeyId,
    seal: RandomizedNonceKey,
    api_keys: hmac::Key,
    root: hmac::Key,
}

/// Names a key of a mesh: the beginning of a digest of the key, in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId([u8; KEY_ID_BYTES]);

/// Bytes of a [`KeyId`].
const KEY_ID_BYTES: usize = 4;

/// Keys of a mesh, at most.
const KEYS_MAX: usize = 4;

/// The label of the derived key of API keys.
const API_KEYS: &str = "peal api keys";

/// The label of the derived key of proofs.
const PROOFS: &str = "peal proofs";

/// What a key that a mesh no longer has leaves to it: derived keys that still verify, and seal and open nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    /// The key that left it.
    id: KeyId,
    /// The key of proofs and of messages between regions, in base64.
    proofs: String,
    /// The key of API keys, in base64.
    api_keys: String,
}

/// Seals bytes for one purpose, under keys that are derived from those of the mesh: AES-256-GCM with random nonces. Cheap to
/// clone.
#[derive(Clone)]
pub struct Vault(Arc<[RandomizedNonceKey]>);

/// Bytes that sealing adds: a nonce before, a tag after.
const NONCE_BYTES: usize = 12;

/// A secret that only [`MeshKey::open`] can read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

/// Why a secret could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The mesh key is not 32 bytes of base64, or several of these.
    #[error("the mesh key must be 32 bytes in base64, or 1 to 4 different ones with spaces between")]
    Key,
    /// It was sealed under another mesh key or another name, or is damaged.
    #[error("cannot be opened with this mesh key")]
    Closed,
}

impl MeshKey {
    /// Reads the keys from base64, with white space between. The first seals and signs.
    ///
    /// # Errors
    /// [`SealError::Key`] if there are not 1 to 4 different ones of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        let keys: Vec<OneKey> = text
            .split_whitespace()
            .map(OneKey::from_base64)
            .collect::<Result<_, _>>()?;
        let is_repeated = |(index, key): (usize, &OneKey)| keys[..index].iter().any(|other| other.id == key.id);
        if !(1..=KEYS_MAX).contains(&keys.len()) || keys.iter().enumerate().any(is_repeated) {
            return Err(SealError::Key);
        }
        Ok(Self(keys.into()))
    }

    /// The maker of proofs for this mesh. `legacy` is what former keys left.
    pub fn prover(&self, legacy: &[Legacy]) -> Prover {
        let own = self.0.iter().map(|key| (key.id, key.derived(PROOFS)));
        let former = legacy
            .iter()
            .filter_map(|former| Some((former.id, former.key(&former.proofs)?)));
        Prover::new(own.chain(former).collect(), self.names_keys())
    }

    /// The vault for `purpose`, such as `cache`. No other purpose can open what it seals.
    pub fn vault(&self, purpose: &str) -> Vault {
        let label = format!("peal vault {purpose}");
        let key = |key: &OneKey| {
            RandomizedNonceKey::new(&AES_256_GCM, key.derive(&label).as_ref()).expect("SHA-256 gives a key of 32 bytes")
        };
        Vault(self.0.iter().map(key).collect())
    }

    /// Seals `secret` under `name`, for example `shop/apns`; it opens only under the same name.
    pub fn seal(&self, name: &str, secret: &str) -> Sealed {
        let key = &self.0[0];
        let mut data = secret.as_bytes().to_vec();
        let nonce = key
            .seal
            .seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut data)
            .expect("a credential is far below AES-GCM's limit");
        let mut whole = nonce.as_ref().to_vec();
        whole.extend_from_slice(&data);
        let text = STANDARD.encode(whole);
        Sealed(if self.names_keys() {
            format!("{}.{text}", key.id)
        } else {
            text
        })
    }

    /// Opens a secret that was sealed under `name`.
    ///
    /// # Errors
    /// [`SealError::Closed`].
    pub fn open(&self, name: &str, sealed: &Sealed) -> Result<String, SealError> {
        let opened = |key: &OneKey| key.open(name, sealed);
        self.0.iter().find_map(opened).ok_or(SealError::Closed)
    }

    /// The same secret, sealed under the first key; `None` if that key sealed it already.
    ///
    /// # Errors
    /// [`SealError::Closed`] if no key opens it.
    pub fn reseal(&self, name: &str, sealed: &Sealed) -> Result<Option<Sealed>, SealError> {
        if self.0[0].open(name, sealed).is_some() {
            return Ok(None);
        }
        let secret = self.open(name, sealed)?;
        Ok(Some(self.seal(name, &secret)))
    }

    /// What the keys behind the first leave when they are removed.
    pub fn legacies(&self) -> Vec<Legacy> {
        let legacy = |key: &OneKey| Legacy {
            id: key.id,
            proofs: STANDARD.encode(key.derive(PROOFS)),
            api_keys: STANDARD.encode(key.derive(API_KEYS)),
        };
        self.0[1..].iter().map(legacy).collect()
    }

    /// Whether this is one of the keys.
    pub fn has(&self, id: KeyId) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// The key under which the HMAC of a new API key is made.
    pub(crate) fn for_api_keys(&self) -> &hmac::Key {
        &self.0[0].api_keys
    }

    /// Whether `mac` is that of `message` under the key of API keys of any of the keys, or of a former one.
    pub(crate) fn verifies_api_key(&self, legacy: &[Legacy], message: &[u8], mac: &[u8]) -> bool {
        let is_right = |key: &hmac::Key| hmac::verify(key, message, mac).is_ok();
        let mut former = legacy.iter().filter_map(|former| former.key(&former.api_keys));
        self.0.iter().any(|key| is_right(&key.api_keys)) || former.any(|key| is_right(&key))
    }

    fn names_keys(&self) -> bool {
        self.0.len() > 1
    }
}

impl OneKey {
    fn from_base64(text: &str) -> Result<Self, SealError> {
        let bytes = STANDARD.decode(text).map_err(|_| SealError::Key)?;
        if bytes.len() != 32 {
            return Err(SealError::Key);
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&hmac::sign(&root, b"peal key id").as_ref()[..KEY_ID_BYTES]);
        Ok(Self {
            id: KeyId(id),
            seal: RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::Key)?,
            api_keys: hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, API_KEYS.as_bytes()).as_ref()),
            root,
        })
    }

    fn derive(&self, label: &str) -> hmac::Tag {
        hmac::sign(&self.root, label.as_bytes())
    }

    fn derived(&self, label: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.derive(label).as_ref())
    }

    /// Opens what this key sealed; `None` if it names another key, or was not sealed by this one.
    fn open(&self, name: &str, sealed: &Sealed) -> Option<String> {
        let text = match sealed.0.split_once('.') {
            Some((id, text)) if id.parse() == Ok(self.id) => text,
            Some(_) => return None,
            None => &sealed.0,
        };
        let whole = STANDARD.decode(text).ok()?;
        let (nonce, data) = whole.split_at_checked(NONCE_BYTES)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut data = data.to_vec();
        let plain = self
            .seal
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut data)
            .ok()?;
        String::from_utf8(plain.to_vec()).ok()
    }
}

impl Legacy {
    /// The key that left it.
    pub fn id(&self) -> KeyId {
        self.id
    }

    #[expect(clippy::unused_self, reason = "the text is one of its members")]
    fn key(&self, text: &str) -> Option<hmac::Key> {
        let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() == 32)?;
        Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }
}

impl fmt::Debug for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Legacy({})", self.id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The text is not the id of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 8 hexadecimal digits")]
pub struct NoKeyId;

impl FromStr for KeyId {
    type Err = NoKeyId;
    fn from_str(text: &str) -> Result<Self, NoKeyId> {
        let is_hex = text.len() == 2 * KEY_ID_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u32::from_str_radix(text, 16).ok().filter(|_| is_hex).ok_or(NoKeyId)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Vault {
    /// Seals `plain` under `name`; it opens only under the same name. 28 bytes longer than `plain`.
    pub fn seal(&self, name: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(NONCE_BYTES + plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&[0; NONCE_BYTES]);
        sealed.extend_from_slice(plain);
        let (nonce, data) = sealed.split_at_mut(NONCE_BYTES);
        let (used, tag) = self.0[0]
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
        let opened = |key: &RandomizedNonceKey| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut data = data.to_vec();
            let length = key.open_in_place(nonce, Aad::from(name), &mut data).ok()?.len();
            data.truncate(length);
            Some(data)
        };
        self.0.iter().find_map(opened).ok_or(SealError::Closed)
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

    /// The keys of these bytes, in this order.
    fn keys(bytes: &[u8]) -> MeshKey {
        let texts: Vec<String> = bytes.iter().map(|byte| STANDARD.encode([*byte; 32])).collect();
        MeshKey::from_base64(&texts.join(" ")).unwrap()
    }

    #[test]
    fn a_key_that_is_no_longer_the_first_opens_what_it_sealed() {
        let of_one = keys(&[7]).seal("shop/apns", "secret");
        assert!(!of_one.0.contains('.'), "programs that know one key read it");
        let of_two = keys(&[8, 7]).seal("shop/apns", "secret");
        for (key, sealed) in [
            (keys(&[7, 8]), &of_two),
            (keys(&[8, 7]), &of_one),
            (keys(&[8]), &of_two),
        ] {
            assert_eq!(key.open("shop/apns", sealed).unwrap(), "secret");
            assert_eq!(key.open("shop/fcm", sealed), Err(SealError::Closed));
        }
        assert_eq!(keys(&[7]).open("shop/apns", &of_two), Err(SealError::Closed));
        assert_eq!(keys(&[8, 7]).reseal("shop/apns", &of_two), Ok(None));
        let resealed = keys(&[8, 7]).reseal("shop/apns", &of_one).unwrap().unwrap();
        assert_eq!(keys(&[8]).open("shop/apns", &resealed).unwrap(), "secret");
        assert_eq!(keys(&[9]).reseal("shop/apns", &of_one), Err(SealError::Closed));

        let cached = keys(&[7]).vault("cache").seal(b"ann", b"token");
        assert_eq!(keys(&[8, 7]).vault("cache").open(b"ann", &cached).unwrap(), b"token");
        assert!(keys(&[8]).vault("cache").open(b"ann", &cached).is_err());
    }

    #[test]
    fn keys_that_are_none_or_several_times_the_same_are_refused() {
        let key = STANDARD.encode([7; 32]);
        let five: Vec<String> = (0..5).map(|byte| STANDARD.encode([byte; 32])).collect();
        for text in [
            "",
            " ",
            "x",
            &STANDARD.encode([7; 31]),
            &format!("{key} {key}"),
            &five.join(" "),
        ] {
            assert_eq!(MeshKey::from_base64(text).err(), Some(SealError::Key), "{text}");
        }
        MeshKey::from_base64(&format!(" {}\n", five[..4].join("  "))).unwrap();
        let legacy = keys(&[8, 7]).legacies();
        assert_eq!(legacy.len(), 1);
        assert!(keys(&[7]).has(legacy[0].id()) && !keys(&[8]).has(legacy[0].id()));
        let stored = serde_json::to_string(&legacy).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Legacy>>(&stored).unwrap(), legacy);
        assert!(!format!("{legacy:?}").contains(&legacy[0].proofs));
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
