//! Persistent HTTP/1.1 connections to the gateway.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The gateway's address and the headers of every request, which include the API key.
#[derive(Debug, Clone)]
pub(crate) struct GatewayClient {
    address: SocketAddr,
    headers: HeaderMap,
}

/// A connection that carries one request after another.
#[derive(Debug)]
pub(crate) struct Connection {
    gateway: GatewayClient,
    sender: SendRequest<Full<Bytes>>,
}

impl GatewayClient {
    pub(crate) fn new(address: SocketAddr, key: &str) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(&address.to_string())?);
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}"))?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self { address, headers })
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let (sender, driver) = http1::handshake(TokioIo::new(socket)).await?;
        // The driver ends with the connection; callers that wait for an answer get an error.
        drop(tokio::spawn(driver));
        Ok(Connection {
            gateway: self.clone(),
            sender,
        })
    }
}

impl Connection {
    /// Sends a notification and reads the whole answer.
    pub(crate) async fn post(&mut self, body: Bytes) -> anyhow::Result<StatusCode> {
        self.ask(Method::POST, "/v1/notifications", body).await
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<StatusCode> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse()?;
        *request.headers_mut() = self.gateway.headers.clone();
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        Ok(status)
    }

    /// Sends a notification until it is accepted. Returns the number of repetitions. As a client should, it answers a
    /// refusal for overload by repeating the request a little later with the same event id.
    pub(crate) async fn send_until_accepted(&mut self, body: Bytes) -> anyhow::Result<u64> {
        const ATTEMPTS_MAX: u64 = 200;
        for repeated in 0..ATTEMPTS_MAX {
            match self.post(body.clone()).await {
                Ok(StatusCode::ACCEPTED) => return Ok(repeated),
                Ok(status) if status.is_server_error() => {}
                Ok(status) => anyhow::bail!("the gateway answered {status}"),
                Err(_) => *self = self.gateway.connect().await?,
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        anyhow::bail!("the gateway accepted nothing in {ATTEMPTS_MAX} attempts")
    }
}
