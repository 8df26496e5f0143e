//! Making attempts.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{
    HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use reqwest::Url;
use reqwest::{Certificate, Client, ClientBuilder, Request, Response};
use shared::clock::Clock;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    config::{Account, FcmAccount, Settings, path},
    outcome::{Verdict, judge, message_name},
    request::body,
    token::{AccessToken, Granted},
};
use crate::providers::{
    Attempt, Attempted, BadCredential, BadTrust, Outcome, endpoints::Endpoints, retry_after::retry_after, tls,
};

/// Nine tenths of the 100 streams that Google's front ends allow; more would queue inside the HTTP client, where a
/// push that was never sent cannot be told from one that was.
const STREAMS: usize = 90;

/// Until one endpoint counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// FCM's refusals are some hundred bytes, access tokens one or two thousand.
const MOST_BODY: usize = 64 * 1024;

/// FCM, for all apps. Google does not bind connections to projects, so all apps share them.
#[derive(Debug)]
pub(in crate::providers) struct Fcm {
    bases: Vec<Url>,
    endpoints: Endpoints<Arc<str>>,
    lanes: Vec<Lane>,
    next_lane: AtomicUsize,
    tokens: Client,
    google_only: bool,
    timeout: Duration,
    clock: Clock,
    nowhere: Arc<str>,
}

/// One client, which means one HTTP/2 connection per endpoint.
#[derive(Debug)]
struct Lane {
    http: Client,
    streams: Semaphore,
}

/// How far an attempt has come; read when its time is up.
struct Progress {
    endpoint: Arc<str>,
    status: Option<u16>,
    sent: bool,
}

impl Fcm {
    pub(in crate::providers) fn new(settings: &Settings, clock: Clock) -> Result<Self, BadTrust> {
        let bases = settings
            .endpoints
            .iter()
            .map(|base| parse_base(base))
            .collect::<Result<Vec<_>, _>>()?;
        let most = Duration::from_millis(settings.timeout_ms);
        let roots = settings.ca_file.as_deref().map(tls::read_ca).transpose()?;
        let builder = || -> Result<ClientBuilder, BadTrust> {
            let builder = Client::builder()
                .https_only(true)
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT.min(most / 2));
            let Some(roots) = &roots else { return Ok(builder) };
            let roots = roots
                .iter()
                .map(|root| Certificate::from_der(root))
                .collect::<Result<Vec<_>, _>>();
            Ok(builder.tls_certs_only(roots.map_err(BadTrust::Client)?))
        };
        let lane = || -> Result<Lane, BadTrust> {
            let http = builder()?
                // Otherwise every push of a first burst opens a connection, in case the peer speaks only HTTP/1.1.
                .http2_prior_knowledge()
                .http2_keep_alive_interval(Duration::from_secs(30))
                .http2_keep_alive_timeout(Duration::from_secs(5))
                .http2_keep_alive_while_idle(true)
                .build()
                .map_err(BadTrust::Client)?;
            Ok(Lane {
                http,
                streams: Semaphore::new(STREAMS),
            })
        };
        Ok(Self {
            endpoints: Endpoints::new(bases.iter().map(host_and_port)),
            bases,
            lanes: (0..settings.connections.max(1))
                .map(|_| lane())
                .collect::<Result<_, _>>()?,
            next_lane: AtomicUsize::new(0),
            tokens: builder()?.build().map_err(BadTrust::Client)?,
            google_only: settings.ca_file.is_none(),
            timeout: most,
            clock,
            nowhere: "".into(),
        })
    }

    /// Checks `account` and makes it usable.
    pub(in crate::providers) fn account(&self, account: &FcmAccount) -> Result<Arc<Account>, BadCredential> {
        let path = path(&account.project_id)?;
        let token = AccessToken::new(
            &account.service_account,
            self.google_only,
            self.tokens.clone(),
            self.timeout / 2,
            self.clock.clone(),
        )?;
        let url = |base: &Url| {
            let mut url = base.clone();
            url.set_path(&path);
            url
        };
        Ok(Arc::new(Account {
            token,
            urls: self.bases.iter().map(url).collect(),
        }))
    }

    pub(in crate::providers) async fn deliver(&self, account: &Account, attempt: &Attempt<'_>) -> Attempted {
        let started = Instant::now();
        let mut progress = Progress {
            endpoint: self.nowhere.clone(),
            status: None,
            sent: false,
        };
        let outcome = match timeout(self.timeout, self.attempt(account, attempt, &mut progress)).await {
            Ok(outcome) => outcome,
            Err(_) => progress.timed_out(),
        };
        Attempted {
            outcome,
            status: progress.status,
            endpoint: progress.endpoint,
            took: started.elapsed(),
        }
    }

    async fn attempt(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        progress.endpoint = account.token.endpoint.clone();
        let token = match account.token.current().await {
            Ok(token) => token,
            Err(outcome) => return outcome,
        };
        let first = self.send(account, attempt, &token, progress).await;
        if !first.renew_token {
            return first.outcome;
        }
        progress.sent = false;
        let token = match account.token.after_refused(&token).await {
            Ok(token) => token,
            Err(outcome) => return outcome.unwrap_or(first.outcome),
        };
        self.send(account, attempt, &token, progress).await.outcome
    }

    /// Sends to the first endpoint that can be reached.
    async fn send(
        &self,
        account: &Account,
        attempt: &Attempt<'_>,
        token: &Granted,
        progress: &mut Progress,
    ) -> Verdict {
        let lane = &self.lanes[self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len()];
        let mut unreached = Outcome::endpoint("no_endpoint", None);
        for (index, name) in self.endpoints.in_order() {
            progress.endpoint = name.clone();
            progress.status = None;
            progress.sent = false;
            let Ok(_stream) = lane.streams.acquire().await else {
                break;
            };
            let left = Duration::try_from(attempt.expires_at.duration_since(self.clock.now())).unwrap_or_default();
            let mut request = Request::new(Method::POST, account.urls[index].clone());
            request.headers_mut().insert(AUTHORIZATION, token.header.clone());
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body(attempt, left).into());
            progress.sent = true;
            match lane.http.execute(request).await {
                Ok(answer) => {
                    self.endpoints.worked(index);
                    progress.status = Some(answer.status().as_u16());
                    return self.judge(answer).await;
                }
                Err(error) if error.is_connect() => {
                    tracing::warn!(endpoint = %name, "cannot connect to FCM");
                    self.endpoints.failed(index);
                    progress.sent = false;
                    unreached = Outcome::endpoint("connect", None);
                }
                Err(error) if is_unprocessed(&error) => return Outcome::retry_later("refused_stream", None).into(),
                Err(_) => return Outcome::ambiguous("connection_lost").into(),
            }
        }
        unreached.into()
    }

    async fn judge(&self, mut answer: Response) -> Verdict {
        let status = answer.status();
        let asked = retry_after(answer.headers(), self.clock.now());
        match read_body(&mut answer).await {
            Some(body) if status == StatusCode::OK => Outcome::Accepted {
                provider_id: message_name(&body),
            }
            .into(),
            Some(body) => judge(status.as_u16(), &body, asked),
            None if status == StatusCode::OK => Outcome::Accepted { provider_id: None }.into(),
            None => Outcome::retry_later("answer_incomplete", asked).into(),
        }
    }
}

impl Progress {
    fn timed_out(&self) -> Outcome {
        match (self.sent, self.status) {
            (true, Some(200)) => Outcome::Accepted { provider_id: None },
            (true, Some(_)) => Outcome::retry_later("answer_incomplete", None),
            (true, None) => Outcome::ambiguous("timeout"),
            (false, _) => Outcome::endpoint("timeout", None),
        }
    }
}

/// `host:port` of `url`.
pub(super) fn host_and_port(url: &Url) -> Arc<str> {
    let port = url.port_or_known_default().unwrap_or(443);
    format!("{}:{port}", url.host_str().unwrap_or_default()).into()
}

/// The body of `answer`, `None` if it breaks off or is too long.
pub(super) async fn read_body(answer: &mut Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > MOST_BODY {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

fn parse_base(base: &str) -> Result<Url, BadTrust> {
    let bad = || BadTrust::Endpoint(base.to_owned(), "an https URL without path");
    let url: Url = base.parse().map_err(|_| bad())?;
    if url.scheme() == "https" && url.has_host() && url.path() == "/" {
        Ok(url)
    } else {
        Err(bad())
    }
}

/// Whether the peer said that it did not look at the request (RFC 9113, sections 6.8 and 8.7).
fn is_unprocessed(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let refused = h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            return h2.is_remote() && (h2.is_go_away() || refused);
        }
        cause = error.source();
    }
    false
}
