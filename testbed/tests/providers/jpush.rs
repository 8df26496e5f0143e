//! JPush: pushes, what makes a repeat harmless, and the outcome of each answer.

use std::time::Duration;

use edge_worker::providers::{Attempted, Outcome};
use shared::{
    content::push::Push,
    provider::{Credential, Provider, jpush},
};
use testbed::providers::{Answer, JPush, RetryAfter, Rule};

use crate::rig::{
    Choices, Rig, address, ambiguous, credential_trouble, endpoint_trouble, gone, is_accepted, now, rejected,
    retry_later,
};

const ID: &str = "1104a89792a3ef5ee5a";

async fn with_jpush(choices: Choices) -> (Rig, JPush) {
    Rig::with_api(choices, JPush::start, |jpush| Credential::JPush(jpush.credential())).await
}

async fn alert(rig: &Rig, id: &str) -> Attempted {
    rig.alert(Provider::JPush, id, "event").await
}

#[tokio::test]
async fn jpush_takes_a_push_and_a_silent_one() {
    let (rig, jpush) = with_jpush(Choices::default()).await;
    let attempted = alert(&rig, ID).await;
    let sent = jpush.log().delivered_to(ID);
    assert_eq!(sent.len(), 1, "{attempted:?}");
    let provider_id = Some(sent[0].id.clone());
    assert_eq!(attempted.outcome, Outcome::Accepted { provider_id });
    assert_eq!(sent[0].expiration.as_deref(), Some("864000"));
    let silent = Push {
        silent: true,
        data: [("a".to_owned(), "b".to_owned())].into(),
        ..Push::default()
    };
    let attempted = rig.push(Provider::JPush, ID, "silent", silent, now()).await;
    assert!(is_accepted(&attempted), "{attempted:?}");
}

#[tokio::test]
async fn a_push_that_is_sent_again_is_delivered_once() {
    let (rig, jpush) = with_jpush(Choices::default()).await;
    let accepted = Push {
        title: Some("ding".into()),
        ..Push::default()
    };
    let at = now();
    let again = async || {
        let address = address(&rig.app, Provider::JPush, ID);
        rig.push_to(&address, "event", accepted.clone(), at).await.outcome
    };
    // Taken, but the answer is an error.
    let lost = Answer::reason("1030").delivered(true);
    jpush.script().add(Rule::always().times(1).answer(lost)).unwrap();
    assert_eq!(again().await, retry_later("1030", None));
    let first = jpush.log().delivered_to(ID)[0].id.clone();
    for _ in 0..2 {
        let provider_id = Some(first.clone());
        assert_eq!(again().await, Outcome::Accepted { provider_id });
    }
    assert_eq!(jpush.log().delivered_count(), 1);
    assert!(is_accepted(&rig.alert(Provider::JPush, ID, "another").await));
    assert_eq!(jpush.log().delivered_count(), 2);
}

#[tokio::test]
async fn a_push_whose_cid_is_refused_is_sent_without() {
    let (rig, jpush) = Rig::with_api(Choices::default(), JPush::start_strict, |jpush| {
        Credential::JPush(jpush.credential())
    })
    .await;
    assert!(is_accepted(&alert(&rig, ID).await));
    let sent = jpush.log().pushes();
    assert_eq!((sent.len(), sent[0].reason.as_deref()), (2, Some("1003")));
    assert_eq!((sent[1].delivered, sent[1].topic.as_deref()), (true, None));
}

#[tokio::test]
async fn refusals_of_jpush_are_distinguished() {
    let (rig, jpush) = with_jpush(Choices::default()).await;
    let asks = |answer: Answer, seconds| answer.retry_after(RetryAfter::Seconds(seconds));
    for (answer, outcome) in [
        (Answer::reason("1011"), gone("1011")),
        (Answer::reason("1003"), rejected("1003")),
        (Answer::reason("1005"), rejected("1005")),
        (Answer::reason("2002"), retry_later("2002", Some(60))),
        (asks(Answer::reason("2002"), 9), retry_later("2002", Some(9))),
        (Answer::reason("1000"), retry_later("1000", None)),
        (Answer::reason("1008"), credential_trouble("1008")),
        (
            Answer::default().status(403).body("<html>"),
            endpoint_trouble("not_jpush"),
        ),
    ] {
        jpush
            .script()
            .add(Rule::always().times(1).answer(answer.clone()))
            .unwrap();
        assert_eq!(alert(&rig, ID).await.outcome, outcome, "{answer:?}");
        jpush.script().clear();
    }
    let credential = jpush::Credential {
        master_secret: "wrong".to_owned().into(),
        ..jpush.credential()
    };
    rig.providers
        .configure(&rig.app, vec![Credential::JPush(credential)])
        .unwrap();
    assert_eq!(alert(&rig, ID).await.outcome, credential_trouble("1004"));
}

#[tokio::test]
async fn silence_of_jpush_is_ambiguous_and_its_absence_is_endpoint_trouble() {
    let (rig, jpush) = with_jpush(Choices {
        timeout: Duration::from_secs(1),
        ..Choices::default()
    })
    .await;
    let script = jpush.script();
    script.add(Rule::token("a").answer(Answer::black_hole())).unwrap();
    script.add(Rule::token("b").answer(Answer::close())).unwrap();
    assert_eq!(alert(&rig, "a").await.outcome, ambiguous("timeout"));
    assert_eq!(alert(&rig, "b").await.outcome, ambiguous("connection_lost"));
    jpush.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(alert(&rig, "c").await.outcome, endpoint_trouble("connect"));
}
