//! The simulator of JPush: `POST /v3/push`, its dry run `/v3/push/validate`, and `GET /v3/push/cid`.
//!
//! What has the `cid` of a push that was taken is answered as that was, and not delivered again. In a script, `token` is the
//! registration id, and a reason is one of JPush's codes. Not simulated: delivery to the device, aliases and tags, limits (script
//! 2002 instead).

mod site;

use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, jpush};

pub use self::site::JPushApi;
use super::{ApiConfig, ApiSimulator, RecordedPush, Simulation, api::Api};

/// A running simulator of JPush. Dropping it stops it.
pub type JPush = ApiSimulator<JPushApi>;

impl JPush {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> jpush::Credential {
        jpush::Credential {
            app_key: self.api().app_key.clone(),
            master_secret: self.api().master_secret.clone().into(),
        }
    }

    /// Starts a simulator that takes only `cid`s that it has issued.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_strict(config: ApiConfig) -> anyhow::Result<Self> {
        let api = JPushApi {
            only_issued: true,
            ..JPushApi::generate()
        };
        Self::start_as(api, config).await
    }
}

impl Simulation for JPush {
    fn provider(&self) -> Provider {
        Provider::JPush
    }

    fn name(&self) -> &'static str {
        "JPush"
    }

    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        push.collapse_id.clone()
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("jpush_port", self.addr().port().into()),
            ("jpush_app_key", self.api().app_key.clone().into()),
            ("jpush_master_secret", self.api().master_secret.clone().into()),
        ]
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -u {}:{} -H 'content-type: application/json' \\\n  \
             -d '{{\"platform\":\"all\",\"audience\":{{\"registration_id\":[\"beef\"]}},\"notification\":{{\"alert\":\"ding\"}}}}' \\\n  \
             https://localhost:{port}/v3/push\n",
            self.api().app_key,
            self.api().master_secret
        )
    }
}
