//! Broadcasts: a broadcast becomes slices ([`super::split`]), and a slice becomes an ordinary job for each member of the
//! topic ([`super::expand`]).

use std::sync::Arc;

use shared::{broadcast::Broadcast, policy::Ruling};

use super::{
    context::Pipeline,
    postpone::POSTPONED_AFTER_TRIES,
    settlement::{RETRY_ACTIVE_JOB_AFTER, RETRY_LEDGER_READ_AFTER, RETRY_NEWER_AFTER, Settlement, Step, Stop},
};
use crate::pulled::Pulled;

impl Pipeline {
    /// Splits a broadcast, or works on a slice of one.
    pub(super) async fn broadcast(self: &Arc<Self>, pulled: Pulled, broadcast: Broadcast) -> Step<Settlement> {
        let work = broadcast.work();
        let Some(reservation) = self.in_flight.reserve((work, None)) else {
            return Err(Stop::GiveBack(pulled.into(), RETRY_ACTIVE_JOB_AFTER));
        };
        match self.ledger.look_up(work) {
            Ok(history) if history.has_unrecognized() => {
                tracing::warn!(job = %work, "a newer worker reported this broadcast in a state unknown here; it waits for a newer worker");
                if pulled.tries < POSTPONED_AFTER_TRIES {
                    return Err(Stop::GiveBack(pulled.into(), RETRY_NEWER_AFTER));
                }
                return Err(self.reschedule(pulled, work, None, broadcast.accepted_at).await);
            }
            Ok(history) if history.has_outcome() => {
                self.telemetry.metrics.duplicate();
                return Ok(Settlement::of_broadcast(pulled, &broadcast, reservation, None));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "ledger cannot be read; the broadcast waits");
                return Err(Stop::GiveBack(pulled.into(), RETRY_LEDGER_READ_AFTER));
            }
        }
        let is_expired = broadcast.is_expired(self.clock.now());
        let is_held = matches!(self.ruling_on_broadcast(&broadcast), Ruling::Wait { .. });
        if is_held && self.unwanted(is_expired, broadcast.notification).is_none() {
            return Err(self.reschedule(pulled, work, None, broadcast.accepted_at).await);
        }
        match &broadcast.slice {
            None => self.split(pulled, &broadcast, reservation).await,
            Some(slice) => self.expand(pulled, &broadcast, slice, reservation).await,
        }
    }
}
