//! Which endpoint the providers use, how many connections they open, and when they close them.

use std::net::SocketAddr;

use edge_worker::providers::{EndpointSettings, EndpointState, Why};
use testbed::links::{Proxy, Trouble};

use super::*;

const PATIENCE: Duration = Duration::from_millis(500);

/// So that a test need not wait for minutes.
fn quick() -> EndpointSettings {
    EndpointSettings {
        probe_ms: 100,
        patience_ms: 500,
        idle_ms: 300,
    }
}

/// Two ways to one simulator, the slow one first in the settings.
struct Setting {
    rig: Rig,
    simulator: Apns,
    near: Proxy,
    far: Proxy,
}

async fn two_ways_to_apns(choices: Choices) -> Setting {
    let authority = Authority::generate().unwrap();
    let config = ApnsConfig {
        authority: Some(authority.clone()),
        ..ApnsConfig::default()
    };
    let simulator = Apns::start(config).await.unwrap();
    let (near, far) = proxies(simulator.addr());
    let choices = Choices {
        apns: vec![local(far.address().port()), local(near.address().port())],
        endpoints: quick(),
        ..choices
    };
    let rig = Rig::new(authority, choices);
    rig.configure_apns(simulator.key());
    tokio::spawn(rig.providers.watch());
    Setting {
        rig,
        simulator,
        near,
        far,
    }
}

fn proxies(target: SocketAddr) -> (Proxy, Proxy) {
    let (near, far) = (Proxy::start(target, 1).unwrap(), Proxy::start(target, 2).unwrap());
    far.set(&Trouble::Delay { ms: 100, jitter_ms: 0 }).unwrap();
    (near, far)
}

impl Rig {
    /// Pushes until the near way has answered and the far one is kept as the spare.
    async fn push_until_measured(&self, provider: Provider, near: &Proxy, far: &Proxy) {
        let (near, far) = (near.address().port(), far.address().port());
        self.push_until(provider, || {
            self.endpoint(near).answer_ms.is_some() && self.endpoint(far).spare
        })
        .await;
    }

    /// The state of the endpoint on `port` of this machine that APNs' production, or FCM, may use.
    fn endpoint(&self, port: u16) -> EndpointState {
        let states = self.providers.endpoint_states().into_iter();
        let mut states = states.filter(|state| state.environment != Some("sandbox"));
        // The name may have an address of IPv6 too, on which nobody listens.
        let is = |state: &EndpointState| *state.endpoint == *local(port) && state.address.is_none_or(|it| it.is_ipv4());
        states.find(is).unwrap()
    }

    /// Pushes until `done`; every push is accepted.
    async fn push_until(&self, provider: Provider, done: impl Fn() -> bool) {
        for n in 0..3000 {
            let attempted = self.alert(provider, &format!("{n:08x}"), "event").await;
            assert!(accepted(&attempted), "{attempted:?}");
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not come: {:#?}", self.providers.endpoint_states());
    }
}

#[tokio::test]
async fn the_fastest_endpoint_is_chosen_and_another_kept_in_reserve() {
    let Setting {
        rig,
        simulator,
        near,
        far,
    } = two_ways_to_apns(Choices::default()).await;
    assert_eq!(rig.endpoint(near.address().port()).why, "not resolved");
    rig.push_until(Provider::Apns, || {
        rig.endpoint(near.address().port()).chosen && rig.endpoint(far.address().port()).spare
    })
    .await;
    rig.push_until(Provider::Apns, || {
        rig.endpoint(near.address().port()).answer_ms.is_some()
    })
    .await;
    let (near, far) = (rig.endpoint(near.address().port()), rig.endpoint(far.address().port()));
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
    let (near, far) = proxies(fcm.addr());
    let choices = Choices {
        fcm: vec![https(far.address().port()), https(near.address().port())],
        endpoints: quick(),
        ..Choices::default()
    };
    let rig = Rig::new(authority, choices);
    rig.configure_fcm("peal-test", fcm.service_account_json()).unwrap();
    tokio::spawn(rig.providers.watch());
    rig.push_until_measured(Provider::Fcm, &near, &far).await;
    assert!(rig.endpoint(near.address().port()).chosen);
}

#[tokio::test]
async fn a_dead_endpoint_is_left_at_once_and_trusted_again_only_after_a_while() {
    let Setting {
        rig,
        simulator,
        near,
        far,
    } = two_ways_to_apns(Choices::default()).await;
    rig.push_until_measured(Provider::Apns, &near, &far).await;

    // As the pipeline does, whatever is not accepted is tried again.
    simulator.log().clear();
    let push = async |device: usize| {
        loop {
            match rig.apple(&format!("{device:08x}")).await.outcome {
                Outcome::Accepted { .. } => return,
                // It was on its way when the connection broke.
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
            "{device} got nothing"
        );
    }
    let (dead, other) = (rig.endpoint(near.address().port()), rig.endpoint(far.address().port()));
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
    let last_ill = std::cell::Cell::new(Timestamp::now_for_tests());
    rig.push_until(Provider::Apns, || {
        let state = rig.endpoint(near.address().port());
        if !state.healthy {
            last_ill.set(Timestamp::now_for_tests());
        }
        state.chosen
    })
    .await;
    let back = rig.endpoint(near.address().port());
    assert_eq!(back.chosen_for, Some(Why::Faster));
    let waited = back.since.unwrap().duration_since(last_ill.get());
    assert!(
        waited >= PATIENCE.try_into().unwrap(),
        "{waited} after it was ill it was chosen"
    );
    for _ in 0..3000 {
        if *rig.apple("beef").await.endpoint == *back.endpoint {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("connections stay where they were");
}

#[tokio::test]
async fn a_silent_endpoint_is_left() {
    let short = Choices {
        timeout: Duration::from_secs(2),
        ..Choices::default()
    };
    let Setting {
        rig,
        simulator: _simulator,
        near,
        far,
    } = two_ways_to_apns(short).await;
    rig.push_until_measured(Provider::Apns, &near, &far).await;
    let for_ever = Trouble::Delay {
        ms: 3_600_000,
        jitter_ms: 0,
    };
    near.set(&for_ever).unwrap();
    assert_eq!(rig.apple("beef").await.outcome, ambiguous("timeout"));
    let attempted = rig.apple("beef").await;
    assert_eq!(
        (accepted(&attempted), &*attempted.endpoint),
        (true, &*local(far.address().port())),
        "{attempted:?}"
    );
    assert_eq!(rig.endpoint(near.address().port()).why, "silent");
}

#[tokio::test]
async fn an_endpoint_that_answers_with_errors_is_left_before_the_breaker_opens() {
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
        apns: vec![local(bad.addr().port()), local(good.addr().port())],
        ..Choices::default()
    };
    let rig = Rig::new(authority, choices);
    rig.configure_apns(bad.key());
    let mut failures = 0;
    loop {
        let attempted = rig.apple("beef").await;
        if accepted(&attempted) {
            assert_eq!(*attempted.endpoint, *local(good.addr().port()));
            break;
        }
        assert_eq!(attempted.outcome, later("ServiceUnavailable", None));
        failures += 1;
        assert!(failures < 10, "the breaker would open");
        // The connection that leads there is replaced meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let state = rig.endpoint(bad.addr().port());
    assert_eq!((state.healthy, &*state.why), (false, "errors"));
    assert!(state.errors > 0.5);
}

#[tokio::test]
async fn connections_are_opened_as_streams_are_needed_and_closed_when_they_are_not() {
    let narrow = ApnsConfig {
        streams: 100,
        ..ApnsConfig::default()
    };
    let choices = Choices {
        endpoints: quick(),
        ..Choices::default()
    };
    let (rig, apns) = Rig::apns(narrow, choices).await;
    // The first answers tell how many streams there may be.
    for _ in 0..4 {
        assert!(accepted(&rig.apple("beef").await));
    }
    apns.script()
        .add(Rule::always().delay(Duration::from_millis(100)))
        .unwrap();
    all_accepted(&rig.apple_many(90).await);
    assert_eq!(apns.stats().connections, 1, "nine tenths of the streams");
    all_accepted(&rig.apple_many(91).await);
    assert_eq!(apns.stats().connections, 2);
    all_accepted(&rig.apple_many(2000).await);
    let stats = apns.stats();
    assert_eq!(
        (stats.connections, stats.refused_streams),
        (4, 0),
        "as many as the settings allow"
    );

    apns.script().clear();
    rig.push_until(Provider::Apns, || apns.stats().open_connections == 1)
        .await;
    assert_eq!(apns.stats().connections, 4, "the last stays open as long as it is used");
    for _ in 0..3000 {
        if apns.stats().open_connections == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("an unused connection stays open");
}
