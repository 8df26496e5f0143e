//! The figures as Markdown tables.

use std::fmt::{self, Write};

use super::{
    Results, Scale,
    cpu::CpuPerNotification,
    figures::{Latency, Spread},
    machine::Machine,
    rig::Measured,
    round::Round,
};

/// All tables, as in `docs/measurements.md`.
pub(super) fn markdown(results: &Results) -> Result<String, fmt::Error> {
    let mut text = String::new();
    machine(&mut text, results.scale, &results.machine)?;
    throughput(&mut text, &results.rounds)?;
    cpu(&mut text, &results.rounds)?;
    latency(&mut text, &results.rounds)?;
    start(&mut text, results)?;
    Ok(text)
}

/// Describes the machine, and warns if other processes were using it.
pub(super) fn machine(text: &mut String, scale: Scale, machine: &Machine) -> fmt::Result {
    writeln!(
        text,
        "{} cores for all processes; {}; {} rounds, {} s a measurement; median (min – max). Load average at the start \
         {}; other processes took at most {:.1} % of a probe's time; stolen {:.1} %.\n",
        machine.cores,
        machine.nats_server,
        scale.rounds,
        scale.duration.as_secs(),
        machine.load,
        machine.worst_gap(),
        machine.steal_percent,
    )?;
    if machine.was_noisy() {
        writeln!(
            text,
            "**Other processes were using the machine; compare ratios only.**\n"
        )?;
    }
    if cfg!(debug_assertions) {
        writeln!(text, "**This is a debug build; its figures are meaningless.**\n")?;
    }
    Ok(())
}

fn throughput(text: &mut String, rounds: &[Round]) -> fmt::Result {
    let of = |figure: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
    writeln!(text, "| throughput | notifications/s |\n|---|---|")?;
    row(
        text,
        "a: raw JetStream, publish + pull + ack",
        of(&|round| round.jetstream.per_second),
        0,
    )?;
    row(
        text,
        "b: raw HTTP/2 sender to the simulator",
        of(&|round| round.sender.per_second),
        0,
    )?;
    row(text, "S = 1 ÷ (1/a + 1/b)", of(&Round::limit), 0)?;
    row(
        text,
        "c: Peal, one recipient a request",
        of(&|round| round.one.per_second),
        0,
    )?;
    row(
        text,
        "c: Peal, 100 recipients a request",
        of(&|round| round.hundred.per_second),
        0,
    )?;
    row(
        text,
        "**c ÷ S**, one recipient a request",
        of(&|round| round.one.per_second / round.limit()),
        2,
    )?;
    row(
        text,
        "**c ÷ S**, 100 recipients a request",
        of(&|round| round.hundred.per_second / round.limit()),
        2,
    )?;
    let count: u64 = rounds.iter().map(|round| round.one.count + round.hundred.count).sum();
    let repeated: u64 = rounds
        .iter()
        .map(|round| round.one.repeated + round.hundred.repeated)
        .sum();
    writeln!(
        text,
        "\nOf {count} notifications, none was lost or duplicated; {repeated} requests were repeated.\n"
    )
}

/// A row of a table with one figure.
pub(super) fn row(text: &mut String, name: &str, spread: Spread, digits: usize) -> fmt::Result {
    let Spread { median, min, max } = spread;
    writeln!(text, "| {name} | {median:.digits$} ({min:.digits$} – {max:.digits$}) |")
}

/// A row of the table of CPU time: its name and its figure.
type CpuRow = (&'static str, fn(&CpuPerNotification) -> f64);

fn cpu(text: &mut String, rounds: &[Round]) -> fmt::Result {
    const ROWS: [CpuRow; 7] = [
        ("gateway", |each| each.gateway),
        ("edge worker", |each| each.worker),
        ("**gateway + edge worker**", |each| each.gateway + each.worker),
        ("nats-server of the region", |each| each.nats),
        ("nats-server of the hub", |each| each.hub),
        ("simulator", |each| each.simulator),
        ("load", |each| each.load),
    ];
    let columns: [fn(&Round) -> &Measured; 4] = [
        |round| &round.one,
        |round| &round.hundred,
        |round| &round.jetstream,
        |round| &round.sender,
    ];
    writeln!(
        text,
        "| CPU time, µs a notification | one recipient a request | 100 recipients a request | a | b |"
    )?;
    writeln!(text, "|---|---|---|---|---|")?;
    for (name, figure) in ROWS {
        write!(text, "| {name} |")?;
        for column in columns {
            write!(
                text,
                " {:.1} |",
                Spread::of(rounds.iter().map(|round| figure(&column(round).cpu_us))).median
            )?;
        }
        writeln!(text)?;
    }
    // A slow machine slows both alike, so this row can be compared between runs.
    write!(text, "| gateway + edge worker ÷ load of a + load of b |")?;
    for column in columns.iter().take(2) {
        let ratios = rounds.iter().map(|round| {
            let peal = column(round).cpu_us;
            (peal.gateway + peal.worker) / (round.jetstream.cpu_us.load + round.sender.cpu_us.load)
        });
        write!(text, " {:.1} |", Spread::of(ratios).median)?;
    }
    writeln!(text, " | |")?;
    writeln!(text)
}

fn latency(text: &mut String, rounds: &[Round]) -> fmt::Result {
    let rate = Spread::of(rounds.iter().map(|round| round.moderate_rate)).median;
    let of = |figure: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(figure)).median;
    let single = Latency::of(
        rounds
            .iter()
            .flat_map(|round| round.singles_us.iter().copied())
            .collect(),
    );
    let count: usize = rounds.iter().map(|round| round.singles_us.len()).sum();
    writeln!(text, "| latency, ms | median | p99 |\n|---|---|---|")?;
    for (name, of_round) in [
        (
            "accepted by the gateway, while pushes are sent",
            (|round| round.accept.latency) as fn(&Round) -> Latency,
        ),
        ("raw publish acknowledged", |round| round.pub_ack.latency),
    ] {
        let p50 = of(&|round| f64::from(of_round(round).p50_us)) / 1000.0;
        let p99 = of(&|round| f64::from(of_round(round).p99_us)) / 1000.0;
        writeln!(text, "| {name}, {rate:.0}/s, open loop | {p50:.2} | {p99:.2} |")?;
    }
    let p50 = of(&|round| ratio(round.accept.latency.p50_us, round.pub_ack.latency.p50_us));
    let p99 = of(&|round| ratio(round.accept.latency.p99_us, round.pub_ack.latency.p99_us));
    writeln!(text, "| accepted ÷ acknowledged | {p50:.1}× | {p99:.1}× |")?;
    let (p50, p99) = (f64::from(single.p50_us) / 1000.0, f64::from(single.p99_us) / 1000.0);
    writeln!(
        text,
        "| one notification, request → provider, {count} in a row | {p50:.2} | {p99:.2} |\n"
    )
}

fn ratio(a: u32, b: u32) -> f64 {
    f64::from(a) / f64::from(b.max(1))
}

fn start(text: &mut String, results: &Results) -> fmt::Result {
    let cold = &results.cold;
    writeln!(text, "| start of an edge worker | |\n|---|---|")?;
    writeln!(
        text,
        "| {} facts into an empty cache | {:.2} s, {:.0} facts/s |",
        cold.facts,
        cold.empty.cache_s,
        cold.facts_per_second(),
    )?;
    writeln!(
        text,
        "| ready, with {} batches of receipts read into an empty ledger | {:.2} s |",
        cold.receipts, cold.empty.ready_s
    )?;
    writeln!(
        text,
        "| ready again after an orderly stop | {:.2} s |",
        cold.warm.ready_s
    )?;
    writeln!(
        text,
        "| ready again after it was killed | {:.2} s |",
        cold.killed.ready_s
    )
}
