//! An open loop: each request starts at its time, whether or not earlier ones have been answered.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};

use crate::bench::figures::micros;

/// Calls `fire` with the numbers from 0 on, `rate` times a second, and waits for all. Returns the latency of each,
/// microseconds. A latency counts from the intended time, so that it includes a late start and the wait for a free
/// connection.
pub(super) async fn at<F>(rate: f64, duration: Duration, fire: impl Fn(usize) -> F) -> anyhow::Result<Vec<u32>>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (due_sender, mut due_times) = mpsc::unbounded_channel();
    let pacer = thread::spawn(move || send_due_times(rate, duration, &due_sender));
    let mut in_flight = JoinSet::new();
    let mut number = 0;
    while let Some(due) = due_times.recv().await {
        let firing = fire(number);
        number += 1;
        in_flight.spawn(async move {
            firing.await?;
            anyhow::Ok(micros(Instant::now().saturating_duration_since(due)))
        });
    }
    drop(pacer.join());
    in_flight.join_all().await.into_iter().collect()
}

/// Sends the time of each request when it is due. It runs on its own thread, which wakes within tens of microseconds;
/// the runtime's timers have a resolution of 1 ms.
fn send_due_times(rate: f64, duration: Duration, due_times: &mpsc::UnboundedSender<Instant>) {
    let began = Instant::now();
    for number in 0_u32.. {
        let after = Duration::from_secs_f64(f64::from(number) / rate.max(1.0));
        if after >= duration {
            return;
        }
        let at = began + after;
        loop {
            let wait = at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            thread::park_timeout(wait);
        }
        if due_times.send(at).is_err() {
            return;
        }
    }
}
