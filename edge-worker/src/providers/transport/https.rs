//! Requests over HTTPS that are not pushes, such as for access tokens.

use std::{path::Path, sync::Arc, time::Duration};

use reqwest::{Certificate, Client, Url};

use super::{BadSettings, http2::Host, tls};

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

/// The host of `base`, an https URL without a path.
pub(in crate::providers) fn host(base: &str) -> Result<Host, BadSettings> {
    let bad = || BadSettings::Endpoint(base.to_owned(), "an https URL without path");
    let url: Url = base.parse().map_err(|_| bad())?;
    if url.scheme() == "https" && url.has_host() && url.path() == "/" {
        Host::parse(&host_and_port(&url)).ok_or_else(bad)
    } else {
        Err(bad())
    }
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
