//! `peal verify`: checks the ledger equation.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use shared::{
    id::AppId,
    nats::audit::{self, Equation, Report, Scope},
    receipt::State,
};

use super::{Answer, Failure, mesh::MeshArgs, table::Table};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Check only this app.
    #[arg(long)]
    app: Option<AppId>,
    /// Check only notifications accepted since this time: RFC 3339, or how long ago, such as `3h`.
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    since: Option<Timestamp>,
    /// Print one JSON document instead of tables.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: VerifyArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let mesh = args.mesh.connect().await?;
    let scope = Scope {
        app: args.app,
        since: args.since,
    };
    let report = audit::read(&mesh.client, &mesh.regions, &scope, mesh.keys().await?)
        .await
        .map_err(|error| Failure::Streams(error.to_string()))?;
    if args.json {
        let document = json!({ "holds": report.holds(), "regions": mesh.regions, "report": report });
        writeln!(out, "{document:#}")?;
    } else {
        write(&report, out)?;
    }
    Ok(if report.holds() { Answer::Yes } else { Answer::No })
}

fn write(report: &Report, out: &mut impl Write) -> Result<(), Failure> {
    let ends = || State::ALL.iter().copied().filter(|state| state.ends_delivery());
    let mut head = vec!["app".to_owned(), "accepted in".to_owned(), " accepted".to_owned()];
    head.push(" deliveries".to_owned());
    head.extend(ends().map(|state| format!(" {state}")));
    head.extend([" in flight".to_owned(), " lost".to_owned()]);
    let mut table = Table::new(head);
    let mut row = |app: &str, origin: &str, equation: &Equation| {
        let mut cells = vec![app.to_owned(), origin.to_owned()];
        cells.push(equation.accepted.to_string());
        cells.push(equation.deliveries.to_string());
        cells.extend(ends().map(|state| equation.by_state.get(&state).copied().unwrap_or_default().to_string()));
        cells.extend([equation.in_flight.to_string(), equation.lost.to_string()]);
        table.row(cells);
    };
    for one in &report.rows {
        row(one.app.as_str(), one.origin.as_str(), &one.equation);
    }
    let total = report.total();
    if report.rows.len() > 1 {
        row("all", "", &total);
    }
    if table.is_empty() {
        writeln!(out, "Nothing was accepted.")?;
    } else {
        table.write(out)?;
    }
    let places = report.in_flight;
    if total.in_flight > 0 {
        writeln!(
            out,
            "\nin flight: {} in intakes, {} in lanes, {} scheduled, {} deferred, {} in outboxes, {} in regions that were not read",
            places.intakes, places.lanes, places.scheduled, places.deferred, places.outboxes, places.elsewhere
        )?;
    }
    for recreated in &report.recreated {
        writeln!(
            out,
            "\n{} of {} was deleted and created again, at {:.0}. What it held before is gone.",
            recreated.stream, recreated.region, recreated.at
        )?;
    }
    if report.holds() {
        writeln!(out, "\nThe equation holds.")?;
        return Ok(());
    }
    writeln!(
        out,
        "\nTHE EQUATION DOES NOT HOLD: {} lost, {} recorded wrongly.",
        total.lost, total.wrong
    )?;
    for broken in &report.broken {
        writeln!(out, "\n{}: {} {}", broken.how, broken.count, broken.how.meaning())?;
        for culprit in &broken.named {
            writeln!(out, "  {}  {} {}", culprit.id, culprit.app, culprit.origin)?;
        }
        if broken.count > broken.named.len() {
            writeln!(out, "  … only the first {} are listed", broken.named.len())?;
        }
    }
    Ok(())
}
