//! Accepts connections, closes silent ones, and lets requests finish at shutdown.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
use http::Version;
use hyper::service::{Service, service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use shared::lifecycle::Lifecycle;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;

use super::connections::{Connection, Connections, Place, Watched};

/// Concurrent requests on one HTTP/2 connection.
const CONNECTION_STREAMS_MAX: u32 = 1024;

/// The pause before a connection is accepted again, after there was no file for one.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// How long a client has to take notice that its idle connection is closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Serves `router` until the process finishes and the last request is answered.
pub(crate) async fn serve(listener: TcpListener, router: Router, connections: Connections, lifecycle: Lifecycle) {
    let tasks = TaskTracker::new();
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Connection::deadline` tells a slow head from a connection that is idle.
        .header_read_timeout(None);
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
            Ok((stream, address)) => {
                if let Some(place) = connections.enter(address.ip()) {
                    tasks.spawn(connection(
                        stream,
                        place,
                        builder.clone(),
                        router.clone(),
                        lifecycle.clone(),
                    ));
                }
            }
            Err(error) => {
                // Most likely there is no free file descriptor.
                tracing::warn!(%error, "cannot accept a connection; retrying");
                connections.evict_one();
                sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn connection(
    stream: TcpStream,
    place: Place,
    builder: Builder<TokioExecutor>,
    router: Router,
    lifecycle: Lifecycle,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection ended before its first request");
        return;
    }
    let known = Arc::clone(place.connection());
    let watched = Watched {
        stream,
        connection: Arc::clone(&known),
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: http::Request<hyper::body::Incoming>| {
        let in_progress = known.begin(request.version() == Version::HTTP_2);
        request.extensions_mut().insert(Arc::clone(&known));
        let answer = router.call(request);
        async move {
            let answer = answer.await;
            drop(in_progress);
            answer
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(watched), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = known.evicted() => return,
        () = overdue(&known) => {
            connection.as_mut().graceful_shutdown();
            timeout(CLOSE_WITHIN, connection).await.unwrap_or(Ok(()))
        }
        () = lifecycle.finishing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended with an error");
    }
}

/// Ends when the connection has been idle for too long or has not sent a head in time.
async fn overdue(connection: &Connection) {
    loop {
        let deadline = connection.deadline();
        if deadline <= Instant::now() {
            return;
        }
        sleep_until(deadline).await;
    }
}
