//! Settings of web push, and the checked credential of an app.

use std::path::PathBuf;

use serde::Deserialize;

use super::{outcome::Party, vapid::Vapid};

/// The push services of the browsers. Each host stands for all below it, and has breakers of its own.
pub(super) const SERVICES: [&str; 4] = [
    "fcm.googleapis.com",        // Chrome, Edge on Android, Opera, Samsung Internet, Brave
    "push.services.mozilla.com", // Firefox
    "push.apple.com",            // Safari
    "notify.windows.com",        // Edge on Windows
];

/// Settings of web push.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Hosts of push services; each stands for all below it. That one of them refuses a token or cannot be reached is taken for
    /// trouble of the credential or the service. Any other host's answers count for its address only.
    pub services: Vec<String>,
    /// Whether subscriptions at other hosts are sent to, within `providers.receivers`.
    pub others: bool,
    /// Certificates in PEM to trust instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an attempt may take; at most 12,000.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            services: SERVICES.map(str::to_owned).to_vec(),
            others: true,
            ca_file: None,
            timeout_ms: 12_000,
        }
    }
}

impl Settings {
    /// Who answers at `host`.
    pub(super) fn party(&self, host: &str) -> Party {
        if self.services.iter().any(|service| is_within(host, service)) {
            Party::Known
        } else {
            Party::Stranger
        }
    }
}

/// Whether `host` is `service` or below it.
pub(super) fn is_within(host: &str, service: &str) -> bool {
    let above = host.strip_suffix(service);
    above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// A checked [`shared::provider::web_push::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    pub(super) vapid: Vapid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_known_by_its_host_and_not_by_a_part_of_it() {
        let settings = Settings::default();
        for known in [
            "fcm.googleapis.com",
            "updates.push.services.mozilla.com",
            "web.push.apple.com",
            "db5p.notify.windows.com",
        ] {
            assert_eq!(settings.party(known), Party::Known, "{known}");
        }
        for stranger in [
            "evilfcm.googleapis.com.example.com",
            "evilpush.apple.com",
            "fcm.googleapis.com.",
            "apple.com",
            "push.example.net",
            "",
        ] {
            assert_eq!(settings.party(stranger), Party::Stranger, "{stranger}");
        }
    }
}
