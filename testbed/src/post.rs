//! `testbed post`: Peal's client for webhooks against any receiver, to check it against verifiers of others.

use std::{collections::BTreeMap, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use edge_worker::providers::{self, Providers, ReceiverSettings};
use serde_json::json;
use shared::{
    address::{Address, Members},
    clock::Clock,
    content::{Content, webhook::Webhook},
    id::AppId,
    id_key::IdKey,
    provider::{Credential, webhook},
};

use crate::{deliver::deliver, push::name};

/// Posts webhooks of the type `order.paid` to a receiver, and prints the number of each outcome as JSON.
#[derive(Clone, Debug, clap::Args)]
pub struct PostArgs {
    /// The receiver. It may be in a private network.
    #[arg(long)]
    pub url: url::Url,
    /// The secret that signs, `whsec_` and base64; without it the receiver is a chat.
    #[arg(long)]
    pub secret: Option<String>,
    /// The certificate authority to trust, a PEM file.
    #[arg(long)]
    pub ca: PathBuf,
    /// The number of webhooks.
    #[arg(long, default_value_t = 1)]
    pub count: usize,
}

/// Posts the webhooks, one after another.
///
/// # Errors
/// When the certificate authority cannot be read, the receiver is malformed, or standard output is closed.
pub async fn run(args: PostArgs) -> anyhow::Result<ExitCode> {
    let port = args.url.port_or_known_default().context("the URL has a port")?;
    let settings = providers::Settings {
        webhook: providers::webhook::Settings {
            ca_file: Some(args.ca),
            ..providers::webhook::Settings::default()
        },
        receivers: ReceiverSettings {
            ports: vec![port],
            private: vec!["0.0.0.0/0".parse()?, "::/0".parse()?],
            ..ReceiverSettings::default()
        },
        ..providers::Settings::default()
    };
    let clock = Clock::system();
    let providers = Providers::new(&settings, clock.clone())?;
    let app: AppId = "shop".parse()?;
    providers.configure(&app, vec![Credential::Webhook(webhook::Credential::default())])?;
    let format = if args.secret.is_some() { "signed" } else { "chat" };
    let members = json!({ "type": "webhook", "url": args.url.as_str(), "format": format, "secret": args.secret });
    let target = serde_json::from_value::<Members>(members)?.target()?;
    let address = Address::new(&IdKey::unkeyed(), &app, target, clock.now());
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..args.count {
        let webhook = json!({ "type": "order.paid", "data": { "order": number, "note": "Grüezi 😀" }, "text": "Paid" });
        let webhook: Webhook = serde_json::from_value(webhook)?;
        let event = format!("conformance-{number}");
        let content = Content::Webhook(webhook.into());
        let attempted = deliver(&providers, &app, &address, content, &event, 1).await;
        *outcomes.entry(name(&attempted.outcome)).or_default() += 1;
    }
    writeln!(std::io::stdout(), "{}", json!({ "outcomes": outcomes }))?;
    Ok(ExitCode::SUCCESS)
}
