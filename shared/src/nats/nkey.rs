//! `NKeys`: a server knows who somebody is by an Ed25519 key, and never sees the secret half.

use nkeys::KeyPair;

use crate::secret::Secret;

/// A new key of a user.
#[derive(Debug)]
pub struct Nkey {
    /// The secret half, for `nats.nkey_file`; begins with `SU`.
    pub seed: Secret,
    /// The other half, for the server's configuration; begins with `U`.
    pub public: String,
}

impl Nkey {
    /// Makes one, from the system's randomness.
    pub fn generate() -> Self {
        let pair = KeyPair::new_user();
        Self {
            public: pair.public_key(),
            seed: pair.seed().expect("a pair that was just made has its seed").into(),
        }
    }
}
