//! Proof that a process with the mesh key accepted a notification.
//!
//! Whoever holds the NATS key of one region's gateway can publish messages for other regions. So a gateway signs what it
//! accepts, and a worker that gets a message from another region's stream checks the signature. Within a region, the
//! server's permissions suffice.
//!
//! A proof covers what a job is, not one message: it stays valid when the job is retried, and when it is forwarded to the
//! region to which its recipient moved.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::{constant_time, hmac};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;

use crate::{
    channel::{Channel, Class},
    id::{AppId, EventId, Region},
    seal::KeyId,
};

/// Bytes of the HMAC that a proof holds: half of SHA-256, which RFC 2104 §5 permits.
const MAC_BYTES: usize = 16;

/// What a proof of work covers: everything by which a job differs from others, except where and when it is tried.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a> {
    /// The app that sends it.
    pub app: &'a AppId,
    /// Its channel.
    pub channel: Channel,
    /// Its class.
    pub class: Class,
    /// The caller's name for what happened.
    pub event: &'a EventId,
    /// The region that accepted it.
    pub origin: &'a Region,
    /// The body of the message, unchanged.
    pub payload: &'a [u8],
}

/// A proof as a header holds it: `<milliseconds since 1970>:<base64url of 16 bytes>`, and `:<key id>` in a mesh with several
/// keys. The time is that of acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    accepted_at_ms: i64,
    mac: [u8; MAC_BYTES],
    /// The mesh key; without it, any may have made the proof.
    key: Option<KeyId>,
}

/// Makes and checks proofs, with keys that are derived from those of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct Prover {
    /// The first makes proofs; all check.
    keys: Arc<[(KeyId, hmac::Key)]>,
    /// Whether proofs and signatures name their key.
    names_keys: bool,
}

impl Prover {
    /// # Panics
    /// Without a key.
    pub(crate) fn new(keys: Vec<(KeyId, hmac::Key)>, names_keys: bool) -> Self {
        assert!(!keys.is_empty(), "a mesh has a key");
        Self {
            keys: keys.into(),
            names_keys,
        }
    }

    /// Proves that this process accepted work at `accepted_at`.
    pub fn work(&self, claims: &Claims<'_>, accepted_at: Timestamp) -> Proof {
        let accepted_at_ms = accepted_at.as_millisecond();
        let (id, key) = &self.keys[0];
        Proof {
            accepted_at_ms,
            mac: mac_of_work(key, claims, accepted_at_ms),
            key: self.names_keys.then_some(*id),
        }
    }

    /// Whether `proof` is one of this mesh for this work, accepted at `accepted_at` or later: a worker moves a time of
    /// acceptance that lies in the future back, and nobody may lengthen the life of a notification.
    pub fn proves(&self, proof: &Proof, claims: &Claims<'_>, accepted_at: Timestamp) -> bool {
        let is_made_with = |key: &hmac::Key| {
            let mac = mac_of_work(key, claims, proof.accepted_at_ms);
            constant_time::verify_slices_are_equal(&mac, &proof.mac).is_ok()
        };
        accepted_at.as_millisecond() <= proof.accepted_at_ms && self.meant(proof.key).any(is_made_with)
    }

    /// Signs a message that other regions copy: its subject and its body. `<base64url of 16 bytes>`, after `<key id>.` in a mesh
    /// with several keys.
    pub fn message(&self, subject: &str, payload: &[u8]) -> String {
        let (id, key) = &self.keys[0];
        let signature = URL_SAFE_NO_PAD.encode(mac(key, &[b"message", subject.as_bytes()], payload));
        if self.names_keys {
            format!("{id}.{signature}")
        } else {
            signature
        }
    }

    /// Whether [`Self::message`] made `signature` for this message.
    pub fn signed_message(&self, signature: &str, subject: &str, payload: &[u8]) -> bool {
        let (id, signature) = match signature.split_once('.') {
            Some((id, signature)) => match id.parse() {
                Ok(id) => (Some(id), signature),
                Err(_) => return false,
            },
            None => (None, signature),
        };
        let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else {
            return false;
        };
        self.meant(id).any(|key| {
            let mac = mac(key, &[b"message", subject.as_bytes()], payload);
            constant_time::verify_slices_are_equal(&mac, &signature).is_ok()
        })
    }

    /// The keys that may have made what names the key `id`.
    fn meant(&self, id: Option<KeyId>) -> impl Iterator<Item = &hmac::Key> {
        let is_meant = move |(known, _): &&(KeyId, hmac::Key)| id.is_none_or(|id| id == *known);
        self.keys.iter().filter(is_meant).map(|(_, key)| key)
    }
}

fn mac_of_work(key: &hmac::Key, claims: &Claims<'_>, accepted_at_ms: i64) -> [u8; MAC_BYTES] {
    let parts: [&[u8]; 7] = [
        b"work",
        claims.app.as_str().as_bytes(),
        claims.channel.as_str().as_bytes(),
        claims.class.as_str().as_bytes(),
        claims.event.as_str().as_bytes(),
        claims.origin.as_str().as_bytes(),
        &accepted_at_ms.to_be_bytes(),
    ];
    mac(key, &parts, claims.payload)
}

/// The HMAC over `parts`, each with its length, and `payload`.
fn mac(key: &hmac::Key, parts: &[&[u8]], payload: &[u8]) -> [u8; MAC_BYTES] {
    let mut signing = hmac::Context::with_key(key);
    for part in parts {
        signing.update(&(part.len() as u64).to_be_bytes());
        signing.update(part);
    }
    signing.update(payload);
    let mut mac = [0; MAC_BYTES];
    mac.copy_from_slice(&signing.sign().as_ref()[..MAC_BYTES]);
    mac
}

impl fmt::Debug for Prover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prover(hidden)")
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.accepted_at_ms, URL_SAFE_NO_PAD.encode(self.mac))?;
        self.key.map_or(Ok(()), |key| write!(f, ":{key}"))
    }
}

/// The text is not a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoProof;

impl FromStr for Proof {
    type Err = NoProof;
    fn from_str(text: &str) -> Result<Self, NoProof> {
        let (accepted_at_ms, mac) = text.split_once(':').ok_or(NoProof)?;
        let (mac, key) = match mac.split_once(':') {
            Some((mac, key)) => (mac, Some(key.parse().map_err(|_| NoProof)?)),
            None => (mac, None),
        };
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| NoProof)?;
        Ok(Self {
            key,
            accepted_at_ms: accepted_at_ms.parse().map_err(|_| NoProof)?,
            mac: mac.try_into().map_err(|_| NoProof)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::seal::MeshKey;

    fn prover(byte: u8) -> Prover {
        keys(&[byte]).prover(&[])
    }

    fn keys(bytes: &[u8]) -> MeshKey {
        let texts: Vec<String> = bytes.iter().map(|byte| STANDARD.encode([*byte; 32])).collect();
        MeshKey::from_base64(&texts.join(" ")).unwrap()
    }

    #[test]
    fn what_a_former_key_signed_holds_while_its_legacy_is_kept() {
        let (shop, eu, event) = ("shop".parse().unwrap(), "eu".parse().unwrap(), "e1".parse().unwrap());
        let claims = Claims {
            app: &shop,
            channel: Channel::Push,
            class: Class::Normal,
            event: &event,
            origin: &eu,
            payload: b"body",
        };
        let at = Timestamp::from_millisecond(10).unwrap();
        let holds = |by: &Prover, with: &Prover| {
            let proof: Proof = by.work(&claims, at).to_string().parse().unwrap();
            let signature = by.message("s", b"x");
            let both = [
                with.proves(&proof, &claims, at),
                with.signed_message(&signature, "s", b"x"),
            ];
            assert_eq!(both[0], both[1]);
            both[0]
        };
        let (former, both, switched) = (prover(7), keys(&[7, 8]).prover(&[]), keys(&[8, 7]).prover(&[]));
        let legacy = keys(&[8, 7]).legacies();
        let (alone, heir) = (keys(&[8]).prover(&[]), keys(&[8]).prover(&legacy));
        // Every pair that runs side by side while a key is replaced.
        for (by, with) in [
            (&former, &both),
            (&both, &switched),
            (&switched, &both),
            (&switched, &heir),
            (&heir, &switched),
            (&former, &heir),
            (&both, &heir),
        ] {
            assert!(holds(by, with));
        }
        assert!(!holds(&former, &alone) && !holds(&both, &alone));
        assert!(
            !former.work(&claims, at).to_string().contains(":0"),
            "programs that know one key read it"
        );
        let named = both.work(&claims, at).to_string();
        assert_eq!(named.split(':').count(), 3, "{named}");
        let other: KeyId = legacy[0].id();
        let renamed = keys(&[8, 7])
            .prover(&[])
            .message("s", b"x")
            .split_once('.')
            .unwrap()
            .1
            .to_owned();
        assert!(
            !both.signed_message(&format!("{other}.{renamed}"), "s", b"x"),
            "another key than it names"
        );
        assert!(!both.signed_message(&format!("x.{renamed}"), "s", b"x"));
    }

    #[test]
    fn a_proof_holds_for_exactly_what_was_accepted() {
        let (shop, bank): (AppId, AppId) = ("shop".parse().unwrap(), "bank".parse().unwrap());
        let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let (event, other): (EventId, EventId) = ("e1".parse().unwrap(), "e2".parse().unwrap());
        let claims = Claims {
            app: &shop,
            channel: Channel::Push,
            class: Class::Normal,
            event: &event,
            origin: &eu,
            payload: b"body",
        };
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let proof = prover(7).work(&claims, at(10));
        let read: Proof = proof.to_string().parse().unwrap();
        assert_eq!(read, proof);
        let holds = |claims: &Claims<'_>, ms| prover(7).proves(&read, claims, at(ms));
        assert!(holds(&claims, 10) && holds(&claims, 9));
        assert!(!holds(&claims, 11), "a longer life");
        for forged in [
            Claims { app: &bank, ..claims },
            Claims {
                channel: Channel::Sms,
                ..claims
            },
            Claims {
                class: Class::Urgent,
                ..claims
            },
            Claims {
                event: &other,
                ..claims
            },
            Claims { origin: &us, ..claims },
            Claims {
                payload: b"forged",
                ..claims
            },
        ] {
            assert!(!holds(&forged, 10), "{forged:?}");
        }
        assert!(!prover(8).proves(&proof, &claims, at(10)), "another mesh key");
        for text in ["", "10", "10:", "x:AAAAAAAAAAAAAAAAAAAAAA", "10:AAAA"] {
            assert_eq!(text.parse::<Proof>(), Err(NoProof), "{text}");
        }
    }

    /// `cargo test --release -p peal-shared --lib proof -- --ignored --nocapture` prints what proofs and signatures cost on this machine.
    #[test]
    #[ignore = "measures, and is slow without --release"]
    fn cost() {
        const ROUNDS: u32 = 200_000;
        let prover = prover(7);
        let (app, event): (AppId, EventId) = ("shop".parse().unwrap(), "order-4711-shipped".parse().unwrap());
        let origin: Region = "eu".parse().unwrap();
        let measure = |what: &str, bytes: usize, act: &dyn Fn()| {
            (0..ROUNDS / 10).for_each(|_| act());
            let begun = std::time::Instant::now();
            (0..ROUNDS).for_each(|_| act());
            eprintln!(
                "{what}, {bytes} bytes: {} ns",
                begun.elapsed().as_nanos() / u128::from(ROUNDS)
            );
        };
        for bytes in [300, 4096, 32_768] {
            let payload = vec![b'x'; bytes];
            let claims = Claims {
                app: &app,
                channel: Channel::Push,
                class: Class::Normal,
                event: &event,
                origin: &origin,
                payload: &payload,
            };
            let at = Timestamp::from_millisecond(10).unwrap();
            let proof = prover.work(&claims, at);
            let signature = prover.message("receipt.eu.us.shop", &payload);
            measure("proof of a job made", bytes, &|| {
                drop(prover.work(&claims, at).to_string())
            });
            measure("proof of a job checked", bytes, &|| {
                assert!(prover.proves(&proof, &claims, at))
            });
            measure("message signed", bytes, &|| {
                drop(prover.message("receipt.eu.us.shop", &payload))
            });
            measure("signature checked", bytes, &|| {
                assert!(prover.signed_message(&signature, "receipt.eu.us.shop", &payload));
            });
        }
    }

    #[test]
    fn a_signature_holds_for_its_message_alone() {
        let signature = prover(7).message("directory.eu.home.shop.ann", b"{}");
        assert!(prover(7).signed_message(&signature, "directory.eu.home.shop.ann", b"{}"));
        assert!(!prover(7).signed_message(&signature, "directory.eu.home.shop.bob", b"{}"));
        assert!(!prover(7).signed_message(&signature, "directory.eu.home.shop.ann", b"[]"));
        assert!(!prover(8).signed_message(&signature, "directory.eu.home.shop.ann", b"{}"));
        assert!(!prover(7).signed_message("", "directory.eu.home.shop.ann", b"{}"));
    }
}
