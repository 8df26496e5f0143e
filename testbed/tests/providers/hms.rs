//! Huawei Push Kit: pushes to both generations of devices, tokens, and the outcome of each answer.

use std::time::Duration;

use edge_worker::providers::{Attempted, Outcome};
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{
    address::{Address, Target},
    content::push::Push,
    id_key::IdKey,
    provider::{
        Credential,
        hms::{self, Generation},
    },
};
use testbed::providers::{Answer, Hms, Rule};

use crate::rig::{
    Choices, Rig, ambiguous, credential_trouble, endpoint_trouble, gone, is_accepted, now, rejected, retry_later,
};

const BOTH: [Generation; 2] = [Generation::First, Generation::Third];

async fn with_hms(choices: Choices) -> (Rig, Hms) {
    Rig::with_api(choices, Hms::start, |hms| Credential::Hms(hms.credential())).await
}

async fn push(rig: &Rig, token: &str, generation: Generation, push: Value) -> Attempted {
    let push: Push = serde_json::from_value(push).unwrap();
    let target = Target::Hms(hms::Target::new(token.to_owned(), generation).unwrap());
    let address = Address::new(&IdKey::unkeyed(), &rig.app, target, Timestamp::UNIX_EPOCH);
    rig.push_to(&address, "event", push, now()).await
}

async fn alert(rig: &Rig, token: &str, generation: Generation) -> Attempted {
    push(rig, token, generation, json!({ "title": "ding" })).await
}

fn configure(rig: &Rig, credential: hms::Credential) {
    rig.providers
        .configure(&rig.app, vec![Credential::Hms(credential)])
        .unwrap();
}

#[tokio::test]
async fn huawei_takes_pushes_of_both_generations() {
    let (rig, hms) = with_hms(Choices::default()).await;
    for (generation, kinds) in [
        (Generation::Third, [Some("0"), Some("6")]),
        (Generation::First, [None, None]),
    ] {
        let token = format!("t{}", u8::from(generation));
        let attempted = alert(&rig, &token, generation).await;
        let sent = hms.log().delivered_to(&token);
        assert_eq!(sent.len(), 1, "{attempted:?}");
        let provider_id = Some(sent[0].id.clone());
        assert_eq!(attempted.outcome, Outcome::Accepted { provider_id });
        let silent = push(
            &rig,
            &token,
            generation,
            json!({ "silent": true, "data": { "a": "b" } }),
        )
        .await;
        assert!(is_accepted(&silent), "{silent:?}");
        let sent = hms.log().delivered_to(&token);
        assert_eq!([sent[0].push_type.as_deref(), sent[1].push_type.as_deref()], kinds);
    }
    assert_eq!(hms.log().delivered_to("t1")[0].expiration.as_deref(), Some("1296000s"));
    // The project instead of the app.
    configure(
        &rig,
        hms::Credential {
            project_id: Some(hms.project_id().to_owned()),
            ..hms.credential()
        },
    );
    assert!(is_accepted(&alert(&rig, "t1", Generation::First).await));
    assert_eq!(hms.log().delivered_to("t1")[2].topic.as_deref(), Some(hms.project_id()));
}

#[tokio::test]
async fn an_access_token_that_expired_is_renewed_once() {
    let (rig, hms) = with_hms(Choices::default()).await;
    assert!(is_accepted(&alert(&rig, "a", Generation::First).await));
    hms.expire_tokens();
    assert!(is_accepted(&alert(&rig, "b", Generation::First).await));
    let refused: Vec<_> = hms.log().pushes().into_iter().filter_map(|push| push.reason).collect();
    assert_eq!(refused, ["80200003"]);
    // So soon after that, another would not help.
    hms.expire_tokens();
    let attempted = alert(&rig, "c", Generation::First).await;
    assert_eq!(attempted.outcome, credential_trouble("80200003"));
}

#[tokio::test]
async fn each_generation_needs_its_part_of_the_credential() {
    let (rig, hms) = with_hms(Choices::default()).await;
    let first = hms::Credential {
        service_account: None,
        ..hms.credential()
    };
    let third = hms::Credential {
        client_id: None,
        client_secret: None,
        ..hms.credential()
    };
    configure(&rig, first.clone());
    assert!(is_accepted(&alert(&rig, "t", Generation::First).await));
    let attempted = alert(&rig, "t", Generation::Third).await;
    assert_eq!(attempted.outcome, credential_trouble("no_service_account"));
    configure(&rig, third);
    assert!(is_accepted(&alert(&rig, "t", Generation::Third).await));
    let attempted = alert(&rig, "t", Generation::First).await;
    assert_eq!(attempted.outcome, credential_trouble("no_client"));
    configure(
        &rig,
        hms::Credential {
            client_secret: Some("wrong".to_owned().into()),
            ..first
        },
    );
    let attempted = alert(&rig, "t", Generation::First).await;
    assert_eq!(attempted.outcome, credential_trouble("token_refused_1101"));
    let (_, other) = with_hms(Choices::default()).await;
    configure(&rig, other.credential());
    let attempted = alert(&rig, "t", Generation::Third).await;
    assert_eq!(
        attempted.outcome,
        credential_trouble("80200001"),
        "another service account"
    );
}

#[tokio::test]
async fn refusals_of_huawei_are_distinguished() {
    let (rig, hms) = with_hms(Choices::default()).await;
    for generation in BOTH {
        for (answer, outcome) in [
            (Answer::reason("tokenFormatError"), gone("tokenFormatError")),
            (Answer::reason("noRight"), credential_trouble("noRight")),
            (Answer::reason("noPushTypeRight"), rejected("noPushTypeRight")),
            (Answer::reason("80100003"), rejected("80100003")),
            (Answer::reason("80200001"), credential_trouble("80200001")),
            (Answer::reason("80300002"), credential_trouble("80300002")),
            (Answer::reason("81000001"), retry_later("81000001", None)),
            (Answer::reason("80900000").status(503), retry_later("80900000", Some(1))),
            (Answer::default().body("<html>"), ambiguous("not_hms")),
            (
                Answer::default().status(404).body("<html>"),
                endpoint_trouble("not_hms"),
            ),
        ] {
            hms.script()
                .add(Rule::always().times(1).answer(answer.clone()))
                .unwrap();
            assert_eq!(alert(&rig, "t", generation).await.outcome, outcome, "{answer:?}");
            hms.script().clear();
        }
        let large = json!({ "body": "x".repeat(4090) });
        assert_eq!(push(&rig, "t", generation, large).await.outcome, rejected("too_large"));
    }
    // A token of the other generation is one that does not exist.
    hms.devices().register("t1", "1");
    assert!(is_accepted(&alert(&rig, "t1", Generation::First).await));
    assert_eq!(
        alert(&rig, "t1", Generation::Third).await.outcome,
        gone("tokenFormatError")
    );
    assert_eq!(alert(&rig, "t2", Generation::First).await.outcome, gone("80300007"));
}

#[tokio::test]
async fn silence_of_huawei_is_ambiguous_and_its_absence_is_endpoint_trouble() {
    let (rig, hms) = with_hms(Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    })
    .await;
    let script = hms.script();
    script.add(Rule::token("a").answer(Answer::black_hole())).unwrap();
    script.add(Rule::token("b").answer(Answer::close())).unwrap();
    assert_eq!(alert(&rig, "a", Generation::Third).await.outcome, ambiguous("timeout"));
    assert_eq!(
        alert(&rig, "b", Generation::First).await.outcome,
        ambiguous("connection_lost")
    );
    hms.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        alert(&rig, "c", Generation::Third).await.outcome,
        endpoint_trouble("connect")
    );
}
