//! Settings of `SendGrid`, and the checked credential of an app.

use http::HeaderValue;
use reqwest::Url;

crate::providers::transport::https::settings! {
    /// Settings of `SendGrid`.
    Settings {
        /// Base URL, https.
        endpoint = "https://api.sendgrid.com",
        /// Base URL for credentials with `eu`, https.
        eu_endpoint = "https://api.eu.sendgrid.com",
    }
}

/// A checked [`shared::provider::sendgrid::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// Names the credential in metrics and logs.
    pub(super) name: String,
    pub(super) url: Url,
    pub(super) authorization: HeaderValue,
}
