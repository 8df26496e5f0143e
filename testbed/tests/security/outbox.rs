//! An app's own server, which keeps what services publish while it is cut off from the region.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, stream::Config},
};
use shared::{
    app::App,
    nats::{accounts, connect, topology},
};
use testbed::{
    links::{Proxy, Trouble},
    nats::Mesh,
};
use tokio::time::{sleep, timeout};

use crate::accounts::{here, linked_by, messages, prepare, tenant, two_apps};

/// A source that was cut off retries after up to 45 s.
const ARRIVED_WITHIN: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_while_cut_off_arrives_once() {
    let mesh = Mesh::start(two_apps(), &["eu"]).await.unwrap();
    let eu = mesh.region("eu");
    let peal = prepare(eu).await;
    let link = Proxy::start((eu.address(), eu.leaf_port()).into(), 1).unwrap();
    let own = linked_by(eu, format!("nats-leaf://{}", link.address())).await;
    let js = jetstream::new(own.connect_without_key().await.unwrap());
    js.create_stream(Config {
        name: accounts::OUTBOX.into(),
        subjects: vec![accounts::OUTBOX_SUBJECT.into()],
        ..Config::default()
    })
    .await
    .unwrap();
    // A gateway adds the source to the intake, once.
    let regions = connect::jetstream(peal.clone());
    let stream = here("eu").intake_stream(&App {
        outbox: true,
        ..tenant("shop")
    });
    for changes in [1, 0] {
        let made = topology::apply(&regions, std::slice::from_ref(&stream)).await.unwrap();
        assert_eq!(made.len(), changes, "{made:?}");
    }
    let before = messages(&peal, "INTAKE_shop").await;

    let publish = async |from: u32, to: u32| {
        for number in from..to {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("event-{number}"));
            let stored = js
                .publish_with_headers(accounts::OUTBOX_SUBJECT, headers, number.to_string().into())
                .await;
            stored.unwrap().await.unwrap();
        }
    };
    let arrived = async |count: u64| {
        let all = async {
            while messages(&peal, "INTAKE_shop").await < before + count {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(ARRIVED_WITHIN, all).await.unwrap();
    };
    publish(0, 50).await;
    arrived(50).await;

    link.set(&Trouble::Cut).unwrap();
    publish(50, 250).await;
    own.restart().await.unwrap();
    link.set(&Trouble::None).unwrap();
    arrived(250).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(messages(&peal, "INTAKE_shop").await, before + 250);
    let stream = regions.get_stream("INTAKE_shop").await.unwrap();
    let last = stream.get_raw_message(before + 1).await.unwrap();
    assert_eq!((last.subject.as_str(), &last.payload[..]), ("send.shop", &b"0"[..]));
}
