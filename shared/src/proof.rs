//! Proof that a process with the mesh key accepted a notification.
//!
//! Whoever holds the NATS key of one region's gateway can publish messages for other regions. So a gateway signs what it
//! accepts, and a worker that gets a message from another region's stream checks the signature. Within a region, the
//! server's permissions suffice.
//!
//! A proof covers what a job is, not one message: it stays valid when the job is retried, and when it is forwarded to the
//! region to which its recipient moved.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, hmac};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;

use crate::{
    channel::{Channel, Class},
    id::{AppId, EventId, Region},
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

/// A proof as a header holds it: `<milliseconds since 1970>:<base64url of 16 bytes>`. The time is that of acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    accepted_at_ms: i64,
    mac: [u8; MAC_BYTES],
}

/// Makes and checks proofs, with a key that is derived from the mesh key. Cheap to clone.
#[derive(Clone)]
pub struct Prover(hmac::Key);

impl Prover {
    pub(crate) fn new(key: hmac::Key) -> Self {
        Self(key)
    }

    /// Proves that this process accepted work at `accepted_at`.
    pub fn work(&self, claims: &Claims<'_>, accepted_at: Timestamp) -> Proof {
        let accepted_at_ms = accepted_at.as_millisecond();
        let mac = self.mac_of_work(claims, accepted_at_ms);
        Proof { accepted_at_ms, mac }
    }

    /// Whether `proof` is one of this mesh for this work, accepted at `accepted_at` or later: a worker moves a time of
    /// acceptance that lies in the future back, and nobody may lengthen the life of a notification.
    pub fn proves(&self, proof: &Proof, claims: &Claims<'_>, accepted_at: Timestamp) -> bool {
        let mac = self.mac_of_work(claims, proof.accepted_at_ms);
        accepted_at.as_millisecond() <= proof.accepted_at_ms
            && constant_time::verify_slices_are_equal(&mac, &proof.mac).is_ok()
    }

    /// Signs a message that other regions copy: its subject and its body.
    pub fn message(&self, subject: &str, payload: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(self.mac(&[b"message", subject.as_bytes()], payload))
    }

    /// Whether [`Self::message`] made `signature` for this message.
    pub fn signed_message(&self, signature: &str, subject: &str, payload: &[u8]) -> bool {
        let mac = self.mac(&[b"message", subject.as_bytes()], payload);
        URL_SAFE_NO_PAD
            .decode(signature)
            .is_ok_and(|signature| constant_time::verify_slices_are_equal(&mac, &signature).is_ok())
    }

    fn mac_of_work(&self, claims: &Claims<'_>, accepted_at_ms: i64) -> [u8; MAC_BYTES] {
        let parts: [&[u8]; 7] = [
            b"work",
            claims.app.as_str().as_bytes(),
            claims.channel.as_str().as_bytes(),
            claims.class.as_str().as_bytes(),
            claims.event.as_str().as_bytes(),
            claims.origin.as_str().as_bytes(),
            &accepted_at_ms.to_be_bytes(),
        ];
        self.mac(&parts, claims.payload)
    }

    /// The HMAC over `parts`, each with its length, and `payload`.
    fn mac(&self, parts: &[&[u8]], payload: &[u8]) -> [u8; MAC_BYTES] {
        let mut signing = hmac::Context::with_key(&self.0);
        for part in parts {
            signing.update(&(part.len() as u64).to_be_bytes());
            signing.update(part);
        }
        signing.update(payload);
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&signing.sign().as_ref()[..MAC_BYTES]);
        mac
    }
}

impl fmt::Debug for Prover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prover(hidden)")
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.accepted_at_ms, URL_SAFE_NO_PAD.encode(self.mac))
    }
}

/// The text is not a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoProof;

impl FromStr for Proof {
    type Err = NoProof;
    fn from_str(text: &str) -> Result<Self, NoProof> {
        let (accepted_at_ms, mac) = text.split_once(':').ok_or(NoProof)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| NoProof)?;
        Ok(Self {
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
        MeshKey::from_base64(&STANDARD.encode([byte; 32])).unwrap().prover()
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
