//! The content of a notification. In JSON, its member is named after its channel.

pub mod email;
pub mod push;
pub mod segments;
pub mod sms;
pub mod webhook;

use std::sync::Arc;

use self::{email::Email, push::Push, sms::Sms, webhook::Webhook};
use crate::{address::Target, channel::Channel, invalid::Invalid};

/// Longest life of a notification in seconds, on any channel: FCM's maximum of four weeks; Apple stores for 30 days.
pub const MAX_LIFE_S: u32 = 28 * 24 * 3600;

/// Refuses a life that is too long.
fn check_life(ttl_s: u32) -> Result<(), Invalid> {
    if ttl_s > MAX_LIFE_S {
        let rule = format_args!("must be at most {MAX_LIFE_S} seconds (28 days)");
        return Err(Invalid::new("ttl", rule));
    }
    Ok(())
}

/// The content of a notification, for one channel. Cheap to clone: the jobs of a broadcast share it.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A push to a device.
    Push(Arc<Push>),
    /// An e-mail.
    Email(Arc<Email>),
    /// A text message.
    Sms(Arc<Sms>),
    /// A signed HTTP request, or a message in a chat.
    Webhook(Arc<Webhook>),
}

/// The members that hold content.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contents {
    /// The member `push`.
    pub push: Option<Arc<Push>>,
    /// The member `email`.
    pub email: Option<Arc<Email>>,
    /// The member `sms`.
    pub sms: Option<Arc<Sms>>,
    /// The member `webhook`.
    pub webhook: Option<Arc<Webhook>>,
}

impl Contents {
    /// The only content.
    ///
    /// # Errors
    /// When none is given, or several.
    pub fn only(self) -> Result<Content, Invalid> {
        let mut given = self.all();
        match (given.next(), given.next()) {
            (Some(content), None) => Ok(content),
            (None, _) => Err(Self::none()),
            (Some(content), Some(second)) => {
                let rule = format_args!(
                    "must not be given together with {}, unless plan is given",
                    content.channel()
                );
                Err(Invalid::new(second.channel().as_str(), rule))
            }
        }
    }
}

impl Contents {
    /// Every content that is given.
    pub fn all(self) -> impl Iterator<Item = Content> {
        let Self {
            push,
            email,
            sms,
            webhook,
        } = self;
        let given = [
            push.map(Content::Push),
            email.map(Content::Email),
            sms.map(Content::Sms),
            webhook.map(Content::Webhook),
        ];
        given.into_iter().flatten()
    }

    /// The error for a document without content.
    pub(crate) fn none() -> Invalid {
        Invalid::new("push", "must be given, or email, sms or webhook")
    }
}

impl FromIterator<Content> for Contents {
    fn from_iter<I: IntoIterator<Item = Content>>(contents: I) -> Self {
        let mut members = Self::default();
        for content in contents {
            match content {
                Content::Push(push) => members.push = Some(push),
                Content::Email(email) => members.email = Some(email),
                Content::Sms(sms) => members.sms = Some(sms),
                Content::Webhook(webhook) => members.webhook = Some(webhook),
            }
        }
        members
    }
}

impl Content {
    /// The channel that the content is for, which is also the name of its member.
    pub const fn channel(&self) -> Channel {
        match self {
            Self::Push(_) => Channel::Push,
            Self::Email(_) => Channel::Email,
            Self::Sms(_) => Channel::Sms,
            Self::Webhook(_) => Channel::Webhook,
        }
    }

    /// Checks the rules that the types do not enforce. `size` is the length in bytes of the JSON that contains this content:
    /// content far below every provider's limit is not rendered to check its size.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at the document that contains the content.
    pub fn check(&self, size: usize) -> Result<(), Invalid> {
        let checked = match self {
            Self::Push(push) => push.check(),
            Self::Email(email) => email.check(),
            Self::Sms(sms) => sms.check(),
            Self::Webhook(webhook) => webhook.check(),
        };
        checked.map_err(|invalid| invalid.within(self.channel().as_str()))?;
        match self {
            Self::Push(push) if size > push::SURELY_FITS => push.check_size(),
            Self::Push(_) | Self::Email(_) | Self::Sms(_) | Self::Webhook(_) => Ok(()),
        }
    }

    /// Appends the content's JSON to `json`.
    pub fn write_json(&self, json: &mut Vec<u8>) {
        let written = match self {
            Self::Push(push) => serde_json::to_writer(json, push),
            Self::Email(email) => serde_json::to_writer(json, email),
            Self::Sms(sms) => serde_json::to_writer(json, sms),
            Self::Webhook(webhook) => serde_json::to_writer(json, webhook),
        };
        written.expect("maps with string keys always serialize");
    }

    /// Seconds after acceptance during which it is worth delivering; 0 means now or never.
    pub fn life_s(&self) -> u32 {
        match self {
            Self::Push(push) => push.ttl_s(),
            Self::Email(email) => email.ttl_s(),
            Self::Sms(sms) => sms.ttl_s(),
            Self::Webhook(webhook) => webhook.ttl_s(),
        }
    }

    /// The same content, worth delivering for at most `life_s` seconds. What is now or never stays so.
    #[must_use]
    pub fn living_at_most(mut self, life_s: u32) -> Self {
        if self.life_s() > life_s {
            let ttl = match &mut self {
                Self::Push(push) => &mut Arc::make_mut(push).ttl,
                Self::Email(email) => &mut Arc::make_mut(email).ttl,
                Self::Sms(sms) => &mut Arc::make_mut(sms).ttl,
                Self::Webhook(webhook) => &mut Arc::make_mut(webhook).ttl,
            };
            *ttl = Some(life_s);
        }
        self
    }

    /// Whether the content, rendered for this address, shows or runs anything.
    pub fn has_something_for(&self, target: &Target) -> bool {
        match (self, target) {
            (Self::Push(push), _) => push.has_something_for(target),
            (Self::Webhook(webhook), Target::Webhook(receiver)) => webhook.has_something_for(receiver.format),
            (Self::Email(_) | Self::Sms(_) | Self::Webhook(_), _) => true,
        }
    }

    /// Whether the content is for this kind of address.
    pub fn reaches(&self, target: &Target) -> bool {
        match self {
            Self::Push(push) => push.reaches(target),
            Self::Email(_) | Self::Sms(_) | Self::Webhook(_) => self.channel() == target.channel(),
        }
    }
}
