//! Webhooks: what receivers get, and the outcome of each of their answers.

use std::time::Duration;

use edge_worker::providers::{Attempted, Outcome, ReceiverSettings};
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{
    address::{Address, Format, Receiver, Target},
    content::{Content, webhook::Webhook},
    id_key::IdKey,
    provider::{Credential, webhook},
    signature,
};
use testbed::providers::{Answer, ApiConfig, Authority, Receivers, RetryAfter, Rule};

use crate::rig::{Choices, Rig, ambiguous, endpoint_trouble, is_accepted, rejected, retry_later, unused_port};

/// A worker that may reach these servers on this machine, and two of them.
async fn with_receivers(choices: Choices) -> (Rig, [Receivers; 2]) {
    with_private(&["127.0.0.0/8", "::1/128"], choices).await
}

/// As [`with_receivers`], for a worker that may reach these networks.
async fn with_private(networks: &[&str], choices: Choices) -> (Rig, [Receivers; 2]) {
    let authority = Authority::generate().unwrap();
    let start = async || {
        let config = ApiConfig {
            authority: Some(authority.clone()),
            ..ApiConfig::default()
        };
        Receivers::start(config).await.unwrap()
    };
    let servers = [start().await, start().await];
    let receivers = ReceiverSettings {
        ports: servers.iter().map(|server| server.addr().port()).collect(),
        private: networks.iter().map(|network| network.parse().unwrap()).collect(),
        http: false,
    };
    let rig = Rig::new(authority, Choices { receivers, ..choices });
    let credential = Credential::Webhook(webhook::Credential::default());
    rig.providers.configure(&rig.app, vec![credential]).unwrap();
    (rig, servers)
}

fn short() -> Choices {
    Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    }
}

fn address(rig: &Rig, receiver: Receiver) -> Address {
    Address::new(
        &IdKey::unkeyed(),
        &rig.app,
        Target::Webhook(receiver),
        Timestamp::UNIX_EPOCH,
    )
}

async fn post(rig: &Rig, receiver: Receiver, webhook: Value) -> Attempted {
    let webhook: Webhook = serde_json::from_value(webhook).unwrap();
    rig.send(Content::Webhook(webhook.into()), &address(rig, receiver))
        .await
}

/// Posts a text to a chat.
async fn chat(rig: &Rig, url: &str) -> Attempted {
    let receiver = Receiver::new(url, Format::Chat, None).unwrap();
    post(rig, receiver, json!({ "text": "Paid" })).await
}

#[tokio::test]
async fn a_private_receiver_is_reached_by_its_app_alone() {
    let (mut rig, [server, _]) = with_private(&[], Choices::default()).await;
    let url = server.url("/hook");
    let shop = rig.app.clone();
    assert_eq!(chat(&rig, &url).await.outcome, rejected("forbidden_address"));
    let host = url
        .parse::<reqwest::Url>()
        .unwrap()
        .host_str()
        .unwrap()
        .parse()
        .unwrap();
    rig.providers.allow_hosts(&shop, &[host]);
    assert!(is_accepted(&chat(&rig, &url).await));

    rig.app = "bank".parse().unwrap();
    let credential = Credential::Webhook(webhook::Credential::default());
    rig.providers.configure(&rig.app, vec![credential]).unwrap();
    assert_eq!(chat(&rig, &url).await.outcome, rejected("forbidden_address"));

    // The app is removed, and made again without the host.
    rig.providers.forget(&shop);
    rig.app = shop;
    let credential = Credential::Webhook(webhook::Credential::default());
    rig.providers.configure(&rig.app, vec![credential]).unwrap();
    assert_eq!(chat(&rig, &url).await.outcome, rejected("forbidden_address"));
    assert_eq!(server.log().delivered_count(), 1);
}

#[tokio::test]
async fn a_signed_receiver_verifies_what_it_gets() {
    let (rig, [server, _]) = with_receivers(Choices::default()).await;
    let (secret, other) = (signature::new_secret(), signature::new_secret());
    server.expect("/hook", secret.reveal()).unwrap();
    let receiver = |secret| Receiver::new(&server.url("/hook?shop=1"), Format::Signed, Some(secret)).unwrap();
    let event = json!({ "type": "order.paid", "data": { "order": 7 } });
    let attempted = post(&rig, receiver(secret), event.clone()).await;
    assert!(is_accepted(&attempted), "{attempted:?}");
    assert_eq!((attempted.status, &*attempted.endpoint), (Some(204), ""));
    let sent = &server.log().delivered_to("/hook")[0];
    assert_eq!(sent.id.len(), 36, "the id of the delivery");
    let body: Value = serde_json::from_slice(&sent.payload).unwrap();
    assert_eq!(
        (&body["type"], &body["data"]),
        (&json!("order.paid"), &json!({ "order": 7 }))
    );
    let refused = post(&rig, receiver(other), event).await;
    assert_eq!(refused.outcome, retry_later("http_401", None));
}

#[tokio::test]
async fn a_chat_gets_a_text() {
    let (rig, [server, _]) = with_receivers(Choices::default()).await;
    assert!(is_accepted(&chat(&rig, &server.url("/services/T1")).await));
    assert_eq!(
        &*server.log().delivered_to("/services/T1")[0].payload,
        br#"{"text":"Paid"}"#
    );
}

#[tokio::test]
async fn answers_of_receivers_are_distinguished() {
    let (rig, [server, _]) = with_receivers(Choices::default()).await;
    let gone = Outcome::AddressGone {
        reason: "http_410".into(),
        since: None,
    };
    let accepted = Outcome::Accepted { provider_id: None };
    let status = |status| Answer::default().status(status);
    for (answer, outcome) in [
        (status(200).body("ok"), accepted.clone()),
        (status(202), accepted),
        (status(410), gone),
        (status(302), retry_later("http_302", None)),
        (status(400), retry_later("http_400", None)),
        (status(404), retry_later("http_404", None)),
        (
            status(429).retry_after(RetryAfter::Seconds(30)),
            retry_later("http_429", Some(30)),
        ),
        (status(503), retry_later("http_503", None)),
    ] {
        server
            .script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(chat(&rig, &server.url("/chat")).await.outcome, outcome, "{answer:?}");
        server.script().clear();
    }
}

#[tokio::test]
async fn silence_is_ambiguous_and_absence_is_endpoint_trouble() {
    let (rig, [server, _]) = with_receivers(short()).await;
    let script = server.script();
    script.add(Rule::token("/hole").answer(Answer::black_hole())).unwrap();
    script.add(Rule::token("/close").answer(Answer::close())).unwrap();
    assert_eq!(chat(&rig, &server.url("/hole")).await.outcome, ambiguous("timeout"));
    assert_eq!(
        chat(&rig, &server.url("/close")).await.outcome,
        ambiguous("connection_lost")
    );
    let url = server.url("/chat");
    server.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(chat(&rig, &url).await.outcome, endpoint_trouble("connect"));
}

#[tokio::test]
async fn a_dead_receiver_pauses_only_itself() {
    let (rig, [dead, alive]) = with_receivers(short()).await;
    let url = dead.url("/chat");
    dead.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..10 {
        assert_eq!(chat(&rig, &url).await.outcome, endpoint_trouble("connect"));
    }
    let Outcome::EndpointTrouble { reason, not_before } = chat(&rig, &url).await.outcome else {
        panic!("the breaker of the dead receiver is open");
    };
    assert!(reason == "breaker_open" && not_before.is_some());
    assert!(is_accepted(&chat(&rig, &alive.url("/chat")).await));
}

#[tokio::test]
async fn receivers_in_private_networks_are_not_reached() {
    let (_, [server, _]) = with_receivers(Choices::default()).await;
    let ports = vec![443, server.addr().port()];
    let receivers = ReceiverSettings {
        ports: ports.clone(),
        ..ReceiverSettings::default()
    };
    let choices = Choices {
        receivers,
        ..Choices::default()
    };
    let rig = Rig::new(Authority::generate().unwrap(), choices);
    let credential = Credential::Webhook(webhook::Credential::default());
    rig.providers.configure(&rig.app, vec![credential]).unwrap();
    let port = server.addr().port();
    for host in [
        "localhost",
        "127.0.0.1",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localtest.localhost",
    ] {
        let outcome = chat(&rig, &format!("https://{host}:{port}/chat")).await.outcome;
        let is_unknown = matches!(&outcome, Outcome::EndpointTrouble { reason, .. } if reason == "dns");
        assert!(
            outcome == rejected("forbidden_address") || is_unknown,
            "{host}: {outcome:?}"
        );
    }
    let other_port = format!("https://192.0.1.1:{}/chat", unused_port());
    assert_eq!(chat(&rig, &other_port).await.outcome, rejected("forbidden_address"));
    assert_eq!(server.log().request_count(), 0);
}
