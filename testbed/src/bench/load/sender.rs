//! Pushes without Peal: hyper's HTTP/2 client and rustls, and only the work that every push needs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use bytes::Bytes;
use futures::future::try_join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header::AUTHORIZATION};
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use shared::{clock::Clock, content::MAX_LIFE_S};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use uuid::Uuid;

use super::{Done, Endpoints, Stopwatch};
use crate::{bench::sample, peal::TOPIC};

/// Unanswered pushes at one time.
const PUSHES_IN_FLIGHT: usize = 512;

/// Keeps [`PUSHES_IN_FLIGHT`] pushes unanswered for `duration`.
pub(super) async fn run(endpoints: &Endpoints, duration: Duration) -> anyhow::Result<Done> {
    let sender = connect(endpoints).await?;
    let pushes = Arc::new(Pushes::new(endpoints)?);
    // The simulator allows one stream until it has seen a valid token.
    for _ in 0..4 {
        pushes.send(sender.clone()).await?;
    }
    let watch = Arc::new(Stopwatch::start());
    let senders = (0..PUSHES_IN_FLIGHT).map(|_| {
        let (sender, pushes, watch) = (sender.clone(), pushes.clone(), watch.clone());
        let sending = tokio::spawn(async move {
            let mut sent = 0_u64;
            while !watch.is_over(duration) {
                pushes.send(sender.clone()).await?;
                sent += 1;
            }
            anyhow::Ok(sent)
        });
        async { sending.await? }
    });
    let sent: u64 = try_join_all(senders).await?.into_iter().sum();
    Ok(watch.stop(sent))
}

/// The parts of every push that are prepared once.
#[derive(Debug)]
struct Pushes {
    payload: Bytes,
    devices: Vec<Uri>,
    headers: HeaderMap,
    next: AtomicUsize,
}

impl Pushes {
    fn new(endpoints: &Endpoints) -> anyhow::Result<Self> {
        let expires = Clock::system().now().as_second() + i64::from(MAX_LIFE_S);
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(
            AUTHORIZATION,
            HeaderValue::from_str(&format!("bearer {}", endpoints.provider_token))?,
        );
        headers.insert("apns-topic", HeaderValue::from_static(TOPIC));
        headers.insert("apns-push-type", HeaderValue::from_static("alert"));
        headers.insert("apns-priority", HeaderValue::from_static("10"));
        headers.insert("apns-expiration", HeaderValue::from(expires));
        let device = |number| {
            format!(
                "https://localhost:{}/3/device/{}",
                endpoints.apns,
                sample::device(number)
            )
            .parse()
        };
        Ok(Self {
            payload: sample::payload(),
            devices: (0..sample::RECIPIENTS).map(device).collect::<Result<_, _>>()?,
            headers,
            next: AtomicUsize::new(0),
        })
    }

    fn request(&self) -> anyhow::Result<Request<Full<Bytes>>> {
        const ID: HeaderName = HeaderName::from_static("apns-id");
        const COLLAPSE: HeaderName = HeaderName::from_static("apns-collapse-id");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut headers = self.headers.clone();
        headers.insert(ID, HeaderValue::from_str(&Uuid::new_v4().to_string())?);
        headers.insert(COLLAPSE, HeaderValue::from_str(&Uuid::new_v4().to_string())?);
        let mut request = Request::new(Full::new(self.payload.clone()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.devices[number % self.devices.len()].clone();
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn send(&self, mut sender: SendRequest<Full<Bytes>>) -> anyhow::Result<()> {
        let answer = sender.send_request(self.request()?).await?;
        ensure!(
            answer.status() == StatusCode::OK,
            "the simulator answered {}",
            answer.status()
        );
        Ok(())
    }
}

async fn connect(endpoints: &Endpoints) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(endpoints.ca_pem.as_bytes())?)?;
    let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(("127.0.0.1", endpoints.apns)).await?;
    socket.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(ServerName::try_from("localhost")?, socket)
        .await?;
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .initial_max_send_streams(1)
        .handshake(TokioIo::new(stream))
        .await?;
    // The driver ends with the connection; callers that wait for an answer get an error.
    drop(tokio::spawn(driver));
    Ok(sender)
}
