//! The progress of a broadcast, counted from the receipts of its slices.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::{
    channel::Channel,
    id::{Region, Topic},
    receipt::{Expanded, ExpandedSlice, Split, State as DeliveryState},
};
use utoipa::ToSchema;

use super::receipts::History;

/// The progress of a broadcast.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Broadcast {
    /// The topic; absent until a gateway's record of the acceptance has arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<Topic>,
    /// Members of the topic, in the regions that have started; once for each channel.
    pub(super) total: u64,
    /// Members with at least one attempt, or with nothing to send.
    pub(super) done: u64,
    /// Number of deliveries by state. A member whose turn came after the withdrawal counts as one `cancelled` delivery.
    pub(super) by_state: BTreeMap<DeliveryState, u64>,
    /// The same by the region where members live. A region that has not started is absent.
    pub(super) by_region: BTreeMap<Region, RegionBroadcast>,
}

/// The progress of a broadcast in one region.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = BroadcastIn)]
pub(crate) struct RegionBroadcast {
    /// Members of the topic: an estimate at first, exact once every slice is done.
    total: u64,
    /// Members with at least one attempt, or with nothing to send.
    done: u64,
    /// Slices into which the members were divided.
    slices: u32,
    /// Slices that are done.
    slices_done: u32,
    /// Members who moved, so that their jobs were forwarded to another region.
    #[serde(skip_serializing_if = "is_zero")]
    forwarded: u64,
    /// Number of deliveries by state.
    by_state: BTreeMap<DeliveryState, u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Broadcast {
    /// The progress, and whether the broadcast is done; `None` if the notification is not a broadcast.
    pub(super) fn of(history: &History) -> Option<(Self, bool)> {
        let topic = history.accepted.iter().find_map(|accepted| accepted.topic.clone());
        // With several channels there is a broadcast for each in every region.
        let mut broadcasts: BTreeMap<(&Region, Channel), RegionReceipts> = BTreeMap::new();
        // A receipt without a recipient belongs to a broadcast or a slice.
        for (region, receipt) in history
            .receipts
            .iter()
            .filter(|(_, receipt)| receipt.recipient.is_none())
        {
            let here = broadcasts.entry((region, receipt.channel)).or_default();
            match receipt.expanded.as_deref() {
                Some(Expanded::Slices(split)) => here.split = Some(split),
                Some(Expanded::Jobs(slice)) => {
                    here.slices.insert(slice.number, slice);
                }
                None => here.unsent = Some(receipt.state),
            }
        }
        if topic.is_none()
            && broadcasts
                .values()
                .all(|here| here.split.is_none() && here.slices.is_empty())
        {
            return None;
        }
        let expected = history.accepted.iter().map(|accepted| accepted.jobs as usize).max();
        let mut is_done = expected.is_none_or(|expected| broadcasts.len() >= expected);
        let mut all = Self {
            topic,
            ..Self::default()
        };
        for ((region, _), receipts) in broadcasts {
            all.by_region.entry(region.clone()).or_default().add(&receipts);
        }
        for (region, here) in &mut all.by_region {
            let late = history.late.iter().filter(|((place, _), _)| place == region);
            here.end(late.map(|((_, state), count)| (*state, *count)));
            all.total += here.total;
            all.done += here.done;
            for (state, count) in &here.by_state {
                *all.by_state.entry(*state).or_default() += count;
            }
            is_done &= here.slices_done == here.slices && !here.by_state.contains_key(&DeliveryState::Parked);
        }
        Some((all, is_done))
    }
}

/// The receipts of the broadcast of one channel from one region.
#[derive(Default)]
struct RegionReceipts<'a> {
    split: Option<&'a Split>,
    slices: BTreeMap<u32, &'a ExpandedSlice>,
    /// The final state of a broadcast that was not split.
    unsent: Option<DeliveryState>,
}

impl RegionBroadcast {
    /// Adds the broadcast of one channel.
    fn add(&mut self, receipts: &RegionReceipts<'_>) {
        let slices = receipts.split.map(|split| split.slices);
        let slices = slices
            .or(receipts.slices.values().next().map(|slice| slice.of))
            .unwrap_or_default();
        let slices_done = u32::try_from(receipts.slices.len()).unwrap_or(u32::MAX);
        self.slices += slices;
        self.slices_done += slices_done;
        let mut add = |state, count| *self.by_state.entry(state).or_default() += count;
        let mut done = 0;
        for slice in receipts.slices.values() {
            done += u64::from(slice.jobs) + u64::from(slice.cancelled) + u64::from(slice.forwarded);
            self.forwarded += u64::from(slice.forwarded);
            for (state, count) in &slice.by_state {
                add(*state, u64::from(*count));
            }
            add(DeliveryState::Cancelled, slice.cancelled.into());
        }
        if let Some(state) = receipts.unsent {
            add(state, 1);
        }
        let members = receipts.split.map_or(0, |split| split.members);
        self.done += done;
        self.total += if slices_done == slices { done } else { members.max(done) };
    }

    /// Adds the deliveries that slices parked for another attempt, and that have ended since.
    fn end(&mut self, late: impl Iterator<Item = (DeliveryState, u64)>) {
        let mut ended = 0;
        for (state, count) in late {
            *self.by_state.entry(state).or_default() += count;
            ended += count;
        }
        if let Some(parked) = self.by_state.get_mut(&DeliveryState::Parked) {
            *parked = parked.saturating_sub(ended);
        }
        self.by_state.retain(|_, count| *count > 0);
    }
}
