//! Tests of the properties of the servers that the rest of the testbed relies on.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        stream::{Config, External, Source},
    },
};
use shared::nats::subject::LOCAL_PREFIXES;
use tokio::time::{sleep, timeout};

use super::{Keys, Mesh, Role, Server, Settings, SyncInterval, from_env};

const REGION_CONF: &str = include_str!("../../../deploy/nats/region.conf");

async fn jetstream_of(server: &Server) -> jetstream::Context {
    jetstream::context::ContextBuilder::new()
        .timeout(Duration::from_millis(500))
        .build(server.connect_as_test().await.unwrap())
}

async fn messages(jetstream: &jetstream::Context, stream: &str) -> u64 {
    match jetstream.get_stream(stream).await {
        Ok(stream) => stream.cached_info().state.messages,
        Err(_) => 0,
    }
}

async fn wait_messages(jetstream: &jetstream::Context, stream: &str, count: u64) {
    let arrived = async {
        while messages(jetstream, stream).await < count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_mins(1), arrived)
        .await
        .unwrap_or_else(|_| panic!("{stream} did not reach {count} messages"));
}

#[test]
fn the_leaf_link_denies_every_local_subject() {
    for list in ["deny_exports: [", "deny_imports: ["] {
        let (_, rest) = REGION_CONF.split_once(list).unwrap();
        let (denied, _) = rest.split_once(']').unwrap();
        let mut denied: Vec<&str> = denied
            .split(',')
            .map(|subject| subject.trim().trim_matches('"'))
            .collect();
        let mut expected: Vec<String> = LOCAL_PREFIXES.iter().map(|prefix| format!("{prefix}.>")).collect();
        denied.sort_unstable();
        expected.sort_unstable();
        assert_eq!(denied, expected, "in {list}");
    }
}

#[tokio::test]
async fn the_server_accepts_every_sync_interval() {
    for sync_interval in [
        SyncInterval::Default,
        SyncInterval::Every(Duration::from_millis(1500)),
        SyncInterval::Always,
    ] {
        let settings = Settings {
            sync_interval,
            ..Settings::new(from_env().unwrap())
        };
        let keys = Keys::generate().unwrap();
        let hub = Server::start(settings.clone(), keys.clone(), "hub", Role::Hub)
            .await
            .unwrap();
        let region = Server::start(settings, keys, "eu", Role::Region { hub: hub.leaf_url() })
            .await
            .unwrap();
        for server in [hub, region] {
            let log = std::fs::read_to_string(server.log_path()).unwrap();
            assert!(!log.contains("invalid use of field"), "{sync_interval:?}: {log}");
        }
    }
}

#[tokio::test]
async fn a_restarted_server_keeps_its_port_and_its_data() {
    let settings = Settings {
        sync_interval: SyncInterval::Always,
        ..Settings::new(from_env().unwrap())
    };
    let server = Server::start(settings, Keys::generate().unwrap(), "eu", Role::Hub)
        .await
        .unwrap();
    let url = server.url();
    let jetstream = jetstream_of(&server).await;
    let stream = Config {
        name: "KEPT".into(),
        subjects: vec!["kept.>".into()],
        ..Config::default()
    };
    jetstream.create_stream(stream).await.unwrap();
    jetstream.publish("kept.a", "x".into()).await.unwrap().await.unwrap();

    server.kill().unwrap();
    assert!(server.pid().is_none());
    server.kill().unwrap();
    server.restart().await.unwrap();
    assert_eq!(server.url(), url);
    wait_messages(&jetstream, "KEPT", 1).await;

    server.stop().await.unwrap();
    server.restart().await.unwrap();
    wait_messages(&jetstream, "KEPT", 1).await;
}

#[tokio::test]
async fn a_paused_server_keeps_its_connections_and_answers_after_it_resumes() {
    let server = Server::start(from_env().unwrap(), Keys::generate().unwrap(), "eu", Role::Hub)
        .await
        .unwrap();
    let jetstream = jetstream_of(&server).await;
    assert!(jetstream.query_account().await.is_ok());

    server.pause().unwrap();
    let silent = async { while jetstream.query_account().await.is_ok() {} };
    timeout(Duration::from_secs(20), silent).await.unwrap();
    server.resume().unwrap();
    assert!(jetstream.query_account().await.is_ok());
}

#[tokio::test]
async fn a_message_for_another_region_arrives_once_even_after_the_hub_was_down() {
    let mesh = Mesh::start(from_env().unwrap(), &["eu", "us"]).await.unwrap();
    let eu = jetstream_of(mesh.region("eu")).await;
    let us = jetstream_of(mesh.region("us")).await;
    let outbox = Config {
        name: "OUTBOX".into(),
        subjects: vec!["notify.*.us.>".into()],
        ..Config::default()
    };
    eu.create_stream(outbox).await.unwrap();
    let source = Source {
        name: "OUTBOX".into(),
        filter_subject: Some("notify.*.us.>".into()),
        start_sequence: Some(1),
        external: Some(External {
            api_prefix: "$JS.eu.API".into(),
            delivery_prefix: None,
        }),
        ..Source::default()
    };
    let notify = Config {
        name: "NOTIFY".into(),
        subjects: vec!["notify.*.us.>".into()],
        sources: Some(vec![source]),
        ..Config::default()
    };
    us.create_stream(notify.clone()).await.unwrap();

    // The message has no id, so the server would not drop a second copy that came over the link directly.
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", "kept");
    eu.publish_with_headers("notify.push.us.normal.a", headers, "1".into())
        .await
        .unwrap()
        .await
        .unwrap();
    wait_messages(&us, "NOTIFY", 1).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(messages(&us, "NOTIFY").await, 1);
    let stream = us.get_stream("NOTIFY").await.unwrap();
    let arrived = stream.get_raw_message(1).await.unwrap();
    assert_eq!(arrived.subject.as_str(), "notify.push.us.normal.a");
    assert_eq!(arrived.headers.get("traceparent").unwrap().as_str(), "kept");

    mesh.hub().kill().unwrap();
    eu.publish("notify.push.us.normal.a", "2".into())
        .await
        .unwrap()
        .await
        .unwrap();
    mesh.hub().restart().await.unwrap();
    mesh.linked().await.unwrap();
    // Removing the sources and adding them again makes the server reconnect to them at once, instead of within 45 s.
    let without = Config {
        sources: None,
        ..notify.clone()
    };
    us.update_stream(without).await.unwrap();
    us.update_stream(notify).await.unwrap();
    wait_messages(&us, "NOTIFY", 2).await;
}
