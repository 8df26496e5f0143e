//! `testbed mail`: Peal's SMTP client against any mail server, to check it against foreign implementations.

use std::{collections::BTreeMap, io::Write as _, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use futures::{StreamExt, stream};
use serde_json::json;
use shared::{
    address::Address,
    clock::Clock,
    content::{Content, email::Email, push::Push},
    id::AppId,
    job::Job,
    provider::{
        Credential, Provider,
        smtp::{self, Tls},
    },
    testing,
};

use edge_worker::providers::{self, Attempt, Attempted, Message, Providers, Recorded, Renditions};

use crate::push::name;

/// Sends mails and prints the number of each outcome as JSON.
#[derive(Clone, Debug, clap::Args)]
pub struct MailArgs {
    /// The server's host, which its certificate must name.
    #[arg(long)]
    pub host: String,
    /// The server's port.
    #[arg(long)]
    pub port: u16,
    /// Whether TLS begins with the first byte, instead of after STARTTLS.
    #[arg(long)]
    pub tls: bool,
    /// The certificate authority to trust, a PEM file.
    #[arg(long)]
    pub ca: PathBuf,
    /// The user.
    #[arg(long, requires = "password")]
    pub user: Option<String>,
    /// The user's password.
    #[arg(long)]
    pub password: Option<String>,
    /// A key that signs, as `domain:selector:file`.
    #[arg(long)]
    pub dkim: Vec<String>,
    /// Where bounces go; each mail gets an address of its own there.
    #[arg(long)]
    pub bounces: Option<String>,
    /// The recipient.
    #[arg(long)]
    pub to: String,
    /// The content of the mails: a file with the JSON of `email` as in a notification.
    #[arg(long)]
    pub email: PathBuf,
    /// The number of mails.
    #[arg(long, default_value_t = 1)]
    pub count: usize,
    /// The number of mails in flight at one time.
    #[arg(long, default_value_t = 1)]
    pub together: usize,
}

/// Sends the mails.
///
/// # Errors
/// When a file cannot be read, the credential breaks a rule, or standard output is closed.
pub async fn run(args: MailArgs) -> anyhow::Result<ExitCode> {
    let mut settings = providers::Settings::default();
    settings.smtp.ca_file = Some(args.ca.clone());
    let providers = Providers::new(&settings, Clock::system())?;
    let app: AppId = "shop".parse()?;
    providers.configure(&app, vec![Credential::Smtp(credential(&args)?)])?;
    let email: Email = serde_json::from_slice(&std::fs::read(&args.email)?)?;
    let address = testing::address(&app, Provider::Smtp, &args.to);
    let content = Content::Email(Arc::new(email));
    let attempts: Vec<Attempted> = stream::iter(0..args.count)
        .map(|number| mail(&providers, &app, &content, &address, number))
        .buffer_unordered(args.together.max(1))
        .collect()
        .await;
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for attempted in &attempts {
        *outcomes.entry(name(&attempted.outcome)).or_default() += 1;
    }
    writeln!(std::io::stdout(), "{}", json!({ "outcomes": outcomes }))?;
    Ok(ExitCode::SUCCESS)
}

fn credential(args: &MailArgs) -> anyhow::Result<smtp::Credential> {
    let key = |text: &String| {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().context("a key is domain:selector:file");
        Ok(smtp::Dkim {
            domain: next()?.to_owned(),
            selector: next()?.to_owned(),
            private_key: std::fs::read_to_string(next()?)?.into(),
        })
    };
    Ok(smtp::Credential {
        host: args.host.clone(),
        port: Some(args.port.try_into()?),
        tls: if args.tls { Tls::Implicit } else { Tls::StartTls },
        user: args.user.clone(),
        password: args.password.clone().map(Into::into),
        bounces: args.bounces.as_deref().map(str::parse).transpose()?,
        verp: args.bounces.is_some(),
        sns_topic: None,
        dkim: args.dkim.iter().map(key).collect::<anyhow::Result<_>>()?,
        connections: None,
        hello: None,
    })
}

async fn mail(providers: &Providers, app: &AppId, content: &Content, address: &Address, number: usize) -> Attempted {
    let job = Arc::new(Job {
        content: content.clone(),
        ..testing::job(
            app,
            &format!("conformance-{number}"),
            Push::default(),
            Clock::system().now(),
        )
    });
    let message = Message::new(job.clone(), Renditions::default());
    let attempt = Attempt {
        app,
        address,
        delivery: job.delivery(address.id),
        number: 1,
        message: &message,
        expires_at: job.expires_at(),
        handover: &Recorded,
    };
    providers.deliver(attempt).await
}
