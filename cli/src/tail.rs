//! `peal tail`: receipts as they arrive. It shows no address and no content.

use std::{fmt, io::Write, time::Duration};

use clap::Args;
use futures::StreamExt;
use serde_json::json;
use shared::{
    id::{AppId, NotificationId, Region},
    nats::{
        connect,
        follow::{self, FollowError},
        leader, subject, topology,
    },
    receipt::{Batch, Receipt, State},
};

use super::{Answer, Failure, mesh::MeshArgs};

/// After an interruption, receipts are followed again after this time.
const RECONNECT_AFTER: Duration = Duration::from_millis(500);

const HEAD: Row<'_> = Row {
    time: "time",
    state: "state",
    reason: "reason",
    attempt: "attempt",
    took: "took",
    app: "app",
    job: "job",
    notification: "notification",
    trace: "trace",
};

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Show only receipts of this app.
    #[arg(long)]
    app: Option<AppId>,
    /// Show only receipts with this state; may be repeated.
    #[arg(long = "state")]
    states: Vec<State>,
    /// Show only receipts of this notification.
    #[arg(long)]
    notification: Option<NotificationId>,
    /// Print one JSON document per line.
    #[arg(long)]
    json: bool,
}

/// One line of the output. Columns have fixed widths, because lines are printed as receipts arrive.
struct Row<'a> {
    time: &'a str,
    state: &'a str,
    reason: &'a str,
    attempt: &'a str,
    took: &'a str,
    app: &'a str,
    job: &'a str,
    notification: &'a str,
    trace: &'a str,
}

pub(super) async fn run(args: TailArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let mesh = args.mesh.connect().await?;
    let region = match mesh.regions.as_slice() {
        [region] => region.clone(),
        [_, _, ..] if args.mesh.names_region() => {
            return Err(Failure::Arguments(
                "--region: only one region can be followed".to_owned(),
            ));
        }
        _ => mesh.home().clone(),
    };
    let js = connect::jetstream_of(mesh.client.clone(), &region);
    let streams = |error: FollowError| Failure::Streams(format!("region {region}: {error}"));
    let ask = async || follow::stream_state(&js, topology::RECEIPTS).await;
    let state = leader::patiently("the receipts", FollowError::may_pass, ask).await;
    let mut next = state.map_err(streams)?.last + 1;
    let filter = subject::receipt_filter(&region);
    if !args.json {
        eprintln!("receipts of {region} from now on; Ctrl-C stops");
        writeln!(out, "{HEAD}")?;
    }
    loop {
        // Errors are not fatal: an unreachable server usually comes back.
        if let Ok(mut entries) = follow::follow(&js, topology::RECEIPTS, &filter, next).await {
            while let Some(Ok(entry)) = entries.next().await {
                next = entry.sequence + 1;
                match Batch::read(&entry.payload) {
                    Ok(batch) => args.show(&batch, &region, out)?,
                    Err(error) => eprintln!("cannot read the receipts at {}: {error}", entry.sequence),
                }
            }
        }
        eprintln!("interrupted; continuing where it stopped");
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

impl TailArgs {
    fn show(&self, batch: &Batch, region: &Region, out: &mut impl Write) -> Result<(), Failure> {
        if self.app.as_ref().is_some_and(|app| *app != batch.app) {
            return Ok(());
        }
        for receipt in batch.receipts.iter().filter(|receipt| self.wants(receipt)) {
            let reason = receipt.reason.as_deref();
            if self.json {
                let document = json!({
                    "at": receipt.at, "app": batch.app, "region": region, "origin": batch.origin,
                    "notification": receipt.notification, "job": receipt.job, "state": receipt.state, "reason": reason,
                    "attempt": receipt.attempt, "took_us": receipt.took_us, "trace": receipt.trace,
                });
                writeln!(out, "{document}")?;
                continue;
            }
            let took = receipt.took_us.map(|us| format!("{:.1}ms", f64::from(us) / 1000.0));
            let row = Row {
                time: &receipt.at.strftime("%H:%M:%S%.3f").to_string(),
                state: receipt.state.as_str(),
                reason: reason.unwrap_or("-"),
                attempt: &receipt.attempt.to_string(),
                took: took.as_deref().unwrap_or("-"),
                app: batch.app.as_str(),
                job: &receipt.job.to_string(),
                notification: &receipt.notification.to_string(),
                trace: receipt.trace.as_deref().unwrap_or("-"),
            };
            writeln!(out, "{row}")?;
        }
        out.flush()?;
        Ok(())
    }

    fn wants(&self, receipt: &Receipt) -> bool {
        let state = self.states.is_empty() || self.states.contains(&receipt.state);
        state && self.notification.is_none_or(|wanted| wanted == receipt.notification)
    }
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            time,
            state,
            reason,
            attempt,
            took,
            app,
            job,
            notification,
            trace,
        } = self;
        write!(
            f,
            "{time:<12}  {state:<10}  {reason:<20}  {attempt:>7}  {took:>8}  {app:<12}  {job:<36}  "
        )?;
        write!(f, "{notification:<36}  {trace}")
    }
}
