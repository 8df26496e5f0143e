//! Access tokens (RFC 7523, as in Google's "Using OAuth 2.0 for server to server applications"): fetched once for all
//! waiting attempts, and renewed two minutes before they expire.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Client;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use shared::clock::Clock;
use tokio::sync::{Mutex, MutexGuard};

use crate::providers::{
    BadCredential, Outcome,
    outcome::foreign_reason,
    transport::{
        https::{host_and_port, read_body},
        retry_after::retry_after,
    },
};

const MESSAGING_SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const JWT_BEARER_GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Seconds for which an assertion is valid: an hour, the maximum that Google allows.
const ASSERTION_LIFE_S: i64 = 3600;

/// Answers with access tokens have one or two thousand bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A token is renewed this long before it expires.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_mins(2);

/// For this long after a failure, other attempts get the same failure instead of a request of their own.
const SHARE_FAILURE_FOR: Duration = Duration::from_secs(5);

/// The minimum time between two renewals that a refusal by FCM caused.
const MIN_BETWEEN_RENEWALS: Duration = Duration::from_mins(1);

/// The current access token of one service account.
pub(super) struct AccessToken {
    email: String,
    key_id: Option<String>,
    key: EncodingKey,
    uri: Url,
    /// `host:port` of the token endpoint.
    pub(super) endpoint: Arc<str>,
    http: Client,
    timeout: Duration,
    clock: Clock,
    current: ArcSwapOption<Granted>,
    fetching: Mutex<Past>,
}

/// An access token with its expiry.
pub(super) struct Granted {
    /// The `authorization` header, marked sensitive.
    pub(super) header: HeaderValue,
    expires: Timestamp,
}

/// The last failure of the token endpoint, and the last refusal of a token.
#[derive(Default)]
struct Past {
    failure: Option<(Timestamp, Outcome)>,
    refused_at: Option<Timestamp>,
}

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

#[derive(Deserialize)]
struct Grant {
    access_token: String,
    expires_in: u32,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl AccessToken {
    /// Reads a service account's JSON file. `google_only` refuses token endpoints that are not Google's.
    pub(super) fn new(
        json: &str,
        google_only: bool,
        http: Client,
        timeout: Duration,
        clock: Clock,
    ) -> Result<Self, BadCredential> {
        let bad = |rule| BadCredential::new("service_account", rule);
        let account: ServiceAccount =
            serde_json::from_str(json).map_err(|_| bad("must be the JSON file of a service account"))?;
        let key = EncodingKey::from_rsa_pem(account.private_key.as_bytes())
            .map_err(|_| bad("private_key must be an RSA private key in PEM"))?;
        let uri: Url = account.token_uri.parse().map_err(|_| bad("token_uri must be a URL"))?;
        // The file comes from a tenant: without this rule it could direct requests of the worker into our own network.
        let is_google = uri
            .host_str()
            .is_some_and(|host| host == "googleapis.com" || host.ends_with(".googleapis.com"));
        if uri.scheme() != "https" || (google_only && !is_google) {
            return Err(bad("token_uri must be an https URL of Google"));
        }
        let endpoint = host_and_port(&uri);
        let token = Self {
            email: account.client_email,
            key_id: account.private_key_id,
            key,
            uri,
            endpoint,
            http,
            timeout,
            clock,
            current: ArcSwapOption::empty(),
            fetching: Mutex::default(),
        };
        token
            .assertion(token.clock.now())
            .ok_or_else(|| bad("private_key cannot sign"))?;
        Ok(token)
    }

    /// The token to use now.
    ///
    /// # Errors
    /// The outcome of the attempt, if no token is available.
    pub(super) async fn current(&self) -> Result<Arc<Granted>, Outcome> {
        let now = self.clock.now();
        let current = self.current.load_full();
        let left = current.as_ref().map_or(Duration::ZERO, |granted| left(granted, now));
        match current {
            Some(granted) if left > RENEW_BEFORE_EXPIRY => Ok(granted),
            // One attempt renews it. While the old one is valid, the others neither wait for that nor fail with it.
            Some(granted) if left > RENEW_BEFORE_EXPIRY / 4 => match self.fetching.try_lock() {
                Ok(past) => Ok(self.fetch(past).await.unwrap_or(granted)),
                Err(_) => Ok(granted),
            },
            _ => self.fetch(self.fetching.lock().await).await,
        }
    }

    /// Fetches another token after FCM refused `refused`.
    ///
    /// # Errors
    /// The outcome of the attempt, if no token is available; `None` if a renewal was tried less than a minute ago.
    pub(super) async fn after_refused(&self, refused: &Arc<Granted>) -> Result<Arc<Granted>, Option<Outcome>> {
        let mut past = self.fetching.lock().await;
        if let Some(current) = self
            .current
            .load_full()
            .filter(|current| !Arc::ptr_eq(current, refused))
        {
            return Ok(current);
        }
        if past
            .refused_at
            .is_some_and(|then| self.clock.since(then) < MIN_BETWEEN_RENEWALS)
        {
            return Err(None);
        }
        past.refused_at = Some(self.clock.now());
        self.current.store(None);
        self.fetch(past).await.map_err(Some)
    }

    async fn fetch(&self, mut past: MutexGuard<'_, Past>) -> Result<Arc<Granted>, Outcome> {
        let now = self.clock.now();
        // The previous holder of the lock may have fetched one.
        if let Some(current) = self
            .current
            .load_full()
            .filter(|current| left(current, now) > RENEW_BEFORE_EXPIRY)
        {
            return Ok(current);
        }
        if let Some((then, failure)) = &past.failure
            && self.clock.since(*then) < SHARE_FAILURE_FOR
        {
            return Err(failure.clone());
        }
        let asked = tokio::time::timeout(self.timeout, self.ask(now)).await;
        match asked.unwrap_or_else(|_| Err(Outcome::endpoint("token_timeout", None))) {
            Ok(granted) => {
                past.failure = None;
                let granted = Arc::new(granted);
                self.current.store(Some(granted.clone()));
                Ok(granted)
            }
            Err(failure) => {
                tracing::warn!(endpoint = %self.endpoint, outcome = ?failure, "no access token for FCM");
                past.failure = Some((self.clock.now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn ask(&self, now: Timestamp) -> Result<Granted, Outcome> {
        let assertion = self
            .assertion(now)
            .ok_or_else(|| Outcome::credential("assertion", None))?;
        let form = [("grant_type", JWT_BEARER_GRANT), ("assertion", &assertion)];
        let answer = self.http.post(self.uri.clone()).form(&form).send().await;
        let mut answer = answer.map_err(|_| Outcome::endpoint("token_unreachable", None))?;
        let asked = retry_after(answer.headers(), now);
        let body = read_body(&mut answer, MAX_ANSWER_BYTES)
            .await
            .ok_or_else(|| Outcome::endpoint("token_unreachable", None))?;
        match answer.status() {
            StatusCode::OK => granted(&body, now).ok_or_else(|| Outcome::endpoint("token_malformed", None)),
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                Err(Outcome::endpoint("token_unavailable", asked))
            }
            // RFC 6749, section 5.2: `invalid_grant`, `invalid_client` and others.
            status if status.is_client_error() => {
                let refusal = serde_json::from_slice::<Refusal>(&body).ok();
                let reason = refusal.map(|refusal| foreign_reason(&refusal.error, "token_refused"));
                Err(Outcome::credential(reason.unwrap_or("token_refused".into()), asked))
            }
            _ => Err(Outcome::endpoint("token_malformed", None)),
        }
    }

    fn assertion(&self, now: Timestamp) -> Option<String> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&self.key_id);
        let iat = now.as_second();
        let claims = Claims {
            iss: &self.email,
            scope: MESSAGING_SCOPE,
            aud: self.uri.as_str(),
            iat,
            exp: iat + ASSERTION_LIFE_S,
        };
        encode(&header, &claims, &self.key).ok()
    }
}

fn granted(body: &[u8], now: Timestamp) -> Option<Granted> {
    let grant: Grant = serde_json::from_slice(body).ok()?;
    let mut header = HeaderValue::try_from(format!("Bearer {}", grant.access_token)).ok()?;
    header.set_sensitive(true);
    Some(Granted {
        header,
        expires: now + Duration::from_secs(grant.expires_in.into()),
    })
}

/// The time until the token expires.
fn left(granted: &Granted, now: Timestamp) -> Duration {
    Duration::try_from(granted.expires.duration_since(now)).unwrap_or_default()
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
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
        AccessToken::new(
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
        let assertion = token.assertion(Timestamp::from_second(1_800_000_000).unwrap()).unwrap();
        assert_eq!(assertion.split('.').count(), 3);
        assert!(!assertion.contains(['=', '+', '/']));
    }

    #[test]
    fn a_granted_token_expires_when_google_states() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let grant = granted(
            br#"{"access_token":"ya29.x","expires_in":3599,"token_type":"Bearer"}"#,
            now,
        )
        .unwrap();
        assert_eq!(grant.header, "Bearer ya29.x");
        assert!(grant.header.is_sensitive());
        assert_eq!(left(&grant, now), Duration::from_secs(3599));
        assert_eq!(left(&grant, now + Duration::from_secs(4000)), Duration::ZERO);
        for bad in ["", "{}", r#"{"access_token":"a\nb","expires_in":1}"#] {
            assert!(granted(bad.as_bytes(), now).is_none(), "{bad}");
        }
    }
}
