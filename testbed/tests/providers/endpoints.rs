//! Which endpoint a provider uses, how many connections it opens, and when it closes them.

use std::{net::SocketAddr, time::Duration};

use edge_worker::providers::{EndpointSettings, EndpointState, Outcome, Why};
use futures::future::join_all;
use shared::provider::Provider;
use testbed::{
    links::{Proxy, Trouble},
    providers::{Answer, Apns, ApnsConfig, Authority, Fcm, FcmConfig, Rule},
};

use crate::rig::{
    Choices, Rig, ambiguous, assert_all_accepted, https_localhost, is_accepted, localhost, now, retry_later,
};

/// How long a faster endpoint must have been healthy before it is chosen: `patience_ms` of [`quick_settings`].
const PATIENCE: Duration = Duration::from_millis(500);

/// Settings with which a test need not wait for minutes.
fn quick_settings() -> EndpointSettings {
    EndpointSettings {
        probe_ms: 100,
        patience_ms: 500,
        idle_ms: 300,
    }
}

/// Two endpoints that lead to one simulator; the slow one stands first in the settings.
struct TwoEndpoints {
    rig: Rig,
    simulator: Apns,
    near: Proxy,
    far: Proxy,
}

async fn two_endpoints_of_apns(choices: Choices) -> TwoEndpoints {
    let authority = Authority::generate().unwrap();
    let config = ApnsConfig {
        authority: Some(authority.clone()),
        ..ApnsConfig::default()
    };
    let simulator = Apns::start(config).await.unwrap();
    let (near, far) = near_and_far_proxies(simulator.addr());
    let choices = Choices {
        apns: vec![localhost(far.address().port()), localhost(near.address().port())],
        endpoints: quick_settings(),
        ..choices
    };
    let rig = Rig::new(authority, choices);
    rig.configure_apns(simulator.key());
    tokio::spawn(rig.providers.watch());
    TwoEndpoints {
        rig,
        simulator,
        near,
        far,
    }
}

fn near_and_far_proxies(target: SocketAddr) -> (Proxy, Proxy) {
    let (near, far) = (Proxy::start(target, 1).unwrap(), Proxy::start(target, 2).unwrap());
    far.set(&Trouble::Delay { ms: 100, jitter_ms: 0 }).unwrap();
    (near, far)
}

impl Rig {
    /// Pushes until the near endpoint has answered and the far one is kept as the spare.
    async fn push_until_measured(&self, provider: Provider, near: &Proxy, far: &Proxy) {
        let (near, far) = (near.address().port(), far.address().port());
        self.push_until(provider, || {
            self.endpoint_on(near).answer_ms.is_some() && self.endpoint_on(far).spare
        })
        .await;
    }

    /// The state of the endpoint on `port` of this machine, of APNs' production environment or of FCM.
    fn endpoint_on(&self, port: u16) -> EndpointState {
        let states = self.providers.endpoint_states().into_iter();
        let mut states = states.filter(|state| state.environment != Some("sandbox"));
        // `localhost` may have an IPv6 address too, on which nothing listens.
        let is =
            |state: &EndpointState| *state.endpoint == *localhost(port) && state.address.is_none_or(|it| it.is_ipv4());
        states.find(is).unwrap()
    }

    /// Pushes until `done`; every push is accepted.
    async fn push_until(&self, provider: Provider, done: impl Fn() -> bool) {
        for n in 0..3000 {
            let attempted = self.alert(provider, &format!("{n:08x}"), "event").await;
            assert!(is_accepted(&attempted), "{attempted:?}");
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "the endpoints do not get there: {:#?}",
            self.providers.endpoint_states()
        );
    }
}

#[tokio::test]
async fn the_fastest_endpoint_is_chosen_and_another_kept_in_reserve() {
    let TwoEndpoints {
        rig,
        simulator,
        near,
        far,
    } = two_endpoints_of_apns(Choices::default()).await;
    assert_eq!(rig.endpoint_on(near.address().port()).why, "not resolved");
    rig.push_until(Provider::Apns, || {
        rig.endpoint_on(near.address().port()).chosen && rig.endpoint_on(far.address().port()).spare
    })
    .await;
    rig.push_until(Provider::Apns, || {
        rig.endpoint_on(near.address().port()).answer_ms.is_some()
    })
    .await;
    let (near, far) = (
        rig.endpoint_on(near.address().port()),
        rig.endpoint_on(far.address().port()),
    );
    assert_eq!(near.chosen_for, Some(Why::Fastest));
    assert!(near.healthy && far.healthy && !far.chosen && !near.spare);
    assert!(near.connect_ms < far.connect_ms && near.round_trip_ms < far.round_trip_ms);
    assert!(far.round_trip_ms.unwrap() >= 200.0);
    assert!(near.connections >= 1 && far.connections >= 1);
    assert!(near.last_used.is_some() && near.since.is_some() && near.errors == 0.0);
    assert_eq!(simulator.stats().refused_streams, 0);
    let shown = serde_json::to_value(&near).unwrap();
    assert_eq!(
        (&shown["provider"], &shown["environment"]),
        (&"apns".into(), &"production".into())
    );
}

#[tokio::test]
async fn the_fastest_fcm_endpoint_is_chosen() {
    let authority = Authority::generate().unwrap();
    let config = FcmConfig {
        authority: Some(authority.clone()),
        ..FcmConfig::default()
    };
    let fcm = Fcm::start(config).await.unwrap();
    let (near, far) = near_and_far_proxies(fcm.addr());
    let choices = Choices {
        fcm: vec![
            https_localhost(far.address().port()),
            https_localhost(near.address().port()),
        ],
        endpoints: quick_settings(),
        ..Choices::default()
    };
    let rig = Rig::new(authority, choices);
    rig.configure_fcm("peal-test", fcm.service_account_json()).unwrap();
    tokio::spawn(rig.providers.watch());
    rig.push_until_measured(Provider::Fcm, &near, &far).await;
    assert!(rig.endpoint_on(near.address().port()).chosen);
}

#[tokio::test]
async fn a_dead_endpoint_is_abandoned_at_once_and_chosen_again_only_after_some_time() {
    let TwoEndpoints {
        rig,
        simulator,
        near,
        far,
    } = two_endpoints_of_apns(Choices::default()).await;
    rig.push_until_measured(Provider::Apns, &near, &far).await;

    // As in the pipeline, an attempt that was not accepted is retried.
    simulator.log().clear();
    let push = async |device: usize| {
        loop {
            match rig.push_apns(&format!("{device:08x}")).await.outcome {
                Outcome::Accepted { .. } => return,
                // It was in flight when the connection broke.
                Outcome::Ambiguous { reason } => assert_eq!(reason, "connection_lost"),
                other => panic!("{other:?}"),
            }
        }
    };
    let pushes = async {
        for round in 0..20 {
            join_all((0..20).map(|n| push(round * 20 + n))).await;
        }
    };
    let death = async {
        while simulator.stats().delivered < 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        near.set(&Trouble::Cut).unwrap();
    };
    tokio::join!(pushes, death);
    for device in 0..400 {
        let device = format!("{device:08x}");
        assert!(
            !simulator.log().delivered_to(&device).is_empty(),
            "{device} received nothing"
        );
    }
    let (dead, other) = (
        rig.endpoint_on(near.address().port()),
        rig.endpoint_on(far.address().port()),
    );
    assert_eq!((dead.healthy, dead.chosen), (false, false));
    assert_eq!((other.chosen, other.chosen_for), (true, Some(Why::Failover)));
    assert!(
        other
            .why
            .contains(&format!("{} ({}) failed", dead.endpoint, dead.address.unwrap())),
        "{}",
        other.why
    );

    near.set(&Trouble::None).unwrap();
    let last_unhealthy = std::cell::Cell::new(now());
    rig.push_until(Provider::Apns, || {
        let state = rig.endpoint_on(near.address().port());
        if !state.healthy {
            last_unhealthy.set(now());
        }
        state.chosen
    })
    .await;
    let back = rig.endpoint_on(near.address().port());
    assert_eq!(back.chosen_for, Some(Why::Faster));
    let waited = back.since.unwrap().duration_since(last_unhealthy.get());
    assert!(
        waited >= PATIENCE.try_into().unwrap(),
        "chosen {waited} after it was last unhealthy"
    );
    for _ in 0..3000 {
        if *rig.push_apns("beef").await.endpoint == *back.endpoint {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("pushes do not return to the faster endpoint");
}

#[tokio::test]
async fn a_silent_endpoint_is_abandoned() {
    let short = Choices {
        timeout: Duration::from_secs(2),
        ..Choices::default()
    };
    let TwoEndpoints {
        rig,
        simulator: _simulator,
        near,
        far,
    } = two_endpoints_of_apns(short).await;
    rig.push_until_measured(Provider::Apns, &near, &far).await;
    let an_hour = Trouble::Delay {
        ms: 3_600_000,
        jitter_ms: 0,
    };
    near.set(&an_hour).unwrap();
    assert_eq!(rig.push_apns("beef").await.outcome, ambiguous("timeout"));
    let attempted = rig.push_apns("beef").await;
    assert_eq!(
        (is_accepted(&attempted), &*attempted.endpoint),
        (true, &*localhost(far.address().port())),
        "{attempted:?}"
    );
    assert_eq!(rig.endpoint_on(near.address().port()).why, "silent");
}

#[tokio::test]
async fn an_endpoint_that_answers_with_errors_is_abandoned_before_the_breaker_opens() {
    let authority = Authority::generate().unwrap();
    let config = ApnsConfig {
        authority: Some(authority.clone()),
        ..ApnsConfig::default()
    };
    let bad = Apns::start(config.clone()).await.unwrap();
    let keys = vec![bad.key().clone().into()];
    let good = Apns::start(ApnsConfig { keys, ..config }).await.unwrap();
    bad.script()
        .add(Rule::always().answer(Answer::reason("ServiceUnavailable")))
        .unwrap();
    let choices = Choices {
        apns: vec![localhost(bad.addr().port()), localhost(good.addr().port())],
        ..Choices::default()
    };
    let rig = Rig::new(authority, choices);
    rig.configure_apns(bad.key());
    let mut failures = 0;
    loop {
        let attempted = rig.push_apns("beef").await;
        if is_accepted(&attempted) {
            assert_eq!(*attempted.endpoint, *localhost(good.addr().port()));
            break;
        }
        assert_eq!(attempted.outcome, retry_later("ServiceUnavailable", None));
        failures += 1;
        assert!(failures < 10, "the breaker would open");
        // Meanwhile the connection to the failing endpoint is replaced.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let state = rig.endpoint_on(bad.addr().port());
    assert_eq!((state.healthy, &*state.why), (false, "errors"));
    assert!(state.errors > 0.5);
}

#[tokio::test]
async fn connections_are_opened_as_streams_are_needed_and_closed_when_idle() {
    let narrow = ApnsConfig {
        streams: 100,
        ..ApnsConfig::default()
    };
    let choices = Choices {
        endpoints: quick_settings(),
        ..Choices::default()
    };
    let (rig, apns) = Rig::with_apns(narrow, choices).await;
    // The first answers carry the limit of streams.
    for _ in 0..4 {
        assert!(is_accepted(&rig.push_apns("beef").await));
    }
    apns.script()
        .add(Rule::always().delay(Duration::from_millis(100)))
        .unwrap();
    assert_all_accepted(&rig.push_many_apns(90).await);
    assert_eq!(
        apns.stats().connections,
        1,
        "nine tenths of the streams fit on one connection"
    );
    assert_all_accepted(&rig.push_many_apns(91).await);
    assert_eq!(apns.stats().connections, 2);
    assert_all_accepted(&rig.push_many_apns(2000).await);
    let stats = apns.stats();
    assert_eq!(
        (stats.connections, stats.refused_streams),
        (4, 0),
        "no more connections than the settings allow"
    );

    apns.script().clear();
    rig.push_until(Provider::Apns, || apns.stats().open_connections == 1)
        .await;
    assert_eq!(
        apns.stats().connections,
        4,
        "the last connection stays open while it is used"
    );
    for _ in 0..3000 {
        if apns.stats().open_connections == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("an unused connection stays open");
}
