//! The ledger equation of a running mesh.

use std::time::Duration;

use shared::{
    id::Region,
    nats::audit::{self, Equation, Report, Scope},
};
use tokio::time::Instant;

use crate::peal::Peal;

/// What the streams of every region say.
#[derive(Debug)]
pub struct Audit {
    /// All of it.
    pub report: Report,
}

impl Audit {
    /// Reads the streams of every region to their ends.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn read(peal: &Peal) -> anyhow::Result<Self> {
        let names = peal.regions.iter().map(|region| region.name.parse());
        let regions: Vec<Region> = names.collect::<Result<_, _>>()?;
        let client = peal.connect(&peal.regions[0].name).await?;
        let report = audit::read(&client, &regions, &Scope::default()).await?;
        Ok(Self { report })
    }

    /// Reads until everything is settled, or `patience` has passed.
    ///
    /// # Errors
    /// When a region does not answer.
    pub async fn read_settled(peal: &Peal, patience: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            let audit = Self::read(peal).await?;
            if audit.equation().is_settled() || Instant::now() >= deadline {
                return Ok(audit);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// The equation at the moment of reading.
    pub fn equation(&self) -> Equation {
        self.report.total()
    }
}
