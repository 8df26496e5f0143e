//! APNs: requests, and the outcome of each answer.

use std::collections::BTreeSet;

use edge_worker::providers::Outcome;
use jiff::Timestamp;
use shared::{
    content::push::Push,
    provider::{
        Provider,
        apns::{Override, PushType},
    },
};
use testbed::providers::{Answer, ApnsConfig, RetryAfter, Rule, apns::JwtMode, script::ResetCode};

use crate::rig::{
    Choices, Rig, address, credential_trouble, endpoint_trouble, is_accepted, job, localhost, now, rejected,
    retry_later,
};

#[tokio::test]
async fn apns_accepts_every_push_type() {
    let strict = ApnsConfig {
        jwt: JwtMode::Strict,
        ..ApnsConfig::default()
    };
    let (rig, apns) = Rig::with_apns(strict, Choices::default()).await;
    for kind in PushType::ALL {
        let priority = (*kind == PushType::Background).then_some(5);
        let over = Override {
            push_type: Some(*kind),
            priority,
            ..Override::default()
        };
        let push = Push {
            title: Some("ding".into()),
            apns: Some(over),
            ttl: Some(60),
            ..Push::default()
        };
        let now = now();
        let attempted = rig.push(Provider::Apns, "beef", kind.as_str(), push.clone(), now).await;
        assert!(is_accepted(&attempted), "{kind}: {attempted:?}");
        assert_eq!(
            (attempted.status, &*attempted.endpoint),
            (Some(200), &*localhost(apns.addr().port()))
        );
        let received = apns.log().delivered().pop().unwrap();
        let job = job(&rig.app, kind.as_str(), push, now);
        let delivery = job.delivery(address(&rig.app, Provider::Apns, "beef").id);
        assert_eq!(received.push_type.as_deref(), Some(kind.as_str()));
        assert_eq!(received.id, delivery.to_string());
        assert_eq!(received.collapse_id, Some(job.id.to_string()));
        assert_eq!(received.expiration, Some(job.expires_at().as_second().to_string()));
        let payload = match kind {
            PushType::Background => r#"{"aps":{"content-available":1}}"#,
            _ => r#"{"aps":{"alert":{"title":"ding"}}}"#,
        };
        assert_eq!(received.payload, payload);
    }
    assert_eq!(apns.stats().connections, 1);
}

#[tokio::test]
async fn apns_gets_the_same_id_at_every_attempt() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    let first = rig.push_apns("beef").await;
    let second = rig.push_apns("beef").await;
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
async fn apns_reports_since_when_a_device_is_gone() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    for reason in ["Unregistered", "ExpiredToken"] {
        let gone = Answer::reason(reason).timestamp_ms(1_700_000_000_123);
        apns.script().add(Rule::token("dead").times(1).answer(gone)).unwrap();
        let attempted = rig.push_apns("dead").await;
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
async fn apns_refusals_are_distinguished() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    let seconds = |answer: Answer, seconds| answer.retry_after(RetryAfter::Seconds(seconds));
    for (answer, outcome) in [
        (Answer::reason("BadDeviceToken"), rejected("BadDeviceToken")),
        (Answer::reason("PayloadTooLarge"), rejected("PayloadTooLarge")),
        (Answer::reason("Brandnew").status(400), rejected("Brandnew")),
        (
            Answer::reason("TooManyRequests"),
            retry_later("TooManyRequests", Some(30)),
        ),
        (
            Answer::reason("InternalServerError"),
            retry_later("InternalServerError", None),
        ),
        (
            seconds(Answer::reason("ServiceUnavailable"), 7),
            retry_later("ServiceUnavailable", Some(7)),
        ),
        (
            Answer::reason("ServiceUnavailable").delivered(true),
            retry_later("ServiceUnavailable", None),
        ),
        (
            Answer::reason("InvalidProviderToken"),
            credential_trouble("InvalidProviderToken"),
        ),
        (
            Answer::reason("BadDeviceToken").body("<html>"),
            endpoint_trouble("not_apns"),
        ),
        (
            Answer::reason("BadDeviceToken").body(&"x".repeat(17 * 1024)),
            retry_later("answer_incomplete", None),
        ),
    ] {
        apns.script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(rig.push_apns("beef").await.outcome, outcome, "{answer:?}");
        apns.script().clear();
    }
    let date = Answer::reason("ServiceUnavailable").retry_after(RetryAfter::DateIn(60));
    apns.script().add(Rule::always().answer(date)).unwrap();
    let attempted = rig.push_apns("beef").await;
    let Outcome::RetryLater {
        not_before: Some(wait), ..
    } = attempted.outcome
    else {
        panic!("{attempted:?}")
    };
    assert!((58..=61).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test]
async fn a_refused_stream_is_retried_at_once_and_not_forever() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    let refused = Answer::reset(ResetCode::RefusedStream);
    apns.script()
        .add(Rule::token("aa").times(2).answer(refused.clone()))
        .unwrap();
    apns.script().add(Rule::token("bb").answer(refused)).unwrap();
    assert!(is_accepted(&rig.push_apns("aa").await));
    assert_eq!(rig.push_apns("bb").await.outcome, retry_later("refused_stream", None));
    assert_eq!(apns.log().requests_for("bb").len(), 3);
    assert_eq!(apns.log().delivered_to("aa").len(), 1);
}
