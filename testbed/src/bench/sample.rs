//! The sample notification and its recipients: every measurement sends the same bytes.

use std::{collections::VecDeque, sync::LazyLock};

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use serde_json::{Value, json};
use shared::{
    address::{Address, Target},
    body::{Body, To},
    channel::Channel,
    clock::Clock,
    content::{Content, push::Push},
    digest::derive,
    id::{AppId, EventId, RecipientId, Region},
    id_key::IdKey,
    nats::{publish, subject},
    provider::{
        Provider,
        apns::{self, Environment, Kind},
    },
    recipient::{Fact, Profile, RecipientKey},
    trial::Trial,
};

use crate::peal::APP;

/// The number of recipients, each with one device.
pub(super) const RECIPIENTS: usize = 1000;

/// The number of facts that are unacknowledged at one time.
const UNACKNOWLEDGED_MAX: usize = 1024;

/// The region that accepts the notifications; the only one, except in `bench broadcast`.
pub(super) const REGION: &str = "eu";

static PUSH: LazyLock<Push> = LazyLock::new(|| Push {
    title: Some("Your order is on its way".into()),
    body: Some("Order 4711 leaves our warehouse today and arrives tomorrow before noon.".into()),
    data: [("order".to_owned(), "4711".to_owned())].into(),
    sound: Some("default".into()),
    ..Push::default()
});

/// [`REGION`], parsed.
pub(super) fn region() -> Region {
    REGION.parse().expect("it is a valid region")
}

/// The id of a recipient. Numbers wrap around at [`RECIPIENTS`].
pub(super) fn recipient(number: usize) -> String {
    format!("recipient-{:04}", number % RECIPIENTS)
}

/// The id of a recipient whose only address is of this provider, and what the provider's simulator knows the address by.
pub(super) fn recipient_at(provider: Provider, number: usize) -> (String, String) {
    if provider == Provider::Apns {
        return (recipient(number), device(number));
    }
    let id = format!("{provider}-{:04}", number % RECIPIENTS);
    let token = match provider {
        Provider::Smtp | Provider::SendGrid | Provider::Mailchimp => format!("{id}@example.com"),
        Provider::Twilio | Provider::Vonage => format!("+417900{:05}", number % RECIPIENTS),
        Provider::Webhook => format!("/{id}"),
        _ => format!("token-{id}"),
    };
    (id, token)
}

/// The content of every notification that this provider carries.
fn content(provider: Provider) -> (Channel, Value) {
    let (title, body) = (PUSH.title.as_deref(), PUSH.body.as_deref());
    match Channel::ALL.iter().find(|channel| provider.carries(**channel)) {
        Some(Channel::Email) => (Channel::Email, json!({ "subject": title, "text": body })),
        Some(Channel::Sms) => (Channel::Sms, json!({ "text": body })),
        Some(Channel::Webhook) => (Channel::Webhook, json!({ "text": body })),
        Some(Channel::Push) | None => (Channel::Push, json!(&*PUSH)),
    }
}

/// The device token of a recipient.
pub(super) fn device(number: usize) -> String {
    token(&recipient(number))
}

/// The device token of the recipient with this id.
pub(super) fn token(name: &str) -> String {
    format!(
        "{}{}",
        derive("device", &[name]).simple(),
        derive("more of it", &[name]).simple()
    )
}

/// The content of every notification.
pub(super) fn push() -> &'static Push {
    &PUSH
}

/// The payload that the simulator receives.
pub(super) fn payload() -> Bytes {
    apns::render(&PUSH).into()
}

/// The payload that `JetStream` receives: the body of a job, as the gateway writes it.
pub(super) fn job() -> Bytes {
    let recipient: RecipientId = recipient(0).parse().expect("it is a valid recipient id");
    let body = Body {
        event_id: Some(EventId::fresh()),
        to: To::Recipient(recipient),
        category: None,
        trial: Trial::NONE,
        content: Content::Push(PUSH.clone().into()),
        course: None,
    };
    serde_json::to_vec(&body).expect("bodies always serialize").into()
}

/// Writes the bodies of requests to the gateway.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    provider: Provider,
    /// The bytes after the list of recipients.
    tail: Bytes,
}

impl Requests {
    /// Notifications for the recipients of this provider.
    pub(super) fn new(provider: Provider) -> Self {
        let (channel, content) = content(provider);
        Self {
            provider,
            tail: format!("]}},\"{channel}\":{content}}}").into(),
        }
    }

    /// The body of a request to `count` recipients, starting at number `first`.
    pub(super) fn write(&self, event: &EventId, first: usize, count: usize) -> Bytes {
        let mut text = format!("{{\"event_id\":\"{event}\",\"to\":{{\"recipients\":[").into_bytes();
        for number in first..first + count {
            if number > first {
                text.push(b',');
            }
            text.push(b'"');
            text.extend_from_slice(recipient_at(self.provider, number).0.as_bytes());
            text.push(b'"');
        }
        text.extend_from_slice(&self.tail);
        text.into()
    }
}

/// The facts that the gateway stores for a recipient with one device.
pub(super) fn facts(home: &Region, recipient: &str, token: &str) -> anyhow::Result<(RecipientKey, Vec<Fact>)> {
    let app: AppId = APP.parse()?;
    let now = Clock::system().now();
    let profile = Profile {
        home: home.clone(),
        locale: None,
        timezone: None,
        updated_at: now,
    };
    let target = apns::Target::new(token, Kind::Device, Environment::Production, None, None)?;
    let address = Address::new(&IdKey::unkeyed(), &app, Target::Apns(target), now);
    let recipient = recipient.parse()?;
    let facts = vec![Fact::Profile(profile), Fact::Address(address)];
    Ok((RecipientKey { app, recipient }, facts))
}

/// Stores facts as the gateway does.
pub(super) async fn store(
    js: &jetstream::Context,
    recipients: impl Iterator<Item = anyhow::Result<(RecipientKey, Vec<Fact>)>>,
) -> anyhow::Result<()> {
    let mut unacknowledged = VecDeque::with_capacity(UNACKNOWLEDGED_MAX);
    for recipient in recipients {
        let (key, facts) = recipient?;
        for fact in facts {
            if unacknowledged.len() == UNACKNOWLEDGED_MAX
                && let Some(oldest) = unacknowledged.pop_front()
            {
                check_stored(oldest).await?;
            }
            let subject = subject::fact(&key, fact.name());
            unacknowledged.push_back(publish::send(js, subject, HeaderMap::new(), fact.encode().into()).await?);
        }
    }
    for pending in unacknowledged {
        check_stored(pending).await?;
    }
    Ok(())
}

async fn check_stored(ack: impl Future<Output = Result<publish::Stored, publish::NotStored>>) -> anyhow::Result<()> {
    ack.await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_form_that_the_gateway_accepts() {
        let request = Requests::new(Provider::Apns).write(&"e".parse().unwrap(), 999, 2);
        let request: Value = serde_json::from_slice(&request).unwrap();
        assert_eq!(
            request["to"],
            json!({ "recipients": ["recipient-0999", "recipient-0000"] })
        );
        assert_eq!(request["event_id"], "e");
        assert_eq!(request["push"]["sound"], "default");
    }

    #[test]
    fn every_recipient_has_a_device_of_its_own() {
        assert_eq!(device(3).len(), 64);
        assert_ne!(device(3), device(4));
    }
}
