//! E-mail through a whole mesh: a mail server that takes minutes to accept a mail, and what dies meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::time::Duration;

use serde_json::{Value, json};
use shared::{app::Ambiguity, channel::Channel};
use testbed::{
    nats::{self, SyncInterval},
    peal::{Peal, Plan},
    providers::{Answer, RecordedPush, Rule},
};
use tokio::time::{Instant, sleep};

const ANN: &str = "ann@example.com";

/// Longer than JetStream waits for an acknowledgement, which is 30 s.
const SLOW: Duration = Duration::from_secs(40);

fn plan() -> Plan {
    Plan {
        regions: vec!["eu".into()],
        sample_ratio: 0.0,
        sync_interval: SyncInterval::Always,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    }
}

/// A mesh with a recipient, and a mail server that follows `rule`.
async fn start(plan: Plan, rule: Rule) -> Peal {
    let peal = Peal::start(plan).await.unwrap();
    peal.simulators.smtp.script().add(rule).unwrap();
    peal.register("ann", "eu", &[("smtp", ANN)]).await.unwrap();
    peal
}

/// Sends a mail and returns the path of its status.
async fn send(peal: &Peal) -> String {
    let body = json!({ "to": { "recipients": ["ann"] }, "email": { "subject": "Shipped", "text": "On its way" } });
    let accepted = peal
        .expect("POST", "eu", "/v1/notifications", Some(&body))
        .await
        .unwrap();
    format!("/v1/notifications/{}", accepted["notification_id"].as_str().unwrap())
}

/// What the server has got for Ann; waits for that number.
async fn mails(peal: &Peal, count: usize, within: Duration) -> Vec<RecordedPush> {
    let deadline = Instant::now() + within;
    loop {
        let mails = peal.simulators.smtp.log().requests_for(ANN);
        if mails.len() >= count {
            return mails;
        }
        assert!(Instant::now() < deadline, "{} of {count} mails", mails.len());
        sleep(Duration::from_millis(50)).await;
    }
}

/// The only delivery once it is done.
async fn done(peal: &Peal, path: &str, within: Duration) -> Value {
    let deadline = Instant::now() + within;
    loop {
        let status = peal.expect("GET", "eu", path, None).await.unwrap();
        if status["state"] == "done" {
            return status["deliveries"][0].clone();
        }
        assert!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_is_sent_once_however_long_its_server_takes() {
    let peal = start(plan(), Rule::always().delay(SLOW)).await;
    let path = send(&peal).await;
    mails(&peal, 1, Duration::from_secs(20)).await;
    let delivery = done(&peal, &path, SLOW + Duration::from_secs(20)).await;
    assert_eq!(
        (&delivery["state"], &delivery["provider"]),
        (&json!("delivered"), &json!("smtp")),
        "{delivery}"
    );
    assert_eq!(mails(&peal, 1, Duration::ZERO).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_is_sent_once_though_the_nats_server_forgets_who_has_it() {
    let peal = start(plan(), Rule::always().delay(SLOW)).await;
    let path = send(&peal).await;
    mails(&peal, 1, Duration::from_secs(20)).await;
    // The intent is published before the mail is handed over, so it outlives the server.
    peal.nats.region("eu").kill().unwrap();
    peal.nats.region("eu").restart().await.unwrap();
    let delivery = done(&peal, &path, SLOW + Duration::from_secs(30)).await;
    assert_eq!(delivery["state"], "delivered", "{delivery}");
    assert_eq!(mails(&peal, 1, Duration::ZERO).await.len(), 1);
}

/// The worker dies while the server has the mail. Returns the mails that the server got and how the delivery ended.
async fn worker_dies(ambiguity: Ambiguity) -> (Vec<RecordedPush>, Value) {
    let plan = Plan {
        workers: 1,
        ambiguity: [(Channel::Email, ambiguity)].into(),
        smtp_settings: "final_answer_ms = 30000".to_owned(),
        ..plan()
    };
    let silence = Rule::always().times(1).answer(Answer::black_hole().delivered(true));
    let mut peal = start(plan, silence).await;
    let path = send(&peal).await;
    mails(&peal, 1, Duration::from_secs(20)).await;
    let program = peal.program();
    let worker = &mut peal.region_mut("eu").workers[0];
    worker.process.kill().await.unwrap();
    worker.restart(&program).unwrap();
    let delivery = done(&peal, &path, Duration::from_secs(150)).await;
    (mails(&peal, 1, Duration::ZERO).await, delivery)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_in_doubt_is_sent_again_once_its_answer_is_overdue() {
    let (mails, delivery) = worker_dies(Ambiguity::Resend).await;
    assert_eq!(delivery["state"], "delivered", "{delivery}");
    let [first, second] = &mails[..] else {
        panic!("{} mails", mails.len())
    };
    assert_eq!(first.id, second.id, "readers recognize the copy");
    let between = second.at_ms - first.at_ms;
    assert!(between >= 45_000, "sent again after {between} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_in_doubt_waits_for_a_person_if_the_app_holds_it() {
    let (mails, delivery) = worker_dies(Ambiguity::Hold).await;
    assert_eq!(mails.len(), 1);
    assert_eq!(
        (&delivery["state"], &delivery["reason"]),
        (&json!("unknown"), &json!("interrupted")),
        "{delivery}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_of_the_server_is_in_doubt_too() {
    let plan = Plan {
        workers: 1,
        ambiguity: [(Channel::Email, Ambiguity::Hold)].into(),
        smtp_settings: "final_answer_ms = 2000".to_owned(),
        ..plan()
    };
    let peal = start(plan, Rule::always().answer(Answer::black_hole().delivered(true))).await;
    let path = send(&peal).await;
    let delivery = done(&peal, &path, Duration::from_secs(40)).await;
    assert_eq!(
        (&delivery["state"], &delivery["reason"]),
        (&json!("unknown"), &json!("timeout")),
        "{delivery}"
    );
}
