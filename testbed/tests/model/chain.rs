//! Two steps of a plan, the first with two addresses, at two workers: every order of their attempts, records and crashes, until the
//! next step has followed or is not needed. `job.rs` has the life of one job in detail; here a retry and its schedule are one write.

use stateright::{Model, Property};

use crate::state::Place;

const WORKERS: usize = 2;
const ADDRESSES: u8 = 2;

/// A way to break a rule of plans, to see which property the rule protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The receipt that promises the next step is published before that is stored.
    PromiseFirst,
    /// A worker that cannot tell whether the step has failed stores nothing.
    NoSecondLook,
    /// Each time that the next step is stored it has another id.
    NewIds,
    /// An attempt in doubt counts as a failed one.
    DoubtFails,
    /// The first delivery that fails makes the step fail.
    OneFails,
    /// The record of a retry shows that all other deliveries have failed.
    RetryCompletes,
    /// A step that was delivered has succeeded, although it needs a confirmation.
    DeliveredSuffices,
    /// The next step does not wait for the confirmation.
    NoWait,
}

/// A notification with a plan.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) crashes: u8,
    /// Whether the first step succeeds only when its delivery is confirmed.
    pub(crate) confirms: bool,
    pub(crate) flaw: Option<Flaw>,
}

/// What is known about the messages that the first step delivered. One report is about all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Report {
    Arrived,
    CameBack,
    /// The time for a report has passed.
    Silence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Delivered,
    Failed,
    Unknown,
    Parked,
}

/// How far the first step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Open,
    Ended,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    /// The first step, to all addresses.
    First,
    /// The second attempt at one address.
    Retry(u8),
    /// The next step. It waits for the first one if that was open when this was stored.
    Next { is_open: bool, id: u8 },
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    /// Attempt at an address, from 1.
    Attempt(u8, u8),
    Next(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Record {
    writer: usize,
    part: Part,
    outcome: Outcome,
}

/// Which next step follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Next {
    Undecided,
    None,
    /// It must wait if the first step is open.
    Follows {
        is_open: bool,
    },
}

/// A worker's progress with one message. A crash loses it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pass {
    message: usize,
    outcomes: Vec<(Part, Outcome)>,
    next: Next,
    is_stored: bool,
    is_recorded: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Worker {
    pass: Option<Pass>,
    followed: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    messages: Vec<(Work, Place)>,
    receipts: Vec<Record>,
    workers: [Worker; WORKERS],
    crashes: u8,
    /// Addresses, as bits, at which an attempt has ever failed for good.
    failed: u8,
    /// Those at which one was ever delivered.
    delivered: u8,
    report: Option<Report>,
    /// How often the next step was sent.
    sent: u8,
    /// It was sent although the first step had succeeded, or still might.
    is_early: bool,
    /// A receipt promised a next step that was not stored.
    is_hollow: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A worker pulls a message, looks it up and makes the attempts, which end so, in the order of addresses.
    Pull {
        worker: usize,
        message: usize,
        outcomes: Vec<Outcome>,
        follows: bool,
    },
    /// It decides whether the next step follows.
    Decide {
        worker: usize,
        follows: bool,
    },
    Store(usize),
    Publish(usize),
    Ack(usize),
    Crash(usize),
    Report(Report),
}

impl Chain {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The rule of `plan::confirmation`, if the step needs one.
    fn confirmation(&self, state: &State, records: &[(Part, Outcome)]) -> Progress {
        let as_reported = |(part, outcome): &(Part, Outcome)| {
            let outcome = match (outcome, state.report) {
                (Outcome::Delivered, None | Some(Report::Silence)) if self.confirms => Outcome::Parked,
                (Outcome::Delivered, Some(Report::CameBack)) if self.confirms => Outcome::Failed,
                (outcome, _) => *outcome,
            };
            (*part, outcome)
        };
        self.progress(&records.iter().map(as_reported).collect::<Vec<_>>())
    }

    /// The rule of `plan::progress`.
    fn progress(&self, records: &[(Part, Outcome)]) -> Progress {
        let last = |address| {
            let of_address = records.iter().filter_map(move |(part, outcome)| match part {
                Part::Attempt(of, attempt) if *of == address => Some((*attempt, *outcome)),
                _ => None,
            });
            of_address.max_by_key(|(attempt, _)| *attempt)
        };
        let all: Vec<Option<(u8, Outcome)>> = (0..ADDRESSES).map(last).collect();
        let any = |outcome| all.iter().flatten().any(|(_, it)| *it == outcome);
        let first_pass = records.iter().any(|(part, _)| matches!(part, Part::Attempt(_, 1)));
        let is_complete = first_pass || self.is(Flaw::RetryCompletes) && !records.is_empty();
        if any(Outcome::Delivered) || any(Outcome::Unknown) && !self.is(Flaw::DoubtFails) {
            Progress::Ended
        } else if self.is(Flaw::OneFails) && any(Outcome::Failed) {
            Progress::Failed
        } else if !is_complete || any(Outcome::Parked) {
            Progress::Open
        } else {
            Progress::Failed
        }
    }

    /// Every way in which a worker with these records may end a message; none if nothing is left to do.
    fn ways(known: &[(Part, Outcome)], work: Work) -> Vec<Vec<Outcome>> {
        let has = |wanted: &dyn Fn(&Part) -> bool| known.iter().any(|(part, _)| wanted(part));
        let is_final = |address| {
            let mut of = known
                .iter()
                .filter(|(part, _)| matches!(part, Part::Attempt(it, _) if *it == address));
            of.any(|(_, outcome)| *outcome != Outcome::Parked)
        };
        let (count, may_park) = match work {
            Work::First if has(&|part| matches!(part, Part::Attempt(_, 1))) => (0, true),
            Work::First => ((0..ADDRESSES).filter(|address| !is_final(*address)).count(), true),
            Work::Retry(address) => (usize::from(!is_final(address)), false),
            Work::Next { id, .. } if has(&|part| *part == Part::Next(id)) => (0, false),
            Work::Next { .. } => return vec![vec![Outcome::Delivered]],
        };
        let ends = [Outcome::Delivered, Outcome::Failed, Outcome::Unknown, Outcome::Parked];
        let ends = &ends[..if may_park { 4 } else { 3 }];
        let mut ways = vec![Vec::new()];
        for _ in 0..count {
            let longer = ways
                .iter()
                .flat_map(|way| ends.iter().map(move |end| [way.as_slice(), &[*end]].concat()));
            ways = longer.collect();
        }
        if count == 0 { Vec::new() } else { ways }
    }

    fn pulls(&self, state: &State, worker: usize, steps: &mut Vec<Step>) {
        for (message, (work, place)) in state.messages.iter().enumerate() {
            if *place != Place::Waiting {
                continue;
            }
            for follows in state.lag(worker) {
                let known = state.known(worker, follows);
                if let Work::Next { is_open: true, .. } = work {
                    // It comes half a minute later: what others did before is known, and no attempt lasts so long.
                    let sending = state
                        .passes()
                        .any(|pass| matches!(state.messages[pass.message].0, Work::Next { .. }));
                    let is_open = self.confirmation(state, &state.known(worker, true)) == Progress::Open;
                    let is_silent = state.report == Some(Report::Silence);
                    let waits = is_open && !is_silent && !self.is(Flaw::NoWait);
                    let awaits_report = self.confirms && state.delivered != 0 && state.report.is_none();
                    let others = state.messages.iter().enumerate();
                    let is_last = others
                        .clone()
                        .all(|(other, (_, place))| other == message || *place == Place::Done);
                    if !follows && state.lag(worker).count() > 1 || sending || waits && (awaits_report || !is_last) {
                        continue;
                    }
                }
                let ways = Self::ways(&known, *work);
                let ways = if ways.is_empty() { vec![Vec::new()] } else { ways };
                steps.extend(ways.into_iter().map(|outcomes| Step::Pull {
                    worker,
                    message,
                    outcomes,
                    follows,
                }));
            }
        }
    }

    fn pull(&self, state: &mut State, worker: usize, message: usize, outcomes: &[Outcome]) {
        let work = state.messages[message].0;
        let known = state.known(worker, false);
        if outcomes.is_empty() {
            state.messages[message].1 = Place::Done;
            return;
        }
        state.messages[message].1 = Place::Out;
        let is_final = |address: u8| {
            let of = |(part, outcome): &(Part, Outcome)| {
                matches!(part, Part::Attempt(it, _) if *it == address) && *outcome != Outcome::Parked
            };
            known.iter().any(of)
        };
        let parts: Vec<Part> = match work {
            Work::First => (0..ADDRESSES)
                .filter(|address| !is_final(*address))
                .map(|address| Part::Attempt(address, 1))
                .collect(),
            Work::Retry(address) => vec![Part::Attempt(address, 2)],
            Work::Next { id, .. } => vec![Part::Next(id)],
        };
        let mut outcomes: Vec<(Part, Outcome)> = parts.into_iter().zip(outcomes.iter().copied()).collect();
        for (part, outcome) in &outcomes {
            match (part, outcome) {
                (Part::Attempt(address, _), Outcome::Failed) => state.failed |= 1 << address,
                (Part::Attempt(address, _), Outcome::Delivered) => state.delivered |= 1 << address,
                _ => {}
            }
        }
        if matches!(work, Work::Next { .. }) {
            if self.confirmation(state, &known) == Progress::Ended {
                // `plan_satisfied` or `plan_stopped`.
                outcomes[0].1 = Outcome::Failed;
            } else {
                let rules = Self {
                    crashes: 0,
                    flaw: None,
                    confirms: self.confirms,
                };
                let came_back = if state.report == Some(Report::CameBack) {
                    state.delivered
                } else {
                    0
                };
                // After a crash an attempt that failed is made again, and may succeed.
                let has_failed = if state.crashes < self.crashes {
                    state.failed | came_back == (1 << ADDRESSES) - 1
                } else {
                    rules.confirmation(state, &state.truth()) == Progress::Failed
                };
                state.is_early |= !has_failed && state.report != Some(Report::Silence);
                state.sent += 1;
            }
        }
        state.workers[worker].pass = Some(Pass {
            message,
            outcomes,
            next: Next::Undecided,
            is_stored: false,
            is_recorded: false,
        });
    }

    fn decide(&self, state: &mut State, worker: usize) {
        let mut records = state.known(worker, false);
        let Some(pass) = &mut state.workers[worker].pass else {
            return;
        };
        records.extend(&pass.outcomes);
        let is_next = matches!(pass.outcomes[0].0, Part::Next(_));
        let any = |wanted| pass.outcomes.iter().any(|(_, outcome)| *outcome == wanted);
        pass.next = match self.progress(&records) {
            _ if is_next || pass.outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Parked) => Next::None,
            Progress::Failed => Next::Follows { is_open: false },
            Progress::Open if any(Outcome::Parked) || self.is(Flaw::NoSecondLook) => Next::None,
            Progress::Open => Next::Follows { is_open: true },
            Progress::Ended if self.confirms && any(Outcome::Delivered) && !self.is(Flaw::DeliveredSuffices) => {
                Next::Follows { is_open: true }
            }
            Progress::Ended => Next::None,
        };
    }

    fn store(&self, state: &mut State, worker: usize) {
        let Some(pass) = &mut state.workers[worker].pass else {
            return;
        };
        pass.is_stored = true;
        let pass = pass.clone();
        for (part, outcome) in pass.outcomes {
            if let (Part::Attempt(address, _), Outcome::Parked) = (part, outcome)
                && state.messages.iter().all(|(work, _)| *work != Work::Retry(address))
            {
                state.messages.push((Work::Retry(address), Place::Waiting));
            }
        }
        let Next::Follows { is_open } = pass.next else { return };
        let is_next = |work: &Work| matches!(work, Work::Next { .. });
        let count = state.messages.iter().filter(|(work, _)| is_next(work)).count();
        let id = if self.is(Flaw::NewIds) {
            u8::try_from(count).unwrap_or(u8::MAX)
        } else {
            0
        };
        let next = Work::Next { is_open, id };
        if !is_open && state.messages.iter().any(|(work, _)| *work == next) {
            // The stream knows the id of the message.
            return;
        }
        // One subject has one schedule: it replaces one that waits.
        let waiting = |(work, place): &&mut (Work, Place)| is_next(work) && *place == Place::Waiting;
        match state
            .messages
            .iter_mut()
            .find(waiting)
            .filter(|_| !self.is(Flaw::NewIds))
        {
            Some(schedule) => schedule.0 = next,
            None => state.messages.push((next, Place::Waiting)),
        }
    }

    fn publish(state: &mut State, worker: usize) {
        let known = state.known(worker, true);
        let Some(pass) = &mut state.workers[worker].pass else {
            return;
        };
        pass.is_recorded = true;
        let pass = pass.clone();
        let has_next = state.messages.iter().any(|(work, _)| matches!(work, Work::Next { .. }));
        state.is_hollow |= matches!(pass.next, Next::Follows { .. }) && !has_next;
        for (part, outcome) in pass.outcomes {
            // The second worker to settle a delivery publishes no receipt.
            if known.iter().all(|(it, _)| *it != part) {
                state.receipts.push(Record {
                    writer: worker,
                    part,
                    outcome,
                });
            }
        }
    }
}

impl State {
    fn passes(&self) -> impl Iterator<Item = &Pass> {
        self.workers.iter().filter_map(|worker| worker.pass.as_ref())
    }

    /// Whether a worker follows the receipts before a step; one answer if there is nothing to follow.
    fn lag(&self, worker: usize) -> impl Iterator<Item = bool> + use<> {
        let is_behind = self.workers[worker].followed < self.receipts.len();
        [is_behind, false].into_iter().take(1 + usize::from(is_behind))
    }

    /// The records that a worker has: its own, and those that it has followed.
    fn known(&self, worker: usize, follows: bool) -> Vec<(Part, Outcome)> {
        let followed = if follows {
            self.receipts.len()
        } else {
            self.workers[worker].followed
        };
        let known = self.receipts.iter().enumerate();
        let known = known.filter(|(at, record)| *at < followed || record.writer == worker);
        known.map(|(_, record)| (record.part, record.outcome)).collect()
    }

    /// What has happened at the provider, whether it is recorded or not.
    fn truth(&self) -> Vec<(Part, Outcome)> {
        let recorded = self.receipts.iter().map(|record| (record.part, record.outcome));
        recorded
            .chain(self.passes().flat_map(|pass| pass.outcomes.iter().copied()))
            .collect()
    }

    fn is_at_rest(&self) -> bool {
        self.passes().next().is_none() && self.messages.iter().all(|(_, place)| *place == Place::Done)
    }
}

impl Model for Chain {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            messages: vec![(Work::First, Place::Waiting)],
            receipts: Vec::new(),
            workers: [Worker::default(), Worker::default()],
            crashes: self.crashes,
            failed: 0,
            delivered: 0,
            report: None,
            sent: 0,
            is_early: false,
            is_hollow: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if self.confirms && state.delivered != 0 && state.report.is_none() {
            steps.extend([Report::Arrived, Report::CameBack, Report::Silence].map(Step::Report));
        }
        for worker in 0..WORKERS {
            let Some(pass) = &state.workers[worker].pass else {
                self.pulls(state, worker, steps);
                continue;
            };
            let store = (pass.is_stored, Step::Store(worker));
            let publish = (pass.is_recorded, Step::Publish(worker));
            let order = if self.is(Flaw::PromiseFirst) {
                [publish, store]
            } else {
                [store, publish]
            };
            if pass.next == Next::Undecided {
                steps.extend(state.lag(worker).map(|follows| Step::Decide { worker, follows }));
            } else if let Some((_, step)) = order.into_iter().find(|(done, _)| !done) {
                steps.push(step);
            } else {
                steps.push(Step::Ack(worker));
            }
            if state.crashes > 0 {
                steps.push(Step::Crash(worker));
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        if let Step::Pull {
            worker, follows: true, ..
        }
        | Step::Decide { worker, follows: true } = step
        {
            next.workers[worker].followed = next.receipts.len();
        }
        match step {
            Step::Pull {
                worker,
                message,
                outcomes,
                ..
            } => self.pull(&mut next, worker, message, &outcomes),
            Step::Decide { worker, .. } => self.decide(&mut next, worker),
            Step::Store(worker) => self.store(&mut next, worker),
            Step::Publish(worker) => Self::publish(&mut next, worker),
            Step::Ack(worker) => {
                let pass = next.workers[worker].pass.take()?;
                next.messages[pass.message].1 = Place::Done;
            }
            Step::Report(report) => next.report = Some(report),
            Step::Crash(worker) => {
                next.crashes -= 1;
                let pass = next.workers[worker].pass.take()?;
                next.messages[pass.message].1 = Place::Waiting;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(FOLLOWS, |chain: &Chain, state: &State| {
                let records = state.known(0, true);
                let any =
                    |wanted: &dyn Fn(&Part, &Outcome) -> bool| records.iter().any(|(part, end)| wanted(part, end));
                let is_over = any(&|part, _| matches!(part, Part::Next(_)))
                    || any(&|_, end| *end == Outcome::Unknown || *end == Outcome::Delivered && !chain.confirms);
                !state.is_at_rest() || is_over
            }),
            Property::always(PROMISES_KEPT, |_, state: &State| !state.is_hollow),
            Property::always(NOT_EARLY, |_, state: &State| !state.is_early),
            Property::always(SENT_ONCE, |chain: &Chain, state: &State| {
                state.sent <= 1 + chain.crashes - state.crashes || state.sent <= 1
            }),
        ]
    }
}

pub(crate) const FOLLOWS: &str =
    "when no step is left, the first step succeeded without a confirmation or is in doubt, or the next one has ended";
pub(crate) const PROMISES_KEPT: &str = "the next step is stored before the receipt that promises it";
pub(crate) const NOT_EARLY: &str =
    "the next step is sent only after every delivery of the one before has failed, or its confirmation is overdue";
pub(crate) const SENT_ONCE: &str = "the next step is sent once, or once more for each crash";
