//! APNs: stream limits, GOAWAY and restarts.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use h2::Reason;
use http::Request;
use testbed::providers::{Answer, Apns, ApnsConfig, ApnsKey, Authority, Rule};
use tokio::net::TcpStream;

use crate::client::{Client, Draft, PAYLOAD, TOPIC, apns, scripted};

#[tokio::test]
async fn one_stream_until_a_valid_provider_token_then_a_thousand() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    let bad = Draft::message_to("beef").set("authorization", "bearer x.y.z");
    assert_eq!(client.push(bad).await.unwrap().status, 403);
    client.wait_for_streams(1).await;
    let misaddressed = Draft::message_to("nothex");
    assert_eq!(client.push(misaddressed).await.unwrap().reason(), "BadDeviceToken");
    client.wait_for_streams(1000).await;
    let many = join_all((0..1000).map(|_| client.push(Draft::message_to("beef")))).await;
    assert!(many.into_iter().all(|response| response.unwrap().status == 200));
    assert_eq!(apns.stats().refused_streams, 0);
}

#[tokio::test]
async fn streams_opened_before_the_settings_allow_them_are_refused() {
    let apns = apns().await;
    let client = Client::connect(&apns, 100).await;
    let burst = join_all((0..50).map(|_| client.push(Draft::message_to("beef")))).await;
    let mut refused = 0;
    for response in burst {
        match response {
            Ok(response) => assert_eq!(response.status, 200),
            Err(error) => {
                assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    assert_eq!(apns.stats().refused_streams, refused);
    assert_eq!(apns.log().delivered_count(), 50 - refused);
    client.wait_for_streams(1000).await;
    assert_eq!(client.push(Draft::message_to("beef")).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_in_several_frames_is_assembled() {
    let apns = apns().await;
    let client = Client::connect(&apns, 1).await;
    let mut send = client.send.clone().ready().await.unwrap();
    let request = Request::post("https://localhost/3/device/beef")
        .header("authorization", format!("bearer {}", client.token))
        .header("apns-topic", TOPIC)
        .body(())
        .unwrap();
    let (response, mut body) = send.send_request(request, false).unwrap();
    for piece in [r#"{"aps""#, r#":{"alert"#, r#"":"ding"}}"#] {
        tokio::time::sleep(Duration::from_millis(20)).await;
        body.send_data(piece.into(), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    assert_eq!(apns.log().delivered()[0].payload, PAYLOAD);
}

#[tokio::test]
async fn goaway_lets_streams_up_to_the_last_it_names_finish_and_no_others() {
    let apns = scripted(vec![
        Rule::token("51").delay(Duration::from_millis(300)),
        Rule::token("60").answer(Answer::goaway(false)),
    ])
    .await;
    let client = Client::connect(&apns, 1).await;
    client.push(Draft::message_to("00")).await.unwrap();
    client.wait_for_streams(1000).await;
    let slow = client.push(Draft::message_to("51"));
    let fatal = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        join_all(["60", "61", "62"].map(|token| client.push(Draft::message_to(token)))).await
    };
    let (slow, fatal) = tokio::join!(slow, fatal);
    assert_eq!(slow.unwrap().status, 200);
    for result in fatal {
        let error = result.err().expect("GOAWAY named a lower stream");
        assert!(error.is_go_away() && error.is_remote(), "{error}");
        assert_eq!(error.reason(), Some(Reason::NO_ERROR));
        assert!(error.to_string().contains("Shutdown"), "{error}");
    }
    assert!(apns.log().delivered_to("60").is_empty());
    assert!(apns.log().requests_for("61").is_empty());
    let again = Client::connect(&apns, 1).await;
    assert_eq!(again.push(Draft::message_to("61")).await.unwrap().status, 200);
}

#[tokio::test]
async fn goaway_can_include_the_push_and_can_be_sent_on_request() {
    let apns = scripted(vec![Rule::token("60").answer(Answer::goaway(true))]).await;
    let client = Client::connect(&apns, 1).await;
    assert_eq!(client.push(Draft::message_to("60")).await.unwrap().status, 200);
    assert_eq!(apns.log().delivered_to("60").len(), 1);
    let after = client.push(Draft::message_to("61")).await;
    assert!(after.is_err_and(|error| error.is_go_away() || error.is_io()));

    let client = Client::connect(&apns, 1).await;
    client.push(Draft::message_to("61")).await.unwrap();
    apns.go_away();
    let closed = async { while client.push(Draft::message_to("61")).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), closed).await.unwrap();
}

#[tokio::test]
async fn a_stopped_simulator_can_start_again() {
    let authority = Authority::generate().unwrap();
    let key = ApnsKey::generate("PEALTEAM01", "PEALKEY001").unwrap();
    let config = ApnsConfig {
        authority: Some(authority),
        keys: vec![key.into()],
        ..ApnsConfig::default()
    };
    let first = Apns::start(config.clone()).await.unwrap();
    let client = Client::connect(&first, 1).await;
    client.push(Draft::message_to("aa")).await.unwrap();
    assert_eq!(first.stats().open_connections, 1);
    first.stop().await;
    assert!(client.push(Draft::message_to("aa")).await.is_err());
    assert!(TcpStream::connect(first.addr()).await.is_err());
    assert_eq!(first.stats().open_connections, 0);
    let second = Apns::start(ApnsConfig {
        listen: first.addr(),
        ..config
    })
    .await
    .unwrap();
    assert_eq!(
        Client::connect(&second, 1)
            .await
            .push(Draft::message_to("aa"))
            .await
            .unwrap()
            .status,
        200
    );
}
