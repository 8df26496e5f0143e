//! `testbed web-push`: Peal's web push client against any push service, to check it against foreign implementations.

use std::{
    fs::read_to_string,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use edge_worker::providers::{self, Attempt, Message, Providers, ReceiverSettings, Recorded, Renditions, web_push};
use jiff::Timestamp;
use serde::Deserialize;
use shared::{
    address::{Address, Target},
    clock::Clock,
    content::push::Push,
    id::AppId,
    id_key::IdKey,
    provider::{
        Credential,
        web_push::{AuthSecret, Credential as VapidCredential, PublicKey, Target as Subscription},
    },
    testing,
};

use crate::push::name;

/// Sends one push to a subscription, and prints its outcome.
#[derive(Clone, Debug, clap::Args)]
pub struct WebPushArgs {
    /// The subscription: the JSON of `PushSubscription.toJSON()`, a file.
    #[arg(long)]
    pub subscription: PathBuf,
    /// The push: the JSON of `push` in a notification, a file.
    #[arg(long)]
    pub push: PathBuf,
    /// The app's VAPID key, a file.
    #[arg(long)]
    pub key: PathBuf,
    /// The certificate authority to trust, a PEM file.
    #[arg(long)]
    pub ca: PathBuf,
}

/// `PushSubscription.toJSON()`.
#[derive(Deserialize)]
struct ToJson {
    endpoint: String,
    keys: Keys,
}

#[derive(Deserialize)]
struct Keys {
    p256dh: PublicKey,
    auth: AuthSecret,
}

/// Sends the push.
///
/// # Errors
/// When a file cannot be read, or standard output is closed.
pub async fn run(args: WebPushArgs) -> anyhow::Result<ExitCode> {
    let text = |path: &Path| read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let ToJson { endpoint, keys } = serde_json::from_str(&text(&args.subscription)?)?;
    let push: Push = serde_json::from_str(&text(&args.push)?)?;
    push.check()?;
    let port = reqwest::Url::parse(&endpoint)?
        .port_or_known_default()
        .context("a port")?;
    let settings = providers::Settings {
        web_push: web_push::Settings {
            services: vec!["localhost".into()],
            ca_file: Some(args.ca),
            ..web_push::Settings::default()
        },
        receivers: ReceiverSettings {
            ports: vec![port],
            private: vec!["127.0.0.0/8".parse()?, "::1/128".parse()?],
            ..ReceiverSettings::default()
        },
        ..providers::Settings::default()
    };
    let clock = Clock::system();
    let providers = Providers::new(&settings, clock.clone())?;
    let app: AppId = "shop".parse()?;
    let credential = VapidCredential {
        subject: "mailto:operators@example.com".into(),
        private_key: text(&args.key)?.into(),
    };
    providers.configure(&app, vec![Credential::WebPush(credential)])?;
    let target = Target::WebPush(Subscription::new(&endpoint, keys.p256dh, keys.auth)?);
    let address = Address::new(&IdKey::unkeyed(), &app, target, Timestamp::UNIX_EPOCH);
    let job = Arc::new(testing::job(&app, "conformance", push, clock.now()));
    let message = Message::new(job.clone(), Renditions::default());
    let attempt = Attempt {
        app: &app,
        address: &address,
        delivery: job.delivery(address.id),
        number: 1,
        message: &message,
        expires_at: job.expires_at(),
        handover: &Recorded,
    };
    let attempted = providers.deliver(attempt).await;
    writeln!(std::io::stdout(), "{}", name(&attempted.outcome))?;
    Ok(ExitCode::SUCCESS)
}
