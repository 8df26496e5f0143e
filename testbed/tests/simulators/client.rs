//! An APNs client that shows streams, settings and every header.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;
use testbed::providers::{Apns, ApnsConfig, Rule, Script, now_s};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs as provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

pub(crate) const TOPIC: &str = "com.example.app";
pub(crate) const PAYLOAD: &str = r#"{"aps":{"alert":"ding"}}"#;

pub(crate) struct Client {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) token: String,
}

pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap_or("").to_owned()
    }
}

/// A request to APNs. Tests start with a valid one and break one rule at a time.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Draft {
    pub(crate) fn message_to(token: &str) -> Self {
        Self {
            method: Method::POST,
            path: format!("/3/device/{token}"),
            headers: vec![("apns-topic", TOPIC.into()), ("apns-push-type", "alert".into())],
            body: Bytes::from_static(PAYLOAD.as_bytes()),
        }
    }

    pub(crate) fn set(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    pub(crate) fn twice(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    pub(crate) fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }
}

pub(crate) async fn tls(port: u16, ca_pem: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), tcp)
        .await
        .unwrap()
}

impl Client {
    /// `eager`: how many streams the client opens before it has received the server's settings.
    pub(crate) async fn connect(apns: &Apns, eager: usize) -> Self {
        let token = apns.key().provider_token(now_s()).unwrap();
        Self::connect_to(apns.addr().port(), apns.ca_pem(), eager, token).await
    }

    pub(crate) async fn connect_to(port: u16, ca_pem: &str, eager: usize, token: String) -> Self {
        let io = tls(port, ca_pem).await;
        let (send, connection) = h2::client::Builder::new()
            .initial_max_send_streams(eager)
            .handshake(io)
            .await
            .unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { send, token }
    }

    pub(crate) async fn push(&self, draft: Draft) -> Result<Response, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let mut request = Request::builder()
            .method(draft.method)
            .uri(format!("https://localhost{}", draft.path));
        if !draft.headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("bearer {}", self.token));
        }
        for (name, value) in draft.headers {
            request = request.header(name, value);
        }
        let (response, mut body) = send.send_request(request.body(()).unwrap(), draft.body.is_empty())?;
        if !draft.body.is_empty() {
            body.send_data(draft.body, true)?;
        }
        let (head, mut body) = response.await?.into_parts();
        let mut read = Vec::new();
        while let Some(chunk) = body.data().await {
            read.extend_from_slice(&chunk?);
        }
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body: read.into(),
        })
    }

    pub(crate) async fn wait_for_streams(&self, wanted: usize) {
        for _ in 0..5000 {
            if self.send.current_max_send_streams() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!(
            "the limit is {} streams, not {wanted}",
            self.send.current_max_send_streams()
        );
    }
}

pub(crate) async fn apns() -> Apns {
    Apns::start(ApnsConfig::default()).await.unwrap()
}

pub(crate) async fn scripted(rules: Vec<Rule>) -> Apns {
    Apns::start(ApnsConfig {
        script: Script { seed: 1, rules },
        ..ApnsConfig::default()
    })
    .await
    .unwrap()
}
