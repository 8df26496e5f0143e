//! Jobs that wait as a whole. Which rule lets them wait does not matter here, so each test pulls jobs from their lane in place of a
//! worker, defers them with the functions that a worker uses, and then starts a real worker.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

mod planned;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{self, AckKind, Message, consumer::PullConsumer},
};
use futures::{StreamExt, future::join_all};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use shared::{
    app::App,
    channel::{Channel, Class},
    clock::Clock,
    content::push::Push,
    id::{JobId, Region},
    job::Job,
    nats::{
        audit::Equation,
        connect,
        defer::Deferral,
        envelope, publish,
        subject::{self, Lane, Tier},
        topology, version,
    },
    policy::{quiet, zone::UnknownZone},
    receipt::{Batch, State},
    testing,
};
use testbed::{
    audit::Audit,
    nats,
    peal::{APP, Peal, Plan},
    providers::{Answer, Rule},
};
use tokio::time::{Instant, sleep};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A mesh of one region whose worker is stopped, and a connection that takes its place.
struct Rig {
    peal: Peal,
    js: jetstream::Context,
    region: Region,
}

/// A job, and the message that carried it.
struct Pulled {
    message: Message,
    lane: Lane,
    job: Job,
}

fn plan() -> Plan {
    Plan {
        regions: vec!["eu".into()],
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    }
}

impl Rig {
    async fn start() -> Self {
        let mut rig = Self::running(plan()).await;
        rig.peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
        let worker = &mut rig.peal.region_mut("eu").workers[0];
        worker.process.terminate(Duration::from_secs(15)).await.unwrap();
        rig
    }

    /// The same with running workers.
    async fn running(plan: Plan) -> Self {
        let peal = Peal::start(plan).await.unwrap();
        let js = connect::jetstream(peal.connect("eu").await.unwrap());
        Self {
            peal,
            js,
            region: "eu".parse().unwrap(),
        }
    }

    /// The first of many event ids whose job, or whose first slice, leaves soon after the time until which it waits.
    fn event(&self, name: &str, recipient: &str, slice: Option<u32>) -> String {
        let app = APP.parse().unwrap();
        let leaves_soon = |event: &String| {
            let (event, recipient) = (event.parse().unwrap(), recipient.parse().unwrap());
            let job = Job {
                id: JobId::of(&self.peal.ids, &app, &event, &recipient, Channel::Push),
                slice,
                ..testing::job(&app, event.as_str(), Push::default(), Timestamp::UNIX_EPOCH)
            };
            quiet::spread(&job) < SignedDuration::from_secs(2)
        };
        (0..100_000)
            .map(|number| format!("{name}-{number}"))
            .find(leaves_soon)
            .unwrap()
    }

    /// Sends a notification, and returns its id.
    async fn send(&self, event: &str, to: Value, more: Value) -> String {
        let mut body = json!({ "event_id": event, "to": to, "push": { "title": "Hello", "ttl": 3600 } });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = self.peal.expect("POST", "eu", "/v1/notifications", Some(&body)).await;
        answer.unwrap()["notification_id"].as_str().unwrap().to_owned()
    }

    async fn start_worker(&mut self) {
        let (program, http) = (self.peal.program(), self.peal.http.clone());
        let worker = &mut self.peal.region_mut("eu").workers[0];
        worker.restart(&program).unwrap();
        worker.wait_ready(&http).await.unwrap();
    }

    /// Sends a notification that lives for `ttl_s`, and pulls its job as a worker does. Returns the notification's id too.
    async fn pull(&self, event: &str, ttl_s: u32) -> (String, Pulled) {
        let body = json!({
            "event_id": event,
            "to": { "recipients": ["ann"] },
            "push": { "title": "Hello", "ttl": ttl_s },
        });
        let answer = self.peal.expect("POST", "eu", "/v1/notifications", Some(&body)).await;
        let id = answer.unwrap()["notification_id"].as_str().unwrap().to_owned();
        let stream = self.js.get_stream(topology::NOTIFY).await.unwrap();
        let lane = topology::lane_consumer(Channel::Push, Class::Normal);
        let consumer: PullConsumer = stream.get_consumer(&lane).await.unwrap();
        let mut messages = consumer
            .batch()
            .max_messages(1)
            .expires(Duration::from_secs(5))
            .messages()
            .await
            .unwrap();
        let message = messages.next().await.unwrap().unwrap();
        let headers = message.headers.as_ref().unwrap();
        let stored_at = Clock::system().now();
        let (payload, ids) = (&message.payload, &self.peal.ids);
        let job = envelope::open(&message.subject, headers, payload, stored_at, &self.region, ids).unwrap();
        let lane = Lane::parse(&message.subject).unwrap();
        (id, Pulled { message, lane, job })
    }

    /// Stores the schedule of a job that is to wait for `wait`.
    async fn schedule<'a>(&self, pulled: &'a Pulled, wait: SignedDuration) -> Deferral<'a> {
        let deferral = Deferral::new(&pulled.job, Clock::system().now() + wait, "quiet_hours").unwrap();
        let headers = pulled.message.headers.as_ref().unwrap();
        let payload = pulled.message.payload.clone();
        let tier = Tier::of(&pulled.message.subject);
        let storing = deferral.store(&self.js, &pulled.lane, tier, headers, payload);
        storing.await.unwrap();
        deferral
    }

    /// Publishes the receipt of a job that waits.
    async fn publish_receipt(&self, pulled: &Pulled, deferral: Deferral<'_>) {
        let (id, app) = (format!("test:{}", pulled.job.id), pulled.lane.app.clone());
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        headers.insert(envelope::BATCH, "test:1");
        let subject = subject::receipt(&self.region, &self.region, &app);
        let batch = Batch {
            app,
            region: self.region.clone(),
            origin: self.region.clone(),
            writer: "test".into(),
            accepted: Vec::new(),
            receipts: vec![deferral.receipt(Clock::system().now())],
            handled: Vec::new(),
        };
        let payload = serde_json::to_vec(&batch).unwrap();
        publish::store(&self.js, subject, headers, payload.into())
            .await
            .unwrap();
    }

    async fn defer(&self, pulled: &Pulled, wait: SignedDuration) {
        let deferral = self.schedule(pulled, wait).await;
        self.publish_receipt(pulled, deferral).await;
        pulled.message.double_ack().await.unwrap();
    }

    /// Waits until the only delivery of a notification has this state, and returns the status.
    async fn status(&self, id: &str, state: State) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        let path = format!("/v1/notifications/{id}");
        loop {
            let (_, status) = self.peal.ask("GET", "eu", &path, None).await.unwrap();
            let deliveries = status["deliveries"].as_array().map_or(&[][..], Vec::as_slice);
            if let [delivery] = deliveries
                && delivery["state"] == state.as_str()
            {
                return status;
            }
            assert!(Instant::now() < deadline, "{status}\n{}", self.peal.complaints());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The number of schedules that have not fired, and of due messages that are not acknowledged.
    async fn scheduled(&self) -> u64 {
        let stream = self.js.get_stream(topology::SCHEDULE).await.unwrap();
        stream.cached_info().state.messages
    }

    /// Waits until every schedule has fired and every message of it is acknowledged.
    async fn wait_nothing_scheduled(&self) {
        self.wait_scheduled(0).await;
    }

    async fn wait_scheduled(&self, messages: u64) {
        let deadline = Instant::now() + TIMEOUT;
        while self.scheduled().await > messages {
            assert!(Instant::now() < deadline, "{}", self.peal.complaints());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn equation(&self) -> Equation {
        let audit = Audit::read_settled(&self.peal, TIMEOUT).await.unwrap();
        assert!(audit.report.holds(), "{:?}", audit.report.broken);
        audit.equation()
    }

    fn delivered(&self) -> u64 {
        self.peal.simulators.apns.stats().delivered
    }
}

/// The state and the number of each attempt of the only delivery.
fn attempts(status: &Value) -> Value {
    let attempts = status["deliveries"][0]["attempts"].as_array().unwrap();
    attempts.iter().map(|it| json!([it["state"], it["attempt"]])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_job_is_delivered_once_when_its_time_has_come() {
    let mut rig = Rig::start().await;
    let (id, pulled) = rig.pull("e1", 3600).await;
    // Deferring again replaces the schedule.
    rig.schedule(&pulled, SignedDuration::from_secs(1000)).await;
    rig.defer(&pulled, SignedDuration::from_secs(4)).await;
    assert_eq!(rig.scheduled().await, 1);

    let waiting = rig.status(&id, State::Deferred).await;
    assert_eq!(
        (&waiting["state"], &waiting["jobs"], &waiting["done"]),
        (&json!("in_progress"), &json!(1), &json!(0))
    );
    let delivery = &waiting["deliveries"][0];
    assert_eq!(
        (&delivery["reason"], &delivery["recipient"]),
        (&json!("quiet_hours"), &json!("ann"))
    );
    assert!(delivery["attempts"][0]["next_at"].is_string());
    let report = Audit::read(&rig.peal).await.unwrap().report;
    assert!(report.holds(), "{:?}", report.broken);
    assert_eq!((report.total().in_flight, report.in_flight.deferred), (1, 1));

    rig.start_worker().await;
    let delivered = rig.status(&id, State::Delivered).await;
    assert_eq!(delivered["state"], "done");
    assert_eq!(attempts(&delivered), json!([["deferred", 1], ["delivered", 1]]));
    rig.wait_nothing_scheduled().await;
    let equation = rig.equation().await;
    assert_eq!((equation.accepted, equation.deliveries), (1, 1));
    assert_eq!(equation.by_state, [(State::Delivered, 1)].into());
    assert_eq!(rig.delivered(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_defers_a_job_neither_loses_nor_doubles_it() {
    let mut rig = Rig::start().await;
    let mut held = Vec::new();
    // The server redelivers a message some time after its worker died, before or after the schedule has fired.
    for (event, wait_s, again_s, publishes) in [
        ("stored-1", 6, 0, false),
        ("stored-2", 1, 6, false),
        ("published-1", 6, 0, true),
        ("published-2", 1, 6, true),
    ] {
        let (_, pulled) = rig.pull(event, 3600).await;
        let deferral = rig.schedule(&pulled, SignedDuration::from_secs(wait_s)).await;
        if publishes {
            rig.publish_receipt(&pulled, deferral).await;
        }
        let again = AckKind::Nak(Some(Duration::from_secs(again_s)));
        held.push((pulled.message, again));
    }
    for (message, again) in held {
        message.ack_with(again).await.unwrap();
    }
    let report = Audit::read(&rig.peal).await.unwrap().report;
    assert!(report.holds(), "{:?}", report.broken);
    assert_eq!(report.total().in_flight, 4);

    rig.start_worker().await;
    // Half of the jobs arrive from the lane first and from their schedule later, the other half the other way round.
    sleep(Duration::from_secs(7)).await;
    rig.wait_nothing_scheduled().await;
    let equation = rig.equation().await;
    assert_eq!((equation.accepted, equation.deliveries), (4, 4));
    assert_eq!(equation.by_state, [(State::Delivered, 4)].into());
    assert_eq!(rig.delivered(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_job_can_expire_and_be_withdrawn() {
    let mut rig = Rig::start().await;
    let (expires, pulled) = rig.pull("expires", 4).await;
    rig.defer(&pulled, SignedDuration::from_secs(1)).await;
    let (withdrawn, pulled) = rig.pull("withdrawn", 3600).await;
    rig.defer(&pulled, SignedDuration::from_secs(1)).await;
    let path = format!("/v1/notifications/{withdrawn}");
    rig.peal.expect("DELETE", "eu", &path, None).await.unwrap();
    sleep(Duration::from_secs(5)).await;

    rig.start_worker().await;
    let status = rig.status(&expires, State::Expired).await;
    assert_eq!(attempts(&status), json!([["deferred", 1], ["expired", 1]]));
    let status = rig.status(&withdrawn, State::Cancelled).await;
    assert_eq!(attempts(&status), json!([["deferred", 1], ["cancelled", 1]]));
    rig.wait_nothing_scheduled().await;
    let equation = rig.equation().await;
    assert_eq!(equation.by_state, [(State::Expired, 1), (State::Cancelled, 1)].into());
    assert_eq!(rig.delivered(), 0);
}

/// Any version may be stated. The message waits for a newer worker, and holds up neither its stream nor its lane.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_newer_version_waits_outside_its_stream() {
    let mut rig = Rig::start().await;
    rig.start_worker().await;
    let publisher = connect::jetstream(rig.peal.connect("eu").await.unwrap());
    let publish = async |event: &str, version: &str, push: Value| {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, event);
        headers.insert(version::VERSION, version);
        let body = json!({ "recipient": "ann", "push": push }).to_string();
        let subject = format!("notify.push.eu.normal.{APP}");
        publish::store(&publisher, subject, headers, body.into()).await.unwrap();
    };
    publish("newer", "99", json!({ "title": "Hi" })).await;
    let stream = rig.js.get_stream(topology::NOTIFY).await.unwrap();
    let lane = topology::lane_consumer(Channel::Push, Class::Normal);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut consumer: PullConsumer = stream.get_consumer(&lane).await.unwrap();
        let info = consumer.info().await.unwrap();
        if info.num_ack_pending == 0 && info.num_pending == 0 && rig.scheduled().await == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{}", rig.peal.complaints());
        sleep(Duration::from_millis(100)).await;
    }
    // The audit knows where it is, and no letter was made of it.
    let report = Audit::read(&rig.peal).await.unwrap().report;
    assert!(report.holds(), "{:?}", report.broken);
    assert_eq!(report.total().in_flight, 1);

    // Neither a version that is no number nor a member whose name breaks a line stops the worker.
    publish("text", "newest", json!({ "title": "Hi" })).await;
    publish("line", "no number", json!({ "title": "Hi", "two\r\nlines": 1 })).await;
    let deadline = Instant::now() + TIMEOUT;
    let dead = async || {
        let dead = rig.js.get_stream(topology::DEAD).await.unwrap();
        dead.cached_info().state.messages
    };
    while rig.delivered() < 1 || dead().await < 1 {
        assert!(Instant::now() < deadline, "{}", rig.peal.complaints());
        sleep(Duration::from_millis(100)).await;
    }
}

/// An app whose recipients are not disturbed at any time, unless they have other quiet hours, and that does not guess zones.
fn always_quiet(app: &mut App) {
    let windows = json!([{ "from": "00:00", "to": "12:00" }, { "from": "12:00", "to": "00:00" }]);
    app.quiet_hours = serde_json::from_value(windows).unwrap();
    app.unknown_zone = UnknownZone::Drop;
}

/// A mesh whose recipients have quiet hours that end soon.
struct Night {
    rig: Rig,
    ends: Timestamp,
    /// The window as a recipient states it.
    window: Value,
}

impl Night {
    async fn start() -> Self {
        let plan = Plan {
            app: always_quiet,
            ..plan()
        };
        let rig = Rig::running(plan).await;
        let now = Clock::system().now();
        // A minute of the clock, late enough for what is done before.
        let ends = Timestamp::from_second((now.as_second() + 30).div_euclid(60) * 60 + 60).unwrap();
        let time = |at: Timestamp| at.to_zoned(TimeZone::UTC).strftime("%H:%M").to_string();
        let window = json!({ "from": time(ends - SignedDuration::from_hours(2)), "to": time(ends) });
        Self { rig, ends, window }
    }

    /// Registers a recipient with this zone and these quiet hours, and devices with zones of their own.
    async fn register(&self, recipient: &str, zone: Option<&str>, windows: Value, devices: &[(&str, Option<&str>)]) {
        let path = format!("/v1/recipients/{recipient}");
        let put = async |path: &str, body: Value| {
            self.rig.peal.expect("PUT", "eu", path, Some(&body)).await.unwrap();
        };
        put(&path, json!({ "timezone": zone })).await;
        put(&format!("{path}/preferences"), json!({ "quiet_hours": windows })).await;
        for (token, zone) in devices {
            let address = json!({ "provider": "apns", "token": token, "timezone": zone });
            let addresses = format!("{path}/addresses");
            let answer = self
                .rig
                .peal
                .expect("POST", "eu", &addresses, Some(&address))
                .await
                .unwrap();
            assert_eq!(answer["timezone"], json!(zone));
        }
    }

    async fn send_to(&self, recipient: &str, more: Value) -> String {
        let event = self.rig.event(recipient, recipient, None);
        self.rig.send(&event, json!({ "recipients": [recipient] }), more).await
    }
}

/// The state and the reason of each delivery of a notification, sorted.
async fn deliveries(rig: &Rig, id: &str) -> Vec<[String; 2]> {
    let path = format!("/v1/notifications/{id}");
    let (_, status) = rig.peal.ask("GET", "eu", &path, None).await.unwrap();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let each = status["deliveries"].as_array().into_iter().flatten();
    let mut each: Vec<_> = each.map(|it| [word(&it["state"]), word(&it["reason"])]).collect();
    each.sort();
    each
}

async fn wait_deliveries(rig: &Rig, id: &str, expected: &[[&str; 2]]) {
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        let found = deliveries(rig, id).await;
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{found:?} {expected:?}\n{}",
            rig.peal.complaints()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_hours_hold_and_drop_and_a_killed_worker_loses_nothing() {
    let mut night = Night::start().await;
    let window = night.window.clone();
    let mut dropping = window.clone();
    dropping["then"] = json!("drop");
    // In Tokyo it is another time of the day.
    let devices = [("aa01", None), ("aa02", Some("Asia/Tokyo"))];
    night.register("ann", Some("UTC"), json!([window]), &devices).await;
    night
        .register("bob", Some("UTC"), json!([window]), &[("bb01", None)])
        .await;
    night.register("cid", None, json!(null), &[("cc01", None)]).await;
    night
        .register("dan", Some("UTC"), json!([dropping]), &[("dd01", None)])
        .await;
    night.register("eve", Some("UTC"), json!([]), &[("ee01", None)]).await;
    night.register("fay", Some("UTC"), json!(null), &[("ff01", None)]).await;
    for member in ["bob", "eve"] {
        let path = format!("/v1/recipients/{member}/topics/news");
        night.rig.peal.expect("PUT", "eu", &path, None).await.unwrap();
    }

    let ann = night.send_to("ann", json!({})).await;
    let bob = night.send_to("bob", json!({})).await;
    let cid = night.send_to("cid", json!({})).await;
    let dan = night.send_to("dan", json!({})).await;
    let eve = night.send_to("eve", json!({})).await;
    let fay = night
        .send_to("fay", json!({ "push": { "title": "Soon", "ttl": 5 } }))
        .await;
    let urgent = night
        .rig
        .send("code-1", json!({ "recipients": ["bob"] }), json!({ "class": "urgent" }))
        .await;
    let news = night.rig.event("news", "bob", Some(0));
    let news = night.rig.send(&news, json!({ "topic": "news" }), json!({})).await;

    let rig = &night.rig;
    wait_deliveries(rig, &ann, &[["delivered", ""], ["parked", "quiet_hours"]]).await;
    wait_deliveries(rig, &bob, &[["deferred", "quiet_hours"]]).await;
    wait_deliveries(rig, &cid, &[["suppressed", "unknown_zone"]]).await;
    wait_deliveries(rig, &dan, &[["suppressed", "quiet_hours"]]).await;
    wait_deliveries(rig, &eve, &[["delivered", ""]]).await;
    wait_deliveries(rig, &urgent, &[["delivered", ""]]).await;
    // A night without an end: it expires, and not before.
    wait_deliveries(rig, &fay, &[["deferred", "quiet_hours"]]).await;
    wait_deliveries(rig, &fay, &[["expired", "expired"]]).await;
    // Of the broadcast one member was sent to, and the slice waits for the other.
    let deadline = Instant::now() + TIMEOUT;
    while rig.delivered() < 4 {
        assert!(Instant::now() < deadline, "{}", rig.peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }
    let report = Audit::read(&rig.peal).await.unwrap().report;
    assert!(report.holds(), "{:?}", report.broken);
    // A delivery, a job, a slice, and the note that the broadcast was split.
    assert_eq!((rig.scheduled().await, report.in_flight.deferred), (4, 1));
    assert!(Clock::system().now() < night.ends, "the test was too slow");

    let worker = &mut night.rig.peal.region_mut("eu").workers[0];
    worker.process.kill().await.unwrap();
    night.rig.start_worker().await;
    let rig = &night.rig;
    wait_deliveries(rig, &ann, &[["delivered", ""], ["delivered", ""]]).await;
    wait_deliveries(rig, &bob, &[["delivered", ""]]).await;
    assert!(Clock::system().now() >= night.ends);
    let waited = rig.status(&bob, State::Delivered).await;
    assert_eq!(attempts(&waited), json!([["deferred", 1], ["delivered", 1]]));
    rig.wait_scheduled(1).await;
    let (_, status) = rig
        .peal
        .ask("GET", "eu", &format!("/v1/notifications/{news}"), None)
        .await
        .unwrap();
    assert_eq!(status["broadcast"]["by_state"], json!({ "delivered": 2 }), "{status}");
    let equation = rig.equation().await;
    let by_state = [(State::Delivered, 7), (State::Suppressed, 2), (State::Expired, 1)];
    assert_eq!(equation.by_state, by_state.into());
    assert_eq!(rig.delivered(), 7);
}

/// An app with limits.
fn limited(app: &mut App) {
    let limits = json!([{ "count": 5, "window_s": 86400 }, { "count": 1, "window_s": 86400, "topic": "news" }]);
    app.limits = serde_json::from_value(limits).unwrap();
    let pings = json!({ "pings": { "limits": [{ "count": 2, "window_s": 60, "then": "delay" }] } });
    app.categories = serde_json::from_value(pings).unwrap();
}

/// Waits until all of these notifications are done, and returns how many deliveries have each state and reason.
async fn ends(rig: &Rig, ids: &[String]) -> BTreeMap<[String; 2], usize> {
    let deadline = Instant::now() + Duration::from_mins(2);
    let mut ends = BTreeMap::new();
    for id in ids {
        let path = format!("/v1/notifications/{id}");
        while rig.peal.ask("GET", "eu", &path, None).await.unwrap().1["state"] != "done" {
            assert!(Instant::now() < deadline, "{}", rig.peal.complaints());
            sleep(Duration::from_millis(50)).await;
        }
        for delivery in deliveries(rig, id).await {
            *ends.entry(delivery).or_default() += 1;
        }
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn no_burst_through_two_workers_passes_a_limit() {
    let plan = Plan {
        workers: 2,
        app: limited,
        ..plan()
    };
    let mut rig = Rig::running(plan).await;
    for (recipient, token) in [("ann", "aa01"), ("bob", "bb01"), ("cid", "cc01"), ("dan", "dd01")] {
        rig.peal.register(recipient, "eu", &[("apns", token)]).await.unwrap();
    }
    let (delivered, dropped) = (
        ["delivered", ""].map(str::to_owned),
        ["suppressed", "rate_limit"].map(str::to_owned),
    );
    let burst = async |rig: &Rig, recipient: &str, name: &str| {
        let events: Vec<String> = (0..30).map(|number| format!("{name}-{number}")).collect();
        let sending = events
            .iter()
            .map(|event| rig.send(event, json!({ "recipients": [recipient] }), json!({})));
        join_all(sending).await
    };

    let ids = burst(&rig, "ann", "burst").await;
    assert_eq!(
        ends(&rig, &ids).await,
        [(delivered.clone(), 5), (dropped.clone(), 25)].into()
    );
    // Urgent ones pass.
    let urgent = rig
        .send("urgent", json!({ "recipients": ["ann"] }), json!({ "class": "urgent" }))
        .await;
    wait_deliveries(&rig, &urgent, &[["delivered", ""]]).await;

    // Of a topic; the second broadcast is one too many.
    let join = "/v1/recipients/dan/topics/news";
    rig.peal.expect("PUT", "eu", join, None).await.unwrap();
    for (event, state) in [("news-1", "delivered"), ("news-2", "suppressed")] {
        let news = rig.send(event, json!({ "topic": "news" }), json!({})).await;
        assert_eq!(ends(&rig, std::slice::from_ref(&news)).await, BTreeMap::new());
        let (_, status) = rig
            .peal
            .ask("GET", "eu", &format!("/v1/notifications/{news}"), None)
            .await
            .unwrap();
        assert_eq!(status["broadcast"]["by_state"], json!({ state: 1 }), "{status}");
    }

    // What is delayed leaves in the next window. All are sent in one.
    while Clock::system().now().as_second() % 60 > 45 {
        sleep(Duration::from_millis(200)).await;
    }
    let events = ["one", "two", "three", "four"].map(|name| rig.event(name, "bob", None));
    let ping = json!({ "category": "pings" });
    let sending = events
        .iter()
        .map(|event| rig.send(event, json!({ "recipients": ["bob"] }), ping.clone()));
    let pings = join_all(sending).await;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut states = Vec::new();
        for ping in &pings {
            states.extend(deliveries(&rig, ping).await);
        }
        states.sort();
        let delayed = ["deferred", "rate_limit"].map(str::to_owned);
        if states == [delayed.clone(), delayed, delivered.clone(), delivered.clone()] {
            break;
        }
        assert!(Instant::now() < deadline, "{states:?}\n{}", rig.peal.complaints());
        sleep(Duration::from_millis(50)).await;
    }

    // Meanwhile a worker is killed in a burst: what it had counted may be lost, and nothing more is sent.
    let (program, http) = (rig.peal.program(), rig.peal.http.clone());
    let slow = Rule::always()
        .delay(Duration::from_millis(500))
        .answer(Answer::accept());
    rig.peal.simulators.apns.script().add(slow).unwrap();
    let ids = burst(&rig, "cid", "killed").await;
    let worker = &mut rig.peal.region_mut("eu").workers[0];
    worker.process.kill().await.unwrap();
    worker.restart(&program).unwrap();
    worker.wait_ready(&http).await.unwrap();
    let killed = ends(&rig, &ids).await;
    let sent = killed.get(&delivered).copied().unwrap_or_default();
    assert!(killed.values().sum::<usize>() == 30, "{killed:?}");
    let pushes = rig.peal.simulators.apns.log().delivered_to("cc01");
    let distinct: HashSet<_> = pushes.iter().map(|push| &push.id).collect();
    assert!(
        (1..=5).contains(&distinct.len()) && sent <= distinct.len(),
        "{killed:?} {pushes:?}"
    );
    eprintln!(
        "sent in spite of the kill: {} of 5, {sent} of them recorded",
        distinct.len()
    );

    assert_eq!(ends(&rig, &pings).await, [(delivered, 4)].into());
    let equation = rig.equation().await;
    assert_eq!(equation.accepted, 30 + 1 + 2 + 4 + 30);
}
