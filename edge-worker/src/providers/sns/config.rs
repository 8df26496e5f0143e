//! Settings of Amazon SNS, and the checked credential of an app.

use aws_credential_types::Credentials;
use reqwest::Url;

crate::providers::transport::https::settings! {
    /// Settings of Amazon SNS.
    Settings {
        /// Base URL, https; `{region}` stands for the region of the credential.
        endpoint = "https://sns.{region}.amazonaws.com",
    }
}

/// A checked [`shared::provider::sns::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// `region/access_key_id`, for metrics and logs.
    pub(super) name: String,
    pub(super) url: Url,
    pub(super) region: String,
    pub(super) credentials: Credentials,
}
