//! Tenants and their provider credentials.

use std::{collections::BTreeMap, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::{
    channel::{Channel, Provider, words},
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
    /// The one region in which its recipients, facts and content are kept; other regions refuse its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency: Option<Region>,
    /// What to do when nobody can know whether a notification was sent, by channel; where nothing is said,
    /// [`Ambiguity::usual`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ambiguity: BTreeMap<Channel, Ambiguity>,
    /// Where its developers are told of dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<Alerts>,
    /// What Apple knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apns: Option<ApnsCredential>,
    /// What Google knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fcm: Option<FcmCredential>,
}

/// A webhook for alerts, signed by the rules of Standard Webhooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alerts {
    /// Where they are posted.
    pub url: String,
    /// `whsec_` and the key of the signatures in base64.
    pub secret: Sealed,
}

words!(
    /// What to do with a delivery that was sent, or may have been, without an answer.
    Ambiguity, "ambiguity", {
        /// Send it again under the same id, so that the device shows it once.
        Resend = "resend",
        /// Leave it to a person: it ends as `unknown`.
        Hold = "hold",
    }
);

impl Ambiguity {
    /// What is done where the app says nothing: a second push replaces the first on the device, a second text message
    /// costs and annoys.
    pub const fn usual(channel: Channel) -> Self {
        match channel {
            Channel::Sms => Self::Hold,
            Channel::Push | Channel::Email | Channel::Webhook => Self::Resend,
        }
    }
}

impl App {
    /// An app with neither credentials nor wishes.
    pub const fn new(id: AppId, default_region: Region) -> Self {
        Self {
            id,
            default_region,
            residency: None,
            ambiguity: BTreeMap::new(),
            alerts: None,
            apns: None,
            fcm: None,
        }
    }

    /// What is done in doubt.
    pub fn ambiguity(&self, channel: Channel) -> Ambiguity {
        self.ambiguity
            .get(&channel)
            .copied()
            .unwrap_or(Ambiguity::usual(channel))
    }
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
    /// Messages a minute that Google lets the project send, if it is not [`FCM_QUOTA`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_per_minute: Option<NonZeroU32>,
}

/// Messages a minute that Google lets a project send that did not ask for more (Google: FCM throttling and quotas).
pub const FCM_QUOTA: u64 = 600_000;

impl FcmCredential {
    /// Messages a minute that the project may send.
    pub fn quota(&self) -> u64 {
        self.quota_per_minute.map_or(FCM_QUOTA, |quota| quota.get().into())
    }
}

/// The name under which the secret of the alerts of `app` is sealed.
pub fn alerts_seal_name(app: &AppId) -> String {
    format!("{app}/alerts")
}

/// The name under which the credential of `app` for `provider` is sealed; it opens nowhere else.
pub fn seal_name(app: &AppId, provider: Provider) -> String {
    format!("{app}/{provider}")
}
