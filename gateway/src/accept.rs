//! From a request to stored jobs: one per recipient, each in its home region's lane.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::{StreamExt, stream};
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use serde::Serialize;
use shared::{
    app::App,
    channel::{Channel, Class},
    id::{Category, EventId, JobId, NotificationId, RecipientId, Region},
    invalid::Invalid,
    nats::{
        envelope,
        publish::{self, NotStored, Stored},
        subject::{Lane, NOTIFY_TEMPLATE},
    },
    payload,
    push::Push,
    receipt,
    recipient::RecipientKey,
    telemetry::trace::{self, TRACEPARENT},
};
use tokio::time::Instant;

use crate::{http::Trace, parts::Parts};

/// Messages of one request that are unacknowledged at one time.
const PIPELINE: usize = 1024;

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
    pub(crate) notification: NotificationId,
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

/// One message to publish.
struct Outgoing {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    id: JobId,
}

/// Stores every job of `order`. An order that is refused for a rule or a region has stored nothing.
pub(crate) async fn accept(parts: &Parts, order: Order, trace: &Trace) -> Result<Outcome, Refused> {
    let content = Content::render(&order)?;
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
            subject: lane.notify(),
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
    parts.recorder.record(
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
        notification,
        jobs: count,
        duplicates,
    })
}

/// Publishes all and then waits for all: how many there are, and how many the streams had already.
async fn store_all(parts: &Parts, mut jobs: Vec<Outgoing>, trace: &Trace) -> Result<(usize, usize), Refused> {
    let count = jobs.len();
    if count == 1
        && let Some(job) = jobs.pop()
    {
        let stored = store(parts, job, trace).await.map_err(|why| Refused::NotStored {
            why,
            stored: 0,
            jobs: 1,
        })?;
        return Ok((1, usize::from(stored.duplicate)));
    }
    // Acknowledgements are taken while messages are still being sent: requests that only sent until all places for
    // unacknowledged messages were taken would wait for each other for ever.
    let mut acks = stream::iter(jobs)
        .map(|job| store(parts, job, trace))
        .buffer_unordered(PIPELINE);
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

async fn store(parts: &Parts, mut job: Outgoing, trace: &Trace) -> Result<Stored, NotStored> {
    let span = match trace {
        Trace::None => None,
        Trace::Forwarded(word) => {
            job.headers.insert(TRACEPARENT, word.as_str());
            None
        }
        Trace::Recorded(context) => Some(start_span(parts, &mut job, context)),
    };
    let stored = publish::store(&parts.js, job.subject, job.headers, job.payload).await;
    if let Some(span) = span {
        end_span(&span, &stored);
    }
    stored
}

fn start_span(parts: &Parts, job: &mut Outgoing, parent: &Context) -> Context {
    let span = SpanBuilder::from_name(format!("send {NOTIFY_TEMPLATE}"))
        .with_kind(SpanKind::Producer)
        .with_attributes([
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", job.subject.clone()),
            KeyValue::new("messaging.destination.template", NOTIFY_TEMPLATE),
            KeyValue::new("messaging.message.id", job.id.to_string()),
        ]);
    let context = parent.with_span(parts.telemetry.tracer.build_with_context(span, parent));
    trace::inject(&context, &mut job.headers);
    context
}

fn end_span(context: &Context, stored: &Result<Stored, NotStored>) {
    let span = context.span();
    match stored {
        Ok(stored) => {
            span.set_attribute(KeyValue::new("messaging.nats.stream", stored.stream.clone()));
            span.set_attribute(KeyValue::new(
                "messaging.nats.stream.sequence",
                stored.sequence.cast_signed(),
            ));
            span.set_attribute(KeyValue::new("messaging.nats.duplicate", stored.duplicate));
        }
        Err(why) => {
            span.set_attribute(KeyValue::new("error.type", why.to_string()));
            span.set_status(Status::error(why.to_string()));
        }
    }
    span.end();
}

/// The body of every job of an order, but for the recipient: rendered once, however many there are.
struct Content {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Content {
    fn render(order: &Order) -> Result<Self, Refused> {
        let within = |invalid: Invalid| Refused::Invalid(invalid.within("push"));
        order.push.check().map_err(within)?;
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
            payload::check_size(&order.push).map_err(Refused::Invalid)?;
        }
        after.push(b'}');
        Ok(Self { before, after })
    }

    fn to(&self, recipient: &RecipientId) -> Bytes {
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
    use shared::job::Body;

    use super::*;

    #[test]
    fn the_spliced_body_is_the_serialized_body() {
        let push = Push {
            title: Some("Hi \"there\"".into()),
            badge: Some(1),
            ..Push::default()
        };
        for category in [None, Some("offers".parse().unwrap())] {
            let app = App {
                id: "shop".parse().unwrap(),
                default_region: "eu".parse().unwrap(),
                apns: None,
                fcm: None,
            };
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
