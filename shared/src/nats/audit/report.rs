//! The report: what follows from the messages that were read.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use uuid::Uuid;

use super::{Audit, Faults, Parked, Place, Recreated, Scope};
use crate::{
    channel::words,
    id::{AppId, Region},
    receipt::State,
};

words!(
    /// How the equation is broken.
    Break, "break", {
        /// A gateway recorded that it accepted jobs that neither receipts nor any stream of work mention.
        Vanished = "vanished",
        /// A lane acknowledged the job without a receipt, or no lane takes it.
        Unanswered = "unanswered",
        /// The job left the outbox and is not in its region.
        Strayed = "strayed",
        /// A broadcast was split into slices that no stream holds and that have no receipts.
        SliceLost = "slice_lost",
        /// The receipt of a step says that the next step was stored, which no stream holds and which has no receipts.
        StepLost = "step_lost",
        /// The delivery waits for another attempt, or its job waits as a whole, and no schedule will bring it back.
        Abandoned = "abandoned",
        /// It was in a stream that was deleted, and nothing else holds it.
        StreamDeleted = "stream_deleted",
        /// A message in the stream of receipts is none.
        Unreadable = "unreadable",
        /// Receipts about what another region accepted are not signed.
        Unproven = "unproven",
        /// A delivery has two final receipts.
        Contradicted = "contradicted",
        /// Receipts mention jobs that were never accepted.
        NeverAccepted = "never_accepted",
        /// A dead letter has no receipt.
        LetterAlone = "letter_alone",
        /// A receipt states `dead` or `unknown`, and there is no dead letter.
        LetterMissing = "letter_missing",
    }
);

impl Break {
    /// One line that explains it to people, with the kind of id that it names.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Vanished => "accepted, but neither receipts nor any stream mention them (notification)",
            Self::Unanswered => "acknowledged without a receipt, or in no lane (job)",
            Self::Strayed => "left the outbox and did not arrive (job)",
            Self::SliceLost => "part of a broadcast that no stream holds and no worker processed (slice)",
            Self::StepLost => "next step of a plan that no stream holds and no worker processed (job)",
            Self::Abandoned => "waits for another attempt, but no schedule will bring it (job)",
            Self::StreamDeleted => "was in a stream that was deleted (notification, job or slice)",
            Self::Unreadable => "in RECEIPTS and no receipts (the message's sequence, in hexadecimal)",
            Self::Unproven => {
                "receipts for another region without a signature, not counted (the message's sequence, in hexadecimal)"
            }
            Self::Contradicted => "two final receipts for one delivery (job)",
            Self::NeverAccepted => "receipts of jobs that were never accepted (notification)",
            Self::LetterAlone => "dead letter without a receipt (delivery)",
            Self::LetterMissing => "receipt states dead, but there is no dead letter (job)",
        }
    }

    /// Whether jobs or deliveries are lost, rather than recorded wrongly.
    pub const fn is_loss(self) -> bool {
        match self {
            Self::Vanished
            | Self::Unanswered
            | Self::Strayed
            | Self::SliceLost
            | Self::StepLost
            | Self::Abandoned
            | Self::StreamDeleted => true,
            Self::Unreadable
            | Self::Unproven
            | Self::Contradicted
            | Self::NeverAccepted
            | Self::LetterAlone
            | Self::LetterMissing => false,
        }
    }
}

/// One way in which the equation is broken.
#[derive(Debug, Clone, Serialize)]
pub struct Broken {
    /// The way in which it is broken.
    pub how: Break,
    /// Number of notifications, jobs, slices or deliveries.
    pub count: usize,
    /// The first of them; [`Break::meaning`] states the kind of the ids.
    pub named: Vec<Culprit>,
}

/// One notification, job, slice or delivery that breaks the equation.
#[derive(Debug, Clone, Serialize)]
pub struct Culprit {
    /// Its id; the kind depends on the [`Break`].
    pub id: Uuid,
    /// The app that sent it.
    pub app: AppId,
    /// The region that accepted it.
    pub origin: Region,
}

/// Deliveries = those in a final state + those in flight, if nothing is lost. A job without receipts counts as one
/// delivery, and so does a broadcast or a slice until its receipt states which jobs it became.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Equation {
    /// Jobs accepted.
    pub accepted: usize,
    /// Deliveries they became: a recipient with two addresses is two.
    pub deliveries: usize,
    /// Deliveries that ended, by final state.
    #[serde(flatten)]
    pub by_state: BTreeMap<State, usize>,
    /// Deliveries that a stream or a schedule still holds.
    pub in_flight: usize,
    /// Deliveries that are in no final state and that no stream holds.
    pub lost: usize,
    /// Other faults: unreadable receipts, contradictions, receipts of jobs never accepted, dead letters without a receipt or the reverse.
    pub wrong: usize,
}

impl Equation {
    /// Whether nothing is lost and nothing contradicts itself.
    pub fn holds(&self) -> bool {
        self.lost == 0 && self.wrong == 0
    }

    /// Whether it holds and nothing is in flight.
    pub fn is_settled(&self) -> bool {
        self.holds() && self.in_flight == 0
    }

    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.deliveries += other.deliveries;
        for (state, count) in &other.by_state {
            *self.by_state.entry(*state).or_default() += count;
        }
        self.in_flight += other.in_flight;
        self.lost += other.lost;
        self.wrong += other.wrong;
    }
}

impl fmt::Display for Equation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accepted {}, deliveries {} =", self.accepted, self.deliveries)?;
        for (state, count) in &self.by_state {
            write!(f, " {state} {count} +")?;
        }
        write!(f, " in flight {}", self.in_flight)?;
        if !self.holds() {
            write!(f, "; lost {}, wrong {}", self.lost, self.wrong)?;
        }
        Ok(())
    }
}

/// The equation of one app's notifications that one region accepted.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The app that sent the notifications.
    pub app: AppId,
    /// The region that accepted them.
    pub origin: Region,
    /// Its numbers.
    #[serde(flatten)]
    pub equation: Equation,
}

/// Where the deliveries in flight are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct InFlight {
    /// In a lane.
    pub lanes: usize,
    /// Scheduled for another attempt, or due again.
    pub scheduled: usize,
    /// Jobs that wait as a whole, or are due after that.
    pub deferred: usize,
    /// In an outbox, on the way to another region.
    pub outboxes: usize,
    /// Published by a service, in the intake of its app.
    pub intakes: usize,
    /// In a region whose streams were not read.
    pub elsewhere: usize,
}

/// The result of an audit.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// One equation per app and accepting region.
    pub rows: Vec<Row>,
    /// Where the deliveries in flight are.
    pub in_flight: InFlight,
    /// The ways in which the equation is broken; empty if it holds.
    pub broken: Vec<Broken>,
    /// The streams that replaced deleted ones. What those held is not in the equation, unless receipts mention it.
    pub recreated: Vec<Recreated>,
    /// Number of messages of work that repeat a job; harmless, because a job's id makes it count once.
    pub repeated: u64,
}

impl Report {
    /// The sum of all rows.
    pub fn total(&self) -> Equation {
        let mut total = Equation::default();
        self.rows.iter().for_each(|row| total.add(&row.equation));
        total
    }

    /// Whether nothing breaks the equation.
    pub fn holds(&self) -> bool {
        self.broken.is_empty()
    }
}

/// Builds a report.
struct Writer<'a> {
    audit: &'a Audit,
    equations: Vec<Equation>,
    in_flight: InFlight,
    broken: BTreeMap<Break, Faults>,
}

impl Audit {
    /// The report on the notifications in `scope`.
    pub(super) fn report(&self, scope: &Scope) -> Report {
        let mut writer = Writer {
            audit: self,
            equations: vec![Equation::default(); self.groups.len()],
            in_flight: InFlight::default(),
            broken: BTreeMap::new(),
        };
        writer.jobs();
        writer.notifications();
        writer.unread();
        writer.parked();
        writer.letters();
        writer.recorded(Break::Contradicted, &self.contradicted);
        writer.recorded(Break::Unreadable, &self.unreadable);
        writer.recorded(Break::Unproven, &self.unproven);
        if scope.since.is_none() {
            writer.never_accepted();
        }
        writer.finish()
    }

    fn was_read(&self, group: u32) -> bool {
        self.read.contains_key(&self.groups[group as usize].region)
    }
}

impl Writer<'_> {
    fn jobs(&mut self) {
        for (id, job) in &self.audit.jobs {
            let equation = &mut self.equations[job.group as usize];
            if job.worked_on {
                equation.accepted += usize::from(!job.expanded);
                continue;
            }
            let was_read = self.audit.was_read(job.group);
            let (held, lost) = match job.place {
                Place::Lane => (Some(&mut self.in_flight.lanes), None),
                Place::Scheduled if job.deferred => (Some(&mut self.in_flight.deferred), None),
                Place::Scheduled => (Some(&mut self.in_flight.scheduled), None),
                Place::Outbox if was_read => (Some(&mut self.in_flight.outboxes), None),
                Place::Outbox => (Some(&mut self.in_flight.elsewhere), None),
                _ if job.deferred && was_read => (None, Some(Break::Abandoned)),
                _ if job.deferred => (Some(&mut self.in_flight.elsewhere), None),
                // Receipts of a forgotten job may have expired. A job without receipts cannot be `Gone`.
                Place::Forgotten | Place::Gone => continue,
                Place::Promised if was_read => (None, Some(Break::SliceLost)),
                Place::NextStep if was_read => (None, Some(Break::StepLost)),
                Place::Promised | Place::NextStep => (Some(&mut self.in_flight.elsewhere), None),
                Place::Acknowledged => (None, Some(Break::Unanswered)),
                Place::Lost => (None, Some(Break::Strayed)),
            };
            equation.accepted += 1;
            if let Some(held) = held {
                *held += 1;
                equation.in_flight += 1;
            }
            if let Some(how) = lost {
                let how = if self.audit.deleted.contains(id) {
                    Break::StreamDeleted
                } else {
                    how
                };
                self.breaks(how, Uuid::from_bytes(*id), job.group, 1);
            }
        }
    }

    fn notifications(&mut self) {
        for (id, notification) in &self.audit.notifications {
            let in_intake = notification.in_intake() as usize;
            let equation = &mut self.equations[notification.group as usize];
            equation.accepted += in_intake;
            equation.in_flight += in_intake;
            self.in_flight.intakes += in_intake;
            let missing = notification.missing() as usize;
            if missing > 0 {
                self.equations[notification.group as usize].accepted += missing;
                let how = if notification.deleted {
                    Break::StreamDeleted
                } else {
                    Break::Vanished
                };
                self.breaks(how, Uuid::from_bytes(*id), notification.group, missing);
            }
        }
    }

    fn unread(&mut self) {
        for (id, &(group, is_waiting)) in &self.audit.unread {
            // The receipt may have come after the first of several readings.
            if self.audit.jobs.contains_key(id) {
                continue;
            }
            self.equations[group as usize].accepted += 1;
            if is_waiting {
                self.equations[group as usize].in_flight += 1;
                self.in_flight.intakes += 1;
            } else {
                self.breaks(Break::Vanished, Uuid::from_bytes(*id), group, 1);
            }
        }
    }

    fn parked(&mut self) {
        for (key, &Parked { job, group, deleted }) in &self.audit.parked {
            let scheduled = self.audit.scheduled.contains(key);
            if scheduled || !self.audit.was_read(group) {
                let held = if scheduled {
                    &mut self.in_flight.scheduled
                } else {
                    &mut self.in_flight.elsewhere
                };
                *held += 1;
                self.equations[group as usize].in_flight += 1;
            } else {
                let how = if deleted {
                    Break::StreamDeleted
                } else {
                    Break::Abandoned
                };
                self.breaks(how, job.0, group, 1);
            }
        }
    }

    fn letters(&mut self) {
        for (id, group) in &self.audit.letters {
            if !self.audit.dead.contains_key(id) && !self.audit.refusing.contains(id.as_bytes()) {
                self.breaks(Break::LetterAlone, *id, *group, 1);
            }
        }
        let without = |id| !self.audit.letters.contains_key(id) && !self.audit.buried.contains(id);
        let missing = self.audit.dead.iter().filter(|(id, _)| without(id));
        let missing: Vec<_> = missing.map(|(_, (job, group))| (job.0, *group, 1)).collect();
        // Letters that were replayed or deleted by a person are no loss.
        self.unless_removed(Break::LetterMissing, missing, |removed| removed.letters);
    }

    fn never_accepted(&mut self) {
        let judged = self.audit.notifications.iter();
        let judged = judged.filter(|(id, _)| !self.audit.forgotten.contains(*id));
        let beyond = judged.filter_map(|(id, one)| {
            let count = one.known.saturating_sub(one.promised().max(one.stored)) as usize;
            (count > 0).then_some((Uuid::from_bytes(*id), one.group, count))
        });
        let beyond: Vec<_> = beyond.collect();
        // No gateway records messages that services publish themselves, and the janitor trims finished work.
        self.unless_removed(Break::NeverAccepted, beyond, |removed| removed.work);
    }

    /// Reports the faults in regions that were read, unless at least as many messages were removed from their streams.
    fn unless_removed(
        &mut self,
        how: Break,
        mut found: Vec<(Uuid, u32, usize)>,
        removed: impl Fn(&super::Removed) -> u64,
    ) {
        found.retain(|(_, group, _)| self.audit.was_read(*group));
        let count: usize = found.iter().map(|(_, _, count)| count).sum();
        if count as u64 > self.audit.read.values().map(removed).sum() {
            for (id, group, count) in found {
                self.breaks(how, id, group, count);
            }
        }
    }

    fn recorded(&mut self, how: Break, faults: &Faults) {
        for &(_, group) in &faults.ids {
            // Faults beyond the named ids are counted in the group of the last named one.
            self.equations[group as usize].wrong += 1;
        }
        if let Some(&(_, group)) = faults.ids.last() {
            self.equations[group as usize].wrong += faults.count - faults.ids.len();
            self.broken.insert(how, faults.clone());
        }
    }

    fn breaks(&mut self, how: Break, id: Uuid, group: u32, count: usize) {
        self.broken.entry(how).or_default().add(id, group, count);
        let equation = &mut self.equations[group as usize];
        if how.is_loss() {
            equation.lost += count;
        } else {
            equation.wrong += count;
        }
    }

    fn finish(self) -> Report {
        let mut rows: BTreeMap<(&AppId, &Region), Equation> = BTreeMap::new();
        for (group, mut equation) in self.audit.groups.iter().zip(self.equations) {
            for (state, count) in group.by_state.iter().filter(|(_, count)| **count > 0) {
                equation.by_state.insert(*state, *count);
            }
            equation.accepted += group.never_made;
            equation.deliveries = equation.by_state.values().sum::<usize>() + equation.in_flight + equation.lost;
            rows.entry((&group.app, &group.origin)).or_default().add(&equation);
        }
        let culprit = |&(id, group): &(Uuid, u32)| {
            let group = &self.audit.groups[group as usize];
            Culprit {
                id,
                app: group.app.clone(),
                origin: group.origin.clone(),
            }
        };
        Report {
            rows: rows
                .into_iter()
                .filter(|(_, equation)| *equation != Equation::default())
                .map(|((app, origin), equation)| Row {
                    app: app.clone(),
                    origin: origin.clone(),
                    equation,
                })
                .collect(),
            in_flight: self.in_flight,
            broken: self
                .broken
                .iter()
                .map(|(how, faults)| Broken {
                    how: *how,
                    count: faults.count,
                    named: faults.ids.iter().map(culprit).collect(),
                })
                .collect(),
            recreated: self.audit.recreated.clone(),
            repeated: self.audit.repeated,
        }
    }
}
