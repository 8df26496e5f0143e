//! Tenants and their provider credentials.

use serde::{Deserialize, Serialize};

use crate::{
    channel::Provider,
    id::{AppId, Region},
    seal::Sealed,
};

/// A tenant, as kept in the `config` bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Its name.
    pub id: AppId,
    /// Where recipients live that nobody registered a home for.
    pub default_region: Region,
    /// What Apple knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apns: Option<ApnsCredential>,
    /// What Google knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fcm: Option<FcmCredential>,
}

/// Token-based authentication with APNs (Apple: Establishing a token-based connection to APNs).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApnsCredential {
    /// The developer team, 10 characters.
    pub team_id: String,
    /// The signing key, 10 characters.
    pub key_id: String,
    /// The bundle id, used as `apns-topic` where an address names none.
    pub topic: String,
    /// The `.p8` file: a PKCS#8 P-256 private key in PEM.
    pub private_key: Sealed,
}

/// A Google service account that may send for one Firebase project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FcmCredential {
    /// The Firebase project.
    pub project_id: String,
    /// The service account's JSON file.
    pub service_account: Sealed,
}

/// The name under which the credential of `app` for `provider` is sealed; it opens nowhere else.
pub fn seal_name(app: &AppId, provider: Provider) -> String {
    format!("{app}/{provider}")
}
