//! Connections to APNs: how they are shared, lost and replaced.

use std::time::Duration;

use testbed::providers::{Answer, Apns, ApnsConfig, Authority, Rule};

use crate::rig::{Choices, Rig, accepted, all_accepted, ambiguous, dead_port, endpoint, local};

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
