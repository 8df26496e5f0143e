//! Sends notifications in every way that Peal has, and follows what becomes of them.
//!
//! ```sh
//! source …/peal.env        # `cargo demo` prints its path
//! cargo run -p peal-example
//! ```

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    time::Duration,
};

use anyhow::{Context, bail};
use async_nats::{
    Client, ConnectOptions, Event, HeaderMap,
    jetstream::{self, consumer::PullConsumer},
};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use uuid::Uuid;

/// Asks a gateway. An answer other than 2xx names the field and the rule.
async fn http(method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(15)).build()?;
    let url = env::var("PEAL_URL")? + path;
    let mut request = client.request(method, url).bearer_auth(env::var("PEAL_KEY")?);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    if !status.is_success() {
        bail!("{status} {text}");
    }
    Ok(serde_json::from_str(&text)?)
}

/// Connects as a service of the app, in the app's own NATS account.
async fn connect() -> anyhow::Result<Client> {
    let seed = fs::read_to_string(env::var("NATS_NKEY")?)?;
    // With a .creds file: ConnectOptions::with_credentials_file(env::var("NATS_CREDS")?).await?
    let mut options = ConnectOptions::with_nkey(seed.trim().to_owned())
        .require_tls(true)
        .add_root_certificates(env::var("NATS_CA")?.into())
        // What the app may not do is reported here and nowhere else: the call itself runs into its timeout.
        .event_callback(|event| async move {
            if let Event::ServerError(error) = event {
                eprintln!("nats: {error}");
            }
        });
    // Where the servers ask for a client's certificate.
    if let (Ok(cert), Ok(key)) = (env::var("NATS_CERT"), env::var("NATS_KEY")) {
        options = options.add_client_certificate(cert.into(), key.into());
    }
    Ok(options.connect(env::var("NATS_URL")?).await?)
}

/// The event id names what happened. However often it is sent, and by whatever way, it is delivered once.
fn notification(event_id: &str, title: &str) -> Value {
    json!({ "event_id": event_id, "to": { "recipients": ["ann"] }, "class": "urgent", "push": { "title": title } })
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = env::var("PEAL_APP")?;
    let order = Uuid::new_v4();
    let event_ids = ["paid", "packed", "shipped"].map(|what| format!("order-{order}-{what}"));
    let [paid, packed, shipped] = &event_ids;

    // 1. HTTP. 202: stored.
    let body = notification(paid, "Your order is paid");
    let accepted = http(Method::POST, "/v1/notifications", Some(body)).await?;
    println!("http     accepted {}", text(&accepted, "event_id"));

    // 2. JetStream. Acknowledged: stored, also while no gateway runs. A message that breaks a rule becomes a dead letter.
    let nats = connect().await?;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", packed.as_str());
    let body = notification(packed, "Your order is packed").to_string();
    let published = jetstream::new(nats.clone())
        .publish_with_headers(format!("send.{app}"), headers, body.into())
        .await?;
    println!("publish  stored in {}", published.await?.stream);

    // 3. A request. The answer is that of HTTP.
    let body = notification(shipped, "Your order is on its way").to_string();
    let answer = nats.request(format!("send.{app}.now"), body.into()).await?;
    let headers = answer.headers.unwrap_or_default();
    if headers.get("Nats-Service-Error-Code").is_some() {
        bail!("request  refused {}", String::from_utf8_lossy(&answer.payload));
    }
    let accepted: Value = serde_json::from_slice(&answer.payload)?;
    println!("request  accepted {}", text(&accepted, "event_id"));

    // 4. The status feed, until all three have reached a device.
    timeout(Duration::from_secs(60), follow(&nats, &app, &event_ids))
        .await
        .context("not delivered within a minute")??;
    nats.drain().await?;

    // 5. The status by event id, whichever way it was sent.
    for event_id in &event_ids {
        let found = http(Method::GET, &format!("/v1/notifications?event_id={event_id}"), None).await?;
        for delivery in found["notifications"][0]["deliveries"].as_array().into_iter().flatten() {
            let [recipient, provider, state] = ["recipient", "provider", "state"].map(|name| text(delivery, name));
            println!("status   {event_id} {recipient} {provider} {state}");
        }
    }
    Ok(())
}

/// Reads the status feed, a durable consumer: each batch goes to one of the app's services, again until acknowledged.
async fn follow(nats: &Client, app: &str, event_ids: &[String]) -> anyhow::Result<()> {
    let feed: PullConsumer = jetstream::with_domain(nats.clone(), "peal")
        .get_consumer_from_stream(format!("svc_{app}"), "RECEIPTS")
        .await?;
    let mut messages = feed.messages().await?;
    let mut waiting: HashSet<&str> = event_ids.iter().map(String::as_str).collect();
    let (mut names, mut delivered) = (HashMap::new(), HashSet::new());
    while !waiting.is_empty() {
        let message = messages.next().await.context("the feed ended")??;
        let batch: Value = serde_json::from_slice(&message.payload)?;
        // Gateways write which notification an event became, workers what became of it, in any order.
        for accepted in batch["accepted"].as_array().into_iter().flatten() {
            names.insert(accepted["notification"].to_string(), accepted["event_id"].clone());
        }
        for receipt in batch["receipts"].as_array().into_iter().flatten() {
            if receipt["state"] == "delivered" {
                delivered.insert(receipt["notification"].to_string());
            }
        }
        message.ack().await.map_err(anyhow::Error::from_boxed)?;
        for event_id in delivered
            .iter()
            .filter_map(|notification| names.get(notification)?.as_str())
        {
            if waiting.remove(event_id) {
                println!("feed     delivered {event_id}");
            }
        }
    }
    Ok(())
}
