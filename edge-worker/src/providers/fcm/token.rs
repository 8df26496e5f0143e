//! Access tokens of Google (RFC 7523, as in its "Using OAuth 2.0 for server to server applications").

use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};
use shared::{clock::Clock, provider::Provider};

use crate::providers::{
    BadCredential,
    transport::access_token::{AccessToken, Granting},
};

const MESSAGING_SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const JWT_BEARER_GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Seconds for which an assertion is valid: an hour, the maximum that Google allows.
const ASSERTION_LIFE_S: i64 = 3600;

/// The members of a service account's JSON file that are needed.
#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key_id: Option<String>,
    private_key: String,
    token_uri: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

/// Reads a service account's JSON file. `google_only` refuses token endpoints that are not Google's.
pub(super) fn access_token(
    json: &str,
    google_only: bool,
    http: Client,
    timeout: Duration,
    clock: Clock,
) -> Result<AccessToken, BadCredential> {
    let bad = |rule| BadCredential::new("service_account", rule);
    let account: ServiceAccount =
        serde_json::from_str(json).map_err(|_| bad("must be the JSON file of a service account"))?;
    let key = EncodingKey::from_rsa_pem(account.private_key.as_bytes())
        .map_err(|_| bad("private_key must be an RSA private key in PEM"))?;
    let url: Url = account.token_uri.parse().map_err(|_| bad("token_uri must be a URL"))?;
    // The file comes from a tenant: without this rule it could direct requests of the worker into our own network.
    let is_google = url
        .host_str()
        .is_some_and(|host| host == "googleapis.com" || host.ends_with(".googleapis.com"));
    if url.scheme() != "https" || (google_only && !is_google) {
        return Err(bad("token_uri must be an https URL of Google"));
    }
    let audience = url.to_string();
    let sign = move |now| assertion(&account, &key, &audience, now);
    sign(clock.now()).ok_or_else(|| bad("private_key cannot sign"))?;
    let granting = Granting {
        provider: Provider::Fcm,
        url,
        form: Box::new(move |now| {
            let grant = JWT_BEARER_GRANT.to_owned();
            Some(vec![("grant_type", grant), ("assertion", sign(now)?)])
        }),
    };
    Ok(AccessToken::new(granting, http, timeout, clock))
}

fn assertion(account: &ServiceAccount, key: &EncodingKey, audience: &str, now: Timestamp) -> Option<String> {
    let mut header = Header::new(Algorithm::RS256);
    header.kid.clone_from(&account.private_key_id);
    let iat = now.as_second();
    let claims = Claims {
        iss: &account.client_email,
        scope: MESSAGING_SCOPE,
        aud: audience,
        iat,
        exp: iat + ASSERTION_LIFE_S,
    };
    encode(&header, &claims, key).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = include_str!("../testdata/rsa2048.pem");

    fn read(token_uri: &str, private_key: &str, google_only: bool) -> Result<AccessToken, BadCredential> {
        let file = json!({
            "type": "service_account",
            "client_email": "peal@example.iam.gserviceaccount.com",
            "private_key_id": "key",
            "private_key": private_key,
            "token_uri": token_uri,
        });
        let http = Client::builder().no_proxy().build().unwrap();
        access_token(
            &file.to_string(),
            google_only,
            http,
            Duration::from_secs(1),
            Clock::system(),
        )
    }

    #[test]
    fn a_tenants_file_cannot_direct_requests_into_our_network() {
        let google = "https://oauth2.googleapis.com/token";
        assert!(read(google, KEY, true).is_ok());
        for other in [
            "https://localhost/token",
            "https://169.254.169.254/latest",
            "https://googleapis.com.example.com/token",
            "https://evilgoogleapis.com/token",
        ] {
            assert!(read(other, KEY, true).is_err(), "{other}");
            assert!(read(other, KEY, false).is_ok(), "{other}");
        }
        for never in ["http://oauth2.googleapis.com/token", "token", "file:///etc/passwd"] {
            assert!(read(never, KEY, false).is_err(), "{never}");
        }
    }

    #[test]
    fn debug_output_and_errors_hide_secrets() {
        let token = read("https://oauth2.googleapis.com/token", KEY, true).unwrap();
        assert!(!format!("{token:?}").contains("PRIVATE"));
        let bad = read("https://oauth2.googleapis.com/token", "secret", true).unwrap_err();
        assert!(!format!("{bad} {bad:?}").contains("secret"));
    }
}
