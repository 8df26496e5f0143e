//! The status of notifications, made of receipts that the tests write in place of a worker.

use async_nats::HeaderMap;
use serde_json::{Value, json};
use shared::{
    channel::Channel,
    id::{AppId, JobId, NotificationId, RecipientId, Region},
    id_key::IdKey,
    nats::{envelope, publish, subject},
    provider::Provider,
    receipt::{Batch, Receipt, State},
    testing,
};

use crate::rig::{Rig, app, eventually, region};

/// A receipt of one attempt to push to ann's only device.
fn receipt(event: &str, attempt: u32, state: State) -> Receipt {
    let (event, ann): (_, RecipientId) = (event.parse().unwrap(), "ann".parse().unwrap());
    let (notification, job) = (
        NotificationId::of(&app(), &event),
        JobId::of(&IdKey::unkeyed(), &app(), &event, &ann, Channel::Push),
    );
    let at = jiff::Timestamp::from_second(i64::from(attempt)).unwrap();
    Receipt {
        recipient: Some(ann),
        address: Some(testing::address(&app(), Provider::Fcm, "phone").id),
        provider: Some(Provider::Fcm),
        attempt,
        reason: (state == State::Parked).then_some("unavailable".into()),
        took_us: Some(2500),
        ..Receipt::new(notification, job, Channel::Push, state, at)
    }
}

async fn write_receipts(rig: &Rig, number: u32, of: AppId, origin: Region, receipts: Vec<Receipt>) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("worker:{number}"));
    headers.insert(envelope::BATCH, format!("worker:{number}"));
    let here = region("eu");
    let subject = subject::receipt(&here, &origin, &of);
    let batch = Batch {
        app: of,
        region: here,
        origin,
        writer: "worker".into(),
        accepted: Vec::new(),
        receipts,
        handled: Vec::new(),
    };
    publish::store(&rig.js, subject, headers, serde_json::to_vec(&batch).unwrap().into())
        .await
        .unwrap();
}

async fn status(rig: &Rig, event: &str) -> Value {
    let id = NotificationId::of(&app(), &event.parse().unwrap());
    let answer = rig.ask("GET", &format!("/v1/notifications/{id}"), Value::Null).await;
    if answer.status == 200 {
        answer.body
    } else {
        json!({ "state": answer.code() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_goes_from_accepted_through_in_progress_to_done() {
    let rig = Rig::start().await;
    assert_eq!(rig.notify("e1", &["ann"]).await.status, 202);
    let accepted = status(&rig, "e1").await;
    assert_eq!(
        (&accepted["state"], &accepted["jobs"], &accepted["done"]),
        (&json!("accepted"), &json!(1), &json!(0))
    );
    assert_eq!(accepted["event_id"], "e1");
    assert!(accepted["accepted_at"].is_string());

    write_receipts(&rig, 1, app(), region("eu"), vec![receipt("e1", 1, State::Parked)]).await;
    eventually("the first attempt is recorded", async || {
        status(&rig, "e1").await["state"] == "in_progress"
    })
    .await;
    write_receipts(
        &rig,
        2,
        app(),
        region("eu"),
        vec![receipt("e0", 1, State::Delivered), receipt("e1", 2, State::Delivered)],
    )
    .await;
    eventually("the end is recorded", async || {
        status(&rig, "e1").await["state"] == "done"
    })
    .await;

    let done = status(&rig, "e1").await;
    assert_eq!(done["done"], 1);
    let delivery = &done["deliveries"][0];
    assert_eq!(
        (&delivery["state"], &delivery["recipient"], &delivery["provider"]),
        (&json!("delivered"), &json!("ann"), &json!("fcm"))
    );
    assert_eq!(delivery["region"], "eu");
    let attempts: Vec<_> = delivery["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (&a["attempt"], &a["state"]))
        .collect();
    assert_eq!(
        attempts,
        [(&json!(1), &json!("parked")), (&json!(2), &json!("delivered"))]
    );
    assert_eq!(
        (&delivery["attempts"][0]["reason"], &delivery["attempts"][0]["took_ms"]),
        (&json!("unavailable"), &json!(2.5))
    );

    // A notification that a service published to NATS itself has no record of a gateway.
    let unaccepted = status(&rig, "e0").await;
    assert_eq!((&unaccepted["state"], &unaccepted["jobs"]), (&json!("done"), &json!(1)));
    assert_eq!(unaccepted.get("event_id"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_of_another_app_are_not_shown() {
    let rig = Rig::start().await;
    let rival: AppId = "rival".parse().unwrap();
    write_receipts(&rig, 1, rival, region("eu"), vec![receipt("e1", 1, State::Delivered)]).await;
    assert_eq!(status(&rig, "e1").await["state"], "not_found");
    assert_eq!(status(&rig, "e2").await["state"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_accepted_notifications_are_written_before_shutdown_ends() {
    let rig = Rig::start().await;
    for event in 0..20 {
        rig.notify(&format!("e{event}"), &["ann"]).await;
    }
    let end = rig.lifecycle.finish_within(std::time::Duration::from_secs(10)).await;
    assert_eq!(end, shared::lifecycle::End::Clean);
    let mut recorded = 0;
    let stream = rig.js.get_stream("RECEIPTS").await.unwrap();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let batch: Batch = serde_json::from_slice(&stream.direct_get(sequence).await.unwrap().payload).unwrap();
        recorded += batch.accepted.len();
    }
    assert_eq!(recorded, 20);
}
