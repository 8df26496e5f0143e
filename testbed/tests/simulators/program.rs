//! The simulators as a program of their own.

use std::time::Duration;

use serde_json::{Value, json};
use shared::provider::Provider;

use crate::client::{Client, Draft};

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    simulate: testbed::simulate::SimulateArgs,
}

#[tokio::test]
async fn the_program_writes_the_files_that_a_client_needs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let script = dir.path().join("script.json");
    let rules = json!({"apns": {"rules": [{"token": "0a", "answer": {"reason": "Unregistered"}}]}});
    std::fs::write(&script, rules.to_string()).unwrap();
    let any = "127.0.0.1:0";
    let mut args = vec!["simulate".to_owned(), "--dir".to_owned(), path.to_owned()];
    let listening = Provider::ALL.iter().filter(|provider| **provider != Provider::Log);
    let names = listening.map(|provider| provider.as_str().replace('_', "-"));
    for name in names.chain(["admin".to_owned()]) {
        args.extend([format!("--{name}"), any.to_owned()]);
    }
    args.extend(["--script".to_owned(), script.to_str().unwrap().to_owned()]);
    let program = <Program as clap::Parser>::try_parse_from(args).unwrap();
    let running = tokio::spawn(testbed::simulate::run(program.simulate));

    let read = |name: &str| std::fs::read_to_string(dir.path().join(name));
    let http = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let mut tries = 0;
    while read("fcm-assertion.jwt").is_err() {
        tries += 1;
        assert!(tries < 3000 && !running.is_finished());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let at: Value = serde_json::from_str(&read("simulators.json").unwrap()).unwrap();
    let port = u16::try_from(at["apns_port"].as_u64().unwrap()).unwrap();
    let client = Client::connect_to(
        port,
        &read("ca.pem").unwrap(),
        1,
        read("apns-provider-token.jwt").unwrap(),
    )
    .await;
    assert_eq!(
        client.push(Draft::message_to("0a")).await.unwrap().reason(),
        "Unregistered"
    );

    let admin = at["admin"].as_str().unwrap();
    let put = |body: Value| {
        http.put(format!("{admin}/script"))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
    };
    assert_eq!(put(json!({"apns": {"rules": []}})).await.unwrap().status(), 204);
    assert_eq!(client.push(Draft::message_to("0a")).await.unwrap().status, 200);
    let unknown = json!({"fcm": {"rules": [{"answer": {"reason": "Unregistered"}}]}});
    assert_eq!(put(unknown).await.unwrap().status(), 422);
    let get = async |path: &str| -> Value {
        let response = http.get(format!("{admin}{path}")).send().await.unwrap();
        response.json().await.unwrap()
    };
    assert_eq!(get("/log").await["apns"][1]["token"], "0a");
    assert_eq!(get("/stats").await["apns"]["delivered"], 1);
    running.abort();
}
