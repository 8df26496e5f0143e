//! Broadcasts: one job becomes slices, and a slice becomes an ordinary job for each member of the topic.
//!
//! The ledger is the checkpoint. A slice is acknowledged after all of its jobs are settled; one that comes again goes
//! through all of its members again, and who has an outcome is skipped like any job that was done before. What is parked
//! for another attempt leaves the slice.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use shared::{
    broadcast::{Broadcast, Slice},
    failpoint::failpoint,
    id::{JobId, RecipientId},
    nats::{broadcast as slices, connect, envelope, follow, subject, topology},
    receipt::{Expanded, ExpandedSlice, Receipt, State},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::interval,
};

use super::{
    Pipeline,
    in_flight::Reservation,
    settlement::{Settlement, Step, Stop, Ticket},
};
use crate::{
    cache, ledger,
    providers::Renditions,
    pulled::{MemberEnd, Pulled, SliceEnvelope},
};

/// Members of a slice, unless there are too many for so many slices as can be stored at once.
const SLICE_MEMBERS: usize = 1000;

/// Members that are read from the cache at one time.
const MEMBERS_PER_READ: usize = 256;

/// How long the cache may take to know what its bucket knew when the work came.
const CACHE_CURRENT_WITHIN: Duration = Duration::from_secs(10);

/// How often the server is told that a slice is still worked on; it waits three times as long.
const REPORT_PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Work that cannot be done now is tried again after this long.
const RETRY_WORK_AFTER: Duration = Duration::from_secs(2);

impl Pipeline {
    /// Splits a broadcast, or works on a slice of one.
    pub(super) async fn broadcast(self: &Arc<Self>, pulled: Pulled, broadcast: Broadcast) -> Step<Settlement> {
        let work = broadcast.work();
        let Some(reservation) = self.in_flight.reserve((work, None)) else {
            return Err(Stop::GiveBack(pulled.into(), Duration::from_secs(1)));
        };
        match self.ledger.look_up(work) {
            Ok(history) if history.has_outcome() => {
                self.telemetry.metrics.duplicate();
                return Ok(settlement(pulled, &broadcast, reservation, None));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "ledger cannot be read; jobs wait");
                return Err(Stop::GiveBack(pulled.into(), Duration::from_secs(5)));
            }
        }
        match &broadcast.slice {
            None => self.split(pulled, &broadcast, reservation).await,
            Some(slice) => self.expand(pulled, &broadcast, slice, reservation).await,
        }
    }

    /// Stores the slices of a broadcast, once.
    async fn split(&self, pulled: Pulled, broadcast: &Broadcast, reservation: Reservation) -> Step<Settlement> {
        let split = match slices::recorded_split(&self.js, broadcast).await {
            Ok(Some(split)) => split,
            Ok(None) => {
                if let Some(state) = self.unwanted(broadcast) {
                    self.telemetry.metrics.delivery(None, state);
                    let receipt = Receipt {
                        state,
                        reason: Some(state.as_str().into()),
                        ..self.of_work(broadcast)
                    };
                    return Ok(settlement(pulled, broadcast, reservation, Some(receipt)));
                }
                let Some(plan) = self.plan(broadcast).await else {
                    return Err(Stop::GiveBack(pulled.into(), RETRY_WORK_AFTER));
                };
                failpoint("worker.before-split");
                let (lane, payload) = (self.lane_of(broadcast), pulled.payload());
                match slices::split(&self.js, broadcast, &lane, pulled.headers(), &payload, &plan).await {
                    Ok(split) => split,
                    Err(error) => {
                        tracing::warn!(job = %broadcast.id, %error, "broadcast could not be split; it is given back");
                        return Err(Stop::GiveBack(pulled.into(), RETRY_WORK_AFTER));
                    }
                }
            }
            Err(error) => {
                tracing::warn!(job = %broadcast.id, %error, "broadcast cannot be split; it is given back");
                return Err(Stop::GiveBack(pulled.into(), RETRY_WORK_AFTER));
            }
        };
        failpoint("worker.after-split");
        tracing::info!(job = %broadcast.id, slices = split.slices, members = split.members, "broadcast split");
        let receipt = Receipt {
            expanded: Some(Expanded::Slices(split).into()),
            ..self.of_work(broadcast)
        };
        Ok(settlement(pulled, broadcast, reservation, Some(receipt)))
    }

    /// How a broadcast ends of which nothing is to be sent any more.
    fn unwanted(&self, broadcast: &Broadcast) -> Option<State> {
        if broadcast.is_expired(self.clock.now()) {
            Some(State::Expired)
        } else {
            let cancelled = self.cancelled.contains(broadcast.notification);
            cancelled.then_some(State::Cancelled)
        }
    }

    /// The slices into which a broadcast is to be split; `None` if the members are not known now.
    async fn plan(&self, broadcast: &Broadcast) -> Option<Vec<Slice>> {
        self.cache_knows().await?;
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
            cache.members(range, |member| {
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
                tracing::warn!(%error, "members of a topic cannot be read");
                None
            }
        }
    }

    /// Waits until the cache knows what its bucket knew when this was called: who joined a moment before a broadcast is
    /// meant too. `None` if that takes too long.
    async fn cache_knows(&self) -> Option<()> {
        let bucket = follow::stream_state(&self.js, topology::RECIPIENTS).await.ok()?;
        let known = || self.cache.standing().map(Option::unwrap_or_default);
        if !bucket.is_reached_within(CACHE_CURRENT_WITHIN, known).await.ok()? {
            tracing::warn!("the cache does not follow its bucket; a broadcast waits");
            return None;
        }
        Some(())
    }

    /// Works on every member of a slice, many at one time.
    async fn expand(
        self: &Arc<Self>,
        pulled: Pulled,
        broadcast: &Broadcast,
        slice: &Slice,
        reservation: Reservation,
    ) -> Step<Settlement> {
        let connected = connect::connects(&self.js.client());
        if self.cache_knows().await.is_none() {
            return Err(Stop::GiveBack(pulled.into(), RETRY_WORK_AFTER));
        }
        let permits = &self.members[&broadcast.class];
        let (end, mut ends) = mpsc::unbounded_channel();
        let mut expansion = Expansion::new(self, &pulled, broadcast, slice, end);
        let mut keep = interval(REPORT_PROGRESS_EVERY);
        loop {
            // A server that was lost may have given the slice to another worker meanwhile.
            if self.lifecycle.is_finishing() || connect::connects(&self.js.client()) != connected {
                expansion.leave(RETRY_WORK_AFTER);
            }
            expansion.look_ahead();
            if expansion.under_way == 0 && expansion.ahead.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                _ = keep.tick() => if let Err(error) = pulled.report_progress().await {
                    tracing::warn!(%error, "the server could not be told that a slice is worked on");
                },
                Some(end) = ends.recv(), if expansion.under_way > 0 => expansion.count(end),
                Ok(permit) = permits.clone().acquire_owned(), if !expansion.ahead.is_empty() => expansion.begin(permit),
            }
        }
        let Expansion { again, tally, .. } = expansion;
        if let Some(again) = again {
            return Err(Stop::GiveBack(pulled.into(), again));
        }
        failpoint("worker.after-slice");
        let expanded = ExpandedSlice {
            broadcast: broadcast.id,
            number: slice.number,
            of: slice.of,
            jobs: tally.jobs,
            by_state: tally.by_state,
            cancelled: tally.cancelled,
            forwarded: tally.forwarded,
            accepted_at: broadcast.accepted_at,
        };
        let receipt = Receipt {
            expanded: Some(Expanded::Jobs(expanded).into()),
            ..self.of_work(broadcast)
        };
        Ok(settlement(pulled, broadcast, reservation, Some(receipt)))
    }

    fn lane_of(&self, broadcast: &Broadcast) -> subject::Lane {
        subject::Lane {
            channel: broadcast.channel(),
            region: self.region.clone(),
            class: broadcast.class,
            app: broadcast.app.clone(),
        }
    }

    /// That a broadcast or a slice was expanded; the caller says into what.
    fn of_work(&self, broadcast: &Broadcast) -> Receipt {
        let (job, now) = (broadcast.work(), self.clock.now());
        Receipt::new(broadcast.notification, job, broadcast.channel(), State::Expanded, now)
    }
}

fn settlement(pulled: Pulled, broadcast: &Broadcast, reservation: Reservation, receipt: Option<Receipt>) -> Settlement {
    Settlement {
        app: broadcast.app.clone(),
        origin: broadcast.origin.clone(),
        receipts: receipt.into_iter().collect(),
        ticket: Ticket::new(pulled, Some(reservation), None),
    }
}

/// Cuts so many `members` into slices; `ends` are the last members of each full thousand. The last slice has no end.
fn plan(members: usize, ends: &[String]) -> Vec<Slice> {
    let thousands = members.div_ceil(SLICE_MEMBERS);
    let together = thousands.div_ceil(slices::MAX_SLICES_PER_BROADCAST).max(1);
    let of = thousands.div_ceil(together);
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let end = |slice: usize| ends.get((slice * together).checked_sub(1)?).cloned();
    let cut = |slice: usize| Slice {
        number: number(slice),
        of: number(of),
        members: number((members - slice * together * SLICE_MEMBERS).min(together * SLICE_MEMBERS)),
        after: end(slice),
        up_to: if slice + 1 < of { end(slice + 1) } else { None },
    };
    (0..of).map(cut).collect()
}

/// A slice under way.
struct Expansion<'a> {
    pipeline: &'a Arc<Pipeline>,
    pulled: &'a Pulled,
    broadcast: &'a Broadcast,
    slice: &'a Slice,
    envelope: Arc<SliceEnvelope>,
    ends: mpsc::UnboundedSender<MemberEnd>,
    /// Members that come next.
    ahead: VecDeque<RecipientId>,
    /// Up to where members were read; `None` at the beginning.
    read: Option<String>,
    /// Whether there are no more to read.
    exhausted: bool,
    under_way: usize,
    /// The slice is to come again after this time; nothing more is begun.
    again: Option<Duration>,
    tally: Tally,
}

/// What became of the members of a slice.
#[derive(Debug, Default)]
struct Tally {
    jobs: u32,
    by_state: BTreeMap<State, u32>,
    cancelled: u32,
    forwarded: u32,
}

impl Tally {
    fn add(&mut self, outcomes: &[State]) {
        // Settled, and nothing is known of it: what becomes of it is said where the recipient lives now.
        if outcomes.is_empty() {
            self.forwarded += 1;
            return;
        }
        self.jobs += 1;
        for state in outcomes {
            *self.by_state.entry(*state).or_default() += 1;
        }
    }
}

impl<'a> Expansion<'a> {
    fn new(
        pipeline: &'a Arc<Pipeline>,
        pulled: &'a Pulled,
        broadcast: &'a Broadcast,
        slice: &'a Slice,
        ends: mpsc::UnboundedSender<MemberEnd>,
    ) -> Self {
        Self {
            envelope: Arc::new(SliceEnvelope {
                subject: pipeline.lane_of(broadcast).notify().into(),
                headers: envelope::member_headers(pulled.headers(), slice),
                renditions: Renditions::default(),
            }),
            pipeline,
            pulled,
            broadcast,
            slice,
            ends,
            ahead: VecDeque::new(),
            read: None,
            exhausted: false,
            under_way: 0,
            again: None,
            tally: Tally::default(),
        }
    }

    /// Begins nothing more, and lets the slice come again.
    fn leave(&mut self, wait: Duration) {
        self.again = self.again.max(Some(wait));
        self.ahead.clear();
        self.exhausted = true;
    }

    /// Reads who comes next, unless somebody does. Of a broadcast that was withdrawn nobody comes any more.
    fn look_ahead(&mut self) {
        let withdrawn = self.pipeline.cancelled.contains(self.broadcast.notification);
        while !self.exhausted && (self.ahead.is_empty() || withdrawn) {
            if let Err(error) = self.read_more() {
                tracing::warn!(%error, "members of a topic cannot be read; the slice comes again");
                self.leave(RETRY_WORK_AFTER);
            }
        }
        if withdrawn {
            for recipient in std::mem::take(&mut self.ahead) {
                self.spare(&recipient);
            }
        }
    }

    fn read_more(&mut self) -> Result<(), cache::StoreError> {
        let range = cache::Range {
            app: &self.broadcast.app,
            topic: &self.broadcast.topic,
            after: self.read.as_deref().or(self.slice.after.as_deref()),
            up_to: self.slice.up_to.as_deref(),
            as_of: self.broadcast.accepted_at,
        };
        let mut names = Vec::with_capacity(MEMBERS_PER_READ);
        self.pipeline.cache.members(range, |member| {
            names.push(member.to_owned());
            if names.len() < MEMBERS_PER_READ {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        self.exhausted = names.len() < MEMBERS_PER_READ;
        let recipients = names.iter().filter_map(|name| subject::parse_recipient(name));
        self.ahead.extend(recipients);
        self.read = names.pop().or(self.read.take());
        Ok(())
    }

    /// Counts a member to whom nothing is sent any more, unless something was.
    fn spare(&mut self, recipient: &RecipientId) {
        let Broadcast {
            app, event, content, ..
        } = self.broadcast;
        match self.outcomes(JobId::of(app, event, recipient, content.channel())) {
            Ok(outcomes) if outcomes.is_empty() => self.tally.cancelled += 1,
            Ok(outcomes) => self.tally.add(&outcomes),
            Err(error) => self.unreadable(&error),
        }
    }

    /// Sends the next member on the path of every job.
    fn begin(&mut self, permit: OwnedSemaphorePermit) {
        let Some(recipient) = self.ahead.pop_front() else {
            return;
        };
        let job = Arc::new(self.broadcast.job(recipient));
        let (envelope, ends, now) = (self.envelope.clone(), self.ends.clone(), self.pipeline.clock.now());
        let pulled = self.pulled.member(envelope, job.clone(), permit, ends, now);
        let opened = self.pipeline.opened(pulled, job);
        self.under_way += 1;
        let pipeline = self.pipeline.clone();
        self.pipeline.lifecycle.spawn_job(Box::pin(pipeline.run_member(opened)));
    }

    fn count(&mut self, end: MemberEnd) {
        self.under_way -= 1;
        match end {
            MemberEnd::Settled(_, states) if !states.is_empty() => self.tally.add(&states),
            // It was settled before.
            MemberEnd::Settled(job, _) => match self.outcomes(job) {
                Ok(outcomes) => self.tally.add(&outcomes),
                Err(error) => self.unreadable(&error),
            },
            MemberEnd::GivenBack(wait) => self.again = self.again.max(Some(wait)),
        }
    }

    fn outcomes(&self, job: JobId) -> Result<Vec<State>, ledger::StoreError> {
        Ok(self.pipeline.ledger.look_up(job)?.first_outcomes())
    }

    fn unreadable(&mut self, error: &ledger::StoreError) {
        tracing::error!(%error, "ledger cannot be read; the slice comes again");
        self.leave(RETRY_WORK_AFTER);
    }
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
    fn slices_cover_everybody_once() {
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
