//! The simulator of Amazon SNS: `Action=Publish`, to platform endpoints and phone numbers, with signatures of version 4.
//!
//! In a script, `token` is the endpoint's ARN or the number, and a reason is one of Amazon's error codes. Not simulated: topics,
//! delivery to the device and what Amazon reports about it, spending limits (script `QuotaExceeded` instead).

mod signature;
mod site;

use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, sns};

pub use self::site::SnsApi;
use super::{ApiSimulator, RecordedPush, Simulation, form};

/// A running simulator of Amazon SNS. Dropping it stops it.
pub type Sns = ApiSimulator<SnsApi>;

impl Sns {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> sns::Credential {
        sns::Credential {
            region: self.api().region.clone(),
            access_key_id: self.api().access_key_id.clone(),
            secret_access_key: self.api().secret_access_key.clone().into(),
        }
    }
}

impl Simulation for Sns {
    fn provider(&self) -> Provider {
        Provider::Sns
    }

    fn name(&self) -> &'static str {
        "SNS"
    }

    /// The tag of the notification on Android. A text message carries no id; the load writes that of the job into the text.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        let mut form = form::read(&push.payload);
        let text = form.remove("Message")?;
        if form.contains_key("PhoneNumber") {
            return Some(text);
        }
        let message: Value = serde_json::from_str(&text).ok()?;
        let payload: Value = serde_json::from_str(message["GCM"].as_str()?).ok()?;
        let tag = payload.pointer("/fcmV1Message/message/android/notification/tag")?;
        tag.as_str().map(str::to_owned)
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("sns_port", self.addr().port().into()),
            ("sns_region", self.api().region.clone().into()),
            ("sns_access_key_id", self.api().access_key_id.clone().into()),
            ("sns_secret_access_key", self.api().secret_access_key.clone().into()),
        ]
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "curl --cacert {dir}/ca.pem --aws-sigv4 aws:amz:{}:sns -u {}:{} \\\n  \
             -d Action=Publish -d Version=2010-03-31 -d PhoneNumber=%2B41791234567 -d Message=ding https://localhost:{port}/\n",
            self.api().region,
            self.api().access_key_id,
            self.api().secret_access_key,
        )
    }
}
