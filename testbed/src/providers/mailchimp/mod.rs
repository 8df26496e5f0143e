//! The simulator of Mailchimp Transactional: `POST /api/1.0/messages/send`.
//!
//! In a script, `token` is the mailbox of the recipient, and a reason is a `reject_reason` or the name of an error. Not simulated: webhooks,
//! limits of rate (script 429 instead), templates, pools, and what becomes of a mail that was taken.

mod site;

use std::path::Path;

use serde_json::Value;
use shared::provider::{Provider, mailchimp};

pub use self::site::MailchimpApi;
use super::{ApiSimulator, RecordedPush, Simulation};

/// A running simulator of Mailchimp. Dropping it stops it.
pub type Mailchimp = ApiSimulator<MailchimpApi>;

impl Mailchimp {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> mailchimp::Credential {
        mailchimp::Credential {
            api_key: self.api().api_key.clone().into(),
            subaccount: None,
            webhook_key: None,
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

    /// It is in the metadata.
    fn delivery_of<'a>(&self, push: &'a RecordedPush) -> Option<&'a str> {
        push.collapse_id.as_deref()
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("mailchimp_port", self.addr().port().into()),
            ("mailchimp_key", self.api().api_key.clone().into()),
        ]
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
