//! APNs credentials: provider tokens, revoked keys, and keys that change under traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use edge_worker::providers::ApnsAccount;
use futures::future::join_all;
use jiff::Timestamp;
use shared::{channel::Provider, clock::Clock};
use testbed::providers::{Answer, Apns, ApnsConfig, ApnsKey, Rule, apns::JwtMode};

use crate::rig::{Choices, Rig, accepted, address, all_accepted, apns_account, credential, local, set_clock};

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
    let good = apns_account(apns.key());
    for (field, bad) in [
        (
            "team_id",
            ApnsAccount {
                team_id: "short".into(),
                ..good.clone()
            },
        ),
        (
            "key_id",
            ApnsAccount {
                key_id: "not ten ch".into(),
                ..good.clone()
            },
        ),
        (
            "topic",
            ApnsAccount {
                topic: "a b".into(),
                ..good.clone()
            },
        ),
        (
            "private_key",
            ApnsAccount {
                private_key: "secret".into(),
                ..good.clone()
            },
        ),
    ] {
        let refused = rig.providers.configure(&rig.app, Some(bad.clone()), None).unwrap_err();
        assert_eq!(refused.field, field);
        assert!(!format!("{refused} {refused:?} {bad:?}").contains("secret"));
    }
    assert!(accepted(&rig.apple("beef").await));
}
