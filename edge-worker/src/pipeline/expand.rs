//! Turns a slice of a broadcast into one job for each member, and settles the slice after all of them.
//!
//! The ledger is the checkpoint. A slice is acknowledged after all of its jobs are settled. A redelivered slice goes through
//! all of its members again, and those with an outcome are skipped, like any job that was done before. A parked retry
//! leaves the slice. If members wait because of quiet hours, the slice is not settled: it waits on a schedule for the first of them,
//! and goes through all members again.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use shared::{
    broadcast::{Broadcast, Slice},
    failpoint::failpoint,
    id::{JobId, RecipientId},
    nats::{
        connect, envelope,
        subject::{self, Tier},
    },
    receipt::{Expanded, ExpandedSlice, State},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::interval,
};

use super::{
    context::Pipeline,
    in_flight::Reservation,
    receipts::receipt_of_expansion,
    settlement::{RETRY_JETSTREAM_AFTER, Settlement, Step, Stop},
};
use crate::{
    cache, ledger,
    limits::REPORT_PROGRESS_EVERY,
    providers::Renditions,
    pulled::{MemberEnd, Pulled, SliceEnvelope},
};

/// The number of members that are read from the cache at once.
const MEMBERS_PER_READ: usize = 256;

impl Pipeline {
    /// Works on all members of a slice, many at the same time.
    pub(super) async fn expand(
        self: &Arc<Self>,
        pulled: Pulled,
        broadcast: &Broadcast,
        slice: &Slice,
        reservation: Reservation,
    ) -> Step<Settlement> {
        let connected = connect::connects(&self.js.client());
        let permits = &self.members[&(broadcast.channel(), broadcast.class, Tier::of(pulled.subject()))];
        let (end, mut ends) = mpsc::unbounded_channel();
        let mut expansion = Expansion::new(self, &pulled, broadcast, slice, end);
        let mut progress = interval(REPORT_PROGRESS_EVERY);
        loop {
            // After a lost connection the server may have given the slice to another worker.
            if self.lifecycle.is_finishing() || connect::connects(&self.js.client()) != connected {
                expansion.stop(RETRY_JETSTREAM_AFTER);
            }
            expansion.read_ahead();
            if expansion.in_flight == 0 && expansion.next.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                _ = progress.tick() => if let Err(error) = pulled.report_progress().await {
                    tracing::warn!(%error, "progress of a slice could not be reported");
                },
                Some(end) = ends.recv(), if expansion.in_flight > 0 => expansion.count(end),
                Ok(permit) = permits.clone().acquire_owned(), if !expansion.next.is_empty() => expansion.start_next(permit),
            }
        }
        let Expansion {
            retry_after,
            held_until,
            tally,
            ..
        } = expansion;
        if let Some(retry_after) = retry_after {
            return Err(Stop::GiveBack(pulled.into(), retry_after));
        }
        if let Some(held_until) = held_until {
            return Err(Box::pin(self.reschedule_slice(pulled, broadcast, held_until)).await);
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
        let receipt = receipt_of_expansion(broadcast, Expanded::Jobs(expanded), self.clock.now());
        Ok(Settlement::of_broadcast(pulled, broadcast, reservation, Some(receipt)))
    }
}

/// A slice in progress.
struct Expansion<'a> {
    pipeline: &'a Arc<Pipeline>,
    pulled: &'a Pulled,
    broadcast: &'a Broadcast,
    slice: &'a Slice,
    envelope: Arc<SliceEnvelope>,
    ends: mpsc::UnboundedSender<MemberEnd>,
    /// Members that were read and not started.
    next: VecDeque<RecipientId>,
    /// The last member that was read, escaped as in keys.
    last_read: Option<String>,
    /// Whether no member is left to read.
    all_read: bool,
    /// The number of members in flight.
    in_flight: usize,
    /// When the slice is retried, if it cannot be completed now.
    retry_after: Option<Duration>,
    /// When the first of its members that wait may be sent to.
    held_until: Option<Timestamp>,
    tally: Tally,
}

/// The outcomes of the members of a slice.
#[derive(Debug, Default)]
struct Tally {
    jobs: u32,
    by_state: BTreeMap<State, u32>,
    cancelled: u32,
    forwarded: u32,
}

impl Tally {
    fn add(&mut self, outcomes: &[State]) {
        // Settled without an outcome: the recipient moved, and the outcome is recorded in the new home region.
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
                subject: Tier::of(pulled.subject())
                    .subject(&pipeline.lane_of_broadcast(broadcast).notify())
                    .into(),
                headers: envelope::member_headers(pulled.headers(), slice, &broadcast.topic),
                is_proven: pipeline.is_proven_broadcast(pulled, broadcast),
                renditions: Renditions::default(),
            }),
            pipeline,
            pulled,
            broadcast,
            slice,
            ends,
            next: VecDeque::new(),
            last_read: None,
            all_read: false,
            in_flight: 0,
            retry_after: None,
            held_until: None,
            tally: Tally::default(),
        }
    }

    /// Starts no further member, and has the slice retried after `wait`.
    fn stop(&mut self, wait: Duration) {
        self.retry_after = self.retry_after.max(Some(wait));
        self.next.clear();
        self.all_read = true;
    }

    /// Reads the next members if none is waiting. After the broadcast was withdrawn, counts all remaining members instead.
    fn read_ahead(&mut self) {
        let withdrawn = self.pipeline.cancelled.contains(self.broadcast.notification);
        while !self.all_read && (self.next.is_empty() || withdrawn) {
            if let Err(error) = self.read_more() {
                tracing::warn!(%error, "members of a topic cannot be read; the slice is given back");
                self.stop(RETRY_JETSTREAM_AFTER);
            }
        }
        if withdrawn {
            for recipient in std::mem::take(&mut self.next) {
                self.count_withdrawn(&recipient);
            }
        }
    }

    fn read_more(&mut self) -> Result<(), cache::StoreError> {
        let range = cache::Range {
            app: &self.broadcast.app,
            topic: &self.broadcast.topic,
            after: self.last_read.as_deref().or(self.slice.after.as_deref()),
            up_to: self.slice.up_to.as_deref(),
            as_of: self.broadcast.accepted_at,
        };
        let mut names = Vec::with_capacity(MEMBERS_PER_READ);
        self.pipeline.cache.members(range, self.pulled.facts, |member| {
            names.push(member.to_owned());
            if names.len() < MEMBERS_PER_READ {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        self.all_read = names.len() < MEMBERS_PER_READ;
        let recipients = names.iter().filter_map(|name| subject::parse_recipient(name));
        self.next.extend(recipients);
        self.last_read = names.pop().or(self.last_read.take());
        Ok(())
    }

    /// Counts a member of a withdrawn broadcast: as cancelled, unless the ledger has outcomes.
    fn count_withdrawn(&mut self, recipient: &RecipientId) {
        let job = self.broadcast.job_id(&self.pipeline.config.id_key(), recipient);
        match self.outcomes(job) {
            Ok(outcomes) if outcomes.is_empty() => self.tally.cancelled += 1,
            Ok(outcomes) => self.tally.add(&outcomes),
            Err(error) => self.stop_without_ledger(&error),
        }
    }

    /// Starts the job of the next member.
    fn start_next(&mut self, permit: OwnedSemaphorePermit) {
        let Some(recipient) = self.next.pop_front() else {
            return;
        };
        let job = Arc::new(self.broadcast.job(&self.pipeline.config.id_key(), recipient));
        let (envelope, ends, now) = (self.envelope.clone(), self.ends.clone(), self.pipeline.clock.now());
        let pulled = self.pulled.member(envelope, job.clone(), permit, ends, now);
        let opened = self.pipeline.opened(pulled, job);
        self.in_flight += 1;
        let pipeline = self.pipeline.clone();
        self.pipeline.lifecycle.spawn_job(Box::pin(pipeline.run_member(opened)));
    }

    /// Counts a member whose job has ended.
    fn count(&mut self, end: MemberEnd) {
        self.in_flight -= 1;
        match end {
            MemberEnd::Settled(_, states) if !states.is_empty() => self.tally.add(&states),
            // It was settled before, so its outcomes are in the ledger.
            MemberEnd::Settled(job, _) => match self.outcomes(job) {
                Ok(outcomes) => self.tally.add(&outcomes),
                Err(error) => self.stop_without_ledger(&error),
            },
            MemberEnd::GivenBack(wait) => self.retry_after = self.retry_after.max(Some(wait)),
            MemberEnd::Held(until) => {
                self.held_until = Some(self.held_until.map_or(until, |first| first.min(until)));
            }
        }
    }

    fn outcomes(&self, job: JobId) -> Result<Vec<State>, ledger::StoreError> {
        Ok(self.pipeline.ledger.look_up(job)?.first_outcomes())
    }

    fn stop_without_ledger(&mut self, error: &ledger::StoreError) {
        tracing::error!(%error, "ledger cannot be read; the slice is given back");
        self.stop(RETRY_JETSTREAM_AFTER);
    }
}
