//! What proves a caller's identity beside a key that is sent: signed requests, and client tokens of phones and browsers.

use std::{path::Path, process::Stdio, time::Duration};

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use shared::{
    api_key::{NewKey, Scope},
    app::App,
    clock::Clock,
    signature,
};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use crate::rig::{Answer, Rig, TIMEOUT, eventually, send};

fn now() -> i64 {
    Clock::system().now().as_second()
}

/// The id and the secret of a key.
fn parts(key: &str) -> (&str, &str) {
    key.strip_prefix("peal_").unwrap().split_once('_').unwrap()
}

fn signing_key(scopes: &[Scope]) -> NewKey {
    NewKey {
        signing: true,
        ..NewKey::with(scopes)
    }
}

/// A request as it is signed.
struct Signing<'a> {
    key: &'a str,
    method: &'a str,
    path: &'a str,
    body: &'a str,
    time: i64,
    nonce: &'a str,
}

impl Signing<'_> {
    fn header(&self) -> String {
        let (id, secret) = parts(self.key);
        let digest = digest(&SHA256, self.body.as_bytes());
        let hex: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let hex = hex.concat();
        let Self {
            method,
            path,
            time,
            nonce,
            ..
        } = self;
        let message = format!("peal1\n{method}\n{path}\n{time}\n{nonce}\n{hex}");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
        format!("Peal-HMAC-SHA256 key={id}, time={time}, nonce={nonce}, signature={signature}")
    }
}

async fn ask(rig: &Rig, method: &str, path: &str, authorization: &str, body: &str) -> Answer {
    let request = rig.request(method, path).header("authorization", authorization);
    let request = request.header("content-type", "application/json");
    send(request.body(body.to_owned())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_request_is_taken_once_and_only_as_it_was_signed() {
    let rig = Rig::start().await;
    let shop = rig.issue(rig.new_app("shop"), signing_key(Scope::ALL)).await;
    let bank = rig.issue(rig.new_app("bank"), signing_key(Scope::ALL)).await;
    let (path, body) = (
        "/v1/notifications?x=1",
        r#"{"to":{"recipients":["ann"]},"push":{"title":"Hi"}}"#,
    );
    let signing = |nonce| Signing {
        key: &shop,
        method: "POST",
        path,
        body,
        time: now(),
        nonce,
    };
    let signed = signing("nonce-of-the-first").header();
    let answer = ask(&rig, "POST", path, &signed, body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let again = ask(&rig, "POST", path, &signed, body).await;
    assert_eq!((again.status, again.code()), (401, "request_replayed"));

    // With another body, method, path or nonce than was signed, too late, or by another key, nothing is stored.
    let before = rig.count("NOTIFY").await + rig.count("OUTBOX").await;
    let fresh = signing("nonce-of-the-second").header();
    let renamed = fresh.replace("of-the-second", "of-the-third--");
    let (shop_id, _) = parts(&shop);
    let (bank_id, _) = parts(&bank);
    let by_bank = Signing {
        key: &bank,
        ..signing("nonce-of-the-fourth")
    };
    let past = Signing {
        time: now() - 301,
        ..signing("nonce-of-the-fifth-")
    };
    let future = Signing {
        time: now() + 330,
        ..signing("nonce-of-the-sixth-")
    };
    let plain = Signing {
        key: &rig.key,
        ..signing("nonce-of-the-seventh")
    };
    let other_body = body.replace("ann", "bob");
    for (why, method, path, authorization, body) in [
        ("another body", "POST", path, fresh.clone(), &*other_body),
        ("another method", "PUT", "/v1/recipients/ann", fresh.clone(), body),
        ("another path", "POST", "/v1/notifications?x=2", fresh.clone(), body),
        ("another nonce", "POST", path, renamed, body),
        (
            "bank for shop",
            "POST",
            path,
            by_bank.header().replace(bank_id, shop_id),
            body,
        ),
        ("the past", "POST", path, past.header(), body),
        ("the future", "POST", path, future.header(), body),
        ("a key that may not sign", "POST", path, plain.header(), body),
        (
            "an empty signature",
            "POST",
            path,
            format!(
                "Peal-HMAC-SHA256 key={shop_id}, time={}, nonce=nonce-of-the-eighth, signature=",
                now()
            ),
            body,
        ),
    ] {
        let answer = ask(&rig, method, path, &authorization, body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (401, "unauthenticated"),
            "{why}: {answer:?}"
        );
    }
    assert_eq!(rig.count("NOTIFY").await + rig.count("OUTBOX").await, before);
    // What was refused did not use the nonce up.
    assert_eq!(ask(&rig, "POST", path, &fresh, body).await.status, 202);

    // Of many that come at once with one nonce, one is taken.
    let signed = Signing {
        method: "GET",
        path: "/v1/notifications?event_id=e1",
        body: "",
        ..signing("nonce-of-many-at-once")
    }
    .header();
    let asked = (0..16).map(|_| ask(&rig, "GET", "/v1/notifications?event_id=e1", &signed, ""));
    let answers = futures::future::join_all(asked).await;
    let taken = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(taken, 1, "{answers:?}");
}

fn token(key: &str, claims: &Value) -> String {
    let (id, secret) = parts(key);
    let header = Header {
        kid: Some(id.to_owned()),
        ..Header::new(Algorithm::HS256)
    };
    let key = EncodingKey::from_secret(secret.as_bytes());
    format!("Bearer {}", jsonwebtoken::encode(&header, claims, &key).unwrap())
}

fn claims(app: &str, recipient: &str, scope: &str) -> Value {
    json!({ "aud": "peal", "iss": app, "sub": recipient, "iat": now(), "exp": now() + 600, "scope": scope })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_token_acts_for_its_recipient_alone() {
    let rig = Rig::start().await;
    let key = rig.issue(rig.new_app("shop"), signing_key(&[Scope::IssueTokens])).await;
    let bank = rig.issue(rig.new_app("bank"), signing_key(&[Scope::IssueTokens])).await;
    let everything = "addresses preferences topics engagement";
    let ann = token(&key, &claims("shop", "ann", everything));
    let device = r#"{"provider":"fcm","token":"t1"}"#;
    let addresses = "/v1/recipients/ann/addresses";

    let registered = ask(&rig, "POST", addresses, &ann, device).await;
    assert_eq!(registered.status, 201, "{registered:?}");
    let listed = ask(&rig, "GET", addresses, &ann, "").await;
    assert_eq!(listed.body["addresses"].as_array().unwrap().len(), 1, "{listed:?}");
    let preferences = r#"{"channels":{"push":false}}"#;
    for (method, path, body, status) in [
        ("PUT", "/v1/recipients/ann/preferences", preferences, 200),
        ("PATCH", "/v1/recipients/ann/preferences", preferences, 200),
        ("GET", "/v1/recipients/ann/preferences", "", 200),
        ("PUT", "/v1/recipients/ann/topics/news", "", 200),
        ("GET", "/v1/recipients/ann/topics", "", 200),
        ("DELETE", "/v1/recipients/ann/topics/news", "", 204),
        // A mailbox or a number is not proved by holding a phone, and would leave its owner.
        ("POST", addresses, r#"{"type":"email","email":"bob@example.com"}"#, 403),
        (
            "POST",
            addresses,
            r#"{"type":"webhook","url":"https://example.com/x"}"#,
            403,
        ),
        // Another recipient, however the path is written; a recipient itself; everything else.
        ("POST", "/v1/recipients/bob/addresses", device, 403),
        ("GET", "/v1/recipients/bob/addresses", "", 403),
        ("GET", "/v1/recipients/Ann/addresses", "", 403),
        ("GET", "/v1/recipients/ann%2f..%2fbob/addresses", "", 403),
        ("GET", "/v1/recipients/bob/preferences", "", 403),
        ("PATCH", "/v1/recipients/bob/preferences", preferences, 403),
        ("POST", "/v1/recipients/ann/preference-link", "", 403),
        ("PUT", "/v1/recipients/bob/topics/ann", "", 403),
        ("GET", "/v1/recipients/ann", "", 403),
        ("DELETE", "/v1/recipients/ann", "", 403),
        ("PUT", "/v1/recipients/ann", "{}", 403),
        (
            "POST",
            "/v1/notifications",
            r#"{"to":{"recipients":["ann"]},"push":{"title":"Hi"}}"#,
            403,
        ),
        ("GET", "/v1/notifications?event_id=e1", "", 403),
        ("GET", "/v1/dead-letters", "", 403),
        ("POST", "/v1/imports", "{}", 403),
    ] {
        let answer = ask(&rig, method, path, &ann, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
    let narrow = token(&key, &claims("shop", "ann", "topics"));
    assert_eq!(ask(&rig, "GET", addresses, &narrow, "").await.status, 403);
    for (why, token) in [
        ("another app", token(&bank, &claims("shop", "ann", everything))),
        (
            "a key that may not issue",
            token(&rig.key, &claims("shop", "ann", everything)),
        ),
        ("an end that has passed", {
            let mut claims = claims("shop", "ann", everything);
            (claims["iat"], claims["exp"]) = (json!(now() - 700), json!(now() - 100));
            token(&key, &claims)
        }),
    ] {
        let answer = ask(&rig, "GET", addresses, &token, "").await;
        assert_eq!((answer.status, answer.code()), (401, "unauthenticated"), "{why}");
    }
    let of_bank = token(&bank, &claims("bank", "ann", everything));
    let answer = ask(&rig, "GET", addresses, &of_bank, "").await;
    assert_eq!(answer.status, 404, "ann of bank is somebody else: {answer:?}");

    // Browsers: the paths of client tokens, and no others.
    for (path, is_open) in [
        (addresses, true),
        ("/v1/recipients/ann", false),
        ("/v1/notifications", false),
    ] {
        let preflight = rig
            .request("OPTIONS", path)
            .header("origin", "https://shop.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
        let preflight = send(preflight).await;
        assert_eq!(preflight.status == 200, is_open, "{path}: {preflight:?}");
        let call = rig.request("GET", path).header("origin", "https://shop.example");
        let call = send(call.header("authorization", "Bearer a.b.c")).await;
        assert_eq!(call.status, 401, "{path}: {call:?}");
        for answer in [&preflight, &call] {
            let origin = answer.header("access-control-allow-origin");
            assert_eq!(origin, is_open.then_some("*"), "{path}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_ends_soon_is_reported_once_and_measured() {
    let rig = Rig::start().await;
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let take = async move |body: String| told.send(body).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let receiver = axum::Router::new().route("/", axum::routing::post(take));
    tokio::spawn(async move { axum::serve(listener, receiver).await.unwrap() });
    let ends = Clock::system().now() + jiff::SignedDuration::from_hours(72);
    let key = NewKey {
        name: Some("orders".into()),
        expires_at: Some(ends),
        ..NewKey::with(&[Scope::Send])
    };
    let mut app = rig.new_app("shop");
    app.alert(&rig.mesh_key, url, &signature::new_secret());
    let key = rig.issue(app, key).await;
    // Two gateways look at their start; one of them reports.
    let gateways = [
        rig.another_gateway(STANDARD.encode([7; 32])).await,
        rig.another_gateway(STANDARD.encode([7; 32])).await,
    ];
    let body = timeout(TIMEOUT, heard.recv()).await.unwrap().unwrap();
    let alert: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(alert["type"], "credential.expiring");
    let data = json!({
        "app": "shop", "credential": "api_key", "key_id": parts(&key).0, "name": "orders", "expires_at": ends,
    });
    assert_eq!(alert["data"], data);
    for gateway in &gateways {
        let url = format!("http://{}/metrics", gateway.addr());
        eventually("the end is measured", async || {
            let page = rig.http.get(&url).send().await.unwrap().text().await.unwrap();
            let mut lines = page.lines();
            let line = lines.find(|line| {
                line.starts_with("peal_credential_expires_in_seconds{")
                    && ["app=\"shop\"", "kind=\"api_key\""]
                        .iter()
                        .all(|label| line.contains(label))
            });
            let seconds = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            seconds.is_some_and(|seconds| (71.0 * 3600.0..=72.0 * 3600.0).contains(&seconds))
        })
        .await;
    }
    sleep(Duration::from_secs(2)).await;
    assert!(heard.try_recv().is_err(), "it is reported once");
}

/// `testbed/conformance/signatures.py` signs with Python's hmac, and makes tokens with `PyJWT`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PyJWT; testbed/conformance/run has it and runs this"]
async fn what_others_sign_is_taken() {
    let python = std::env::var_os("PYTHON").expect("PYTHON names an interpreter that has PyJWT");
    let rig = Rig::start().await;
    let app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
    let key = rig
        .issue(
            App {
                credentials: rig.new_app("shop").credentials,
                ..app
            },
            signing_key(Scope::ALL),
        )
        .await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/signatures.py");
    let status = Command::new(python)
        .arg(script)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PEAL_URL", rig.url())
        .env("PEAL_APP", "shop")
        .env("PEAL_KEY", key)
        .stdin(Stdio::null())
        .status()
        .await
        .unwrap();
    assert!(status.success(), "{status}");
}
