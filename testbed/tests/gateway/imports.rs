//! Bulk import: each line answered in order, whatever the lines, the callers and their connections do.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use shared::{api_key::Scope, app::Quota};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::rig::{Answer, Rig, eventually, send};

/// Longer than any step of these tests takes on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(2);

const NDJSON: &str = "application/x-ndjson";

/// The whole answer to an import of these lines.
async fn ask(rig: &Rig, query: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = rig
        .request("POST", &format!("/v1/imports{query}"))
        .bearer_auth(&rig.key);
    send(request.timeout(TIMEOUT).header("content-type", NDJSON).body(body)).await
}

/// The results in an answer.
fn results(answer: &Answer) -> Vec<Value> {
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some(NDJSON)),
        "{answer:?}"
    );
    match &answer.body {
        Value::String(text) => lines(text),
        // One line is a document.
        one => vec![one.clone()],
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(results: &[Value]) -> Vec<u64> {
    results.iter().map(|result| result["line"].as_u64().unwrap()).collect()
}

fn statuses(results: &[Value]) -> Vec<u64> {
    results
        .iter()
        .map(|result| result["status"].as_u64().unwrap())
        .collect()
}

fn body(lines: &[Value]) -> String {
    lines
        .iter()
        .flat_map(|line| [line.to_string(), "\n".to_owned()])
        .collect()
}

/// An import whose body is sent piece by piece.
struct Upload {
    sender: mpsc::UnboundedSender<Result<Frame<Bytes>, io::Error>>,
    answer: JoinHandle<hyper::Result<Response<Incoming>>>,
}

impl Upload {
    async fn begin(rig: &Rig, key: &str, query: &str) -> Self {
        let stream = TokioIo::new(TcpStream::connect(rig.addr()).await.unwrap());
        let (mut connection, driver) = http1::handshake(stream).await.unwrap();
        tokio::spawn(driver);
        let (sender, pieces) = mpsc::unbounded();
        let request = Request::post(format!("/v1/imports{query}"))
            .header("host", "gateway")
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", NDJSON)
            .body(StreamBody::new(pieces))
            .unwrap();
        let answer = tokio::spawn(async move { connection.send_request(request).await });
        Self { sender, answer }
    }

    fn send(&self, text: &str) {
        let piece = Bytes::from(text.to_owned());
        self.sender.unbounded_send(Ok(Frame::data(piece))).unwrap();
    }

    /// Sends the first line, and returns the answer, which has begun.
    async fn send_first(&mut self, text: &str) -> Response<Incoming> {
        self.send(text);
        timeout(TIMEOUT, &mut self.answer).await.unwrap().unwrap().unwrap()
    }
}

/// The next results that arrive.
async fn next(answer: &mut Response<Incoming>) -> Vec<Value> {
    let frame = timeout(TIMEOUT, answer.frame()).await.unwrap().unwrap().unwrap();
    lines(std::str::from_utf8(&frame.into_data().unwrap()).unwrap())
}

async fn get(rig: &Rig, path: &str) -> Answer {
    rig.ask("GET", &format!("/v1/recipients/{path}"), Value::Null).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_answered_in_order_as_a_request_with_it_would_be() {
    let rig = Rig::start().await;
    let fcm = |token: &str| json!({ "provider": "fcm", "token": token });
    let ann = json!({
        "recipient_id": "ann",
        "recipient": { "locale": "de-CH", "timezone": "Europe/Zurich" },
        "addresses": [fcm("ann-1"), { "type": "email", "email": "ann@example.com" }, fcm("ann-1")],
        "preferences": { "channels": { "sms": false } },
        "topics": ["football", "chess"],
    });
    let bad_token = json!({ "provider": "apns", "token": "5551234x" });
    let no_secret = json!({ "type": "webhook", "url": "https://example.com/hook" });
    let many: Vec<_> = (0..101).map(|number| fcm(&format!("t{number}"))).collect();
    let mut sent: Vec<Vec<u8>> = [
        ann.clone(),
        json!({ "recipient_id": "bob", "addresses": [fcm("bob-1"), bad_token] }),
        json!({ "recipient_id": "bob", "addresses": [no_secret] }),
        json!({ "recipient_id": "bob", "recipient": { "home": "mars" } }),
        json!({ "recipient_id": "bob", "adresses": [] }),
        json!({ "recipient_id": "bob", "addresses": many }),
    ]
    .iter()
    .map(|line| line.to_string().into_bytes())
    .collect();
    sent.push(b"{\"recipient_id\":\"bob\"".to_vec());
    sent.push(Vec::new());
    sent.push(b"\xff\x00\xfe".to_vec());
    sent.push(format!("{{\"recipient_id\":\"bob\"{}}}", " ".repeat(65_536)).into_bytes());
    sent.push(format!("{ann}\r").into_bytes());
    sent.push(b"{\"recipient_id\":\"eve\"}".to_vec());
    let answer = ask(&rig, "", sent.join(&b'\n')).await;
    let found = results(&answer);
    assert_eq!(numbers(&found), (1..=12).collect::<Vec<_>>());
    assert_eq!(
        statuses(&found),
        [201, 422, 422, 422, 422, 422, 422, 422, 422, 422, 200, 201]
    );
    let fields: Vec<_> = found[1..10]
        .iter()
        .map(|result| &result["problem"]["errors"][0]["field"])
        .collect();
    let expected = [
        "addresses[1].token",
        "addresses[0].secret",
        "recipient.home",
        "adresses",
        "addresses",
        "body",
        "body",
        "body",
        "body",
    ];
    assert_eq!(fields, expected);
    assert!(!answer.body.to_string().contains("5551234"));

    let profile = get(&rig, "ann").await;
    assert_eq!(
        (&profile.body["locale"], &profile.body["addresses"]),
        (&json!("de-CH"), &json!(2))
    );
    assert_eq!(
        get(&rig, "ann/preferences").await.body["channels"],
        json!({ "sms": false })
    );
    assert_eq!(
        get(&rig, "ann/topics").await.body["topics"].as_array().unwrap().len(),
        2
    );
    assert_eq!(get(&rig, "eve").await.body["home"], "eu");
    assert_eq!(
        get(&rig, "bob").await.status,
        404,
        "nothing of a line that breaks a rule is stored"
    );

    // What a recipient has already counts.
    let more: Vec<_> = (0..99).map(|number| fcm(&format!("more-{number}"))).collect();
    let line = json!({ "recipient_id": "ann", "recipient": { "locale": "fr" }, "addresses": more });
    let found = results(&ask(&rig, "", line.to_string()).await);
    assert_eq!(found[0]["problem"]["errors"][0]["field"], "addresses");
    assert_eq!(get(&rig, "ann").await.body["locale"], "de-CH");
    assert_eq!(ask(&rig, "", "").await.body, "", "nothing is answered with nothing");
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_about_one_recipient_or_one_address_are_stored_in_their_order() {
    let rig = Rig::start().await;
    let mut sent = Vec::new();
    for number in 0..120 {
        sent.push(json!({ "recipient_id": "ann", "recipient": { "locale": format!("x-{number}") } }));
        let owner = format!("owner-{}", number % 7);
        sent.push(json!({ "recipient_id": owner, "addresses": [{ "provider": "fcm", "token": "wanders" }] }));
    }
    let found = results(&ask(&rig, "", body(&sent)).await);
    assert_eq!(numbers(&found), (1..=240).collect::<Vec<_>>());
    let created: Vec<_> = found
        .iter()
        .filter(|result| result["status"] == 201)
        .map(|result| &result["line"])
        .collect();
    assert_eq!(created, [1, 2, 4, 6, 8, 10, 12, 14], "each was new once");
    assert!(found.iter().all(|result| result.get("problem").is_none()));
    assert_eq!(get(&rig, "ann").await.body["locale"], "x-119");
    for number in 0..7 {
        let addresses = get(&rig, &format!("owner-{number}")).await.body["addresses"].clone();
        assert_eq!(addresses, i32::from(number == 119 % 7), "owner-{number}");
    }
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_broke_continues_with_the_lines_that_were_not_answered() {
    let rig = Rig::start().await;
    let line = |number: u64| json!({ "recipient_id": format!("r{number}") }).to_string() + "\n";
    let mut upload = Upload::begin(&rig, &rig.key, "").await;
    let mut answer = upload.send_first(&line(1)).await;
    assert_eq!(answer.status(), 200);
    let mut answered = next(&mut answer).await;
    upload.send(&line(2));
    answered.extend(next(&mut answer).await);
    assert_eq!((numbers(&answered), statuses(&answered)), (vec![1, 2], vec![201, 201]));
    // Half of a line, then the connection breaks.
    upload.send(&line(3)[..9]);
    upload
        .sender
        .unbounded_send(Err(io::ErrorKind::ConnectionReset.into()))
        .unwrap();
    assert!(answer.frame().await.is_none_or(|frame| frame.is_err()));
    eventually("the broken import has left", async || {
        ask(&rig, "", "").await.status == 200
    })
    .await;
    assert_eq!(get(&rig, "r3").await.status, 404);

    let rest: String = (3..=50).map(line).collect();
    let found = results(&ask(&rig, "?from_line=3", rest).await);
    assert_eq!(numbers(&found), (3..=50).collect::<Vec<_>>());
    assert!(statuses(&found).iter().all(|status| *status == 201));
    let repeated = results(&ask(&rig, "?from_line=9007199254740992", line(50)).await);
    assert_eq!(repeated, [json!({ "line": 9_007_199_254_740_992_u64, "status": 200 })]);
    for query in [
        "?from_line=0",
        "?from_line=-1",
        "?from_line=9007199254740993",
        "?line=2",
        "?from_line=1&x=1",
    ] {
        let refused = ask(&rig, query, line(1)).await;
        assert_eq!((refused.status, refused.code()), (422, "validation_failed"), "{query}");
    }
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_read_nothing_until_it_has_sent_everything() {
    const LINES: usize = 60_000;
    let rig = Rig::start().await;
    let sent = "{\"recipient_id\":7}\n".repeat(LINES);
    // HTTP/1.0, so that the answer comes as it is.
    let head = format!(
        "POST /v1/imports HTTP/1.0\r\nauthorization: Bearer {}\r\ncontent-type: {NDJSON}\r\ncontent-length: {}\r\n\r\n",
        rig.key,
        sent.len()
    );
    let mut stream = TcpStream::connect(rig.addr()).await.unwrap();
    let sending = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(sent.as_bytes()).await
    };
    timeout(TIMEOUT, sending).await.unwrap().unwrap();
    let mut answer = String::new();
    timeout(TIMEOUT, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let (_, answer) = answer.split_once("\r\n\r\n").unwrap();
    assert!(answer.len() > 8_000_000, "more than sockets hold: {}", answer.len());
    assert_eq!(numbers(&lines(answer)), (1..=LINES as u64).collect::<Vec<_>>());
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_refused_as_a_whole_before_it_is_read() {
    let rig = Rig::start().await;
    let import = |key: &str| rig.request("POST", "/v1/imports").bearer_auth(key);
    let json = send(import(&rig.key).header("content-type", "application/json").body("{}")).await;
    assert_eq!((json.status, json.code()), (415, "unsupported_media_type"));
    let coded = import(&rig.key)
        .header("content-type", NDJSON)
        .header("content-encoding", "gzip");
    assert_eq!(send(coded.body("{}")).await.code(), "unsupported_media_type");
    let reader = rig.issue_key("shop", &[Scope::RecipientsRead, Scope::Status]).await;
    let refused = send(import(&reader).header("content-type", NDJSON).body("{}")).await;
    assert_eq!((refused.status, refused.code()), (403, "forbidden"));

    let mut stream = TcpStream::connect(rig.addr()).await.unwrap();
    let head = format!(
        "POST /v1/imports HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: {NDJSON}\r\ncontent-length: {}\r\n\r\n",
        rig.key,
        64 * 1024 * 1024 + 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(TIMEOUT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_takes_no_place_but_its_own() {
    let rig = Rig::start().await;
    let one_request = Quota {
        in_flight: Some(1),
        ..Quota::default()
    };
    let bank = rig.issue_key_within("bank", Scope::ALL, one_request).await;
    let club = rig.issue_key("club", Scope::ALL).await;
    let line = "{\"recipient_id\":\"ann\"}\n";
    let import = async |key: &str| {
        let request = rig.request("POST", "/v1/imports").bearer_auth(key);
        send(request.header("content-type", NDJSON).body(line)).await
    };
    let mut first = Upload::begin(&rig, &bank, "").await;
    let answer = first.send_first(line).await;
    let again = import(&bank).await;
    assert_eq!(
        (again.status, again.code(), again.header("retry-after")),
        (429, "rate_limited", Some("5"))
    );
    for _ in 0..5 {
        let asked = rig.call("GET", "/v1/recipients/ann", Some(&bank), None).await;
        assert_eq!(asked.status, 200, "its only place is free: {asked:?}");
    }
    assert_eq!(import(&club).await.status, 200, "one app does not keep another out");

    let mut second = Upload::begin(&rig, &rig.key, "").await;
    let _other = second.send_first(line).await;
    let full = import(&club).await;
    assert_eq!(
        (full.status, full.code(), full.header("retry-after")),
        (503, "overloaded", Some("5"))
    );
    let metrics = send(rig.request("GET", "/metrics")).await;
    let counted = "peal_requests_limited_total{app=\"bank\",limit=\"imports\"";
    assert!(metrics.body.as_str().unwrap().contains(counted), "{:?}", metrics.body);

    drop((first, answer));
    eventually("a caller who is gone gives its place back", async || {
        import(&club).await.status == 200
    })
    .await;
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_caller_is_told_where_to_continue_and_a_pause_is_no_end() {
    let rig = Rig::start().await;
    let mut upload = Upload::begin(&rig, &rig.key, "?from_line=8").await;
    let mut answer = upload.send_first("{\"recipient_id\":\"ann\"}\n").await;
    assert_eq!(numbers(&next(&mut answer).await), [8]);
    // Longer than a head may take, and than an idle connection without a key may stay.
    sleep(Duration::from_secs(12)).await;
    upload.send("{\"recipient_id\":\"bob\"}\n{\"recip");
    assert_eq!(numbers(&next(&mut answer).await), [9]);
    let began = Instant::now();
    let last = next(&mut answer).await;
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    assert_eq!((numbers(&last), statuses(&last)), (vec![10], vec![503]));
    assert_eq!(last[0]["problem"]["code"], "timeout");
    assert!(answer.frame().await.is_none(), "the answer is whole");
    rig.lifecycle.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_ends_when_the_gateway_shuts_down() {
    let rig = Rig::start().await;
    let mut upload = Upload::begin(&rig, &rig.key, "").await;
    let mut answer = upload.send_first("{\"recipient_id\":\"ann\"}\n").await;
    assert_eq!(statuses(&next(&mut answer).await), [201]);
    rig.lifecycle.finish();
    let last = next(&mut answer).await;
    assert_eq!((numbers(&last), statuses(&last)), (vec![2], vec![503]));
}

/// Prints how long 100,000 tokens take.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; run it with --release"]
async fn a_hundred_thousand_tokens() {
    const LINES: usize = 100_000;
    let rig = Rig::start().await;
    for round in ["new", "known"] {
        let lines = (0..LINES).map(|number| {
            let address = json!({ "provider": "fcm", "token": format!("token-{number:040}") });
            format!(
                "{}\n",
                json!({ "recipient_id": format!("user-{number}"), "addresses": [address] })
            )
        });
        let sent: String = lines.collect();
        let began = Instant::now();
        let request = rig.request("POST", "/v1/imports").bearer_auth(&rig.key);
        let request = request.timeout(Duration::from_mins(10)).header("content-type", NDJSON);
        let answer = send(request.body(sent)).await;
        let found = results(&answer);
        let seconds = began.elapsed().as_secs_f64();
        let stored = statuses(&found).iter().filter(|status| **status < 300).count();
        assert_eq!(
            stored,
            LINES,
            "{:?}",
            found.iter().find(|result| result.get("problem").is_some())
        );
        eprintln!(
            "{LINES} {round} recipients with a token each: {seconds:.1} s, {:.0} a second",
            f64::from(u32::try_from(LINES).unwrap()) / seconds
        );
    }
    rig.lifecycle.finish();
}
