//! `peal` against a real mesh: what it reports when all is well, and when it is not.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{
    collections::HashMap,
    future::pending,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use shared::{
    id::Region,
    nats::{connect, publish, roles::Role, subject, topology},
    receipt::Batch,
};
use testbed::{
    nats,
    peal::{APP, Peal, Plan},
    providers::{Answer, Rule},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, copy, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

/// Longer than any successful step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(1);

const PROGRAM: &str = env!("CARGO_BIN_EXE_testbed");

async fn start(regions: &[&str], worker_settings: &str) -> Peal {
    let plan = Plan {
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        workers: 1,
        worker_settings: worker_settings.to_owned(),
        ..Plan::new(PROGRAM.into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa"), ("fcm", "aaaa-fcm")])
        .await
        .unwrap();
    peal
}

/// `peal` with the settings of eu's gateway and an API key.
fn program(peal: &Peal, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("peal").args(arguments).kill_on_drop(true);
    if ["verify", "tail", "top"].contains(&arguments[0]) {
        // An operator works at the hub.
        let hub = peal.nats.hub();
        let nats = hub.nats(&Role::Operator("hub".parse().unwrap())).unwrap();
        command
            .arg("--config")
            .arg(peal.region("eu").gateway.config())
            .args(["--nats", &hub.url(), "--nkey"])
            .arg(nats.nkey_file.unwrap());
    } else {
        command
            .env("PEAL_URL", &peal.region("eu").gateway.url)
            .env("PEAL_KEY", &peal.key);
    }
    command
}

async fn run(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = timeout(TIMEOUT, command.output()).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Runs `peal verify --json`. Returns its exit code and its output.
async fn verify(peal: &Peal) -> (i32, Value) {
    let (code, out, err) = run(program(peal, &["verify", "--json"])).await;
    assert!(code < 2, "{err}");
    (code, serde_json::from_str(&out).unwrap())
}

/// Sends from eu, and returns the notification's id.
async fn send(peal: &Peal, event: &str, recipient: &str) -> String {
    let arguments = ["send", "--to", recipient, "--title", "Hello", "--event-id", event];
    let (code, out, err) = run(program(peal, &arguments)).await;
    assert_eq!(code, 0, "{err}");
    out.trim().to_owned()
}

fn breaks(output: &Value) -> HashMap<&str, &Value> {
    let broken = output["report"]["broken"].as_array().unwrap();
    broken
        .iter()
        .map(|broken| (broken["how"].as_str().unwrap(), broken))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_equation_holds_over_two_regions_and_every_command_shows_the_traffic() {
    let peal = start(&["eu", "us"], "").await;
    peal.register("bob", "us", &[("apns", "bbbb")]).await.unwrap();
    peal.wait_known("eu", "bob").await.unwrap();
    let mut tail = program(&peal, &["tail", "--region", "eu", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();

    // The first receipt shows that `tail` follows the stream; notifications are sent until then.
    let mut number = 0;
    let first = loop {
        number += 1;
        send(&peal, &format!("early-{number}"), "ann").await;
        if let Ok(line) = timeout(Duration::from_secs(1), lines.next_line()).await {
            break line.unwrap().unwrap();
        }
        assert!(number < 60, "tail sees nothing");
    };
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&first["app"], &first["state"]), (&json!(APP), &json!("delivered")));
    assert!(first["address"].is_null() && first["recipient"].is_null(), "{first}");

    let arguments = [
        "send", "--to", "ann", "--to", "bob", "--title", "Hi", "--data", "a=b", "--wait",
    ];
    let (code, out, err) = run(program(&peal, &arguments)).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(out.matches("delivered").count(), 3, "{out}");
    let (code, out, _) = run(program(&peal, &["send", "--to", "nobody", "--title", "Hi", "--wait"])).await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("suppressed"), "{out}");
    let (code, _, err) = run(program(&peal, &["send", "--to", "ann", "--ttl", "9"])).await;
    assert_eq!(code, 2);
    assert!(
        err.contains("validation_failed") && err.contains("push.title") && err.contains("request id"),
        "{err}"
    );

    let (code, output) = verify(&peal).await;
    assert_eq!(code, 0, "{output:#}");
    let rows = output["report"]["rows"].as_array().unwrap();
    let sum = |member: &str| rows.iter().filter_map(|row| row[member].as_u64()).sum::<u64>();
    assert_eq!((sum("accepted"), sum("in_flight")), (number + 3, 0), "{output:#}");
    assert_eq!(
        (sum("deliveries"), sum("delivered"), sum("suppressed")),
        (2 * number + 4, 2 * number + 3, 1)
    );

    // One region alone knows from its copies of receipts what became of the notifications that it sent to others.
    for regions in [
        &["--region", "eu"][..],
        &["--region", "us"],
        &["--region", "us", "--region", "eu", "--since", "1h"],
    ] {
        let (code, out, err) = run(program(&peal, &[&["verify"], regions].concat())).await;
        assert_eq!(code, 0, "{out}{err}");
    }
    let (code, out, err) = run(program(&peal, &["top", "--once"])).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("push-normal") && out.contains("outbox of eu for us: 0 waiting"),
        "{out}"
    );
    assert!(!out.contains('\x1b'), "{out}");

    for (recipient, home) in [("ann", "eu"), ("bob", "us")] {
        let path = format!("/v1/recipients/{recipient}/topics/news");
        peal.expect("PUT", home, &path, None).await.unwrap();
    }
    let (code, out, err) = run(program(&peal, &["send", "--topic", "news", "--title", "Hi", "--wait"])).await;
    assert_eq!(code, 0, "{out}{err}");
    let words: Vec<&str> = out.split_whitespace().skip(1).collect();
    let table = "region members done deliveries eu 1 1 2 delivered us 1 1 1 delivered";
    assert!(words.join(" ").contains(table), "{out}");
    let (code, out, _) = run(program(&peal, &["verify"])).await;
    assert_eq!(code, 0, "{out}");
    eprintln!("{out}");
    let (_, out, _) = run(program(&peal, &["top", "--once"])).await;
    eprintln!("{out}");
    assert!(
        out.contains("intakes of us: 1, 0 with messages, 0 messages waiting"),
        "{out}"
    );
}

/// Services publish while no gateway runs.
#[tokio::test(flavor = "multi_thread")]
async fn top_shows_what_waits_in_intakes() {
    let mut peal = start(&["eu"], "").await;
    let gateway = &mut peal.region_mut("eu").gateway;
    gateway.process.terminate(Duration::from_secs(20)).await.unwrap();
    let service = connect::jetstream(peal.connect_as_app("eu").await.unwrap());
    for _ in 0..3 {
        let stored = service.publish(format!("send.{APP}"), "{}".into()).await.unwrap();
        stored.await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (code, out, err) = run(program(&peal, &["top", "--once"])).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("intakes of eu: 1, 1 with messages, 3 messages waiting"),
        "{out}"
    );
    let row = out.lines().find(|line| line.starts_with("shop ")).expect(&out);
    let cells: Vec<&str> = row.split_whitespace().collect();
    // The server may still have sent some to the gateway that ended.
    let waiting: u64 = cells[1].parse::<u64>().unwrap() + cells[2].parse::<u64>().unwrap();
    assert_eq!(waiting, 3, "{row}");
    let oldest: u64 = cells[4].strip_suffix('s').expect(row).parse().unwrap();
    assert!((1..60).contains(&oldest), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_break_of_the_equation_is_named() {
    let mut peal = start(&["eu"], "max_attempts = 1").await;
    let eu: Region = "eu".parse().unwrap();
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    send(&peal, "fine", "ann").await;
    assert!(peal.simulators.apns.log().wait_delivered(1, TIMEOUT).await);

    // A job is removed before a worker takes it.
    let worker = &mut peal.region_mut("eu").workers[0];
    worker.process.terminate(Duration::from_secs(20)).await.unwrap();
    let lost = send(&peal, "lost", "ann").await;
    let notify = js.get_stream(topology::NOTIFY).await.unwrap();
    let (code, output) = verify(&peal).await;
    assert_eq!(code, 0, "{output:#}");
    assert_eq!(output["report"]["in_flight"]["lanes"], 1, "{output:#}");
    let newest = notify.cached_info().state.last_sequence;
    assert!(notify.delete_message(newest).await.unwrap());
    let vanished = wait_for(&peal, "vanished").await;
    assert_eq!(
        (&vanished["count"], &vanished["named"][0]["id"]),
        (&json!(1), &json!(lost))
    );
    let (code, out, _) = run(program(&peal, &["verify"])).await;
    assert_eq!(code, 1);
    assert!(out.contains(&lost) && out.contains("1 lost"), "{out}");
    eprintln!("{out}");

    // A second final receipt of a delivery, and a receipt of a notification that was never accepted.
    let receipts = js.get_stream(topology::RECEIPTS).await.unwrap();
    let mut batch = first_receipts(&receipts).await;
    let delivered = batch.receipts[0].job;
    batch.receipts.truncate(1);
    store(&js, &eu, &batch).await;
    batch.receipts[0].job.0 = uuid::Uuid::from_u128(7);
    batch.receipts[0].notification.0 = uuid::Uuid::from_u128(8);
    store(&js, &eu, &batch).await;
    let contradicted = wait_for(&peal, "contradicted").await;
    assert_eq!(contradicted["named"][0]["id"], json!(delivered));
    // The removed message might have been the one that they belong to.
    let (_, output) = verify(&peal).await;
    assert!(!breaks(&output).contains_key("never_accepted"), "{output:#}");
    batch.receipts[0].job.0 = uuid::Uuid::from_u128(9);
    batch.receipts[0].notification.0 = uuid::Uuid::from_u128(10);
    store(&js, &eu, &batch).await;
    assert_eq!(wait_for(&peal, "never_accepted").await["count"], 2);

    // A dead letter with its receipt is correct; either without the other is a break.
    let (code, output) = verify(&peal).await;
    assert_eq!((code, breaks(&output).contains_key("letter_alone")), (1, false));
    let refused = Answer {
        reason: Some("InternalServerError".into()),
        ..Answer::default()
    };
    peal.simulators
        .apns
        .script()
        .add(Rule::token("aaaa").answer(refused))
        .unwrap();
    let (program_path, http) = (peal.program(), peal.http.clone());
    let worker = &mut peal.region_mut("eu").workers[0];
    worker.restart(&program_path).unwrap();
    worker.wait_ready(&http).await.unwrap();
    let (code, out, err) = run(program(&peal, &["send", "--to", "ann", "--title", "Hi", "--wait"])).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("dead"), "{out}");
    let (_, output) = verify(&peal).await;
    let found = breaks(&output);
    assert!(
        !found.contains_key("letter_alone") && !found.contains_key("letter_missing"),
        "{output:#}"
    );
    batch.receipts[0].job.0 = uuid::Uuid::from_u128(11);
    batch.receipts[0].state = shared::receipt::State::Dead;
    store(&js, &eu, &batch).await;
    let dead = js.get_stream(topology::DEAD).await.unwrap();
    let letter = dead.direct_get_first_for_subject(">").await.unwrap();
    let mut headers = letter.headers.clone();
    headers.insert("Nats-Msg-Id", format!("{}:1", uuid::Uuid::from_u128(12)));
    publish::store(&js, letter.subject.to_string(), headers, letter.payload)
        .await
        .unwrap();
    assert_eq!(wait_for(&peal, "letter_alone").await["count"], 1);
    assert_eq!(wait_for(&peal, "letter_missing").await["count"], 1);

    let mut unreachable = Command::new(PROGRAM);
    unreachable.args(["peal", "verify", "--nats", "nats://127.0.0.1:1", "--region", "eu"]);
    let (code, out, err) = run(unreachable).await;
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
}

/// Verifies until the equation is broken in that way.
async fn wait_for(peal: &Peal, how: &str) -> Value {
    let verified = async {
        loop {
            let (code, output) = verify(peal).await;
            if let Some(broken) = breaks(&output).get(how) {
                assert_eq!(code, 1);
                return (*broken).clone();
            }
        }
    };
    timeout(TIMEOUT, verified)
        .await
        .unwrap_or_else(|_| panic!("never {how}"))
}

async fn first_receipts(stream: &async_nats::jetstream::stream::Stream) -> Batch {
    let mut from = 1;
    loop {
        let message = stream.direct_get_next_for_subject(">", Some(from)).await.unwrap();
        let batch: Batch = serde_json::from_slice(&message.payload).unwrap();
        if !batch.receipts.is_empty() {
            return batch;
        }
        from = message.sequence + 1;
    }
}

async fn store(js: &async_nats::jetstream::Context, region: &Region, batch: &Batch) {
    let subject = subject::receipt(region, region, &batch.app);
    let payload = serde_json::to_vec(batch).unwrap().into();
    publish::store(js, subject, async_nats::HeaderMap::new(), payload)
        .await
        .unwrap();
}

/// The requests that a simulated gateway received.
type Requests = Arc<Mutex<Vec<(Method, String, Value)>>>;

async fn letters(
    State(requests): State<Requests>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(headers["authorization"], "Bearer peal_test_key");
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let times = {
        let mut requests = requests.lock().unwrap();
        requests.push((method.clone(), uri.to_string(), body));
        requests
            .iter()
            .filter(|(_, path, _)| path == "/v1/dead-letters/replay")
            .count()
    };
    let letter =
        json!({ "id": "17", "channel": "push", "reason": "attempts", "died_at": "2026-01-31T12:00:00Z", "novel": 1 });
    match (method, uri.path(), uri.query()) {
        (Method::GET, "/v1/dead-letters", Some(query)) if query.contains("cursor=") => {
            Json(json!({ "dead_letters": [{ "id": "18" }], "next": null })).into_response()
        }
        (Method::GET, "/v1/dead-letters", _) => {
            Json(json!({ "dead_letters": [letter], "next": "c/1" })).into_response()
        }
        (Method::GET, "/v1/dead-letters/17", _) => {
            let mut letter = letter;
            letter["payload"] = json!({ "push": { "title": "private" } });
            Json(letter).into_response()
        }
        (Method::POST, "/v1/dead-letters/17/replay", _) => {
            (StatusCode::ACCEPTED, Json(json!({ "replayed": 1 }))).into_response()
        }
        (Method::POST, "/v1/dead-letters/replay", _) => {
            (StatusCode::ACCEPTED, Json(json!({ "replayed": 2, "more": times < 2 }))).into_response()
        }
        (Method::DELETE, "/v1/dead-letters/17", _) => StatusCode::NO_CONTENT.into_response(),
        _ => {
            let problem =
                json!({ "title": "There is no such thing", "status": 404, "code": "not_found", "request_id": "r-1" });
            (StatusCode::NOT_FOUND, Json(problem)).into_response()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_replayed_and_deleted() {
    let requests = Requests::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = Router::new().fallback(letters).with_state(Arc::clone(&requests));
    tokio::spawn(async move { axum::serve(listener, served).await });
    let dead = async |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["peal", "dead"]).args(arguments);
        command.env("PEAL_URL", &url).env("PEAL_KEY", "peal_test_key");
        run(command).await
    };
    let (code, out, err) = dead(&[
        "list",
        "--reason",
        "attempts",
        "--channel",
        "push",
        "--since",
        "2026-01-01T00:00:00Z",
    ])
    .await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(
        lines[1].starts_with("17  2026-01-31T12:00:00Z  push     attempts"),
        "{out}"
    );
    let (code, out, _) = dead(&["list", "--limit", "1"]).await;
    assert_eq!((code, out.lines().last()), (0, Some("more: --cursor c/1")));

    let (_, out, _) = dead(&["show", "17"]).await;
    assert!(out.contains("attempts") && !out.contains("private"), "{out}");
    let (_, out, _) = dead(&["show", "17", "--payload"]).await;
    assert!(out.contains("private"), "{out}");
    assert_eq!(dead(&["replay", "17"]).await.1, "replayed 1\n");
    assert_eq!(
        dead(&["replay", "--all", "--reason", "attempts"]).await.1,
        "replayed 4\n"
    );
    assert_eq!(dead(&["delete", "17"]).await.1, "deleted 17\n");

    for unclear in [
        &["replay"][..],
        &["replay", "17", "--all"],
        &["replay", "17", "--reason", "attempts"],
        &["show", "../x"],
    ] {
        let before = requests.lock().unwrap().len();
        assert_eq!(dead(unclear).await.0, 2, "{unclear:?}");
        assert_eq!(requests.lock().unwrap().len(), before, "{unclear:?} sent a request");
    }
    let (code, out, err) = dead(&["show", "99"]).await;
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(err, "error: There is no such thing (404 not_found)\n  request id r-1\n");

    let requests = requests.lock().unwrap();
    let first = "/v1/dead-letters?channel=push&reason=attempts&since=2026-01-01T00%3A00%3A00Z&limit=100";
    assert_eq!(requests[0].1, first);
    assert_eq!(requests[1].1, format!("{}&cursor=c%2F1", first.replace("=100", "=99")));
    let replays = requests.iter().filter(|(_, path, _)| path == "/v1/dead-letters/replay");
    assert!(
        replays
            .into_iter()
            .all(|(_, _, body)| *body == json!({ "reason": "attempts" }))
    );
}

/// The address of a way to `url` whose first connection breaks after so many bytes from the gateway.
async fn breaking_way(url: &str, bytes: u64) -> String {
    let gateway = url.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut limit = Some(bytes);
        loop {
            let (mut caller, _) = listener.accept().await.unwrap();
            let mut gateway = TcpStream::connect(&gateway).await.unwrap();
            let limit = limit.take();
            tokio::spawn(async move {
                let Some(bytes) = limit else {
                    return copy_bidirectional(&mut caller, &mut gateway).await.map(|_| ());
                };
                let (mut from_caller, mut to_caller) = caller.split();
                let (from_gateway, mut to_gateway) = gateway.split();
                let mut answer = from_gateway.take(bytes);
                tokio::select! {
                    done = copy(&mut answer, &mut to_caller) => done.map(|_| ()),
                    // The request may be sent before the answer has come.
                    done = async { copy(&mut from_caller, &mut to_gateway).await?; pending().await } => done,
                }
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_continues_after_a_break_and_names_the_lines_that_are_refused() {
    const LINES: usize = 3000;
    let peal = start(&["eu"], "").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.ndjson");
    let line = |number: usize| {
        let token = if number == 700 {
            json!("")
        } else {
            json!(format!("token-{number}"))
        };
        let address = json!({ "provider": "fcm", "token": token });
        format!(
            "{}\n",
            json!({ "recipient_id": format!("r{number}"), "addresses": [address] })
        )
    };
    std::fs::write(&file, (1..=LINES).map(line).collect::<String>()).unwrap();
    let name = file.to_str().unwrap();

    let way = breaking_way(&peal.region("eu").gateway.url, 60_000).await;
    let mut import = program(&peal, &["import", name]);
    import.env("PEAL_URL", &way);
    let (code, out, err) = run(import).await;
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    let found: Vec<_> = out.lines().collect();
    assert_eq!(found.len(), 2, "{out}");
    let rule = "line 700: addresses[0].token: must be ";
    assert!(
        found[0].starts_with(rule) && found[0].ends_with(" (validation_failed)"),
        "{out}"
    );
    // What was stored and not answered before the break is known after it.
    let counts: Vec<usize> = found[1].split(' ').filter_map(|word| word.parse().ok()).collect();
    let [lines, new, known, refused] = counts[..] else {
        panic!("{out}");
    };
    assert_eq!((lines, new + known, refused), (LINES, LINES - 1, 1), "{out}");
    assert!(known < LINES / 2, "the answered lines are not sent again: {out}");

    // From behind the bad line everything is known.
    let (code, out, err) = run(program(&peal, &["import", name, "--from-line", "701"])).await;
    assert_eq!(
        (code, out.as_str()),
        (0, "2300 lines: 0 new recipients, 2300 known, 0 refused\n"),
        "{err}"
    );

    let mut import = program(&peal, &["import", name]);
    import.env(
        "PEAL_KEY",
        "peal_0000000000000000_0000000000000000000000000000000000000000000",
    );
    let (code, _, err) = run(import).await;
    assert_eq!(code, 2);
    assert!(
        err.contains("unauthenticated") && err.contains("continue with --from-line 1"),
        "{err}"
    );
}
