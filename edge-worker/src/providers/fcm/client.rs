//! Sends pushes to FCM.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::RecvStream;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE},
    uri::{Authority, PathAndQuery, Scheme},
};
use reqwest::Client;
use shared::provider::fcm::Credential;
use shared::{clock::Clock, provider::Provider};

use super::{
    Device,
    config::{Account, Settings, path},
    outcome::{judge, message_name},
    request::body,
    token::access_token,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::WRONG_TARGET,
    transport::{
        access_token::{Granted, Verdict},
        endpoints::Endpoints,
        http2::{Exchanged, Network, Pool, exchange, read},
        https,
        retry_after::retry_after,
        tls,
    },
};

/// FCM's answers have a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// FCM, for all apps. Google does not bind connections to projects, so all apps share them.
#[derive(Debug)]
pub(in crate::providers) struct Fcm {
    network: Arc<Network>,
    pool: Arc<Pool>,
    tokens: Client,
    google_only: bool,
    /// How long fetching an access token may take.
    token_within: Duration,
    clock: Clock,
}

impl Fcm {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let Common { endpoints, clock, .. } = common;
        let hosts = settings.endpoints.iter().map(|base| https::host(base).map(Arc::new));
        let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
        let half = Duration::from_millis(settings.timeout_ms) / 2;
        let ca_file = settings.ca_file.as_deref();
        let endpoints = Endpoints::new(Provider::Fcm, None, hosts, *endpoints, clock.clone());
        let network = Network::new(endpoints, tls::http2_config(ca_file)?);
        Ok(Self {
            pool: Pool::new(network.clone(), settings.connections, half),
            network,
            tokens: https::client(ca_file, https::connect_within(settings.timeout_ms))?,
            google_only: settings.ca_file.is_none(),
            token_within: half,
            clock: clock.clone(),
        })
    }

    /// The network of its only environment.
    pub(super) fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Checks `credential` and prepares its use.
    pub(super) fn open(&self, credential: Credential) -> Result<Account, BadCredential> {
        let path = path(&credential.project_id)?;
        let token = access_token(
            credential.service_account.reveal(),
            self.google_only,
            self.tokens.clone(),
            self.token_within,
            self.clock.clone(),
        )?;
        Ok(Account {
            per_minute: credential.quota_per_minute(),
            project: credential.project_id,
            token,
            path,
        })
    }

    /// Sends the push; sends it once more with another access token if the first was refused.
    pub(super) async fn send(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let Some(device) = Device::of(attempt) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        progress.endpoint = account.token.endpoint.clone();
        let token = match account.token.current().await {
            Ok(token) => token,
            Err(outcome) => return outcome,
        };
        let first = self.send_with(&token, account, attempt, &device, progress).await;
        if !first.renew_token {
            return first.outcome;
        }
        progress.sent = false;
        let token = match account.token.after_refused(&token).await {
            Ok(token) => token,
            Err(outcome) => return outcome.unwrap_or(first.outcome),
        };
        self.send_with(&token, account, attempt, &device, progress)
            .await
            .outcome
    }

    async fn send_with(
        &self,
        token: &Granted,
        account: &Account,
        attempt: &Attempt<'_>,
        device: &Device<'_>,
        progress: &mut Progress,
    ) -> Verdict {
        let left = attempt.left(self.clock.now());
        let body = body(attempt, device, left);
        let make = |authority: &_| request(authority, &account.path, &token.header, &body).ok_or("malformed");
        match exchange(&self.pool, progress, make).await {
            Ok(Exchanged { answer, lease: _lease }) => self.judge(answer).await,
            Err(outcome) => outcome.into(),
        }
    }

    async fn judge(&self, answer: Response<RecvStream>) -> Verdict {
        let status = answer.status();
        let asked = retry_after(answer.headers(), self.clock.now());
        match read(answer.into_body(), MAX_ANSWER_BYTES).await {
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
