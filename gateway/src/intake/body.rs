//! The body of every job of an order: serialized once, however many recipients there are.

use bytes::Bytes;
use serde::Serialize;
use shared::invalid::Invalid;

use super::order::{Addressees, Order};

/// Bytes that are set aside for a name in a body; most have fewer.
const ROOM_FOR_NAME: usize = 64;

/// The JSON before and behind the recipient, the address or the topic.
pub(crate) struct SplitBody {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl SplitBody {
    /// Serializes the body of `order`, if its content breaks no rule.
    pub(crate) fn render(order: &Order) -> Result<Self, Invalid> {
        let mut before = br#"{"event_id":"#.to_vec();
        json(&order.event, &mut before);
        before.extend_from_slice(match order.to {
            Addressees::Recipients(_) => br#","recipient":"#.as_slice(),
            Addressees::Address(_) => br#","address":"#,
            Addressees::Topic(_) => br#","topic":"#,
        });
        let mut after = Vec::with_capacity(512);
        if let Some(category) = &order.category {
            after.extend_from_slice(br#","category":"#);
            json(category, &mut after);
        }
        after.extend_from_slice(br#",""#);
        after.extend_from_slice(order.content.channel().as_str().as_bytes());
        after.extend_from_slice(br#"":"#);
        let start = after.len();
        order.content.write_json(&mut after);
        order.content.check(after.len() - start)?;
        after.push(b'}');
        Ok(Self { before, after })
    }

    /// The body of the job for `to`: the name of a recipient or a topic, or an address.
    pub(crate) fn to(&self, to: &(impl Serialize + ?Sized)) -> Bytes {
        let mut body = Vec::with_capacity(self.before.len() + self.after.len() + ROOM_FOR_NAME);
        body.extend_from_slice(&self.before);
        json(to, &mut body);
        body.extend_from_slice(&self.after);
        body.into()
    }
}

fn json(value: &(impl Serialize + ?Sized), to: &mut Vec<u8>) {
    serde_json::to_writer(to, value).expect("names always serialize");
}

#[cfg(test)]
mod tests {
    use shared::{
        app::App,
        body::{Body, To},
        channel::Class,
        content::{Content, push::Push, sms::Sms},
        id::{RecipientId, Topic},
    };

    use super::*;

    #[test]
    fn the_spliced_body_is_the_serialized_body() {
        let push = Push {
            title: Some("Hi \"there\"".into()),
            badge: Some(1),
            ..Push::default()
        };
        let sms = Sms {
            text: "Hi \"there\"".into(),
            ..Sms::default()
        };
        let contents = [Content::Push(push.into()), Content::Sms(sms.into())];
        for (category, content) in [None, Some("offers".parse().unwrap())].into_iter().zip(contents) {
            let app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
            let recipient: RecipientId = "ann\"ä/b".parse().unwrap();
            let topic: Topic = "news".parse().unwrap();
            for (to, name, body_to) in [
                (
                    Addressees::Recipients(Vec::new()),
                    recipient.as_str(),
                    To::Recipient(recipient.clone()),
                ),
                (
                    Addressees::Topic(topic.clone()),
                    topic.as_str(),
                    To::Topic(topic.clone()),
                ),
            ] {
                let order = Order {
                    app: app.clone().into(),
                    event: "order\"42\\".parse().unwrap(),
                    to,
                    class: Class::Normal,
                    category: category.clone(),
                    content: content.clone(),
                    life_from: jiff::Timestamp::UNIX_EPOCH,
                };
                let body = Body {
                    event_id: Some(order.event.clone()),
                    to: body_to,
                    category: category.clone(),
                    content: order.content.clone(),
                };
                let split = SplitBody::render(&order).unwrap();
                assert_eq!(split.to(name), serde_json::to_vec(&body).unwrap());
            }
        }
    }
}
