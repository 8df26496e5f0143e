//! Making attempts.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::RecvStream;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE},
    uri::{Authority, PathAndQuery, Scheme},
};
use reqwest::{Certificate, Client, Url};
use shared::{channel::Provider, clock::Clock};
use tokio::time::{Instant, timeout};

use super::{
    config::{Account, FcmAccount, Settings, path},
    outcome::{Verdict, judge, message_name},
    request::body,
    token::{AccessToken, Granted},
};
use crate::providers::{
    Attempt, Attempted, BadCredential, BadTrust, Outcome,
    transport::{
        endpoints::{self, Endpoints},
        http2::{Exchanged, Host, Network, Pool, Progress, exchange, read},
        retry_after::retry_after,
        tls,
    },
};

/// Until the token endpoint counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// FCM's refusals are some hundred bytes, access tokens one or two thousand.
const MOST_BODY: usize = 64 * 1024;

/// FCM, for all apps. Google does not bind connections to projects, so all apps share them.
#[derive(Debug)]
pub(in crate::providers) struct Fcm {
    network: Arc<Network>,
    pool: Arc<Pool>,
    tokens: Client,
    google_only: bool,
    timeout: Duration,
    clock: Clock,
    nowhere: Arc<str>,
}

impl Fcm {
    pub(in crate::providers) fn new(
        settings: &Settings,
        endpoints: endpoints::Settings,
        clock: Clock,
    ) -> Result<Self, BadTrust> {
        let hosts = settings.endpoints.iter().map(|base| parse_base(base).map(Arc::new));
        let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
        let most = Duration::from_millis(settings.timeout_ms);
        let endpoints = Endpoints::new(Provider::Fcm, None, hosts, endpoints, clock.clone());
        let network = Network::new(endpoints, tls::http2_config(settings.ca_file.as_deref())?);
        let mut tokens = Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT.min(most / 2));
        if let Some(file) = &settings.ca_file {
            let roots = tls::read_ca(file)?;
            let roots = roots.iter().map(|root| Certificate::from_der(root));
            tokens = tokens.tls_certs_only(roots.collect::<Result<Vec<_>, _>>().map_err(BadTrust::Client)?);
        }
        Ok(Self {
            pool: Pool::new(network.clone(), settings.connections, most / 2),
            network,
            tokens: tokens.build().map_err(BadTrust::Client)?,
            google_only: settings.ca_file.is_none(),
            timeout: most,
            clock,
            nowhere: "".into(),
        })
    }

    /// The network of its only environment.
    pub(in crate::providers) fn network(&self) -> &Arc<Network> {
        &self.network
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
        Ok(Arc::new(Account { token, path }))
    }

    pub(in crate::providers) async fn deliver(&self, account: &Account, attempt: &Attempt<'_>) -> Attempted {
        let started = Instant::now();
        let mut progress = Progress::none(&self.nowhere);
        let outcome = timeout(self.timeout, self.attempt(account, attempt, &mut progress)).await;
        progress.into_attempted(outcome.ok(), started)
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

    async fn send(
        &self,
        account: &Account,
        attempt: &Attempt<'_>,
        token: &Granted,
        progress: &mut Progress,
    ) -> Verdict {
        let left = Duration::try_from(attempt.expires_at.duration_since(self.clock.now())).unwrap_or_default();
        let body = Bytes::from(body(attempt, left));
        let make = |authority: &_| request(authority, &account.path, &token.header, &body).ok_or("malformed");
        match exchange(&self.pool, progress, make).await {
            Ok(Exchanged { answer, lease: _lease }) => self.judge(answer).await,
            Err(outcome) => outcome.into(),
        }
    }

    async fn judge(&self, answer: Response<RecvStream>) -> Verdict {
        let status = answer.status();
        let asked = retry_after(answer.headers(), self.clock.now());
        match read(answer.into_body(), MOST_BODY).await {
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

fn request(
    authority: &Authority,
    path: &PathAndQuery,
    authorization: &HeaderValue,
    body: &Bytes,
) -> Option<Request<Bytes>> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path.clone());
    let mut request = Request::new(body.clone());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, authorization.clone());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    Some(request)
}

/// `host:port` of `url`.
pub(super) fn host_and_port(url: &Url) -> Arc<str> {
    let port = url.port_or_known_default().unwrap_or(443);
    format!("{}:{port}", url.host_str().unwrap_or_default()).into()
}

/// The body of `answer`, `None` if it breaks off or is too long.
pub(super) async fn read_body(answer: &mut reqwest::Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > MOST_BODY {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

fn parse_base(base: &str) -> Result<Host, BadTrust> {
    let bad = || BadTrust::Endpoint(base.to_owned(), "an https URL without path");
    let url: Url = base.parse().map_err(|_| bad())?;
    if url.scheme() == "https" && url.has_host() && url.path() == "/" {
        Host::parse(&host_and_port(&url)).ok_or_else(bad)
    } else {
        Err(bad())
    }
}
