//! Settings of webhooks.

crate::providers::transport::https::settings! {
    /// Settings of webhooks.
    Settings {}
}
