//! Credentials a tenant would get from Apple and Google, made up on the spot.

use anyhow::Context;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
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
    /// A new key of this team.
    pub fn generate(team_id: &str, key_id: &str) -> anyhow::Result<Self> {
        let pem = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .context("making an APNs key")?
            .serialize_pem();
        Ok(Self {
            team_id: team_id.to_owned(),
            key_id: key_id.to_owned(),
            pem,
        })
    }

    /// A provider token (RFC 7515, ES256) issued at this moment, seconds since the epoch.
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
        let der = BASE64_STANDARD.decode(body).context("the .p8 is not PEM")?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
            .context("the .p8 is not a P-256 key in PKCS#8")?;
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

/// A Firebase service account as downloaded from Google.
#[derive(Clone)]
pub struct ServiceAccount {
    /// The Firebase project it may send for.
    pub project_id: String,
    /// The issuer of its assertions.
    pub client_email: String,
    /// The id of its key, the `kid` of its assertions.
    pub private_key_id: String,
    /// The private key, PEM of PKCS#8, RSA 2048.
    pub private_key: String,
    /// The public key, PEM of SPKI.
    pub public_key: String,
}

impl ServiceAccount {
    /// A new account that may send for this project.
    pub fn generate(project_id: &str) -> anyhow::Result<Self> {
        let pair =
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).context("making a service account key")?;
        Ok(Self {
            project_id: project_id.to_owned(),
            client_email: format!("peal@{project_id}.iam.gserviceaccount.com"),
            private_key_id: uuid::Uuid::new_v4().simple().to_string(),
            private_key: pair.serialize_pem(),
            public_key: pair.public_key_pem(),
        })
    }

    /// An assertion (RFC 7523, RS256) for this audience, issued at this moment, seconds since the epoch; it lives an
    /// hour.
    pub fn assertion(&self, audience: &str, issued_s: i64) -> anyhow::Result<String> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.private_key_id.clone());
        let key = EncodingKey::from_rsa_pem(self.private_key.as_bytes())?;
        let claims = json!({
            "iss": self.client_email,
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            "aud": audience,
            "iat": issued_s,
            "exp": issued_s + 3600,
        });
        Ok(jsonwebtoken::encode(&header, &claims, &key)?)
    }

    /// The JSON file Google hands out, with this token endpoint.
    pub fn to_json(&self, token_uri: &str) -> String {
        json!({
            "type": "service_account",
            "project_id": self.project_id,
            "private_key_id": self.private_key_id,
            "private_key": self.private_key,
            "client_email": self.client_email,
            "client_id": "100000000000000000000",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
            "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
            "universe_domain": "googleapis.com",
        })
        .to_string()
    }
}

impl std::fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccount")
            .field("project_id", &self.project_id)
            .field("client_email", &self.client_email)
            .finish_non_exhaustive()
    }
}
