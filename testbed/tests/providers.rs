//! The edge worker's providers against the simulators: real TLS, real HTTP/2, real tokens.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use edge_worker::providers::{
    Attempt, Attempted, BadCredential, Credentials, EndpointSettings, Message, Outcome, Providers, Renditions, Settings,
};
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{
    channel::{Channel, Class, Provider},
    clock::Clock,
    id::{AddressId, AppId, EventId, JobId, NotificationId},
    job::{Body, Job},
    push::{ApnsOverride, ApnsPushType, Push},
    recipient::{Address, AddressKind, Environment, Token},
};
use testbed::providers::{
    Answer, Apns, ApnsConfig, ApnsKey, Authority, Fcm, FcmConfig, RetryAfter, Rule, apns::JwtMode, script::ResetCode,
};

#[path = "providers/endpoints.rs"]
mod endpoints;

const TOPIC: &str = "com.example.shop";

// === A worker's providers, pointed at simulators ===

struct Rig {
    providers: Providers,
    app: AppId,
    authority: Authority,
    _ca: tempfile::TempDir,
}

/// What can be chosen about a [`Rig`].
struct Choices {
    apns: Vec<String>,
    fcm: Vec<String>,
    connections: usize,
    timeout: Duration,
    endpoints: EndpointSettings,
    clock: Clock,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            apns: Vec::new(),
            fcm: Vec::new(),
            connections: 4,
            timeout: Duration::from_secs(10),
            endpoints: EndpointSettings::default(),
            clock: Clock::system(),
        }
    }
}

impl Rig {
    fn new(authority: Authority, choices: Choices) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca_file: PathBuf = directory.path().join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let timeout_ms = u64::try_from(choices.timeout.as_millis()).unwrap();
        let mut settings = Settings::default();
        settings.apns.production.clone_from(&choices.apns);
        settings.apns.sandbox = choices.apns;
        settings.apns.ca_file = Some(ca_file.clone());
        settings.apns.connections = choices.connections;
        settings.apns.timeout_ms = timeout_ms;
        settings.fcm.endpoints = choices.fcm;
        settings.fcm.ca_file = Some(ca_file);
        settings.fcm.connections = choices.connections;
        settings.fcm.timeout_ms = timeout_ms;
        settings.endpoints = choices.endpoints;
        let providers = Providers::new(&settings, choices.clock).unwrap();
        Self {
            providers,
            app: "shop".parse().unwrap(),
            authority,
            _ca: directory,
        }
    }

    async fn apns(config: ApnsConfig, choices: Choices) -> (Self, Apns) {
        let authority = config
            .authority
            .clone()
            .unwrap_or_else(|| Authority::generate().unwrap());
        let apns = Apns::start(ApnsConfig {
            authority: Some(authority.clone()),
            ..config
        })
        .await
        .unwrap();
        let endpoints = if choices.apns.is_empty() {
            vec![local(apns.addr().port())]
        } else {
            choices.apns
        };
        let rig = Self::new(
            authority,
            Choices {
                apns: endpoints,
                ..choices
            },
        );
        rig.configure_apns(apns.key());
        (rig, apns)
    }

    async fn fcm(config: FcmConfig, choices: Choices) -> (Self, Fcm) {
        let authority = config
            .authority
            .clone()
            .unwrap_or_else(|| Authority::generate().unwrap());
        let fcm = Fcm::start(FcmConfig {
            authority: Some(authority.clone()),
            ..config
        })
        .await
        .unwrap();
        let endpoints = if choices.fcm.is_empty() {
            vec![https(fcm.addr().port())]
        } else {
            choices.fcm
        };
        let rig = Self::new(
            authority,
            Choices {
                fcm: endpoints,
                ..choices
            },
        );
        rig.configure_fcm(&fcm.account().project_id, fcm.service_account_json())
            .unwrap();
        (rig, fcm)
    }

    fn configure_apns(&self, key: &ApnsKey) {
        self.providers
            .configure(&self.app, &credentials(Provider::Apns, &apns_credential(key)))
            .unwrap();
    }

    fn configure_fcm(&self, project_id: &str, service_account: String) -> Result<(), BadCredential> {
        let credential = json!({ "project_id": project_id, "service_account": service_account });
        self.providers
            .configure(&self.app, &credentials(Provider::Fcm, &credential))
    }

    /// One attempt at the alert `event` for the device `token`.
    async fn alert(&self, provider: Provider, token: &str, event: &str) -> Attempted {
        let push = Push {
            title: Some("ding".into()),
            ..Push::default()
        };
        self.push(provider, token, event, push, Timestamp::now_for_tests())
            .await
    }

    async fn push(
        &self,
        provider: Provider,
        token: &str,
        event: &str,
        push: Push,
        accepted_at: Timestamp,
    ) -> Attempted {
        let job = job(&self.app, event, push, accepted_at);
        let address = address(&self.app, provider, token);
        let job = Arc::new(job);
        let message = Message::new(job.clone(), Renditions::default());
        self.providers
            .deliver(Attempt {
                app: &self.app,
                address: &address,
                delivery: job.delivery(address.id),
                message: &message,
                expires_at: job.expires_at(),
            })
            .await
    }

    async fn apple(&self, token: &str) -> Attempted {
        self.alert(Provider::Apns, token, "event").await
    }

    async fn google(&self, token: &str) -> Attempted {
        self.alert(Provider::Fcm, token, "event").await
    }

    /// One alert to each of this many devices, at once.
    async fn apple_many(&self, devices: usize) -> Vec<Attempted> {
        join_all((0..devices).map(async |n| self.apple(&format!("{n:08x}")).await)).await
    }

    async fn google_many(&self, devices: usize) -> Vec<Attempted> {
        join_all((0..devices).map(async |n| self.google(&format!("device-{n}")).await)).await
    }
}

/// The system's time, as the tests need it for what they accept.
trait NowForTests {
    fn now_for_tests() -> Self;
}

impl NowForTests for Timestamp {
    fn now_for_tests() -> Self {
        Clock::system().now()
    }
}

fn local(port: u16) -> String {
    format!("localhost:{port}")
}

fn https(port: u16) -> String {
    format!("https://localhost:{port}")
}

/// A port on which nobody listens.
fn dead_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn apns_credential(key: &ApnsKey) -> Value {
    json!({ "team_id": key.team_id, "key_id": key.key_id, "topic": TOPIC, "private_key": key.pem })
}

fn credentials(provider: Provider, credential: &Value) -> Credentials {
    [(provider, credential.to_string().into())].into()
}

fn job(app: &AppId, event: &str, push: Push, accepted_at: Timestamp) -> Job {
    let event: EventId = event.parse().unwrap();
    let recipient = "ann".parse().unwrap();
    Job {
        id: JobId::of(app, &event, &recipient, Channel::Push),
        notification: NotificationId::of(app, &event),
        app: app.clone(),
        channel: Channel::Push,
        class: Class::Normal,
        origin: "eu".parse().unwrap(),
        accepted_at,
        attempt: 1,
        discounted: 0,
        remaining: None,
        slice: None,
        body: Body {
            event_id: Some(event),
            recipient,
            category: None,
            push: push.into(),
        },
    }
}

fn address(app: &AppId, provider: Provider, token: &str) -> Address {
    Address {
        id: AddressId::of(app, provider, token),
        provider,
        token: Token::new(provider, token.to_owned()).unwrap(),
        kind: AddressKind::Device,
        environment: Environment::Production,
        topic: None,
        registered_at: Timestamp::UNIX_EPOCH,
    }
}

fn accepted(attempted: &Attempted) -> bool {
    matches!(attempted.outcome, Outcome::Accepted { .. })
}

fn all_accepted(attempts: &[Attempted]) {
    let others: Vec<_> = attempts.iter().filter(|attempted| !accepted(attempted)).collect();
    assert!(
        others.is_empty(),
        "{} of {} were not accepted: {:?}",
        others.len(),
        attempts.len(),
        others.first()
    );
}

fn ambiguous(reason: &'static str) -> Outcome {
    Outcome::Ambiguous { reason: reason.into() }
}

fn rejected(reason: &'static str) -> Outcome {
    Outcome::Rejected { reason: reason.into() }
}

fn later(reason: &'static str, seconds: Option<u64>) -> Outcome {
    Outcome::RetryLater {
        reason: reason.into(),
        not_before: seconds.map(Duration::from_secs),
    }
}

fn endpoint(reason: &'static str) -> Outcome {
    Outcome::EndpointTrouble {
        reason: reason.into(),
        not_before: None,
    }
}

fn credential(reason: &'static str) -> Outcome {
    Outcome::CredentialTrouble {
        reason: reason.into(),
        not_before: None,
    }
}

/// A clock that stands where it is put.
fn set_clock(at: Timestamp) -> (Clock, Arc<AtomicI64>) {
    let seconds = Arc::new(AtomicI64::new(at.as_second()));
    let shown = seconds.clone();
    (
        Clock::from_fn(move || Timestamp::from_second(shown.load(Ordering::Relaxed)).unwrap()),
        seconds,
    )
}

// === APNs ===

#[tokio::test]
async fn apns_takes_every_push_type() {
    let strict = ApnsConfig {
        jwt: JwtMode::Strict,
        ..ApnsConfig::default()
    };
    let (rig, apns) = Rig::apns(strict, Choices::default()).await;
    for kind in ApnsPushType::ALL {
        let priority = (*kind == ApnsPushType::Background).then_some(5);
        let over = ApnsOverride {
            push_type: Some(*kind),
            priority,
            ..ApnsOverride::default()
        };
        let push = Push {
            title: Some("ding".into()),
            apns: Some(over),
            ttl: Some(60),
            ..Push::default()
        };
        let now = Timestamp::now_for_tests();
        let attempted = rig.push(Provider::Apns, "beef", kind.as_str(), push.clone(), now).await;
        assert!(accepted(&attempted), "{kind}: {attempted:?}");
        assert_eq!(
            (attempted.status, &*attempted.endpoint),
            (Some(200), &*local(apns.addr().port()))
        );
        let received = apns.log().delivered().pop().unwrap();
        let job = job(&rig.app, kind.as_str(), push, now);
        let delivery = job.delivery(address(&rig.app, Provider::Apns, "beef").id);
        assert_eq!(received.push_type.as_deref(), Some(kind.as_str()));
        assert_eq!(received.id, delivery.to_string());
        assert_eq!(received.collapse_id, Some(job.id.to_string()));
        assert_eq!(received.expiration, Some(job.expires_at().as_second().to_string()));
        assert_eq!(&received.payload[..], br#"{"aps":{"alert":{"title":"ding"}}}"#);
    }
    assert_eq!(apns.stats().connections, 1);
}

#[tokio::test]
async fn apns_gets_the_same_id_at_every_attempt() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    let first = rig.apple("beef").await;
    let second = rig.apple("beef").await;
    assert_eq!(first.outcome, second.outcome);
    let ids: BTreeSet<_> = apns
        .log()
        .delivered()
        .into_iter()
        .map(|push| (push.id, push.collapse_id))
        .collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn apns_says_since_when_a_device_is_gone() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    for reason in ["Unregistered", "ExpiredToken"] {
        let gone = Answer::reason(reason).timestamp_ms(1_700_000_000_123);
        apns.script().add(Rule::token("dead").times(1).answer(gone)).unwrap();
        let attempted = rig.apple("dead").await;
        let since = Timestamp::from_millisecond(1_700_000_000_123).ok();
        assert_eq!(
            attempted.outcome,
            Outcome::AddressGone {
                reason: reason.into(),
                since
            }
        );
        assert_eq!(attempted.status, Some(410));
        apns.script().clear();
    }
}

#[tokio::test]
async fn apns_refusals_are_told_apart() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    let seconds = |answer: Answer, seconds| answer.retry_after(RetryAfter::Seconds(seconds));
    for (answer, outcome) in [
        (Answer::reason("BadDeviceToken"), rejected("BadDeviceToken")),
        (Answer::reason("PayloadTooLarge"), rejected("PayloadTooLarge")),
        (Answer::reason("Brandnew").status(400), rejected("Brandnew")),
        (Answer::reason("TooManyRequests"), later("TooManyRequests", Some(30))),
        (
            Answer::reason("InternalServerError"),
            later("InternalServerError", None),
        ),
        (
            seconds(Answer::reason("ServiceUnavailable"), 7),
            later("ServiceUnavailable", Some(7)),
        ),
        (
            Answer::reason("ServiceUnavailable").delivered(true),
            later("ServiceUnavailable", None),
        ),
        (
            Answer::reason("InvalidProviderToken"),
            credential("InvalidProviderToken"),
        ),
        (Answer::reason("BadDeviceToken").body("<html>"), endpoint("not_apns")),
        (
            Answer::reason("BadDeviceToken").body(&"x".repeat(17 * 1024)),
            later("answer_incomplete", None),
        ),
    ] {
        apns.script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(rig.apple("beef").await.outcome, outcome, "{answer:?}");
        apns.script().clear();
    }
    let date = Answer::reason("ServiceUnavailable").retry_after(RetryAfter::DateIn(60));
    apns.script().add(Rule::always().answer(date)).unwrap();
    let attempted = rig.apple("beef").await;
    let Outcome::RetryLater {
        not_before: Some(wait), ..
    } = attempted.outcome
    else {
        panic!("{attempted:?}")
    };
    assert!((58..=61).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_at_once_and_not_for_ever() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    let refused = Answer::reset(ResetCode::RefusedStream);
    apns.script()
        .add(Rule::token("aa").times(2).answer(refused.clone()))
        .unwrap();
    apns.script().add(Rule::token("bb").answer(refused)).unwrap();
    assert!(accepted(&rig.apple("aa").await));
    assert_eq!(rig.apple("bb").await.outcome, later("refused_stream", None));
    assert_eq!(apns.log().requests_for("bb").len(), 3);
    assert_eq!(apns.log().delivered_to("aa").len(), 1);
}

#[tokio::test]
async fn goaway_loses_and_doubles_nothing() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    assert!(accepted(&rig.apple("beef").await));
    for (round, processed) in [true, false].into_iter().enumerate() {
        apns.log().clear();
        apns.script().clear();
        apns.script()
            .add(Rule::token("00000020").times(1).answer(Answer::goaway(processed)))
            .unwrap();
        apns.script()
            .add(Rule::always().delay(Duration::from_millis(50)))
            .unwrap();
        all_accepted(&rig.apple_many(100).await);
        let stats = apns.stats();
        assert_eq!((stats.delivered, stats.duplicates), (100, 0), "round {round}");
    }
    assert!(accepted(&rig.apple("beef").await));
}

#[tokio::test]
async fn a_graceful_goaway_is_not_noticed() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    apns.script()
        .add(Rule::always().delay(Duration::from_millis(20)))
        .unwrap();
    let pushes = rig.apple_many(300);
    let leaving = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(15)).await;
            apns.go_away();
        }
    };
    let (attempts, ()) = tokio::join!(pushes, leaving);
    all_accepted(&attempts);
    assert_eq!((apns.stats().delivered, apns.stats().duplicates), (300, 0));
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_doubt_and_is_replaced() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    assert!(accepted(&rig.apple("beef").await));
    apns.script().add(Rule::token("aa").answer(Answer::close())).unwrap();
    assert_eq!(rig.apple("aa").await.outcome, ambiguous("connection_lost"));
    assert!(accepted(&rig.apple("beef").await));
    apns.cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(accepted(&rig.apple("beef").await));
    assert_eq!(apns.stats().connections, 3);
}

#[tokio::test]
async fn silence_is_doubt_and_a_silent_connection_is_left() {
    let short = Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    };
    let (rig, apns) = Rig::apns(ApnsConfig::default(), short).await;
    assert!(accepted(&rig.apple("beef").await));
    for (n, answer) in [Answer::black_hole(), Answer::freeze()].into_iter().enumerate() {
        apns.script().add(Rule::token("aa").times(1).answer(answer)).unwrap();
        let attempted = rig.apple("aa").await;
        assert_eq!(attempted.outcome, ambiguous("timeout"));
        assert_eq!(attempted.status, None);
        assert!(attempted.took >= Duration::from_secs(1));
        assert!(accepted(&rig.apple("beef").await), "round {n}");
        apns.script().clear();
    }
    assert_eq!(apns.stats().connections, 3);
}

#[tokio::test]
async fn many_pushes_share_few_connections_and_never_exceed_their_streams() {
    let narrow = ApnsConfig {
        streams: 100,
        ..ApnsConfig::default()
    };
    let (rig, apns) = Rig::apns(
        narrow,
        Choices {
            connections: 3,
            ..Choices::default()
        },
    )
    .await;
    apns.script()
        .add(Rule::always().delay(Duration::from_millis(20)))
        .unwrap();
    all_accepted(&rig.apple_many(2000).await);
    let stats = apns.stats();
    assert_eq!((stats.delivered, stats.duplicates, stats.refused_streams), (2000, 0, 0));
    assert_eq!(stats.connections, 3);
}

#[tokio::test]
async fn one_connection_is_enough_for_little_traffic() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    for _ in 0..5 {
        all_accepted(&rig.apple_many(50).await);
    }
    assert_eq!((apns.stats().connections, apns.stats().refused_streams), (1, 0));
}

#[tokio::test]
async fn who_gives_up_waiting_takes_nobodys_place() {
    let one = ApnsConfig {
        streams: 1,
        ..ApnsConfig::default()
    };
    let (rig, apns) = Rig::apns(
        one,
        Choices {
            connections: 1,
            ..Choices::default()
        },
    )
    .await;
    apns.script()
        .add(Rule::token("aa").delay(Duration::from_millis(500)))
        .unwrap();
    let slow = rig.apple("aa");
    let impatient = tokio::time::timeout(Duration::from_millis(20), rig.apple("bb"));
    let patient = rig.apple("cc");
    let (slow, impatient, patient) = tokio::join!(slow, impatient, patient);
    assert!(accepted(&slow) && impatient.is_err() && accepted(&patient));
    assert!(apns.log().requests_for("bb").is_empty());
    all_accepted(&rig.apple_many(20).await);
}

#[tokio::test]
async fn apps_of_one_team_share_token_and_connection() {
    let limited = ApnsConfig {
        limit_token_updates: true,
        ..ApnsConfig::default()
    };
    let (mut rig, apns) = Rig::apns(limited, Choices::default()).await;
    all_accepted(&rig.apple_many(10).await);
    rig.app = "kiosk".parse().unwrap();
    rig.configure_apns(apns.key());
    all_accepted(&rig.apple_many(10).await);
    rig.app = "shop".parse().unwrap();
    rig.configure_apns(apns.key());
    all_accepted(&rig.apple_many(10).await);
    assert_eq!(apns.stats().connections, 1);
}

/// The beginning of one of the slots that workers cut time into for provider tokens, 50 minutes each.
const SLOT: i64 = 600_000 * 50 * 60;

fn at_minute(minute: i64) -> Timestamp {
    Timestamp::from_second(SLOT + 60 * minute).unwrap()
}

/// APNs that counts how often a team changes its token, a worker, and their clocks.
async fn strict_apns(worker: Timestamp, apple: Timestamp) -> (Rig, Apns, Arc<AtomicI64>, Arc<AtomicI64>) {
    let (clock, seconds) = set_clock(worker);
    let (apples_clock, apples_seconds) = set_clock(apple);
    let strict = ApnsConfig {
        jwt: JwtMode::Strict,
        limit_token_updates: true,
        clock: apples_clock,
        ..ApnsConfig::default()
    };
    let choices = Choices {
        clock,
        ..Choices::default()
    };
    let (rig, apns) = Rig::apns(strict, choices).await;
    (rig, apns, seconds, apples_seconds)
}

#[tokio::test]
async fn workers_that_know_nothing_of_each_other_show_one_provider_token_at_a_time() {
    let (first, apns, seconds, apples_seconds) = strict_apns(at_minute(10), at_minute(10)).await;
    // Workers of any region, told of nothing but the key; each has a clock that is wrong by some seconds.
    let authority = first.authority.clone();
    let worker = |by_s: i64| {
        let seconds = seconds.clone();
        let clock = Clock::from_fn(move || Timestamp::from_second(seconds.load(Ordering::Relaxed) + by_s).unwrap());
        let choices = Choices {
            apns: vec![local(apns.addr().port())],
            clock,
            ..Choices::default()
        };
        let rig = Rig::new(authority.clone(), choices);
        rig.configure_apns(apns.key());
        rig
    };
    let mut workers = [first, worker(0), worker(-240), worker(240)];
    for minute in (10..180).step_by(2) {
        for clock in [&seconds, &apples_seconds] {
            clock.store(at_minute(minute).as_second(), Ordering::Relaxed);
        }
        // One is started anew every time, so that it has no memory.
        workers[1] = worker(0);
        let pushes = workers.iter().map(|worker| worker.apple("beef"));
        all_accepted(&join_all(pushes).await);
    }
    assert_eq!(apns.provider_tokens(), 4, "one for each slot");
}

#[tokio::test]
async fn a_worker_whose_clock_is_slow_catches_up_with_the_token_of_the_others() {
    let (slow, apns, ..) = strict_apns(at_minute(20), at_minute(20 + 120)).await;
    assert_eq!(
        slow.apple("beef").await.outcome,
        credential("ExpiredProviderToken"),
        "two hours are more than two slots"
    );
    assert!(accepted(&slow.apple("beef").await));
    let (clock, _) = set_clock(at_minute(20 + 120));
    let choices = Choices {
        apns: vec![local(apns.addr().port())],
        clock,
        ..Choices::default()
    };
    let right = Rig::new(slow.authority.clone(), choices);
    right.configure_apns(apns.key());
    assert!(accepted(&right.apple("beef").await));
    assert!(accepted(&slow.apple("beef").await));
    assert_eq!(apns.provider_tokens(), 1);
}

#[tokio::test]
async fn a_provider_token_that_apple_wrongly_calls_expired_is_used_again() {
    let (rig, apns, ..) = strict_apns(at_minute(20), at_minute(20)).await;
    apns.script()
        .add(Rule::always().times(1).answer(Answer::reason("ExpiredProviderToken")))
        .unwrap();
    // The next slot's token, which is tried instead, is from the future.
    assert_eq!(rig.apple("beef").await.outcome, credential("InvalidProviderToken"));
    assert!(accepted(&rig.apple("beef").await));
    assert_eq!(apns.provider_tokens(), 1);
}

#[tokio::test]
async fn a_revoked_key_blames_the_credential_and_a_new_one_heals_it() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    assert!(accepted(&rig.apple("beef").await));
    apns.revoke_key(&apns.key().team_id, &apns.key().key_id);
    // What is sent before the close has arrived here would be in doubt.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.apple("beef").await.outcome, credential("InvalidProviderToken"));
    let fresh = ApnsKey::generate("PEALTEAM01", "PEALKEY002").unwrap();
    apns.register_key(&fresh.clone().into()).unwrap();
    rig.configure_apns(&fresh);
    assert!(accepted(&rig.apple("beef").await));
}

#[tokio::test]
async fn credentials_change_under_traffic_without_a_loss() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    apns.script()
        .add(Rule::always().delay(Duration::from_millis(30)))
        .unwrap();
    let other = ApnsKey::generate("OTHERTEAM1", "OTHERKEY01").unwrap();
    apns.register_key(&other.clone().into()).unwrap();
    let change = async {
        tokio::time::sleep(Duration::from_millis(15)).await;
        rig.configure_apns(&other);
    };
    let (before, ()) = tokio::join!(rig.apple_many(50), change);
    all_accepted(&before);
    all_accepted(&rig.apple_many(50).await);
    rig.providers.forget(&rig.app);
    assert_eq!(rig.apple("beef").await.outcome, credential("no_credential"));
    assert!(
        !rig.providers
            .can_reach(&rig.app, &address(&rig.app, Provider::Apns, "beef"))
    );
    for _ in 0..1000 {
        if apns.stats().open_connections == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("connections of a forgotten credential stay open");
}

#[tokio::test]
async fn a_bad_credential_changes_nothing() {
    let (rig, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    for (field, bad) in [
        ("team_id", "short"),
        ("key_id", "not ten ch"),
        ("topic", "a b"),
        ("private_key", "secret"),
    ] {
        let mut credential = apns_credential(apns.key());
        credential[field] = bad.into();
        let bad = credentials(Provider::Apns, &credential);
        let refused = rig.providers.configure(&rig.app, &bad).unwrap_err();
        assert_eq!(refused.field, field);
        assert!(!format!("{refused} {refused:?} {bad:?}").contains("secret"));
    }
    assert!(accepted(&rig.apple("beef").await));
}

#[tokio::test]
async fn the_next_endpoint_takes_over_when_the_first_is_dead() {
    let authority = Authority::generate().unwrap();
    let apns = Apns::start(ApnsConfig {
        authority: Some(authority.clone()),
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    let dead = local(dead_port());
    let alive = local(apns.addr().port());
    let choices = Choices {
        apns: vec![dead.clone(), alive.clone()],
        ..Choices::default()
    };
    let rig = Rig::new(authority.clone(), choices);
    rig.configure_apns(apns.key());
    let attempts = rig.apple_many(50).await;
    all_accepted(&attempts);
    assert!(attempts.iter().all(|attempted| *attempted.endpoint == *alive));

    let rig = Rig::new(
        rig.authority.clone(),
        Choices {
            apns: vec![dead.clone()],
            ..Choices::default()
        },
    );
    rig.configure_apns(apns.key());
    let attempted = rig.apple("beef").await;
    assert_eq!((attempted.outcome, &*attempted.endpoint), (endpoint("connect"), &*dead));
}

#[tokio::test]
async fn a_server_that_we_do_not_trust_gets_nothing() {
    let (_, apns) = Rig::apns(ApnsConfig::default(), Choices::default()).await;
    let endpoints = vec![local(apns.addr().port())];
    let rig = Rig::new(
        Authority::generate().unwrap(),
        Choices {
            apns: endpoints,
            ..Choices::default()
        },
    );
    rig.configure_apns(apns.key());
    assert_eq!(rig.apple("beef").await.outcome, endpoint("tls"));
    assert_eq!(apns.log().request_count(), 0);
}

#[tokio::test]
async fn a_restarted_apns_is_found_again() {
    let authority = Authority::generate().unwrap();
    let config = ApnsConfig {
        authority: Some(authority),
        ..ApnsConfig::default()
    };
    let (rig, apns) = Rig::apns(config.clone(), Choices::default()).await;
    assert!(accepted(&rig.apple("beef").await));
    let (addr, key) = (apns.addr(), apns.key().clone());
    apns.stop().await;
    // What is sent before the close has arrived here would be in doubt.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.apple("beef").await.outcome, endpoint("connect"));
    let _again = Apns::start(ApnsConfig {
        listen: addr,
        keys: vec![key.into()],
        ..config
    })
    .await
    .unwrap();
    assert!(accepted(&rig.apple("beef").await));
}

#[tokio::test]
async fn a_time_limit_beyond_that_of_an_attempt_is_refused_by_name() {
    let mut settings = Settings::default();
    settings.fcm.timeout_ms = 12_001;
    let refused = Providers::new(&settings, Clock::system()).unwrap_err();
    assert_eq!(refused.to_string(), "fcm.timeout_ms: must be at most 12000");
}

// === FCM ===

#[tokio::test]
async fn fcm_takes_a_push_and_names_it() {
    let (rig, fcm) = Rig::fcm(FcmConfig::default(), Choices::default()).await;
    let attempted = rig.google("device").await;
    let Outcome::Accepted {
        provider_id: Some(name),
    } = &attempted.outcome
    else {
        panic!("{attempted:?}")
    };
    assert!(name.starts_with("projects/peal-test/messages/"), "{name}");
    assert_eq!(
        (attempted.status, &*attempted.endpoint),
        (Some(200), &*local(fcm.addr().port()))
    );
    assert_eq!(
        fcm.log().delivered_to("device")[0].expiration.as_deref(),
        Some("2419200s")
    );
}

#[tokio::test]
async fn a_late_attempt_lives_only_as_long_as_is_left() {
    let (rig, fcm) = Rig::fcm(FcmConfig::default(), Choices::default()).await;
    let push = Push {
        title: Some("ding".into()),
        ttl: Some(600),
        ..Push::default()
    };
    let ten_minutes_less = Timestamp::now_for_tests() - Duration::from_secs(500);
    assert!(accepted(
        &rig.push(Provider::Fcm, "device", "event", push, ten_minutes_less).await
    ));
    let life = fcm.log().delivered_to("device")[0].expiration.clone().unwrap();
    let seconds: u64 = life.strip_suffix('s').unwrap().parse().unwrap();
    assert!((90..=100).contains(&seconds), "{life}");
}

#[tokio::test]
async fn one_access_token_serves_all_who_wait_for_it() {
    let (rig, fcm) = Rig::fcm(FcmConfig::default(), Choices::default()).await;
    all_accepted(&rig.google_many(500).await);
    let stats = fcm.stats();
    assert_eq!((stats.delivered, stats.duplicates, stats.access_tokens), (500, 0, 1));
    assert!(
        stats.connections <= 5,
        "four for pushes, one for the token: {}",
        stats.connections
    );
    assert_eq!(stats.refused_streams, 0);
}

#[tokio::test]
async fn an_access_token_is_renewed_before_it_ends() {
    let (clock, seconds) = set_clock(Timestamp::now_for_tests());
    let (rig, fcm) = Rig::fcm(
        FcmConfig::default(),
        Choices {
            clock,
            ..Choices::default()
        },
    )
    .await;
    assert!(accepted(&rig.google("device").await));
    seconds.fetch_add(3599 - 121, Ordering::Relaxed);
    assert!(accepted(&rig.google("device").await));
    assert_eq!(fcm.stats().access_tokens, 1);
    seconds.fetch_sub(3599 - 121, Ordering::Relaxed);
    // Its end is two minutes away: a token of 100 seconds is never fresh enough to be kept.
    let short = FcmConfig {
        token_life: Duration::from_secs(100),
        ..FcmConfig::default()
    };
    let (rig, fcm) = Rig::fcm(short, Choices::default()).await;
    assert!(accepted(&rig.google("device").await));
    assert!(accepted(&rig.google("device").await));
    assert_eq!(fcm.stats().access_tokens, 2);
}

#[tokio::test]
async fn a_refused_access_token_is_replaced_once() {
    let (rig, fcm) = Rig::fcm(FcmConfig::default(), Choices::default()).await;
    all_accepted(&rig.google_many(20).await);
    fcm.revoke_access_tokens();
    all_accepted(&rig.google_many(20).await);
    assert_eq!(fcm.stats().access_tokens, 2);
    fcm.script()
        .add(Rule::always().answer(Answer::reason("UNAUTHENTICATED")))
        .unwrap();
    for attempted in rig.google_many(20).await {
        assert_eq!(attempted.outcome, credential("UNAUTHENTICATED"));
    }
    assert_eq!(
        fcm.stats().access_tokens,
        2,
        "a token was fetched for a refusal less than a minute ago"
    );
}

#[tokio::test]
async fn fcm_refusals_are_told_apart() {
    let (rig, fcm) = Rig::fcm(FcmConfig::default(), Choices::default()).await;
    let gone = |reason: &'static str| Outcome::AddressGone {
        reason: reason.into(),
        since: None,
    };
    let asks = |answer: Answer, seconds| answer.retry_after(RetryAfter::Seconds(seconds));
    for (answer, outcome) in [
        (Answer::reason("INVALID_ARGUMENT"), rejected("INVALID_ARGUMENT")),
        (Answer::reason("UNREGISTERED"), gone("UNREGISTERED")),
        (Answer::reason("SENDER_ID_MISMATCH"), gone("SENDER_ID_MISMATCH")),
        (Answer::reason("QUOTA_EXCEEDED"), later("QUOTA_EXCEEDED", Some(60))),
        (
            asks(Answer::reason("QUOTA_EXCEEDED"), 8),
            later("QUOTA_EXCEEDED", Some(8)),
        ),
        (Answer::reason("INTERNAL"), later("INTERNAL", Some(10))),
        (asks(Answer::reason("UNAVAILABLE"), 30), later("UNAVAILABLE", Some(30))),
        (
            Answer::reason("THIRD_PARTY_AUTH_ERROR"),
            credential("THIRD_PARTY_AUTH_ERROR"),
        ),
        (Answer::reason("PERMISSION_DENIED"), credential("PERMISSION_DENIED")),
        (Answer::reason("BRAND_NEW").status(400), rejected("BRAND_NEW")),
    ] {
        fcm.script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(rig.google("device").await.outcome, outcome, "{answer:?}");
        fcm.script().clear();
    }
}

#[tokio::test]
async fn a_service_account_that_google_does_not_know_is_the_credentials_fault() {
    let (rig, fcm) = Rig::fcm(FcmConfig::default(), Choices::default()).await;
    let stranger = testbed::providers::ServiceAccount::generate("peal-test").unwrap();
    rig.configure_fcm("peal-test", stranger.to_json(&fcm.token_uri()))
        .unwrap();
    for attempted in rig.google_many(20).await {
        let Outcome::CredentialTrouble { .. } = attempted.outcome else {
            panic!("{attempted:?}")
        };
    }
    assert_eq!(fcm.stats().access_tokens, 0);
    for bad in ["", "{}", "not json"] {
        assert_eq!(
            rig.configure_fcm("peal-test", bad.to_owned()).unwrap_err().field,
            "service_account"
        );
    }
    let elsewhere = stranger.to_json("http://localhost/token");
    assert_eq!(
        rig.configure_fcm("peal-test", elsewhere).unwrap_err().field,
        "service_account"
    );
    assert_eq!(
        rig.configure_fcm("../x", fcm.service_account_json()).unwrap_err().field,
        "project_id"
    );
}

#[tokio::test]
async fn fcm_silence_is_doubt_and_its_absence_is_trouble() {
    let short = Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    };
    let (rig, fcm) = Rig::fcm(FcmConfig::default(), short).await;
    assert!(accepted(&rig.google("device").await));
    fcm.script()
        .add(Rule::token("hole").answer(Answer::black_hole()))
        .unwrap();
    fcm.script().add(Rule::token("close").answer(Answer::close())).unwrap();
    fcm.script()
        .add(
            Rule::token("refused")
                .times(1)
                .answer(Answer::reset(ResetCode::RefusedStream)),
        )
        .unwrap();
    assert_eq!(rig.google("hole").await.outcome, ambiguous("timeout"));
    assert_eq!(rig.google("close").await.outcome, ambiguous("connection_lost"));
    assert!(accepted(&rig.google("refused").await), "a refused stream is sent again");
    let port = fcm.addr().port();
    fcm.stop().await;
    // What is sent before the close has arrived here would be in doubt.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let attempted = rig.google("device").await;
    assert_eq!(
        (attempted.outcome, &*attempted.endpoint),
        (endpoint("connect"), &*local(port))
    );
}

#[tokio::test]
async fn the_next_fcm_endpoint_takes_over_when_the_first_is_dead() {
    let authority = Authority::generate().unwrap();
    let fcm = Fcm::start(FcmConfig {
        authority: Some(authority.clone()),
        ..FcmConfig::default()
    })
    .await
    .unwrap();
    let endpoints = vec![https(dead_port()), https(fcm.addr().port())];
    let rig = Rig::new(
        authority,
        Choices {
            fcm: endpoints,
            ..Choices::default()
        },
    );
    rig.configure_fcm("peal-test", fcm.service_account_json()).unwrap();
    all_accepted(&rig.google_many(50).await);
}
