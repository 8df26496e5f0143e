//! Splits a broadcast into slices, once.

use std::ops::ControlFlow;

use shared::{
    broadcast::{Broadcast, Slice},
    failpoint::failpoint,
    nats::{broadcast as slices, subject::Tier},
    policy::Ruling,
    receipt::{Expanded, Split, State},
};

use super::{
    border::UNPROVEN,
    context::Pipeline,
    in_flight::Reservation,
    receipts::{receipt_of_expansion, receipt_of_unwanted},
    settlement::{RETRY_JETSTREAM_AFTER, Settlement, Step, Stop},
};
use crate::{cache, pulled::Pulled};

/// The number of members in a slice, unless that makes more slices than can be stored at once.
const SLICE_MEMBERS: usize = 1000;

impl Pipeline {
    /// Stores the slices of a broadcast, unless an earlier run has stored them.
    pub(super) async fn split(
        &self,
        pulled: Pulled,
        broadcast: &Broadcast,
        reservation: Reservation,
    ) -> Step<Settlement> {
        let earlier = match slices::recorded_split(&self.js, broadcast).await {
            Ok(earlier) => earlier,
            Err(error) => {
                tracing::warn!(job = %broadcast.id, %error, "broadcast cannot be split; it is given back");
                return Err(Stop::GiveBack(pulled.into(), RETRY_JETSTREAM_AFTER));
            }
        };
        if earlier.is_none()
            && let Some((state, reason)) = self.ending(&pulled, broadcast)
        {
            self.telemetry.metrics.delivery(None, state);
            let receipt = receipt_of_unwanted(broadcast, state, reason, self.clock.now());
            return Ok(Settlement::of_broadcast(pulled, broadcast, reservation, Some(receipt)));
        }
        let split = match earlier {
            Some(split) => Some(split),
            None => self.store_slices(&pulled, broadcast).await,
        };
        let Some(split) = split else {
            return Err(Stop::GiveBack(pulled.into(), RETRY_JETSTREAM_AFTER));
        };
        failpoint("worker.after-split");
        tracing::info!(job = %broadcast.id, slices = split.slices, members = split.members, "broadcast split");
        let receipt = receipt_of_expansion(broadcast, Expanded::Slices(split), self.clock.now());
        Ok(Settlement::of_broadcast(pulled, broadcast, reservation, Some(receipt)))
    }

    /// The state in which a broadcast ends, and the reason, that has expired, was withdrawn, came from another region without a
    /// proof, or is ended by a control; `None` if it is to be sent.
    fn ending(&self, pulled: &Pulled, broadcast: &Broadcast) -> Option<(State, &'static str)> {
        if self.needs_proof(pulled) && !self.is_proven_broadcast(pulled, broadcast) {
            tracing::error!(job = %broadcast.id, origin = %broadcast.origin, "a broadcast came from another region without a proof; it is not sent");
            return Some((State::Suppressed, UNPROVEN));
        }
        let unwanted = self.unwanted(broadcast.is_expired(self.clock.now()), broadcast.notification);
        match (unwanted, self.ruling_on_broadcast(broadcast)) {
            (Some(state), _) => Some((state, state.as_str())),
            (None, Ruling::Drop { state, why }) => Some((state, why)),
            (None, Ruling::Send | Ruling::Wait { .. }) => None,
        }
    }

    /// Whether a gateway of this mesh accepted this broadcast, or the broadcast of this slice.
    pub(super) fn is_proven_broadcast(&self, pulled: &Pulled, broadcast: &Broadcast) -> bool {
        let payload = pulled.payload();
        self.is_proven(
            broadcast.proof.as_ref(),
            &broadcast.claims(&payload),
            broadcast.accepted_at,
        )
    }

    /// Plans the slices and stores them. `None` if that is not possible now.
    async fn store_slices(&self, pulled: &Pulled, broadcast: &Broadcast) -> Option<Split> {
        let plan = self.plan(pulled, broadcast).await?;
        failpoint("worker.before-split");
        let (lane, payload) = (self.lane_of_broadcast(broadcast), pulled.payload());
        let has_overflow = self.config.tenants().is_upgraded();
        let tier = |slice: &Slice| {
            if has_overflow {
                self.shares.of_slice(&broadcast.app, slice.members)
            } else {
                Tier::Main
            }
        };
        match slices::split(&self.js, broadcast, &lane, tier, pulled.headers(), &payload, &plan).await {
            Ok(split) => Some(split),
            Err(error) => {
                tracing::warn!(job = %broadcast.id, %error, "broadcast could not be split; it is given back");
                None
            }
        }
    }

    /// Reads the members of the topic and plans the slices. `None` if the members cannot be read now.
    async fn plan(&self, pulled: &Pulled, broadcast: &Broadcast) -> Option<Vec<Slice>> {
        let needed = pulled.facts;
        let (cache, app, topic) = (self.cache.clone(), broadcast.app.clone(), broadcast.topic.clone());
        let as_of = broadcast.accepted_at;
        let planned = tokio::task::spawn_blocking(move || {
            let range = cache::Range {
                app: &app,
                topic: &topic,
                after: None,
                up_to: None,
                as_of,
            };
            let (mut members, mut ends) = (0, Vec::new());
            cache.members(range, needed, |member| {
                members += 1;
                if members % SLICE_MEMBERS == 0 {
                    ends.push(member.to_owned());
                }
                ControlFlow::Continue(())
            })?;
            Ok::<_, cache::StoreError>(plan(members, &ends))
        });
        match planned.await.ok()? {
            Ok(plan) => Some(plan),
            Err(error) => {
                tracing::warn!(%error, "members of a topic cannot be read; the broadcast waits");
                None
            }
        }
    }
}

/// Divides `members` into slices. `ends` has the last member of each full thousand. The last slice has no end.
fn plan(members: usize, ends: &[String]) -> Vec<Slice> {
    let thousands = members.div_ceil(SLICE_MEMBERS);
    let thousands_per_slice = thousands.div_ceil(slices::MAX_SLICES_PER_BROADCAST).max(1);
    let slice_members = thousands_per_slice * SLICE_MEMBERS;
    let of = thousands.div_ceil(thousands_per_slice);
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let end_before = |slice: usize| ends.get((slice * thousands_per_slice).checked_sub(1)?).cloned();
    let slice = |slice: usize| Slice {
        number: number(slice),
        of: number(of),
        members: number((members - slice * slice_members).min(slice_members)),
        after: end_before(slice),
        up_to: if slice + 1 < of { end_before(slice + 1) } else { None },
    };
    (0..of).map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(members: usize) -> Vec<String> {
        (1..=members / SLICE_MEMBERS)
            .map(|number| format!("{:09}", number * SLICE_MEMBERS))
            .collect()
    }

    #[test]
    fn slices_contain_every_member_exactly_once() {
        for members in [
            0, 1, 999, 1000, 1001, 2000, 2500, 999_000, 999_001, 1_000_000, 3_141_592,
        ] {
            let slices = plan(members, &ends(members));
            assert!(
                slices.len() <= slices::MAX_SLICES_PER_BROADCAST,
                "{members}: {}",
                slices.len()
            );
            assert_eq!(slices.is_empty(), members == 0);
            let total: u64 = slices.iter().map(|slice| u64::from(slice.members)).sum();
            assert_eq!(total, members as u64);
            let mut after = None;
            let mut counted = 0;
            for (number, slice) in slices.iter().enumerate() {
                assert_eq!((slice.number as usize, slice.of as usize), (number, slices.len()));
                assert_eq!(slice.after, after);
                counted += slice.members as usize;
                let is_last = number + 1 == slices.len();
                let end = slice.up_to.as_ref().map(|end| end.parse::<usize>().unwrap());
                assert_eq!(end, (!is_last).then_some(counted));
                after.clone_from(&slice.up_to);
            }
        }
    }
}
