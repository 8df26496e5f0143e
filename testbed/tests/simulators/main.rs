//! The provider simulators, seen from the other end of a real TLS connection.
#![expect(clippy::unwrap_used, reason = "in a test's helpers a surprise fails the test")]

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::future::join_all;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use testbed::providers::apns::{Environment, JwtMode, ProviderKey};
use testbed::providers::{
    Answer, Apns, ApnsConfig, ApnsKey, Authority, Fcm, FcmConfig, LogMode, RetryAfter, Rule, Script, ServiceAccount,
    now_s, script,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs as provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const TOPIC: &str = "com.example.app";
const PAYLOAD: &str = r#"{"aps":{"alert":"ding"}}"#;

// === An APNs client that sees streams and settings ===

struct Client {
    send: SendRequest<Bytes>,
    token: String,
}

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap_or("").to_owned()
    }
}

/// A push, with everything that can be wrong in it.
#[derive(Clone)]
struct Draft {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Draft {
    fn to(token: &str) -> Self {
        Self {
            method: Method::POST,
            path: format!("/3/device/{token}"),
            headers: vec![("apns-topic", TOPIC.into()), ("apns-push-type", "alert".into())],
            body: Bytes::from_static(PAYLOAD.as_bytes()),
        }
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    fn twice(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }
}

async fn tls(port: u16, ca_pem: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
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
    /// `eager` is how many streams it opens before it has seen the server's settings.
    async fn connect(apns: &Apns, eager: usize) -> Self {
        let token = apns.key().provider_token(now_s()).unwrap();
        Self::on(apns.addr().port(), apns.ca_pem(), eager, token).await
    }

    async fn on(port: u16, ca_pem: &str, eager: usize, token: String) -> Self {
        let io = tls(port, ca_pem).await;
        let (send, connection) = h2::client::Builder::new()
            .initial_max_send_streams(eager)
            .handshake(io)
            .await
            .unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { send, token }
    }

    async fn push(&self, draft: Draft) -> Result<Answered, h2::Error> {
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
        Ok(Answered {
            status: head.status,
            headers: head.headers,
            body: read.into(),
        })
    }

    async fn streams_become(&self, wanted: usize) {
        for _ in 0..5000 {
            if self.send.current_max_send_streams() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{} streams, not {wanted}", self.send.current_max_send_streams());
    }
}

async fn apns() -> Apns {
    Apns::start(ApnsConfig::default()).await.unwrap()
}

async fn scripted(rules: Vec<Rule>) -> Apns {
    Apns::start(ApnsConfig {
        script: Script { seed: 1, rules },
        ..ApnsConfig::default()
    })
    .await
    .unwrap()
}

// === APNs: the rules of a request ===

#[tokio::test]
async fn an_accepted_push_is_answered_with_its_id_and_logged() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    let id = "123e4567-e89b-12d3-a456-4266554400a0";
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let draft = Draft::to("beef")
        .set("apns-id", id)
        .set("apns-collapse-id", "score")
        .set("apns-priority", "5")
        .set("apns-expiration", "0")
        .set("traceparent", trace);
    let answered = client.push(draft).await.unwrap();

    assert_eq!(answered.status, 200);
    assert_eq!(answered.headers["apns-id"], id);
    assert!(answered.body.is_empty());
    let pushes = apns.log().delivered_to("beef");
    assert_eq!(pushes.len(), 1);
    let push = &pushes[0];
    assert_eq!((push.id.as_str(), push.connection, push.status), (id, 1, 200));
    assert_eq!(push.collapse_id.as_deref(), Some("score"));
    assert_eq!(push.topic.as_deref(), Some(TOPIC));
    assert_eq!(push.push_type.as_deref(), Some("alert"));
    assert_eq!(push.priority.as_deref(), Some("5"));
    assert_eq!(push.expiration.as_deref(), Some("0"));
    assert_eq!(push.traceparent.as_deref(), Some(trace));
    assert_eq!(push.payload, PAYLOAD);

    let generated = client.push(Draft::to("beef")).await.unwrap();
    assert_eq!(generated.headers["apns-id"].len(), 36);
    assert!(!generated.headers.contains_key("apns-unique-id"));
}

#[tokio::test]
async fn every_rule_has_its_reason() {
    let good = || Draft::to("beef");
    let long = |n: usize| format!("{{\"x\":\"{}\"}}", "x".repeat(n - 8));
    let cases = [
        (good().method(Method::GET), 405, "MethodNotAllowed"),
        (good().path("/"), 404, "BadPath"),
        (good().path("/3/devices/beef"), 404, "BadPath"),
        (good().path("/3/device/beef/beef"), 404, "BadPath"),
        (good().set("apns-id", "no"), 400, "BadMessageId"),
        (
            good().set("apns-id", "123e4567e89b12d3a4564266554400a0"),
            400,
            "BadMessageId",
        ),
        (
            good().twice("apns-id", "123e4567-e89b-12d3-a456-4266554400a0"),
            400,
            "DuplicateHeaders",
        ),
        (good().without("apns-topic"), 400, "MissingTopic"),
        (good().set("apns-topic", "com example"), 400, "BadTopic"),
        (good().set("apns-push-type", "voip"), 400, "TopicDisallowed"),
        (good().set("apns-push-type", "liveactivity"), 400, "TopicDisallowed"),
        (good().set("apns-collapse-id", &"c".repeat(65)), 400, "BadCollapseId"),
        (good().set("apns-priority", "7"), 400, "BadPriority"),
        (
            good().set("apns-push-type", "background").set("apns-priority", "10"),
            400,
            "BadPriority",
        ),
        (good().set("apns-expiration", "soon"), 400, "BadExpirationDate"),
        (good().set("apns-push-type", "shout"), 400, "InvalidPushType"),
        (good().path("/3/device/"), 400, "MissingDeviceToken"),
        (good().path("/3/device"), 400, "MissingDeviceToken"),
        (good().path("/3/device/nothex"), 400, "BadDeviceToken"),
        (good().set("authorization", ""), 403, "MissingProviderToken"),
        (good().set("authorization", "bearer "), 403, "MissingProviderToken"),
        (good().set("authorization", "basic abcdef"), 403, "InvalidProviderToken"),
        (good().set("authorization", "bearer a.b.c"), 403, "InvalidProviderToken"),
        (good().body(""), 400, "PayloadEmpty"),
        (good().body("{"), 400, "PayloadEmpty"),
        (good().body(long(4097)), 413, "PayloadTooLarge"),
        (
            good()
                .set("apns-push-type", "voip")
                .set("apns-topic", "com.example.app.voip")
                .body(long(5121)),
            413,
            "PayloadTooLarge",
        ),
        // The earlier rule wins.
        (
            good()
                .without("apns-topic")
                .set("apns-id", "no")
                .set("authorization", ""),
            400,
            "BadMessageId",
        ),
        (
            good().path("/3/device/nothex").set("authorization", ""),
            400,
            "BadDeviceToken",
        ),
        (good().body("").set("authorization", ""), 403, "MissingProviderToken"),
    ];
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    for (nth, (draft, status, reason)) in cases.into_iter().enumerate() {
        let answered = client.push(draft).await.unwrap();
        assert_eq!(
            (answered.status.as_u16(), answered.reason().as_str()),
            (status, reason),
            "case {nth}"
        );
        assert_eq!(answered.headers["content-type"], "application/json");
        assert_eq!(answered.headers["apns-id"].len(), 36);
    }
    assert!(apns.log().delivered().is_empty());
}

#[tokio::test]
async fn every_push_type_goes_to_its_own_topic() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    for (push_type, suffix) in [
        ("alert", ""),
        ("background", ""),
        ("mdm", ""),
        ("voip", ".voip"),
        ("complication", ".complication"),
        ("controls", ".push-type.controls"),
        ("fileprovider", ".pushkit.fileprovider"),
        ("liveactivity", ".push-type.liveactivity"),
        ("location", ".location-query"),
        ("pushtotalk", ".voip-ptt"),
        ("widgets", ".push-type.widgets"),
    ] {
        let draft = Draft::to("beef")
            .set("apns-push-type", push_type)
            .set("apns-topic", &format!("{TOPIC}{suffix}"));
        assert_eq!(client.push(draft).await.unwrap().status, 200, "{push_type}");
    }
    let largest = format!("{{\"x\":\"{}\"}}", "x".repeat(4088));
    assert_eq!(largest.len(), 4096);
    assert_eq!(client.push(Draft::to("BEEF").body(largest)).await.unwrap().status, 200);
}

#[tokio::test]
async fn devices_and_bundles_can_be_listed() {
    let apns = Apns::start(ApnsConfig {
        bundles: Some(vec![TOPIC.into(), "com.example.other".into()]),
        environment: Environment::Development,
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    apns.devices().register("aa", TOPIC);
    let client = Client::connect(&apns, 1).await;
    let answered = client.push(Draft::to("aa")).await.unwrap();
    assert_eq!(answered.status, 200);
    assert_eq!(answered.headers["apns-unique-id"].len(), 36);
    let reason = |draft| async { client.push(draft).await.unwrap().reason() };
    assert_eq!(reason(Draft::to("bb")).await, "BadDeviceToken");
    assert_eq!(
        reason(Draft::to("aa").set("apns-topic", "com.example.other")).await,
        "DeviceTokenNotForTopic"
    );
    apns.devices().register("cc", "com.example.unknown");
    assert_eq!(
        reason(Draft::to("cc").set("apns-topic", "com.example.unknown")).await,
        "TopicDisallowed"
    );
}

// === APNs: provider tokens ===

/// A provider token as the `a2` crate makes it with OpenSSL: padded standard base64 and a DER signature.
fn token_like_a2(key: &ApnsKey, issued: &Value) -> String {
    let header = json!({"alg": "ES256", "kid": key.key_id}).to_string();
    let claims = json!({"iss": key.team_id, "iat": issued}).to_string();
    let signed = format!("{}.{}", BASE64_STANDARD.encode(header), BASE64_STANDARD.encode(claims));
    let body: String = key.pem.lines().filter(|line| !line.starts_with('-')).collect();
    let pkcs8 = BASE64_STANDARD.decode(body).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).unwrap();
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_STANDARD.encode(signature))
}

async fn reason_for(apns: &Apns, token: &str) -> String {
    let client = Client::connect(apns, 1).await;
    let draft = Draft::to("beef").set("authorization", &format!("Bearer {token}"));
    client.push(draft).await.unwrap().reason()
}

#[tokio::test]
async fn the_two_modes_read_provider_tokens_as_they_say() {
    for (mode, tolerant) in [(JwtMode::Apple, true), (JwtMode::Strict, false)] {
        let apns = Apns::start(ApnsConfig {
            jwt: mode,
            ..ApnsConfig::default()
        })
        .await
        .unwrap();
        let key = apns.key().clone();
        let expect = if tolerant { "" } else { "InvalidProviderToken" };
        let now = now_s();

        assert_eq!(reason_for(&apns, &key.provider_token(now).unwrap()).await, "");
        assert_eq!(reason_for(&apns, &token_like_a2(&key, &json!(now))).await, expect);
        let milliseconds = json!((now * 1000).to_string());
        assert_eq!(reason_for(&apns, &token_like_a2(&key, &milliseconds)).await, expect);

        let old = key.provider_token(now - 3601).unwrap();
        assert_eq!(reason_for(&apns, &old).await, "ExpiredProviderToken");
        let ahead = key.provider_token(now + 3600).unwrap();
        assert_eq!(reason_for(&apns, &ahead).await, "InvalidProviderToken");
        let stranger = ApnsKey::generate(&key.team_id, &key.key_id).unwrap();
        let forged = stranger.provider_token(now).unwrap();
        assert_eq!(reason_for(&apns, &forged).await, "InvalidProviderToken");
        let unknown = ApnsKey::generate(&key.team_id, "UNKNOWN001").unwrap();
        let unknown = unknown.provider_token(now).unwrap();
        assert_eq!(reason_for(&apns, &unknown).await, "InvalidProviderToken");
        let none = format!(
            "{}.{}.",
            BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "none", "kid": key.key_id}).to_string()),
            BASE64_URL_SAFE_NO_PAD.encode(json!({"iss": key.team_id, "iat": now}).to_string()),
        );
        assert_eq!(reason_for(&apns, &none).await, "InvalidProviderToken");
    }
}

#[tokio::test]
async fn a_connection_belongs_to_one_team_and_kind_of_key() {
    let team = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY1").unwrap();
    let rotated = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY2").unwrap();
    let scoped = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY3").unwrap();
    let sandbox = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY4").unwrap();
    let other = ApnsKey::generate("TEAMTEAM02", "KEYKEYKEY5").unwrap();
    let apns = Apns::start(ApnsConfig {
        keys: vec![
            team.clone().into(),
            rotated.clone().into(),
            other.clone().into(),
            ProviderKey {
                topics: Some(vec!["com.example.else".into()]),
                ..scoped.clone().into()
            },
            ProviderKey {
                environment: Some(Environment::Development),
                ..sandbox.clone().into()
            },
        ],
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    let client = Client::connect(&apns, 1).await;
    let reason = async |key: &ApnsKey| {
        let token = key.provider_token(now_s()).unwrap();
        let draft = Draft::to("beef").set("authorization", &format!("bearer {token}"));
        client.push(draft).await.unwrap().reason()
    };
    assert_eq!(reason(&team).await, "");
    assert_eq!(reason(&rotated).await, "");
    assert_eq!(reason(&other).await, "Forbidden");
    assert_eq!(reason(&scoped).await, "UnrelatedKeyIdInToken");
    let alone = |key: &ApnsKey| key.provider_token(now_s()).unwrap();
    assert_eq!(reason_for(&apns, &alone(&sandbox)).await, "BadEnvironmentKeyIdInToken");
    assert_eq!(reason_for(&apns, &alone(&scoped)).await, "TopicDisallowed");

    apns.revoke_key("TEAMTEAM01", "KEYKEYKEY1");
    assert_eq!(reason_for(&apns, &client.token).await, "InvalidProviderToken");
}

#[tokio::test]
async fn a_team_that_changes_its_token_too_often_is_told_so() {
    let apns = Apns::start(ApnsConfig {
        limit_token_updates: true,
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    let (key, now) = (apns.key().clone(), now_s());
    let first = key.provider_token(now - 60).unwrap();
    assert_eq!(reason_for(&apns, &first).await, "");
    let same_moment = key.provider_token(now - 60).unwrap();
    assert_ne!(same_moment, first);
    assert_eq!(reason_for(&apns, &same_moment).await, "");
    let next = key.provider_token(now).unwrap();
    assert_eq!(reason_for(&apns, &next).await, "TooManyProviderTokenUpdates");
    assert_eq!(reason_for(&apns, &first).await, "");
}

// === APNs: streams and connections ===

#[tokio::test]
async fn one_stream_until_a_valid_provider_token_then_a_thousand() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    let bad = Draft::to("beef").set("authorization", "bearer x.y.z");
    assert_eq!(client.push(bad).await.unwrap().status, 403);
    client.streams_become(1).await;
    let misaddressed = Draft::to("nothex");
    assert_eq!(client.push(misaddressed).await.unwrap().reason(), "BadDeviceToken");
    client.streams_become(1000).await;
    let many = join_all((0..1000).map(|_| client.push(Draft::to("beef")))).await;
    assert!(many.into_iter().all(|answered| answered.unwrap().status == 200));
    assert_eq!(apns.stats().refused_streams, 0);
}

#[tokio::test]
async fn a_client_that_races_ahead_has_its_streams_refused() {
    let apns = apns().await;
    let client = Client::connect(&apns, 100).await;
    let burst = join_all((0..50).map(|_| client.push(Draft::to("beef")))).await;
    let mut refused = 0;
    for answered in burst {
        match answered {
            Ok(answered) => assert_eq!(answered.status, 200),
            Err(error) => {
                assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    assert_eq!(apns.stats().refused_streams, refused);
    assert_eq!(apns.log().delivered_count(), 50 - refused);
    client.streams_become(1000).await;
    assert_eq!(client.push(Draft::to("beef")).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_in_pieces_is_put_together() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    let mut send = client.send.clone().ready().await.unwrap();
    let request = Request::post("https://localhost/3/device/beef")
        .header("authorization", format!("bearer {}", client.token))
        .header("apns-topic", TOPIC)
        .body(())
        .unwrap();
    let (response, mut body) = send.send_request(request, false).unwrap();
    for piece in [r#"{"aps""#, r#":{"alert"#, r#"":"ding"}}"#] {
        tokio::time::sleep(Duration::from_millis(20)).await;
        body.send_data(piece.into(), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    assert_eq!(apns.log().delivered()[0].payload, PAYLOAD);
}

#[tokio::test]
async fn goaway_lets_what_it_names_finish_and_nothing_else() {
    let apns = scripted(vec![
        Rule::token("51").delay(Duration::from_millis(300)),
        Rule::token("60").answer(Answer::goaway(false)),
    ])
    .await;
    let client = Client::connect(&apns, 1).await;
    client.push(Draft::to("00")).await.unwrap();
    client.streams_become(1000).await;
    let slow = client.push(Draft::to("51"));
    let fatal = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        join_all(["60", "61", "62"].map(|token| client.push(Draft::to(token)))).await
    };
    let (slow, fatal) = tokio::join!(slow, fatal);
    assert_eq!(slow.unwrap().status, 200);
    for result in fatal {
        let error = result.err().expect("GOAWAY named a lower stream");
        assert!(error.is_go_away() && error.is_remote(), "{error}");
        assert_eq!(error.reason(), Some(Reason::NO_ERROR));
        assert!(error.to_string().contains("Shutdown"), "{error}");
    }
    assert!(apns.log().delivered_to("60").is_empty());
    assert!(apns.log().requests_for("61").is_empty());
    let again = Client::connect(&apns, 1).await;
    assert_eq!(again.push(Draft::to("61")).await.unwrap().status, 200);
}

#[tokio::test]
async fn goaway_can_include_the_push_and_can_come_from_outside() {
    let apns = scripted(vec![Rule::token("60").answer(Answer::goaway(true))]).await;
    let client = Client::connect(&apns, 1).await;
    assert_eq!(client.push(Draft::to("60")).await.unwrap().status, 200);
    assert_eq!(apns.log().delivered_to("60").len(), 1);
    let after = client.push(Draft::to("61")).await;
    assert!(after.is_err_and(|error| error.is_go_away() || error.is_io()));

    let client = Client::connect(&apns, 1).await;
    client.push(Draft::to("61")).await.unwrap();
    apns.go_away();
    let closed = async { while client.push(Draft::to("61")).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), closed).await.unwrap();
}

#[tokio::test]
async fn a_stopped_simulator_can_come_back() {
    let authority = Authority::generate().unwrap();
    let key = ApnsKey::generate("PEALTEAM01", "PEALKEY001").unwrap();
    let config = ApnsConfig {
        authority: Some(authority),
        keys: vec![key.into()],
        ..ApnsConfig::default()
    };
    let first = Apns::start(config.clone()).await.unwrap();
    let client = Client::connect(&first, 1).await;
    client.push(Draft::to("aa")).await.unwrap();
    assert_eq!(first.stats().open_connections, 1);
    first.stop().await;
    assert!(client.push(Draft::to("aa")).await.is_err());
    assert!(TcpStream::connect(first.addr()).await.is_err());
    assert_eq!(first.stats().open_connections, 0);
    let second = Apns::start(ApnsConfig {
        listen: first.addr(),
        ..config
    })
    .await
    .unwrap();
    assert_eq!(
        Client::connect(&second, 1)
            .await
            .push(Draft::to("aa"))
            .await
            .unwrap()
            .status,
        200
    );
}

// === Scripted answers ===

#[tokio::test]
async fn scripted_errors_carry_what_the_real_ones_do() {
    let apns = scripted(vec![
        Rule::token("0a").answer(Answer::reason("Unregistered").timestamp_ms(1_700_000_000_123)),
        Rule::token("0b").answer(Answer::reason("ExpiredToken")),
        Rule::token("0c").answer(Answer::reason("TooManyRequests").retry_after(RetryAfter::Seconds(7))),
        Rule::token("0d").answer(Answer::reason("ServiceUnavailable").retry_after(RetryAfter::DateIn(60))),
        Rule::prefix("1").answer(Answer::reason("InternalServerError").body("<html>")),
        Rule::token("0e").answer(Answer::reason("ServiceUnavailable").delivered(true)),
        Rule::token("0f").times(2).answer(Answer::reason("Shutdown")),
    ])
    .await;
    let client = Client::connect(&apns, 1).await;
    let push = async |token: &str| client.push(Draft::to(token)).await.unwrap();

    let gone = push("0a").await;
    assert_eq!(gone.status, 410);
    assert_eq!(
        gone.json(),
        json!({"reason": "Unregistered", "timestamp": 1_700_000_000_123_i64})
    );
    let expired = push("0b").await.json();
    let since = expired["timestamp"].as_i64().unwrap();
    assert!((since - now_s() * 1000).abs() < 5000, "{expired}");

    let busy = push("0c").await;
    assert_eq!(
        (busy.status.as_u16(), &busy.headers["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    let date = push("0d").await.headers["retry-after"].to_str().unwrap().to_owned();
    let at = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(&date)
        .unwrap()
        .as_second();
    assert!(date.ends_with(" GMT") && (55..=65).contains(&(at - now_s())), "{date}");

    let garbage = push("17").await;
    assert_eq!((garbage.status.as_u16(), garbage.body.as_ref()), (500, &b"<html>"[..]));

    assert_eq!(push("0e").await.status, 503);
    assert_eq!(apns.log().delivered_to("0e").len(), 1);

    let statuses = [push("0f").await, push("0f").await, push("0f").await].map(|answered| answered.status.as_u16());
    assert_eq!(statuses, [503, 503, 200]);
    let stats = apns.stats();
    assert_eq!((stats.requests, stats.delivered, stats.reasons["Shutdown"]), (9, 2, 2));
}

#[tokio::test]
async fn scripted_faults_do_what_they_say_on_the_wire() {
    let apns = scripted(vec![
        Rule::token("0a").answer(Answer::reset(script::ResetCode::RefusedStream)),
        Rule::token("0b").answer(Answer::reset(script::ResetCode::InternalError).delivered(true)),
        Rule::token("0c").answer(Answer::black_hole()),
        Rule::token("0d").delay(Duration::from_millis(120)),
        Rule::token("0e").answer(Answer::close()),
        Rule::token("0f").answer(Answer::freeze()),
    ])
    .await;
    let client = Client::connect(&apns, 1).await;
    let push = async |token: &str| client.push(Draft::to(token)).await;
    let reset = async |token| push(token).await.err().and_then(|error| error.reason());
    assert_eq!(reset("0a").await, Some(Reason::REFUSED_STREAM));
    assert_eq!(reset("0b").await, Some(Reason::INTERNAL_ERROR));
    assert!(apns.log().delivered_to("0a").is_empty());
    assert_eq!(apns.log().delivered_to("0b").len(), 1);

    let patience = Duration::from_millis(200);
    assert!(tokio::time::timeout(patience, push("0c")).await.is_err());
    let began = tokio::time::Instant::now();
    assert_eq!(push("0d").await.unwrap().status, 200);
    assert!(began.elapsed() >= Duration::from_millis(120));

    assert!(push("0e").await.is_err_and(|error| error.is_io()));
    assert!(push("aa").await.is_err());

    let client = Client::connect(&apns, 1).await;
    client.push(Draft::to("aa")).await.unwrap();
    client.streams_become(1000).await;
    let frozen = client.push(Draft::to("0f"));
    assert!(tokio::time::timeout(patience, frozen).await.is_err());
    let behind = client.push(Draft::to("aa"));
    assert!(tokio::time::timeout(patience, behind).await.is_err());
    let fresh = Client::connect(&apns, 1).await;
    assert_eq!(fresh.push(Draft::to("aa")).await.unwrap().status, 200);

    apns.script().clear();
    assert_eq!(fresh.push(Draft::to("0a")).await.unwrap().status, 200);
    apns.stop().await;
}

#[tokio::test]
async fn counting_mode_counts_duplicates_and_keeps_nothing() {
    let apns = Apns::start(ApnsConfig {
        log: LogMode::Counting,
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    let client = Client::connect(&apns, 1).await;
    let ids = ["a", "b", "a"].map(|end| format!("123e4567-e89b-12d3-a456-42665544000{end}"));
    for id in &ids {
        client.push(Draft::to("beef").set("apns-id", id)).await.unwrap();
    }
    let stats = apns.stats();
    assert_eq!((stats.requests, stats.delivered, stats.duplicates), (3, 3, 1));
    assert!(apns.log().pushes().is_empty());
    assert!(apns.log().wait_delivered(3, Duration::ZERO).await);
    apns.log().clear();
    assert_eq!(apns.stats().duplicates, 0);
}

// === FCM ===

struct FcmClient {
    http: reqwest::Client,
    base: String,
    token: String,
}

fn http_client(fcm: &Fcm, http1: bool) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(fcm.ca_pem().as_bytes()).unwrap();
    let builder = reqwest::Client::builder()
        .tls_certs_only([ca])
        .timeout(Duration::from_secs(5));
    let builder = if http1 { builder.http1_only() } else { builder };
    builder.build().unwrap()
}

async fn exchange(http: &reqwest::Client, fcm: &Fcm, assertion: &str) -> (u16, Value) {
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("assertion", assertion),
    ];
    let answered = http.post(fcm.token_uri()).form(&form).send().await.unwrap();
    (answered.status().as_u16(), answered.json().await.unwrap())
}

impl FcmClient {
    async fn connect(fcm: &Fcm, http1: bool) -> Self {
        let http = http_client(fcm, http1);
        let assertion = fcm.account().assertion(&fcm.token_uri(), now_s()).unwrap();
        let (status, token) = exchange(&http, fcm, &assertion).await;
        assert_eq!(
            (status, &token["expires_in"], &token["token_type"]),
            (200, &json!(3599), &json!("Bearer"))
        );
        Self {
            http,
            base: format!("https://localhost:{}", fcm.addr().port()),
            token: token["access_token"].as_str().unwrap().to_owned(),
        }
    }

    async fn post(&self, project: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        self.http
            .post(format!("{}/v1/projects/{project}/messages:send", self.base))
            .bearer_auth(&self.token)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap()
    }

    async fn send(&self, request: &Value) -> (u16, Value) {
        let answered = self.post("peal-test", request.to_string()).await;
        (answered.status().as_u16(), answered.json().await.unwrap())
    }
}

fn to(token: &str) -> Value {
    json!({"message": {"token": token, "notification": {"title": "ding"}}})
}

fn error_code(body: &Value) -> &str {
    let details = body["error"]["details"].as_array().map_or(&[][..], Vec::as_slice);
    details
        .iter()
        .find_map(|detail| detail["errorCode"].as_str())
        .unwrap_or("")
}

fn violated(body: &Value) -> &str {
    let details = body["error"]["details"].as_array().map_or(&[][..], Vec::as_slice);
    details
        .iter()
        .find_map(|detail| detail["fieldViolations"][0]["field"].as_str())
        .unwrap_or("-")
}

#[tokio::test]
async fn fcm_accepts_over_both_versions_of_http() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    for (http1, version) in [(false, http::Version::HTTP_2), (true, http::Version::HTTP_11)] {
        let client = FcmClient::connect(&fcm, http1).await;
        let answered = client.post("peal-test", to("phone").to_string()).await;
        assert_eq!((answered.status().as_u16(), answered.version()), (200, version));
        let name = answered.json::<Value>().await.unwrap()["name"].clone();
        assert!(name.as_str().unwrap().starts_with("projects/peal-test/messages/"));
        assert_eq!(fcm.log().delivered().last().unwrap().id, name.as_str().unwrap());
    }
    let rich = json!({"message": {
        "token": "phone", "data": {"k": "v"},
        "android": {"collapse_key": "c", "priority": "high", "ttl": "3.5s", "notification": {"channel_id": "x"}},
        "apns": {"headers": {"apns-priority": "10"}, "payload": {"aps": {"badge": 1}}},
        "webpush": {"notification": {"any": ["thing"]}},
    }});
    let client = FcmClient::connect(&fcm, false).await;
    assert_eq!(client.send(&rich).await.0, 200);
    let push = fcm.log().delivered().pop().unwrap();
    assert_eq!(push.collapse_id.as_deref(), Some("c"));
    assert_eq!(push.expiration.as_deref(), Some("3.5s"));
    let stats = fcm.stats();
    assert_eq!((stats.delivered, stats.duplicates, stats.access_tokens), (3, 1, 3));
}

#[tokio::test]
async fn fcm_names_the_field_that_is_wrong() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    let client = FcmClient::connect(&fcm, false).await;
    let message = |more: Value| {
        let mut message = json!({"token": "phone"});
        message
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({ "message": message })
    };
    let big = "x".repeat(4097);
    let cases = [
        (json!({}), "message"),
        (json!({"message": {}}), "message"),
        (json!({"message": {"token": "a", "topic": "b"}}), "message"),
        (json!({"message": {"token": ""}}), "message.token"),
        (json!({"message": {"topic": "a b"}}), "message.topic"),
        (json!({"message": {"condition": "a"}}), "message.condition"),
        (json!({"massage": {}}), ""),
        (message(json!({"notificatoin": {}})), "message"),
        (message(json!({"data": {"n": 1}})), "message.data[0].value"),
        (message(json!({"data": {"from": "me"}})), "message.data"),
        (message(json!({"data": {"google.x": "me"}})), "message.data"),
        (message(json!({"data": {"k": big}})), "message"),
        (
            message(json!({"notification": {"title": 1}})),
            "message.notification.title",
        ),
        (message(json!({"android": {"ttl": "60"}})), "message.android.ttl"),
        (message(json!({"android": {"ttl": 60}})), "message.android.ttl"),
        (message(json!({"android": {"ttl": "2419201s"}})), "message.android.ttl"),
        (
            message(json!({"android": {"priority": "urgent"}})),
            "message.android.priority",
        ),
        (message(json!({"android": {}, "androidV2": {}})), "message"),
        (message(json!({"apns": {"payload": {"k": big}}})), "message"),
    ];
    for (request, field) in cases {
        let (status, body) = client.send(&request).await;
        assert_eq!((status, violated(&body)), (400, field), "{request} {body}");
        assert_eq!(body["error"]["status"], "INVALID_ARGUMENT");
    }
    assert_eq!(client.post("peal-test", "{").await.status(), 400);
    let dry = json!({"validate_only": true, "message": {"token": "phone"}});
    assert_eq!(
        client.send(&dry).await,
        (200, json!({"name": "projects/peal-test/messages/fake_message_id"}))
    );
    assert_eq!(fcm.log().delivered_count(), 0);
}

#[tokio::test]
async fn fcm_wants_an_access_token_for_the_project() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    let mut client = FcmClient::connect(&fcm, false).await;
    let other = client.post("other", to("a").to_string()).await;
    assert_eq!(
        other.json::<Value>().await.unwrap()["error"]["status"],
        "PERMISSION_DENIED"
    );
    assert_eq!(client.send(&to("a")).await.0, 200);
    fcm.revoke_access_tokens();
    let (status, body) = client.send(&to("a")).await;
    assert_eq!((status, error_code(&body)), (401, ""));
    assert_eq!(body["error"]["status"], "UNAUTHENTICATED");
    client.token = String::new();
    assert_eq!(client.send(&to("a")).await.0, 401);
    let unknown = client
        .http
        .get(format!("{}/v1/projects", client.base))
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), 404);

    let short = Fcm::start(FcmConfig {
        token_life: Duration::from_secs(0),
        ..FcmConfig::default()
    })
    .await
    .unwrap();
    let http = http_client(&short, false);
    let assertion = short.account().assertion(&short.token_uri(), now_s()).unwrap();
    let (_, token) = exchange(&http, &short, &assertion).await;
    let expired = FcmClient {
        http,
        base: format!("https://localhost:{}", short.addr().port()),
        token: token["access_token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(expired.send(&to("a")).await.0, 401);
}

#[tokio::test]
async fn assertions_are_verified() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    let http = http_client(&fcm, false);
    let (account, own, now) = (fcm.account(), fcm.token_uri(), now_s());
    let google = "https://oauth2.googleapis.com/token";
    assert_eq!(
        exchange(&http, &fcm, &account.assertion(google, now).unwrap()).await.0,
        200
    );

    let mut forger = ServiceAccount::generate("peal-test").unwrap();
    forger.private_key_id.clone_from(&account.private_key_id);
    let mut stranger = forger.clone();
    stranger.client_email = "stranger@example.com".into();
    for (assertion, why) in [
        (
            account.assertion("https://elsewhere.example/token", now).unwrap(),
            "audience",
        ),
        (account.assertion(&own, now - 4000).unwrap(), "Signature"),
        (forger.assertion(&own, now).unwrap(), "Signature"),
        (stranger.assertion(&own, now).unwrap(), "account not found"),
        ("x.y.z".into(), "parse"),
    ] {
        let (status, body) = exchange(&http, &fcm, &assertion).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")), "{body}");
        assert!(body["error_description"].as_str().unwrap().contains(why), "{body}");
    }
    let form = [("grant_type", "password")];
    let answered = http.post(own).form(&form).send().await.unwrap();
    assert_eq!(
        answered.json::<Value>().await.unwrap()["error"],
        "unsupported_grant_type"
    );
}

#[tokio::test]
async fn fcm_errors_have_googles_shape() {
    let rules = [
        ("INVALID_ARGUMENT", 400, "INVALID_ARGUMENT"),
        ("THIRD_PARTY_AUTH_ERROR", 401, "UNAUTHENTICATED"),
        ("SENDER_ID_MISMATCH", 403, "PERMISSION_DENIED"),
        ("UNREGISTERED", 404, "NOT_FOUND"),
        ("QUOTA_EXCEEDED", 429, "RESOURCE_EXHAUSTED"),
        ("INTERNAL", 500, "INTERNAL"),
        ("UNAVAILABLE", 503, "UNAVAILABLE"),
    ];
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    for (code, _, _) in rules {
        fcm.script()
            .add(Rule::token(code).answer(Answer::reason(code)))
            .unwrap();
    }
    let later = Answer::reason("QUOTA_EXCEEDED").retry_after(RetryAfter::Seconds(60));
    fcm.script().add(Rule::token("later").answer(later)).unwrap();
    fcm.script().add(Rule::token("cut").answer(Answer::close())).unwrap();
    let client = FcmClient::connect(&fcm, false).await;
    for (code, http_status, status) in rules {
        let (answered, body) = client.send(&to(code)).await;
        assert_eq!((answered, error_code(&body)), (http_status, code));
        assert_eq!(
            (&body["error"]["code"], &body["error"]["status"]),
            (&json!(http_status), &json!(status))
        );
    }
    let later = client.post("peal-test", to("later").to_string()).await;
    assert_eq!(
        (later.status().as_u16(), &later.headers()["retry-after"]),
        (429, &"60".parse().unwrap())
    );
    for http1 in [false, true] {
        let client = FcmClient::connect(&fcm, http1).await;
        let request = client
            .http
            .post(format!("{}/v1/projects/peal-test/messages:send", client.base))
            .bearer_auth(&client.token)
            .body(to("cut").to_string());
        assert!(request.send().await.is_err());
    }
    fcm.devices().register("phone", "peal-test");
    fcm.devices().register("theirs", "another-project");
    assert_eq!(client.send(&to("phone")).await.0, 200);
    assert_eq!(error_code(&client.send(&to("theirs")).await.1), "SENDER_ID_MISMATCH");
    assert_eq!(error_code(&client.send(&to("nobody")).await.1), "UNREGISTERED");
}

// === The program ===

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    simulate: testbed::simulate::SimulateArgs,
}

#[tokio::test]
async fn the_program_writes_what_a_client_needs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let script = dir.path().join("script.json");
    let rules = json!({"apns": {"rules": [{"token": "0a", "answer": {"reason": "Unregistered"}}]}});
    std::fs::write(&script, rules.to_string()).unwrap();
    let any = "127.0.0.1:0";
    let args = [
        "simulate", "--dir", path, "--apns", any, "--fcm", any, "--admin", any, "--script",
    ];
    let args = args.into_iter().chain(script.to_str());
    let program = <Program as clap::Parser>::try_parse_from(args).unwrap();
    let running = tokio::spawn(testbed::simulate::run(program.simulate));

    let read = |name: &str| std::fs::read_to_string(dir.path().join(name));
    let http = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let mut tries = 0;
    while read("fcm-assertion.jwt").is_err() {
        tries += 1;
        assert!(tries < 3000 && !running.is_finished());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let at: Value = serde_json::from_str(&read("simulators.json").unwrap()).unwrap();
    let port = u16::try_from(at["apns_port"].as_u64().unwrap()).unwrap();
    let client = Client::on(
        port,
        &read("ca.pem").unwrap(),
        1,
        read("apns-provider-token.jwt").unwrap(),
    )
    .await;
    assert_eq!(client.push(Draft::to("0a")).await.unwrap().reason(), "Unregistered");

    let admin = at["admin"].as_str().unwrap();
    let put = |body: Value| {
        http.put(format!("{admin}/script"))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
    };
    assert_eq!(put(json!({"apns": {"rules": []}})).await.unwrap().status(), 204);
    assert_eq!(client.push(Draft::to("0a")).await.unwrap().status, 200);
    let unknown = json!({"fcm": {"rules": [{"answer": {"reason": "Unregistered"}}]}});
    assert_eq!(put(unknown).await.unwrap().status(), 422);
    let get = async |path: &str| -> Value {
        let answered = http.get(format!("{admin}{path}")).send().await.unwrap();
        answered.json().await.unwrap()
    };
    assert_eq!(get("/log").await["apns"][1]["token"], "0a");
    assert_eq!(get("/stats").await["apns"]["delivered"], 1);
    running.abort();
}
