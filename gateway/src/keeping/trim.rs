//! Trims the intakes: a message that was worked off stays for as long as its id must be known, and then goes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use async_nats::jetstream;
use shared::{
    id::AppId,
    nats::{intake, topology::DUPLICATE_WINDOW},
};
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

/// How often the intakes are trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(15);

/// How far an intake was worked off at earlier times, the oldest first. What was worked off by then was stored before.
type Positions = VecDeque<(Instant, u64)>;

/// Trims the intakes of `apps` until the process ends. All gateways of a region do so.
pub(crate) async fn run(js: jetstream::Context, apps: watch::Receiver<BTreeSet<AppId>>) {
    let mut positions: BTreeMap<AppId, Positions> = BTreeMap::new();
    let mut ticks = interval(TRIM_EVERY);
    loop {
        ticks.tick().await;
        let apps = apps.borrow().clone();
        positions.retain(|app, _| apps.contains(app));
        for app in apps {
            let former = positions.entry(app.clone()).or_default();
            let now = Instant::now();
            match intake::trim(&js, &app, forgettable(former, now)).await {
                Ok(done) => former.push_back((now, done)),
                Err(error) => tracing::debug!(%app, %error, "an intake could not be trimmed; retrying"),
            }
        }
    }
}

/// Removes the positions that are older than the window in which ids must be known, and returns the newest of them.
fn forgettable(former: &mut Positions, now: Instant) -> Option<u64> {
    let is_old = |(at, _): &(Instant, u64)| now.duration_since(*at) > DUPLICATE_WINDOW;
    let old = former.iter().take_while(|position| is_old(position)).count();
    former.drain(..old).next_back().map(|(_, position)| position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_worked_off_before_the_window_is_forgotten() {
        let start = Instant::now();
        let mut former: Positions = (0..20)
            .map(|number| (start + TRIM_EVERY * number, u64::from(number)))
            .collect();
        assert_eq!(forgettable(&mut former, start + DUPLICATE_WINDOW), None);
        let later = start + DUPLICATE_WINDOW + TRIM_EVERY * 3 + Duration::from_secs(1);
        assert_eq!(forgettable(&mut former, later), Some(3));
        assert_eq!((forgettable(&mut former, later), former.len()), (None, 16));
    }
}
