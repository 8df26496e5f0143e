//! The simulator of Vonage as a [`Simulation`], and its command-line options.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, vonage};

use super::{Vonage, VonageConfig};
use crate::providers::form;
use crate::providers::log::RecordedPush;
use crate::providers::simulator::Simulation;

/// The options of `testbed simulate` for Vonage.
#[derive(Clone, Debug, clap::Args)]
pub struct VonageArgs {
    /// The address on which Vonage listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4446")]
    pub vonage: SocketAddr,
}

impl VonageArgs {
    /// The settings of a simulator with these options.
    pub fn config(&self) -> VonageConfig {
        VonageConfig {
            listen: self.vonage,
            ..VonageConfig::default()
        }
    }
}

impl Vonage {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> vonage::Credential {
        vonage::Credential {
            api_key: self.site.api_key.clone(),
            api_secret: self.site.api_secret.clone().into(),
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

    fn worker_settings(&self, endpoint: &str) -> String {
        format!("endpoint = \"https://{endpoint}\"\n")
    }

    /// A text message carries the id of its delivery. The load writes that of the job into the text.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        form::read(&push.payload).remove("text")
    }

    /// Vonage gives every request a new id.
    fn keeps_ids(&self) -> bool {
        false
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("vonage_port", self.addr().port().into()),
            ("vonage_api_key", self.site.api_key.clone().into()),
            ("vonage_api_secret", self.site.api_secret.clone().into()),
        ]
    }

    fn files(&self, _: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    fn summary(&self, dir: &Path) -> String {
        let (port, key, dir) = (self.addr().port(), &self.site.api_key, dir.display());
        format!("Vonage https://localhost:{port}  key {key} ({dir}/simulators.json)")
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "curl --cacert {dir}/ca.pem -d api_key={} -d api_secret={} -d to=41791234567 -d from=Shop -d text=ding \\\n  \
             https://localhost:{port}/sms/json\n",
            self.site.api_key, self.site.api_secret
        )
    }
}
