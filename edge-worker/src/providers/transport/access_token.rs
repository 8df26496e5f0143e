//! Access tokens of OAuth 2.0 (RFC 6749): fetched once for all waiting attempts, and renewed two minutes before they expire.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::Value;
use shared::{clock::Clock, provider::Provider};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    https::{host_and_port, read_body, secret_header},
    retry_after::retry_after,
};
use crate::providers::{Outcome, outcome::foreign_reason};

/// Answers with access tokens have one or two thousand bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A token is renewed this long before it expires.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_mins(2);

/// For this long after a failure, other attempts get the same failure instead of a request of their own.
const SHARE_FAILURE_FOR: Duration = Duration::from_secs(5);

/// The minimum time between two renewals that a refusal by the provider caused.
const MIN_BETWEEN_RENEWALS: Duration = Duration::from_mins(1);

/// The fields of a request for an access token.
pub(in crate::providers) type Form = Vec<(&'static str, String)>;

/// How a server grants access tokens.
pub(in crate::providers) struct Granting {
    /// Whose they are.
    pub(in crate::providers) provider: Provider,
    /// Where they are asked for.
    pub(in crate::providers) url: Url,
    /// Makes the request at a time; `None` if it cannot be signed.
    pub(in crate::providers) form: Box<dyn Fn(Timestamp) -> Option<Form> + Send + Sync>,
}

/// The current access token of one credential.
pub(in crate::providers) struct AccessToken {
    granting: Granting,
    /// `host:port` of the token endpoint.
    pub(in crate::providers) endpoint: Arc<str>,
    http: Client,
    timeout: Duration,
    clock: Clock,
    current: ArcSwapOption<Granted>,
    fetching: Mutex<Past>,
}

/// An access token with its expiry.
pub(in crate::providers) struct Granted {
    /// The `authorization` header, marked sensitive.
    pub(in crate::providers) header: HeaderValue,
    expires: Timestamp,
}

/// The meaning of an answer to a request with an access token.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::providers) struct Verdict {
    pub(in crate::providers) outcome: Outcome,
    /// Whether another access token may help.
    pub(in crate::providers) renew_token: bool,
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            renew_token: false,
        }
    }
}

/// The last failure of the token endpoint, and the last refusal of a token.
#[derive(Default)]
struct Past {
    failure: Option<(Timestamp, Outcome)>,
    refused_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Grant {
    access_token: String,
    expires_in: u32,
}

/// RFC 6749, section 5.2. Huawei's words are numbers.
#[derive(Deserialize)]
struct Refusal {
    error: Value,
}

impl AccessToken {
    /// A token that is fetched when it is needed, within `timeout`.
    pub(in crate::providers) fn new(granting: Granting, http: Client, timeout: Duration, clock: Clock) -> Self {
        Self {
            endpoint: host_and_port(&granting.url),
            granting,
            http,
            timeout,
            clock,
            current: ArcSwapOption::empty(),
            fetching: Mutex::default(),
        }
    }

    /// The token to use now.
    ///
    /// # Errors
    /// The outcome of the attempt, if no token is available.
    pub(in crate::providers) async fn current(&self) -> Result<Arc<Granted>, Outcome> {
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
    pub(in crate::providers) async fn after_refused(
        &self,
        refused: &Arc<Granted>,
    ) -> Result<Arc<Granted>, Option<Outcome>> {
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
                tracing::warn!(
                    provider = %self.granting.provider, endpoint = %self.endpoint, outcome = ?failure, "no access token"
                );
                past.failure = Some((self.clock.now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn ask(&self, now: Timestamp) -> Result<Granted, Outcome> {
        let form = (self.granting.form)(now).ok_or_else(|| Outcome::credential("assertion", None))?;
        let answer = self.http.post(self.granting.url.clone()).form(&form).send().await;
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
            // `invalid_grant`, `invalid_client` and others.
            status if status.is_client_error() => {
                let refusal = serde_json::from_slice::<Refusal>(&body).ok();
                let reason = match refusal.map(|refusal| refusal.error) {
                    Some(Value::String(word)) => foreign_reason(&word, "token_refused"),
                    Some(Value::Number(number)) => foreign_reason(&format!("token_refused_{number}"), "token_refused"),
                    _ => "token_refused".into(),
                };
                Err(Outcome::credential(reason, asked))
            }
            _ => Err(Outcome::endpoint("token_malformed", None)),
        }
    }
}

fn granted(body: &[u8], now: Timestamp) -> Option<Granted> {
    let grant: Grant = serde_json::from_slice(body).ok()?;
    Some(Granted {
        header: secret_header(format!("Bearer {}", grant.access_token))?,
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
    use super::*;

    #[test]
    fn a_granted_token_expires_when_the_server_states() {
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
