//! The FCM simulator as a [`Simulation`], and its command-line options.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, fcm};

use super::{Fcm, FcmConfig, ServiceAccount};
use crate::providers::log::RecordedPush;
use crate::providers::simulator::Simulation;

/// The options of `testbed simulate` for FCM.
#[derive(Clone, Debug, clap::Args)]
pub struct FcmArgs {
    /// The address on which FCM and its OAuth endpoint listen; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4443")]
    pub fcm: SocketAddr,
    /// The Firebase project of the service account that is generated.
    #[arg(long, default_value = "peal-test")]
    pub project: String,
}

impl FcmArgs {
    /// The settings of a simulator with these options.
    ///
    /// # Errors
    /// When the service account's key cannot be generated.
    pub fn config(&self) -> anyhow::Result<FcmConfig> {
        Ok(FcmConfig {
            listen: self.fcm,
            accounts: vec![ServiceAccount::generate(&self.project)?],
            ..FcmConfig::default()
        })
    }
}

impl Fcm {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> fcm::Credential {
        fcm::Credential {
            project_id: self.account().project_id.clone(),
            service_account: self.service_account_json().into(),
            quota_per_minute: None,
        }
    }
}

impl Simulation for Fcm {
    fn provider(&self) -> Provider {
        Provider::Fcm
    }

    fn name(&self) -> &'static str {
        "FCM"
    }

    fn worker_settings(&self, endpoint: &str) -> String {
        format!("endpoints = [\"https://{endpoint}\"]\n")
    }

    /// The tag of the notification on Android; FCM's collapse key does not reach the device.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        let body: Value = serde_json::from_slice(&push.payload).ok()?;
        Some(body.pointer("/message/android/notification/tag")?.as_str()?.to_owned())
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("fcm_port", self.addr().port().into()),
            ("project_id", self.account().project_id.clone().into()),
        ]
    }

    fn files(&self, now_s: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(vec![
            ("fcm-service-account.json", self.service_account_json()),
            ("fcm-assertion.jwt", self.account().assertion(&self.token_uri(), now_s)?),
        ])
    }

    fn summary(&self, dir: &Path) -> String {
        let (port, project, dir) = (self.addr().port(), &self.account().project_id, dir.display());
        format!("FCM    https://localhost:{port}  project {project} ({dir}/fcm-service-account.json)")
    }

    fn example(&self, dir: &Path) -> String {
        let (port, project, dir) = (self.addr().port(), &self.account().project_id, dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -d grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer \\\n  \
             --data-urlencode assertion@{dir}/fcm-assertion.jwt {}\n\
             curl --cacert {dir}/ca.pem -H \"authorization: Bearer $ACCESS_TOKEN\" \
             -H 'content-type: application/json' \\\n  \
             -d '{{\"message\":{{\"token\":\"beef\",\"notification\":{{\"title\":\"ding\"}}}}}}' \\\n  \
             https://localhost:{port}/v1/projects/{project}/messages:send\n",
            self.token_uri(),
        )
    }
}
