//! Makes outcomes safe, publishes receipts, acknowledges. In this order, and nowhere else.

use std::{sync::Arc, time::SystemTime};

use async_nats::jetstream;
use futures::future::join_all;
use opentelemetry::Context;
use shared::{
    clock::Clock,
    failpoint::failpoint,
    id::{AppId, Region},
    receipt::Receipt,
    telemetry::Telemetry,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Pipeline, Settlement, dedupe::Reserved, trace};
use crate::{
    ledger::{Committed, Ledger, Settled},
    pulled::Pulled,
};

/// What is given back once the receipts of a job are safe.
#[derive(Debug)]
pub struct Ticket(Waiting);

#[derive(Debug)]
enum Waiting {
    /// A job that is done: the message to acknowledge and the span to end.
    Done {
        pulled: Pulled,
        /// Held to the end: until the ledger knows the outcome only this keeps a redelivery away.
        _reserved: Option<Reserved>,
        span: Option<Context>,
    },
    /// A job that may be sent once everybody can know that it was about to be.
    Intent(oneshot::Sender<()>),
}

impl Ticket {
    pub(super) fn new(pulled: Pulled, reserved: Option<Reserved>, span: Option<Context>) -> Self {
        Self(Waiting::Done {
            pulled,
            _reserved: reserved,
            span,
        })
    }
}

impl Pipeline {
    /// Makes it known to every worker that `receipts` are about to become outcomes; `false` if that failed.
    pub(super) async fn announce_intent(&self, app: AppId, origin: Region, mut receipts: Vec<Receipt>) -> bool {
        self.sign(&mut receipts);
        let (announced, published) = oneshot::channel();
        let settled = Settled {
            app,
            origin,
            receipts,
            since: Instant::now(),
            ticket: Ticket(Waiting::Intent(announced)),
        };
        self.committer.settle(settled).await.is_ok() && published.await.is_ok()
    }

    /// A helper says from where it helped.
    fn sign(&self, receipts: &mut [Receipt]) {
        if self.by.is_some() {
            for receipt in receipts {
                receipt.by.clone_from(&self.by);
            }
        }
    }

    /// Hands the outcome to the ledger.
    pub(super) async fn settle(&self, settlement: Settlement) {
        let Settlement {
            app,
            origin,
            mut receipts,
            mut ticket,
        } = settlement;
        self.sign(&mut receipts);
        let mut since = Instant::now();
        if let Waiting::Done { pulled, .. } = &mut ticket.0 {
            pulled.record_outcomes(&receipts);
            let age = self.clock.since(pulled.pulled_at);
            since = since.checked_sub(age).unwrap_or(since);
        }
        if self
            .committer
            .settle(Settled {
                app,
                origin,
                receipts,
                since,
                ticket,
            })
            .await
            .is_err()
        {
            tracing::error!("the ledger takes no more; the job will come again");
        }
    }
}

/// Publishes what the ledger has made safe, and acknowledges.
#[derive(Debug)]
pub struct Announcer {
    /// The region's `JetStream`.
    pub js: jetstream::Context,
    /// For the writer's name.
    pub ledger: Ledger,
    /// Spans and metrics.
    pub telemetry: Telemetry,
    /// Time.
    pub clock: Clock,
}

impl Announcer {
    /// Announces until the ledger's writer ends. Commits do not wait for each other; permits bound how many there are.
    pub async fn run(self, mut committed: mpsc::Receiver<Committed<Ticket>>) {
        let this = Arc::new(self);
        let mut under_way = tokio::task::JoinSet::new();
        while let Some(group) = committed.recv().await {
            under_way.spawn(this.clone().announce(group));
            while under_way.try_join_next().is_some() {}
        }
        under_way.join_all().await;
    }

    async fn announce(self: Arc<Self>, group: Committed<Ticket>) {
        let begun = self.now();
        let outgoing = group.outgoing.into_iter();
        join_all(outgoing.map(|outgoing| outgoing.publish(&self.js, &self.ledger, group.since))).await;
        failpoint("worker.after-receipt");
        let published = self.now();
        let mut jobs = 0;
        for Ticket(waiting) in group.tickets {
            let (pulled, span) = match waiting {
                Waiting::Done { pulled, span, .. } => (pulled, span),
                Waiting::Intent(announced) => {
                    // Whoever waited may have been dropped with the process's last tasks.
                    let (Ok(()) | Err(())) = announced.send(());
                    continue;
                }
            };
            jobs += 1;
            failpoint("worker.before-ack");
            if let Err(error) = pulled.ack().await {
                tracing::warn!(%error, "acknowledgement could not be sent; the ledger will drop the redelivery");
            }
            failpoint("worker.after-ack");
            if let Some(span) = span {
                trace::settled(&self.telemetry.tracer, &span, begun, published, self.now());
            }
        }
        self.telemetry.metrics.settled(jobs);
    }

    fn now(&self) -> SystemTime {
        self.clock.now().into()
    }
}
