//! The simulator of Twilio's API for messages: `POST /2010-04-01/Accounts/{account}/Messages.json`.
//!
//! Not simulated: delivery to the phone and what Twilio reports about it, media, templates, and limits (script
//! `20429` instead).

mod site;

use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, twilio};

pub use self::site::TwilioApi;
use super::{ApiSimulator, RecordedPush, Simulation, form};

/// A running simulator of Twilio. Dropping it stops it.
pub type Twilio = ApiSimulator<TwilioApi>;

impl Twilio {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> twilio::Credential {
        twilio::Credential {
            account_sid: self.api().account_sid.clone(),
            api_key_sid: None,
            secret: self.api().auth_token.clone().into(),
            messaging_service_sid: Some(self.api().messaging_service_sid.clone()),
            webhook_key: None,
        }
    }

    /// The same with an API key instead of the auth token.
    pub fn credential_with_key(&self) -> twilio::Credential {
        twilio::Credential {
            api_key_sid: Some(self.api().api_key_sid.clone()),
            secret: self.api().api_key_secret.clone().into(),
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

    /// A text message carries no id. The load writes that of the job into the text.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        form::read(&push.payload).remove("Body")
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("twilio_port", self.addr().port().into()),
            ("twilio_account_sid", self.api().account_sid.clone().into()),
            ("twilio_auth_token", self.api().auth_token.clone().into()),
        ]
    }

    fn example(&self, dir: &Path) -> String {
        let (port, sid, dir) = (self.addr().port(), &self.api().account_sid, dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -u {sid}:{} -d To=+41791234567 -d From=Shop -d Body=ding \\\n  \
             https://localhost:{port}/2010-04-01/Accounts/{sid}/Messages.json\n",
            self.api().auth_token
        )
    }
}
