//! Receivers as a [`Simulation`], and their command-line options.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use shared::provider::Provider;

use super::{Receivers, ReceiversConfig};
use crate::providers::log::RecordedPush;
use crate::providers::simulator::Simulation;

/// The options of `testbed simulate` for receivers of webhooks.
#[derive(Clone, Debug, clap::Args)]
pub struct WebhookArgs {
    /// The address on which the receivers of webhooks listen; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4447")]
    pub webhook: SocketAddr,
}

impl WebhookArgs {
    /// The settings of receivers with these options.
    pub fn config(&self) -> ReceiversConfig {
        ReceiversConfig {
            listen: self.webhook,
            ..ReceiversConfig::default()
        }
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

    fn files(&self, _: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
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
