//! Settings of Twilio, and the checked credential of an app.

use http::HeaderValue;
use reqwest::Url;

crate::providers::transport::https::settings! {
    /// Settings of Twilio.
    Settings {
        /// Base URL, https. Twilio's regions have their own, such as `https://api.dublin.ie1.twilio.com`.
        endpoint = "https://api.twilio.com",
    }
}

/// A checked [`shared::provider::twilio::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// The SID of the account.
    pub(super) sid: String,
    /// Where its messages are posted.
    pub(super) url: Url,
    /// The header `authorization`, marked sensitive.
    pub(super) authorization: HeaderValue,
    /// Sends what has no sender.
    pub(super) messaging_service_sid: Option<String>,
}
