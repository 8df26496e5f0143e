//! The ledger equation, computed from the streams: accepted = delivered + suppressed + expired + cancelled + rejected +
//! dead + in flight.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::Duration,
};

use futures::StreamExt;
use shared::{
    id::{AddressId, JobId, Region},
    nats::{connect, envelope, follow, subject, topology},
    receipt::{Batch, State},
};

use crate::peal::Peal;

/// What the streams say.
#[derive(Debug, Default)]
pub struct Audit {
    /// Jobs in the streams of work. A job that a stream stored twice counts once.
    pub accepted: HashSet<JobId>,
    /// Messages in the streams of work that repeat a job.
    pub repeated: u64,
    /// What every delivery came to, in the order in which it was said.
    pub deliveries: HashMap<(JobId, Option<AddressId>), Vec<State>>,
}

/// The equation.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Equation {
    /// Jobs accepted.
    pub accepted: usize,
    /// Jobs of which every known delivery is final.
    pub settled: usize,
    /// Jobs without a receipt, or with a delivery that waits for another attempt.
    pub in_flight: usize,
    /// Jobs with receipts that no stream of work holds.
    pub invented: usize,
    /// Deliveries with more than one final state.
    pub contradicted: usize,
    /// Deliveries by final state.
    pub by_state: BTreeMap<State, usize>,
}

impl Audit {
    /// Reads the streams of every region to their ends.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn read(peal: &Peal) -> anyhow::Result<Self> {
        let mut audit = Self::default();
        for region in &peal.regions {
            let js = connect::jetstream(peal.connect(&region.name).await?);
            let here: Region = region.name.parse()?;
            for entry in read_all(&js, topology::NOTIFY, ">").await? {
                let job = match envelope::open(&entry.subject, &entry.headers, &entry.payload, entry.stored_at, &here) {
                    Ok(job) => job.id,
                    // What nobody can read is still accepted: it must end among the dead letters.
                    Err(_) => envelope::unreadable(entry.sequence, entry.stored_at, &here).0,
                };
                audit.repeated += u64::from(!audit.accepted.insert(job));
            }
            for entry in read_all(&js, topology::RECEIPTS, &subject::receipt_filter(&here)).await? {
                let batch: Batch = serde_json::from_slice(&entry.payload)?;
                for receipt in batch.receipts {
                    audit
                        .deliveries
                        .entry((receipt.job, receipt.address))
                        .or_default()
                        .push(receipt.state);
                }
            }
        }
        Ok(audit)
    }

    /// How often each kind of attempt is in the receipts of all regions: what it came to and why, by whom, and which
    /// attempt it was.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn attempts(peal: &Peal) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut kinds = BTreeMap::new();
        for region in &peal.regions {
            let js = connect::jetstream(peal.connect(&region.name).await?);
            for entry in read_all(&js, topology::RECEIPTS, &subject::receipt_filter(&region.name.parse()?)).await? {
                for receipt in serde_json::from_slice::<Batch>(&entry.payload)?.receipts {
                    let provider = receipt.provider.map_or("nobody", |provider| provider.as_str());
                    let reason = receipt.reason.unwrap_or_default();
                    let kind = format!("{} by {provider}, attempt {} {reason}", receipt.state, receipt.attempt);
                    *kinds.entry(kind).or_default() += 1;
                }
            }
        }
        Ok(kinds)
    }

    /// What the streams know of some jobs, a line for each time they are mentioned.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn history(peal: &Peal, jobs: &[JobId]) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        for region in &peal.regions {
            let js = connect::jetstream(peal.connect(&region.name).await?);
            let here: Region = region.name.parse()?;
            for entry in read_all(&js, topology::NOTIFY, ">").await? {
                let job = envelope::open(&entry.subject, &entry.headers, &entry.payload, entry.stored_at, &here);
                if let Some(job) = job.ok().filter(|job| jobs.contains(&job.id)) {
                    let (at, class) = (entry.stored_at, job.class);
                    lines.push(format!(
                        "{} {at} stored in {here} as #{}, {class}",
                        job.id, entry.sequence
                    ));
                }
            }
            for entry in read_all(&js, topology::RECEIPTS, &subject::receipt_filter(&here)).await? {
                let batch: Batch = serde_json::from_slice(&entry.payload)?;
                for receipt in batch.receipts.iter().filter(|receipt| jobs.contains(&receipt.job)) {
                    let (job, state, attempt) = (receipt.job, receipt.state, receipt.attempt);
                    lines.push(format!(
                        "{job} {} {state} by {}, attempt {attempt}",
                        receipt.at, batch.writer
                    ));
                }
            }
        }
        lines.sort();
        Ok(lines)
    }

    /// Reads until nothing is in flight, or `patience` has passed.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn read_settled(peal: &Peal, patience: Duration) -> anyhow::Result<Self> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let audit = Self::read(peal).await?;
            if audit.equation().in_flight == 0 || tokio::time::Instant::now() >= deadline {
                return Ok(audit);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// The equation at the moment of reading.
    pub fn equation(&self) -> Equation {
        let mut equation = Equation {
            accepted: self.accepted.len(),
            ..Equation::default()
        };
        let mut waiting: HashMap<JobId, bool> = HashMap::new();
        for ((job, _), states) in &self.deliveries {
            let last = states.iter().rev().find(|state| state.is_final());
            *waiting.entry(*job).or_default() |= last.is_none();
            if let Some(state) = last {
                *equation.by_state.entry(*state).or_default() += 1;
            }
            equation.contradicted += usize::from(states.iter().filter(|state| state.is_final()).count() > 1);
        }
        for job in &self.accepted {
            match waiting.remove(job) {
                Some(false) => equation.settled += 1,
                Some(true) | None => equation.in_flight += 1,
            }
        }
        equation.invented = waiting.len();
        equation
    }
}

impl Equation {
    /// Whether every accepted job is settled, nothing was invented and nothing contradicts itself.
    pub fn holds(&self) -> bool {
        self.in_flight == 0 && self.invented == 0 && self.contradicted == 0 && self.settled == self.accepted
    }
}

impl fmt::Display for Equation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "accepted {} = settled {} + in flight {}",
            self.accepted, self.settled, self.in_flight
        )?;
        write!(f, "; deliveries:")?;
        for (state, count) in &self.by_state {
            write!(f, " {state} {count}")?;
        }
        write!(f, "; invented {}, contradicted {}", self.invented, self.contradicted)
    }
}

/// Everything that a stream holds now.
async fn read_all(
    js: &async_nats::jetstream::Context,
    stream: &str,
    filter: &str,
) -> anyhow::Result<Vec<follow::Entry>> {
    let found = js.get_stream(stream).await?;
    let matching = found.info_with_subjects(filter).await?;
    let mut expected = 0;
    let mut matching = matching;
    while let Some(subject) = matching.next().await {
        expected += subject?.1;
    }
    let mut entries = Vec::with_capacity(expected);
    if expected == 0 {
        return Ok(entries);
    }
    let mut followed = follow::follow(js, stream, filter, 1).await?;
    while let Some(entry) = followed.next().await {
        let entry = entry?;
        let last = entry.pending == 0;
        entries.push(entry);
        if last {
            break;
        }
    }
    Ok(entries)
}
