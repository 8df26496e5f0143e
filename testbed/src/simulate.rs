//! `testbed simulate`: the provider simulators as a program, for clients in any language.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde_json::{Map, Value};
use shared::provider::Provider;

use crate::providers::apns::ApnsArgs;
use crate::providers::fcm::FcmArgs;
use crate::providers::mailchimp::MailchimpArgs;
use crate::providers::sendgrid::SendGridArgs;
use crate::providers::smtp::SmtpArgs;
use crate::providers::twilio::TwilioArgs;
use crate::providers::vonage::VonageArgs;
use crate::providers::web_push::WebPushArgs;
use crate::providers::webhook::WebhookArgs;
use crate::providers::{
    Admin, Apns, ApnsConfig, Authority, Fcm, FcmConfig, LogMode, Mailchimp, MailchimpConfig, Receivers,
    ReceiversConfig, Scripts, SendGrid, SendGridConfig, Simulation, Simulators, Smtp, SmtpConfig, Twilio, TwilioConfig,
    Vonage, VonageConfig, WebPush, WebPushConfig, now_s,
};

/// Simulates the providers until Ctrl-C.
#[derive(Clone, Debug, clap::Args)]
pub struct SimulateArgs {
    /// The directory that gets the certificate, the keys and ready-made tokens; created if it does not exist.
    #[arg(long)]
    pub dir: PathBuf,
    /// The options for APNs.
    #[command(flatten)]
    pub apns: ApnsArgs,
    /// The options for FCM.
    #[command(flatten)]
    pub fcm: FcmArgs,
    /// The options for web push.
    #[command(flatten)]
    pub web_push: WebPushArgs,
    /// The options for SMTP.
    #[command(flatten)]
    pub smtp: SmtpArgs,
    /// The options for `SendGrid`.
    #[command(flatten)]
    pub sendgrid: SendGridArgs,
    /// The options for Mailchimp.
    #[command(flatten)]
    pub mailchimp: MailchimpArgs,
    /// The options for Twilio.
    #[command(flatten)]
    pub twilio: TwilioArgs,
    /// The options for Vonage.
    #[command(flatten)]
    pub vonage: VonageArgs,
    /// The options for receivers of webhooks.
    #[command(flatten)]
    pub webhook: WebhookArgs,
    /// Where the admin port listens.
    #[arg(long, default_value = "127.0.0.1:8025")]
    pub admin: SocketAddr,
    /// A JSON file with scripted answers, `{"apns": {"rules": [...]}, "fcm": {…}, "web_push": {…}}`.
    #[arg(long)]
    pub script: Option<PathBuf>,
    /// Keeps only counters, no pushes: for load tests.
    #[arg(long)]
    pub counting: bool,
}

/// Runs all simulators and the admin port until Ctrl-C.
pub async fn run(args: SimulateArgs) -> anyhow::Result<()> {
    let mut scripts = args
        .script
        .as_deref()
        .map_or_else(|| Ok(Scripts::default()), read_scripts)?;
    let mut script_of = |provider| scripts.remove(&provider).unwrap_or_default();
    let log = if args.counting {
        LogMode::Counting
    } else {
        LogMode::default()
    };
    let authority = Authority::generate()?;
    let simulators = Arc::new(Simulators {
        apns: Apns::start(ApnsConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::Apns),
            ..args.apns.config()?
        })
        .await?,
        fcm: Fcm::start(FcmConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::Fcm),
            ..args.fcm.config()?
        })
        .await?,
        web_push: WebPush::start(WebPushConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::WebPush),
            ..args.web_push.config()
        })
        .await?,
        smtp: Smtp::start(SmtpConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::Smtp),
            ..args.smtp.config()
        })
        .await?,
        sendgrid: SendGrid::start(SendGridConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::SendGrid),
            ..args.sendgrid.config()
        })
        .await?,
        mailchimp: Mailchimp::start(MailchimpConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::Mailchimp),
            ..args.mailchimp.config()
        })
        .await?,
        twilio: Twilio::start(TwilioConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::Twilio),
            ..args.twilio.config()
        })
        .await?,
        vonage: Vonage::start(VonageConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::Vonage),
            ..args.vonage.config()
        })
        .await?,
        webhook: Receivers::start(ReceiversConfig {
            authority: Some(authority.clone()),
            log,
            script: script_of(Provider::Webhook),
            ..args.webhook.config()
        })
        .await?,
    });
    let admin = Admin::start(args.admin, Arc::clone(&simulators)).await?;
    write_files(&args.dir, &authority, &simulators, &admin)?;

    let mut out = std::io::stdout();
    out.write_all(describe(&args.dir, &simulators, &admin)?.as_bytes())?;
    out.flush()?;
    tokio::signal::ctrl_c().await?;
    simulators.stop().await;
    Ok(())
}

fn read_scripts(path: &Path) -> anyhow::Result<Scripts> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a script", path.display()))
}

fn write_files(dir: &Path, authority: &Authority, simulators: &Simulators, admin: &Admin) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut details: Map<String, Value> = simulators
        .all()
        .flat_map(Simulation::connection_details)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    details.insert("admin".to_owned(), format!("http://{}", admin.addr()).into());
    let mut files = vec![
        ("simulators.json", format!("{:#}\n", Value::Object(details))),
        ("ca.pem", authority.pem().to_owned()),
    ];
    for simulator in simulators.all() {
        files.extend(simulator.files(now_s())?);
    }
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn describe(dir: &Path, simulators: &Simulators, admin: &Admin) -> anyhow::Result<String> {
    let mut text = String::new();
    for simulator in simulators.all() {
        writeln!(text, "{}", simulator.summary(dir))?;
    }
    writeln!(
        text,
        "admin  http://{}  GET /log /stats /script, PUT /script, POST /go-away /cut",
        admin.addr()
    )?;
    writeln!(text, "trust  {}/ca.pem\n", dir.display())?;
    for simulator in simulators.all() {
        text.push_str(&simulator.example(dir));
    }
    writeln!(
        text,
        "curl -X PUT -H 'content-type: application/json' http://{}/script \\",
        admin.addr()
    )?;
    writeln!(
        text,
        "  -d '{{\"apns\":{{\"rules\":[{{\"token\":\"beef\",\"answer\":{{\"reason\":\"Unregistered\"}}}}]}}}}'"
    )?;
    writeln!(text, "ready; Ctrl-C ends")?;
    Ok(text)
}
