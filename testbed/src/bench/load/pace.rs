//! An open loop: what is due is started, whatever became of what was started before.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};

use crate::bench::figures::micros;

/// Starts `fire` with the numbers from 0 on, `rate` a second, and waits for all. From the moment at which each was due
/// to its end, microseconds: who starts late, or waits for a free connection, is charged for it.
pub(super) async fn at<F>(rate: f64, lasts: Duration, fire: impl Fn(usize) -> F) -> anyhow::Result<Vec<u32>>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (due, mut fired) = mpsc::unbounded_channel();
    let pacer = thread::spawn(move || call(rate, lasts, &due));
    let mut under_way = JoinSet::new();
    let mut number = 0;
    while let Some(due) = fired.recv().await {
        let firing = fire(number);
        number += 1;
        under_way.spawn(async move {
            firing.await?;
            anyhow::Ok(micros(Instant::now().saturating_duration_since(due)))
        });
    }
    drop(pacer.join());
    under_way.join_all().await.into_iter().collect()
}

/// A thread of its own wakes within tens of microseconds; the timers of the runtime go by milliseconds.
fn call(rate: f64, lasts: Duration, due: &mpsc::UnboundedSender<Instant>) {
    let begun = Instant::now();
    for number in 0_u32.. {
        let after = Duration::from_secs_f64(f64::from(number) / rate.max(1.0));
        if after >= lasts {
            return;
        }
        let at = begun + after;
        loop {
            let wait = at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            thread::park_timeout(wait);
        }
        if due.send(at).is_err() {
            return;
        }
    }
}
