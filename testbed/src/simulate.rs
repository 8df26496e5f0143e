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
use crate::providers::{
    Admin, ApiConfig, ApnsConfig, Authority, FcmConfig, LogMode, Scripts, Simulation, Simulators, now_s,
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
    /// The address on which the push service of browsers listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:5443")]
    pub web_push: SocketAddr,
    /// The address on which the mail server listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4587")]
    pub smtp: SocketAddr,
    /// The address on which `SendGrid` listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4449")]
    pub sendgrid: SocketAddr,
    /// The address on which Mailchimp listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4450")]
    pub mailchimp: SocketAddr,
    /// The address on which Twilio listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4445")]
    pub twilio: SocketAddr,
    /// The address on which Vonage listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4446")]
    pub vonage: SocketAddr,
    /// The address on which Huawei Push Kit listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4452")]
    pub hms: SocketAddr,
    /// The address on which `JPush` listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4453")]
    pub jpush: SocketAddr,
    /// The address on which Amazon SNS listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4451")]
    pub sns: SocketAddr,
    /// The address on which the receivers of webhooks listen; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:4447")]
    pub webhook: SocketAddr,
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

impl SimulateArgs {
    fn listen(&self, provider: Provider) -> SocketAddr {
        match provider {
            Provider::Apns => self.apns.apns,
            Provider::Fcm => self.fcm.fcm,
            Provider::WebPush => self.web_push,
            Provider::Smtp => self.smtp,
            Provider::SendGrid => self.sendgrid,
            Provider::Mailchimp => self.mailchimp,
            Provider::Twilio => self.twilio,
            Provider::Vonage => self.vonage,
            Provider::Hms => self.hms,
            Provider::JPush => self.jpush,
            Provider::Sns => self.sns,
            Provider::Webhook => self.webhook,
            // Nothing listens for it.
            Provider::Log => self.admin,
        }
    }
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
    let apns = ApnsConfig {
        authority: Some(authority.clone()),
        log,
        script: script_of(Provider::Apns),
        ..args.apns.config()?
    };
    let fcm = FcmConfig {
        authority: Some(authority.clone()),
        log,
        script: script_of(Provider::Fcm),
        ..args.fcm.config()?
    };
    let simulators = Simulators::start(apns, fcm, |provider| ApiConfig {
        listen: args.listen(provider),
        authority: Some(authority.clone()),
        log,
        script: script_of(provider),
    });
    let simulators = Arc::new(simulators.await?);
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
