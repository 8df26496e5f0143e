//! APNs: scripted answers and faults, and what the log counts.

use std::time::Duration;

use h2::Reason;
use serde_json::json;
use testbed::providers::{Answer, Apns, ApnsConfig, LogMode, RetryAfter, Rule, now_s, script};

use crate::client::{Client, Draft, scripted};

#[tokio::test]
async fn scripted_errors_have_the_fields_of_real_ones() {
    let apns = scripted(vec![
        Rule::token("0a").answer(Answer::reason("Unregistered").timestamp_ms(1_700_000_000_123)),
        Rule::token("0b").answer(Answer::reason("ExpiredToken")),
        Rule::token("0c").answer(Answer::reason("TooManyRequests").retry_after(RetryAfter::Seconds(7))),
        Rule::token("0d").answer(Answer::reason("ServiceUnavailable").retry_after(RetryAfter::DateIn(60))),
        Rule::prefix("1").answer(Answer::reason("InternalServerError").body("<html>")),
        Rule::token("0e").answer(Answer::reason("ServiceUnavailable").delivered(true)),
        Rule::token("0f").times(2).answer(Answer::reason("Shutdown")),
    ])
    .await;
    let client = Client::connect(&apns, 1).await;
    let push = async |token: &str| client.push(Draft::message_to(token)).await.unwrap();

    let gone = push("0a").await;
    assert_eq!(gone.status, 410);
    assert_eq!(
        gone.json(),
        json!({"reason": "Unregistered", "timestamp": 1_700_000_000_123_i64})
    );
    let expired = push("0b").await.json();
    let since = expired["timestamp"].as_i64().unwrap();
    assert!((since - now_s() * 1000).abs() < 5000, "{expired}");

    let busy = push("0c").await;
    assert_eq!(
        (busy.status.as_u16(), &busy.headers["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    let date = push("0d").await.headers["retry-after"].to_str().unwrap().to_owned();
    let at = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(&date)
        .unwrap()
        .as_second();
    assert!(date.ends_with(" GMT") && (55..=65).contains(&(at - now_s())), "{date}");

    let garbage = push("17").await;
    assert_eq!((garbage.status.as_u16(), garbage.body.as_ref()), (500, &b"<html>"[..]));

    assert_eq!(push("0e").await.status, 503);
    assert_eq!(apns.log().delivered_to("0e").len(), 1);

    let statuses = [push("0f").await, push("0f").await, push("0f").await].map(|response| response.status.as_u16());
    assert_eq!(statuses, [503, 503, 200]);
    let stats = apns.stats();
    assert_eq!((stats.requests, stats.delivered, stats.reasons["Shutdown"]), (9, 2, 2));
}

#[tokio::test]
async fn scripted_faults_appear_on_the_wire() {
    let apns = scripted(vec![
        Rule::token("0a").answer(Answer::reset(script::ResetCode::RefusedStream)),
        Rule::token("0b").answer(Answer::reset(script::ResetCode::InternalError).delivered(true)),
        Rule::token("0c").answer(Answer::black_hole()),
        Rule::token("0d").delay(Duration::from_millis(120)),
        Rule::token("0e").answer(Answer::close()),
        Rule::token("0f").answer(Answer::freeze()),
    ])
    .await;
    let client = Client::connect(&apns, 1).await;
    let push = async |token: &str| client.push(Draft::message_to(token)).await;
    let reset = async |token| push(token).await.err().and_then(|error| error.reason());
    assert_eq!(reset("0a").await, Some(Reason::REFUSED_STREAM));
    assert_eq!(reset("0b").await, Some(Reason::INTERNAL_ERROR));
    assert!(apns.log().delivered_to("0a").is_empty());
    assert_eq!(apns.log().delivered_to("0b").len(), 1);

    let patience = Duration::from_millis(200);
    assert!(tokio::time::timeout(patience, push("0c")).await.is_err());
    let began = tokio::time::Instant::now();
    assert_eq!(push("0d").await.unwrap().status, 200);
    assert!(began.elapsed() >= Duration::from_millis(120));

    assert!(push("0e").await.is_err_and(|error| error.is_io()));
    assert!(push("aa").await.is_err());

    let client = Client::connect(&apns, 1).await;
    client.push(Draft::message_to("aa")).await.unwrap();
    client.wait_for_streams(1000).await;
    let frozen = client.push(Draft::message_to("0f"));
    assert!(tokio::time::timeout(patience, frozen).await.is_err());
    let behind = client.push(Draft::message_to("aa"));
    assert!(tokio::time::timeout(patience, behind).await.is_err());
    let fresh = Client::connect(&apns, 1).await;
    assert_eq!(fresh.push(Draft::message_to("aa")).await.unwrap().status, 200);

    apns.script().clear();
    assert_eq!(fresh.push(Draft::message_to("0a")).await.unwrap().status, 200);
    apns.stop().await;
}

#[tokio::test]
async fn counting_mode_counts_duplicates_and_keeps_no_pushes() {
    let apns = Apns::start(ApnsConfig {
        log: LogMode::Counting,
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    let client = Client::connect(&apns, 1).await;
    let ids = ["a", "b", "a"].map(|end| format!("123e4567-e89b-12d3-a456-42665544000{end}"));
    for id in &ids {
        client.push(Draft::message_to("beef").set("apns-id", id)).await.unwrap();
    }
    let stats = apns.stats();
    assert_eq!((stats.requests, stats.delivered, stats.duplicates), (3, 3, 1));
    assert!(apns.log().pushes().is_empty());
    assert!(apns.log().wait_delivered(3, Duration::ZERO).await);
    apns.log().clear();
    assert_eq!(apns.stats().duplicates, 0);
}
