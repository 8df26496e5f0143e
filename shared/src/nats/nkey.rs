//! `NKeys`: a server identifies a client by an Ed25519 key, and never sees the secret half.

use nkeys::KeyPair;

use crate::secret::Secret;

/// A new key pair of a user.
#[derive(Debug)]
pub struct Nkey {
    /// The secret half, for `nats.nkey_file`; begins with `SU`.
    pub seed: Secret,
    /// The public half, for the server's configuration; begins with `U`.
    pub public: String,
}

impl Nkey {
    /// Generates a pair from the system's randomness.
    pub fn generate() -> Self {
        let pair = KeyPair::new_user();
        Self {
            public: pair.public_key(),
            seed: pair.seed().expect("a generated pair has its seed").into(),
        }
    }
}
