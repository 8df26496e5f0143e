//! Notifications that are not accepted before their time: they are sent once, whatever is killed; what is cancelled is never sent; and
//! no other app sees them.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    nats::{connect, topology},
};
use testbed::{
    audit::Audit,
    nats,
    peal::{Peal, Plan},
    providers::LogMode,
};
use tokio::time::{Instant, sleep};

const TIMEOUT: Duration = Duration::from_mins(1);

/// Requests in progress at a time.
const AT_ONCE: usize = 32;

fn plan(regions: &[&str]) -> Plan {
    Plan {
        regions: regions.iter().map(|&region| region.to_owned()).collect(),
        workers: 1,
        sample_ratio: 0.0,
        log: LogMode::Counting,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    }
}

async fn start(regions: &[&str]) -> Peal {
    let peal = Peal::start(plan(regions)).await.unwrap();
    for (index, region) in regions.iter().enumerate() {
        let token = format!("{:064x}", index + 1);
        peal.register(&format!("of-{region}"), region, &[("apns", &token)])
            .await
            .unwrap();
        peal.wait_known(regions[0], &format!("of-{region}")).await.unwrap();
    }
    peal
}

fn now() -> Timestamp {
    Clock::system().now()
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

fn notification(event: &str, recipients: &[&str], send_at: Timestamp) -> Value {
    json!({
        "event_id": event,
        "to": { "recipients": recipients },
        "push": { "title": "Hello" },
        "send_at": send_at.to_string(),
    })
}

/// Plans a notification and returns its id.
async fn send(peal: &Peal, body: &Value) -> String {
    let answer = peal
        .expect("POST", "eu", "/v1/notifications", Some(body))
        .await
        .unwrap();
    answer["notification_id"].as_str().unwrap().to_owned()
}

fn path(id: &str) -> String {
    format!("/v1/notifications/{id}")
}

async fn status(peal: &Peal, id: &str) -> Value {
    peal.expect("GET", "eu", &path(id), None).await.unwrap()
}

/// Cancels a notification, and returns whether nothing of it is ever sent.
async fn cancel(peal: &Peal, id: &str) -> bool {
    let answer = peal.expect("DELETE", "eu", &path(id), None).await.unwrap();
    match answer["state"].as_str() {
        Some("cancelled") => true,
        Some("cancelling") => false,
        _ => panic!("{answer}"),
    }
}

async fn wait_done(peal: &Peal, id: &str) -> Value {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let status = status(peal, id).await;
        if status["state"] == "done" {
            return status;
        }
        assert!(Instant::now() < deadline, "{status}\n{}", peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
}

fn delivered(peal: &Peal) -> u64 {
    peal.simulators.apns.stats().delivered
}

/// The audit finds nothing lost and nothing waiting.
async fn settle(peal: &Peal) -> Audit {
    let audit = Audit::read_settled(peal, TIMEOUT).await.unwrap();
    assert!(audit.report.holds(), "{:?}\n{}", audit.report.broken, peal.complaints());
    audit
}

/// Asks with another key than that of the app.
async fn ask_with(peal: &Peal, key: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let url = format!("{}{path}", peal.region("eu").gateway.url);
    let mut request = peal.http.request(method.parse().unwrap(), url).bearer_auth(key);
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_sent_once_in_its_region_and_what_is_cancelled_is_not() {
    let peal = start(&["eu", "us"]).await;
    let both = ["of-eu", "of-us"];

    let recurs = json!({
        "cron": "* * * * *",
        "timezone": "Europe/Zurich",
        "notification": { "to": { "recipients": ["of-us"] }, "push": { "title": "Again" } },
    });
    let first = peal
        .expect("PUT", "eu", "/v1/schedules/again", Some(&recurs))
        .await
        .unwrap();

    let due = later(2);
    let mut grouped = notification("due", &both, due);
    grouped["group_key"] = json!("room/1");
    let id = send(&peal, &grouped).await;
    let waiting = status(&peal, &id).await;
    assert_eq!(
        (&waiting["state"], &waiting["jobs"], &waiting["group_key"]),
        (&json!("scheduled"), &json!(0), &json!("room/1"))
    );
    let again = peal
        .expect("POST", "eu", "/v1/notifications", Some(&grouped))
        .await
        .unwrap();
    assert_eq!((&again["jobs"], &again["duplicates"]), (&json!(2), &json!(2)));
    let sent = wait_done(&peal, &id).await;
    assert!(now() >= due && delivered(&peal) >= 2, "{sent}");
    let regions: Vec<_> = sent["deliveries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["region"].as_str().unwrap())
        .collect();
    assert!(regions.contains(&"eu") && regions.contains(&"us"), "{sent}");
    assert_eq!((&sent["jobs"], &sent["group_key"]), (&json!(2), &json!("room/1")));
    assert!(!cancel(&peal, &id).await, "it was sent");
    let late = ask_with(
        &peal,
        &peal.key,
        "PATCH",
        &path(&id),
        Some(&json!({ "send_at": later(60).to_string() })),
    )
    .await;
    assert_eq!((late.0, &late.1["code"]), (409, &json!("already_fired")));

    // Cancelled, and not brought back by the same event.
    let body = notification("never", &both, later(2));
    let id = send(&peal, &body).await;
    assert!(cancel(&peal, &id).await && cancel(&peal, &id).await);
    assert_eq!(send(&peal, &body).await, id);
    let cancelled = status(&peal, &id).await;
    assert!(
        cancelled["state"] == "done" && cancelled["cancelled_at"].is_string(),
        "{cancelled}"
    );

    what_is_changed_is_sent_as_it_is_now(&peal).await;
    a_group_is_listed_and_cancelled_by_its_app_alone(&peal).await;
    what_recurs_is_sent_at_each_instant(&peal, &first).await;
    sleep(Duration::from_secs(2)).await;
    let audit = settle(&peal).await;
    // Three, and an instant of the schedule for each minute that this took.
    let accepted = audit.equation().accepted;
    assert!(accepted >= 4 && delivered(&peal) == accepted as u64, "{accepted}");
}

/// The first instant is sent once, the next is set, and a schedule that is paused or removed fires nothing more.
async fn what_recurs_is_sent_at_each_instant(peal: &Peal, first: &Value) {
    let path = "/v1/schedules/again";
    let at: Timestamp = first["next_at"].as_str().unwrap().parse().unwrap();
    sleep(
        (at.duration_since(now()) + SignedDuration::from_secs(1))
            .max(SignedDuration::ZERO)
            .unsigned_abs(),
    )
    .await;
    let event = format!("/v1/notifications?event_id=again@{at}");
    let deadline = Instant::now() + TIMEOUT;
    let sent = loop {
        let found = peal.expect("GET", "eu", &event, None).await.unwrap();
        if found["notifications"][0]["state"] == "done" {
            break found;
        }
        assert!(Instant::now() < deadline, "{found}\n{}", peal.complaints());
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(sent["notifications"][0]["schedule_id"], "again", "{sent}");
    let next = peal.expect("GET", "eu", path, None).await.unwrap();
    let expected = (at + SignedDuration::from_secs(60)).to_string();
    assert_eq!(
        (&next["last_at"], &next["next_at"]),
        (&json!(at.to_string()), &json!(expected))
    );

    let mut paused = json!({ "paused": true });
    for name in ["cron", "timezone", "notification"] {
        paused[name] = next[name].clone();
    }
    let paused = peal.expect("PUT", "eu", path, Some(&paused)).await.unwrap();
    assert_eq!(
        (&paused["next_at"], &paused["last_at"]),
        (&Value::Null, &next["last_at"])
    );
    let bad = json!({ "cron": "0 0 9 * * *", "timezone": "UTC", "notification": next["notification"] });
    let bad = ask_with(peal, &peal.key, "PUT", path, Some(&bad)).await;
    assert_eq!((bad.0, &bad.1["errors"][0]["field"]), (422, &json!("cron")));

    let bank = peal.add_app("broker").await.unwrap();
    assert_eq!(ask_with(peal, &bank, "GET", path, None).await.0, 404);
    assert_eq!(
        ask_with(peal, &bank, "DELETE", path, None).await.0,
        204,
        "there is none of that app"
    );
    let all = peal.expect("GET", "eu", "/v1/schedules", None).await.unwrap();
    assert_eq!(all["schedules"].as_array().unwrap().len(), 1);
    let none = ask_with(peal, &bank, "GET", "/v1/schedules", None).await;
    assert_eq!(none.1["schedules"], json!([]));
    peal.expect("DELETE", "eu", path, None).await.unwrap();
    assert_eq!(peal.ask("GET", "eu", path, None).await.unwrap().0, 404);
}

async fn what_is_changed_is_sent_as_it_is_now(peal: &Peal) {
    let id = send(peal, &notification("changed", &["of-eu"], later(3600))).await;
    let change = json!({ "send_at": later(1).to_string(), "push": { "title": "Changed" } });
    let changed = peal.expect("PATCH", "eu", &path(&id), Some(&change)).await.unwrap();
    assert_eq!(changed["state"], "scheduled");
    let broken = ask_with(
        peal,
        &peal.key,
        "PATCH",
        &path(&id),
        Some(&json!({ "push": { "badge": -1 } })),
    )
    .await;
    assert_eq!(
        (broken.0, &broken.1["errors"][0]["field"]),
        (422, &json!("push.badge")),
        "{broken:?}"
    );
    let sent = wait_done(peal, &id).await;
    assert_eq!(sent["deliveries"].as_array().unwrap().len(), 1, "{sent}");
}

/// Three notifications of a group: another app reads, changes and cancels none of them, and a service of NATS cannot reach them.
async fn a_group_is_listed_and_cancelled_by_its_app_alone(peal: &Peal) {
    for number in 0..3 {
        let mut body = notification(&format!("room-{number}"), &["of-us"], later(3600));
        body["group_key"] = json!("room/2");
        send(peal, &body).await;
    }
    let group = "/v1/notifications?group_key=room/2";
    let listed = peal
        .expect("GET", "eu", &format!("{group}&limit=2"), None)
        .await
        .unwrap();
    assert_eq!(listed["notifications"].as_array().unwrap().len(), 2);
    let rest = format!("{group}&cursor={}", listed["next"].as_str().unwrap());
    let rest = peal.expect("GET", "eu", &rest, None).await.unwrap();
    assert_eq!(
        (rest["notifications"].as_array().unwrap().len(), &rest["next"]),
        (1, &Value::Null)
    );

    // Another app reads, changes and cancels nothing of it, and names it as nobody's.
    let bank = peal.add_app("bank").await.unwrap();
    let id = rest["notifications"][0]["notification_id"].as_str().unwrap();
    for (method, body) in [
        ("GET", None),
        ("DELETE", None),
        ("PATCH", Some(json!({ "send_at": later(1).to_string() }))),
    ] {
        let answer = ask_with(peal, &bank, method, &path(id), body.as_ref()).await;
        let nobodys = ask_with(
            peal,
            &bank,
            method,
            &path("0197f3a0-0000-8000-8000-000000000001"),
            body.as_ref(),
        )
        .await;
        assert_eq!((answer.0, &answer.1["detail"]), (404, &nobodys.1["detail"]), "{method}");
    }
    let others = ask_with(peal, &bank, "GET", group, None).await;
    assert_eq!((others.0, &others.1["notifications"]), (200, &json!([])));
    let none = ask_with(peal, &bank, "DELETE", group, None).await;
    assert_eq!(none, (202, json!({ "cancelled": 0, "cancelling": 0, "more": false })));
    // Nor does a service in its own account of NATS reach the stream.
    let service = peal.connect_as_app("eu").await.unwrap();
    let before = planned(peal).await;
    for kind in ["wait", "due", "fate"] {
        service
            .publish(format!("planned.{kind}.shop.{id}"), "{}".into())
            .await
            .unwrap();
    }
    service.flush().await.unwrap();
    assert_eq!(planned(peal).await, before);

    let answer = peal.expect("DELETE", "eu", group, None).await.unwrap();
    assert_eq!(answer, json!({ "cancelled": 3, "cancelling": 0, "more": false }));
}

/// The last sequence of the stream of plans.
async fn planned(peal: &Peal) -> u64 {
    let js = connect::jetstream(peal.connect("eu").await.unwrap());
    let stream = js.get_stream(topology::PLANNED).await.unwrap();
    stream.cached_info().state.last_sequence
}

/// Cancels race the firing. What was answered with `cancelled` is never sent, and everything else is, or is withdrawn.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_while_it_fires_is_never_sent() {
    // `PEAL_RACES=10000` for more of them.
    let races = std::env::var("PEAL_RACES").map_or(500, |text| text.parse().unwrap());
    let peal = start(&["eu"]).await;
    let mut all: BTreeMap<String, bool> = BTreeMap::new();
    for round in 0..races / 500 {
        let due = later(4);
        let sent: Vec<String> = stream::iter(0..500)
            .map(|number| {
                // Cancels come as fast as they can, so that some come before, while and after it fires.
                let send_at = due + SignedDuration::from_millis(i64::from(number % 5) * 50);
                let (peal, body) = (
                    &peal,
                    notification(&format!("race-{round}-{number}"), &["of-eu"], send_at),
                );
                async move { send(peal, &body).await }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let wait = due.duration_since(now()) - SignedDuration::from_millis(50);
        sleep(wait.max(SignedDuration::ZERO).unsigned_abs()).await;
        let cancelled: Vec<(String, bool)> = stream::iter(sent)
            .map(|id| {
                let peal = &peal;
                async move {
                    let is_cancelled = cancel(peal, &id).await;
                    (id, is_cancelled)
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        all.extend(cancelled);
    }
    let cancelled = all.values().filter(|cancelled| **cancelled).count();
    eprintln!(
        "{} races: {cancelled} cancelled, {} in progress",
        all.len(),
        all.len() - cancelled
    );
    sleep(Duration::from_secs(2)).await;
    let mut sent = 0;
    for (id, is_cancelled) in &all {
        let status = if *is_cancelled {
            status(&peal, id).await
        } else {
            wait_done(&peal, id).await
        };
        let deliveries = status["deliveries"].as_array().unwrap();
        if *is_cancelled {
            assert!(status["cancelled_at"].is_string() && deliveries.is_empty(), "{status}");
        } else {
            assert_eq!(deliveries.len(), 1, "{status}");
            sent += u64::from(deliveries[0]["state"] == "delivered");
        }
    }
    assert!(
        cancelled > 0 && cancelled < all.len(),
        "the cancels came too early or too late"
    );
    let audit = settle(&peal).await;
    assert_eq!(
        (delivered(&peal), audit.equation().accepted),
        (sent, all.len() - cancelled)
    );
    assert_eq!(peal.simulators.apns.stats().duplicates, 0);
}

/// Gateway and server are killed before, at and after the instant, and everything is sent once; what was missed too long ends
/// as `expired`, with a receipt.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_around_the_instant_each_is_sent_once() {
    const EACH: usize = 100;
    let mut peal = start(&["eu"]).await;
    let mut ids = Vec::new();
    for (round, kill_after_ms) in [-300_i64, 50, 400].into_iter().enumerate() {
        let due = later(3);
        for number in 0..EACH {
            ids.push(send(&peal, &notification(&format!("kill-{round}-{number}"), &["of-eu"], due)).await);
        }
        let at = due + SignedDuration::from_millis(kill_after_ms);
        sleep(at.duration_since(now()).max(SignedDuration::ZERO).unsigned_abs()).await;
        peal.region_mut("eu").gateway.process.kill().await.unwrap();
        peal.nats.region("eu").kill().unwrap();
        peal.nats.region("eu").restart().await.unwrap();
        let (program, http) = (peal.program(), peal.http.clone());
        let gateway = &mut peal.region_mut("eu").gateway;
        gateway.restart(&program).unwrap();
        gateway.wait_ready(&http).await.unwrap();
    }
    // Missed while no gateway ran, and no longer worth delivering.
    let mut missed = notification("missed", &["of-eu"], later(2));
    missed["expires_at"] = json!(later(3).to_string());
    let missed = send(&peal, &missed).await;
    peal.region_mut("eu").gateway.process.kill().await.unwrap();
    sleep(Duration::from_secs(4)).await;
    let (program, http) = (peal.program(), peal.http.clone());
    let gateway = &mut peal.region_mut("eu").gateway;
    gateway.restart(&program).unwrap();
    gateway.wait_ready(&http).await.unwrap();
    assert_eq!(wait_done(&peal, &missed).await["deliveries"][0]["state"], "expired");

    for id in &ids {
        assert_eq!(wait_done(&peal, id).await["deliveries"][0]["state"], "delivered");
    }
    let audit = settle(&peal).await;
    assert_eq!(
        (audit.equation().accepted, delivered(&peal)),
        (ids.len() + 1, ids.len() as u64)
    );
    assert_eq!(peal.simulators.apns.stats().duplicates, 0);
}
