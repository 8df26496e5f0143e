//! One notification for one recipient on one channel.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::{
    address::Address,
    body::{Body, To},
    channel::{Channel, Class},
    content::Content,
    id::{AddressId, AppId, Category, DeliveryId, EventId, JobId, NotificationId, RecipientId, Region, Topic},
    id_key::IdKey,
    plan::Place,
    proof::{Claims, Proof},
    trial::Trial,
};

/// How long after acceptance the first attempt may still begin for a notification that is now or never (life 0).
const NOW_OR_NEVER_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// Whether content that was accepted at `accepted_at` is no longer worth a first attempt at `now`.
pub(crate) fn is_expired(content: &Content, accepted_at: Timestamp, now: Timestamp) -> bool {
    match content.life_s() {
        0 => now.duration_since(accepted_at) > NOW_OR_NEVER_WITHIN,
        _ => now >= expires_at(content, accepted_at),
    }
}

fn expires_at(content: &Content, accepted_at: Timestamp) -> Timestamp {
    let life = SignedDuration::from_secs(i64::from(content.life_s()));
    accepted_at.checked_add(life).unwrap_or(Timestamp::MAX)
}

/// A job, as read from the subject, the headers and the body of its message.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The job's id, which is also the key of the ledger.
    pub id: JobId,
    /// The notification it belongs to.
    pub notification: NotificationId,
    /// The app that sends it.
    pub app: AppId,
    /// How urgent it is.
    pub class: Class,
    /// The region that accepted it.
    pub origin: Region,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// How many earlier attempts do not count towards the limit: they failed for a reason outside the job, or a person
    /// replayed it.
    pub discounted: u32,
    /// For a retry, the addresses that it is for; `None` means all addresses of the recipient.
    pub remaining: Option<Vec<AddressId>>,
    /// Number of the broadcast's slice that this job was expanded from.
    pub slice: Option<u32>,
    /// The topic of that broadcast.
    pub topic: Option<Topic>,
    /// The caller's name for what happened.
    pub event: EventId,
    /// The person, thing or address to be reached.
    pub to: Addressee,
    /// The proof that a gateway accepted it; `None` if it came without one.
    pub proof: Option<Proof>,
    /// What kind of notification this is, for the recipient's preferences.
    pub category: Option<Category>,
    /// Whether it is a test.
    pub trial: Trial,
    /// The content to be delivered.
    pub content: Content,
    /// Its place among the steps of a plan that follow each other; `None` if no job follows it.
    pub place: Option<Place>,
}

/// Whom a job is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Addressee {
    /// A recipient, whose addresses are known when the job is worked on.
    Recipient(RecipientId),
    /// One address, which need not be registered.
    Address(Box<Address>),
}

impl Job {
    /// The recipient; `None` if it is for an address.
    pub fn recipient(&self) -> Option<&RecipientId> {
        match &self.to {
            Addressee::Recipient(recipient) => Some(recipient),
            Addressee::Address(_) => None,
        }
    }

    /// The channel of its content.
    pub fn channel(&self) -> Channel {
        self.content.channel()
    }

    /// Number of this attempt among those that count, from 1.
    pub fn counted(&self) -> u32 {
        self.attempt.saturating_sub(self.discounted).max(1)
    }

    /// Number of the attempt after this one.
    pub fn next_attempt(&self) -> u32 {
        // A service may write any number into the header.
        self.attempt.saturating_add(1)
    }

    /// When the notification stops being worth delivering.
    pub fn expires_at(&self) -> Timestamp {
        expires_at(&self.content, self.accepted_at)
    }

    /// Whether the notification is no longer worth delivering at `now`. A push that is now or never (`ttl` 0) has one
    /// attempt, soon after it was accepted.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        (self.attempt > 1 && self.content.life_s() == 0) || is_expired(&self.content, self.accepted_at, now)
    }

    /// The delivery of this job to `address`.
    pub fn delivery(&self, address: AddressId) -> DeliveryId {
        DeliveryId::of(self.id, address)
    }

    /// What a proof of this job covers. `payload` is the body of its message.
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

    /// The number of its step, from 0, if other steps may follow or precede it.
    pub fn step(&self) -> Option<u32> {
        self.place.as_ref().map(|place| place.step)
    }

    /// The job of the step after this one, without a proof. It waits until `open_until` for the steps before it, if one of them is not known to have
    /// ended. `None` if this is the last step.
    pub fn next_step(&self, ids: &IdKey, open_until: Option<Timestamp>) -> Option<Self> {
        let place = self.place.as_ref()?;
        let next = Place {
            step: place.step + 1,
            open_until,
            ..place.clone()
        };
        Some(Self {
            id: self.id_of_step(ids, next.step)?,
            content: next.course.content(next.step)?.clone(),
            attempt: 1,
            discounted: 0,
            remaining: None,
            place: Some(next),
            proof: None,
            ..self.clone()
        })
    }

    /// The ids of the jobs of the steps before this one.
    pub fn earlier_steps(&self, ids: &IdKey) -> Vec<JobId> {
        let step = self.step().unwrap_or_default();
        (0..step).filter_map(|step| self.id_of_step(ids, step)).collect()
    }

    fn id_of_step(&self, ids: &IdKey, step: u32) -> Option<JobId> {
        let channel = self.place.as_ref()?.course.content(step)?.channel();
        let event = self.trial.name(&self.event);
        Some(JobId::of(ids, &self.app, &event, self.recipient()?, channel))
    }

    /// The body of the message that carries this job.
    pub fn body(&self) -> Body {
        Body {
            event_id: Some(self.event.clone()),
            to: match self.to.clone() {
                Addressee::Recipient(recipient) => To::Recipient(recipient),
                Addressee::Address(address) => To::Address(address),
            },
            category: self.category.clone(),
            trial: self.trial,
            content: self
                .place
                .as_ref()
                .map_or(&self.content, |place| place.course.first())
                .clone(),
            course: self.place.as_ref().map(|place| Arc::clone(&place.course)),
        }
    }
}
