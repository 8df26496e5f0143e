//! A gateway whose servers flush before they acknowledge: jobs share flushes in batches.

use std::collections::{BTreeMap, HashSet};

use futures::{StreamExt, future::join_all};
use serde_json::json;
use shared::nats::{
    batch::{Batcher, Message},
    follow, topology,
};

use crate::rig::{Answer, Rig, send};

/// How many jobs of a stream each batch holds; jobs outside of batches are counted under `None`. Checks that no message
/// id is stored twice.
async fn batches(rig: &Rig, stream: &str) -> BTreeMap<Option<String>, usize> {
    let mut entries = follow::follow(&rig.js, stream, "notify.>", 1).await.unwrap();
    let (mut batches, mut ids) = (BTreeMap::new(), HashSet::new());
    loop {
        let entry = entries.next().await.unwrap().unwrap();
        let header = |name: &str| entry.headers.get(name).map(ToString::to_string);
        *batches.entry(header("Nats-Batch-Id")).or_default() += 1;
        assert!(ids.insert(header("Nats-Msg-Id").unwrap()), "stored twice");
        if entry.pending == 0 {
            return batches;
        }
    }
}

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("r{number}")).collect()
}

async fn notify(rig: &Rig, event: &str, recipients: &[String]) -> Answer {
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    rig.notify(event, &recipients).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_request_are_one_batch_and_a_single_job_is_none() {
    let rig = Rig::with_single_durability(|_| ()).await;
    assert_eq!(rig.notify("lone", &["ann"]).await.status, 202);
    assert_eq!(batches(&rig, topology::NOTIFY).await, BTreeMap::from([(None, 1)]));

    let answer = notify(&rig, "many", &names(0..1000)).await;
    assert_eq!((answer.status, &answer.body["jobs"]), (202, &json!(1000)), "{answer:?}");
    let found = batches(&rig, topology::NOTIFY).await;
    assert_eq!(found.values().copied().collect::<Vec<_>>(), [1, 1000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_share_batches_and_are_stored_once() {
    const REQUESTS: usize = 400;
    let rig = Rig::with_single_durability(|_| ()).await;
    for number in (0..10).map(|number| format!("r{number}")) {
        let path = format!("/v1/recipients/{number}");
        assert_eq!(rig.ask("PUT", &path, json!({ "home": "us" })).await.status, 201);
    }
    // Every tenth is for another region. All are sampled, so the servers report the hops of each.
    let asked = (0..REQUESTS).map(|number| {
        let body = json!({
            "event_id": format!("e{number}"),
            "to": { "recipients": [format!("r{}", number % 100)] },
            "push": { "title": "Hi" },
        });
        let request = rig
            .request("POST", "/v1/notifications")
            .bearer_auth(&rig.key)
            .json(&body);
        send(request.header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    });
    for answer in join_all(asked).await {
        assert_eq!(
            (answer.status, &answer.body["duplicates"]),
            (202, &json!(0)),
            "{answer:?}"
        );
    }
    let here = batches(&rig, topology::NOTIFY).await;
    assert_eq!(here.values().sum::<usize>(), REQUESTS - REQUESTS / 10);
    assert!(here.keys().any(Option::is_some), "{here:?}");
    // A stream that gets few messages at a time uses no batches, and answers do not depend on it.
    assert_eq!(rig.count(topology::OUTBOX).await, (REQUESTS / 10) as u64 + 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_for_another_region_are_a_batch_of_their_own() {
    let rig = Rig::with_single_durability(|_| ()).await;
    let far = names(0..100);
    let registered = far.iter().map(|name| {
        let path = format!("/v1/recipients/{name}");
        async { rig.ask("PUT", &{ path }, json!({ "home": "us" })).await.status }
    });
    assert!(join_all(registered).await.iter().all(|status| *status == 201));
    let answer = notify(&rig, "e1", &names(0..300)).await;
    assert_eq!((answer.status, &answer.body["jobs"]), (202, &json!(300)), "{answer:?}");
    let sizes = async |stream| {
        batches(&rig, stream)
            .await
            .into_iter()
            .filter(|(id, _)| id.is_some())
            .map(|(_, size)| size)
            .collect::<Vec<_>>()
    };
    assert_eq!(sizes(topology::NOTIFY).await, [200]);
    assert_eq!(sizes(topology::OUTBOX).await, [100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_does_not_fail_the_other_jobs_of_its_batch() {
    let rig = Rig::with_single_durability(|_| ()).await;
    assert_eq!(rig.notify("e1", &["r700"]).await.status, 202);
    let answer = notify(&rig, "e1", &names(0..1000)).await;
    assert_eq!(
        (answer.status, &answer.body["jobs"], &answer.body["duplicates"]),
        (202, &json!(1000), &json!(1)),
        "{answer:?}"
    );
    let found = batches(&rig, topology::NOTIFY).await;
    assert_eq!(found.values().sum::<usize>(), 1000);
    assert!(found[&None] < 200, "most are in batches: {found:?}");

    let again = notify(&rig, "e1", &names(0..1000)).await;
    assert_eq!(
        (again.status, &again.body["duplicates"]),
        (202, &json!(1000)),
        "{again:?}"
    );
    assert_eq!(rig.count(topology::NOTIFY).await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_with_one_event_are_stored_once() {
    let rig = Rig::with_single_durability(|_| ()).await;
    let recipients = names(0..200);
    let answers = join_all((0..8).map(|_| notify(&rig, "e1", &recipients))).await;
    let mut duplicates = 0;
    for answer in answers {
        assert_eq!(answer.status, 202, "{answer:?}");
        duplicates += answer.body["duplicates"].as_u64().unwrap();
    }
    assert_eq!(duplicates, 7 * 200);
    assert_eq!(batches(&rig, topology::NOTIFY).await.values().sum::<usize>(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fills_the_stream_is_refused_and_completed_by_repeating_it() {
    let rig = Rig::with_single_durability(|settings| settings.mesh.max_bytes = 100_000).await;
    let recipients = names(0..1000);
    let refused = notify(&rig, "e1", &recipients).await;
    assert_eq!((refused.status, refused.code()), (503, "stream_full"), "{refused:?}");
    let stored = rig.count(topology::NOTIFY).await;
    assert!((1..1000).contains(&stored), "{stored}");
    assert!(
        refused.body["detail"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{stored} of 1000 jobs are stored")),
        "{refused:?}"
    );
    rig.lift_limit().await;
    let again = notify(&rig, "e1", &recipients).await;
    assert_eq!(
        (again.status, &again.body["duplicates"]),
        (202, &json!(stored)),
        "{again:?}"
    );
    assert_eq!(rig.count(topology::NOTIFY).await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_without_an_answer_is_refused_and_stored_once_when_repeated() {
    let rig = Rig::with_single_durability(|settings| settings.limits.request_timeout_s = 7).await;
    let recipients = names(0..500);
    rig.nats.region("eu").pause().unwrap();
    let refused = notify(&rig, "e1", &recipients).await;
    assert_eq!(
        (refused.status, refused.code()),
        (503, "stream_unavailable"),
        "{refused:?}"
    );
    rig.nats.region("eu").resume().unwrap();
    let again = notify(&rig, "e1", &recipients).await;
    assert_eq!((again.status, &again.body["jobs"]), (202, &json!(500)), "{again:?}");
    assert_eq!(batches(&rig, topology::NOTIFY).await.values().sum::<usize>(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_publisher_gets_the_sequence_of_its_own_message() {
    let rig = Rig::with_single_durability(|_| ()).await;
    let batcher = Batcher::new(rig.js.clone());
    let store = |id: usize| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.to_string());
        batcher.store(Message {
            subject: "notify.push.eu.normal.shop".into(),
            headers,
            payload: "x".into(),
        })
    };
    let first = store(70).await.unwrap();
    let stored = join_all((0..150).map(store)).await;
    let stream = rig.js.get_stream(topology::NOTIFY).await.unwrap();
    for (id, stored) in stored.into_iter().map(Result::unwrap).enumerate() {
        let message = stream.direct_get(stored.sequence).await.unwrap();
        assert_eq!(message.headers.get("Nats-Msg-Id").unwrap().as_str(), id.to_string());
        assert_eq!(stored.duplicate, id == 70);
        assert_eq!(stored.stream, topology::NOTIFY);
    }
    assert_eq!((first.sequence, first.duplicate), (1, false));
}
