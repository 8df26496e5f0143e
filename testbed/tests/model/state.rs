//! What there is of one job: in the streams, in the workers' files and in their memories. Packed, because millions of
//! these are compared.

use std::fmt;

/// Number of an address, from 0.
pub(crate) type Address = u8;

/// Number of an attempt, from 1.
pub(crate) type Attempt = u8;

/// How many addresses there is room for.
pub(crate) const ADDRESSES: usize = 2;

/// How many attempts there is room for.
pub(crate) const ATTEMPTS: u8 = 3;

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Delivered,
    Dead,
    Parked,
}

/// Records of attempts: a set of bits, three for each attempt at each address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Records(u32);

impl Records {
    const OF_ATTEMPT: u32 = 3;
    const OF_ADDRESS: u32 = Self::OF_ATTEMPT * ATTEMPTS as u32;
    const FINAL: u32 = 0b011_011_011;
    const PARKED: u32 = 0b100_100_100;

    pub(crate) fn one(address: Address, attempt: Attempt, ended: Ended) -> Self {
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

    /// Whether the delivery to `address` has ended.
    pub(crate) fn is_final(self, address: Address) -> bool {
        self.meets(Self::some(address, Self::FINAL))
    }

    /// Whether an attempt needs no more work, as `History::has` of the ledger says it.
    pub(crate) fn has(self, address: Address, attempt: Attempt) -> bool {
        let later = Self::PARKED << (u32::from(attempt - 1) * Self::OF_ATTEMPT) & Self::PARKED;
        self.meets(Self::some(address, Self::FINAL | later))
    }

    /// Whether anything is known of attempts with this number.
    pub(crate) fn know_attempt(self, attempt: Attempt) -> bool {
        let bits = 0b111 << (u32::from(attempt - 1) * Self::OF_ATTEMPT);
        (0..2).any(|address| self.meets(Self::some(address, bits)))
    }

    /// All that is said of `address`.
    pub(crate) fn of(self, address: Address) -> Self {
        Self(self.0 & Self::some(address, Self::FINAL | Self::PARKED).0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = (Address, Attempt, Ended)> {
        let all = (0..2).flat_map(|address| (1..=ATTEMPTS).map(move |attempt| (address, attempt)));
        let all = all.flat_map(|(address, attempt)| {
            [Ended::Delivered, Ended::Dead, Ended::Parked].map(|ended| (address, attempt, ended))
        });
        all.filter(move |(address, attempt, ended)| self.meets(Self::one(*address, *attempt, *ended)))
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
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

    /// Adds one; whether it is new.
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

/// One message of work: a copy of the job as it was published, or a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    Fresh(u8),
    Retry(Address, Attempt),
}

impl Work {
    pub(crate) fn attempt(self) -> Attempt {
        match self {
            Self::Fresh(_) => 1,
            Self::Retry(_, attempt) => attempt,
        }
    }

    /// What a worker reserves while it works on this.
    pub(crate) fn key(self) -> Option<Address> {
        match self {
            Self::Fresh(_) => None,
            Self::Retry(address, _) => Some(address),
        }
    }

    pub(crate) fn concerns(self, address: Address) -> bool {
        self.key().is_none_or(|key| key == address)
    }
}

/// Where a message stands with its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Waiting,
    /// A worker works on it. Once nobody does, the server will give it out again: it waits.
    Out,
    /// Acknowledged.
    Done,
}

/// How far a worker is with one message. Lost in a crash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pass {
    pub(crate) work: Work,
    /// What each attempt came to.
    pub(crate) came_to: Records,
    /// Addresses whose retry or dead letter is still to be stored: a set of bits.
    pub(crate) to_store: u8,
    pub(crate) committed: bool,
    /// The number of the message that announces it. Without one there is no news.
    pub(crate) number: Option<u8>,
    pub(crate) announced: bool,
    pub(crate) acknowledged: bool,
}

/// One message of the stream of receipts; writer and number are its id.
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
    /// Has caught up with the receipts and publishes what a former run left; so many messages are done.
    Starting(usize),
    Pulling,
}

/// One edge worker. All but `life` and `passes` is in its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Worker {
    pub(crate) life: Life,
    pub(crate) passes: Vec<Pass>,
    pub(crate) ledger: Records,
    /// Committed, and not yet seen in the stream.
    pub(crate) outgoing: Vec<Batch>,
    /// Number of the last message it made.
    pub(crate) last: u8,
    /// How many messages of the stream of receipts it has applied.
    pub(crate) followed: usize,
    /// The connection was lost: it pulls nothing before it has followed the receipts to their end.
    pub(crate) settles_down: bool,
}

/// What may still go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Faults {
    /// Workers that crash.
    pub(crate) crashes: u8,
    /// Crashes of the server, which forgets what it gave to whom, and perhaps what was acknowledged.
    pub(crate) server_crashes: u8,
    /// Messages given to a second worker while the first still works on them.
    pub(crate) impatience: u8,
    /// Answers of the server that do not arrive, and stores that fail.
    pub(crate) lost: u8,
    /// Further copies of the job under other message ids.
    pub(crate) copies: u8,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    /// NOTIFY: the copies of the job.
    pub(crate) fresh: Vec<Place>,
    /// SCHEDULE: the retry that waits for its time, one an address. Whoever pulls it makes its time come.
    pub(crate) schedule: [Option<Attempt>; ADDRESSES],
    /// SCHEDULE: retries whose time has come.
    pub(crate) due: Vec<(Address, Attempt, Place)>,
    /// SCHEDULE: message ids that the stream remembers.
    pub(crate) schedule_ids: Attempts,
    /// RECEIPTS.
    pub(crate) receipts: Vec<Batch>,
    /// DEAD.
    pub(crate) dead: Attempts,
    pub(crate) workers: [Worker; 2],
    pub(crate) faults: Faults,
    /// Retries that were stored at some time. Here and below: what nobody in the system knows.
    pub(crate) parked: Attempts,
    /// Pushes that the provider may still take: one, and one more for each fault or overlap that can cause it.
    pub(crate) allowance: [i8; ADDRESSES],
    /// Two workers settled this address before either could know of the other.
    pub(crate) raced: [bool; ADDRESSES],
}

impl State {
    pub(crate) fn new(faults: Faults) -> Self {
        let worker = Worker {
            life: Life::Pulling,
            passes: Vec::new(),
            ledger: Records::default(),
            outgoing: Vec::new(),
            last: 0,
            followed: 0,
            settles_down: false,
        };
        Self {
            fresh: vec![Place::Waiting],
            schedule: [None; ADDRESSES],
            due: Vec::new(),
            schedule_ids: Attempts::default(),
            receipts: Vec::new(),
            dead: Attempts::default(),
            workers: [worker.clone(), worker],
            faults,
            parked: Attempts::default(),
            allowance: [1; ADDRESSES],
            raced: [false; ADDRESSES],
        }
    }

    /// Every message of work with where it stands.
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
        fresh.chain(due).chain(waiting)
    }

    /// Moves a message. A retry becomes due by being moved.
    pub(crate) fn place(&mut self, work: Work, place: Place) {
        match work {
            Work::Fresh(copy) => self.fresh[usize::from(copy)] = place,
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

    /// Final receipts of `address`.
    pub(crate) fn finals(&self, address: Address) -> usize {
        self.receipts
            .iter()
            .filter(|batch| batch.records.is_final(address))
            .count()
    }

    /// What the stream of receipts says that `worker` has not applied.
    pub(crate) fn unfollowed(&self, worker: usize) -> Records {
        said(&self.receipts[self.workers[worker].followed..])
    }
}

/// All that is said in `batches`.
pub(crate) fn said<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Records {
    let mut records = Records::default();
    for batch in batches {
        records.add(batch.records);
    }
    records
}
