//! The simulator of Twilio as a [`Simulation`], and its command-line options.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, twilio};

use super::{Twilio, TwilioConfig};
use crate::providers::form;
use crate::providers::log::RecordedPush;
use crate::providers::simulator::Simulation;

/// The options of `testbed simulate` for Twilio.
#[derive(Clone, Debug, clap::Args)]
pub struct TwilioArgs {
    /// The address on which Twilio listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4445")]
    pub twilio: SocketAddr,
}

impl TwilioArgs {
    /// The settings of a simulator with these options.
    pub fn config(&self) -> TwilioConfig {
        TwilioConfig {
            listen: self.twilio,
            ..TwilioConfig::default()
        }
    }
}

impl Twilio {
    /// The credential with which Peal can send through this simulator, with the account's auth token.
    pub fn credential(&self) -> twilio::Credential {
        twilio::Credential {
            account_sid: self.site.account_sid.clone(),
            api_key_sid: None,
            secret: self.site.auth_token.clone().into(),
            messaging_service_sid: Some(self.site.messaging_service_sid.clone()),
        }
    }

    /// The same with an API key instead of the auth token.
    pub fn credential_with_key(&self) -> twilio::Credential {
        twilio::Credential {
            api_key_sid: Some(self.site.api_key_sid.clone()),
            secret: self.site.api_key_secret.clone().into(),
            ..self.credential()
        }
    }
}

impl Simulation for Twilio {
    fn provider(&self) -> Provider {
        Provider::Twilio
    }

    fn name(&self) -> &'static str {
        "Twilio"
    }

    fn worker_settings(&self, endpoint: &str) -> String {
        format!("endpoint = \"https://{endpoint}\"\n")
    }

    /// A text message carries no id. The load writes that of the job into the text.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        form::read(&push.payload).remove("Body")
    }

    /// Twilio gives every request a new SID.
    fn keeps_ids(&self) -> bool {
        false
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("twilio_port", self.addr().port().into()),
            ("twilio_account_sid", self.site.account_sid.clone().into()),
            ("twilio_auth_token", self.site.auth_token.clone().into()),
        ]
    }

    fn files(&self, _: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    fn summary(&self, dir: &Path) -> String {
        let (port, sid, dir) = (self.addr().port(), &self.site.account_sid, dir.display());
        format!("Twilio https://localhost:{port}  account {sid} ({dir}/simulators.json)")
    }

    fn example(&self, dir: &Path) -> String {
        let (port, sid, dir) = (self.addr().port(), &self.site.account_sid, dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -u {sid}:{} -d To=+41791234567 -d From=Shop -d Body=ding \\\n  \
             https://localhost:{port}/2010-04-01/Accounts/{sid}/Messages.json\n",
            self.site.auth_token
        )
    }
}
