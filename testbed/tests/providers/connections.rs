//! Connections to APNs: how they are shared, lost and replaced.

use std::time::Duration;

use testbed::providers::{Answer, Apns, ApnsConfig, Authority, Rule};

use crate::rig::{Choices, Rig, ambiguous, assert_all_accepted, endpoint_trouble, is_accepted, localhost, unused_port};

#[tokio::test]
async fn goaway_neither_loses_nor_duplicates_a_push() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    assert!(is_accepted(&rig.push_apns("beef").await));
    for (round, processed) in [true, false].into_iter().enumerate() {
        apns.log().clear();
        apns.script().clear();
        apns.script()
            .add(Rule::token("00000020").times(1).answer(Answer::goaway(processed)))
            .unwrap();
        apns.script()
            .add(Rule::always().delay(Duration::from_millis(50)))
            .unwrap();
        assert_all_accepted(&rig.push_many_apns(100).await);
        let stats = apns.stats();
        assert_eq!((stats.delivered, stats.duplicates), (100, 0), "round {round}");
    }
    assert!(is_accepted(&rig.push_apns("beef").await));
}

#[tokio::test]
async fn a_graceful_goaway_fails_no_push() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    apns.script()
        .add(Rule::always().delay(Duration::from_millis(20)))
        .unwrap();
    let pushes = rig.push_many_apns(300);
    let leaving = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(15)).await;
            apns.go_away();
        }
    };
    let (attempts, ()) = tokio::join!(pushes, leaving);
    assert_all_accepted(&attempts);
    assert_eq!((apns.stats().delivered, apns.stats().duplicates), (300, 0));
}

#[tokio::test]
async fn a_broken_connection_makes_its_attempts_ambiguous_and_is_replaced() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    assert!(is_accepted(&rig.push_apns("beef").await));
    apns.script().add(Rule::token("aa").answer(Answer::close())).unwrap();
    assert_eq!(rig.push_apns("aa").await.outcome, ambiguous("connection_lost"));
    assert!(is_accepted(&rig.push_apns("beef").await));
    apns.cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(is_accepted(&rig.push_apns("beef").await));
    assert_eq!(apns.stats().connections, 3);
}

#[tokio::test]
async fn silence_is_ambiguous_and_a_silent_connection_is_abandoned() {
    let short = Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    };
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), short).await;
    assert!(is_accepted(&rig.push_apns("beef").await));
    for (n, answer) in [Answer::black_hole(), Answer::freeze()].into_iter().enumerate() {
        apns.script().add(Rule::token("aa").times(1).answer(answer)).unwrap();
        let attempted = rig.push_apns("aa").await;
        assert_eq!(attempted.outcome, ambiguous("timeout"));
        assert_eq!(attempted.status, None);
        assert!(attempted.took >= Duration::from_secs(1));
        assert!(is_accepted(&rig.push_apns("beef").await), "round {n}");
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
    let (rig, apns) = Rig::with_apns(
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
    assert_all_accepted(&rig.push_many_apns(2000).await);
    let stats = apns.stats();
    assert_eq!((stats.delivered, stats.duplicates, stats.refused_streams), (2000, 0, 0));
    assert_eq!(stats.connections, 3);
}

#[tokio::test]
async fn one_connection_is_enough_for_little_traffic() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    for _ in 0..5 {
        assert_all_accepted(&rig.push_many_apns(50).await);
    }
    assert_eq!((apns.stats().connections, apns.stats().refused_streams), (1, 0));
}

#[tokio::test]
async fn a_cancelled_attempt_occupies_no_stream() {
    let one = ApnsConfig {
        streams: 1,
        ..ApnsConfig::default()
    };
    let (rig, apns) = Rig::with_apns(
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
    let slow = rig.push_apns("aa");
    let impatient = tokio::time::timeout(Duration::from_millis(20), rig.push_apns("bb"));
    let patient = rig.push_apns("cc");
    let (slow, impatient, patient) = tokio::join!(slow, impatient, patient);
    assert!(is_accepted(&slow) && impatient.is_err() && is_accepted(&patient));
    assert!(apns.log().requests_for("bb").is_empty());
    assert_all_accepted(&rig.push_many_apns(20).await);
}

#[tokio::test]
async fn apps_of_one_team_share_token_and_connection() {
    let limited = ApnsConfig {
        limit_token_updates: true,
        ..ApnsConfig::default()
    };
    let (mut rig, apns) = Rig::with_apns(limited, Choices::default()).await;
    assert_all_accepted(&rig.push_many_apns(10).await);
    rig.app = "kiosk".parse().unwrap();
    rig.configure_apns(apns.key());
    assert_all_accepted(&rig.push_many_apns(10).await);
    rig.app = "shop".parse().unwrap();
    rig.configure_apns(apns.key());
    assert_all_accepted(&rig.push_many_apns(10).await);
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
    let dead = localhost(unused_port());
    let alive = localhost(apns.addr().port());
    let choices = Choices {
        apns: vec![dead.clone(), alive.clone()],
        ..Choices::default()
    };
    let rig = Rig::new(authority.clone(), choices);
    rig.configure_apns(apns.key());
    let attempts = rig.push_many_apns(50).await;
    assert_all_accepted(&attempts);
    assert!(attempts.iter().all(|attempted| *attempted.endpoint == *alive));

    let rig = Rig::new(
        rig.authority.clone(),
        Choices {
            apns: vec![dead.clone()],
            ..Choices::default()
        },
    );
    rig.configure_apns(apns.key());
    let attempted = rig.push_apns("beef").await;
    assert_eq!(
        (attempted.outcome, &*attempted.endpoint),
        (endpoint_trouble("connect"), &*dead)
    );
}

#[tokio::test]
async fn an_untrusted_server_is_sent_nothing() {
    let (_, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    let endpoints = vec![localhost(apns.addr().port())];
    let rig = Rig::new(
        Authority::generate().unwrap(),
        Choices {
            apns: endpoints,
            ..Choices::default()
        },
    );
    rig.configure_apns(apns.key());
    assert_eq!(rig.push_apns("beef").await.outcome, endpoint_trouble("tls"));
    assert_eq!(apns.log().request_count(), 0);
}

#[tokio::test]
async fn a_restarted_apns_is_used_again() {
    let authority = Authority::generate().unwrap();
    let config = ApnsConfig {
        authority: Some(authority),
        ..ApnsConfig::default()
    };
    let (rig, apns) = Rig::with_apns(config.clone(), Choices::default()).await;
    assert!(is_accepted(&rig.push_apns("beef").await));
    let (addr, key) = (apns.addr(), apns.key().clone());
    apns.stop().await;
    // A push sent before the close arrives here would be ambiguous.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.push_apns("beef").await.outcome, endpoint_trouble("connect"));
    let _again = Apns::start(ApnsConfig {
        listen: addr,
        keys: vec![key.into()],
        ..config
    })
    .await
    .unwrap();
    assert!(is_accepted(&rig.push_apns("beef").await));
}
