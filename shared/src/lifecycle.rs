//! Two-step shutdown: finish work in progress, then drop what is left.

use std::{future::Future, time::Duration};

use tokio::{signal::unix::SignalKind, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Shared by every task of a process. The first signal asks them to take nothing new and finish; a second signal, or the
/// end of the grace period, ends the process regardless.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    finish: CancellationToken,
    tasks: TaskTracker,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every task finished.
    Clean,
    /// Tasks were still busy at the end of the grace period, or a second signal came.
    CutOff,
    /// A task ended before shutdown was requested.
    Crashed,
}

impl Lifecycle {
    /// Runs `task` as part of the process. If it ends before shutdown was requested, the whole process shuts down.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let finish = self.finish.clone();
        self.tasks.spawn(async move {
            task.await;
            if !finish.is_cancelled() {
                tracing::error!(task = name, "task ended early, shutting down");
                finish.cancel();
            }
        });
    }

    /// Runs `task`, which never ends by itself, until shutdown begins; then drops it.
    pub fn spawn_endless(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let finish = self.finish.clone();
        self.spawn(name, async move {
            finish.run_until_cancelled(task).await;
        });
    }

    /// Runs `task` to its end. Shutdown waits for it; its end does not cause one.
    pub fn spawn_job(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Resolves when shutdown begins: take nothing new from then on.
    pub async fn finishing(&self) {
        self.finish.cancelled().await;
    }

    /// Whether shutdown has begun.
    pub fn is_finishing(&self) -> bool {
        self.finish.is_cancelled()
    }

    /// Begins shutdown: asks every task to finish.
    pub fn finish(&self) {
        self.finish.cancel();
    }

    /// Begins shutdown and waits up to `grace` for every task.
    pub async fn finish_within(&self, grace: Duration) -> End {
        self.finish.cancel();
        self.tasks.close();
        if timeout(grace, self.tasks.wait()).await.is_ok() {
            End::Clean
        } else {
            End::CutOff
        }
    }

    /// Waits for SIGTERM or SIGINT, or for a task to end early; then finishes within `grace`.
    ///
    /// # Errors
    /// When the process cannot install signal handlers.
    pub async fn run(&self, grace: Duration) -> std::io::Result<End> {
        let mut term = tokio::signal::unix::signal(SignalKind::terminate())?;
        let mut int = tokio::signal::unix::signal(SignalKind::interrupt())?;
        let crashed = tokio::select! {
            _ = term.recv() => false,
            _ = int.recv() => false,
            () = self.finish.cancelled() => true,
        };
        tracing::info!("finishing");
        let end = tokio::select! {
            end = self.finish_within(grace) => end,
            _ = term.recv() => End::CutOff,
            _ = int.recv() => End::CutOff,
        };
        Ok(if crashed { End::Crashed } else { end })
    }
}
