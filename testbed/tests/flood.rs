//! One app floods, and another's one-time codes, broadcasts and retries arrive as if it did not.
//!
//! Quiet and flood are measured in the same run: how fast the machine is does not matter, only the ratio.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]
#![expect(clippy::print_stdout, reason = "the figures of a failed run tell how far off it was")]

use std::time::Duration;

use futures::{StreamExt, future::join_all, stream};
use serde_json::{Value, json};
use shared::clock::Clock;
use testbed::{
    nats,
    peal::{Peal, Plan},
    providers::{Answer, LogMode, Rule},
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep},
};

/// Longer than any successful step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(3);

/// Recipients of the app that floods, each with one device.
const FLOODED_RECIPIENTS: usize = 1000;

/// Recipients of the other app, each with one device: one for each one-time code.
const BANK_RECIPIENTS: usize = 120;

/// One-time codes that are measured in quiet, and then during the flood.
const CODES: usize = 50;

/// A code may take this much longer during a flood than twice its time in quiet.
const GRACE_MS: i64 = 1000;

/// How often a flood is measured.
const TRIES: usize = 3;

/// Tests that measure time run one after another.
static TURN: Mutex<()> = Mutex::const_new(());

/// A mesh of one region with the app of the plan, which floods, and a bank.
struct Bank {
    peal: Peal,
    key: String,
    http: reqwest::Client,
    _turn: MutexGuard<'static, ()>,
}

impl Bank {
    async fn start() -> Self {
        let turn = TURN.lock().await;
        let plan = Plan {
            regions: vec!["eu".into()],
            workers: 1,
            sample_ratio: 0.0,
            log: LogMode::Full(200_000),
            ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
        };
        let peal = Peal::start(plan).await.unwrap();
        let key = peal.add_app("bank").await.unwrap();
        let bank = Self {
            peal,
            key,
            http: reqwest::Client::builder().timeout(TIMEOUT).build().unwrap(),
            _turn: turn,
        };
        let flooded =
            (0..FLOODED_RECIPIENTS).map(|number| (bank.peal.key.clone(), flooded(number), token("f", number)));
        let customers = (0..BANK_RECIPIENTS).map(|number| (bank.key.clone(), customer(number), token("b", number)));
        stream::iter(flooded.chain(customers))
            .for_each_concurrent(32, |(key, recipient, token)| {
                let bank = &bank;
                async move {
                    let path = format!("/v1/recipients/{recipient}");
                    assert!(bank.ask(&key, "PUT", &path, json!({ "home": "eu" })).await.0 < 300);
                    let device = json!({ "provider": "apns", "token": token });
                    let answer = bank.ask(&key, "POST", &format!("{path}/addresses"), device).await;
                    assert!(answer.0 < 300, "{answer:?}");
                }
            })
            .await;
        bank
    }

    async fn ask(&self, key: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let url = format!("{}{path}", self.peal.region("eu").gateway.url);
        let request = self.http.request(method.parse().unwrap(), url).bearer_auth(key);
        let answer = request.json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    /// Sends a one-time code to each of these customers, and returns how long each took to arrive, in milliseconds.
    async fn codes(&self, customers: std::ops::Range<usize>) -> Vec<i64> {
        let (mut sent, mut accepted) = (Vec::new(), Vec::new());
        for number in customers {
            let body = json!({
                "to": { "recipients": [customer(number)] }, "class": "urgent", "push": { "title": "123456" },
            });
            let at = now_ms();
            let (status, answer) = self.ask(&self.key, "POST", "/v1/notifications", body).await;
            assert_eq!(status, 202, "{answer}");
            accepted.push(now_ms() - at);
            sent.push((token("b", number), at));
            sleep(Duration::from_millis(50)).await;
        }
        println!("codes were accepted with a p99 of {} ms", p99(accepted));
        let deadline = Instant::now() + TIMEOUT;
        let mut took = Vec::new();
        for (token, at) in sent {
            loop {
                if let Some(push) = self.peal.simulators.apns.log().delivered_to(&token).first() {
                    took.push(push.at_ms - at);
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "a code did not arrive\n{}",
                    self.peal.complaints()
                );
                sleep(Duration::from_millis(20)).await;
            }
        }
        took
    }

    /// Sends requests of the flooding app all at once, and repeats those that are refused for now. Returns how many were.
    async fn flood(&self, requests: usize, body: impl Fn(usize) -> Value) -> usize {
        let send = async |number| {
            let mut refused = 0;
            loop {
                let (status, answer) = self
                    .ask(&self.peal.key, "POST", "/v1/notifications", body(number))
                    .await;
                match status {
                    202 => return refused,
                    429 | 503 => refused += 1,
                    _ => panic!("{status} {answer}"),
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        join_all((0..requests).map(send)).await.into_iter().sum()
    }

    fn flooded_pushes(&self) -> usize {
        let pushes = self.peal.simulators.apns.log().pushes();
        pushes.iter().filter(|push| push.token.starts_with('f')).count()
    }
}

fn now_ms() -> i64 {
    Clock::system().now().as_millisecond()
}

fn flooded(number: usize) -> String {
    format!("flooded-{number}")
}

fn customer(number: usize) -> String {
    format!("customer-{number}")
}

fn token(of: &str, number: usize) -> String {
    format!("{of}{number:063x}")
}

/// The time that 99 of 100 do not exceed.
fn p99(mut took: Vec<i64>) -> i64 {
    took.sort_unstable();
    took[(took.len() * 99 / 100).min(took.len() - 1)]
}

fn is_as_in_quiet(what: &str, quiet: Vec<i64>, flooded: Vec<i64>, grace_ms: i64) -> bool {
    let (quiet, flooded) = (p99(quiet), p99(flooded));
    println!("{what}: p99 {quiet} ms in quiet, {flooded} ms in the flood");
    flooded <= 2 * quiet + grace_ms
}

/// Measures until it is as in quiet once: a busy machine spoils a measurement, an unfair lane spoils them all.
async fn is_fair(measure: impl AsyncFn() -> bool) -> bool {
    for _ in 0..TRIES {
        if measure().await {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_jobs_of_one_app_do_not_delay_the_codes_of_another() {
    assert!(is_fair(urgent_flood).await);
}

async fn urgent_flood() -> bool {
    let bank = Bank::start().await;
    let quiet = bank.codes(0..CODES).await;
    let recipients: Vec<String> = (0..FLOODED_RECIPIENTS).map(flooded).collect();
    let urgent = |number| {
        json!({
            "event_id": format!("flood-{number}"), "to": { "recipients": recipients }, "class": "urgent",
            "push": { "title": "Buy" },
        })
    };
    let (refused, during) = tokio::join!(bank.flood(60, urgent), async {
        while bank.flooded_pushes() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        bank.codes(CODES..2 * CODES).await
    });
    let worked_off = bank.flooded_pushes();
    println!("{refused} requests were refused and repeated; {worked_off} pushes of the flood had arrived at its end");
    assert!(
        worked_off < 60_000,
        "the flood was over before the last code; nothing was measured"
    );
    is_as_in_quiet("codes", quiet, during, GRACE_MS)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_broadcast_of_one_app_does_not_delay_another() {
    assert!(is_fair(broadcast_flood).await);
}

async fn broadcast_flood() -> bool {
    let bank = Bank::start().await;
    let join = |key: &str, recipient: String| {
        let (bank, key) = (&bank, key.to_owned());
        async move {
            let path = format!("/v1/recipients/{recipient}/topics/news");
            assert!(bank.ask(&key, "PUT", &path, Value::Null).await.0 < 300);
        }
    };
    let members = (0..FLOODED_RECIPIENTS).map(|number| join(&bank.peal.key, flooded(number)));
    stream::iter(members).for_each_concurrent(32, |joining| joining).await;
    let customer_of_topic = 2 * CODES;
    join(&bank.key, customer(customer_of_topic)).await;
    let news = |number| json!({ "event_id": format!("news-{number}"), "to": { "topic": "news" }, "class": "urgent", "push": { "title": "News" } });
    let broadcast = async |event: &str| {
        let before = bank
            .peal
            .simulators
            .apns
            .log()
            .delivered_to(&token("b", customer_of_topic))
            .len();
        let mut body = news(0);
        body["event_id"] = event.into();
        let at = now_ms();
        assert_eq!(bank.ask(&bank.key, "POST", "/v1/notifications", body).await.0, 202);
        loop {
            let pushes = bank
                .peal
                .simulators
                .apns
                .log()
                .delivered_to(&token("b", customer_of_topic));
            if let Some(push) = pushes.get(before) {
                return push.at_ms - at;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (quiet, quiet_broadcast) = (bank.codes(0..CODES).await, broadcast("quiet").await);
    bank.flood(60, news).await;
    while bank.flooded_pushes() == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let (during, flooded_broadcast) = tokio::join!(bank.codes(CODES..2 * CODES), broadcast("flooded"));
    let worked_off = bank.flooded_pushes();
    assert!(
        worked_off < 60_000,
        "the flood was over before the last code; nothing was measured"
    );
    let (quiet_broadcast, flooded_broadcast) = (vec![quiet_broadcast], vec![flooded_broadcast]);
    is_as_in_quiet("codes", quiet, during, GRACE_MS)
        && is_as_in_quiet("broadcasts", quiet_broadcast, flooded_broadcast, 3 * GRACE_MS)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 90 s, most of it the delay of a first retry; its bound follows that delay, so it notices large delays only"]
async fn retries_of_one_app_do_not_delay_those_of_another() {
    let bank = Bank::start().await;
    let down = Rule::prefix("f").answer(Answer::reason("TooManyRequests"));
    bank.peal.simulators.apns.script().add(down).unwrap();
    let first_attempts_fail = || {
        for number in 0..2 * CODES {
            let rule = Rule::token(&token("b", number)).times(1);
            let rule = rule.answer(Answer::reason("TooManyRequests"));
            bank.peal.simulators.apns.script().add(rule).unwrap();
        }
    };
    first_attempts_fail();
    let quiet = bank.codes(0..CODES).await;
    let recipients: Vec<String> = (0..FLOODED_RECIPIENTS).map(flooded).collect();
    let failing = |number| {
        json!({
            "event_id": format!("failing-{number}"), "to": { "recipients": recipients }, "class": "urgent",
            "push": { "title": "Buy" },
        })
    };
    bank.flood(4, failing).await;
    // Until the retries of the flood come back beside its first attempts.
    while bank.flooded_pushes() < 4_000 {
        sleep(Duration::from_millis(50)).await;
    }
    let during = bank.codes(CODES..2 * CODES).await;
    assert!(is_as_in_quiet("retried codes", quiet, during, 3 * GRACE_MS));
}
