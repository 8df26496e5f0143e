//! The body of every job of an order: serialized once, however many recipients there are.

use bytes::Bytes;
use serde::Serialize;
use shared::{
    channel::Channel,
    content::Content,
    invalid::Invalid,
    nats::version,
    plan::{Arrangement, Course},
};

use super::order::{Addressees, Order};

/// Bytes that are set aside for a name in a body; most have fewer.
const ROOM_FOR_NAME: usize = 64;

/// The JSON before and behind the recipient, the address or the topic.
pub(crate) struct SplitBody {
    /// The channel of the job that it is for: of a course the channel of the first step.
    pub(super) channel: Channel,
    /// The version of the job's message.
    pub(super) version: u32,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl SplitBody {
    /// Serializes the bodies of `order`, one for each job of a recipient, if its contents break no rule.
    pub(crate) fn render(order: &Order) -> Result<Vec<Self>, Invalid> {
        match &order.contents {
            Arrangement::Each(contents) => {
                let each = contents.iter();
                each.map(|content| Self::of(order, None, std::slice::from_ref(content)))
                    .collect()
            }
            Arrangement::Course(course) => {
                let contents: Vec<Content> = course.contents().cloned().collect();
                Ok(vec![Self::of(order, Some(course), &contents)?])
            }
        }
    }

    fn of(order: &Order, course: Option<&Course>, contents: &[Content]) -> Result<Self, Invalid> {
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
        for (member, is_set) in [("test", order.trial.test), ("test_key", order.trial.test_key)] {
            if is_set {
                after.extend_from_slice(format!(r#","{member}":true"#).as_bytes());
            }
        }
        if let Some(course) = course {
            after.extend_from_slice(br#","plan":"#);
            json(&course.plan(), &mut after);
        }
        for content in contents {
            after.extend_from_slice(br#",""#);
            after.extend_from_slice(content.channel().as_str().as_bytes());
            after.extend_from_slice(br#"":"#);
            let start = after.len();
            content.write_json(&mut after);
            content.check(after.len() - start)?;
        }
        after.push(b'}');
        Ok(Self {
            channel: contents[0].channel(),
            version: version::of_work(course, order.trial),
            before,
            after,
        })
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
        content::{Contents, push::Push, sms::Sms},
        id::{RecipientId, Topic},
        plan::{Mode, Plan, Step},
        trial::Trial,
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
        let by_test_key = Trial {
            test: true,
            test_key: true,
        };
        let varied = [(None, Trial::NONE), (Some("offers".parse().unwrap()), by_test_key)];
        for ((category, trial), content) in varied.into_iter().zip(contents) {
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
                    trial,
                    contents: Arrangement::Each(vec![content.clone()]),
                    life_from: jiff::Timestamp::UNIX_EPOCH,
                    later: None,
                    expires_at: None,
                    group_key: None,
                };
                let body = Body {
                    event_id: Some(order.event.clone()),
                    to: body_to,
                    category: category.clone(),
                    trial,
                    content: content.clone(),
                    course: None,
                };
                let split = &SplitBody::render(&order).unwrap()[0];
                assert_eq!(split.to(name), serde_json::to_vec(&body).unwrap());
            }
        }
    }
    #[test]
    fn the_job_of_a_course_has_every_content_and_the_plan() {
        let push = Push {
            title: Some("Hi".into()),
            ..Push::default()
        };
        let sms = Sms {
            text: "Hi".into(),
            ..Sms::default()
        };
        let contents = Contents {
            push: Some(push.into()),
            sms: Some(sms.into()),
            ..Contents::default()
        };
        let order = |mode| Order {
            app: App::new("shop".parse().unwrap(), "eu".parse().unwrap()).into(),
            event: "e1".parse().unwrap(),
            to: Addressees::Recipients(Vec::new()),
            class: Class::Normal,
            category: None,
            trial: Trial::NONE,
            contents: Plan {
                mode,
                steps: Some(vec![Step::of(Channel::Sms), Step::of(Channel::Push)]),
            }
            .arrange(contents.clone())
            .unwrap(),
            life_from: jiff::Timestamp::UNIX_EPOCH,
            later: None,
            expires_at: None,
            group_key: None,
        };
        let one = SplitBody::render(&order(Mode::Fallback)).unwrap();
        assert_eq!(
            (one.len(), one[0].channel, one[0].version),
            (1, Channel::Sms, version::STEPS)
        );
        let body = Body::read(&one[0].to("ann")).unwrap();
        let course = body.course.clone().unwrap();
        assert_eq!((course.mode(), body.content.channel()), (Mode::Fallback, Channel::Sms));
        assert_eq!(course.content(1).map(Content::channel), Some(Channel::Push));
        assert_eq!(Body::read(&serde_json::to_vec(&body).unwrap()).unwrap(), body);

        let each = SplitBody::render(&order(Mode::All)).unwrap();
        let channels: Vec<_> = each.iter().map(|body| (body.channel, body.version)).collect();
        assert_eq!(
            channels,
            [(Channel::Sms, version::CURRENT), (Channel::Push, version::CURRENT)]
        );
        assert!(Body::read(&each[1].to("ann")).unwrap().course.is_none());
    }
}
