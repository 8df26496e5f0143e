//! Every step that the edge worker takes with one job, and every fault that can happen between two steps.

use stateright::{Model, Property};

use crate::state::{
    Address, Attempt, Batch, Faults, Life, Outcome, Pass, Place, Records, State, WHOLE, Work, Worker, records_of,
};

/// A way to break a rule of the worker, to see which property the rule protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The job is acknowledged as soon as the provider has answered.
    AckBeforeCommit,
    /// Receipts are published before they are committed to the ledger.
    PublishBeforeCommit,
    /// The outcome is committed before its retry or dead letter is stored.
    CommitBeforePark,
    /// A batch of receipts is published under a new id each time.
    NewIds,
    /// The second worker to settle a delivery publishes a receipt too.
    SecondPublishes,
    /// An acceptance is not reported if a later retry is known to be parked.
    ParkedOutweighs,
    /// Any record of a job means that its first pass is complete, even the record of a retry.
    AnyRecordCompletes,
    /// After a restart everything that was left is published, even if others have published final receipts since.
    LeftoversPublished,
    /// The record that a job waits as a whole means that its first pass is complete.
    DeferredCompletes,
}

/// One job for one recipient, two workers, and the streams of their region.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) addresses: Address,
    /// To this many of them pushes may be refused; the provider accepts every push to the others.
    pub(crate) flaky: Address,
    /// How many attempts a delivery has before it becomes a dead letter.
    pub(crate) attempts: Attempt,
    /// How many times a rule may let the job wait as a whole, before its first attempt.
    pub(crate) deferrals: u8,
    pub(crate) faults: Faults,
    /// Whether workers that crashed restart.
    pub(crate) restarts: bool,
    /// Whether two final receipts are allowed where two workers settled a delivery at the same time.
    pub(crate) lenient: bool,
    pub(crate) flaws: &'static [Flaw],
}

/// The result of a write to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Stored,
    /// It is stored, but the answer does not reach the worker.
    Unanswered,
    Refused,
}

/// One step. Workers and their passes are given by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A worker pulls a message and looks it up in the ledger. If it is new, the worker pushes to each address. The
    /// provider accepts the pushes with a set bit; it refuses the others for now or does not answer, which is the same
    /// to the worker. Or the job waits as a whole, by a rule or because it cannot be worked on, and nothing is pushed.
    Pull {
        worker: usize,
        work: Work,
        accepted: u8,
        defers: bool,
        follows: bool,
    },
    /// Stores the next retry or dead letter.
    Store(usize, usize, Fate),
    Commit {
        worker: usize,
        pass: usize,
        follows: bool,
    },
    Publish(usize, usize, Fate),
    Ack(usize, usize, Fate),
    Crash(usize),
    /// A worker restarts and catches up with the receipts.
    Restart(usize),
    /// Publishes the next batch that the last run left.
    PublishLeft(usize),
    /// The server redelivers a message that a worker still holds.
    Redeliver(Work),
    ServerCrash {
        forgets_acks: bool,
    },
    Copy,
}

impl Job {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaws.contains(&flaw)
    }

    fn ended(&self, attempt: Attempt, accepted: bool) -> Outcome {
        if accepted {
            Outcome::Delivered
        } else if attempt >= self.attempts {
            Outcome::Dead
        } else {
            Outcome::Parked
        }
    }

    /// The addresses to which a worker with the records `ledger` pushes `work`.
    fn wanted(&self, ledger: Records, work: Work) -> impl Iterator<Item = Address> {
        let attempt = work.attempt();
        let done = match work {
            Work::Fresh(_) if self.is(Flaw::AnyRecordCompletes) => !ledger.is_empty(),
            Work::Fresh(_) | Work::Whole(_) if self.is(Flaw::DeferredCompletes) && ledger.is_deferred() => true,
            // All outcomes of one pass are committed together.
            Work::Fresh(_) | Work::Whole(_) => ledger.knows_attempt(attempt),
            Work::Retry(..) => false,
        };
        let wanted = move |address: &Address| !done && work.concerns(*address) && !ledger.has(*address, attempt);
        (0..self.addresses).filter(wanted)
    }

    /// The steps that happen without faults.
    fn progress(&self, state: &State, steps: &mut Vec<Step>) {
        for (worker, it) in state.workers.iter().enumerate() {
            match it.life {
                Life::Down if self.restarts => steps.push(Step::Restart(worker)),
                Life::Down => {}
                Life::Starting(_) => steps.push(Step::PublishLeft(worker)),
                Life::Pulling => {
                    for (work, place) in state.work() {
                        if place == Place::Waiting && it.passes.iter().all(|pass| pass.work.key() != work.key()) {
                            self.pulls(state, worker, work, steps);
                        }
                    }
                    for (number, pass) in it.passes.iter().enumerate() {
                        self.pass_steps(state, worker, number, pass, steps);
                    }
                }
            }
        }
    }

    /// Every way a pull can end, for a worker that has just followed the receipts and for one that lags behind.
    fn pulls(&self, state: &State, worker: usize, work: Work, steps: &mut Vec<Step>) {
        let Worker {
            ledger, is_catching_up, ..
        } = state.workers[worker];
        for follows in lag(state, worker).take(if is_catching_up { 1 } else { 2 }) {
            let mut known = ledger;
            if follows {
                known.add(state.unfollowed(worker));
            }
            let wanted = self.wanted(known, work).fold(0u8, |bits, address| bits | 1 << address);
            let healthy = wanted & !0u8 << self.flaky;
            let answers = (0..4u8).filter(|accepted| accepted & !wanted == 0 && accepted & healthy == healthy);
            let deferred = (work.key().is_none() && wanted != 0 && state.deferrals > 0).then_some((0, true));
            let ways = answers.map(|accepted| (accepted, false)).chain(deferred);
            steps.extend(ways.map(|(accepted, defers)| Step::Pull {
                worker,
                work,
                accepted,
                defers,
                follows,
            }));
        }
    }

    /// The next step of one pass.
    fn pass_steps(&self, state: &State, worker: usize, pass: usize, it: &Pass, steps: &mut Vec<Step>) {
        let store = (it.to_store == 0, Step::Store(worker, pass, Fate::Stored));
        let commit = (
            it.committed,
            Step::Commit {
                worker,
                pass,
                follows: false,
            },
        );
        let publish = (it.announced, Step::Publish(worker, pass, Fate::Stored));
        let ack = (it.acknowledged, Step::Ack(worker, pass, Fate::Stored));
        let order = if self.is(Flaw::CommitBeforePark) {
            [commit, store, publish, ack]
        } else if self.is(Flaw::PublishBeforeCommit) {
            [store, publish, commit, ack]
        } else if self.is(Flaw::AckBeforeCommit) {
            [store, ack, commit, publish]
        } else {
            [store, commit, publish, ack]
        };
        match order.into_iter().find(|(done, _)| !done) {
            Some((_, Step::Commit { .. })) => {
                steps.extend(lag(state, worker).map(|follows| Step::Commit { worker, pass, follows }));
            }
            Some((_, step)) => steps.push(step),
            None => {}
        }
    }

    fn pull(&self, state: &mut State, worker: usize, work: Work, accepted: u8, defers: bool) {
        let (ledger, attempt) = (state.workers[worker].ledger, work.attempt());
        state.place(work, Place::Out);
        let mut pass = Pass {
            work,
            outcomes: Records::default(),
            to_store: 0,
            committed: false,
            number: None,
            announced: false,
            acknowledged: false,
        };
        if defers {
            state.deferrals -= 1;
            pass.outcomes = Records::DEFERRED;
            pass.to_store = WHOLE;
            state.workers[worker].passes.push(pass);
            return;
        }
        for address in self.wanted(ledger, work) {
            let accepted = accepted & 1 << address != 0;
            pass.outcomes
                .add(Records::one(address, attempt, self.ended(attempt, accepted)));
            if !accepted {
                pass.to_store |= 1 << address;
            }
            let overlaps = is_under_way(state, worker, address);
            state.allowance[usize::from(address)] += i8::from(overlaps) - i8::from(accepted);
        }
        if pass.outcomes.is_empty() {
            state.place(work, Place::Done);
        } else {
            state.workers[worker].passes.push(pass);
        }
    }

    /// Parks a retry, keeps a dead letter, or schedules the job as a whole.
    fn store(&self, state: &mut State, worker: usize, number: usize, fate: Fate) {
        let pass = &mut state.workers[worker].passes[number];
        let next = pass.to_store.trailing_zeros();
        pass.to_store &= !(1 << next);
        let (address, attempt) = (u8::try_from(next).expect("is an address"), pass.work.attempt());
        if fate != Fate::Refused && 1 << next == WHOLE {
            // It has no message id, and replaces a schedule that waits.
            state.whole = true;
            state.deferred = true;
        } else if fate != Fate::Refused {
            if self.ended(attempt, false) == Outcome::Dead {
                state.dead.insert(address, attempt);
            } else if state.schedule_ids.insert(address, attempt + 1) {
                // There is one schedule for each subject, so it replaces a retry that waits there.
                state.schedule[usize::from(address)] = Some(attempt + 1);
                state.parked.insert(address, attempt + 1);
            }
        }
        if fate != Fate::Stored {
            state.faults.lost -= 1;
            let pass = state.workers[worker].passes.remove(number);
            give_back(state, worker, &pass);
        }
    }

    fn commit(&self, state: &mut State, worker: usize, number: usize) {
        let ledger = state.workers[worker].ledger;
        let outcomes = state.workers[worker].passes[number].outcomes;
        let mut news = Records::default();
        if outcomes.is_deferred() && !ledger.knows_attempt(1) {
            news.add(Records::DEFERRED);
        }
        for (address, attempt, ended) in outcomes.iter() {
            let known = match ended {
                Outcome::Delivered | Outcome::Dead if !self.is(Flaw::ParkedOutweighs) => ledger.is_final(address),
                _ => ledger.has(address, attempt),
            };
            if self.is(Flaw::SecondPublishes) || !known {
                news.add(Records::one(address, attempt, ended));
                let others = state.unfollowed(worker).is_final(address);
                state.raced[usize::from(address)] |= ended != Outcome::Parked && others;
            }
        }
        let it = &mut state.workers[worker];
        let pass = &mut it.passes[number];
        pass.committed = true;
        if news.is_empty() {
            pass.announced = true;
        } else {
            it.last += 1;
            pass.number = Some(it.last);
            it.ledger.add(news);
            it.outgoing.push(Batch {
                writer: worker,
                number: it.last,
                records: news,
            });
        }
        finish(state, worker, number);
    }

    fn publish(&self, state: &mut State, worker: usize, number: usize, fate: Fate) {
        let it = &state.workers[worker];
        let pass = &it.passes[number];
        let batch = if pass.committed {
            it.outgoing
                .iter()
                .find(|batch| Some(batch.number) == pass.number)
                .cloned()
        } else {
            // This happens only with a flaw in the order; the commit will use this number.
            Some(Batch {
                writer: worker,
                number: it.last + 1,
                records: pass.outcomes,
            })
        };
        // A batch that the worker has seen in the stream before its answer arrived needs no publishing.
        if let Some(batch) = batch {
            self.announce(state, batch);
        }
        if fate == Fate::Stored {
            state.workers[worker].passes[number].announced = true;
        } else {
            state.faults.lost -= 1;
        }
        finish(state, worker, number);
    }

    /// Stores a batch of receipts, unless the stream has its id already.
    fn announce(&self, state: &mut State, batch: Batch) {
        if state.has(&batch) && !self.is(Flaw::NewIds) {
            return;
        }
        let up = |writer: usize| writer != batch.writer && state.workers[writer].life != Life::Down;
        let others = (0..state.workers.len()).filter(|writer| up(*writer));
        let outgoing = others.flat_map(|writer| &state.workers[writer].outgoing);
        let unpublished = records_of(outgoing.filter(|other| !state.has(other)));
        for address in 0..self.addresses {
            let both = batch.records.is_final(address) && unpublished.is_final(address);
            state.raced[usize::from(address)] |= both;
        }
        state.receipts.push(batch);
    }

    fn restart(&self, state: &mut State, worker: usize) {
        follow(state, worker);
        let others = records_of(state.receipts.iter().filter(|batch| batch.writer != worker));
        let it = &mut state.workers[worker];
        if !self.is(Flaw::LeftoversPublished) {
            // Another worker has finished the job since.
            for address in (0..self.addresses).filter(|address| others.is_final(*address)) {
                for batch in &mut it.outgoing {
                    batch.records = batch.records.without(batch.records.of(address));
                }
            }
            it.outgoing.retain(|batch| !batch.records.is_empty());
        }
        it.life = if it.outgoing.is_empty() {
            Life::Pulling
        } else {
            Life::Starting(0)
        };
    }

    fn publish_left(&self, state: &mut State, worker: usize, done: usize) {
        let batch = state.workers[worker].outgoing[done].clone();
        self.announce(state, batch);
        let it = &mut state.workers[worker];
        it.life = if done + 1 == it.outgoing.len() {
            Life::Pulling
        } else {
            Life::Starting(done + 1)
        };
    }
}

/// The faults that may happen next, while any are left.
fn faults_of(state: &State, steps: &mut Vec<Step>) {
    let faults = state.faults;
    if faults.lost > 0 {
        for step in steps.clone() {
            match step {
                Step::Store(worker, pass, _) => {
                    steps.push(Step::Store(worker, pass, Fate::Unanswered));
                    steps.push(Step::Store(worker, pass, Fate::Refused));
                }
                Step::Publish(worker, pass, _) => steps.push(Step::Publish(worker, pass, Fate::Unanswered)),
                Step::Ack(worker, pass, _) => steps.push(Step::Ack(worker, pass, Fate::Refused)),
                _ => {}
            }
        }
    }
    if faults.crashes > 0 {
        let up = (0..state.workers.len()).filter(|worker| state.workers[*worker].life != Life::Down);
        steps.extend(up.map(Step::Crash));
    }
    if faults.early_redeliveries > 0 {
        let held = state.work().filter(|(_, place)| *place == Place::Out);
        steps.extend(held.map(|(work, _)| Step::Redeliver(work)));
    }
    if faults.server_crashes > 0 {
        steps.push(Step::ServerCrash { forgets_acks: false });
        if state.work().any(|(_, place)| place == Place::Done) {
            steps.push(Step::ServerCrash { forgets_acks: true });
        }
    }
    if faults.copies > 0 {
        steps.push(Step::Copy);
    }
}

fn ack(state: &mut State, worker: usize, number: usize, fate: Fate) {
    let pass = &mut state.workers[worker].passes[number];
    pass.acknowledged = true;
    let work = pass.work;
    if fate == Fate::Stored {
        state.place(work, Place::Done);
    } else {
        state.faults.lost -= 1;
        return_unheld(state, work);
    }
    finish(state, worker, number);
}

/// Removes a pass if nothing is left to do.
fn finish(state: &mut State, worker: usize, number: usize) {
    let pass = &state.workers[worker].passes[number];
    if pass.to_store == 0 && pass.committed && pass.announced && pass.acknowledged {
        state.workers[worker].passes.remove(number);
    }
}

/// The possible answers to whether a worker follows the receipts before a step. It matters only when the worker reads
/// its ledger.
fn lag(state: &State, worker: usize) -> impl Iterator<Item = bool> + use<> {
    let behind = state.workers[worker].followed < state.receipts.len();
    [behind, false].into_iter().take(1 + usize::from(behind))
}

/// Applies RECEIPTS: the records of others, and which of the worker's own batches arrived.
fn follow(state: &mut State, worker: usize) {
    let it = &mut state.workers[worker];
    it.followed = state.receipts.len();
    it.is_catching_up = false;
    it.ledger
        .add(records_of(state.receipts.iter().filter(|batch| batch.writer != worker)));
    let arrived = |number| {
        state
            .receipts
            .iter()
            .any(|batch| batch.writer == worker && batch.number == number)
    };
    it.outgoing.retain(|batch| !arrived(batch.number));
}

/// Whether another pass pushes to `address`, or has pushed to it, without a record that `worker` has.
fn is_under_way(state: &State, worker: usize, address: Address) -> bool {
    let mut passes = state.workers.iter().flat_map(|it| &it.passes);
    let pushed = !state.unfollowed(worker).of(address).is_empty();
    pushed || passes.any(|pass| !pass.outcomes.of(address).is_empty())
}

/// Returns a message to the server. A push whose outcome is not committed, or not yet published, will be repeated.
fn give_back(state: &mut State, worker: usize, pass: &Pass) {
    let outgoing = &state.workers[worker].outgoing;
    let unpublished = |batch: &Batch| Some(batch.number) == pass.number && !state.has(batch);
    let repeated = !pass.committed || outgoing.iter().any(unpublished);
    for (address, _, ended) in pass.outcomes.iter() {
        state.allowance[usize::from(address)] += i8::from(repeated && ended == Outcome::Delivered);
    }
    return_unheld(state, pass.work);
}

/// Lets a message wait again if no worker holds it and none has acknowledged it: the server will redeliver it.
fn return_unheld(state: &mut State, work: Work) {
    let mut passes = state.workers.iter().flat_map(|it| &it.passes);
    let held = passes.any(|pass| pass.work == work && !pass.acknowledged);
    if !held && state.work().any(|(it, place)| it == work && place == Place::Out) {
        state.place(work, Place::Waiting);
    }
}

fn crash(state: &mut State, worker: usize) {
    state.faults.crashes -= 1;
    for pass in std::mem::take(&mut state.workers[worker].passes) {
        give_back(state, worker, &pass);
    }
    state.workers[worker].life = Life::Down;
}

fn server_crash(state: &mut State, forgets_acks: bool) {
    state.faults.server_crashes -= 1;
    let moved = |place| place == Place::Out || (place == Place::Done && forgets_acks);
    let again: Vec<Work> = state
        .work()
        .filter(|(_, place)| moved(*place))
        .map(|(work, _)| work)
        .collect();
    for work in again {
        state.place(work, Place::Waiting);
    }
    for it in &mut state.workers {
        it.is_catching_up = it.life == Life::Pulling;
    }
    // The server remembers the message ids of the schedules that it still has.
    let schedule = state.schedule;
    state
        .schedule_ids
        .retain(|address, attempt| schedule[usize::from(address)] == Some(attempt));
}

impl Model for Job {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.faults, self.deferrals)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.progress(state, steps);
        faults_of(state, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        let state = &mut next;
        if let Step::Pull {
            worker, follows: true, ..
        }
        | Step::Commit {
            worker, follows: true, ..
        } = step
        {
            follow(state, worker);
        }
        match step {
            Step::Pull {
                worker,
                work,
                accepted,
                defers,
                ..
            } => self.pull(state, worker, work, accepted, defers),
            Step::Store(worker, pass, fate) => self.store(state, worker, pass, fate),
            Step::Commit { worker, pass, .. } => self.commit(state, worker, pass),
            Step::Publish(worker, pass, fate) => self.publish(state, worker, pass, fate),
            Step::Ack(worker, pass, fate) => ack(state, worker, pass, fate),
            Step::Crash(worker) => crash(state, worker),
            Step::Restart(worker) => self.restart(state, worker),
            Step::PublishLeft(worker) => {
                let Life::Starting(done) = state.workers[worker].life else {
                    return None;
                };
                self.publish_left(state, worker, done);
            }
            Step::Redeliver(work) => {
                state.faults.early_redeliveries -= 1;
                state.place(work, Place::Waiting);
            }
            Step::ServerCrash { forgets_acks } => server_crash(state, forgets_acks),
            Step::Copy => {
                state.faults.copies -= 1;
                state.fresh.push(Place::Waiting);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_LOST, |job: &Job, state: &State| {
                (0..job.addresses).all(|address| {
                    let kept = state
                        .work()
                        .any(|(work, place)| place != Place::Done && work.concerns(address));
                    let committed = records_of(state.workers.iter().flat_map(|it| &it.outgoing));
                    kept || committed.is_final(address) || state.finals(address) > 0
                })
            }),
            Property::always(ENDS, |job: &Job, state: &State| {
                let settled = (0..job.addresses).all(|address| state.finals(address) > 0);
                settled || !job.is_at_rest(state)
            }),
            Property::always(ENDS_ONCE, |job: &Job, state: &State| {
                (0..job.addresses)
                    .all(|address| state.finals(address) <= 1 || (job.lenient && state.raced[usize::from(address)]))
            }),
            Property::always(STORED_FIRST, |_, state: &State| {
                let mut all = records_of(&state.receipts);
                state.workers.iter().for_each(|it| all.add(it.ledger));
                let stored = all.iter().all(|(address, attempt, ended)| match ended {
                    Outcome::Delivered => true,
                    Outcome::Dead => state.dead.has(address, attempt),
                    Outcome::Parked => state.parked.has(address, attempt + 1),
                });
                stored && (state.deferred || !all.is_deferred())
            }),
            Property::always(EXCUSED_PUSHES, |_, state: &State| {
                state.allowance.iter().all(|left| *left >= 0)
            }),
        ]
    }
}

impl Job {
    /// Whether no step is left but faults.
    fn is_at_rest(&self, state: &State) -> bool {
        let pulling = state.workers.iter().any(|it| it.life == Life::Pulling);
        let waiting = || state.work().any(|(_, place)| place == Place::Waiting);
        let still = |it: &Worker| match it.life {
            Life::Down => !self.restarts,
            Life::Starting(_) => false,
            Life::Pulling => it.passes.is_empty(),
        };
        state.workers.iter().all(still) && !(pulling && waiting())
    }
}

pub(crate) const NOT_LOST: &str = "what was accepted is in a stream of work until its end is in a ledger or a receipt";
pub(crate) const ENDS: &str = "when no step is left every delivery has ended";
pub(crate) const ENDS_ONCE: &str = "a delivery has one final receipt, unless two workers settled it at the same time";
pub(crate) const STORED_FIRST: &str = "a schedule or a dead letter is stored before the record that mentions it";
pub(crate) const EXCUSED_PUSHES: &str = "every repeated push has a fault or an overlap as its cause";
