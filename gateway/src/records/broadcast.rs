//! How far a broadcast is, counted from what is told of its slices.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::{
    id::{Region, Topic},
    receipt::{Expanded, ExpandedSlice, Split, State as DeliveryState},
};
use utoipa::ToSchema;

use super::receipts::History;

/// How far a broadcast is.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Broadcast {
    /// The topic; absent while no gateway's record of it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<Topic>,
    /// Members, in the regions that have begun.
    pub(super) total: u64,
    /// Members who are done with: sent to at least once, or not to be sent to.
    pub(super) done: u64,
    /// Deliveries by what became of them; of a member who was withdrawn from before its turn, one.
    pub(super) by_state: BTreeMap<DeliveryState, u64>,
    /// The same by the region where members live; absent is one that has not begun.
    pub(super) by_region: BTreeMap<Region, BroadcastIn>,
}

/// How far a broadcast is in one region.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct BroadcastIn {
    /// Members, as they were counted in the beginning; in the end, those that were found.
    total: u64,
    /// Members who are done with.
    done: u64,
    /// Parts into which the members were divided.
    slices: u32,
    /// Parts that are done.
    slices_done: u32,
    /// Members whose jobs were sent on to where they moved.
    #[serde(skip_serializing_if = "is_zero")]
    forwarded: u64,
    /// Deliveries by what became of them.
    by_state: BTreeMap<DeliveryState, u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Broadcast {
    /// How far it is, and whether it is done; `None` if it is no broadcast.
    pub(super) fn of(history: &History) -> Option<(Self, bool)> {
        let topic = history.accepted.iter().find_map(|accepted| accepted.topic.clone());
        let mut regions: BTreeMap<&Region, RegionReceipts> = BTreeMap::new();
        // What is told of no recipient is told of a broadcast or a slice.
        for (region, receipt) in history
            .receipts
            .iter()
            .filter(|(_, receipt)| receipt.recipient.is_none())
        {
            let here = regions.entry(region).or_default();
            match receipt.expanded.as_deref() {
                Some(Expanded::Slices(split)) => here.split = Some(split),
                Some(Expanded::Jobs(slice)) => {
                    here.slices.insert(slice.number, slice);
                }
                None => here.unsent = Some(receipt.state),
            }
        }
        if topic.is_none()
            && regions
                .values()
                .all(|here| here.split.is_none() && here.slices.is_empty())
        {
            return None;
        }
        let promised = history.accepted.iter().map(|accepted| accepted.jobs as usize).max();
        let mut is_done = promised.is_none_or(|promised| regions.len() >= promised);
        let mut all = Self {
            topic,
            ..Self::default()
        };
        for (region, here) in regions {
            let late = history.late.iter().filter(|((place, _), _)| place == region);
            let here = here.count(late.map(|((_, state), count)| (*state, *count)));
            all.total += here.total;
            all.done += here.done;
            for (state, count) in &here.by_state {
                *all.by_state.entry(*state).or_default() += count;
            }
            is_done &= here.slices_done == here.slices && !here.by_state.contains_key(&DeliveryState::Parked);
            all.by_region.insert(region.clone(), here);
        }
        Some((all, is_done))
    }
}

/// What the receipts of one region state of a broadcast.
#[derive(Default)]
struct RegionReceipts<'a> {
    split: Option<&'a Split>,
    slices: BTreeMap<u32, &'a ExpandedSlice>,
    /// How it ended without being split.
    unsent: Option<DeliveryState>,
}

impl RegionReceipts<'_> {
    fn count(self, late: impl Iterator<Item = (DeliveryState, u64)>) -> BroadcastIn {
        let slices = self.split.map(|split| split.slices);
        let mut counted = BroadcastIn {
            slices: slices
                .or(self.slices.values().next().map(|slice| slice.of))
                .unwrap_or_default(),
            slices_done: u32::try_from(self.slices.len()).unwrap_or(u32::MAX),
            ..BroadcastIn::default()
        };
        let mut add = |state, count| *counted.by_state.entry(state).or_default() += count;
        for slice in self.slices.values() {
            counted.done += u64::from(slice.jobs) + u64::from(slice.cancelled) + u64::from(slice.forwarded);
            counted.forwarded += u64::from(slice.forwarded);
            for (state, count) in &slice.by_state {
                add(*state, u64::from(*count));
            }
            add(DeliveryState::Cancelled, slice.cancelled.into());
        }
        if let Some(state) = self.unsent {
            add(state, 1);
        }
        // What a slice left behind for another attempt, and has ended since.
        let mut ended = 0;
        for (state, count) in late {
            add(state, count);
            ended += count;
        }
        if let Some(parked) = counted.by_state.get_mut(&DeliveryState::Parked) {
            *parked = parked.saturating_sub(ended);
        }
        counted.by_state.retain(|_, count| *count > 0);
        let members = self.split.map_or(0, |split| split.members);
        counted.total = if counted.slices_done == counted.slices {
            counted.done
        } else {
            members.max(counted.done)
        };
        counted
    }
}
