//! Amazon SNS: pushes, text messages, and the outcome of each answer.

use std::time::Duration;

use edge_worker::providers::{Attempted, Outcome};
use serde_json::{Value, json};
use shared::{
    content::{Content, sms::Sms},
    provider::{Credential, Provider, sns},
};
use testbed::providers::{Answer, Rule, Sns};

use crate::rig::{
    Choices, Rig, address, ambiguous, credential_trouble, endpoint_trouble, gone, is_accepted, rejected, retry_later,
};

fn endpoint(platform: &str, id: &str) -> String {
    format!("arn:aws:sns:eu-central-1:123456789012:endpoint/{platform}/shop/{id}")
}

async fn with_sns(choices: Choices) -> (Rig, Sns) {
    Rig::with_api(choices, Sns::start, |sns| Credential::Sns(sns.credential())).await
}

async fn alert(rig: &Rig, id: &str) -> Attempted {
    rig.alert(Provider::Sns, &endpoint("GCM", id), "event").await
}

async fn text(rig: &Rig, sms: Value) -> Attempted {
    let sms: Sms = serde_json::from_value(sms).unwrap();
    let address = address(&rig.app, Provider::Twilio, "+41791234567");
    rig.send(Content::Sms(sms.into()), &address).await
}

#[tokio::test]
async fn sns_takes_a_push_for_each_platform_and_a_text_message() {
    let (rig, sns) = with_sns(Choices::default()).await;
    for platform in ["GCM", "APNS", "APNS_SANDBOX", "ADM"] {
        let arn = endpoint(platform, "1");
        let attempted = rig.alert(Provider::Sns, &arn, "event").await;
        let sent = sns.log().delivered_to(&arn);
        assert_eq!(sent.len(), 1, "{attempted:?}");
        let provider_id = Some(sent[0].id.clone());
        assert_eq!(attempted.outcome, Outcome::Accepted { provider_id });
        let seconds: u64 = sent[0].expiration.as_deref().unwrap().parse().unwrap();
        assert!((2_419_190..=2_419_200).contains(&seconds), "{platform}: {seconds}");
        let is_apple = platform.starts_with("APNS");
        assert_eq!(sent[0].push_type.as_deref(), is_apple.then_some("alert"));
    }
    let attempted = text(&rig, json!({ "text": "Grüezi & +1 😀", "from": "Shop" })).await;
    assert!(is_accepted(&attempted), "{attempted:?}");
    let sent = sns.log().delivered_to("+41791234567");
    assert_eq!((sent.len(), sent[0].topic.as_deref()), (1, Some("Shop")));
}

#[tokio::test]
async fn sns_takes_what_is_signed_with_the_key_and_nothing_else() {
    let (rig, sns) = with_sns(Choices::default()).await;
    let with = async |credential: sns::Credential| {
        let credential = Credential::Sns(credential);
        rig.providers.configure(&rig.app, vec![credential]).unwrap();
        alert(&rig, "1").await.outcome
    };
    let good = sns.credential();
    let wrong_secret = sns::Credential {
        secret_access_key: "wrong".to_owned().into(),
        ..good.clone()
    };
    assert_eq!(with(wrong_secret).await, credential_trouble("SignatureDoesNotMatch"));
    let wrong_region = sns::Credential {
        region: "us-east-1".into(),
        ..good.clone()
    };
    assert_eq!(with(wrong_region).await, credential_trouble("SignatureDoesNotMatch"));
    let wrong_key = sns::Credential {
        access_key_id: "AKIAOTHER".into(),
        ..good.clone()
    };
    assert_eq!(with(wrong_key).await, credential_trouble("InvalidClientTokenId"));
    assert!(matches!(with(good).await, Outcome::Accepted { .. }));
}

#[tokio::test]
async fn refusals_of_sns_are_distinguished() {
    let (rig, sns) = with_sns(Choices::default()).await;
    for (answer, outcome) in [
        (Answer::reason("EndpointDisabled"), gone("EndpointDisabled")),
        (Answer::reason("NotFound"), gone("NotFound")),
        (Answer::reason("InvalidParameter"), rejected("InvalidParameter")),
        (Answer::reason("Throttled"), retry_later("Throttled", Some(1))),
        (Answer::reason("InternalError"), ambiguous("InternalError")),
        (
            Answer::reason("ServiceUnavailable"),
            retry_later("ServiceUnavailable", None),
        ),
        (
            Answer::reason("PlatformApplicationDisabled"),
            credential_trouble("PlatformApplicationDisabled"),
        ),
        (
            Answer::default().status(403).body("<html>"),
            endpoint_trouble("not_sns"),
        ),
    ] {
        sns.script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(alert(&rig, "1").await.outcome, outcome, "{answer:?}");
        sns.script().clear();
    }
    sns.devices().register(&endpoint("GCM", "known"), "eu-central-1");
    assert_eq!(alert(&rig, "deleted").await.outcome, gone("NotFound"));
    assert!(is_accepted(&alert(&rig, "known").await));
}

#[tokio::test]
async fn silence_of_sns_is_ambiguous_and_its_absence_is_endpoint_trouble() {
    let (rig, sns) = with_sns(Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    })
    .await;
    let script = sns.script();
    script
        .add(Rule::token(&endpoint("GCM", "1")).answer(Answer::black_hole()))
        .unwrap();
    script
        .add(Rule::token(&endpoint("GCM", "2")).answer(Answer::close()))
        .unwrap();
    assert_eq!(alert(&rig, "1").await.outcome, ambiguous("timeout"));
    assert_eq!(alert(&rig, "2").await.outcome, ambiguous("connection_lost"));
    sns.stop().await;
    // A message sent before the close arrives here would be ambiguous.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(alert(&rig, "3").await.outcome, endpoint_trouble("connect"));
}
