//! FCM: requests, access tokens, and the outcome of each answer.

use std::{sync::atomic::Ordering, time::Duration};

use edge_worker::providers::Outcome;
use shared::{content::push::Push, provider::Provider};
use testbed::providers::{Answer, Authority, Fcm, FcmConfig, RetryAfter, Rule, script::ResetCode};

use crate::rig::{
    Choices, Rig, ambiguous, assert_all_accepted, credential_trouble, endpoint_trouble, https_localhost, is_accepted,
    localhost, now, rejected, retry_later, settable_clock, unused_port,
};

#[tokio::test]
async fn fcm_accepts_a_push_and_returns_its_name() {
    let (rig, fcm) = Rig::with_fcm(FcmConfig::default(), Choices::default()).await;
    let attempted = rig.push_fcm("device").await;
    let Outcome::Accepted {
        provider_id: Some(name),
    } = &attempted.outcome
    else {
        panic!("{attempted:?}")
    };
    assert!(name.starts_with("projects/peal-test/messages/"), "{name}");
    assert_eq!(
        (attempted.status, &*attempted.endpoint),
        (Some(200), &*localhost(fcm.addr().port()))
    );
    assert_eq!(
        fcm.log().delivered_to("device")[0].expiration.as_deref(),
        Some("2419200s")
    );
}

#[tokio::test]
async fn a_late_attempt_gets_only_the_remaining_time_to_live() {
    let (rig, fcm) = Rig::with_fcm(FcmConfig::default(), Choices::default()).await;
    let push = Push {
        title: Some("ding".into()),
        ttl: Some(600),
        ..Push::default()
    };
    let accepted_at = now() - Duration::from_secs(500);
    assert!(is_accepted(
        &rig.push(Provider::Fcm, "device", "event", push, accepted_at).await
    ));
    let life = fcm.log().delivered_to("device")[0].expiration.clone().unwrap();
    let seconds: u64 = life.strip_suffix('s').unwrap().parse().unwrap();
    assert!((90..=100).contains(&seconds), "{life}");
}

#[tokio::test]
async fn one_access_token_serves_all_waiting_pushes() {
    let (rig, fcm) = Rig::with_fcm(FcmConfig::default(), Choices::default()).await;
    assert_all_accepted(&rig.push_many_fcm(500).await);
    let stats = fcm.stats();
    assert_eq!((stats.delivered, stats.duplicates, stats.access_tokens), (500, 0, 1));
    assert!(
        stats.connections <= 5,
        "{} connections; four may carry pushes, one fetches the token",
        stats.connections
    );
    assert_eq!(stats.refused_streams, 0);
}

#[tokio::test]
async fn an_access_token_is_renewed_before_it_expires() {
    let (clock, seconds) = settable_clock(now());
    let (rig, fcm) = Rig::with_fcm(
        FcmConfig::default(),
        Choices {
            clock,
            ..Choices::default()
        },
    )
    .await;
    assert!(is_accepted(&rig.push_fcm("device").await));
    seconds.fetch_add(3599 - 121, Ordering::Relaxed);
    assert!(is_accepted(&rig.push_fcm("device").await));
    assert_eq!(fcm.stats().access_tokens, 1);
    seconds.fetch_sub(3599 - 121, Ordering::Relaxed);
    // Tokens are renewed two minutes before they expire, so one that lives for 100 seconds is never reused.
    let short = FcmConfig {
        token_life: Duration::from_secs(100),
        ..FcmConfig::default()
    };
    let (rig, fcm) = Rig::with_fcm(short, Choices::default()).await;
    assert!(is_accepted(&rig.push_fcm("device").await));
    assert!(is_accepted(&rig.push_fcm("device").await));
    assert_eq!(fcm.stats().access_tokens, 2);
}

#[tokio::test]
async fn a_refused_access_token_is_replaced_once() {
    let (rig, fcm) = Rig::with_fcm(FcmConfig::default(), Choices::default()).await;
    assert_all_accepted(&rig.push_many_fcm(20).await);
    fcm.revoke_access_tokens();
    assert_all_accepted(&rig.push_many_fcm(20).await);
    assert_eq!(fcm.stats().access_tokens, 2);
    fcm.script()
        .add(Rule::always().answer(Answer::reason("UNAUTHENTICATED")))
        .unwrap();
    for attempted in rig.push_many_fcm(20).await {
        assert_eq!(attempted.outcome, credential_trouble("UNAUTHENTICATED"));
    }
    assert_eq!(
        fcm.stats().access_tokens,
        2,
        "a refused token is replaced at most once a minute"
    );
}

#[tokio::test]
async fn fcm_refusals_are_distinguished() {
    let (rig, fcm) = Rig::with_fcm(FcmConfig::default(), Choices::default()).await;
    let gone = |reason: &'static str| Outcome::AddressGone {
        reason: reason.into(),
        since: None,
    };
    let asks = |answer: Answer, seconds| answer.retry_after(RetryAfter::Seconds(seconds));
    for (answer, outcome) in [
        (Answer::reason("INVALID_ARGUMENT"), rejected("INVALID_ARGUMENT")),
        (Answer::reason("UNREGISTERED"), gone("UNREGISTERED")),
        (Answer::reason("SENDER_ID_MISMATCH"), gone("SENDER_ID_MISMATCH")),
        (
            Answer::reason("QUOTA_EXCEEDED"),
            retry_later("QUOTA_EXCEEDED", Some(60)),
        ),
        (
            asks(Answer::reason("QUOTA_EXCEEDED"), 8),
            retry_later("QUOTA_EXCEEDED", Some(8)),
        ),
        (Answer::reason("INTERNAL"), retry_later("INTERNAL", Some(10))),
        (
            asks(Answer::reason("UNAVAILABLE"), 30),
            retry_later("UNAVAILABLE", Some(30)),
        ),
        (
            Answer::reason("THIRD_PARTY_AUTH_ERROR"),
            credential_trouble("THIRD_PARTY_AUTH_ERROR"),
        ),
        (
            Answer::reason("PERMISSION_DENIED"),
            credential_trouble("PERMISSION_DENIED"),
        ),
        (Answer::reason("BRAND_NEW").status(400), rejected("BRAND_NEW")),
    ] {
        fcm.script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(rig.push_fcm("device").await.outcome, outcome, "{answer:?}");
        fcm.script().clear();
    }
}

#[tokio::test]
async fn an_unknown_service_account_is_credential_trouble() {
    let (rig, fcm) = Rig::with_fcm(FcmConfig::default(), Choices::default()).await;
    let stranger = testbed::providers::ServiceAccount::generate("peal-test").unwrap();
    rig.configure_fcm("peal-test", stranger.to_json(&fcm.token_uri()))
        .unwrap();
    for attempted in rig.push_many_fcm(20).await {
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
async fn silence_of_fcm_is_ambiguous_and_its_absence_is_endpoint_trouble() {
    let short = Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    };
    let (rig, fcm) = Rig::with_fcm(FcmConfig::default(), short).await;
    assert!(is_accepted(&rig.push_fcm("device").await));
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
    assert_eq!(rig.push_fcm("hole").await.outcome, ambiguous("timeout"));
    assert_eq!(rig.push_fcm("close").await.outcome, ambiguous("connection_lost"));
    assert!(
        is_accepted(&rig.push_fcm("refused").await),
        "a refused stream is retried"
    );
    let port = fcm.addr().port();
    fcm.stop().await;
    // A push sent before the close arrives here would be ambiguous.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let attempted = rig.push_fcm("device").await;
    assert_eq!(
        (attempted.outcome, &*attempted.endpoint),
        (endpoint_trouble("connect"), &*localhost(port))
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
    let endpoints = vec![https_localhost(unused_port()), https_localhost(fcm.addr().port())];
    let rig = Rig::new(
        authority,
        Choices {
            fcm: endpoints,
            ..Choices::default()
        },
    );
    rig.configure_fcm("peal-test", fcm.service_account_json()).unwrap();
    assert_all_accepted(&rig.push_many_fcm(50).await);
}
