//! One notification for all members of a topic.
//!
//! A broadcast is one message per region. There it is split into slices, each a range of the members in the order of their
//! keys. A slice becomes one ordinary job for each member who is in its range when a worker expands it.

use std::{fmt, str::FromStr};

use jiff::Timestamp;

use crate::{
    channel::{Channel, Class},
    content::Content,
    id::{AppId, Category, EventId, JobId, NotificationId, RecipientId, Region, Topic},
    id_key::IdKey,
    invalid::Invalid,
    job::{self, Addressee, Job},
    proof::{Claims, Proof},
    trial::Trial,
};

/// A broadcast in one region, or one slice of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Broadcast {
    /// The id of the broadcast; a slice has the id of its broadcast.
    pub id: JobId,
    /// The notification it belongs to.
    pub notification: NotificationId,
    /// The app that sends it.
    pub app: AppId,
    /// How urgent it is.
    pub class: Class,
    /// The region that accepted it.
    pub origin: Region,
    /// When it was accepted. Members who joined later do not receive it.
    pub accepted_at: Timestamp,
    /// The caller's name for what happened.
    pub event: EventId,
    /// The range of members that this slice covers; `None` if the broadcast is not split yet.
    pub slice: Option<Slice>,
    /// The topic whose members are to be reached.
    pub topic: Topic,
    /// The proof that a gateway accepted it; `None` if it came without one.
    pub proof: Option<Proof>,
    /// What kind of notification this is, for the recipients' preferences.
    pub category: Option<Category>,
    /// Whether it is a test.
    pub trial: Trial,
    /// The content to be delivered.
    pub content: Content,
}

impl Broadcast {
    /// The channel of its content.
    pub fn channel(&self) -> Channel {
        self.content.channel()
    }

    /// The ledger's key of this message: the id of the broadcast, or of the slice.
    pub fn work(&self) -> JobId {
        self.slice.as_ref().map_or(self.id, |slice| self.id.slice(slice.number))
    }

    /// Whether the notification is no longer worth delivering at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        job::is_expired(&self.content, self.accepted_at, now)
    }

    /// What a proof of this broadcast covers. `payload` is the body of its message.
    pub fn claims<'a>(&'a self, payload: &'a [u8]) -> Claims<'a> {
        Claims {
            app: &self.app,
            channel: self.channel(),
            class: self.class,
            event: &self.event,
            origin: &self.origin,
            payload,
        }
    }

    /// The id of the job for one member: the same as if the caller had named that recipient.
    pub fn job_id(&self, ids: &IdKey, recipient: &RecipientId) -> JobId {
        let event = self.trial.name(&self.event);
        JobId::of(ids, &self.app, &event, recipient, self.channel())
    }

    /// The job for one member.
    pub fn job(&self, ids: &IdKey, recipient: RecipientId) -> Job {
        Job {
            id: self.job_id(ids, &recipient),
            notification: self.notification,
            app: self.app.clone(),
            class: self.class,
            origin: self.origin.clone(),
            accepted_at: self.accepted_at,
            attempt: 1,
            discounted: 0,
            remaining: None,
            slice: self.slice.as_ref().map(|slice| slice.number),
            topic: Some(self.topic.clone()),
            event: self.event.clone(),
            to: Addressee::Recipient(recipient),
            // The proof of the broadcast covers another body.
            proof: None,
            category: self.category.clone(),
            trial: self.trial,
            content: self.content.clone(),
            place: None,
        }
    }
}

/// A message on a lane.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// For one recipient.
    Job(Job),
    /// For the members of a topic.
    Broadcast(Broadcast),
}

/// A range of the members of a topic, in the order of their keys. Written as `<number>/<of> <members> <after> <up to>`,
/// with `*` where there is no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Number of the slice, from 0.
    pub number: u32,
    /// How many slices the broadcast has in this region.
    pub of: u32,
    /// How many members were in the range when the broadcast was split.
    pub members: u32,
    /// The range begins after this key, which is escaped as in the bucket of facts.
    pub after: Option<String>,
    /// The last key of the range.
    pub up_to: Option<String>,
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = |bound: &Option<String>| bound.as_deref().unwrap_or("*").to_owned();
        let (after, up_to) = (bound(&self.after), bound(&self.up_to));
        write!(f, "{}/{} {} {after} {up_to}", self.number, self.of, self.members)
    }
}

impl FromStr for Slice {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let mut words = text.split(' ');
            let (number, of) = words.next()?.split_once('/')?;
            let members = words.next()?.parse().ok()?;
            let mut bound = || words.next().map(|word| (word != "*").then(|| word.to_owned()));
            let slice = Self {
                number: number.parse().ok()?,
                of: of.parse().ok()?,
                members,
                after: bound()?,
                up_to: bound()?,
            };
            (words.next().is_none() && slice.number < slice.of).then_some(slice)
        };
        read().ok_or_else(|| Invalid::new("slice", "must be <number>/<of> <members> <after> <up to>"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_slice_is_read_as_it_was_written(number in 0u32..1000, more in 1u32..1000, members: u32, bounds in proptest::array::uniform2(proptest::option::of("[A-Za-z0-9=_-]{1,20}"))) {
            let [after, up_to] = bounds;
            let slice = Slice { number, of: number + more, members, after, up_to };
            prop_assert_eq!(slice.to_string().parse::<Slice>().unwrap(), slice);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            drop(text.parse::<Slice>());
        }
    }
}
