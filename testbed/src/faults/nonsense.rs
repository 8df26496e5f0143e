//! Sends malformed requests and messages, and checks that each is refused, or stored, as the scenario expects.

use std::time::Duration;

use async_nats::HeaderMap;
use shared::{
    channel::{Channel, Class},
    id::JobId,
    nats::{connect, publish, subject::Lane},
    receipt::State,
};

use super::{
    load::Callers,
    scenario::{Message, Request, Scenario},
};
use crate::peal::{APP, Peal};

/// Sends all malformed requests and messages of a scenario. Returns the number of messages that must end as dead letters,
/// and the failures.
///
/// # Errors
/// When a region does not answer.
pub(super) async fn send(peal: &Peal, callers: &Callers, scenario: &Scenario) -> anyhow::Result<(usize, Vec<String>)> {
    let (mut dead_letters, mut failures) = (0, Vec::new());
    for request in &scenario.requests {
        let status = send_request(peal, request).await?;
        if status != request.status {
            failures.push(format!(
                "{}: answered with {status}, expected {}",
                request.name, request.status
            ));
        }
    }
    for message in &scenario.messages {
        let stored = publish_message(peal, callers, message).await?;
        if stored != message.ends.is_some() {
            failures.push(format!("{}: stored is {stored}", message.name));
        }
        dead_letters += usize::from(message.ends == Some(State::Dead));
    }
    Ok((dead_letters, failures))
}

async fn send_request(peal: &Peal, request: &Request) -> anyhow::Result<u16> {
    let url = format!("{}{}", peal.regions[0].gateway.url, request.path);
    let mut asking = peal
        .http
        .request(request.method.parse()?, url)
        .body(request.body.bytes());
    let key = request.key.as_ref().unwrap_or(&peal.key);
    if !key.is_empty() {
        asking = asking.bearer_auth(key);
    }
    if !request.headers.contains_key("content-type") {
        asking = asking.header("content-type", "application/json");
    }
    for (name, value) in &request.headers {
        asking = asking.header(name, value);
    }
    match asking.send().await {
        Ok(answer) => Ok(answer.status().as_u16()),
        // The gateway may answer 413 and close the connection while we are still writing the body.
        Err(_) if request.status == 413 => Ok(413),
        Err(error) => Err(error.into()),
    }
}

async fn publish_message(peal: &Peal, callers: &Callers, message: &Message) -> anyhow::Result<bool> {
    let region = &peal.regions[0].name;
    let js = connect::jetstream(peal.connect(region).await?);
    let lane = Lane {
        channel: Channel::Push,
        region: region.parse()?,
        class: Class::Normal,
        app: APP.parse()?,
    };
    let id = message.name.replace(' ', "-");
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id.as_str());
    for (name, value) in &message.headers {
        headers.insert(name.as_str(), value.as_str());
    }
    // Each message is for the first recipient of the load.
    let recipient = callers.recipients[0].id.parse()?;
    if message.ends.is_some_and(|state| state != State::Dead) {
        callers.expect_also(JobId::of(
            &callers.ids,
            &lane.app,
            &id.parse()?,
            &recipient,
            lane.channel,
        ));
    }
    let storing = publish::store(&js, lane.notify(), headers, message.body.bytes().into());
    Ok(tokio::time::timeout(Duration::from_secs(10), storing)
        .await
        .is_ok_and(|stored| stored.is_ok()))
}
