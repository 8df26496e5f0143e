//! Rule: when a schedule fires.
//!
//! A pattern of five fields is evaluated in a time zone. Of a fixed time that the clocks skip the first instant after the gap counts, of one
//! that they show twice the earlier. A pattern with several minutes or hours would count as an interval, which is left out in the
//! gap and fires twice in the fold; so lists are evaluated as one pattern for each time of day.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};

use super::zone;
use crate::invalid::Invalid;

/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 128;

/// Times of day in one pattern that are evaluated one by one, at most.
const TIMES_MAX: usize = 64;

/// A pattern in a time zone.
#[derive(Debug, Clone)]
pub struct Recurrence {
    patterns: Vec<Cron>,
    zone: TimeZone,
}

impl Recurrence {
    /// Reads a pattern of five fields, and the IANA name of a time zone.
    ///
    /// # Errors
    /// Names the member, `cron` or `timezone`, and its rule.
    pub fn new(cron: &str, timezone: &str) -> Result<Self, Invalid> {
        let zone = zone::get(timezone)?;
        let rule = "must be five fields of cron: minute, hour, day of month, month, day of week; at most 128 bytes";
        let broken = || Invalid::new("cron", rule);
        if cron.len() > PATTERN_BYTES_MAX || cron.trim().starts_with('@') {
            return Err(broken());
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let patterns = each_time(cron).into_iter().map(|pattern| parser.parse(&pattern));
        let patterns = patterns.collect::<Result<Vec<_>, _>>().map_err(|_| broken())?;
        Ok(Self { patterns, zone })
    }

    /// The first instant after `after`; `None` if there is none.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = after.to_zoned(self.zone.clone());
        let nexts = self.patterns.iter();
        let nexts = nexts.filter_map(|pattern| pattern.find_next_occurrence(&after, false).ok());
        nexts.map(|next| next.timestamp()).min()
    }
}

/// The pattern with each minute and hour of its lists; the pattern itself if minute or hour is no list of single times.
fn each_time(cron: &str) -> Vec<String> {
    let fields: Vec<&str> = cron.split_whitespace().collect();
    let [minute, hour, rest @ ..] = &fields[..] else {
        return vec![cron.to_owned()];
    };
    let is_list = |field: &str| field.bytes().all(|byte| byte.is_ascii_digit() || byte == b',');
    let (minutes, hours): (Vec<_>, Vec<_>) = (minute.split(',').collect(), hour.split(',').collect());
    if !is_list(minute) || !is_list(hour) || minutes.len() * hours.len() > TIMES_MAX {
        return vec![cron.to_owned()];
    }
    let rest = rest.join(" ");
    let times = hours
        .iter()
        .flat_map(|hour| minutes.iter().map(move |minute| (minute, hour)));
    times.map(|(minute, hour)| format!("{minute} {hour} {rest}")).collect()
}

#[cfg(test)]
mod tests {
    use jiff::civil::DateTime;

    use super::*;

    fn all(cron: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
        let recurrence = Recurrence::new(cron, zone).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let at = |text: &str| zone.to_timestamp(text.parse::<DateTime>().unwrap()).unwrap();
        let (mut at, until) = (at(from), at(until));
        let mut found = Vec::new();
        while let Some(next) = recurrence.next(at).filter(|next| *next <= until) {
            found.push(next.to_string());
            at = next;
        }
        found
    }

    #[test]
    fn each_time_of_day_counts_once_when_the_clocks_change() {
        // Zurich: on 2026-03-29 from 02:00 to 03:00, and on 2026-10-25 from 03:00 to 02:00.
        let spring = |cron| all(cron, "Europe/Zurich", "2026-03-29T00:00", "2026-03-29T12:00");
        assert_eq!(
            spring("30 2 * * *"),
            ["2026-03-29T01:00:00Z"],
            "the first instant after the gap"
        );
        assert_eq!(spring("30 2,4 * * *"), ["2026-03-29T01:00:00Z", "2026-03-29T02:30:00Z"]);
        let autumn = |cron| all(cron, "Europe/Zurich", "2026-10-25T00:00", "2026-10-25T12:00");
        assert_eq!(autumn("30 2 * * *"), ["2026-10-25T00:30:00Z"], "the earlier");
        assert_eq!(autumn("0,30 2,3 * * *").len(), 4, "each once");
        assert_eq!(autumn("*/30 2 * * *").len(), 4, "an interval runs through both hours");
    }

    #[test]
    fn what_is_no_pattern_of_five_fields_is_refused() {
        for bad in [
            "",
            "* * * *",
            "0 0 9 * * *",
            "0 9 * * * 2027",
            "@daily",
            "61 * * * *",
            "a b c d e",
        ] {
            assert_eq!(Recurrence::new(bad, "UTC").unwrap_err().field, "cron", "{bad}");
        }
        assert_eq!(
            Recurrence::new(&format!("{} * * * *", "1,".repeat(70)), "UTC")
                .unwrap_err()
                .field,
            "cron"
        );
        assert_eq!(Recurrence::new("0 9 * * *", "Mars/Base").unwrap_err().field, "timezone");
        let never = Recurrence::new("0 0 31 2 *", "UTC").unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH), None);
    }
}
