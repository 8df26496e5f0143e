//! The gateway's settings. `config.default.toml` explains each of them.
//!
//! Each room declares its own settings. No room knows all of them, so they are put together here, beside the program.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde::Deserialize;
use shared::{
    invalid::Invalid,
    nats::{
        connect::Nats,
        topology::{HUB, RegionSettings},
    },
    public_url::PublicUrl,
    seal::{MeshKey, SealError},
    secret::Secret,
    settings::{self, BadSettings},
    telemetry,
};

pub use crate::{
    doors::http::{api::Limits, callbacks::Settings as CallbackSettings},
    intake::budget::Quota,
    records::alerts::AlertSettings,
};

/// The defaults, with an explanation of every key.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// All settings of the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The address on which HTTP is served.
    pub listen: SocketAddr,
    /// Whether this is an admin gateway: it is at the hub, and writes apps, keys and regions for the gateways of regions.
    pub admin: bool,
    /// The mesh's secret in base64.
    pub mesh_key: Secret,
    /// How long requests in flight may take to finish at shutdown, in seconds.
    pub grace_s: u64,
    /// The region's NATS servers and the credentials for them.
    pub nats: Nats,
    /// The region of this gateway and the durability of its streams.
    pub mesh: RegionSettings,
    /// Limits on requests.
    pub limits: Limits,
    /// What each app's callers may do.
    pub quota: Quota,
    /// Where gateways are known outside of the mesh, to providers and in links; the same in every process.
    #[serde(default)]
    pub public_url: Option<PublicUrl>,
    /// How callbacks of providers are checked.
    #[serde(default)]
    pub callbacks: CallbackSettings,
    /// How developers are alerted to dead letters.
    pub alerts: AlertSettings,
    /// Log format, metrics and the collector of spans.
    pub telemetry: telemetry::Settings,
}

/// A setting that has the right type but an unusable value.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The mesh key is missing or malformed.
    #[error("mesh_key (PEAL_MESH_KEY): {0}")]
    MeshKey(#[from] SealError),
    /// A limit of zero would refuse every request.
    #[error("limits.{0} must be at least 1")]
    Zero(&'static str),
    /// A quota is outside its limits.
    #[error("{0}")]
    Quota(Invalid),
    /// A region has the hub's name.
    #[error("mesh.region must not be {HUB:?}, which is reserved for the hub")]
    Hub,
    /// An admin gateway is not at the hub.
    #[error("mesh.region must be {HUB:?} for an admin gateway")]
    AdminElsewhere,
    /// The share of traced notifications is not between 0 and 1.
    #[error("telemetry.sample_ratio must be between 0 and 1")]
    Ratio,
}

impl Settings {
    /// Reads the settings: defaults, then `file`, then the environment.
    ///
    /// # Errors
    /// When the file is missing, a key is unknown, or a value does not fit; the message names the key.
    pub fn load(file: Option<&Path>) -> Result<Self, BadSettings> {
        settings::load(DEFAULTS, file)
    }

    /// Checks the rules for a serving gateway that the types do not express, and decodes the mesh key.
    pub(crate) fn check(&self) -> Result<MeshKey, Unusable> {
        let limits = [
            ("body_bytes", self.limits.body_bytes),
            ("recipients", self.limits.recipients),
            ("in_flight", self.limits.in_flight),
            ("connections", self.limits.connections),
            ("connections_per_address", self.limits.connections_per_address),
            ("request_timeout_s", usize::from(self.limits.request_timeout_s > 0)),
            ("status_notifications", self.limits.status_notifications),
            ("scheduled_notifications", self.limits.scheduled_notifications),
        ];
        if let Some((name, _)) = limits.into_iter().find(|(_, limit)| *limit == 0) {
            return Err(Unusable::Zero(name));
        }
        self.quota
            .check()
            .map_err(|invalid| Unusable::Quota(invalid.within("quota")))?;
        match (self.admin, self.mesh.region.as_str() == HUB) {
            (false, true) => return Err(Unusable::Hub),
            (true, false) => return Err(Unusable::AdminElsewhere),
            _ => {}
        }
        if !(0.0..=1.0).contains(&self.telemetry.sample_ratio) {
            return Err(Unusable::Ratio);
        }
        self.decode_mesh_key()
    }

    /// The mesh key: all that an operator's command needs besides a connection, also at the hub.
    pub(crate) fn decode_mesh_key(&self) -> Result<MeshKey, Unusable> {
        Ok(MeshKey::from_base64(self.mesh_key.reveal())?)
    }

    /// How long requests in flight may take to finish at shutdown.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(toml: &str) -> Result<Settings, BadSettings> {
        settings::load(&format!("{toml}\n{DEFAULTS}"), None)
    }

    #[test]
    fn the_defaults_are_complete_except_for_the_mesh_key() {
        let settings = Settings::load(None).unwrap();
        assert_eq!(settings.limits.recipients, 1000);
        assert!(matches!(settings.check(), Err(Unusable::MeshKey(SealError::Key))));
    }

    #[test]
    fn the_error_for_a_misspelt_key_names_the_key() {
        let error = from("lisden = 1").unwrap_err().to_string();
        assert!(error.contains("lisden"), "{error}");
    }

    #[test]
    fn the_mesh_key_is_not_shown() {
        let mut settings = Settings::load(None).unwrap();
        settings.mesh_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".to_owned().into();
        assert!(settings.check().is_ok());
        assert!(!format!("{settings:?}").contains("AQEB"));
        settings.mesh.region = "hub".parse().unwrap();
        assert!(matches!(settings.check(), Err(Unusable::Hub)));
        settings.admin = true;
        assert!(settings.check().is_ok());
        settings.mesh.region = "eu".parse().unwrap();
        assert!(matches!(settings.check(), Err(Unusable::AdminElsewhere)));
    }
}
