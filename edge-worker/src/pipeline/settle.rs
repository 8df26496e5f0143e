//! Commits outcomes, publishes receipts and acknowledges messages, in this order. No other file does this.

use std::{sync::Arc, time::SystemTime};

use async_nats::jetstream;
use futures::future::join_all;
use shared::{
    clock::Clock,
    failpoint::failpoint,
    id::{AppId, Region},
    nats::border::Border,
    receipt::Receipt,
    telemetry::Telemetry,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    context::Pipeline,
    follow::Followed,
    settlement::{Settlement, Ticket, Waiting},
    trace,
};
use crate::ledger::{Committed, Ledger, Settled};

impl Pipeline {
    /// Publishes intents to send, so that every worker learns of them. Returns `false` if the process is ending.
    pub(super) async fn publish_intent(&self, app: AppId, origin: Region, mut receipts: Vec<Receipt>) -> bool {
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

    /// Adds the region of a helper to its receipts.
    fn sign(&self, receipts: &mut [Receipt]) {
        if self.by.is_some() {
            for receipt in receipts {
                receipt.by.clone_from(&self.by);
            }
        }
    }

    /// Passes the receipts to the ledger, whose commit goes to the [`Announcer`].
    pub(super) async fn settle(&self, Followed(settlement): Followed) {
        let Settlement {
            app,
            origin,
            mut receipts,
            mut ticket,
            ..
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
            tracing::error!("the ledger's writer has stopped; the job will be redelivered");
        }
    }
}

/// Publishes the receipts that the ledger has committed, and acknowledges their messages.
#[derive(Debug)]
pub struct Announcer {
    /// The region's `JetStream`.
    pub js: jetstream::Context,
    /// It gives the writer's name, and compares receipts that were delayed with those of other workers.
    pub ledger: Ledger,
    /// Signs the receipts, which other regions copy.
    pub border: Border,
    /// Spans and metrics.
    pub telemetry: Telemetry,
    /// The time in spans.
    pub clock: Clock,
}

impl Announcer {
    /// Runs until the ledger's writer stops. Commits are announced concurrently; the permits of their jobs limit their number.
    pub async fn run(self, mut committed: mpsc::Receiver<Committed<Ticket>>) {
        let this = Arc::new(self);
        let mut announcing = tokio::task::JoinSet::new();
        while let Some(group) = committed.recv().await {
            announcing.spawn(this.clone().announce(group));
            while announcing.try_join_next().is_some() {}
        }
        announcing.join_all().await;
    }

    async fn announce(self: Arc<Self>, group: Committed<Ticket>) {
        let started = self.now();
        let outgoing = group.outgoing.into_iter();
        join_all(outgoing.map(|outgoing| outgoing.publish(&self.js, &self.ledger, &self.border, group.since))).await;
        failpoint("worker.after-receipt");
        let published = self.now();
        let mut jobs = 0;
        for Ticket(waiting) in group.tickets {
            let (pulled, span) = match waiting {
                Waiting::Done { pulled, span, .. } => (pulled, span),
                Waiting::Intent(announced) => {
                    // The waiting task may have been dropped because the process is ending.
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
                trace::settled(&self.telemetry.tracer, &span, started, published, self.now());
            }
        }
        self.telemetry.metrics.settled(jobs);
    }

    fn now(&self) -> SystemTime {
        self.clock.now().into()
    }
}
