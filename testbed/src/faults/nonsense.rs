//! Requests and messages that make no sense, and whether they end as they must.

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

/// Sends all of them, each answer held against what it must be. Gives how many messages end among the dead, and what
/// is wrong.
///
/// # Errors
/// When there is no answer at all.
pub(super) async fn send(peal: &Peal, callers: &Callers, scenario: &Scenario) -> anyhow::Result<(usize, Vec<String>)> {
    let (mut buried, mut failures) = (0, Vec::new());
    for request in &scenario.requests {
        let status = ask(peal, request).await?;
        if status != request.status {
            failures.push(format!(
                "{}: answered with {status}, expected {}",
                request.name, request.status
            ));
        }
    }
    for message in &scenario.messages {
        let stored = tell(peal, callers, message).await?;
        if stored != message.ends.is_some() {
            failures.push(format!("{}: stored is {stored}", message.name));
        }
        buried += usize::from(message.ends == Some(State::Dead));
    }
    Ok((buried, failures))
}

async fn ask(peal: &Peal, request: &Request) -> anyhow::Result<u16> {
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
        // Who is told in the middle of a large body may still be writing when the connection closes.
        Err(_) if request.status == 413 => Ok(413),
        Err(error) => Err(error.into()),
    }
}

async fn tell(peal: &Peal, callers: &Callers, message: &Message) -> anyhow::Result<bool> {
    let region = &peal.regions[0].name;
    let js = connect::jetstream(peal.connect_as_service(region).await?);
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
    // Whoever it is for is the load's first recipient.
    let recipient = callers.recipients[0].id.parse()?;
    if message.ends.is_some_and(|state| state != State::Dead) {
        callers.expect_also(JobId::of(&lane.app, &id.parse()?, &recipient, lane.channel));
    }
    let storing = publish::store(&js, lane.notify(), headers, message.body.bytes().into());
    Ok(tokio::time::timeout(Duration::from_secs(10), storing)
        .await
        .is_ok_and(|stored| stored.is_ok()))
}
