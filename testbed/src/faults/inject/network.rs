//! Faults of links, and regions that are cut off.

use std::time::Duration;

use rand::{Rng, seq::SliceRandom};
use tokio::time::{Instant, sleep, sleep_until};

use super::Injector;
use crate::{
    faults::{figures::Disturbance, isolation::Isolation},
    links::{Between, Direction, Trouble},
    peal::Peal,
    providers::now_ms,
};

impl Injector {
    /// Makes trouble on all links of a kind in `region`, or on one random link of that kind if no region is given.
    pub(super) async fn trouble(
        &mut self,
        between: Between,
        trouble: &Trouble,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut meant: Vec<usize> = (0..self.peal.links.len())
            .filter(|at| {
                let link = &self.peal.links[*at];
                link.between == between && region.is_none_or(|region| link.region == region)
            })
            .collect();
        if region.is_none() && !meant.is_empty() {
            meant = vec![meant[self.random.random_range(0..meant.len())]];
        }
        let Some(first) = meant.first() else { return Ok(()) };
        let region = self.peal.links[*first].region.clone();
        for at in &meant {
            self.peal.links[*at].set(trouble)?;
        }
        let from = now_ms();
        sleep(hold).await;
        let to = now_ms();
        for at in &meant {
            self.peal.links[*at].set(&Trouble::None)?;
        }
        self.phases.disturbances.push(Disturbance { region, from, to });
        Ok(())
    }

    /// Lets no packet pass between a region and the rest of the mesh. Returns what failed there meanwhile or afterwards.
    pub(super) async fn isolate(
        &mut self,
        backlog: usize,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<Vec<String>> {
        let region = self.choose_region(region);
        let set = |peal: &Peal, trouble: &Trouble| {
            let mut links = peal.links.iter();
            links.try_for_each(|link| match link.between {
                Between::Regions if link.touches(&region) => link.set(trouble),
                _ => Ok(()),
            })
        };
        set(&self.peal, &Trouble::Hold(Direction::Both))?;
        let (from, end) = (now_ms(), Instant::now() + hold);
        let isolation = Isolation::new(&self.peal, &self.callers, &region, self.phases.disturbances.len())?;
        let mut failures = isolation.meanwhile(end).await?;
        let chosen = self.callers.recipients_where(|_, recipient| recipient.home != region);
        let name = format!("backlog{}", self.phases.disturbances.len());
        self.callers.send_burst(&name, &region, &chosen, backlog).await;
        sleep_until(end).await;
        let to = now_ms();
        set(&self.peal, &Trouble::None)?;
        failures.extend(isolation.afterwards().await?);
        self.phases.disturbances.push(Disturbance { region, from, to });
        Ok(failures)
    }

    /// Cuts all links one by one, then restores them one by one, in random orders.
    pub(super) async fn swizzle(&mut self, hold: Duration) -> anyhow::Result<()> {
        let mut order: Vec<usize> = (0..self.peal.links.len()).collect();
        let pause = hold / u32::try_from(2 * order.len().max(1)).unwrap_or(1);
        for trouble in [Trouble::Cut, Trouble::None] {
            order.shuffle(&mut self.random);
            for at in &order {
                self.peal.links[*at].set(&trouble)?;
                sleep(pause).await;
            }
        }
        Ok(())
    }
}
