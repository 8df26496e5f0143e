//! Settings of Vonage.

crate::providers::transport::https::settings! {
    /// Settings of Vonage.
    Settings {
        /// Base URL, https.
        endpoint = "https://rest.nexmo.com",
    }
}
