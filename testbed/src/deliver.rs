//! `testbed deliver`: Peal's client of any provider against any server, to check it against what others wrote.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use edge_worker::providers::{Attempt, Attempted, Message, Outcome, Providers, Recorded, Renditions, Settings};
use serde_json::{Map, Value, json};
use shared::{
    address::{Address, Members},
    clock::Clock,
    content::{Content, push::Push},
    id::AppId,
    id_key::IdKey,
    job::Job,
    provider::{Credential, Provider},
    testing,
};

use crate::push::name;

/// Sends one message, and prints its outcome as JSON.
#[derive(Clone, Debug, clap::Args)]
pub struct DeliverArgs {
    /// The provider.
    #[arg(long)]
    pub provider: Provider,
    /// The worker's settings of this provider, JSON.
    #[arg(long)]
    pub settings: String,
    /// The credential, JSON.
    #[arg(long)]
    pub credential: String,
    /// The address, JSON.
    #[arg(long)]
    pub address: String,
    /// The content, as in a notification: JSON with one member, that of the channel.
    #[arg(long)]
    pub content: String,
    /// How often it is sent.
    #[arg(long, default_value_t = 1)]
    pub times: u32,
}

/// Sends the message.
///
/// # Errors
/// When an argument is malformed, or standard output is closed.
pub async fn run(args: DeliverArgs) -> anyhow::Result<ExitCode> {
    let object = |text: &str, what: &'static str| serde_json::from_str::<Map<String, Value>>(text).context(what);
    let settings = json!({ args.provider.as_str(): object(&args.settings, "settings")? });
    let settings: Settings = serde_json::from_value(settings).context("settings")?;
    let clock = Clock::system();
    let providers = Providers::new(&settings, clock.clone())?;
    let app: AppId = "shop".parse()?;
    let credential = Credential::read(args.provider, object(&args.credential, "credential")?)
        .map_err(|invalid| anyhow::anyhow!("credential: {invalid}"))?;
    providers.configure(&app, vec![credential])?;
    let members: Members = serde_json::from_str(&args.address).context("address")?;
    let address = members.address(&IdKey::unkeyed(), &app, clock.now())?;
    let content = content(object(&args.content, "content")?)?;
    for number in 1..=args.times {
        let attempted = deliver(&providers, &app, &address, content.clone(), "event", number).await;
        let provider_id = match &attempted.outcome {
            Outcome::Accepted { provider_id } => provider_id.clone(),
            _ => None,
        };
        let line =
            json!({ "outcome": name(&attempted.outcome), "provider_id": provider_id, "status": attempted.status });
        writeln!(std::io::stdout(), "{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn content(mut members: Map<String, Value>) -> anyhow::Result<Content> {
    let mut read = |name: &str| members.remove(name);
    Ok(if let Some(push) = read("push") {
        Content::Push(Arc::new(serde_json::from_value(push)?))
    } else if let Some(email) = read("email") {
        Content::Email(Arc::new(serde_json::from_value(email)?))
    } else if let Some(sms) = read("sms") {
        Content::Sms(Arc::new(serde_json::from_value(sms)?))
    } else {
        let webhook = read("webhook").context("content: push, email, sms or webhook must be given")?;
        Content::Webhook(Arc::new(serde_json::from_value(webhook)?))
    })
}

/// Makes one attempt to deliver `content`, the content of `event`, to an address.
pub(crate) async fn deliver(
    providers: &Providers,
    app: &AppId,
    address: &Address,
    content: Content,
    event: &str,
    number: u32,
) -> Attempted {
    let job = Arc::new(Job {
        content,
        ..testing::job(app, event, Push::default(), Clock::system().now())
    });
    let message = Message::new(job.clone(), Renditions::default());
    let attempt = Attempt {
        app: &job.app,
        address,
        delivery: job.delivery(address.id),
        number,
        message: &message,
        expires_at: job.expires_at(),
        handover: &Recorded,
    };
    providers.deliver(attempt).await
}
