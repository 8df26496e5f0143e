//! Waiting for a leader.
//!
//! Servers that have just started need some seconds to elect one, longer on a busy machine. Until then JetStream answers
//! "temporarily unavailable" (503, error code 10008), or nobody answers. Whatever a program asks once waits here.

use std::{fmt::Display, time::Duration};

use tokio::time::{Instant, sleep};

/// How long a leader is waited for.
const LEADER_WITHIN: Duration = Duration::from_secs(30);

/// The pause between two questions.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// The answer to `ask`, which is repeated while its error `may_pass`, for at most half a minute. `what` completes the log
/// line "waiting for …".
///
/// # Errors
/// The last error of `ask`.
pub async fn patiently<T, E: Display>(
    what: &str,
    may_pass: impl Fn(&E) -> bool,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let begun = Instant::now();
    let mut is_logged = false;
    loop {
        // Boxed, so that callers stay small.
        match Box::pin(ask()).await {
            Err(error) if may_pass(&error) && begun.elapsed() < LEADER_WITHIN => {
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::warn!(%error, "waiting for {what}: the servers may still be electing a leader");
                }
            }
            answer => return answer,
        }
        sleep(ASK_AGAIN_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_error_that_may_pass_is_waited_for_and_another_is_told_at_once() {
        let asked = async |until: u32, may_pass: bool| {
            let mut asked = 0;
            let answer = patiently(
                "the hub",
                |_: &&str| may_pass,
                async || {
                    asked += 1;
                    if asked < until { Err("503") } else { Ok(()) }
                },
            );
            (answer.await, asked)
        };
        assert_eq!(asked(20, true).await, (Ok(()), 20));
        assert_eq!(asked(20, false).await, (Err("503"), 1));
        assert_eq!(asked(u32::MAX, true).await.0, Err("503"), "the patience ends");
    }
}
