//! The simulator of Huawei Push Kit: `POST /v3/{project}/messages:send` with tokens of a service account, `/v1/{client}` and
//! `/v2/{project}` with access tokens, and the server that grants these.
//!
//! In a script, `token` is the push token, and a reason is one of Huawei's codes, or the reason why a token is illegal, such as
//! `noRight`, which comes with 80300007. Not simulated: delivery to the device and receipts, topics, limits (script 503).

mod site;

use std::path::Path;

use serde_json::{Value, json};
use shared::provider::{Provider, hms};

pub use self::site::HmsApi;
use super::{ApiSimulator, RecordedPush, Simulation, now_s};

/// A running simulator of Huawei Push Kit. Dropping it stops it.
pub type Hms = ApiSimulator<HmsApi>;

impl Hms {
    /// The credential with which Peal can send through this simulator, to devices of both generations.
    pub fn credential(&self) -> hms::Credential {
        hms::Credential {
            service_account: Some(self.service_account_json().into()),
            client_id: Some(self.api().client_id.clone()),
            client_secret: Some(self.api().client_secret.clone().into()),
            project_id: None,
        }
    }

    /// The service account as the JSON file that Huawei offers for download.
    pub fn service_account_json(&self) -> String {
        let api = self.api();
        let file = json!({
            "project_id": api.project_id,
            "key_id": api.key_id,
            "private_key": api.key.serialize_pem(),
            "sub_account": api.sub_account,
            "auth_uri": "https://oauth-login.cloud.huawei.com/oauth2/v3/authorize",
            "token_uri": "https://oauth-login.cloud.huawei.com/oauth2/v3/token",
        });
        file.to_string()
    }

    /// The project, which may be the sender to devices of the first generation too.
    pub fn project_id(&self) -> &str {
        &self.api().project_id
    }

    /// Every access token expires.
    pub fn expire_tokens(&self) {
        self.api().expire_tokens(now_s());
    }
}

impl Simulation for Hms {
    fn provider(&self) -> Provider {
        Provider::Hms
    }

    fn name(&self) -> &'static str {
        "HMS"
    }

    fn worker_settings(&self, endpoint: &str) -> String {
        format!("endpoint = \"https://{endpoint}\"\noauth_endpoint = \"https://{endpoint}\"\n")
    }

    /// The tag of the notification on Android. That of HarmonyOS has a number, which is a digest.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        push.collapse_id.clone()
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("hms_port", self.addr().port().into()),
            ("hms_client_id", self.api().client_id.clone().into()),
            ("hms_client_secret", self.api().client_secret.clone().into()),
        ]
    }

    fn files(&self, _now_s: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(vec![("hms-service-account.json", self.service_account_json())])
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir, client) = (self.addr().port(), dir.display(), &self.api().client_id);
        format!(
            "curl --cacert {dir}/ca.pem -d grant_type=client_credentials -d client_id={client} -d client_secret={} \\\n  \
             https://localhost:{port}/oauth2/v3/token\n\
             curl --cacert {dir}/ca.pem -H \"authorization: Bearer $ACCESS_TOKEN\" -H 'content-type: application/json' \\\n  \
             -d '{{\"message\":{{\"token\":[\"beef\"],\"data\":\"ding\",\"android\":{{}}}}}}' \\\n  \
             https://localhost:{port}/v1/{client}/messages:send\n",
            self.api().client_secret
        )
    }
}
