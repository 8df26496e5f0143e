//! The simulator of `SendGrid` as a [`Simulation`], and its command-line options.

use std::{net::SocketAddr, path::Path};

use serde_json::Value;
use shared::provider::{Provider, sendgrid};

use super::{SendGrid, SendGridConfig};
use crate::providers::{RecordedPush, simulator::Simulation};

/// The options of `testbed simulate` for `SendGrid`.
#[derive(Clone, Debug, clap::Args)]
pub struct SendGridArgs {
    /// The address on which `SendGrid` listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4449")]
    pub sendgrid: SocketAddr,
}

impl SendGridArgs {
    /// The settings of a simulator with these options.
    pub fn config(&self) -> SendGridConfig {
        SendGridConfig {
            listen: self.sendgrid,
            ..SendGridConfig::default()
        }
    }
}

impl SendGrid {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> sendgrid::Credential {
        sendgrid::Credential {
            api_key: self.site.api_key.clone().into(),
            eu: false,
        }
    }
}

impl Simulation for SendGrid {
    fn provider(&self) -> Provider {
        Provider::SendGrid
    }

    fn name(&self) -> &'static str {
        "SendGrid"
    }

    fn worker_settings(&self, endpoint: &str) -> String {
        format!("endpoint = \"https://{endpoint}\"\n")
    }

    fn job_of(&self, _push: &RecordedPush) -> Option<String> {
        None
    }

    /// It is among the custom arguments.
    fn delivery_of<'a>(&self, push: &'a RecordedPush) -> Option<&'a str> {
        push.collapse_id.as_deref()
    }

    /// `SendGrid` gives every request a new id.
    fn keeps_ids(&self) -> bool {
        false
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("sendgrid_port", self.addr().port().into()),
            ("sendgrid_key", self.site.api_key.clone().into()),
        ]
    }

    fn files(&self, _now_s: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    fn summary(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!("SendGrid https://localhost:{port}  ({dir}/simulators.json has the key)")
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -H \"authorization: Bearer $SENDGRID_KEY\" -H 'content-type: application/json' \\\n  \
             -d '{{\"personalizations\":[{{\"to\":[{{\"email\":\"ann@example.com\"}}]}}],\"from\":{{\"email\":\"shop@example.com\"}},\
             \"subject\":\"ding\",\"content\":[{{\"type\":\"text/plain\",\"value\":\"Hello\"}}]}}' \\\n  \
             https://localhost:{port}/v3/mail/send\n"
        )
    }
}
