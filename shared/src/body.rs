//! The body of a message that is a job or a broadcast.

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::{
    address::Address,
    content::{Content, Contents, email::Email, push::Push, sms::Sms, webhook::Webhook},
    contract,
    id::{Category, EventId, RecipientId, Topic},
    invalid::Invalid,
    plan::{Arrangement, Course, Plan},
    tolerant::{self, objects},
    trial::Trial,
};

/// The JSON body of a message on `notify.<channel>.<region>.<class>.<app>`, whether a gateway or a service wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// The caller's name for what happened. Without it the message's `Nats-Msg-Id` is the event id.
    pub event_id: Option<EventId>,
    /// The recipient or the topic to be reached.
    pub to: To,
    /// What kind of notification this is, for the recipient's preferences.
    pub category: Option<Category>,
    /// Whether it is a test.
    pub trial: Trial,
    /// The content to be delivered; with `course` that of its first step.
    pub content: Content,
    /// The steps that may follow each other, if there are several.
    pub course: Option<Arc<Course>>,
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq)]
pub enum To {
    /// One recipient: the message is a job.
    Recipient(RecipientId),
    /// One address, which need not be registered: the message is a job.
    Address(Box<Address>),
    /// The members of a topic who live in the region: the message is a broadcast.
    Topic(Topic),
}

/// The members of the JSON: exactly one of `recipient`, `address` and `topic`, and the content under the name of its channel: of several
/// channels with `plan`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = Body)]
pub struct Members {
    /// The caller's name for what happened. Without it the message's `Nats-Msg-Id` is the event id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<EventId>,
    /// The recipient to be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<RecipientId>,
    /// The address to be reached, instead of `recipient`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub address: Option<Box<Address>>,
    /// The topic to be reached, instead of `recipient`: its members who live in the subject's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Topic>,
    /// What kind of notification this is, for the recipients' preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// Whether it ends at the provider `log`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
    /// Whether a test key sent it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_key: bool,
    /// Which channels are used in what order, if there is content for several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The content, for channel `push`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Push>)]
    pub push: Option<Arc<Push>>,
    /// The content, for channel `email`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Email>)]
    pub email: Option<Arc<Email>>,
    /// The content, for channel `sms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Sms>)]
    pub sms: Option<Arc<Sms>>,
    /// The content, for channel `webhook`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Webhook>)]
    pub webhook: Option<Arc<Webhook>>,
}

objects!(Members);

impl Body {
    /// Reads and checks a body that a service may have written: an unknown or reserved member is an error.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub fn read(json: &[u8]) -> Result<Self, Invalid> {
        let members = tolerant::strictly(json).map_err(|invalid| {
            let document = serde_json::from_slice(json).unwrap_or_default();
            contract::not_built(&["job", "notification", "many"], &document).unwrap_or(invalid)
        })?;
        Self::of(members, json.len())
    }

    /// Reads and checks a body that a program of Peal wrote, perhaps a newer one: unknown members are ignored.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub fn read_tolerantly(json: &[u8]) -> Result<Self, Invalid> {
        Self::of(tolerant::read(json)?, json.len())
    }

    fn of(members: Members, size: usize) -> Result<Self, Invalid> {
        let to = match (members.recipient, members.address, members.topic) {
            (Some(recipient), None, None) => To::Recipient(recipient),
            (None, Some(address), None) => To::Address(address),
            (None, None, Some(topic)) => To::Topic(topic),
            (None, None, None) => return Err(Invalid::new("recipient", "must be given, or address or topic")),
            (_, Some(_), _) => return Err(Invalid::new("address", "must be given alone")),
            (Some(_), _, Some(_)) => return Err(Invalid::new("recipient", "must not be given together with topic")),
        };
        let contents = Contents {
            push: members.push,
            email: members.email,
            sms: members.sms,
            webhook: members.webhook,
        };
        let (content, course) = match members.plan {
            None => (contents.only()?, None),
            Some(plan) => match plan.arrange(contents)? {
                Arrangement::Course(course) if matches!(to, To::Recipient(_)) => {
                    (course.first().clone(), Some(Arc::new(course)))
                }
                Arrangement::Course(_) => return Err(Invalid::new("plan", "must be for a recipient")),
                Arrangement::Each(_) => return Err(Invalid::new("plan", "must have steps that follow each other")),
            },
        };
        match &course {
            None => content.check(size)?,
            Some(course) => course.contents().try_for_each(|content| content.check(size))?,
        }
        Ok(Self {
            event_id: members.event_id,
            to,
            category: members.category,
            trial: Trial {
                test: members.test,
                test_key: members.test_key,
            },
            content,
            course,
        })
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (recipient, address, topic) = match self.to.clone() {
            To::Recipient(recipient) => (Some(recipient), None, None),
            To::Address(address) => (None, Some(address), None),
            To::Topic(topic) => (None, None, Some(topic)),
        };
        let Contents {
            push,
            email,
            sms,
            webhook,
        } = match &self.course {
            None => std::iter::once(self.content.clone()).collect(),
            Some(course) => course.contents().cloned().collect(),
        };
        let members = Members {
            event_id: self.event_id.clone(),
            recipient,
            address,
            topic,
            category: self.category.clone(),
            test: self.trial.test,
            test_key: self.trial.test_key,
            plan: self.course.as_ref().map(|course| course.plan()),
            push,
            email,
            sms,
            webhook,
        };
        members.serialize(serializer)
    }
}
