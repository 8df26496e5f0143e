//! What the suite prints.

use std::{fmt, io::Write, time::Duration};

use super::{scenario::Scenario, verdict::Verdict};

/// One line of the table.
#[derive(Debug)]
pub(super) struct Line {
    name: String,
    rows: String,
    verdict: Option<Verdict>,
    took: Duration,
    /// Why there is no verdict, or what it is.
    word: &'static str,
}

impl Line {
    pub(super) fn new(scenario: &Scenario, outcome: Result<Verdict, &'static str>, took: Duration) -> Self {
        let rows: Vec<String> = scenario.rows.iter().map(ToString::to_string).collect();
        let (verdict, word) = match outcome {
            Ok(verdict) if verdict.holds() => (Some(verdict), "holds"),
            Ok(verdict) if scenario.expect.known.is_some() => (Some(verdict), "known"),
            Ok(verdict) => (Some(verdict), "BROKEN"),
            Err(word) => (None, word),
        };
        Self {
            name: scenario.name.clone(),
            rows: rows.join(" "),
            verdict,
            took,
            word,
        }
    }

    /// Whether this machine could not play it.
    pub(super) fn is_skipped(&self) -> bool {
        self.word == "skipped"
    }

    /// Whether the run may go on to be called good.
    pub(super) fn is_good(&self) -> bool {
        matches!(self.word, "holds" | "known" | "skipped")
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} {} after {:.0} s",
            self.name,
            self.word,
            self.took.as_secs_f64()
        )
    }
}

/// Prints the table.
///
/// # Errors
/// When standard output is closed.
pub(super) fn table(lines: &[Line]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\n{:<22} {:<12} {:>7} {:>5} {:>12} {:>11} {:>8} {:>7} {:>7} {:>6}  verdict",
        "scenario", "rows", "sent", "lost", "doubled (≤)", "unexplained", "refused", "drain", "verify", "took"
    )?;
    for line in lines {
        let took = format!("{:.0} s", line.took.as_secs_f64());
        match &line.verdict {
            Some(verdict) => writeln!(
                out,
                "{:<22} {:<12} {:>7} {:>5} {:>12} {:>11} {:>8} {:>7} {:>7} {took:>6}  {}",
                line.name,
                line.rows,
                verdict.notifications,
                verdict.lost,
                format!("{} ({})", verdict.doubled, verdict.doubled_at_most),
                verdict.unexplained,
                verdict.refused,
                format!("{:.1} s", verdict.drained_in.as_secs_f64()),
                format!("{:.1} s", verdict.verified_in.as_secs_f64()),
                line.word
            )?,
            None => writeln!(
                out,
                "{:<22} {:<12} {:>73} {took:>6}  {}",
                line.name, line.rows, "", line.word
            )?,
        }
    }
    for line in lines {
        for figure in line.verdict.iter().flat_map(|verdict| &verdict.figures) {
            writeln!(out, "{:<22} {figure}", line.name)?;
        }
    }
    Ok(())
}
