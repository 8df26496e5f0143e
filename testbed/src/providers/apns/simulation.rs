//! The APNs simulator as a [`Simulation`], and its command-line options.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, apns};

use super::{Apns, ApnsConfig, ApnsKey, Environment, JwtMode};
use crate::providers::log::RecordedPush;
use crate::providers::simulator::Simulation;

/// The options of `testbed simulate` for APNs.
#[derive(Clone, Debug, clap::Args)]
pub struct ApnsArgs {
    /// The address on which APNs listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:2197")]
    pub apns: SocketAddr,
    /// The Apple team of the key that is generated.
    #[arg(long, default_value = "PEALTEAM01")]
    pub team_id: String,
    /// The id of the key that is generated.
    #[arg(long, default_value = "PEALKEY001")]
    pub key_id: String,
    /// The environment of APNs that is simulated.
    #[arg(long, value_enum, default_value_t)]
    pub environment: Environment,
    /// How APNs provider tokens are parsed.
    #[arg(long, value_enum, default_value_t)]
    pub jwt: JwtMode,
    /// Whether a team that sends a new provider token within 20 minutes is answered `TooManyProviderTokenUpdates`; by
    /// default only with `--jwt strict`.
    #[arg(long)]
    pub limit_token_updates: Option<bool>,
}

impl ApnsArgs {
    /// The settings of a simulator with these options.
    ///
    /// # Errors
    /// When the key cannot be generated.
    pub fn config(&self) -> anyhow::Result<ApnsConfig> {
        Ok(ApnsConfig {
            listen: self.apns,
            environment: self.environment,
            jwt: self.jwt,
            limit_token_updates: self.limit_token_updates.unwrap_or(self.jwt == JwtMode::Strict),
            keys: vec![ApnsKey::generate(&self.team_id, &self.key_id)?.into()],
            ..ApnsConfig::default()
        })
    }
}

impl Apns {
    /// The credential with which Peal can send through this simulator to the app with this bundle id.
    pub fn credential(&self, topic: &str) -> apns::Credential {
        let key = self.key();
        apns::Credential {
            team_id: key.team_id.clone(),
            key_id: key.key_id.clone(),
            topic: topic.to_owned(),
            private_key: key.pem.clone().into(),
        }
    }
}

impl Simulation for Apns {
    fn provider(&self) -> Provider {
        Provider::Apns
    }

    fn name(&self) -> &'static str {
        "APNs"
    }

    fn worker_settings(&self, endpoint: &str) -> String {
        format!("production = [\"{endpoint}\"]\n")
    }

    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        push.collapse_id.clone()
    }

    fn keeps_ids(&self) -> bool {
        true
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        let key = self.key();
        vec![
            ("apns_port", self.addr().port().into()),
            ("team_id", key.team_id.clone().into()),
            ("key_id", key.key_id.clone().into()),
        ]
    }

    fn files(&self, now_s: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        let key = self.key();
        Ok(vec![
            ("apns-key.p8", key.pem.clone()),
            ("apns-provider-token.jwt", key.provider_token(now_s)?),
        ])
    }

    fn summary(&self, dir: &Path) -> String {
        let (port, key, dir) = (self.addr().port(), self.key(), dir.display());
        format!(
            "APNs   https://localhost:{port}  team {} key {} ({dir}/apns-key.p8)",
            key.team_id, key.key_id
        )
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "curl --http2 --cacert {dir}/ca.pem -H \"authorization: bearer $(cat {dir}/apns-provider-token.jwt)\" \\\n  \
             -H 'apns-topic: com.example.app' -H 'apns-push-type: alert' -d '{{\"aps\":{{\"alert\":\"ding\"}}}}' \\\n  \
             -i https://localhost:{port}/3/device/beef\n"
        )
    }
}
