//! `cargo demo`: sends notifications through a real mesh, shows step by step what happens to them, and checks every
//! expectation.

mod report;
mod scenes;

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    audit::Audit,
    nats,
    peal::{AMPLE_QUOTA, Peal, Plan},
    providers::Admin,
    sink::{self, Sink},
};

/// How the demo runs.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Ends after the checks. The exit code says whether every expectation was met.
    #[arg(long)]
    pub once: bool,
    /// The nats-server to run; otherwise one on the PATH that is new enough, or the Python package.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// The regions, separated by commas. They must include eu and us; each further region has one guest.
    #[arg(long, value_delimiter = ',', default_values = scenes::STAGE, value_name = "NAMES")]
    pub regions: Vec<String>,
}

/// Prints to standard output; the demo's output is its purpose.
macro_rules! say {
    ($($part:tt)*) => {
        writeln!(std::io::stdout(), $($part)*)
    };
}
use say;

/// Runs the demo.
///
/// # Errors
/// When a part of the mesh does not come up.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    anyhow::ensure!(
        scenes::STAGE
            .iter()
            .all(|name| args.regions.iter().any(|region| region == name)),
        "--regions: must name {}, where the demo's recipients live",
        scenes::STAGE.join(" and ")
    );
    say!("Peal demo: {} regions and a hub on this machine", args.regions.len())?;
    say!(
        "Durability \"demo\": one copy, flushed every 2 minutes. A killed server loses nothing; a power cut loses up to 2 minutes.\n"
    )?;
    let nats_server = tokio::task::spawn_blocking(move || nats::obtain(args.nats_server)).await??;
    say!("  nats-server  {}", nats_server.display())?;
    let sink = Sink::start().await?;
    let viewer = report::Viewer::start(&sink);
    let plan = Plan {
        regions: args.regions,
        helpers: true,
        admin: true,
        otlp_endpoint: Some(sink.endpoint()),
        quota: AMPLE_QUOTA,
        ..Plan::new(std::env::current_exe()?, nats_server)
    };
    let mut peal = Peal::start(plan).await?;
    let admin = Admin::start(([127, 0, 0, 1], 0).into(), Arc::clone(&peal.simulators)).await?;
    report::parts(&peal, &admin, viewer.as_ref())?;
    say!("  ready after {:.1?}\n", begun.elapsed())?;

    scenes::register(&peal).await?;
    let played = scenes::play(&peal).await?;
    let mut failures = Vec::new();
    for scene in &played {
        failures.extend(report::scene(&peal, scene).await?);
    }
    failures.extend(scenes::broadcast(&peal).await?);
    failures.extend(scenes::takeover(&mut peal).await?);
    failures.extend(scenes::aftermath(&peal).await?);

    let audit = Audit::read_settled(&peal, Duration::from_secs(10)).await?;
    let equation = audit.equation();
    say!("The ledger equation, from the streams of every region:\n  {equation}")?;
    failures.extend((!equation.is_settled()).then(|| "the ledger equation does not hold".to_owned()));
    failures.extend(report::simulators(&peal, &audit)?);

    if let Some(trace) = &played[0].trace {
        let spans = sink.trace(trace, Duration::from_secs(5), scenes::is_complete).await;
        say!(
            "\nOne trace, {trace}: from the caller in eu to devices in both regions\n{}",
            sink::tree(&spans)
        )?;
        failures.extend((!scenes::is_complete(&spans)).then(|| "the trace is not complete".to_owned()));
    } else {
        failures.push("the first notification has no trace".to_owned());
    }
    if failures.is_empty() {
        say!("Every expectation was met, after {:.1?}.", begun.elapsed())?;
    } else {
        say!("{} expectations were not met:", failures.len())?;
        for failure in &failures {
            say!("  - {failure}")?;
        }
        say!("{}", peal.complaints())?;
    }
    if !args.once {
        report::invitation(&peal, &admin, viewer.as_ref())?;
        tokio::signal::ctrl_c().await?;
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
