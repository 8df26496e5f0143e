//! The simulator of Vonage's SMS API: `POST /sms/json`.
//!
//! Not simulated: delivery to the phone and delivery receipts, signed requests, and limits (script status `1` instead).

mod site;

use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, vonage};

pub use self::site::VonageApi;
use super::{ApiSimulator, RecordedPush, Simulation, form};

/// A running simulator of Vonage. Dropping it stops it.
pub type Vonage = ApiSimulator<VonageApi>;

impl Vonage {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> vonage::Credential {
        vonage::Credential {
            api_key: self.api().api_key.clone(),
            api_secret: self.api().api_secret.clone().into(),
            webhook_key: Some("signature-secret".to_owned().into()),
        }
    }
}

impl Simulation for Vonage {
    fn provider(&self) -> Provider {
        Provider::Vonage
    }

    fn name(&self) -> &'static str {
        "Vonage"
    }

    /// A text message carries the id of its delivery. The load writes that of the job into the text.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        form::read(&push.payload).remove("text")
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("vonage_port", self.addr().port().into()),
            ("vonage_api_key", self.api().api_key.clone().into()),
            ("vonage_api_secret", self.api().api_secret.clone().into()),
        ]
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -d api_key={} -d api_secret={} -d to=41791234567 -d from=Shop -d text=ding \\\n  \
             https://localhost:{port}/sms/json\n",
            self.api().api_key,
            self.api().api_secret
        )
    }
}
