//! `cargo faults`: makes faults in a real mesh while notifications are sent, and compares the results with the answers
//! that the callers got. The scenarios are files in `testbed/faults`.

mod damage;
mod disk;
mod figures;
mod inject;
mod isolation;
mod load;
mod nonsense;
mod report;
mod scenario;
mod verdict;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{bail, ensure};
use rand::{SeedableRng, rngs::StdRng};
use shared::nats::topology::Durability;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout},
};

use self::{
    inject::Injector,
    load::{Callers, Recipient},
    report::Line,
    scenario::{Medium, Scenario},
    verdict::Verdict,
};
use crate::{
    audit::Audit,
    nats::{self, SyncInterval},
    network::{self, Network},
    peal::{AMPLE_QUOTA, Former, Links, Peal, Plan},
    providers::LogMode,
};

/// A scenario hangs if it takes longer than this plus three times its load.
const SCENARIO_WITHIN: Duration = Duration::from_mins(4);

/// How the suite runs.
#[derive(Debug, Clone, clap::Args)]
pub struct FaultsArgs {
    /// The scenarios to run; by default all but those that take very long.
    names: Vec<String>,
    /// Runs only the scenarios that are run before every change.
    #[arg(long, conflicts_with = "names")]
    short: bool,
    /// Sends at least this many notifications, instead of the number in each scenario.
    #[arg(long, value_name = "COUNT")]
    notifications: Option<usize>,
    /// Sends this many notifications a second, instead of the rate in each scenario.
    #[arg(long, value_name = "COUNT")]
    rate: Option<f64>,
    /// Lists the scenarios and ends.
    #[arg(long)]
    list: bool,
    /// Seeds the choice of times and processes for faults; random by default.
    #[arg(long)]
    seed: Option<u64>,
    /// The nats-server to run; otherwise one on the PATH that is new enough, or the Python package.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    nats_server: Option<PathBuf>,
}

/// Prints a line of the suite's report to standard output.
macro_rules! say {
    ($($part:tt)*) => {
        writeln!(std::io::stdout(), $($part)*)
    };
}

/// Runs the suite. It must not run on a runtime yet, because threads stay in the network namespace in which they started.
///
/// # Errors
/// When a scenario file is invalid, or there is no scenario of a given name.
pub fn run(args: FaultsArgs) -> anyhow::Result<ExitCode> {
    let scenarios = select(&args)?;
    if args.list {
        list(&scenarios)?;
        return Ok(ExitCode::SUCCESS);
    }
    let nats_server = nats::obtain(args.nats_server)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let networked = |scenario: &Scenario| scenario.network == Medium::Namespaces;
    if scenarios.iter().any(networked) && network::obstacle().is_none() {
        network::isolate()?;
    }
    Runtime::new()?.block_on(play_all(&scenarios, seed, &nats_server))
}

/// The scenarios that the arguments name, with the load that they set.
fn select(args: &FaultsArgs) -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = scenario::all()?;
    for name in &args.names {
        ensure!(
            scenarios.iter().any(|scenario| scenario.name == *name),
            "there is no scenario {name}"
        );
    }
    scenarios.retain(|scenario| {
        if args.names.is_empty() {
            !scenario.long && (scenario.short || !args.short)
        } else {
            args.names.contains(&scenario.name)
        }
    });
    for scenario in &mut scenarios {
        scenario.load.notifications = args.notifications.unwrap_or(scenario.load.notifications);
        scenario.load.rate = args.rate.unwrap_or(scenario.load.rate);
    }
    Ok(scenarios)
}

/// Prints the name, rows, length and description of each scenario.
fn list(scenarios: &[Scenario]) -> anyhow::Result<()> {
    for scenario in scenarios {
        let length = match (scenario.short, scenario.long) {
            (true, _) => "short",
            (_, true) => "long",
            _ => "",
        };
        say!(
            "{:<22} {:<12} {length:<6} {}",
            scenario.name,
            format!("{:?}", scenario.rows),
            scenario.about
        )?;
    }
    Ok(())
}

async fn play_all(scenarios: &[Scenario], seed: u64, nats_server: &Path) -> anyhow::Result<ExitCode> {
    say!("{} scenarios, --seed {seed}", scenarios.len())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut lines = Vec::new();
    for scenario in scenarios {
        if let Some(obstacle) = obstacle(scenario) {
            say!("{:<22} skipped: {obstacle}", scenario.name)?;
            lines.push(Line::new(scenario, Err("skipped"), Duration::ZERO));
            continue;
        }
        let began = Instant::now();
        let outcome = tokio::select! {
            outcome = timeout(SCENARIO_WITHIN + scenario.load.length(), play(scenario, seed, nats_server)) => outcome,
            // Returning, instead of exiting, also ends the child processes.
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        };
        let outcome = match outcome {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(error)) => {
                say!("  {}: {error:#}", scenario.name)?;
                Err("FAILED")
            }
            Err(_) => Err("HANGS"),
        };
        let line = Line::new(scenario, outcome, began.elapsed());
        say!("{line}")?;
        lines.push(line);
    }
    report::table(&lines)?;
    let bad = lines.iter().filter(|line| !line.is_good()).count();
    let skipped = lines.iter().filter(|line| line.is_skipped()).count();
    say!(
        "\n{} of {} scenarios hold, {skipped} skipped, --seed {seed}",
        lines.len() - bad - skipped,
        lines.len()
    )?;
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why this machine cannot play a scenario, or `None` if it can.
fn obstacle(scenario: &Scenario) -> Option<String> {
    if scenario.needs_mounts() && !disk::may_mount() {
        return Some("only root may mount file systems".to_owned());
    }
    if scenario.needs_faketime() && inject::faketime().is_none() {
        return Some("libfaketime is not installed".to_owned());
    }
    if scenario.needs_strace() && !inject::may_trace() {
        return Some("strace is not installed, or may not trace".to_owned());
    }
    if scenario.needs_former()
        && let Err(obstacle) = Former::find(&[])
    {
        return Some(obstacle.to_string());
    }
    (scenario.network == Medium::Namespaces)
        .then(network::obstacle)
        .flatten()
}

/// Plays one scenario, from the start of its mesh to its verdict.
async fn play(scenario: &Scenario, seed: u64, nats_server: &Path) -> anyhow::Result<Verdict> {
    let mut load = scenario.load.clone();
    let regions = scenario.mesh.regions.clone();
    for list in [&mut load.from, &mut load.homes] {
        if list.is_empty() {
            list.clone_from(&regions);
        }
    }
    let links = match scenario.network {
        Medium::Proxies => Links::Proxies(seed),
        Medium::Namespaces => Links::Network(Arc::new(Network::new(&regions)?)),
    };
    let former = scenario.needs_former().then(|| Former::find(&scenario.mesh.former));
    let plan = Plan {
        regions,
        gateways: scenario.mesh.gateways,
        former: former.transpose()?,
        workers: scenario.mesh.workers,
        admin: scenario.mesh.admin,
        helpers: scenario.mesh.helpers,
        sample_ratio: 0.01,
        log: LogMode::Full(usize::MAX),
        worker_settings: format!("in_flight = {}\n{}", scenario.mesh.in_flight, scenario.mesh.worker),
        provider_settings: scenario.mesh.provider.clone(),
        smtp_settings: scenario.mesh.smtp.clone(),
        gateway_settings: scenario.mesh.gateway.clone(),
        max_bytes: scenario.mesh.max_bytes,
        sync_interval: match scenario.mesh.durability {
            Durability::Demo => SyncInterval::default(),
            Durability::Single | Durability::Production => SyncInterval::Always,
        },
        durability: scenario.mesh.durability,
        links,
        quota: AMPLE_QUOTA,
        ..Plan::new(std::env::current_exe()?, nats_server.to_owned())
    };
    let peal = Peal::start(plan).await?;
    let recipients: Vec<Recipient> = (0..load.recipients)
        .map(|number| {
            // Otherwise every notification would be sent to its recipient's home region.
            let home = &load.homes[number / load.from.len() % load.homes.len()];
            Recipient::new("r", number, home, &load.devices, load.copies)?.at(&peal)
        })
        .collect::<anyhow::Result<_>>()?;
    load::register(&peal, &recipients).await?;
    let callers = Arc::new(Callers::new(&peal, &load, recipients).await?);
    let notifications = load.notifications;
    let sending = tokio::spawn(callers.clone().run(load, seed));
    let mut injector = Injector::new(peal, callers.clone(), StdRng::seed_from_u64(seed), seed);
    let injected = injector.run(scenario, notifications).await;
    injector.heal().await?;
    callers.stop_when_due();
    sending.await?;
    let mut verdict = verdict::reach(&injector.peal, &callers, scenario, injector.made()).await?;
    if let Some(figure) = scenario.figure {
        let findings = figures::figure(figure, &injector.peal, &callers, &injector.phases).await?;
        verdict.measure(findings, &scenario.expect);
    }
    match injected {
        Ok(failures) => verdict.complaints.extend(failures),
        Err(error) => verdict.complaints.push(format!("{error:#}")),
    }
    if !verdict.holds() {
        explain(&verdict, &injector.peal).await?;
    }
    Ok(verdict)
}

/// Prints why a verdict does not hold: complaints, lanes, attempts, the history of suspect jobs, and the last complaints
/// in the processes' logs.
async fn explain(verdict: &Verdict, peal: &Peal) -> anyhow::Result<()> {
    for complaint in &verdict.complaints {
        say!("  - {complaint}")?;
    }
    for lane in &verdict.lanes {
        say!("    {lane}")?;
    }
    for (kind, count) in Audit::attempts(peal).await? {
        say!("    {count:>6} {kind}")?;
    }
    for line in Audit::history(peal, &verdict.suspects).await? {
        say!("    {line}")?;
    }
    let logged = peal.complaints();
    let logged: Vec<&str> = logged.lines().collect();
    for line in &logged[logged.len().saturating_sub(30)..] {
        say!("    {line}")?;
    }
    Ok(())
}
