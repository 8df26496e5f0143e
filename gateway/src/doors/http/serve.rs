//! Accepts connections, and lets their requests finish at shutdown.

use std::{pin::pin, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use shared::lifecycle::Lifecycle;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// How long to wait for the head of the next request on a connection. Longer than common clients and load balancers
/// keep idle connections open, so that they close them, and not this end while a request is on its way.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Concurrent requests on one HTTP/2 connection.
const CONNECTION_STREAMS_MAX: u32 = 1024;

/// Serves `router` until the process finishes and the last request is answered.
pub(crate) async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle) {
    let connections = TaskTracker::new();
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    loop {
        let accepted = tokio::select! {
            () = lifecycle.finishing() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, builder.clone(), router.clone(), lifecycle.clone()));
            }
            Err(error) => {
                // Most likely there is no free file descriptor until some connections have ended.
                tracing::warn!(%error, "cannot accept a connection; retrying");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, builder: Builder<TokioExecutor>, router: Router, lifecycle: Lifecycle) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection ended before its first request");
        return;
    }
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = lifecycle.finishing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended with an error");
    }
}
