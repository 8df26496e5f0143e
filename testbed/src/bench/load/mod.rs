//! The load process. It reads one order from standard input, carries it out, and writes the result to standard output,
//! both as JSON.

mod connection;
mod door;
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
use shared::{nats::connect::Nats, provider::Provider};
use tokio::{io::AsyncWriteExt, process::Command};

pub(super) use self::{connection::GatewayClient, jetstream::prepare};
use crate::process::cpu_of;

/// What a load process has to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) endpoints: Endpoints,
    pub(super) work: Work,
    pub(super) duration: Duration,
}

/// The addresses and credentials that a load process needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Endpoints {
    /// The region's nats-server.
    pub(super) nats: Nats,
    /// The gateway's HTTP address.
    pub(super) gateway: SocketAddr,
    /// An API key.
    pub(super) key: String,
    /// The APNs simulator's port.
    pub(super) apns: u16,
    /// The certificate authority of the simulator, PEM.
    pub(super) ca_pem: String,
    /// A provider token that the simulator accepts.
    pub(super) provider_token: String,
}

/// One kind of load.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Work {
    /// Publish, pull and acknowledge without Peal.
    JetStream,
    /// Publish without Peal, one message at a time, with up to `window` of them unacknowledged.
    PublishSingly { window: usize },
    /// Publish in batches that share a flush, as a gateway does, with up to `window` messages unacknowledged.
    PublishBatched { window: usize },
    /// Send pushes without Peal.
    Sender,
    /// Send requests to the gateway, one after another on each connection, each for this many recipients.
    Gateway {
        connections: usize,
        recipients: usize,
        /// Carries them.
        provider: Provider,
    },
    /// Send this many notifications a second to the gateway, without waiting for answers.
    Accept { rate: f64 },
    /// Publish to the intake of the app, this many notifications in each message.
    Door { many: usize },
    /// Publish jobs to the workers, as services of the former version do.
    FormerPublish,
    /// Publish this many messages a second, without waiting for answers.
    PubAck { rate: f64 },
}

/// The result of an order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// Notifications that were acknowledged or accepted.
    pub(super) count: u64,
    /// When the work began, microseconds since the epoch.
    pub(super) began_us: i64,
    /// How long the work took.
    pub(super) took: Duration,
    /// CPU time that the load process used.
    pub(super) cpu: Duration,
    /// Requests that were repeated because the gateway did not accept them.
    pub(super) repeated: u64,
    /// In an open loop, from the intended time of each request to its answer, microseconds.
    pub(super) latencies_us: Vec<u32>,
}

/// Runs `program` as a load process and waits for its result.
pub(super) async fn run(program: &Path, order: &Order) -> anyhow::Result<Done> {
    let mut child = Command::new(program)
        .args(["bench", "--load"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting the load process")?;
    let mut stdin = child.stdin.take().context("the load process has no standard input")?;
    stdin.write_all(&serde_json::to_vec(order)?).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("the load process ({:?}) ended with {}", order.work, output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Carries out the order on standard input: the main function of a load process.
pub(super) async fn serve_order() -> anyhow::Result<()> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let Order {
        endpoints,
        work,
        duration,
    } = serde_json::from_slice(&text)?;
    let done = match work {
        Work::JetStream => Box::pin(jetstream::run(&endpoints, duration)).await,
        Work::PublishSingly { window } => Box::pin(jetstream::run_singly(&endpoints, duration, window)).await,
        Work::PublishBatched { window } => Box::pin(jetstream::run_batched(&endpoints, duration, window)).await,
        Work::Sender => Box::pin(sender::run(&endpoints, duration)).await,
        Work::Gateway {
            connections,
            recipients,
            provider,
        } => gateway::run(&endpoints, duration, connections, recipients, provider).await,
        Work::Accept { rate } => gateway::run_paced(&endpoints, duration, rate).await,
        Work::Door { many } => Box::pin(door::run(&endpoints, duration, many)).await,
        Work::FormerPublish => Box::pin(door::run_former(&endpoints, duration)).await,
        Work::PubAck { rate } => jetstream::run_paced(&endpoints, duration, rate).await,
    }?;
    let mut out = std::io::stdout();
    out.write_all(&serde_json::to_vec(&done)?)?;
    Ok(out.flush()?)
}

/// Measures the time and CPU time of the work.
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

    /// Whether `duration` has passed since the start.
    fn is_over(&self, duration: Duration) -> bool {
        self.began.elapsed() >= duration
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
