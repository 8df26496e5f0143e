//! One HTTP/1.1 connection to a simulator. Google supports HTTP/1.1 as well as HTTP/2.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::http2::ConnectionOrder;
use super::reply::Site;
use super::script::Act;

/// The maximum length of a request body that is read; longer than any provider accepts.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Closes the connection instead of sending an answer.
#[derive(Debug)]
struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the script closes the connection")
    }
}

impl std::error::Error for HangUp {}

/// Serves one connection until it ends.
pub(crate) async fn serve<S, T>(io: T, site: Arc<S>, connection: u64, mut orders: watch::Receiver<ConnectionOrder>)
where
    S: Site,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session = Mutex::new(site.open(connection));
    let service = service_fn(|request| respond(&*site, &session, request));
    let serving = http1::Builder::new().serve_connection(TokioIo::new(io), service);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            _ = &mut serving => return,
            changed = orders.changed() => match *orders.borrow_and_update() {
                ConnectionOrder::GoAway(_) => serving.as_mut().graceful_shutdown(),
                ConnectionOrder::Cut(_) => return,
                ConnectionOrder::Serve => if changed.is_err() { return },
            },
        }
    }
}

async fn respond<S: Site>(
    site: &S,
    session: &Mutex<S::Session>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, HangUp> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|_| HangUp)?
        .to_bytes();
    let reply = {
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        site.answer(&mut session, &head, body)
    };
    tokio::time::sleep(reply.delay).await;
    let mut response = reply.response.map(Full::new);
    match reply.act {
        Act::Respond => Ok(response),
        Act::Goaway { processed: true, .. } => {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            Ok(response)
        }
        Act::Reset { .. } | Act::Close | Act::Goaway { .. } => Err(HangUp),
        Act::BlackHole | Act::Freeze => std::future::pending().await,
    }
}
