//! The whole state of one job: in the streams, in the workers' files and in their memory. It is packed, because
//! millions of states are compared.

use std::fmt;

/// The number of an address, from 0.
pub(crate) type Address = u8;

/// The number of an attempt, from 1.
pub(crate) type Attempt = u8;

/// The largest number of addresses that a state can hold.
pub(crate) const ADDRESSES: usize = 2;

/// The largest number of attempts at one address that a state can hold.
pub(crate) const ATTEMPTS: u8 = 3;

/// The outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    Dead,
    Parked,
}

/// Records of attempts: a set of bits, three for each attempt at each address, and one for the job as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Records(u32);

impl Records {
    const OF_ATTEMPT: u32 = 3;
    const OF_ADDRESS: u32 = Self::OF_ATTEMPT * ATTEMPTS as u32;
    const FINAL: u32 = 0b011_011_011;
    const PARKED: u32 = 0b100_100_100;
    const WHOLE_DEFERRED: u32 = 1 << 31;

    /// The record that the job waits as a whole. It is no outcome of any address.
    pub(crate) const DEFERRED: Self = Self(Self::WHOLE_DEFERRED);

    pub(crate) fn one(address: Address, attempt: Attempt, ended: Outcome) -> Self {
        let bit = u32::from(address) * Self::OF_ADDRESS + u32::from(attempt - 1) * Self::OF_ATTEMPT + ended as u32;
        Self(1 << bit)
    }

    fn some(address: Address, bits: u32) -> Self {
        Self(bits << (u32::from(address) * Self::OF_ADDRESS))
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.0 |= more.0;
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the job has waited as a whole.
    pub(crate) fn is_deferred(self) -> bool {
        self.meets(Self::DEFERRED)
    }

    /// Whether the delivery to `address` has ended.
    pub(crate) fn is_final(self, address: Address) -> bool {
        self.meets(Self::some(address, Self::FINAL))
    }

    /// Whether an attempt needs no more work; the rule of `History::has` in the ledger.
    pub(crate) fn has(self, address: Address, attempt: Attempt) -> bool {
        let later = Self::PARKED << (u32::from(attempt - 1) * Self::OF_ATTEMPT) & Self::PARKED;
        self.meets(Self::some(address, Self::FINAL | later))
    }

    /// Whether there is a record of any attempt with this number.
    pub(crate) fn knows_attempt(self, attempt: Attempt) -> bool {
        let bits = 0b111 << (u32::from(attempt - 1) * Self::OF_ATTEMPT);
        (0..2).any(|address| self.meets(Self::some(address, bits)))
    }

    /// The records of `address`.
    pub(crate) fn of(self, address: Address) -> Self {
        Self(self.0 & Self::some(address, Self::FINAL | Self::PARKED).0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = (Address, Attempt, Outcome)> {
        let all = (0..2).flat_map(|address| (1..=ATTEMPTS).map(move |attempt| (address, attempt)));
        let all = all.flat_map(|(address, attempt)| {
            [Outcome::Delivered, Outcome::Dead, Outcome::Parked].map(|ended| (address, attempt, ended))
        });
        all.filter(move |(address, attempt, ended)| self.meets(Self::one(*address, *attempt, *ended)))
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deferred = self.is_deferred().then_some("deferred");
        f.debug_set().entries(self.iter()).entries(deferred).finish()
    }
}

/// Attempts at addresses: a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Attempts(u8);

impl Attempts {
    fn bit(address: Address, attempt: Attempt) -> u8 {
        1 << (address * 4 + attempt)
    }

    pub(crate) fn has(self, address: Address, attempt: Attempt) -> bool {
        self.0 & Self::bit(address, attempt) != 0
    }

    /// Adds an attempt and returns whether it is new.
    pub(crate) fn insert(&mut self, address: Address, attempt: Attempt) -> bool {
        let new = !self.has(address, attempt);
        self.0 |= Self::bit(address, attempt);
        new
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(Address, Attempt) -> bool) {
        for address in 0..2 {
            for attempt in 1..=ATTEMPTS {
                if !keep(address, attempt) {
                    self.0 &= !Self::bit(address, attempt);
                }
            }
        }
    }
}

/// One message of work: a copy of the job as it was published, the job after it has waited as a whole, or a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    Fresh(u8),
    /// Counted from 0, since the job may be deferred several times.
    Whole(u8),
    Retry(Address, Attempt),
}

impl Work {
    pub(crate) fn attempt(self) -> Attempt {
        match self {
            Self::Fresh(_) | Self::Whole(_) => 1,
            Self::Retry(_, attempt) => attempt,
        }
    }

    /// The address that a worker reserves while it works on a retry.
    pub(crate) fn key(self) -> Option<Address> {
        match self {
            Self::Fresh(_) | Self::Whole(_) => None,
            Self::Retry(address, _) => Some(address),
        }
    }

    pub(crate) fn concerns(self, address: Address) -> bool {
        self.key().is_none_or(|key| key == address)
    }
}

/// The state of a message in its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Waiting,
    /// A worker has pulled it. When no worker holds it any more, it waits again, since the server will redeliver it.
    Out,
    /// Acknowledged.
    Done,
}

/// The bit, among those of addresses, of the schedule of the job as a whole.
pub(crate) const WHOLE: u8 = 1 << ADDRESSES;

/// A worker's progress with one message. A crash loses it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pass {
    pub(crate) work: Work,
    /// The outcome of each attempt.
    pub(crate) outcomes: Records,
    /// A set of bits: addresses whose retry or dead letter is still to be stored, and [`WHOLE`].
    pub(crate) to_store: u8,
    pub(crate) committed: bool,
    /// The number of the batch of receipts that reports it. `None` if there is nothing new to report.
    pub(crate) number: Option<u8>,
    pub(crate) announced: bool,
    pub(crate) acknowledged: bool,
}

/// One message of RECEIPTS. Writer and number are its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Batch {
    pub(crate) writer: usize,
    pub(crate) number: u8,
    pub(crate) records: Records,
}

/// Whether a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Life {
    Down,
    /// It has caught up with the receipts and publishes the batches that its last run left; this many are published.
    Starting(usize),
    Pulling,
}

/// One edge worker. Everything but `life` and `passes` survives a crash in its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Worker {
    pub(crate) life: Life,
    pub(crate) passes: Vec<Pass>,
    pub(crate) ledger: Records,
    /// Batches that are committed and not yet seen in the stream.
    pub(crate) outgoing: Vec<Batch>,
    /// The number of the last batch that it made.
    pub(crate) last: u8,
    /// How many messages of RECEIPTS it has applied.
    pub(crate) followed: usize,
    /// The connection was lost, so it pulls nothing before it has followed the receipts to their end.
    pub(crate) is_catching_up: bool,
}

/// How many faults of each kind may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Faults {
    /// Crashes of workers.
    pub(crate) crashes: u8,
    /// Crashes of the server, which forgets which worker has which message, and perhaps acknowledgements.
    pub(crate) server_crashes: u8,
    /// Redeliveries to a second worker while the first still works on the message.
    pub(crate) early_redeliveries: u8,
    /// Lost answers of the server, and writes that fail.
    pub(crate) lost: u8,
    /// More copies of the job, under other message ids.
    pub(crate) copies: u8,
}

/// The state of the whole system.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    /// NOTIFY: the copies of the job.
    pub(crate) fresh: Vec<Place>,
    /// SCHEDULE: the retry of each address that waits for its time. The pull of a retry makes it due.
    pub(crate) schedule: [Option<Attempt>; ADDRESSES],
    /// SCHEDULE: whether the job waits as a whole. Its pull makes it due.
    pub(crate) whole: bool,
    /// SCHEDULE: the job after it has waited, as often as its schedule has fired.
    pub(crate) wholes: Vec<Place>,
    /// SCHEDULE: retries that are due.
    pub(crate) due: Vec<(Address, Attempt, Place)>,
    /// SCHEDULE: message ids that the stream remembers.
    pub(crate) schedule_ids: Attempts,
    /// RECEIPTS.
    pub(crate) receipts: Vec<Batch>,
    /// DEAD.
    pub(crate) dead: Attempts,
    pub(crate) workers: [Worker; 2],
    pub(crate) faults: Faults,
    /// How many more times a rule may let the job wait as a whole.
    pub(crate) deferrals: u8,
    /// Whether the schedule of the whole job was ever stored. No part of the real system knows this or the fields below.
    pub(crate) deferred: bool,
    /// Retries that were ever stored.
    pub(crate) parked: Attempts,
    /// How many more pushes the provider may accept: one, and one for each fault or overlap that can cause another.
    pub(crate) allowance: [i8; ADDRESSES],
    /// Whether two workers settled this address before either could know of the other.
    pub(crate) raced: [bool; ADDRESSES],
}

impl State {
    pub(crate) fn new(faults: Faults, deferrals: u8) -> Self {
        let worker = Worker {
            life: Life::Pulling,
            passes: Vec::new(),
            ledger: Records::default(),
            outgoing: Vec::new(),
            last: 0,
            followed: 0,
            is_catching_up: false,
        };
        Self {
            fresh: vec![Place::Waiting],
            schedule: [None; ADDRESSES],
            whole: false,
            wholes: Vec::new(),
            due: Vec::new(),
            schedule_ids: Attempts::default(),
            receipts: Vec::new(),
            dead: Attempts::default(),
            workers: [worker.clone(), worker],
            faults,
            deferrals,
            deferred: false,
            parked: Attempts::default(),
            allowance: [1; ADDRESSES],
            raced: [false; ADDRESSES],
        }
    }

    /// Every message of work with its state in the consumer.
    pub(crate) fn work(&self) -> impl Iterator<Item = (Work, Place)> {
        let fresh = (0u8..)
            .zip(&self.fresh)
            .map(|(copy, place)| (Work::Fresh(copy), *place));
        let due = self
            .due
            .iter()
            .map(|(address, attempt, place)| (Work::Retry(*address, *attempt), *place));
        let waiting = (0u8..)
            .zip(&self.schedule)
            .filter_map(|(address, attempt)| Some((address, (*attempt)?)));
        let waiting = waiting.map(|(address, attempt)| (Work::Retry(address, attempt), Place::Waiting));
        let wholes = self.wholes.iter().copied();
        let wholes = (0u8..).zip(wholes.chain(self.whole.then_some(Place::Waiting)));
        let wholes = wholes.map(|(number, place)| (Work::Whole(number), place));
        fresh.chain(wholes).chain(due).chain(waiting)
    }

    /// Changes the state of a message. A scheduled retry, or the job that waits as a whole, becomes due by it.
    pub(crate) fn place(&mut self, work: Work, place: Place) {
        match work {
            Work::Fresh(copy) => self.fresh[usize::from(copy)] = place,
            Work::Whole(number) => {
                if let Some(due) = self.wholes.get_mut(usize::from(number)) {
                    *due = place;
                } else {
                    self.whole = false;
                    self.wholes.push(place);
                }
            }
            Work::Retry(address, attempt) => {
                let waiting = &mut self.schedule[usize::from(address)];
                if place == Place::Out && *waiting == Some(attempt) {
                    *waiting = None;
                }
                self.due.retain(|(of, number, _)| (*of, *number) != (address, attempt));
                self.due.push((address, attempt, place));
                self.due.sort_unstable();
            }
        }
    }

    pub(crate) fn has(&self, batch: &Batch) -> bool {
        self.receipts
            .iter()
            .any(|stored| stored.writer == batch.writer && stored.number == batch.number)
    }

    /// The number of final receipts of `address`.
    pub(crate) fn finals(&self, address: Address) -> usize {
        self.receipts
            .iter()
            .filter(|batch| batch.records.is_final(address))
            .count()
    }

    /// The records in RECEIPTS that `worker` has not applied.
    pub(crate) fn unfollowed(&self, worker: usize) -> Records {
        records_of(&self.receipts[self.workers[worker].followed..])
    }
}

/// All records in `batches`.
pub(crate) fn records_of<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Records {
    let mut records = Records::default();
    for batch in batches {
        records.add(batch.records);
    }
    records
}
