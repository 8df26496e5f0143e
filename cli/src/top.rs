//! `peal top`: the state of the lanes and of the intakes, from JetStream's information about streams and consumers.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use async_nats::jetstream::{self, consumer::PullConsumer, stream::Stream};
use clap::Args;
use jiff::Timestamp;
use shared::{
    clock::Clock,
    id::Region,
    nats::{connect, follow, subject::Tier, topology},
};
use tokio::time::{Instant, sleep};

use super::{
    Answer, Failure,
    mesh::{MeshArgs, MeshConnection},
    table::Table,
};

/// ANSI escapes: move the cursor to the top left, and clear the screen below it.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Print once instead of refreshing.
    #[arg(long)]
    once: bool,
    /// Seconds between two refreshes; rates are averaged over them.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
}

/// The last value of each counter, and when it was read.
type Counters = HashMap<(Region, String), (u64, Instant)>;

pub(super) async fn run(args: TopArgs, clock: &Clock, out: &mut impl Write) -> Result<Answer, Failure> {
    let mesh = args.mesh.connect().await?;
    let mut counters = Counters::new();
    let mut first = true;
    loop {
        let mut screen = Vec::new();
        writeln!(screen, "{}", clock.now().strftime("%Y-%m-%d %H:%M:%S UTC"))?;
        let mut answered = false;
        for region in &mesh.regions {
            match show(&mesh, region, clock.now(), &mut counters, &mut screen).await {
                Ok(()) => answered = true,
                Err(NotShown::Output(error)) => return Err(error.into()),
                Err(NotShown::Streams(error)) if args.once => {
                    return Err(Failure::Streams(format!("region {region}: {error}")));
                }
                Err(NotShown::Streams(error)) => writeln!(screen, "\n{region}  does not answer: {error}")?,
            }
        }
        // Rates are known from the second refresh on.
        if !(first && answered) {
            if !args.once && io::stdout().is_terminal() {
                out.write_all(CLEAR_SCREEN.as_bytes())?;
            }
            out.write_all(&screen)?;
            out.flush()?;
            if args.once {
                return Ok(Answer::Yes);
            }
        }
        sleep(Duration::from_secs(if first { 1 } else { args.interval })).await;
        first = false;
    }
}

/// Why a region cannot be shown.
enum NotShown {
    Streams(async_nats::Error),
    Output(io::Error),
}

impl<E: Into<async_nats::Error>> From<E> for NotShown {
    fn from(error: E) -> Self {
        Self::Streams(error.into())
    }
}

async fn show(
    mesh: &MeshConnection,
    region: &Region,
    now: Timestamp,
    counters: &mut Counters,
    out: &mut Vec<u8>,
) -> Result<(), NotShown> {
    let js = connect::jetstream_of(mesh.client.clone(), region);
    let mut table = Table::new(["lane", " pending", " ack pending", " redelivered", " oldest", " done/s"]);
    let mut due = 0;
    for (stream, config) in topology::workers_consumers(region) {
        let name = config.durable_name.unwrap_or_default();
        let lane = js.get_stream(stream).await?;
        let found: Result<PullConsumer, _> = lane.get_consumer(&name).await;
        // Lanes have no overflow before a mesh is wholly upgraded.
        if found.is_err() && Tier::of(&config.filter_subject) == Tier::Overflow {
            continue;
        }
        let consumer = found?;
        let info = consumer.cached_info();
        let (pending, unacknowledged) = (info.num_pending, info.num_ack_pending as u64);
        if stream == topology::SCHEDULE {
            due += pending + unacknowledged;
        }
        let oldest = if pending + unacknowledged == 0 {
            None
        } else {
            oldest(&lane, &config.filter_subject, info.ack_floor.stream_sequence + 1).await
        };
        let done = rate(counters, region, &name, info.ack_floor.consumer_sequence);
        table.row([
            name,
            pending.to_string(),
            unacknowledged.to_string(),
            info.num_redelivered.to_string(),
            oldest.map_or_else(|| "-".to_owned(), |at| age(at, now)),
            done,
        ]);
    }
    let [notify, schedule, receipts, dead] = [
        state(&js, topology::NOTIFY).await?,
        state(&js, topology::SCHEDULE).await?,
        state(&js, topology::RECEIPTS).await?,
        state(&js, topology::DEAD).await?,
    ];
    let batches = rate(counters, region, topology::RECEIPTS, receipts.last_sequence);
    let write = |out: &mut Vec<u8>| -> io::Result<()> {
        writeln!(
            out,
            "\n{region}  stored {}  schedules waiting {}  dead letters {}  receipts {} batches, {batches}/s",
            notify.messages,
            schedule.messages.saturating_sub(due),
            dead.messages,
            receipts.messages
        )?;
        table.write(out)
    };
    write(out).map_err(NotShown::Output)?;
    show_intakes(&js, region, now, counters, out).await?;
    // Messages for this region that still wait in the outboxes of the others.
    for source in topology::sources(&mesh.client, region, topology::NOTIFY).await? {
        let silent = source.silent.map_or_else(
            || "never heard from".to_owned(),
            |silent| format!("not heard from for {}", duration(silent)),
        );
        let current = if source.is_awake() {
            String::new()
        } else {
            format!(" or more, {silent}")
        };
        writeln!(
            out,
            "outbox of {} for {region}: {} waiting{current}",
            source.from, source.lag
        )
        .map_err(NotShown::Output)?;
    }
    Ok(())
}

/// Maximum number of intakes that are shown of a region: those with the most waiting messages.
const INTAKES_SHOWN_MAX: usize = 20;

/// Shows the intakes in which messages wait for gateways.
async fn show_intakes(
    js: &jetstream::Context,
    region: &Region,
    now: Timestamp,
    counters: &mut Counters,
    out: &mut Vec<u8>,
) -> Result<(), NotShown> {
    let apps = topology::intakes(js).await?;
    let all = apps.len();
    let mut busy = Vec::new();
    for app in apps {
        let name = topology::intake(&app);
        // A gateway may just be removing it, or may not have made its consumer yet.
        let Ok(intake) = js.get_stream(&name).await else {
            continue;
        };
        let found: Result<PullConsumer, _> = intake.get_consumer(topology::INTAKE_CONSUMER).await;
        let Ok(consumer) = found else { continue };
        let info = consumer.cached_info();
        let done = rate(counters, region, &name, info.ack_floor.consumer_sequence);
        let (pending, unacknowledged) = (info.num_pending, info.num_ack_pending as u64);
        if pending + unacknowledged == 0 {
            continue;
        }
        let next = info.ack_floor.stream_sequence + 1;
        let oldest = oldest(&intake, &info.config.filter_subject, next).await;
        let row = [
            app.to_string(),
            pending.to_string(),
            unacknowledged.to_string(),
            info.num_redelivered.to_string(),
            oldest.map_or_else(|| "-".to_owned(), |at| age(at, now)),
            done,
        ];
        busy.push((pending + unacknowledged, row));
    }
    if all == 0 {
        return Ok(());
    }
    let waiting: u64 = busy.iter().map(|(waiting, _)| waiting).sum();
    let write = |out: &mut Vec<u8>, busy: Vec<(u64, [String; 6])>| -> io::Result<()> {
        writeln!(
            out,
            "intakes of {region}: {all}, {} with messages, {waiting} messages waiting",
            busy.len()
        )?;
        if busy.is_empty() {
            return Ok(());
        }
        let mut table = Table::new([
            "intake",
            " pending",
            " ack pending",
            " redelivered",
            " oldest",
            " done/s",
        ]);
        for (_, row) in busy.into_iter().take(INTAKES_SHOWN_MAX) {
            table.row(row);
        }
        table.write(out)
    };
    busy.sort_by(|(one, _), (other, _)| other.cmp(one));
    write(out, busy).map_err(NotShown::Output)
}

async fn state(js: &jetstream::Context, stream: &str) -> Result<jetstream::stream::State, async_nats::Error> {
    Ok(js.get_stream(stream).await?.cached_info().state.clone())
}

/// When the first message of `filter` at or after `sequence` was stored.
async fn oldest(stream: &Stream, filter: &str, sequence: u64) -> Option<Timestamp> {
    let message = stream.direct_get_next_for_subject(filter, Some(sequence)).await.ok()?;
    Some(follow::timestamp(message.time.unix_timestamp_nanos()))
}

/// The growth of a counter per second since it was last read; a dash at the first time.
fn rate(counters: &mut Counters, region: &Region, name: &str, count: u64) -> String {
    let now = Instant::now();
    let before = counters.insert((region.clone(), name.to_owned()), (count, now));
    let Some((before, then)) = before else {
        return "-".to_owned();
    };
    let seconds = now.duration_since(then).as_secs_f64().max(0.001);
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let rate = count.saturating_sub(before) as f64 / seconds;
    format!("{rate:.1}")
}

fn age(at: Timestamp, now: Timestamp) -> String {
    duration(now.duration_since(at).try_into().unwrap_or_default())
}

fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}
