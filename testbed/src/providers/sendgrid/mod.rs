//! The simulator of `SendGrid`'s API v3: `POST /v3/mail/send`.
//!
//! In a script, `token` is the mailbox of the recipient, and a reason comes with its HTTP status. Not simulated: events,
//! limits of rate (script 429 instead), templates, and what becomes of a mail that was taken.

mod site;

use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, sendgrid};

pub use self::site::SendGridApi;
use super::{ApiConfig, ApiSimulator, RecordedPush, Simulation, api::Api};

/// A running simulator of `SendGrid`. Dropping it stops it.
pub type SendGrid = ApiSimulator<SendGridApi>;

impl SendGrid {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> sendgrid::Credential {
        sendgrid::Credential {
            api_key: self.api().api_key.clone().into(),
            eu: false,
            webhook_key: None,
        }
    }

    /// Starts a simulator whose only verified senders are the mailboxes of `domain`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_for(domain: &str, config: ApiConfig) -> anyhow::Result<Self> {
        let api = SendGridApi {
            sender_domain: Some(domain.to_owned()),
            ..SendGridApi::generate()
        };
        Self::start_as(api, config).await
    }
}

impl Simulation for SendGrid {
    fn provider(&self) -> Provider {
        Provider::SendGrid
    }

    fn name(&self) -> &'static str {
        "SendGrid"
    }

    /// It is among the custom arguments.
    fn delivery_of<'a>(&self, push: &'a RecordedPush) -> Option<&'a str> {
        push.collapse_id.as_deref()
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("sendgrid_port", self.addr().port().into()),
            ("sendgrid_key", self.api().api_key.clone().into()),
        ]
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
