//! Every step that gateways take with a message of an intake until its jobs have ended, every fault that can happen between
//! two steps, and an audit that reads the streams meanwhile. `job.rs` has the life of a job in detail; here it ends in one step.

use stateright::{Model, Property};

use crate::state::Place;

/// The largest number of notifications in a message.
const ITEMS: usize = 2;

/// A way to break a rule of the door or of the audit, to see which property the rule protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A message is acknowledged before what it becomes is stored.
    AckFirst,
    /// A message is acknowledged although something of it was not stored.
    AckRefused,
    /// The receipt of a refusal is stored before its letter.
    ReceiptFirst,
    /// Job ids are made anew for each try.
    NewJobs,
    /// The ids of letters are made anew for each try.
    NewLetters,
    /// A notification's life counts from the moment at which its job is made.
    YoungJobs,
    /// A gateway refuses what has expired in the intake, and stores nothing of it.
    ExpiredDropped,
    /// The audit reads what intakes have acknowledged last.
    FloorLast,
    /// The audit reads receipts after work.
    ReceiptsLate,
    /// The audit expects a receipt beside every letter.
    LettersComplete,
}

/// What a service published: one message, perhaps stored twice, and two gateways that share the intake.
#[derive(Debug)]
pub(crate) struct Intake {
    /// For each notification of the message, whether it keeps every rule.
    pub(crate) valid: &'static [bool],
    pub(crate) faults: Faults,
    /// Whether an audit may begin at any time.
    pub(crate) audits: bool,
    pub(crate) flaw: Option<Flaw>,
}

/// How many faults of each kind may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Faults {
    /// Crashes of gateways. Another is there at once.
    pub(crate) crashes: u8,
    /// Writes that fail, or whose answers are lost.
    pub(crate) lost: u8,
    /// Redeliveries while a gateway still works on a message, and after an acknowledgement that the server forgot.
    pub(crate) redeliveries: u8,
    /// Second messages with the same events: through the app's own server and directly.
    pub(crate) copies: u8,
    /// How often so much time passes that streams forget ids.
    pub(crate) pauses: u8,
    /// How often so much time passes that the notifications have expired.
    pub(crate) expiries: u8,
}

/// What becomes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Delivered,
    Expired,
}

/// A message in the stream of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Job {
    item: u8,
    /// Whether its life is taken to have ended when the message was stored in the intake.
    young: bool,
    /// Which id it has; more than one only with a flaw.
    id: u8,
    done: bool,
}

/// The progress of one gateway with one message. A crash loses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pass {
    message: u8,
    /// Bits of the items whose job or letter is still to be stored.
    to_store: u8,
    /// The receipt of the refusals is stored, or there are none.
    recorded: bool,
    /// Something was not stored, so the message goes back.
    failed: bool,
    acknowledged: bool,
}

/// What an audit has read so far. It reads one part after another, while everything else goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Audit {
    parts: u8,
    /// The messages that the intake has acknowledged, and the jobs that their lane has.
    floor: (u8, Vec<bool>),
    ends: Vec<(u8, End)>,
    refused: Vec<(u8, u8)>,
    letters: Vec<(u8, u8, u8)>,
    jobs: Vec<Job>,
    messages: u8,
}

/// The state of the whole system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The messages of the intake.
    messages: Vec<Place>,
    gateways: [Option<Pass>; 2],
    /// The stream of work, and the ids that it remembers.
    jobs: Vec<Job>,
    job_ids: Vec<(u8, u8)>,
    /// Receipts of jobs: their items and ends.
    ends: Vec<(u8, End)>,
    /// Letters: message, item and a number that is 0 unless a flaw makes new ids.
    letters: Vec<(u8, u8, u8)>,
    /// Receipts of refusals.
    refused: Vec<(u8, u8)>,
    audit: Option<Audit>,
    /// What an audit found that no fault of the model explains.
    wrong: bool,
    faults: Faults,
    /// The lives of all notifications have ended.
    expired: bool,
    /// A push began after the end of its notification's life.
    late: bool,
    /// Ids that were made so far with a flaw.
    made: u8,
}

/// The result of a write to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Stored,
    Unanswered,
    Refused,
}

/// One step. Gateways, messages, items and jobs are given by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Pull(usize, u8),
    /// Stores the job or the letter of an item.
    Store(usize, u8, Fate),
    /// Stores the receipt of all refusals of a message.
    Record(usize, Fate),
    Acknowledge(usize, Fate),
    /// Gives the message back, after a write that failed.
    GiveBack(usize),
    /// A worker takes a job to its end.
    End(usize),
    Crash(usize),
    Redeliver(u8),
    Copy,
    Pause,
    Expire,
    /// An audit begins, or reads its next part.
    Read,
}

impl Intake {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn items(&self) -> impl Iterator<Item = u8> + use<> {
        0..u8::try_from(self.valid.len()).expect("few items")
    }

    fn is_valid(&self, item: u8) -> bool {
        self.valid[usize::from(item)]
    }

    fn refusals(&self) -> u8 {
        self.items()
            .filter(|item| !self.is_valid(*item))
            .fold(0, |bits, item| bits | 1 << item)
    }

    /// The next steps of a gateway with its message. Its items are worked on in any order.
    fn pass_steps(&self, gateway: usize, pass: Pass, steps: &mut Vec<Step>) {
        let store = self.items().filter(|item| pass.to_store & 1 << item != 0);
        let store = store.map(|item| Step::Store(gateway, item, Fate::Stored));
        let record = (!pass.recorded).then_some(Step::Record(gateway, Fate::Stored));
        if self.is(Flaw::AckFirst) && !pass.acknowledged {
            steps.push(Step::Acknowledge(gateway, Fate::Stored));
        } else if self.is(Flaw::ReceiptFirst) && record.is_some() {
            steps.extend(record);
        } else if pass.to_store != 0 {
            steps.extend(store);
        } else if pass.failed && !self.is(Flaw::AckRefused) {
            steps.push(Step::GiveBack(gateway));
        } else if record.is_some() {
            steps.extend(record);
        } else {
            steps.push(Step::Acknowledge(gateway, Fate::Stored));
        }
    }

    fn store(&self, state: &mut State, gateway: usize, item: u8, fate: Fate) {
        let mut pass = state.gateways[gateway].expect("it has a message");
        pass.to_store &= !(1 << item);
        pass.failed |= fate != Fate::Stored;
        state.gateways[gateway] = Some(pass);
        if fate == Fate::Refused {
            return;
        }
        if !self.is_valid(item) {
            let id = self.id(state, Flaw::NewLetters);
            let letter = (pass.message, item, id);
            if !state.letters.contains(&letter) {
                state.letters.push(letter);
            }
        } else if !(state.expired && self.is(Flaw::ExpiredDropped)) {
            let id = self.id(state, Flaw::NewJobs);
            // After the window a job is stored again under the same id; workers know it.
            if !state.job_ids.contains(&(item, id)) {
                state.job_ids.push((item, id));
                state.jobs.push(Job {
                    item,
                    young: self.is(Flaw::YoungJobs) && state.expired,
                    id,
                    done: false,
                });
            }
        }
    }

    fn id(&self, state: &mut State, flaw: Flaw) -> u8 {
        if self.is(flaw) {
            state.made += 1;
        }
        state.made
    }

    fn record(&self, state: &mut State, gateway: usize, fate: Fate) {
        let mut pass = state.gateways[gateway].expect("it has a message");
        pass.recorded = true;
        pass.failed |= fate != Fate::Stored;
        state.gateways[gateway] = Some(pass);
        if fate == Fate::Refused {
            return;
        }
        for item in self.items().filter(|item| !self.is_valid(*item)) {
            if !state.refused.contains(&(pass.message, item)) {
                state.refused.push((pass.message, item));
            }
        }
    }

    /// A worker pushes what its ledger does not know, stores the receipt and acknowledges the job.
    fn end(&self, state: &mut State, number: usize) {
        let job = state.jobs[number];
        state.jobs[number].done = true;
        let known = state
            .ends
            .iter()
            .any(|(item, _)| *item == job.item && !self.is(Flaw::NewJobs));
        if known {
            return;
        }
        let expired = state.expired && !job.young;
        state.late |= state.expired && !expired;
        let end = if expired { End::Expired } else { End::Delivered };
        state.ends.push((job.item, end));
    }

    /// Reads the next part of the streams, in the order of `shared/nats/audit/read.rs`.
    fn read(&self, state: &mut State) {
        let mut audit = state.audit.take().unwrap_or_default();
        let mut order = [Part::Floor, Part::Receipts, Part::Letters, Part::Work, Part::Intake];
        if self.is(Flaw::FloorLast) {
            order.rotate_left(1);
        }
        if self.is(Flaw::ReceiptsLate) {
            order.swap(1, 3);
        }
        match order[usize::from(audit.parts)] {
            Part::Floor => {
                let done = |place: &Place| *place == Place::Done;
                let bits = state
                    .messages
                    .iter()
                    .rev()
                    .fold(0, |bits, place| bits << 1 | u8::from(done(place)));
                audit.floor = (bits, state.jobs.iter().map(|job| job.done).collect());
            }
            Part::Receipts => {
                audit.ends.clone_from(&state.ends);
                audit.refused.clone_from(&state.refused);
            }
            Part::Letters => audit.letters.clone_from(&state.letters),
            Part::Work => audit.jobs.clone_from(&state.jobs),
            Part::Intake => audit.messages = u8::try_from(state.messages.len()).expect("few messages"),
        }
        audit.parts += 1;
        if usize::from(audit.parts) < order.len() {
            state.audit = Some(audit);
        } else {
            state.wrong |= !self.holds(&audit);
        }
    }

    /// Whether the books hold, by the rules of `shared/nats/audit`.
    fn holds(&self, audit: &Audit) -> bool {
        let Audit {
            floor,
            ends,
            refused,
            letters,
            jobs,
            ..
        } = audit;
        let is_worked_off = |message: u8| floor.0 & 1 << message != 0;
        let known = |item: u8| jobs.iter().any(|job| job.item == item) || ends.iter().any(|(end, _)| *end == item);
        let mut all = (0..audit.messages).flat_map(|message| self.items().map(move |item| (message, item)));
        // What was worked off must be found; what waits is in flight.
        let found = all.all(|(message, item)| {
            let is_refused = refused.contains(&(message, item));
            !is_worked_off(message) || is_refused || known(item)
        });
        // A job that its lane has acknowledged must have ended.
        let ended = jobs
            .iter()
            .zip(&floor.1)
            .all(|(job, done)| !done || ends.iter().any(|(item, _)| *item == job.item));
        let once = self
            .items()
            .all(|item| ends.iter().filter(|(end, _)| *end == item).count() <= 1);
        let explained = letters.iter().all(|(message, item, _)| {
            refused.contains(&(*message, *item)) || (!is_worked_off(*message) && !self.is(Flaw::LettersComplete))
        });
        let kept = refused
            .iter()
            .all(|(message, item)| letters.iter().any(|(of, at, _)| (of, at) == (message, item)));
        found && ended && once && explained && kept
    }

    /// Whether no step is left but faults.
    fn is_at_rest(state: &State) -> bool {
        let still = state.messages.iter().all(|place| *place == Place::Done);
        still && state.gateways.iter().all(Option::is_none) && state.jobs.iter().all(|job| job.done)
    }
}

/// A part of the streams that an audit reads at once.
enum Part {
    /// How far intakes and lanes are worked off.
    Floor,
    Receipts,
    Letters,
    Work,
    Intake,
}

/// Lets a message wait again if no gateway holds it and none has acknowledged it.
fn return_unheld(state: &mut State, message: u8) {
    let mut passes = state.gateways.iter().flatten();
    let place = &mut state.messages[usize::from(message)];
    if *place == Place::Out && !passes.any(|pass| pass.message == message) {
        *place = Place::Waiting;
    }
}

impl Model for Intake {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        assert!(self.valid.len() <= ITEMS);
        vec![State {
            messages: vec![Place::Waiting],
            gateways: [None; 2],
            jobs: Vec::new(),
            job_ids: Vec::new(),
            ends: Vec::new(),
            letters: Vec::new(),
            refused: Vec::new(),
            audit: None,
            wrong: false,
            faults: self.faults,
            expired: false,
            late: false,
            made: 0,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let messages = || (0u8..).zip(&state.messages);
        for (gateway, pass) in state.gateways.iter().enumerate() {
            match pass {
                Some(pass) => self.pass_steps(gateway, *pass, steps),
                // Gateways are alike.
                None if gateway == 1 && state.gateways[0].is_none() => {}
                None => {
                    let waiting = messages().filter(|(_, place)| **place == Place::Waiting);
                    steps.extend(waiting.map(|(message, _)| Step::Pull(gateway, message)));
                }
            }
        }
        let jobs = state.jobs.iter().enumerate().filter(|(_, job)| !job.done);
        steps.extend(jobs.map(|(number, _)| Step::End(number)));
        let faults = state.faults;
        if faults.lost > 0 {
            for step in steps.clone() {
                match step {
                    Step::Store(gateway, item, _) => steps.extend([
                        Step::Store(gateway, item, Fate::Unanswered),
                        Step::Store(gateway, item, Fate::Refused),
                    ]),
                    Step::Record(gateway, _) => steps.extend([
                        Step::Record(gateway, Fate::Unanswered),
                        Step::Record(gateway, Fate::Refused),
                    ]),
                    Step::Acknowledge(gateway, _) => steps.push(Step::Acknowledge(gateway, Fate::Refused)),
                    _ => {}
                }
            }
        }
        if faults.crashes > 0 {
            let busy = state.gateways.iter().enumerate().filter(|(_, pass)| pass.is_some());
            steps.extend(busy.map(|(gateway, _)| Step::Crash(gateway)));
        }
        if faults.redeliveries > 0 {
            let out = messages().filter(|(_, place)| **place != Place::Waiting);
            steps.extend(out.map(|(message, _)| Step::Redeliver(message)));
        }
        steps.extend((faults.copies > 0).then_some(Step::Copy));
        steps.extend((faults.pauses > 0 && !state.job_ids.is_empty()).then_some(Step::Pause));
        steps.extend((faults.expiries > 0).then_some(Step::Expire));
        steps.extend(self.audits.then_some(Step::Read));
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        let state = &mut next;
        match step {
            Step::Pull(gateway, message) => {
                state.messages[usize::from(message)] = Place::Out;
                state.gateways[gateway] = Some(Pass {
                    message,
                    to_store: self.items().fold(0, |bits, item| bits | 1 << item),
                    recorded: self.refusals() == 0,
                    failed: false,
                    acknowledged: false,
                });
            }
            Step::Store(gateway, item, fate) => {
                state.faults.lost -= u8::from(fate != Fate::Stored);
                self.store(state, gateway, item, fate);
            }
            Step::Record(gateway, fate) => {
                state.faults.lost -= u8::from(fate != Fate::Stored);
                self.record(state, gateway, fate);
            }
            Step::Acknowledge(gateway, fate) => {
                let mut pass = state.gateways[gateway].expect("it has a message");
                pass.acknowledged = true;
                let message = pass.message;
                let is_last = pass.to_store == 0 && pass.recorded;
                state.gateways[gateway] = (!is_last).then_some(pass);
                if fate == Fate::Stored {
                    state.messages[usize::from(message)] = Place::Done;
                } else {
                    state.faults.lost -= 1;
                    return_unheld(state, message);
                }
            }
            Step::GiveBack(gateway) => {
                let pass = state.gateways[gateway].take()?;
                return_unheld(state, pass.message);
            }
            Step::End(number) => self.end(state, number),
            Step::Crash(gateway) => {
                state.faults.crashes -= 1;
                let pass = state.gateways[gateway].take()?;
                return_unheld(state, pass.message);
            }
            Step::Redeliver(message) => {
                state.faults.redeliveries -= 1;
                state.messages[usize::from(message)] = Place::Waiting;
            }
            Step::Copy => {
                state.faults.copies -= 1;
                state.messages.push(Place::Waiting);
            }
            Step::Pause => {
                state.faults.pauses -= 1;
                state.job_ids.clear();
            }
            Step::Expire => {
                state.faults.expiries -= 1;
                state.expired = true;
            }
            Step::Read => self.read(state),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(KEPT, |intake: &Intake, state: &State| {
                (0u8..).zip(&state.messages).all(|(message, place)| {
                    *place != Place::Done
                        || intake.items().all(|item| {
                            if intake.is_valid(item) {
                                state.jobs.iter().any(|job| job.item == item)
                            } else {
                                let letter = state.letters.iter().any(|(of, at, _)| (*of, *at) == (message, item));
                                letter && state.refused.contains(&(message, item))
                            }
                        })
                })
            }),
            Property::always(ENDED, |intake: &Intake, state: &State| {
                let ends = |item| state.ends.iter().filter(|(end, _)| *end == item).count();
                let expected = |item| usize::from(intake.is_valid(item));
                !Intake::is_at_rest(state) || intake.items().all(|item| ends(item) == expected(item))
            }),
            Property::always(ONCE, |intake: &Intake, state: &State| {
                let ends = |item| state.ends.iter().filter(|(end, _)| *end == item).count();
                let letters = |message, item| {
                    let of = |(of, at, _): &&(u8, u8, u8)| (*of, *at) == (message, item);
                    state.letters.iter().filter(of).count()
                };
                let mut messages = (0u8..).zip(&state.messages);
                intake.items().all(|item| ends(item) <= 1)
                    && messages.all(|(message, _)| intake.items().all(|item| letters(message, item) <= 1))
            }),
            Property::always(LETTER_FIRST, |_, state: &State| {
                let has_letter =
                    |(message, item): &(u8, u8)| state.letters.iter().any(|(of, at, _)| (of, at) == (message, item));
                state.refused.iter().all(has_letter)
            }),
            Property::always(NOT_LATE, |_, state: &State| !state.late),
            Property::always(BOOKS, |_, state: &State| !state.wrong),
        ]
    }
}

pub(crate) const KEPT: &str = "what an intake has acknowledged is jobs, or letters with their receipts";
pub(crate) const ENDED: &str = "when no step is left every notification has ended, or is refused";
pub(crate) const ONCE: &str = "an event ends once, and what is refused has one letter for each message";
pub(crate) const LETTER_FIRST: &str = "a letter is stored before the receipt that mentions it";
pub(crate) const NOT_LATE: &str = "nothing is pushed after the life that began when the message was stored";
pub(crate) const BOOKS: &str = "an audit at any time finds that the ledger equation holds";
