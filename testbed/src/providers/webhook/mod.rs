//! Receivers of webhooks: every path of the server is one.
//!
//! A path whose secret is known ([`Receivers::expect`]) takes only what is signed with it, by the rules of Standard Webhooks.
//! What has no signature must be the text of a chat. The script knows receivers by their paths.

mod site;

use std::path::Path;

use serde_json::Value;
use shared::provider::Provider;

pub use self::site::ReceiverApi;
use super::{ApiSimulator, RecordedPush, Simulation, reachable};

/// A running server with receivers. Dropping it stops it.
pub type Receivers = ApiSimulator<ReceiverApi>;

impl Receivers {
    /// The URL of the receiver at `path`.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", reachable(self.addr()))
    }

    /// From now on, the receiver at `path` takes only what is signed with `secret`, `whsec_` and base64.
    ///
    /// # Errors
    /// When the secret has another form.
    pub fn expect(&self, path: &str, secret: &str) -> anyhow::Result<()> {
        self.api().expect(path, secret)
    }
}

impl Simulation for Receivers {
    fn provider(&self) -> Provider {
        Provider::Webhook
    }

    fn name(&self) -> &'static str {
        "Webhook"
    }

    /// Addresses name the receivers.
    fn worker_settings(&self, _: &str) -> String {
        String::new()
    }

    /// A webhook carries the id of its delivery. The load writes that of the job into the text of chats.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        let body: Value = serde_json::from_slice(&push.payload).ok()?;
        Some(body.get("text")?.as_str()?.to_owned())
    }

    fn keeps_ids(&self) -> bool {
        true
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![("webhook_port", self.addr().port().into())]
    }

    fn summary(&self, _: &Path) -> String {
        format!("Webhook {}  any path is a receiver", self.url(""))
    }

    fn example(&self, dir: &Path) -> String {
        format!(
            "curl --cacert {}/ca.pem -H 'content-type: application/json' -d '{{\"text\":\"ding\"}}' {}\n",
            dir.display(),
            self.url("/chat")
        )
    }
}
