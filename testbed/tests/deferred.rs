//! Jobs that wait as a whole. Which rule lets them wait does not matter here, so each test pulls jobs from their lane in place of a
//! worker, defers them with the functions that a worker uses, and then starts a real worker.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::time::Duration;

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{self, AckKind, Message, consumer::PullConsumer},
};
use futures::StreamExt;
use jiff::SignedDuration;
use serde_json::{Value, json};
use shared::{
    channel::{Channel, Class},
    clock::Clock,
    id::Region,
    job::Job,
    nats::{
        audit::Equation,
        connect,
        defer::Deferral,
        envelope, publish,
        subject::{self, Lane, Tier},
        topology, version,
    },
    receipt::{Batch, State},
};
use testbed::{
    audit::Audit,
    nats,
    peal::{APP, Peal, Plan},
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

impl Rig {
    async fn start() -> Self {
        let plan = Plan {
            regions: vec!["eu".into()],
            workers: 1,
            sample_ratio: 0.0,
            ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
        };
        let mut peal = Peal::start(plan).await.unwrap();
        peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
        let worker = &mut peal.region_mut("eu").workers[0];
        worker.process.terminate(Duration::from_secs(15)).await.unwrap();
        let js = connect::jetstream(peal.connect("eu").await.unwrap());
        Self {
            peal,
            js,
            region: "eu".parse().unwrap(),
        }
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
        let deadline = Instant::now() + TIMEOUT;
        while self.scheduled().await > 0 {
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
