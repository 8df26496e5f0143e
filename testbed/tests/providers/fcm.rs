//! What Google is sent, its access tokens, and what its answers come to.

use std::{sync::atomic::Ordering, time::Duration};

use edge_worker::providers::Outcome;
use jiff::Timestamp;
use shared::{channel::Provider, push::Push};
use testbed::providers::{Answer, Authority, Fcm, FcmConfig, RetryAfter, Rule, script::ResetCode};

use crate::rig::{
    Choices, NowForTests, Rig, accepted, all_accepted, ambiguous, credential, dead_port, endpoint, https, later, local,
    rejected, set_clock,
};

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
