//! From a request to stored jobs: one per recipient, each in its home region's lane; or, for a topic, one per region.

use std::sync::Arc;

use futures::{StreamExt, pin_mut};
use jiff::Timestamp;
use shared::{
    app::App,
    channel::{Channel, Class},
    id::{Category, EventId, JobId, NotificationId, RecipientId, Region, Topic},
    invalid::Invalid,
    nats::{envelope, publish::NotStored, subject::Lane},
    push::Push,
    receipt,
    recipient::RecipientKey,
};
use tokio::time::Instant;

use super::{
    content::Content,
    publish::{Outgoing, store},
};
use crate::{context::Parts, doors::http::Trace};

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) app: Arc<App>,
    pub(crate) event: EventId,
    pub(crate) to: To,
    pub(crate) channel: Channel,
    pub(crate) class: Class,
    pub(crate) category: Option<Category>,
    pub(crate) push: Push,
}

/// Who is to be reached.
#[derive(Debug)]
pub(crate) enum To {
    /// These.
    Recipients(Vec<RecipientId>),
    /// The members of a topic.
    Topic(Topic),
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) jobs: usize,
    pub(crate) duplicates: usize,
}

/// Why an order was not accepted.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The content breaks a rule.
    Invalid(Invalid),
    /// The home of a recipient is a region that this mesh does not have.
    NoSuchRegion(Region),
    /// Some of the jobs are not known to be stored.
    NotStored { why: NotStored, stored: usize, jobs: usize },
}

/// Stores every job of `order`. An order that is refused for a rule or a region has stored nothing.
pub(crate) async fn accept(parts: &Parts, order: Order, trace: &Trace) -> Result<Outcome, Refused> {
    let content = Content::render(&order).map_err(Refused::Invalid)?;
    let notification = NotificationId::of(&order.app.id, &order.event);
    let at = parts.clock.now();
    let jobs = match &order.to {
        To::Recipients(recipients) => to_recipients(parts, &order, recipients, &content, at)?,
        To::Topic(topic) => to_topic(parts, &order, topic, &content, at),
    };
    let started = Instant::now();
    let (count, duplicates) = store_all(parts, jobs, trace).await?;
    parts
        .telemetry
        .metrics
        .accepted(order.class, count as u64, started.elapsed());
    parts.recorder.accepted(
        order.app.id.clone(),
        receipt::Accepted {
            notification,
            event_id: order.event,
            jobs: u32::try_from(count).unwrap_or(u32::MAX),
            topic: match order.to {
                To::Recipients(_) => None,
                To::Topic(topic) => Some(topic),
            },
            at,
            trace: trace.id(),
        },
    );
    Ok(Outcome {
        jobs: count,
        duplicates,
    })
}

fn to_recipients(
    parts: &Parts,
    order: &Order,
    recipients: &[RecipientId],
    content: &Content,
    at: Timestamp,
) -> Result<Vec<Outgoing>, Refused> {
    let mut jobs = Vec::with_capacity(recipients.len());
    for recipient in recipients {
        let key = RecipientKey {
            app: order.app.id.clone(),
            recipient: recipient.clone(),
        };
        let region = parts.home_or(&key, &order.app.default_region);
        if !parts.is_region(&region) {
            return Err(Refused::NoSuchRegion(region));
        }
        let id = JobId::of(&key.app, &order.event, recipient, order.channel);
        jobs.push(Outgoing {
            lane: order.lane(region),
            headers: envelope::headers(id, at, &parts.here),
            payload: content.to(recipient.as_str()),
            id,
        });
    }
    Ok(jobs)
}

/// One job for each region in which members may live.
fn to_topic(parts: &Parts, order: &Order, topic: &Topic, content: &Content, at: Timestamp) -> Vec<Outgoing> {
    let regions = match &order.app.residency {
        Some(region) => vec![region.clone()],
        None => parts.regions(),
    };
    let job = |region: Region| {
        let id = JobId::of_broadcast(&order.app.id, &order.event, topic, order.channel, &region);
        Outgoing {
            lane: order.lane(region),
            headers: envelope::headers(id, at, &parts.here),
            payload: content.to(topic.as_str()),
            id,
        }
    };
    regions.into_iter().map(job).collect()
}

impl Order {
    fn lane(&self, region: Region) -> Lane {
        Lane {
            channel: self.channel,
            region,
            class: self.class,
            app: self.app.id.clone(),
        }
    }
}

/// Publishes all and waits for all: how many there are, and how many the streams had already.
async fn store_all(parts: &Parts, jobs: Vec<Outgoing>, trace: &Trace) -> Result<(usize, usize), Refused> {
    let count = jobs.len();
    let acks = store(parts, jobs, trace);
    pin_mut!(acks);
    let (mut stored, mut duplicates, mut refused) = (0, 0, None);
    while let Some(ack) = acks.next().await {
        match ack {
            Ok(ack) => {
                stored += 1;
                duplicates += usize::from(ack.duplicate);
            }
            // A full stream says more than a lost answer.
            Err(NotStored::Full) => refused = Some(NotStored::Full),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    match refused {
        None => Ok((count, duplicates)),
        Some(why) => Err(Refused::NotStored {
            why,
            stored,
            jobs: count,
        }),
    }
}
