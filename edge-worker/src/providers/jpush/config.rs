//! Settings of JPush, and the checked credential of an app.

use http::HeaderValue;

crate::providers::transport::https::settings! {
    /// Settings of JPush.
    Settings {
        /// Base URL, https. Applications that live in Beijing have `https://bjapi.push.jiguang.cn`.
        endpoint = "https://api.jpush.cn",
    }
}

/// A checked [`shared::provider::jpush::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// Names the application; no secret.
    pub(super) app_key: String,
    pub(super) authorization: HeaderValue,
}
