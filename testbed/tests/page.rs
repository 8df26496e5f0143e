//! The pages that an edge worker serves over HTTP.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    nats,
    peal::{Peal, Plan},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_shows_which_endpoint_it_uses_and_why() {
    let plan = Plan {
        workers: 1,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "beef")]).await.unwrap();
    let send = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "Hello" } });
    peal.expect("POST", "eu", "/v1/notifications", Some(&send))
        .await
        .unwrap();

    let worker = &peal.region("eu").workers[0].url;
    let used_endpoint = |page: &Value| {
        let all = page["endpoints"].as_array().unwrap().clone();
        let is_used = |endpoint: &Value| endpoint["answer_ms"].is_f64() && endpoint["round_trip_ms"].is_f64();
        all.into_iter().find(is_used)
    };
    let endpoint = loop {
        let page = peal.http.get(format!("{worker}/v1/endpoints")).send().await.unwrap();
        if let Some(used) = used_endpoint(&page.json().await.unwrap()) {
            break used;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for (field, value) in [
        ("provider", json!("apns")),
        ("environment", json!("production")),
        ("chosen", json!(true)),
        ("healthy", json!(true)),
        ("spare", json!(false)),
        ("errors", json!(0.0)),
        ("connections", json!(1)),
    ] {
        assert_eq!(endpoint[field], value, "{field} of {endpoint:#}");
    }
    for field in ["endpoint", "address", "since", "why", "last_used"] {
        assert!(endpoint[field].is_string(), "{field} of {endpoint:#}");
    }

    let name = endpoint["endpoint"].as_str().unwrap();
    loop {
        let page = peal.http.get(format!("{worker}/metrics")).send().await.unwrap();
        let page = page.text().await.unwrap();
        let chosen =
            |line: &str| line.starts_with("peal_endpoint_chosen{") && line.contains(name) && line.ends_with(" 1");
        let answered = |line: &str| line.starts_with("peal_endpoint_time_seconds{") && line.contains(r#"of="answer""#);
        if page.lines().any(chosen) && page.lines().any(answered) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
