//! Reads the streams of a running mesh: the ledger equation, deliveries, and the history of single jobs.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use async_nats::jetstream;
use shared::{
    id::{AddressId, JobId, Region},
    nats::{
        audit::{self, Equation, Report, Scope},
        connect, envelope,
        follow::{self, Entry, Start},
        subject, topology,
    },
    receipt::{Batch, State},
};
use tokio::time::Instant;

use crate::peal::Peal;

/// The states of each delivery, in the order of its receipts.
pub type Deliveries = HashMap<(JobId, Option<AddressId>), Vec<State>>;

/// One delivery that a provider accepted.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The recipient's home region.
    pub region: String,
    /// The region whose worker delivered it, if it is not the home region.
    pub by: Option<Region>,
    /// When the worker had the provider's answer, milliseconds since the epoch.
    pub at_ms: i64,
}

/// The contents of the streams of all regions.
#[derive(Debug)]
pub struct Audit {
    /// The report, with the equation of each region.
    pub report: Report,
}

impl Audit {
    /// Reads the streams of all regions to their ends.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn read(peal: &Peal) -> anyhow::Result<Self> {
        let names = peal.regions.iter().map(|region| region.name.parse());
        let regions: Vec<Region> = names.collect::<Result<_, _>>()?;
        let client = peal.connect_as_operator().await?;
        let report = audit::read(&client, &regions, &Scope::default(), peal.audit_keys().await?).await?;
        Ok(Self { report })
    }

    /// The states of each delivery, from the receipts of all regions, in order.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn deliveries(peal: &Peal) -> anyhow::Result<Deliveries> {
        let mut deliveries = Deliveries::new();
        for receipt in receipts(peal).await?.into_iter().flat_map(|batch| batch.receipts) {
            let states = deliveries.entry((receipt.job, receipt.address)).or_default();
            states.push(receipt.state);
        }
        Ok(deliveries)
    }

    /// Every delivery that a receipt reports as delivered, once.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn delivered(peal: &Peal) -> anyhow::Result<Vec<Delivered>> {
        let mut delivered = HashMap::new();
        for batch in receipts(peal).await? {
            for receipt in batch
                .receipts
                .into_iter()
                .filter(|receipt| receipt.state == State::Delivered)
            {
                let key = (receipt.job, receipt.address);
                delivered.entry(key).or_insert_with(|| Delivered {
                    region: batch.region.to_string(),
                    by: receipt.by,
                    at_ms: receipt.at.as_millisecond(),
                });
            }
        }
        Ok(delivered.into_values().collect())
    }

    /// When each job was stored in its recipient's home region, milliseconds since the epoch.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn stored(peal: &Peal) -> anyhow::Result<HashMap<JobId, i64>> {
        let mut stored = HashMap::new();
        for region in &peal.regions {
            let js = connect::jetstream(peal.connect(&region.name).await?);
            let here: Region = region.name.parse()?;
            follow::read(&js, topology::NOTIFY, ">", Start::Sequence(1), |entry| {
                let job = envelope::open(
                    &entry.subject,
                    &entry.headers,
                    &entry.payload,
                    entry.stored_at,
                    &here,
                    &peal.ids,
                );
                if let Ok(job) = job {
                    stored.entry(job.id).or_insert(entry.stored_at.as_millisecond());
                }
            })
            .await?;
        }
        Ok(stored)
    }

    /// The number of attempts of each kind in the receipts of all regions. A kind is the state, the provider, the number
    /// of the attempt and the reason.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn attempts(peal: &Peal) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut kinds = BTreeMap::new();
        for receipt in receipts(peal).await?.into_iter().flat_map(|batch| batch.receipts) {
            let provider = receipt.provider.map_or("nobody", |provider| provider.as_str());
            let reason = receipt.reason.unwrap_or_default();
            let kind = format!("{} by {provider}, attempt {} {reason}", receipt.state, receipt.attempt);
            *kinds.entry(kind).or_default() += 1;
        }
        Ok(kinds)
    }

    /// The history of these jobs: one line for each time that a stream mentions one, sorted by job and time.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn history(peal: &Peal, jobs: &[JobId]) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        for region in &peal.regions {
            let js = connect::jetstream(peal.connect(&region.name).await?);
            let here: Region = region.name.parse()?;
            for entry in read_all(&js, topology::NOTIFY, ">").await? {
                let job = envelope::open(
                    &entry.subject,
                    &entry.headers,
                    &entry.payload,
                    entry.stored_at,
                    &here,
                    &peal.ids,
                );
                if let Some(job) = job.ok().filter(|job| jobs.contains(&job.id)) {
                    let (at, class) = (entry.stored_at, job.class);
                    lines.push(format!(
                        "{} {at} stored in {here} as #{}, {class}",
                        job.id, entry.sequence
                    ));
                }
            }
        }
        for batch in receipts(peal).await? {
            for receipt in batch.receipts.iter().filter(|receipt| jobs.contains(&receipt.job)) {
                let (job, state, attempt) = (receipt.job, receipt.state, receipt.attempt);
                lines.push(format!(
                    "{job} {} {state} by {}, attempt {attempt}",
                    receipt.at, batch.writer
                ));
            }
        }
        lines.sort();
        Ok(lines)
    }

    /// Reads repeatedly until every job is settled, at most for `within`.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn read_settled(peal: &Peal, within: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + within;
        loop {
            let audit = Self::read(peal).await?;
            if audit.equation().is_settled() || Instant::now() >= deadline {
                return Ok(audit);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// The ledger equation at the time of reading.
    pub fn equation(&self) -> Equation {
        self.report.total()
    }
}

/// The receipts of all regions, one region after the other.
async fn receipts(peal: &Peal) -> anyhow::Result<Vec<Batch>> {
    let mut batches = Vec::new();
    for region in &peal.regions {
        let js = connect::jetstream(peal.connect(&region.name).await?);
        for entry in read_all(&js, topology::RECEIPTS, &subject::receipt_filter(&region.name.parse()?)).await? {
            batches.push(serde_json::from_slice(&entry.payload)?);
        }
    }
    Ok(batches)
}

async fn read_all(js: &jetstream::Context, stream: &str, filter: &str) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    follow::read(js, stream, filter, Start::Sequence(1), |entry| {
        entries.push(entry.clone())
    })
    .await?;
    Ok(entries)
}
