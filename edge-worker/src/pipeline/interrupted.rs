//! Ends jobs whose worker was interrupted between recording the intent to send (see [`super::intend`]) and recording the
//! outcome: nobody knows whether they were sent, so a person decides.

use std::{sync::Arc, time::Duration};

use shared::{
    id::AddressId,
    job::Job,
    receipt::{Receipt, State},
};

use super::{
    Pipeline, Settlement, Step, Stop, Ticket,
    conclude::DeadLetter,
    decide::receipt,
    dedupe::{Fresh, Reserved},
};
use crate::{ledger::History, limits::ANSWER_DUE_AFTER, pulled::Pulled};

/// A fresh job that no attempt was interrupted on.
#[derive(Debug)]
pub(super) struct Clear {
    pub(super) pulled: Pulled,
    pub(super) job: Arc<Job>,
    pub(super) reserved: Reserved,
    pub(super) history: History,
}

impl Pipeline {
    /// Ends a job that was about to be sent when its worker was interrupted.
    pub(super) async fn end_interrupted(&self, fresh: Fresh) -> Step<Clear> {
        let in_doubt = fresh.history.in_doubt(fresh.job.attempt);
        let Fresh {
            pulled,
            job,
            reserved,
            history,
        } = fresh;
        if in_doubt.is_empty() {
            return Ok(Clear {
                pulled,
                job,
                reserved,
                history,
            });
        }
        if pulled.tries < 2 {
            return Err(Stop::GiveBack(pulled.into(), ANSWER_DUE_AFTER));
        }
        let span = self.process_span(&pulled, &job, Some(State::Unknown));
        let mut receipts = Vec::with_capacity(in_doubt.len());
        for address in in_doubt {
            if let Err(error) = DeadLetter::of(&job, address, "interrupted".into(), self)
                .send(self, &pulled)
                .await
            {
                tracing::warn!(%error, "dead letter could not be kept; job is given back");
                return Err(Stop::GiveBack(pulled.into(), Duration::from_secs(2)));
            }
            self.telemetry.metrics.delivery(None, State::Unknown);
            receipts.push(Receipt {
                state: State::Unknown,
                reason: Some("interrupted".into()),
                trace: span.as_ref().and_then(super::trace::id),
                ..self.of_address(&job, address)
            });
        }
        Err(Stop::Settle(Box::new(Settlement {
            app: job.app.clone(),
            origin: job.origin.clone(),
            receipts,
            ticket: Ticket::new(pulled, Some(reserved), span),
        })))
    }

    pub(super) fn of_address(&self, job: &Job, address: AddressId) -> Receipt {
        Receipt {
            address: Some(address),
            ..receipt(job, self.clock.now())
        }
    }
}
