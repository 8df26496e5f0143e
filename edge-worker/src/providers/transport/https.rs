//! Requests over HTTPS by `reqwest`: to providers whose connections are not measured and chosen, and for access tokens.

use std::{error::Error, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use reqwest::{Certificate, Client, ClientBuilder, Request, RequestBuilder, Url};
use shared::clock::Clock;

use super::{BadSettings, guard, http2::Host, retry_after::retry_after, tls};
use crate::providers::{Outcome, attempt::Progress, carrier::Common};

/// An idle connection is closed after this time. Many servers close theirs after a minute, some without saying so.
const IDLE_WITHIN: Duration = Duration::from_secs(30);

/// The longest body of an answer that is read, bytes. The answers of all providers are far shorter.
pub(super) const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The answer to a request.
#[derive(Debug)]
pub(in crate::providers) struct Answer {
    pub(in crate::providers) status: u16,
    pub(in crate::providers) headers: HeaderMap,
    /// `None` if it ended early or was too long.
    pub(in crate::providers) body: Option<Vec<u8>>,
    /// How long it asks to wait.
    pub(in crate::providers) retry_after: Option<Duration>,
    /// When it came.
    pub(in crate::providers) at: Timestamp,
}

/// Requests to one provider, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Https {
    client: Client,
    clock: Clock,
}

impl Https {
    /// For attempts that are limited to `timeout_ms` milliseconds. See [`client`] for `ca_file`.
    pub(in crate::providers) fn new(
        ca_file: Option<&Path>,
        timeout_ms: u64,
        common: &Common,
    ) -> Result<Self, BadSettings> {
        Ok(Self::with(client(ca_file, connect_within(timeout_ms))?, common))
    }

    /// By a `client` that connects within less than the time limit of an attempt: until a connection is made, an attempt that
    /// is cut off counts as sent.
    pub(in crate::providers) fn with(client: Client, common: &Common) -> Self {
        Self {
            client,
            clock: common.clock.clone(),
        }
    }

    /// The time now.
    pub(in crate::providers) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Begins a request.
    pub(in crate::providers) fn post(&self, url: Url) -> RequestBuilder {
        self.client.post(url)
    }

    /// Sends `request` and judges the answer.
    pub(in crate::providers) async fn ask(
        &self,
        request: RequestBuilder,
        progress: &mut Progress,
        judge: impl FnOnce(&Answer) -> Outcome,
    ) -> Outcome {
        let Ok(request) = request.build() else {
            return Outcome::rejected("malformed");
        };
        match self.exchange(request, progress).await {
            Ok(answer) => judge(&answer),
            Err(outcome) => outcome,
        }
    }

    /// Sends `request` and reads the answer. The client repeats the request only if it was provably not processed.
    ///
    /// # Errors
    /// The outcome of the attempt if no answer came.
    pub(in crate::providers) async fn exchange(
        &self,
        request: Request,
        progress: &mut Progress,
    ) -> Result<Answer, Outcome> {
        progress.endpoint = host_and_port(request.url());
        self.exchange_unnamed(request, progress).await
    }

    /// Like [`Self::exchange`], for a request whose host must not be shown: `progress` names no endpoint.
    pub(in crate::providers) async fn exchange_unnamed(
        &self,
        request: Request,
        progress: &mut Progress,
    ) -> Result<Answer, Outcome> {
        (progress.status, progress.sent) = (None, true);
        let mut answer = match self.client.execute(request).await {
            Ok(answer) => answer,
            Err(error) => {
                let outcome = no_answer(&error);
                progress.sent = matches!(outcome, Outcome::Ambiguous { .. });
                return Err(outcome);
            }
        };
        let status = answer.status().as_u16();
        progress.status = Some(status);
        let at = self.clock.now();
        Ok(Answer {
            body: read_body(&mut answer, MAX_ANSWER_BYTES).await,
            status,
            retry_after: retry_after(answer.headers(), at),
            headers: std::mem::take(answer.headers_mut()),
            at,
        })
    }
}

/// The value of a header that is a secret; `None` if a header cannot have it.
pub(in crate::providers) fn secret_header(value: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The header `authorization` of a user with a password (RFC 7617).
pub(in crate::providers) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    secret_header(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

/// The outcome of a request without an answer. The error itself is never shown: it names the URL.
fn no_answer(error: &reqwest::Error) -> Outcome {
    if causes(error).any(<dyn Error>::is::<guard::Forbidden>) {
        Outcome::rejected("forbidden_address")
    } else if error.is_dns() {
        Outcome::endpoint("dns", None)
    } else if error.is_connect() && error.is_timeout() {
        Outcome::endpoint("connect_timeout", None)
    } else if error.is_connect() {
        let is_tls = |cause: &(dyn Error + 'static)| {
            let io = cause.downcast_ref::<std::io::Error>();
            let inner = io.and_then(|io| io.get_ref());
            inner.is_some_and(<dyn Error + Send + Sync>::is::<tokio_rustls::rustls::Error>)
        };
        let reason = if causes(error).any(is_tls) { "tls" } else { "connect" };
        Outcome::endpoint(reason, None)
    } else if error.is_builder() {
        Outcome::rejected("malformed")
    } else {
        Outcome::ambiguous("connection_lost")
    }
}

/// `error` and everything that caused it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (**error).source())
}

/// How long a connection may take, if the time limit of an attempt does not leave less.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How long a connection may take in an attempt that is limited to `timeout_ms` milliseconds: at most half of it, so that a
/// connection that cannot be made is not taken for a request without an answer.
pub(in crate::providers) fn connect_within(timeout_ms: u64) -> Duration {
    CONNECT_WITHIN.min(Duration::from_millis(timeout_ms) / 2)
}

/// A client without proxies and redirects. It trusts the certificates in `ca_file`, or else the operating system's.
pub(in crate::providers) fn client(ca_file: Option<&Path>, connect_within: Duration) -> Result<Client, BadSettings> {
    builder(ca_file, connect_within)?
        .https_only(true)
        .build()
        .map_err(BadSettings::Client)
}

/// The settings that all clients have in common: no proxies and no redirects. See [`client`] for `ca_file`.
pub(super) fn builder(ca_file: Option<&Path>, connect_within: Duration) -> Result<ClientBuilder, BadSettings> {
    let mut client = Client::builder()
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .pool_idle_timeout(IDLE_WITHIN)
        .connect_timeout(connect_within);
    if let Some(file) = ca_file {
        let roots = tls::read_ca(file)?;
        let roots = roots.iter().map(|root| Certificate::from_der(root));
        client = client.tls_certs_only(roots.collect::<Result<Vec<_>, _>>().map_err(BadSettings::Client)?);
    }
    Ok(client)
}

/// `host:port` of `url`.
pub(in crate::providers) fn host_and_port(url: &Url) -> Arc<str> {
    let port = url.port_or_known_default().unwrap_or(443);
    format!("{}:{port}", url.host_str().unwrap_or_default()).into()
}

/// The URL of `base`, https and without a path.
pub(in crate::providers) fn base(base: &str) -> Result<Url, BadSettings> {
    let bad = || BadSettings::Endpoint(base.to_owned(), "an https URL without path");
    let url: Url = base.parse().map_err(|_| bad())?;
    if url.scheme() == "https" && url.has_host() && url.path() == "/" {
        Ok(url)
    } else {
        Err(bad())
    }
}

/// The URL of `path` at `base`, https and without a path.
pub(in crate::providers) fn url(base: &str, path: &str) -> Result<Url, BadSettings> {
    let mut url = self::base(base)?;
    url.set_path(path);
    Ok(url)
}

/// The host of `base`, an https URL without a path.
pub(in crate::providers) fn host(base: &str) -> Result<Host, BadSettings> {
    let url = self::base(base)?;
    let bad = || BadSettings::Endpoint(base.to_owned(), "an https URL without path");
    Host::parse(&host_and_port(&url)).ok_or_else(bad)
}

/// The body of `answer`; `None` if it ends early or has more than `limit` bytes.
pub(in crate::providers) async fn read_body(answer: &mut reqwest::Response, limit: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > limit {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// Declares the `Settings` of a provider that is spoken to over HTTPS: its base URLs with their defaults, and what all such
/// providers have.
macro_rules! settings {
    ($(#[$doc:meta])* Settings { $($(#[$url_doc:meta])* $url:ident = $default:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Settings {
            $($(#[$url_doc])* pub $url: String,)*
            /// Certificates in PEM to trust instead of the operating system's.
            pub ca_file: Option<std::path::PathBuf>,
            /// Milliseconds that an attempt may take; at most 12,000.
            pub timeout_ms: u64,
        }

        impl Default for Settings {
            fn default() -> Self {
                Self {
                    $($url: $default.into(),)*
                    ca_file: None,
                    timeout_ms: 12_000,
                }
            }
        }
    };
}

pub(in crate::providers) use settings;
