//! What one caller, or one without a key, can take from others: connections, places, and what quotas bound.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use http::Request;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use shared::{api_key::Scope, app::Quota, nats::topology};
use testbed::{
    nats,
    peal::{Peal, Plan},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::rig::{Rig, send};

/// A connection that shows no key is closed within this time, on a busy machine.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);

/// Waits until the gateway closes a connection on which `bytes` were sent, followed by one more `trickle` every second.
async fn closed_after(rig: &Rig, bytes: &[u8], trickle: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(rig.addr()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let reading = reader.read_to_end(&mut answer);
    let trickling = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            if writer.write_all(trickle).await.is_err() {
                return;
            }
        }
    };
    let closed = async {
        tokio::select! {
            // A reset is as good as an end.
            _ = reading => (),
            () = trickling => (),
        }
    };
    let text = String::from_utf8_lossy(bytes);
    timeout(CLOSED_WITHIN, closed)
        .await
        .unwrap_or_else(|_| panic!("open after {CLOSED_WITHIN:?}: {text:?}"));
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_finish_anything_are_closed_in_seconds() {
    let rig = Rig::start().await;
    let head = "POST /v1/notifications HTTP/1.1\r\nhost: x\r\n";
    let body = format!(
        "{head}authorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{{",
        rig.key
    );
    let unknown = format!("{head}content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // An empty SETTINGS frame, and the first half of the head of a HEADERS frame.
    let half_headers = [preface.as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9, 1]].concat();
    join_all([
        closed_after(&rig, b"", b""),
        closed_after(&rig, &preface[..10], b""),
        closed_after(&rig, &half_headers, b""),
        closed_after(&rig, b"\x16\x03\x01\x02\x00\x01", b""),
        closed_after(&rig, b"POST /v1/noti", b""),
        closed_after(&rig, head.as_bytes(), b"x"),
        closed_after(&rig, unknown.as_bytes(), b" "),
        closed_after(&rig, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b""),
    ])
    .await;
    // With a key the body has five seconds, and the connection may go on.
    let mut stream = TcpStream::connect(rig.addr()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(CLOSED_WITHIN, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_make_room_for_others() {
    let rig = Rig::with(|settings| settings.limits.connections = 32).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(rig.addr()).await.unwrap());
    }
    for number in 0..20 {
        let answer = rig.notify(&format!("e{number}"), &["ann"]).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        silent.push(TcpStream::connect(rig.addr()).await.unwrap());
    }
    rig.lifecycle.finish();
}

/// A program that runs this crate's, with at most 256 open files if it is to be a gateway.
fn with_few_files(folder: &Path) -> PathBuf {
    let program = folder.join("with-few-files");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != gateway ] || ulimit -n 256\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_testbed")
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_few_files_stays_reachable_beside_silent_connections() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(with_few_files(folder.path()), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    let gateway = &peal.region("eu").gateway;
    let address = gateway.url.strip_prefix("http://").unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.process.id().unwrap())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(files.split_whitespace().any(|word| word == "256"), "{files}");

    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    for number in 0..20 {
        // A caller who comes now, without a connection from before.
        let newcomer = reqwest::Client::builder()
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        let body =
            json!({ "event_id": format!("e{number}"), "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
        let request = newcomer.post(format!("{}/v1/notifications", gateway.url));
        let answer = request.bearer_auth(&peal.key).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        for _ in 0..15 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
    }
}

/// Sends a request whose body never comes.
async fn hanging(sender: &mut http2::SendRequest<BoxBody<Bytes, std::io::Error>>, key: &str) -> u16 {
    let endless = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>()).boxed();
    let request = Request::post("http://gateway/v1/notifications")
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(endless)
        .unwrap();
    sender.ready().await.unwrap();
    sender
        .send_request(request)
        .await
        .map_or(0, |answer| answer.status().as_u16())
}

async fn http2_connection(rig: &Rig) -> http2::SendRequest<BoxBody<Bytes, std::io::Error>> {
    let stream = TokioIo::new(TcpStream::connect(rig.addr()).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_with_hanging_bodies_does_not_take_the_places_of_others() {
    let rig = Rig::with(|settings| settings.limits.in_flight = 2000).await;
    let bank = rig.issue_key("bank", Scope::ALL).await;
    let mut hung = Vec::new();
    for _ in 0..9 {
        let connection = http2_connection(&rig).await;
        for _ in 0..500 {
            let (mut connection, key) = (connection.clone(), rig.key.clone());
            hung.push(tokio::spawn(async move { hanging(&mut connection, &key).await }));
        }
    }
    sleep(Duration::from_secs(1)).await;
    for number in 0..100 {
        let body =
            json!({ "event_id": format!("e{number}"), "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } });
        let answer = rig.call("POST", "/v1/notifications", Some(&bank), Some(body)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    let answers: Vec<u16> = join_all(hung).await.into_iter().map(Result::unwrap).collect();
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(408), count(429)), (1024, 4500 - 1024));
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_told_what_is_left_of_its_quota() {
    let rig = Rig::start().await;
    let quota = Quota {
        requests_per_s: Some(5),
        jobs_per_s: Some(1000),
        ..Quota::default()
    };
    let key = rig.issue_key_within("bank", Scope::ALL, quota).await;
    let other = rig.issue_key_within("bank", Scope::ALL, quota).await;
    // The quota of the requests by which the key was found to be known comes back.
    sleep(Duration::from_millis(1500)).await;
    let ask = async |key: &str| send(rig.request("GET", "/v1/dead-letters").bearer_auth(key)).await;
    let first = ask(&key).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(
        first.header("ratelimit-policy"),
        Some("\"key\";q=5;w=1, \"app\";q=1000;w=1")
    );
    assert_eq!(first.header("ratelimit"), Some("\"key\";r=4;t=1, \"app\";r=1000;t=0"));
    let answers = join_all((0..20).map(|_| ask(&key))).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!((10..=16).contains(&refused.len()), "{answers:?}");
    for answer in &refused {
        assert_eq!(answer.code(), "rate_limited");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(answer.body["detail"].as_str().unwrap().contains("requests_per_s"));
        assert!(answer.header("ratelimit").unwrap().starts_with("\"key\";r=0;t=1"));
    }
    assert_eq!(
        ask(&other).await.status,
        200,
        "another key of the app has a quota of its own"
    );
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ask(&key).await.status, 200);
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_refused_jobs_beyond_its_quota_and_nothing_is_stored() {
    let rig = Rig::start().await;
    let notify = async |key: &str, event: &str, recipients: usize| {
        let recipients: Vec<String> = (0..recipients).map(|number| format!("r{number}")).collect();
        let body = json!({ "event_id": event, "to": { "recipients": recipients }, "push": { "title": "Hi" } });
        rig.call("POST", "/v1/notifications", Some(key), Some(body)).await
    };
    let jobs_a_second = Quota {
        jobs_per_s: Some(100),
        ..Quota::default()
    };
    let fast = rig.issue_key_within("fast", Scope::ALL, jobs_a_second).await;
    assert_eq!(notify(&fast, "first", 300).await.status, 202, "nothing was owed");
    let refused = notify(&fast, "second", 1).await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
    let retry_after: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(
        (1..=2).contains(&retry_after),
        "200 beyond the burst are owed: {refused:?}"
    );

    // No worker pulls here.
    let waiting = Quota {
        waiting_jobs: Some(250),
        ..Quota::default()
    };
    let slow = rig.issue_key_within("slow", Scope::ALL, waiting).await;
    let before = rig.count(topology::NOTIFY).await;
    assert_eq!(notify(&slow, "first", 200).await.status, 202);
    let refused = notify(&slow, "second", 100).await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
    assert!(refused.body["detail"].as_str().unwrap().contains("waiting_jobs"));
    assert_eq!(rig.count(topology::NOTIFY).await - before, 200);
    assert_eq!(notify(&slow, "third", 50).await.status, 202);
    let metrics = send(rig.request("GET", "/metrics")).await;
    let line = "peal_requests_limited_total{app=\"slow\",limit=\"waiting_jobs\"";
    assert!(metrics.body.as_str().unwrap().contains(line), "{:?}", metrics.body);
    rig.lifecycle.finish();
}
