//! `testbed push`: Peal's APNs client against any HTTP/2 server, to check it against foreign implementations.

use std::{collections::BTreeMap, io::Write as _, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use edge_worker::providers::{self, Attempt, Attempted, Message, Outcome, Providers, Renditions, apns};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::json;
use shared::{
    clock::Clock,
    content::push::Push,
    id::AppId,
    job::Job,
    provider::{self, Credential, Provider},
    testing,
};

use crate::providers::ApnsKey;

/// Sends pushes to the device tokens 00000000, 00000001 and so on, and prints the number of each outcome as JSON.
#[derive(Clone, Debug, clap::Args)]
pub struct PushArgs {
    /// The server, as `host:port`.
    #[arg(long)]
    pub apns: String,
    /// The certificate authority to trust, a PEM file.
    #[arg(long)]
    pub ca: PathBuf,
    /// The number of pushes.
    #[arg(long, default_value_t = 1)]
    pub count: usize,
    /// The number of pushes in flight at one time.
    #[arg(long, default_value_t = 1)]
    pub together: usize,
    /// The maximum number of connections.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// The length of the title of each push, bytes.
    #[arg(long, default_value_t = 4)]
    pub text: usize,
    /// How long to wait for the answer to a push, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    pub timeout_ms: u64,
}

/// Sends the pushes.
///
/// # Errors
/// When the certificate authority cannot be read, or standard output is closed.
pub async fn run(args: PushArgs) -> anyhow::Result<ExitCode> {
    let settings = providers::Settings {
        apns: apns::Settings {
            production: vec![args.apns],
            ca_file: Some(args.ca),
            connections: args.connections,
            timeout_ms: args.timeout_ms,
            ..apns::Settings::default()
        },
        ..providers::Settings::default()
    };
    let clock = Clock::system();
    let providers = Providers::new(&settings, clock.clone())?;
    let app: AppId = "shop".parse()?;
    let key = ApnsKey::generate("PEALTEAM01", "PEALKEY001")?;
    let credential = Credential::Apns(provider::apns::Credential {
        team_id: key.team_id.clone(),
        key_id: key.key_id.clone(),
        topic: "com.example.shop".into(),
        private_key: key.pem.clone().into(),
    });
    providers.configure(&app, vec![credential])?;
    let alert = Push {
        title: Some("x".repeat(args.text)),
        ..Push::default()
    };
    let job = Arc::new(testing::job(&app, "conformance", alert, clock.now()));
    let attempts: Vec<Attempted> = stream::iter(0..args.count)
        .map(|number| push(&providers, &job, number))
        .buffer_unordered(args.together.max(1))
        .collect()
        .await;
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for attempted in &attempts {
        *outcomes.entry(name(&attempted.outcome)).or_default() += 1;
    }
    let slowest = attempts.iter().map(|attempted| attempted.took).max();
    let summary = json!({ "outcomes": outcomes, "slowest_ms": slowest.unwrap_or(Duration::ZERO).as_millis() });
    writeln!(std::io::stdout(), "{summary}")?;
    Ok(ExitCode::SUCCESS)
}

async fn push(providers: &Providers, job: &Arc<Job>, number: usize) -> Attempted {
    let address = testing::address(&job.app, Provider::Apns, &format!("{number:08x}"));
    let message = Message::new(job.clone(), Renditions::default());
    let attempt = Attempt {
        app: &job.app,
        address: &address,
        delivery: job.delivery(address.id),
        number: 1,
        message: &message,
        expires_at: job.expires_at(),
    };
    providers.deliver(attempt).await
}

pub(crate) fn name(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Accepted { .. } => "accepted".into(),
        Outcome::RetryLater { reason, .. } => format!("retry_later {reason}"),
        Outcome::AddressGone { reason, since } => {
            let since = since.map(Timestamp::as_millisecond).unwrap_or_default();
            format!("address_gone {reason} {since}")
        }
        Outcome::Rejected { reason } => format!("rejected {reason}"),
        Outcome::Ambiguous { reason } => format!("ambiguous {reason}"),
        Outcome::CredentialTrouble { reason, .. } => format!("credential_trouble {reason}"),
        Outcome::EndpointTrouble { reason, .. } => format!("endpoint_trouble {reason}"),
        Outcome::NotYet { reason, .. } => format!("not_yet {reason}"),
    }
}
