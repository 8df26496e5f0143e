//! The simulator of Mailchimp as a [`Simulation`], and its command-line options.

use std::{net::SocketAddr, path::Path};

use serde_json::Value;
use shared::provider::{Provider, mailchimp};

use super::{Mailchimp, MailchimpConfig};
use crate::providers::{RecordedPush, simulator::Simulation};

/// The options of `testbed simulate` for Mailchimp.
#[derive(Clone, Debug, clap::Args)]
pub struct MailchimpArgs {
    /// The address on which Mailchimp listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4450")]
    pub mailchimp: SocketAddr,
}

impl MailchimpArgs {
    /// The settings of a simulator with these options.
    pub fn config(&self) -> MailchimpConfig {
        MailchimpConfig {
            listen: self.mailchimp,
            ..MailchimpConfig::default()
        }
    }
}

impl Mailchimp {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> mailchimp::Credential {
        mailchimp::Credential {
            api_key: self.site.api_key.clone().into(),
            subaccount: None,
        }
    }
}

impl Simulation for Mailchimp {
    fn provider(&self) -> Provider {
        Provider::Mailchimp
    }

    fn name(&self) -> &'static str {
        "Mailchimp"
    }

    fn worker_settings(&self, endpoint: &str) -> String {
        format!("endpoint = \"https://{endpoint}\"\n")
    }

    fn job_of(&self, _push: &RecordedPush) -> Option<String> {
        None
    }

    /// It is in the metadata.
    fn delivery_of<'a>(&self, push: &'a RecordedPush) -> Option<&'a str> {
        push.collapse_id.as_deref()
    }

    /// Mailchimp gives every request a new id.
    fn keeps_ids(&self) -> bool {
        false
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("mailchimp_port", self.addr().port().into()),
            ("mailchimp_key", self.site.api_key.clone().into()),
        ]
    }

    fn files(&self, _now_s: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    fn summary(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!("Mailchimp https://localhost:{port}  ({dir}/simulators.json has the key)")
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -H 'content-type: application/json' \\\n  \
             -d \"{{\\\"key\\\":\\\"$MAILCHIMP_KEY\\\",\\\"message\\\":{{\\\"from_email\\\":\\\"shop@example.com\\\",\
             \\\"to\\\":[{{\\\"email\\\":\\\"ann@example.com\\\"}}],\\\"text\\\":\\\"Hello\\\"}}}}\" \\\n  \
             https://localhost:{port}/api/1.0/messages/send\n"
        )
    }
}
