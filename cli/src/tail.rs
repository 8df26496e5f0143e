//! `peal tail`: receipts as they come. Never an address, never content.

use std::{io::Write, time::Duration};

use clap::Args;
use futures::StreamExt;
use serde_json::json;
use shared::{
    id::{AppId, NotificationId, Region},
    nats::{connect, follow, subject, topology},
    receipt::{Batch, Receipt, State},
};

use super::{Answer, Failure, mesh::MeshArgs};

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Only of this app.
    #[arg(long)]
    app: Option<AppId>,
    /// Only those with this state; may be repeated.
    #[arg(long = "state")]
    states: Vec<State>,
    /// Only of this notification.
    #[arg(long)]
    notification: Option<NotificationId>,
    /// One JSON document a line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: TailArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let reach = args.mesh.connect().await?;
    let region = match reach.regions.as_slice() {
        [region] => region.clone(),
        [_, _, ..] if args.mesh.names_region() => {
            return Err(Failure::Arguments("--region: one region at a time".to_owned()));
        }
        _ => reach.home().clone(),
    };
    let js = connect::jetstream_of(reach.client.clone(), &region);
    let streams = |error: follow::FollowError| Failure::Streams(format!("region {region}: {error}"));
    let mut next = follow::stream_state(&js, topology::RECEIPTS)
        .await
        .map_err(streams)?
        .last
        + 1;
    let filter = subject::receipt_filter(&region);
    if !args.json {
        eprintln!("receipts of {region}, from now on; Ctrl-C ends");
        writeln!(
            out,
            "{}",
            line(
                "time",
                "state",
                "reason",
                "attempt",
                "took",
                "app",
                "job",
                "notification",
                "trace"
            )
        )?;
    }
    loop {
        // A server that is away comes back.
        if let Ok(mut entries) = follow::follow(&js, topology::RECEIPTS, &filter, next).await {
            while let Some(Ok(entry)) = entries.next().await {
                next = entry.sequence + 1;
                match serde_json::from_slice(&entry.payload) {
                    Ok(batch) => args.show(&batch, &region, out)?,
                    Err(error) => eprintln!("receipts at {} cannot be read: {error}", entry.sequence),
                }
            }
        }
        eprintln!("interrupted; goes on where it was");
        tokio::time::sleep(Duration::from_millis(500)).await;
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
            writeln!(
                out,
                "{}",
                line(
                    &receipt.at.strftime("%H:%M:%S%.3f").to_string(),
                    receipt.state.as_str(),
                    reason.unwrap_or("-"),
                    &receipt.attempt.to_string(),
                    took.as_deref().unwrap_or("-"),
                    batch.app.as_str(),
                    &receipt.job.to_string(),
                    &receipt.notification.to_string(),
                    receipt.trace.as_deref().unwrap_or("-"),
                )
            )?;
        }
        out.flush()?;
        Ok(())
    }

    fn wants(&self, receipt: &Receipt) -> bool {
        let state = self.states.is_empty() || self.states.contains(&receipt.state);
        state && self.notification.is_none_or(|wanted| wanted == receipt.notification)
    }
}

#[expect(clippy::too_many_arguments, reason = "one for each column")]
fn line(
    at: &str,
    state: &str,
    reason: &str,
    attempt: &str,
    took: &str,
    app: &str,
    job: &str,
    of: &str,
    trace: &str,
) -> String {
    format!("{at:<12}  {state:<10}  {reason:<20}  {attempt:>7}  {took:>8}  {app:<12}  {job:<36}  {of:<36}  {trace}")
}
