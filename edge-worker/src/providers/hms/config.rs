//! Settings of Huawei Push Kit, and the checked credential of an app.

use reqwest::Url;

use super::token::ServiceToken;
use crate::providers::transport::access_token::AccessToken;

crate::providers::transport::https::settings! {
    /// Settings of Huawei Push Kit.
    Settings {
        /// Base URL, https.
        endpoint = "https://push-api.cloud.huawei.com",
        /// Base URL of the server that grants access tokens for v1 and v2, https.
        oauth_endpoint = "https://oauth-login.cloud.huawei.com",
    }
}

/// A checked [`shared::provider::hms::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// The client or the project, for metrics and logs.
    pub(super) name: String,
    /// For devices of generation 3.
    pub(super) third: Option<(Url, ServiceToken)>,
    /// For devices of generation 1.
    pub(super) first: Option<(Url, AccessToken)>,
}
