//! Connections: accepting them, and letting them finish.

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

/// Longest wait for the head of a request, idle connections included. Longer than usual clients and balancers keep
/// idle connections, so that it is they who close them and not this end under their hands.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Requests on one HTTP/2 connection at one time.
const CONNECTION_STREAMS_MAX: u32 = 1024;

/// Serves `router` until the process finishes and no request is in progress any more.
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
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "connection could not be accepted");
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
        tracing::debug!(%error, "connection ended at once");
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
