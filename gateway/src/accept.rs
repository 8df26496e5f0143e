//! From a request to stored jobs: one per recipient, each in its home region's lane.

use std::sync::Arc;

use futures::{StreamExt, pin_mut};
use shared::{
    app::App,
    channel::{Channel, Class},
    id::{Category, EventId, JobId, NotificationId, RecipientId, Region},
    invalid::Invalid,
    nats::{envelope, publish::NotStored, subject::Lane},
    push::Push,
    receipt,
    recipient::RecipientKey,
};
use tokio::time::Instant;

use crate::{
    content::Content,
    http::Trace,
    parts::Parts,
    publish::{Outgoing, store},
};

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) app: Arc<App>,
    pub(crate) event: EventId,
    pub(crate) recipients: Vec<RecipientId>,
    pub(crate) channel: Channel,
    pub(crate) class: Class,
    pub(crate) category: Option<Category>,
    pub(crate) push: Push,
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
    let mut jobs = Vec::with_capacity(order.recipients.len());
    for recipient in order.recipients {
        let key = RecipientKey {
            app: order.app.id.clone(),
            recipient,
        };
        let region = parts
            .directory
            .home(&key)
            .unwrap_or_else(|| order.app.default_region.clone());
        if !parts.is_region(&region) {
            return Err(Refused::NoSuchRegion(region));
        }
        let id = JobId::of(&key.app, &order.event, &key.recipient, order.channel);
        let lane = Lane {
            channel: order.channel,
            region,
            class: order.class,
            app: key.app,
        };
        jobs.push(Outgoing {
            lane,
            headers: envelope::headers(id, at, &parts.here),
            payload: content.to(&key.recipient),
            id,
        });
    }
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
            at,
            trace: trace.id(),
        },
    );
    Ok(Outcome {
        jobs: count,
        duplicates,
    })
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
