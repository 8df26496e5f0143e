//! Broadcasts: a broadcast becomes slices ([`super::split`]), and a slice becomes an ordinary job for each member of the
//! topic ([`super::expand`]).

use std::{sync::Arc, time::Duration};

use shared::{
    broadcast::Broadcast,
    nats::{follow, topology},
};

use super::{
    context::Pipeline,
    settlement::{RETRY_ACTIVE_JOB_AFTER, RETRY_LEDGER_READ_AFTER, RETRY_NEWER_AFTER, Settlement, Step, Stop},
};
use crate::pulled::Pulled;

/// How long the cache may take to reach the end that its bucket had when the work was pulled.
const CACHE_CURRENT_WITHIN: Duration = Duration::from_secs(10);

impl Pipeline {
    /// Splits a broadcast, or works on a slice of one.
    pub(super) async fn broadcast(self: &Arc<Self>, pulled: Pulled, broadcast: Broadcast) -> Step<Settlement> {
        let work = broadcast.work();
        let Some(reservation) = self.in_flight.reserve((work, None)) else {
            return Err(Stop::GiveBack(pulled.into(), RETRY_ACTIVE_JOB_AFTER));
        };
        match self.ledger.look_up(work) {
            Ok(history) if history.has_unrecognized() => {
                tracing::warn!(job = %work, "a newer worker reported this broadcast in a state unknown here; it is given back");
                return Err(Stop::GiveBack(pulled.into(), RETRY_NEWER_AFTER));
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
        match &broadcast.slice {
            None => self.split(pulled, &broadcast, reservation).await,
            Some(slice) => self.expand(pulled, &broadcast, slice, reservation).await,
        }
    }

    /// Waits until the cache contains what its bucket contained when this was called, so that a broadcast also reaches
    /// those who joined just before it. `false` if that takes too long.
    pub(super) async fn is_cache_current(&self) -> bool {
        let Ok(bucket) = follow::stream_state(&self.js, topology::RECIPIENTS).await else {
            return false;
        };
        let position = || self.cache.position().map(Option::unwrap_or_default);
        match bucket.is_reached_within(CACHE_CURRENT_WITHIN, position).await {
            Ok(true) => true,
            Ok(false) => {
                tracing::warn!("the cache has not caught up with its bucket; a broadcast waits");
                false
            }
            Err(_) => false,
        }
    }
}
