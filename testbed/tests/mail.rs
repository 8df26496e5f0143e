//! E-mail through a whole mesh: a mail server that takes minutes to accept a mail, and what dies meanwhile; what comes back of a
//! mail, and the link to unsubscribe.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use shared::{app::Ambiguity, channel::Channel};
use testbed::{
    nats::{self, SyncInterval},
    peal::{APP, PUBLIC_URL, Peal, Plan},
    providers::{Answer, RecordedPush, Rule},
};
use tokio::{
    io::AsyncWriteExt,
    process::Command,
    time::{Instant, sleep},
};

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

/// The value of a header of the last mail, unfolded.
fn header(mail: &RecordedPush, name: &str) -> String {
    let text = String::from_utf8_lossy(&mail.payload)
        .replace("\r\n ", "")
        .replace("\r\n\t", "");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name}: {text}")).trim().to_owned()
}

/// The feedback at a delivery, as words.
fn words(delivery: &Value) -> Vec<&str> {
    let all = delivery["feedback"].as_array().into_iter().flatten();
    all.map(|feedback| feedback["type"].as_str().unwrap()).collect()
}

/// Gives `peal bounce` a report of Exim's form about the mail with this reference, and returns what it prints.
async fn bounce(peal: &Peal, status: &str, reference: &str) -> String {
    let report = format!(
        "From: Mailer-Daemon@mx.example\r\nTo: bounces@shop.example\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n\
         --b\r\nContent-type: text/plain\r\n\r\nSorry.\r\n\
         --b\r\nContent-type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\n\
         Action: failed\r\nFinal-Recipient: rfc822;{ANN}\r\nStatus: 5.0.0\r\nDiagnostic-Code: smtp; 550 {status} no\r\n\r\n\
         --b\r\nContent-type: text/rfc822-headers\r\n\r\nX-Peal-Reference: {reference}\r\n\r\n--b--\r\n"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command.args(["peal", "bounce", "--app", APP, "--url", &peal.region("eu").gateway.url]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(report.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_unsubscribes_and_a_bounce_ends_mails_to_its_mailbox() {
    let within = Duration::from_secs(45);
    let peal = start(plan(), Rule::always()).await;
    let path = send(&peal).await;
    let mail = mails(&peal, 1, within).await.pop().unwrap();
    done(&peal, &path, within).await;
    assert_eq!(header(&mail, "List-Unsubscribe-Post"), "List-Unsubscribe=One-Click");
    let link = header(&mail, "List-Unsubscribe");
    let link = link
        .strip_prefix(&format!("<{PUBLIC_URL}/u/"))
        .unwrap()
        .strip_suffix('>')
        .unwrap();
    let link = format!("{}/u/{link}", peal.region("eu").gateway.url);

    // A scanner that follows the link changes nothing, nor does a form that is not the one.
    let shown = peal.http.get(&link).send().await.unwrap();
    assert_eq!(
        (
            shown.status().as_u16(),
            shown.headers()["referrer-policy"].to_str().unwrap()
        ),
        (200, "no-referrer")
    );
    assert!(shown.text().await.unwrap().contains("<form method=\"post\">"));
    let other = peal.http.post(&link).form(&[("a", "b")]).send().await.unwrap();
    assert_eq!(other.status().as_u16(), 400);
    let list = peal.expect("GET", "eu", "/v1/suppressions", None).await.unwrap();
    assert_eq!(list["suppressions"], json!([]));
    let forged = peal
        .http
        .post(format!("{link}A"))
        .form(&[("List-Unsubscribe", "One-Click")])
        .send()
        .await
        .unwrap();
    assert_eq!(forged.status().as_u16(), 404);

    let clicked = peal
        .http
        .post(&link)
        .form(&[("List-Unsubscribe", "One-Click")])
        .send()
        .await
        .unwrap();
    assert_eq!(clicked.status().as_u16(), 200);
    let delivery = done(&peal, &path, within).await;
    assert_eq!(
        (&delivery["state"], words(&delivery)),
        (&json!("delivered"), vec!["unsubscribed"])
    );
    let delivery = done(&peal, &send(&peal).await, within).await;
    assert_eq!(
        (&delivery["state"], &delivery["reason"]),
        (&json!("suppressed"), &json!("suppression_list"))
    );

    let list = peal.expect("GET", "eu", "/v1/suppressions", None).await.unwrap();
    assert_eq!(
        (&list["suppressions"][0]["reason"], &list["suppressions"][0]["source"]),
        (&json!("unsubscribe"), &json!("link"))
    );
    let lifted = format!("/v1/suppressions/{}", list["suppressions"][0]["id"].as_str().unwrap());
    peal.expect("DELETE", "eu", &lifted, None).await.unwrap();

    // A full mailbox bounces, and is written to again; one that is gone is not.
    let path = send(&peal).await;
    let mail = mails(&peal, 2, within).await.pop().unwrap();
    done(&peal, &path, within).await;
    let reference = header(&mail, "X-Peal-Reference");
    assert_eq!(bounce(&peal, "5.2.2", &reference).await, "reported: failed\n");
    let list = peal.expect("GET", "eu", "/v1/suppressions", None).await.unwrap();
    assert_eq!(list["suppressions"], json!([]));
    let (head, tail) = reference.split_at(reference.len() - 8);
    let other = if tail.starts_with('A') { "B" } else { "A" };
    let forged = format!("{head}{other}{}", &tail[1..]);
    assert_eq!(
        bounce(&peal, "5.1.1", &forged).await,
        "ignored: the mail was not sent by this app\n"
    );
    for _again in 0..2 {
        assert_eq!(bounce(&peal, "5.1.1", &reference).await, "reported: failed\n");
    }
    let delivery = done(&peal, &path, within).await;
    assert_eq!(
        (&delivery["state"], words(&delivery)),
        (&json!("delivered"), vec!["bounced", "bounced"])
    );
    let delivery = done(&peal, &send(&peal).await, within).await;
    assert_eq!(
        (&delivery["state"], &delivery["reason"]),
        (&json!("suppressed"), &json!("suppression_list"))
    );
    assert_eq!(mails(&peal, 2, Duration::ZERO).await.len(), 2);
}
