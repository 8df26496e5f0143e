//! APNs credentials: provider tokens, revoked keys, and keys that change under traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use edge_worker::providers::{Providers, Settings};
use futures::future::join_all;
use jiff::Timestamp;
use shared::{
    clock::Clock,
    provider::{Credential, Provider, apns},
};
use testbed::providers::{Answer, Apns, ApnsConfig, ApnsKey, Rule, apns::JwtMode};

use crate::rig::{
    Choices, Rig, address, apns_credential, assert_all_accepted, credential_trouble, is_accepted, localhost,
    settable_clock,
};

/// When one of the slots of 25 minutes begins into which workers divide time for provider tokens, in seconds since the
/// epoch.
const SLOT_BEGIN_S: i64 = 1_200_000 * 25 * 60;

fn at_minute(minute: i64) -> Timestamp {
    Timestamp::from_second(SLOT_BEGIN_S + 60 * minute).unwrap()
}

/// A worker and an APNs that refuses tokens which change too often, with the seconds that the worker's and Apple's
/// clock show.
async fn strict_apns(worker: Timestamp, apple: Timestamp) -> (Rig, Apns, Arc<AtomicI64>, Arc<AtomicI64>) {
    let (clock, seconds) = settable_clock(worker);
    let (apple_clock, apple_seconds) = settable_clock(apple);
    let strict = ApnsConfig {
        jwt: JwtMode::Strict,
        limit_token_updates: true,
        clock: apple_clock,
        ..ApnsConfig::default()
    };
    let choices = Choices {
        clock,
        ..Choices::default()
    };
    let (rig, apns) = Rig::with_apns(strict, choices).await;
    (rig, apns, seconds, apple_seconds)
}

#[tokio::test]
async fn independent_workers_use_one_provider_token_at_a_time() {
    let (first, apns, seconds, apple_seconds) = strict_apns(at_minute(10), at_minute(10)).await;
    // Workers of any region, which share nothing but the key; their clocks are wrong by up to four minutes.
    let authority = first.authority.clone();
    let worker = |by_s: i64| {
        let seconds = seconds.clone();
        let clock = Clock::from_fn(move || Timestamp::from_second(seconds.load(Ordering::Relaxed) + by_s).unwrap());
        let choices = Choices {
            apns: vec![localhost(apns.addr().port())],
            clock,
            ..Choices::default()
        };
        let rig = Rig::new(authority.clone(), choices);
        rig.configure_apns(apns.key());
        rig
    };
    let mut workers = [first, worker(0), worker(-240), worker(240)];
    for minute in (10..180).step_by(2) {
        for clock in [&seconds, &apple_seconds] {
            clock.store(at_minute(minute).as_second(), Ordering::Relaxed);
        }
        // One is restarted every time, so that it remembers no token.
        workers[1] = worker(0);
        let pushes = workers.iter().map(|worker| worker.push_apns("beef"));
        assert_all_accepted(&join_all(pushes).await);
    }
    assert_eq!(apns.provider_tokens(), 7, "one token for each slot");
}

#[tokio::test]
async fn workers_of_an_idle_team_that_begin_on_both_sides_of_a_change_lose_no_push() {
    // The token of the slot comes into use at minute 5, and the next one at minute 30.
    for begin in [6, 11, 20, 29] {
        let (first, apns, seconds, apple_seconds) = strict_apns(at_minute(begin), at_minute(begin)).await;
        assert!(is_accepted(&first.push_apns("beef").await));
        let (clock, second_seconds) = settable_clock(at_minute(31));
        let choices = Choices {
            apns: vec![localhost(apns.addr().port())],
            clock,
            ..Choices::default()
        };
        let second = Rig::new(first.authority.clone(), choices);
        second.configure_apns(apns.key());
        for minute in (31..120).step_by(3) {
            for clock in [&seconds, &apple_seconds, &second_seconds] {
                clock.store(at_minute(minute).as_second(), Ordering::Relaxed);
            }
            let pushes = [second.push_apns("beef").await, first.push_apns("cafe").await];
            assert_all_accepted(&pushes);
        }
        let refused = apns.stats().reasons.get("TooManyProviderTokenUpdates").copied();
        assert_eq!(refused, (begin > 11).then_some(1), "begin at {begin}");
    }
}

#[tokio::test]
async fn a_worker_with_a_slow_clock_moves_on_to_the_token_of_the_others() {
    let (slow, apns, ..) = strict_apns(at_minute(20), at_minute(20 + 120)).await;
    assert_eq!(
        slow.push_apns("beef").await.outcome,
        credential_trouble("ExpiredProviderToken"),
        "two hours are more than four slots of 25 minutes"
    );
    assert!(is_accepted(&slow.push_apns("beef").await));
    let (clock, _) = settable_clock(at_minute(20 + 120));
    let choices = Choices {
        apns: vec![localhost(apns.addr().port())],
        clock,
        ..Choices::default()
    };
    let right = Rig::new(slow.authority.clone(), choices);
    right.configure_apns(apns.key());
    assert!(is_accepted(&right.push_apns("beef").await));
    assert!(is_accepted(&slow.push_apns("beef").await));
    assert_eq!(apns.provider_tokens(), 1);
}

#[tokio::test]
async fn a_provider_token_wrongly_reported_as_expired_is_used_again() {
    let (rig, apns, ..) = strict_apns(at_minute(20), at_minute(20)).await;
    apns.script()
        .add(Rule::always().times(1).answer(Answer::reason("ExpiredProviderToken")))
        .unwrap();
    // The worker tries the next slot's token instead, which is not valid yet.
    assert_eq!(
        rig.push_apns("beef").await.outcome,
        credential_trouble("InvalidProviderToken")
    );
    assert!(is_accepted(&rig.push_apns("beef").await));
    assert_eq!(apns.provider_tokens(), 1);
}

#[tokio::test]
async fn a_revoked_key_is_credential_trouble_until_it_is_replaced() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    assert!(is_accepted(&rig.push_apns("beef").await));
    apns.revoke_key(&apns.key().team_id, &apns.key().key_id);
    // A push sent before the close arrives here would be ambiguous.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        rig.push_apns("beef").await.outcome,
        credential_trouble("InvalidProviderToken")
    );
    let fresh = ApnsKey::generate("PEALTEAM01", "PEALKEY002").unwrap();
    apns.register_key(&fresh.clone().into()).unwrap();
    rig.configure_apns(&fresh);
    assert!(is_accepted(&rig.push_apns("beef").await));
}

#[tokio::test]
async fn credentials_change_under_traffic_without_loss() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    apns.script()
        .add(Rule::always().delay(Duration::from_millis(30)))
        .unwrap();
    let other = ApnsKey::generate("OTHERTEAM1", "OTHERKEY01").unwrap();
    apns.register_key(&other.clone().into()).unwrap();
    let change = async {
        tokio::time::sleep(Duration::from_millis(15)).await;
        rig.configure_apns(&other);
    };
    let (before, ()) = tokio::join!(rig.push_many_apns(50), change);
    assert_all_accepted(&before);
    assert_all_accepted(&rig.push_many_apns(50).await);
    rig.providers.forget(&rig.app);
    assert_eq!(rig.push_apns("beef").await.outcome, credential_trouble("no_credential"));
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
    panic!("connections of a removed credential stay open");
}

#[tokio::test]
async fn an_invalid_credential_changes_nothing() {
    let (rig, apns) = Rig::with_apns(ApnsConfig::default(), Choices::default()).await;
    let good = apns_credential(apns.key());
    let text = |text: &str| text.to_owned();
    for (field, bad) in [
        (
            "team_id",
            apns::Credential {
                team_id: text("short"),
                ..good.clone()
            },
        ),
        (
            "key_id",
            apns::Credential {
                key_id: text("not ten ch"),
                ..good.clone()
            },
        ),
        (
            "topic",
            apns::Credential {
                topic: text("a b"),
                ..good.clone()
            },
        ),
        (
            "private_key",
            apns::Credential {
                private_key: text("secret").into(),
                ..good.clone()
            },
        ),
    ] {
        let bad = Credential::Apns(bad);
        let refused = rig.providers.configure(&rig.app, vec![bad.clone()]).unwrap_err();
        assert_eq!(refused.field, field);
        assert!(!format!("{refused} {refused:?} {bad:?}").contains("secret"));
    }
    assert!(is_accepted(&rig.push_apns("beef").await));
}

#[tokio::test]
async fn a_time_limit_beyond_that_of_an_attempt_is_refused_by_name() {
    let mut settings = Settings::default();
    settings.fcm.timeout_ms = 12_001;
    let refused = Providers::new(&settings, Clock::system()).unwrap_err();
    assert_eq!(refused.to_string(), "fcm.timeout_ms: must be at most 12000");
}
