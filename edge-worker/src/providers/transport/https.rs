//! Requests over HTTPS by `reqwest`: to providers whose connections are not measured and chosen, and for access tokens.

use std::{path::Path, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};
use reqwest::{Certificate, Client, Request, Url};

use super::{BadSettings, http2::Host, tls};
use crate::providers::{Outcome, attempt::Progress};

/// The answer to a request.
#[derive(Debug)]
pub(in crate::providers) struct Answer {
    pub(in crate::providers) status: StatusCode,
    pub(in crate::providers) headers: HeaderMap,
    /// `None` if it ended early or was longer than the limit.
    pub(in crate::providers) body: Option<Vec<u8>>,
}

/// Sends `request` and reads at most `limit` bytes of the answer's body. `client` must limit the time to connect to less
/// than that of an attempt: until a connection is made, an attempt that is cut off counts as sent.
///
/// # Errors
/// The outcome of the attempt if no answer came.
pub(in crate::providers) async fn exchange(
    client: &Client,
    request: Request,
    progress: &mut Progress,
    limit: usize,
) -> Result<Answer, Outcome> {
    progress.endpoint = host_and_port(request.url());
    (progress.status, progress.sent) = (None, true);
    let mut answer = match client.execute(request).await {
        Ok(answer) => answer,
        Err(error) => {
            let outcome = no_answer(&error);
            progress.sent = matches!(outcome, Outcome::Ambiguous { .. });
            return Err(outcome);
        }
    };
    let body = read_body(&mut answer, limit).await;
    progress.status = Some(answer.status().as_u16());
    Ok(Answer {
        body,
        status: answer.status(),
        headers: std::mem::take(answer.headers_mut()),
    })
}

/// The outcome of a request without an answer. The error itself is never shown: it names the URL.
fn no_answer(error: &reqwest::Error) -> Outcome {
    if error.is_connect() && error.is_timeout() {
        Outcome::endpoint("connect_timeout", None)
    } else if error.is_connect() {
        Outcome::endpoint("connect", None)
    } else if error.is_builder() {
        Outcome::rejected("malformed")
    } else {
        Outcome::ambiguous("connection_lost")
    }
}

/// A client without proxies and redirects. It trusts the certificates in `ca_file`, or else the operating system's.
pub(in crate::providers) fn client(ca_file: Option<&Path>, connect_within: Duration) -> Result<Client, BadSettings> {
    let mut client = Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect_within);
    if let Some(file) = ca_file {
        let roots = tls::read_ca(file)?;
        let roots = roots.iter().map(|root| Certificate::from_der(root));
        client = client.tls_certs_only(roots.collect::<Result<Vec<_>, _>>().map_err(BadSettings::Client)?);
    }
    client.build().map_err(BadSettings::Client)
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
