//! A generated service account, in place of one that a tenant would download from Google.

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::json;

/// A Firebase service account as downloaded from Google.
#[derive(Clone)]
pub struct ServiceAccount {
    /// The Firebase project for which it may send.
    pub project_id: String,
    /// The account's address, which is the issuer (`iss`) of its assertions.
    pub client_email: String,
    /// The id of its key, the `kid` of its assertions.
    pub private_key_id: String,
    /// The private key, PEM of PKCS#8, RSA 2048.
    pub private_key: String,
    /// The public key, PEM of SPKI.
    pub public_key: String,
}

impl ServiceAccount {
    /// Generates an account that may send for this project.
    pub fn generate(project_id: &str) -> anyhow::Result<Self> {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
            .context("generating the key of a service account")?;
        Ok(Self {
            project_id: project_id.to_owned(),
            client_email: format!("peal@{project_id}.iam.gserviceaccount.com"),
            private_key_id: uuid::Uuid::new_v4().simple().to_string(),
            private_key: pair.serialize_pem(),
            public_key: pair.public_key_pem(),
        })
    }

    /// An assertion (RFC 7523, RS256) for this audience, issued at `issued_s` (seconds since the epoch) and valid for an
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

    /// The account as the JSON file that Google offers for download, with this token endpoint.
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
