//! The body of every job of an order, but for the recipient: rendered once, however many there are.

use bytes::Bytes;
use serde::Serialize;
use shared::{id::RecipientId, invalid::Invalid, payload};

use crate::accept::Order;

/// What stands before and behind the recipient.
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
        before.extend_from_slice(br#","recipient":"#);
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

    /// The body of the job for `recipient`.
    pub(crate) fn to(&self, recipient: &RecipientId) -> Bytes {
        let mut body = Vec::with_capacity(self.before.len() + self.after.len() + recipient.as_str().len() + 16);
        body.extend_from_slice(&self.before);
        json(recipient.as_str(), &mut body);
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
        channel::{Channel, Class},
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
            let order = Order {
                app: app.into(),
                event: "order\"42\\".parse().unwrap(),
                recipients: Vec::new(),
                channel: Channel::Push,
                class: Class::Normal,
                category: category.clone(),
                push: push.clone(),
            };
            let recipient: RecipientId = "ann\"ä/b".parse().unwrap();
            let content = Content::render(&order).unwrap();
            let body = Body {
                event_id: Some(order.event),
                recipient: recipient.clone(),
                category,
                push: push.clone(),
            };
            assert_eq!(content.to(&recipient), serde_json::to_vec(&body).unwrap());
        }
    }
}
