//! Tokens of a service account, which the worker signs itself (Huawei: "Generating an authentication token based on a service
//! account"): PS256, valid for an hour, used again until they are old.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};

use crate::providers::{BadCredential, transport::https::secret_header};

/// The audience of every token, whatever server it is sent to.
const AUDIENCE: &str = "https://oauth-login.cloud.huawei.com/oauth2/v3/token";

/// Seconds for which a token is valid, the most that Huawei allows.
const LIFE_S: i64 = 3600;

/// A token is used for this long. Signing takes milliseconds.
const USED_FOR: Duration = Duration::from_mins(50);

/// The members of a service account's JSON file that are needed.
#[derive(Deserialize)]
struct ServiceAccount {
    project_id: String,
    key_id: String,
    private_key: String,
    sub_account: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

/// The tokens of one service account.
pub(super) struct ServiceToken {
    key_id: String,
    issuer: String,
    key: EncodingKey,
    current: ArcSwapOption<(HeaderValue, Timestamp)>,
}

impl ServiceToken {
    /// Reads a service account's JSON file. Returns the id of its project too.
    pub(super) fn new(json: &str, now: Timestamp) -> Result<(String, Self), BadCredential> {
        let bad = |rule| BadCredential::new("service_account", rule);
        let account: ServiceAccount =
            serde_json::from_str(json).map_err(|_| bad("must be the JSON file of a service account"))?;
        // It becomes part of a path.
        let is_plain = |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_plain(&account.project_id) {
            return Err(bad("project_id must be 1 to 64 letters and digits"));
        }
        let key = EncodingKey::from_rsa_pem(account.private_key.as_bytes())
            .map_err(|_| bad("private_key must be an RSA private key in PEM"))?;
        let token = Self {
            key_id: account.key_id,
            issuer: account.sub_account,
            key,
            current: ArcSwapOption::empty(),
        };
        token.header(now).ok_or_else(|| bad("private_key cannot sign"))?;
        Ok((account.project_id, token))
    }

    /// The header `authorization` to use at `now`.
    pub(super) fn header(&self, now: Timestamp) -> Option<HeaderValue> {
        if let Some(current) = self.current.load_full() {
            let (header, at) = &*current;
            let age = Duration::try_from(now.duration_since(*at)).unwrap_or(USED_FOR);
            if age < USED_FOR {
                return Some(header.clone());
            }
        }
        let header = secret_header(format!("Bearer {}", self.sign(now)?))?;
        self.current.store(Some(Arc::new((header.clone(), now))));
        Some(header)
    }

    fn sign(&self, now: Timestamp) -> Option<String> {
        let mut header = Header::new(Algorithm::PS256);
        header.kid = Some(self.key_id.clone());
        let iat = now.as_second();
        let claims = Claims {
            iss: &self.issuer,
            aud: AUDIENCE,
            iat,
            exp: iat + LIFE_S,
        };
        encode(&header, &claims, &self.key).ok()
    }
}

impl fmt::Debug for ServiceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceToken").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = include_str!("../testdata/rsa2048.pem");

    fn file(project_id: &str, private_key: &str) -> String {
        let file = json!({
            "project_id": project_id, "key_id": "k1", "private_key": private_key, "sub_account": "101",
            "auth_uri": "https://oauth-login.cloud.huawei.com/oauth2/v3/authorize",
        });
        file.to_string()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_token_is_used_again_until_it_is_old() {
        let (project, token) = ServiceToken::new(&file("736", KEY), at(0)).unwrap();
        assert_eq!(project, "736");
        let first = token.header(at(0)).unwrap();
        assert!(first.is_sensitive());
        assert_eq!(token.header(at(2999)).unwrap(), first);
        let second = token.header(at(3000)).unwrap();
        assert_ne!(second, first);
        assert_ne!(token.header(at(-1)).unwrap(), second, "a clock that was set back");
    }

    #[test]
    fn errors_and_debug_output_hide_secrets() {
        for (file, rule) in [
            (file("736", "secret"), "private_key"),
            (file("../736", KEY), "project_id"),
            ("secret".to_owned(), "JSON file"),
        ] {
            let bad = ServiceToken::new(&file, at(0)).unwrap_err();
            assert!(
                bad.rule.contains(rule) && !format!("{bad}{bad:?}").contains("secret"),
                "{bad}"
            );
        }
        let (_, token) = ServiceToken::new(&file("736", KEY), at(0)).unwrap();
        assert!(!format!("{token:?}").contains("101"));
    }
}
