//! Text messages by Twilio and Vonage: requests, and the outcome of each answer.

use std::time::Duration;

use edge_worker::providers::{Attempted, Outcome};
use serde_json::{Value, json};
use shared::{
    content::{Content, sms::Sms},
    provider::{Credential, Provider, twilio},
};
use testbed::providers::{Answer, RetryAfter, Rule, Twilio, Vonage};

use crate::rig::{
    Choices, Rig, address, ambiguous, credential_trouble, endpoint_trouble, gone, is_accepted, localhost, rejected,
    retry_later,
};

const NUMBER: &str = "+41791234567";

async fn with_twilio(choices: Choices) -> (Rig, Twilio) {
    Rig::with_api(choices, Twilio::start, |twilio| Credential::Twilio(twilio.credential())).await
}

async fn with_vonage(choices: Choices) -> (Rig, Vonage) {
    Rig::with_api(choices, Vonage::start, |vonage| Credential::Vonage(vonage.credential())).await
}

async fn text(rig: &Rig, number: &str, sms: Value) -> Attempted {
    let sms: Sms = serde_json::from_value(sms).unwrap();
    let address = address(&rig.app, Provider::Twilio, number);
    rig.send(Content::Sms(sms.into()), &address).await
}

async fn hello(rig: &Rig, number: &str) -> Attempted {
    text(rig, number, json!({ "text": "Hello", "from": "Shop" })).await
}

fn short() -> Choices {
    Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    }
}

#[tokio::test]
async fn twilio_accepts_a_message_and_returns_its_sid() {
    let (rig, twilio) = with_twilio(Choices::default()).await;
    let attempted = hello(&rig, NUMBER).await;
    let Outcome::Accepted { provider_id: Some(sid) } = &attempted.outcome else {
        panic!("{attempted:?}")
    };
    assert!(sid.starts_with("SM") && sid.len() == 34, "{sid}");
    assert_eq!(
        (attempted.status, &*attempted.endpoint, attempted.provider),
        (Some(201), &*localhost(twilio.addr().port()), Provider::Twilio)
    );
    let sent = twilio.log().delivered_to(NUMBER);
    assert_eq!((sent.len(), sent[0].topic.as_deref()), (1, Some("Shop")));
    let by_service = text(&rig, NUMBER, json!({ "text": "Grüezi 😀" })).await;
    assert!(is_accepted(&by_service), "{by_service:?}");
    let service = twilio.credential().messaging_service_sid;
    assert_eq!(twilio.log().delivered_to(NUMBER)[1].topic, service);
}

#[tokio::test]
async fn twilio_is_signed_in_to_by_a_token_or_a_key_and_by_nothing_else() {
    let (rig, twilio) = with_twilio(Choices::default()).await;
    let with = async |credential: twilio::Credential| {
        let credential = Credential::Twilio(credential);
        rig.providers.configure(&rig.app, vec![credential]).unwrap();
        hello(&rig, NUMBER).await.outcome
    };
    assert!(matches!(
        with(twilio.credential_with_key()).await,
        Outcome::Accepted { .. }
    ));
    let wrong = twilio::Credential {
        secret: "wrong".to_owned().into(),
        ..twilio.credential()
    };
    assert_eq!(with(wrong).await, credential_trouble("20003"));
    let other_account = twilio::Credential {
        account_sid: format!("AC{:032}", 1),
        ..twilio.credential_with_key()
    };
    assert_eq!(with(other_account).await, credential_trouble("20404"));
}

#[tokio::test]
async fn refusals_of_twilio_are_distinguished() {
    let (rig, twilio) = with_twilio(Choices::default()).await;
    let asks = |answer: Answer, seconds| answer.retry_after(RetryAfter::Seconds(seconds));
    for (answer, outcome) in [
        (Answer::reason("21211"), gone("21211")),
        (Answer::reason("21614"), gone("21614")),
        (Answer::reason("21610"), rejected("21610")),
        (Answer::reason("21408"), rejected("21408")),
        (Answer::reason("30450"), retry_later("30450", Some(1800))),
        (Answer::reason("20429"), retry_later("20429", Some(1))),
        (asks(Answer::reason("20429"), 9), retry_later("20429", Some(9))),
        (Answer::reason("20503"), retry_later("20503", None)),
        (Answer::reason("20500"), ambiguous("20500")),
        (Answer::reason("20005"), credential_trouble("20005")),
        (Answer::default().status(502).body("<html>"), ambiguous("http_502")),
        (
            Answer::default().status(404).body("<html>"),
            endpoint_trouble("not_twilio"),
        ),
    ] {
        twilio
            .script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(hello(&rig, NUMBER).await.outcome, outcome, "{answer:?}");
        twilio.script().clear();
    }
}

#[tokio::test]
async fn silence_of_twilio_is_ambiguous_and_its_absence_is_endpoint_trouble() {
    let (rig, twilio) = with_twilio(short()).await;
    let script = twilio.script();
    script
        .add(Rule::token("+41790000001").answer(Answer::black_hole()))
        .unwrap();
    script.add(Rule::token("+41790000002").answer(Answer::close())).unwrap();
    assert_eq!(hello(&rig, "+41790000001").await.outcome, ambiguous("timeout"));
    assert_eq!(hello(&rig, "+41790000002").await.outcome, ambiguous("connection_lost"));
    twilio.stop().await;
    // A message sent before the close arrives here would be ambiguous.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let attempted = hello(&rig, NUMBER).await;
    assert_eq!(attempted.outcome, endpoint_trouble("connect"));
    assert!(!attempted.outcome.counts());
}

#[tokio::test]
async fn vonage_accepts_a_message_and_returns_the_id_of_its_first_part() {
    let (rig, vonage) = with_vonage(Choices::default()).await;
    let attempted = hello(&rig, NUMBER).await;
    assert!(is_accepted(&attempted), "{attempted:?}");
    assert_eq!((attempted.status, attempted.provider), (Some(200), Provider::Vonage));
    let long = json!({ "text": "ж".repeat(200), "from": "+41790000000", "max_segments": 3 });
    let attempted = text(&rig, NUMBER, long).await;
    let sent = vonage.log().delivered_to(NUMBER);
    let first = Outcome::Accepted {
        provider_id: Some(sent[1].id.clone()),
    };
    assert_eq!(attempted.outcome, first);
    assert_eq!(
        (sent[0].push_type.as_deref(), sent[1].push_type.as_deref()),
        (Some("text"), Some("unicode"))
    );
    assert_eq!(sent[1].topic.as_deref(), Some("41790000000"));
}

#[tokio::test]
async fn vonage_refuses_with_200_and_its_statuses_are_distinguished() {
    let (rig, vonage) = with_vonage(Choices::default()).await;
    let partly = r#"{"message-count":"2","messages":[{"status":"0","message-id":"A"},{"status":"1"}]}"#;
    for (answer, outcome) in [
        (Answer::reason("1"), retry_later("throttled", Some(1))),
        (Answer::reason("4"), credential_trouble("invalid_credentials")),
        (Answer::reason("5"), retry_later("internal_error", None)),
        (Answer::reason("6"), rejected("invalid_message")),
        (Answer::reason("7"), rejected("number_barred")),
        (Answer::reason("9"), credential_trouble("quota_violation")),
        (Answer::reason("33"), gone("number_deactivated")),
        (Answer::default().body(partly), ambiguous("partly_accepted")),
        (Answer::default().body("<html>"), ambiguous("not_vonage")),
        (Answer::default().status(500).body("<html>"), ambiguous("http_500")),
        (
            Answer::default().status(503).body("<html>"),
            retry_later("http_503", None),
        ),
    ] {
        vonage
            .script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(hello(&rig, NUMBER).await.outcome, outcome, "{answer:?}");
        vonage.script().clear();
    }
    let mut credential = vonage.credential();
    credential.api_secret = "wrong".to_owned().into();
    rig.providers
        .configure(&rig.app, vec![Credential::Vonage(credential)])
        .unwrap();
    assert_eq!(
        hello(&rig, NUMBER).await.outcome,
        credential_trouble("invalid_credentials")
    );
}

#[tokio::test]
async fn silence_of_vonage_is_ambiguous_and_its_absence_is_endpoint_trouble() {
    let (rig, vonage) = with_vonage(short()).await;
    let script = vonage.script();
    script
        .add(Rule::token("+41790000001").answer(Answer::black_hole()))
        .unwrap();
    script.add(Rule::token("+41790000002").answer(Answer::close())).unwrap();
    assert_eq!(hello(&rig, "+41790000001").await.outcome, ambiguous("timeout"));
    assert_eq!(hello(&rig, "+41790000002").await.outcome, ambiguous("connection_lost"));
    vonage.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(hello(&rig, NUMBER).await.outcome, endpoint_trouble("connect"));
}
