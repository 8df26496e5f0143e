//! Hosts in private networks that webhooks of one app may reach.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::invalid::Invalid;

/// Most hosts of one app.
const HOSTS_MAX: usize = 100;

const RULE: &str = "must be a host name, or an IPv4 or IPv6 address, without port and path";

/// A host by its name or address, in the normal form of URLs (WHATWG URL, "host parsing"). IPv4 addresses that are written as
/// IPv6 addresses count as what they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PrivateHost {
    /// A name. No other name belongs to it.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl PrivateHost {
    /// Checks the hosts of an app.
    ///
    /// # Errors
    /// If there are too many, or one is given twice; its path begins at the list.
    pub fn check(hosts: &[Self]) -> Result<(), Invalid> {
        if hosts.len() > HOSTS_MAX {
            return Err(Invalid::new("", format_args!("must be at most {HOSTS_MAX} hosts")));
        }
        let is_known = |index: &usize| hosts[..*index].contains(&hosts[*index]);
        match (0..hosts.len()).find(is_known) {
            Some(twice) => Err(Invalid::new(format!("[{twice}]"), "must not be given twice")),
            None => Ok(()),
        }
    }

    /// The host of `url`; `None` if it has none.
    pub fn of(url: &Url) -> Option<Self> {
        url.host().map(|host| Self::from_host(host.to_owned()))
    }

    fn from_host(host: Host) -> Self {
        match host {
            Host::Domain(name) => Self::Name(name),
            Host::Ipv4(address) => Self::Address(address.into()),
            Host::Ipv6(address) => Self::Address(IpAddr::from(address).to_canonical()),
        }
    }
}

impl FromStr for PrivateHost {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let host = Host::parse(text).map_err(|_| Invalid::new("", RULE))?;
        let is_name = |name: &str| {
            let is_label = |label: &str| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            };
            name.len() <= 253 && name.split('.').all(is_label)
        };
        match Self::from_host(host) {
            Self::Name(name) if !is_name(&name) => Err(Invalid::new("", RULE)),
            host => Ok(host),
        }
    }
}

impl TryFrom<String> for PrivateHost {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<PrivateHost> for String {
    fn from(host: PrivateHost) -> Self {
        host.to_string()
    }
}

impl fmt::Display for PrivateHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_the_host_that_is_listed_however_it_is_written() {
        for (listed, url, is_same) in [
            ("hooks.internal", "https://hooks.internal/", true),
            ("Hooks.INTERNAL", "https://hooks.internal:8443/x", true),
            ("hooks.internal", "https://hooks.internal./", false),
            ("hooks.internal", "https://a.hooks.internal/", false),
            ("hooks.internal", "https://hooks.internal@10.0.0.1/", false),
            ("hooks.internal", "https://hooks.internal.example.com/", false),
            ("münchen.example", "https://xn--mnchen-3ya.example/", true),
            ("10.0.0.5", "https://10.0.0.5/", true),
            ("10.0.0.5", "https://0xa000005/", true),
            ("10.0.0.5", "https://[::ffff:10.0.0.5]/", true),
            ("10.0.0.5", "https://10.0.0.6/", false),
            ("fd00::1", "https://[fd00:0::1]/", true),
            ("[fd00::1]", "https://[fd00::1]/", true),
            ("::ffff:10.0.0.5", "https://10.0.0.5/", true),
        ] {
            let listed: PrivateHost = listed.parse().unwrap();
            let found = PrivateHost::of(&url.parse().unwrap());
            assert_eq!(found.as_ref() == Some(&listed), is_same, "{listed} {url}");
            assert_eq!(listed.to_string().parse::<PrivateHost>().unwrap(), listed);
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            " ",
            ".",
            "a..b",
            "hooks.internal.",
            "*.internal",
            "*",
            "a b",
            "a/b",
            "a:443",
            "https://a",
            "10.0.0.0/8",
            "[::1",
            "1.2.3.4.5",
            "user@host",
            "a,b",
        ] {
            assert!(text.parse::<PrivateHost>().is_err(), "{text}");
        }
        let hosts = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let check = |texts: &[&str]| PrivateHost::check(&hosts(texts)).map_err(|invalid| invalid.field);
        assert_eq!(check(&["a", "b"]), Ok(()));
        assert_eq!(check(&["a", "b", "A"]), Err("[2]".to_owned()));
        assert_eq!(check(&["a"; 101]), Err(String::new()));
    }
}
