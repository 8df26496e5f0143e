//! Where the gateways of a mesh are known outside of it: to providers that report to them, and in links.

use std::fmt;

use serde::{Deserialize, Deserializer, de::Error};

/// An origin: `https://` and a host, perhaps with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// The origin, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PublicUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let origin = text.strip_suffix('/').unwrap_or(&text);
        let host = origin.strip_prefix("https://").unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
        if host.is_empty() || host.len() > 260 || !host.bytes().all(is_plain) {
            let rule = "public_url must be https:// and a host in lower case, perhaps with a port, without a path";
            return Err(D::Error::custom(rule));
        }
        Ok(Self(origin.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_origin_is_one() {
        let read = |text: &str| serde_json::from_value::<PublicUrl>(text.into()).map(|url| url.0).ok();
        for good in ["https://peal.example.com", "https://[::1]:8443", "https://10.0.0.1:443"] {
            assert_eq!(read(good).as_deref(), Some(good));
        }
        assert_eq!(read("https://a.example/").as_deref(), Some("https://a.example"));
        for bad in [
            "",
            "https://",
            "http://a.example",
            "https://a.example/path",
            "https://a b",
            "https://u@a.example",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
