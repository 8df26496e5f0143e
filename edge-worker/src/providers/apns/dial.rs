//! From `host:port` to an HTTP/2 connection.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::uri::Authority;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};

/// Until one endpoint counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Without hyper between, a push costs a third less: no task and no channels of its own.
pub(super) type SendRequest = h2::client::SendRequest<Bytes>;
pub(super) type Driver = h2::client::Connection<TlsStream<TcpStream>>;

/// Where APNs listens.
#[derive(Debug)]
pub(super) struct Host {
    /// `host:port`.
    pub(super) name: Arc<str>,
    /// `:authority`; without the port if that is 443.
    pub(super) authority: Authority,
    server: ServerName<'static>,
}

impl Host {
    /// Reads `host:port`; `None` if it is not that.
    pub(super) fn parse(text: &str) -> Option<Self> {
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

/// Why an endpoint was not reached. Nothing was sent.
#[derive(Debug, Clone)]
pub(super) struct Unreachable {
    pub(super) endpoint: Arc<str>,
    pub(super) reason: &'static str,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.endpoint, self.reason)
    }
}

/// Connects to `host`. `nth` chooses among its addresses, so that connections spread over them (Apple asks for a
/// fresh DNS query before each connection, and for that).
pub(super) async fn dial(
    host: &Host,
    tls: &Arc<ClientConfig>,
    nth: usize,
) -> Result<(SendRequest, Driver), Unreachable> {
    match timeout(CONNECT_TIMEOUT, steps(host, tls, nth)).await {
        Ok(done) => done,
        Err(_) => Err("connect_timeout"),
    }
    .map_err(|reason| Unreachable {
        endpoint: host.name.clone(),
        reason,
    })
}

async fn steps(host: &Host, tls: &Arc<ClientConfig>, nth: usize) -> Result<(SendRequest, Driver), &'static str> {
    let addresses = tokio::net::lookup_host(&*host.name).await.map_err(|_| "dns")?;
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    if addresses.is_empty() {
        return Err("dns");
    }
    let first = nth % addresses.len();
    addresses.rotate_left(first);
    let tcp = TcpStream::connect(&addresses[..]).await.map_err(|_| "connect")?;
    // With Nagle's algorithm a lone push waits 40 ms for the peer's delayed acknowledgement of its headers.
    tcp.set_nodelay(true).map_err(|_| "connect")?;
    let connector = TlsConnector::from(tls.clone());
    let stream = connector.connect(host.server.clone(), tcp).await.map_err(|_| "tls")?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("no_http2");
    }
    h2::client::Builder::new()
        // Apple allows one stream until a valid token was seen; more, sent before its SETTINGS arrive, are refused.
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
    fn the_authority_names_the_port_only_where_it_is_unusual() {
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
