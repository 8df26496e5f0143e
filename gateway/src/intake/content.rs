//! The body of every job of an order, but for whom it is for: rendered once, however many there are.

use bytes::Bytes;
use serde::Serialize;
use shared::{invalid::Invalid, payload};

use super::order::{Order, To};

/// What stands before and behind the name of the recipient or the topic.
pub(crate) struct Content {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Content {
    /// Renders the content of `order`, if it breaks no rule.
    pub(crate) fn render(order: &Order) -> Result<Self, Invalid> {
        order.push.check().map_err(|invalid| invalid.within("push"))?;
        let mut before = br#"{"event_id":"#.to_vec();
        json(&order.event, &mut before);
        before.extend_from_slice(match order.to {
            To::Recipients(_) => br#","recipient":"#,
            To::Topic(_) => br#","topic":"#.as_slice(),
        });
        let mut after = Vec::with_capacity(512);
        if let Some(category) = &order.category {
            after.extend_from_slice(br#","category":"#);
            json(category, &mut after);
        }
        after.extend_from_slice(br#","push":"#);
        let start = after.len();
        json(&order.push, &mut after);
        if after.len() - start > payload::SURELY_FITS {
            payload::check_size(&order.push)?;
        }
        after.push(b'}');
        Ok(Self { before, after })
    }

    /// The body of the job for the recipient, or the members of the topic, of this name.
    pub(crate) fn to(&self, name: &str) -> Bytes {
        let mut body = Vec::with_capacity(self.before.len() + self.after.len() + name.len() + 16);
        body.extend_from_slice(&self.before);
        json(name, &mut body);
        body.extend_from_slice(&self.after);
        body.into()
    }
}

fn json(value: &(impl Serialize + ?Sized), to: &mut Vec<u8>) {
    serde_json::to_writer(to, value).expect("names and pushes always serialize");
}

#[cfg(test)]
mod tests {
    use shared::{
        app::App,
        broadcast,
        channel::{Channel, Class},
        id::{RecipientId, Topic},
        job::Body,
        push::Push,
    };

    use super::*;

    #[test]
    fn the_spliced_body_is_the_serialized_body() {
        let push = Push {
            title: Some("Hi \"there\"".into()),
            badge: Some(1),
            ..Push::default()
        };
        for category in [None, Some("offers".parse().unwrap())] {
            let app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
            let mut order = Order {
                app: app.into(),
                event: "order\"42\\".parse().unwrap(),
                to: To::Recipients(Vec::new()),
                channel: Channel::Push,
                class: Class::Normal,
                category: category.clone(),
                push: push.clone(),
            };
            let recipient: RecipientId = "ann\"ä/b".parse().unwrap();
            let content = Content::render(&order).unwrap();
            let body = Body {
                event_id: Some(order.event.clone()),
                recipient: recipient.clone(),
                category: category.clone(),
                push: push.clone().into(),
            };
            assert_eq!(content.to(recipient.as_str()), serde_json::to_vec(&body).unwrap());
            let topic: Topic = "news".parse().unwrap();
            order.to = To::Topic(topic.clone());
            let content = Content::render(&order).unwrap();
            let body = broadcast::Body {
                event_id: Some(order.event),
                topic: topic.clone(),
                category,
                push: push.clone().into(),
            };
            assert_eq!(content.to(topic.as_str()), serde_json::to_vec(&body).unwrap());
        }
    }
}
