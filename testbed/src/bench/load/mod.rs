//! The process that makes load. It is told what to do on standard input, does one thing, and says on standard output
//! how that went.

mod connection;
mod gateway;
mod jetstream;
mod pace;
mod sender;

use std::{
    io::{Read, Write},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use shared::nats::connect::Nats;
use tokio::{io::AsyncWriteExt, process::Command};

pub(super) use self::{connection::Door, jetstream::prepare};
use crate::process::cpu_of;

/// What a load process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) target: Target,
    pub(super) work: Work,
    pub(super) lasts: Duration,
}

/// Where everything is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Target {
    /// The region's nats-server.
    pub(super) nats: Nats,
    /// Where the gateway serves HTTP.
    pub(super) gateway: SocketAddr,
    /// An API key.
    pub(super) key: String,
    /// The simulator's port.
    pub(super) apns: u16,
    /// Whom the simulator's clients trust.
    pub(super) ca_pem: String,
    /// What the simulator's clients show.
    pub(super) provider_token: String,
}

/// What to do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Work {
    /// Publish, pull and acknowledge without Peal.
    JetStream,
    /// Publish without Peal, each message by itself, `window` of them at a time.
    Singly { window: usize },
    /// Publish as a gateway that shares flushes to the disk, `window` messages at a time.
    Together { window: usize },
    /// Push without Peal.
    Sender,
    /// Send requests to the gateway, one after another on each connection, each for this many recipients.
    Gateway { connections: usize, recipients: usize },
    /// Send this many notifications a second to the gateway, without waiting for answers.
    Accept { rate: f64 },
    /// Publish this many messages a second, without waiting for answers.
    PubAck { rate: f64 },
}

/// How it went.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// Notifications that were handed over for sure.
    pub(super) count: u64,
    /// When the first was, microseconds since the epoch.
    pub(super) began_us: i64,
    /// Until the work was done.
    pub(super) took: Duration,
    /// CPU time of this process meanwhile.
    pub(super) cpu: Duration,
    /// Requests that had to be repeated.
    pub(super) repeated: u64,
    /// From the intended time to the answer, where that was measured.
    pub(super) latencies_us: Vec<u32>,
}

/// Starts a load process of `program` and waits until it is done.
pub(super) async fn start(program: &Path, order: &Order) -> anyhow::Result<Done> {
    let mut child = Command::new(program)
        .args(["bench", "--load"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start the load")?;
    let mut stdin = child.stdin.take().context("the load has no standard input")?;
    stdin.write_all(&serde_json::to_vec(order)?).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("the load ({:?}) ended with {}", order.work, output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Makes load as told.
pub(super) async fn make() -> anyhow::Result<()> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let Order { target, work, lasts } = serde_json::from_slice(&text)?;
    let done = match work {
        Work::JetStream => Box::pin(jetstream::run(&target, lasts)).await,
        Work::Singly { window } => Box::pin(jetstream::run_singly(&target, lasts, window)).await,
        Work::Together { window } => Box::pin(jetstream::run_together(&target, lasts, window)).await,
        Work::Sender => Box::pin(sender::run(&target, lasts)).await,
        Work::Gateway {
            connections,
            recipients,
        } => gateway::run(&target, lasts, connections, recipients).await,
        Work::Accept { rate } => gateway::run_paced(&target, lasts, rate).await,
        Work::PubAck { rate } => jetstream::run_paced(&target, lasts, rate).await,
    }?;
    let mut out = std::io::stdout();
    out.write_all(&serde_json::to_vec(&done)?)?;
    Ok(out.flush()?)
}

/// Runs from the first notification to the last.
#[derive(Debug)]
struct Stopwatch {
    began_us: i64,
    began: std::time::Instant,
    cpu: Duration,
}

impl Stopwatch {
    fn start() -> Self {
        Self {
            began_us: shared::clock::Clock::system().now().as_microsecond(),
            began: std::time::Instant::now(),
            cpu: cpu_of(std::process::id()),
        }
    }

    /// Whether it has run for `lasts`.
    fn is_over(&self, lasts: Duration) -> bool {
        self.began.elapsed() >= lasts
    }

    fn stop(&self, count: u64) -> Done {
        Done {
            count,
            began_us: self.began_us,
            took: self.began.elapsed(),
            cpu: cpu_of(std::process::id()).saturating_sub(self.cpu),
            ..Done::default()
        }
    }
}
