//! A generated key, in place of one that a tenant would download from Apple.

use anyhow::Context;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

/// An APNs authentication key as downloaded from Apple: a `.p8` file with its two ids.
#[derive(Clone)]
pub struct ApnsKey {
    /// The team the key belongs to, ten characters.
    pub team_id: String,
    /// The key's id, ten characters.
    pub key_id: String,
    /// The private key, PEM of PKCS#8, curve P-256.
    pub pem: String,
}

impl ApnsKey {
    /// Generates a key of this team, with this key id.
    pub fn generate(team_id: &str, key_id: &str) -> anyhow::Result<Self> {
        let pem = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .context("generating an APNs key")?
            .serialize_pem();
        Ok(Self {
            team_id: team_id.to_owned(),
            key_id: key_id.to_owned(),
            pem,
        })
    }

    /// A provider token (RFC 7515, ES256) issued at `issued_s`, seconds since the epoch.
    pub fn provider_token(&self, issued_s: i64) -> anyhow::Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        let key = EncodingKey::from_ec_pem(self.pem.as_bytes())?;
        let claims = json!({ "iss": self.team_id, "iat": issued_s });
        Ok(jsonwebtoken::encode(&header, &claims, &key)?)
    }

    /// The public key as an uncompressed point: `04`, x and y, 65 bytes.
    pub(crate) fn public_point(&self) -> anyhow::Result<[u8; 65]> {
        let body: String = self
            .pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .map(str::trim)
            .collect();
        let der = BASE64_STANDARD.decode(body).context("the .p8 file is not PEM")?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
            .context("the .p8 file has no P-256 key in PKCS#8")?;
        Ok(pair.public_key().as_ref().try_into()?)
    }
}

impl std::fmt::Debug for ApnsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApnsKey")
            .field("team_id", &self.team_id)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}
