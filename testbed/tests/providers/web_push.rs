//! Web push: what the browser decrypts, tokens, and the outcome of each answer.

use std::{sync::atomic::Ordering, time::Duration};

use edge_worker::providers::{Attempted, Outcome, ReceiverSettings};
use serde_json::{Value, json};
use shared::{
    address::{Address, Target},
    content::push::Push,
    id_key::IdKey,
    provider::{Provider, web_push},
};
use testbed::providers::{
    Answer, RetryAfter, Rule, WebPush, WebPushConfig,
    web_push::{Subscription, VapidKey},
};

use crate::rig::{
    Choices, Rig, ambiguous, assert_all_accepted, credential_trouble, endpoint_trouble, is_accepted, localhost, now,
    on_this_machine, rejected, retry_later, settable_clock,
};

async fn start(choices: Choices) -> (Rig, WebPush) {
    Rig::with_web_push(WebPushConfig::default(), choices).await
}

fn push(json: Value) -> Push {
    let push: Push = serde_json::from_value(json).unwrap();
    push.check().unwrap();
    push
}

fn address_of(rig: &Rig, subscription: &Subscription) -> Address {
    let (p256dh, auth) = (subscription.p256dh.parse().unwrap(), subscription.auth.parse().unwrap());
    let target = Target::WebPush(web_push::Target::new(&subscription.endpoint, p256dh, auth).unwrap());
    Address::new(&IdKey::unkeyed(), &rig.app, target, now())
}

/// The last part of the endpoint, by which the push service knows the subscription.
fn token(subscription: &Subscription) -> &str {
    subscription.endpoint.rsplit('/').next().unwrap()
}

/// Alerts the browser of RFC 8291 at the subscription `token`.
async fn alert(rig: &Rig, service: &WebPush, token: &str) -> Attempted {
    rig.alert(Provider::WebPush, &service.endpoint(token), "event").await
}

#[tokio::test]
async fn the_browser_decrypts_what_was_pushed() {
    let (rig, service) = start(Choices::default()).await;
    let subscription = service.subscribe().unwrap();
    let push = push(json!({
        "title": "Hello", "body": "x".repeat(3000), "url": "https://example.com/orders/42", "badge": 2,
        "data": { "order": "42" }, "ttl": 600, "collapse_key": "order 42", "web_push": { "urgency": "low" },
    }));
    let attempted = rig
        .push_to(
            &address_of(&rig, &subscription),
            "event",
            push,
            now() - Duration::from_secs(500),
        )
        .await;
    let Outcome::Accepted {
        provider_id: Some(id), ..
    } = &attempted.outcome
    else {
        panic!("{attempted:?}")
    };
    let [taken] = &service.log().delivered_to(token(&subscription))[..] else {
        panic!("{:?}", service.log().pushes())
    };
    assert_eq!((&taken.id, attempted.status), (id, Some(201)));
    assert_eq!(&*attempted.endpoint, &*localhost(service.addr().port()));
    assert_eq!(
        serde_json::from_slice::<Value>(&taken.payload).unwrap(),
        json!({
            "web_push": 8030,
            "notification": {
                "title": "Hello", "body": "x".repeat(3000), "navigate": "https://example.com/orders/42", "tag": "order 42",
                "data": { "order": "42" },
            },
            "app_badge": 2,
        })
    );
    let life: u64 = taken.expiration.as_deref().unwrap().parse().unwrap();
    assert!((90..=100).contains(&life), "what is left of it: {life}");
    assert_eq!(taken.priority.as_deref(), Some("low"));
    assert_eq!(
        taken.collapse_id.as_deref().map(str::len),
        Some(32),
        "a digest of the key"
    );
    assert_eq!(taken.topic.as_ref(), Some(&service.key().public));
}

#[tokio::test]
async fn the_longest_payload_is_taken_and_a_longer_one_is_not_sent() {
    let (rig, service) = start(Choices::default()).await;
    let subscription = service.subscribe().unwrap();
    let around = json!({ "web_push": 8030, "notification": { "title": "", "tag": "k" } })
        .to_string()
        .len();
    for (length, fits) in [(3993 - around, true), (3994 - around, false)] {
        let push = push(json!({ "title": "x".repeat(length), "collapse_key": "k" }));
        let outcome = rig
            .push_to(&address_of(&rig, &subscription), "event", push, now())
            .await
            .outcome;
        if fits {
            assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
        } else {
            assert_eq!(outcome, rejected("too_large"));
        }
    }
    assert_eq!(service.stats().requests, 1);
}

#[tokio::test]
async fn many_pushes_share_a_connection_and_a_token() {
    let (rig, service) = start(Choices::default()).await;
    assert!(is_accepted(&alert(&rig, &service, "first").await));
    let endpoints: Vec<_> = (0..300).map(|n| service.endpoint(&format!("browser-{n}"))).collect();
    let pushes = endpoints
        .iter()
        .map(|endpoint| rig.alert(Provider::WebPush, endpoint, "event"));
    assert_all_accepted(&futures::future::join_all(pushes).await);
    let stats = service.stats();
    assert_eq!((stats.delivered, stats.duplicates), (301, 0));
    assert!(stats.connections <= 2, "{} connections", stats.connections);
}

#[tokio::test]
async fn refusals_are_distinguished() {
    let (rig, service) = start(Choices::default()).await;
    let gone = |reason: &'static str| Outcome::AddressGone {
        reason: reason.into(),
        since: None,
    };
    let asks = |answer: Answer, seconds| answer.retry_after(RetryAfter::Seconds(seconds));
    for (answer, outcome) in [
        (Answer::reason("NotFound"), gone("not_found")),
        (Answer::reason("Unregistered"), gone("gone")),
        (Answer::reason("BadWebPushTopic"), rejected("bad_request")),
        (Answer::reason("PayloadTooLarge"), rejected("too_large")),
        (Answer::reason("VapidPkHashMismatch"), rejected("vapid_key_mismatch")),
        (Answer::reason("Teapot").status(418), rejected("unexpected_status")),
        (Answer::accept().status(307), rejected("redirected")),
        (Answer::reason("BadJwtToken"), credential_trouble("BadJwtToken")),
        (Answer::reason("Odd").status(401), credential_trouble("unauthorized")),
        (
            asks(Answer::reason("TooManyRequests"), 30),
            retry_later("too_many_requests", Some(30)),
        ),
        (Answer::reason("InternalServerError"), retry_later("server_error", None)),
        (
            asks(Answer::reason("ServiceUnavailable"), 8),
            retry_later("server_error", Some(8)),
        ),
    ] {
        let rule = Rule::always().times(1).answer(answer.clone());
        service.script().add(rule).unwrap();
        assert_eq!(alert(&rig, &service, "browser").await.outcome, outcome, "{answer:?}");
        service.script().clear();
    }
    assert!(is_accepted(&alert(&rig, &service, "browser").await));
}

#[tokio::test]
async fn a_subscription_that_another_key_made_is_refused_alone() {
    let (rig, service) = start(Choices::default()).await;
    service
        .devices()
        .register("former", &VapidKey::generate().unwrap().public);
    service.devices().register("mine", &service.key().public);
    for _ in 0..10 {
        assert_eq!(
            alert(&rig, &service, "former").await.outcome,
            rejected("vapid_key_mismatch")
        );
    }
    assert!(is_accepted(&alert(&rig, &service, "mine").await), "no breaker is open");
}

#[tokio::test]
async fn a_token_is_made_again_when_the_clock_is_right_again() {
    let (clock, seconds) = settable_clock(now());
    let (rig, service) = start(Choices {
        clock,
        ..Choices::default()
    })
    .await;
    seconds.fetch_add(13 * 3600, Ordering::Relaxed);
    assert_eq!(
        alert(&rig, &service, "browser").await.outcome,
        credential_trouble("BadJwtToken"),
        "it would be valid for more than a day"
    );
    seconds.fetch_sub(13 * 3600, Ordering::Relaxed);
    assert!(is_accepted(&alert(&rig, &service, "browser").await));
    seconds.fetch_add(7 * 3600, Ordering::Relaxed);
    assert!(is_accepted(&alert(&rig, &service, "browser").await));
}

#[tokio::test]
async fn a_bad_credential_is_refused_by_field() {
    let (rig, _service) = start(Choices::default()).await;
    for bad in [
        "",
        "secret",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        let error = rig.configure_web_push(bad.to_owned()).unwrap_err();
        assert_eq!(error.field, "private_key");
        assert!(bad.is_empty() || !format!("{error} {error:?}").contains(bad));
    }
}

#[tokio::test]
async fn silence_is_ambiguous_and_absence_is_endpoint_trouble() {
    let short = Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    };
    let (rig, service) = start(short).await;
    assert!(is_accepted(&alert(&rig, &service, "browser").await));
    service
        .script()
        .add(Rule::token("hole").answer(Answer::black_hole()))
        .unwrap();
    service
        .script()
        .add(Rule::token("close").answer(Answer::close()))
        .unwrap();
    assert_eq!(alert(&rig, &service, "hole").await.outcome, ambiguous("timeout"));
    assert_eq!(
        alert(&rig, &service, "close").await.outcome,
        ambiguous("connection_lost")
    );
    service.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let attempted = alert(&rig, &service, "browser").await;
    assert_eq!(attempted.outcome, endpoint_trouble("connect"));
    assert_eq!(&*attempted.endpoint, &*localhost(service.addr().port()));
}

#[tokio::test]
async fn a_stranger_is_believed_for_its_own_address_only() {
    let stranger = Choices {
        services: Vec::new(),
        ..Choices::default()
    };
    let (rig, service) = start(stranger).await;
    let accepted = alert(&rig, &service, "browser").await;
    assert!(is_accepted(&accepted));
    assert_eq!(&*accepted.endpoint, "", "its host may tell whose it is");
    let refuse = Rule::token("evil").answer(Answer::reason("BadJwtToken"));
    service.script().add(refuse).unwrap();
    for _ in 0..10 {
        assert_eq!(alert(&rig, &service, "evil").await.outcome, rejected("BadJwtToken"));
    }
    assert!(is_accepted(&alert(&rig, &service, "browser").await));
    service.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..20 {
        let outcome = alert(&rig, &service, "browser").await.outcome;
        assert_eq!(outcome, retry_later("connect", None), "it counts as an attempt");
    }
}

#[tokio::test]
async fn nothing_is_sent_to_addresses_that_are_not_allowed() {
    for choices in [
        Choices {
            services: Vec::new(),
            others: false,
            ..Choices::default()
        },
        Choices {
            receivers: ReceiverSettings {
                private: Vec::new(),
                ..on_this_machine()
            },
            ..Choices::default()
        },
        Choices {
            services: Vec::new(),
            receivers: ReceiverSettings {
                private: Vec::new(),
                ..on_this_machine()
            },
            ..Choices::default()
        },
    ] {
        let (rig, service) = start(choices).await;
        assert_eq!(
            alert(&rig, &service, "browser").await.outcome,
            rejected("forbidden_address")
        );
        assert_eq!(service.stats().connections, 0);
    }
}

#[tokio::test]
async fn a_push_replaces_one_that_waits_under_the_same_key() {
    let (rig, service) = start(Choices::default()).await;
    let subscription = service.subscribe().unwrap();
    service.go_away(token(&subscription));
    for (title, key) in [("one", Some("score")), ("other", None), ("two", Some("score"))] {
        let push = push(json!({ "title": title, "collapse_key": key }));
        assert!(is_accepted(
            &rig.push_to(&address_of(&rig, &subscription), title, push, now()).await
        ));
    }
    let now_or_never = push(json!({ "title": "missed", "ttl": 0 }));
    rig.push_to(&address_of(&rig, &subscription), "missed", now_or_never, now())
        .await;
    let waited = service.come_back(token(&subscription));
    let titles: Vec<_> = waited
        .iter()
        .map(|payload| serde_json::from_slice::<Value>(payload).unwrap()["notification"]["title"].clone())
        .collect();
    assert_eq!(titles, ["other", "two"]);
}
