//! APNs: which requests are accepted, and the reason for each refusal.

use http::Method;
use testbed::providers::{Apns, ApnsConfig, apns::Environment};

use crate::client::{Client, Draft, PAYLOAD, TOPIC, apns};

#[tokio::test]
async fn an_accepted_push_is_answered_with_its_id_and_logged() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    let id = "123e4567-e89b-12d3-a456-4266554400a0";
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let draft = Draft::message_to("beef")
        .set("apns-id", id)
        .set("apns-collapse-id", "score")
        .set("apns-priority", "5")
        .set("apns-expiration", "0")
        .set("traceparent", trace);
    let response = client.push(draft).await.unwrap();

    assert_eq!(response.status, 200);
    assert_eq!(response.headers["apns-id"], id);
    assert!(response.body.is_empty());
    let pushes = apns.log().delivered_to("beef");
    assert_eq!(pushes.len(), 1);
    let push = &pushes[0];
    assert_eq!((push.id.as_str(), push.connection, push.status), (id, 1, 200));
    assert_eq!(push.collapse_id.as_deref(), Some("score"));
    assert_eq!(push.topic.as_deref(), Some(TOPIC));
    assert_eq!(push.push_type.as_deref(), Some("alert"));
    assert_eq!(push.priority.as_deref(), Some("5"));
    assert_eq!(push.expiration.as_deref(), Some("0"));
    assert_eq!(push.traceparent.as_deref(), Some(trace));
    assert_eq!(push.payload, PAYLOAD);

    let generated = client.push(Draft::message_to("beef")).await.unwrap();
    assert_eq!(generated.headers["apns-id"].len(), 36);
    assert!(!generated.headers.contains_key("apns-unique-id"));
}

#[tokio::test]
async fn every_broken_rule_has_its_reason() {
    let good = || Draft::message_to("beef");
    let long = |n: usize| format!("{{\"x\":\"{}\"}}", "x".repeat(n - 8));
    let cases = [
        (good().method(Method::GET), 405, "MethodNotAllowed"),
        (good().path("/"), 404, "BadPath"),
        (good().path("/3/devices/beef"), 404, "BadPath"),
        (good().path("/3/device/beef/beef"), 404, "BadPath"),
        (good().set("apns-id", "no"), 400, "BadMessageId"),
        (
            good().set("apns-id", "123e4567e89b12d3a4564266554400a0"),
            400,
            "BadMessageId",
        ),
        (
            good().twice("apns-id", "123e4567-e89b-12d3-a456-4266554400a0"),
            400,
            "DuplicateHeaders",
        ),
        (good().without("apns-topic"), 400, "MissingTopic"),
        (good().set("apns-topic", "com example"), 400, "BadTopic"),
        (good().set("apns-push-type", "voip"), 400, "TopicDisallowed"),
        (good().set("apns-push-type", "liveactivity"), 400, "TopicDisallowed"),
        (good().set("apns-collapse-id", &"c".repeat(65)), 400, "BadCollapseId"),
        (good().set("apns-priority", "7"), 400, "BadPriority"),
        (
            good().set("apns-push-type", "background").set("apns-priority", "10"),
            400,
            "BadPriority",
        ),
        (good().set("apns-expiration", "soon"), 400, "BadExpirationDate"),
        (good().set("apns-push-type", "shout"), 400, "InvalidPushType"),
        (good().path("/3/device/"), 400, "MissingDeviceToken"),
        (good().path("/3/device"), 400, "MissingDeviceToken"),
        (good().path("/3/device/nothex"), 400, "BadDeviceToken"),
        (good().set("authorization", ""), 403, "MissingProviderToken"),
        (good().set("authorization", "bearer "), 403, "MissingProviderToken"),
        (good().set("authorization", "basic abcdef"), 403, "InvalidProviderToken"),
        (good().set("authorization", "bearer a.b.c"), 403, "InvalidProviderToken"),
        (good().body(""), 400, "PayloadEmpty"),
        (good().body("{"), 400, "PayloadEmpty"),
        (good().body(long(4097)), 413, "PayloadTooLarge"),
        (
            good()
                .set("apns-push-type", "voip")
                .set("apns-topic", "com.example.app.voip")
                .body(long(5121)),
            413,
            "PayloadTooLarge",
        ),
        // Where two rules are broken, the earlier one names the reason.
        (
            good()
                .without("apns-topic")
                .set("apns-id", "no")
                .set("authorization", ""),
            400,
            "BadMessageId",
        ),
        (
            good().path("/3/device/nothex").set("authorization", ""),
            400,
            "BadDeviceToken",
        ),
        (good().body("").set("authorization", ""), 403, "MissingProviderToken"),
    ];
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    for (nth, (draft, status, reason)) in cases.into_iter().enumerate() {
        let response = client.push(draft).await.unwrap();
        assert_eq!(
            (response.status.as_u16(), response.reason().as_str()),
            (status, reason),
            "case {nth}"
        );
        assert_eq!(response.headers["content-type"], "application/json");
        assert_eq!(response.headers["apns-id"].len(), 36);
    }
    assert!(apns.log().delivered().is_empty());
}

#[tokio::test]
async fn every_push_type_goes_to_its_own_topic() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    for (push_type, suffix) in [
        ("alert", ""),
        ("background", ""),
        ("mdm", ""),
        ("voip", ".voip"),
        ("complication", ".complication"),
        ("controls", ".push-type.controls"),
        ("fileprovider", ".pushkit.fileprovider"),
        ("liveactivity", ".push-type.liveactivity"),
        ("location", ".location-query"),
        ("pushtotalk", ".voip-ptt"),
        ("widgets", ".push-type.widgets"),
    ] {
        let draft = Draft::message_to("beef")
            .set("apns-push-type", push_type)
            .set("apns-topic", &format!("{TOPIC}{suffix}"));
        assert_eq!(client.push(draft).await.unwrap().status, 200, "{push_type}");
    }
    let largest = format!("{{\"x\":\"{}\"}}", "x".repeat(4088));
    assert_eq!(largest.len(), 4096);
    assert_eq!(
        client
            .push(Draft::message_to("BEEF").body(largest))
            .await
            .unwrap()
            .status,
        200
    );
}

#[tokio::test]
async fn known_devices_and_bundles_can_be_limited() {
    let apns = Apns::start(ApnsConfig {
        bundles: Some(vec![TOPIC.into(), "com.example.other".into()]),
        environment: Environment::Development,
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    apns.devices().register("aa", TOPIC);
    let client = Client::connect(&apns, 1).await;
    let response = client.push(Draft::message_to("aa")).await.unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(response.headers["apns-unique-id"].len(), 36);
    let reason = |draft| async { client.push(draft).await.unwrap().reason() };
    assert_eq!(reason(Draft::message_to("bb")).await, "BadDeviceToken");
    assert_eq!(
        reason(Draft::message_to("aa").set("apns-topic", "com.example.other")).await,
        "DeviceTokenNotForTopic"
    );
    apns.devices().register("dd", &format!("{TOPIC}.voip"));
    let call = |token| {
        let draft = Draft::message_to(token).set("apns-push-type", "voip");
        draft.set("apns-topic", &format!("{TOPIC}.voip"))
    };
    assert_eq!(client.push(call("dd")).await.unwrap().status, 200);
    assert_eq!(
        reason(call("aa")).await,
        "DeviceTokenNotForTopic",
        "a token of another use"
    );
    assert_eq!(reason(Draft::message_to("dd")).await, "DeviceTokenNotForTopic");
    apns.devices().register("cc", "com.example.unknown");
    assert_eq!(
        reason(Draft::message_to("cc").set("apns-topic", "com.example.unknown")).await,
        "TopicDisallowed"
    );
}
