//! Accepts connections for a simulator. Those of an HTTP provider begin with TLS and are served with the protocol that was
//! negotiated.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http2::ConnectionOrder;
use super::reply::Site;
use super::tls::Authority;
use super::wire::StreamLimits;
use super::{http1, http2};

/// A connection whose TLS handshake takes longer than this is dropped.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// What is spoken on the connections of a listener.
pub(crate) trait Protocol: Send + Sync + 'static {
    /// Serves one connection until it ends or is ordered to. Connections count from 1.
    fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        connection: u64,
        orders: watch::Receiver<ConnectionOrder>,
    ) -> impl Future<Output = ()> + Send;
}

/// HTTP over TLS.
pub(crate) struct Https<S> {
    acceptor: TlsAcceptor,
    limits: StreamLimits,
    site: Arc<S>,
}

impl<S: Site> Https<S> {
    /// Serves `site` with a certificate of `authority`.
    pub(crate) fn new(authority: &Authority, limits: StreamLimits, site: Arc<S>) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            acceptor: TlsAcceptor::from(authority.server_config(S::ALPN)?),
            limits,
            site,
        }))
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Listener {
    addr: SocketAddr,
    orders: watch::Sender<ConnectionOrder>,
    order_number: AtomicU64,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    /// Binds and begins to serve on the current runtime.
    pub(crate) async fn start<P: Protocol>(listen: SocketAddr, protocol: Arc<P>) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listening on {listen}"))?;
        let listener = Self {
            addr: socket.local_addr()?,
            orders: watch::Sender::new(ConnectionOrder::Serve),
            order_number: AtomicU64::new(0),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let accept = AcceptLoop {
            protocol,
            orders: listener.orders.clone(),
            stopping: listener.stopping.clone(),
            tasks: listener.tasks.clone(),
        };
        let stopping = listener.stopping.clone();
        listener
            .tasks
            .spawn(stopping.run_until_cancelled_owned(accept.run(socket)));
        Ok(listener)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sends GOAWAY on every connection; each closes after its open requests. New connections are accepted.
    pub(crate) fn go_away(&self) {
        self.order(ConnectionOrder::GoAway);
    }

    /// Closes every connection without notice. New connections are accepted.
    pub(crate) fn cut(&self) {
        self.order(ConnectionOrder::Cut);
    }

    fn order(&self, order: fn(u64) -> ConnectionOrder) {
        let number = self.order_number.fetch_add(1, Ordering::Relaxed);
        self.orders.send_replace(order(number));
    }

    /// Closes the port and every connection, and waits until all are closed.
    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

struct AcceptLoop<P> {
    protocol: Arc<P>,
    orders: watch::Sender<ConnectionOrder>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl<P: Protocol> AcceptLoop<P> {
    async fn run(self, socket: TcpListener) {
        let mut connection = 0;
        loop {
            let Ok((stream, _)) = socket.accept().await else {
                // Most likely the process has no free file descriptors; retry when some may have been closed.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            connection += 1;
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            let orders = self.orders.subscribe();
            let serving = Arc::clone(&self.protocol).serve(stream, connection, orders);
            self.tasks
                .spawn(self.stopping.clone().run_until_cancelled_owned(serving));
        }
    }
}

impl<S: Site> Protocol for Https<S> {
    async fn serve(self: Arc<Self>, stream: TcpStream, connection: u64, orders: watch::Receiver<ConnectionOrder>) {
        let Self { acceptor, limits, site } = &*self;
        let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await else {
            return;
        };
        let open = OpenConnection::new(&**site);
        let negotiated = tls.get_ref().1.alpn_protocol();
        if negotiated.or(S::ALPN.last().copied()) == Some(b"h2") {
            Box::pin(http2::serve(tls, Arc::clone(site), connection, *limits, orders)).await;
        } else {
            Box::pin(http1::serve(tls, Arc::clone(site), connection, orders)).await;
        }
        drop(open);
    }
}

/// Counts a connection as open for as long as it lives, also when its task is dropped.
struct OpenConnection<'a, S: Site>(&'a S);

impl<'a, S: Site> OpenConnection<'a, S> {
    fn new(site: &'a S) -> Self {
        site.records().log.connected();
        Self(site)
    }
}

impl<S: Site> Drop for OpenConnection<'_, S> {
    fn drop(&mut self) {
        self.0.records().log.disconnected();
    }
}
