//! Opens one HTTP/2 connection: DNS, TCP, TLS, HTTP/2.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::uri::Authority;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};

use crate::providers::transport::endpoints::{EndpointState, Route};

/// How long connecting to one address may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Data that the peer has not acknowledged after this time is discarded, also after the connection is closed (RFC
/// 5482). Otherwise a push that was abandoned, and sent over another connection, would still arrive when the network
/// recovers.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) type SendRequest = h2::client::SendRequest<Bytes>;
pub(super) type Driver = h2::client::Connection<TlsStream<TcpStream>>;

/// A host and port at which a provider listens.
#[derive(Debug)]
pub(in crate::providers) struct Host {
    /// `host:port`.
    pub(in crate::providers) name: Arc<str>,
    /// The `:authority` header; without the port if that is 443.
    pub(in crate::providers) authority: Authority,
    server: ServerName<'static>,
}

impl Host {
    /// Parses `host:port`; `None` if it has another form.
    pub(in crate::providers) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let authority = if port == 443 { host.parse() } else { text.parse() };
        Some(Self {
            name: text.into(),
            authority: authority.ok()?,
            server: ServerName::try_from(bare.to_owned()).ok()?,
        })
    }
}

/// The endpoint that was not reached, and the reason word of the outcome. Nothing was sent.
#[derive(Debug, Clone)]
pub(super) struct Unreachable {
    pub(super) endpoint: Arc<str>,
    pub(super) reason: &'static str,
}

impl Unreachable {
    /// No address is known; `endpoints` are the endpoints of the settings.
    pub(super) fn nowhere(endpoints: &[EndpointState]) -> Self {
        match endpoints.first() {
            Some(first) => Self {
                endpoint: first.endpoint.clone(),
                reason: "dns",
            },
            None => Self {
                endpoint: "".into(),
                reason: "no_endpoint",
            },
        }
    }
}

/// The addresses of `host`; empty if it cannot be resolved.
pub(super) async fn resolve(host: &Host) -> Vec<SocketAddr> {
    let found = timeout(CONNECT_TIMEOUT / 2, tokio::net::lookup_host(&*host.name)).await;
    let addresses: Vec<_> = found.ok().and_then(Result::ok).into_iter().flatten().collect();
    if addresses.is_empty() {
        tracing::warn!(endpoint = %host.name, "host cannot be resolved");
    }
    addresses
}

/// Connects to `route`; returns the connection and how long it took.
pub(super) async fn connect(
    route: &Route,
    tls: &Arc<ClientConfig>,
) -> Result<(SendRequest, Driver, Duration), Unreachable> {
    let began = Instant::now();
    match timeout(CONNECT_TIMEOUT, handshake(route, tls)).await {
        Ok(Ok((sender, driver))) => Ok((sender, driver, began.elapsed())),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err("connect_timeout"),
    }
    .map_err(|reason| Unreachable {
        endpoint: route.host.name.clone(),
        reason,
    })
}

#[cfg(target_os = "linux")]
fn set_user_timeout(tcp: &TcpStream) -> std::io::Result<()> {
    let millis = u32::try_from(TCP_USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    Ok(nix::sys::socket::setsockopt(
        tcp,
        nix::sys::socket::sockopt::TcpUserTimeout,
        &millis,
    )?)
}

/// Only Linux has this option.
#[cfg(not(target_os = "linux"))]
fn set_user_timeout(_: &TcpStream) -> std::io::Result<()> {
    Ok(())
}

async fn handshake(route: &Route, tls: &Arc<ClientConfig>) -> Result<(SendRequest, Driver), &'static str> {
    let tcp = TcpStream::connect(route.address).await.map_err(|_| "connect")?;
    // With Nagle's algorithm a lone push waits 40 ms for the peer's delayed acknowledgement of its headers.
    tcp.set_nodelay(true).map_err(|_| "connect")?;
    set_user_timeout(&tcp).map_err(|_| "connect")?;
    let connector = TlsConnector::from(tls.clone());
    let server = route.host.server.clone();
    let stream = connector.connect(server, tcp).await.map_err(|_| "tls")?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("no_http2");
    }
    h2::client::Builder::new()
        // Apple allows one stream until it has seen a valid token, and refuses others sent before its SETTINGS arrive.
        .initial_max_send_streams(1)
        .enable_push(false)
        .handshake(stream)
        .await
        .map_err(|_| "http2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_has_the_port_only_if_it_is_not_443() {
        for (text, authority) in [
            ("api.push.apple.com:443", "api.push.apple.com"),
            ("api.push.apple.com:2197", "api.push.apple.com:2197"),
            ("127.0.0.1:8443", "127.0.0.1:8443"),
            ("[::1]:8443", "[::1]:8443"),
        ] {
            assert_eq!(Host::parse(text).unwrap().authority, authority);
        }
        for bad in ["", "host", "host:", "host:70000", ":443", "a b:1"] {
            assert!(Host::parse(bad).is_none(), "{bad}");
        }
    }
}
