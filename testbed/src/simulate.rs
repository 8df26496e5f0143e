//! `testbed simulate`: the provider simulators as a program, for clients in any language.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;

use crate::providers::apns::{Environment, JwtMode};
use crate::providers::{Admin, Apns, ApnsConfig, ApnsKey, Authority, Fcm, FcmConfig, LogMode, Scripts, ServiceAccount};

/// Simulates APNs and FCM until Ctrl-C.
#[derive(Clone, Debug, clap::Args)]
pub struct SimulateArgs {
    /// The directory that gets the certificate, the keys and ready-made tokens; made if it is not there.
    #[arg(long)]
    pub dir: PathBuf,
    /// Where APNs listens; port 0 is any free port.
    #[arg(long, default_value = "127.0.0.1:2197")]
    pub apns: SocketAddr,
    /// Where FCM and its OAuth endpoint listen.
    #[arg(long, default_value = "127.0.0.1:4443")]
    pub fcm: SocketAddr,
    /// Where the admin port listens.
    #[arg(long, default_value = "127.0.0.1:8025")]
    pub admin: SocketAddr,
    /// The Apple team of the key that is made.
    #[arg(long, default_value = "PEALTEAM01")]
    pub team_id: String,
    /// The id of the key that is made.
    #[arg(long, default_value = "PEALKEY001")]
    pub key_id: String,
    /// The Firebase project of the service account that is made.
    #[arg(long, default_value = "peal-test")]
    pub project: String,
    /// Which of Apple's worlds is played.
    #[arg(long, value_enum, default_value_t)]
    pub environment: Environment,
    /// How APNs provider tokens are read.
    #[arg(long, value_enum, default_value_t)]
    pub jwt: JwtMode,
    /// Whether a team that brings a new provider token within 20 minutes is answered `TooManyProviderTokenUpdates`; by
    /// default only with `--jwt strict`.
    #[arg(long)]
    pub limit_token_updates: Option<bool>,
    /// A JSON file with scripted answers, `{"apns": {"rules": [...]}, "fcm": {"rules": [...]}}`.
    #[arg(long)]
    pub script: Option<PathBuf>,
    /// Keeps counters only, no pushes: for load tests.
    #[arg(long)]
    pub counting: bool,
}

/// Runs both simulators and the admin port until Ctrl-C.
pub async fn run(args: SimulateArgs) -> anyhow::Result<()> {
    let scripts = args
        .script
        .as_deref()
        .map_or_else(|| Ok(Scripts::default()), read_scripts)?;
    let log = if args.counting {
        LogMode::Counting
    } else {
        LogMode::default()
    };
    let authority = Authority::generate()?;
    let apns = Apns::start(ApnsConfig {
        listen: args.apns,
        authority: Some(authority.clone()),
        environment: args.environment,
        jwt: args.jwt,
        limit_token_updates: args.limit_token_updates.unwrap_or(args.jwt == JwtMode::Strict),
        keys: vec![ApnsKey::generate(&args.team_id, &args.key_id)?.into()],
        log,
        script: scripts.apns.unwrap_or_default(),
        ..ApnsConfig::default()
    })
    .await?;
    let fcm = Fcm::start(FcmConfig {
        listen: args.fcm,
        authority: Some(authority),
        accounts: vec![ServiceAccount::generate(&args.project)?],
        log,
        script: scripts.fcm.unwrap_or_default(),
        ..FcmConfig::default()
    })
    .await?;
    let (apns, fcm) = (Arc::new(apns), Arc::new(fcm));
    let admin = Admin::start(args.admin, Arc::clone(&apns), Arc::clone(&fcm)).await?;
    write_files(&args.dir, &apns, &fcm, &admin)?;

    let mut out = std::io::stdout();
    out.write_all(describe(&args.dir, &apns, &fcm, &admin)?.as_bytes())?;
    out.flush()?;
    tokio::signal::ctrl_c().await?;
    apns.stop().await;
    fcm.stop().await;
    Ok(())
}

fn read_scripts(path: &Path) -> anyhow::Result<Scripts> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a script", path.display()))
}

fn write_files(dir: &Path, apns: &Apns, fcm: &Fcm, admin: &Admin) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let now_s = crate::providers::now_s();
    let key = apns.key();
    let whereabouts = json!({
        "apns_port": apns.addr().port(),
        "fcm_port": fcm.addr().port(),
        "admin": format!("http://{}", admin.addr()),
        "team_id": key.team_id,
        "key_id": key.key_id,
        "project_id": fcm.account().project_id,
    });
    let files = [
        ("simulators.json", format!("{whereabouts:#}\n")),
        ("ca.pem", apns.ca_pem().to_owned()),
        ("apns-key.p8", key.pem.clone()),
        ("apns-provider-token.jwt", key.provider_token(now_s)?),
        ("fcm-service-account.json", fcm.service_account_json()),
        ("fcm-assertion.jwt", fcm.account().assertion(&fcm.token_uri(), now_s)?),
    ];
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn describe(dir: &Path, apns: &Apns, fcm: &Fcm, admin: &Admin) -> anyhow::Result<String> {
    let (dir, key) = (dir.display(), apns.key());
    let (apns_port, fcm_port) = (apns.addr().port(), fcm.addr().port());
    let mut text = String::new();
    writeln!(
        text,
        "APNs   https://localhost:{apns_port}  team {} key {} ({dir}/apns-key.p8)",
        key.team_id, key.key_id
    )?;
    writeln!(
        text,
        "FCM    https://localhost:{fcm_port}  project {} ({dir}/fcm-service-account.json)",
        fcm.account().project_id
    )?;
    writeln!(
        text,
        "admin  http://{}  GET /log /stats /script, PUT /script, POST /go-away /cut",
        admin.addr()
    )?;
    writeln!(text, "trust  {dir}/ca.pem")?;
    writeln!(text)?;
    writeln!(
        text,
        "curl --http2 --cacert {dir}/ca.pem -H \"authorization: bearer $(cat {dir}/apns-provider-token.jwt)\" \\"
    )?;
    writeln!(
        text,
        "  -H 'apns-topic: com.example.app' -H 'apns-push-type: alert' -d '{{\"aps\":{{\"alert\":\"ding\"}}}}' \\"
    )?;
    writeln!(text, "  -i https://localhost:{apns_port}/3/device/beef")?;
    writeln!(
        text,
        "curl --cacert {dir}/ca.pem -d grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer \\"
    )?;
    writeln!(
        text,
        "  --data-urlencode assertion@{dir}/fcm-assertion.jwt {}",
        fcm.token_uri()
    )?;
    writeln!(
        text,
        "curl --cacert {dir}/ca.pem -H \"authorization: Bearer $ACCESS_TOKEN\" -H 'content-type: application/json' \\"
    )?;
    writeln!(
        text,
        "  -d '{{\"message\":{{\"token\":\"beef\",\"notification\":{{\"title\":\"ding\"}}}}}}' \\"
    )?;
    writeln!(
        text,
        "  https://localhost:{fcm_port}/v1/projects/{}/messages:send",
        fcm.account().project_id
    )?;
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
