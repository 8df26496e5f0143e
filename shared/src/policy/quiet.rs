//! Quiet hours: times of the day at which a recipient is not to be disturbed, by the clock where they are.
//!
//! A window begins when the local clock first shows `from`, and ends when it has shown the time before `to` for the last time. If
//! a clock is put forward over such a time, that is the moment of the change; if it is put back, the window lasts longer. Windows
//! that overlap or adjoin are one quiet period: what is held leaves at its end, and not before.

use std::{fmt, iter, str::FromStr};

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, DateTime, Time},
    tz::{AmbiguousOffset, TimeZone},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Ruling,
    category::CategoryKind,
    zone::{UNKNOWN_ZONE, Zone},
};
use crate::{
    app::App,
    channel::{Channel, Class, words},
    digest::derive,
    id::Category,
    invalid::Invalid,
    job::Job,
    receipt::State,
    tolerant::objects,
};

/// The reason of what waits or ends because of quiet hours.
pub const QUIET_HOURS: &str = "quiet_hours";

/// Most windows in one list.
const WINDOWS_MAX: usize = 14;

/// Days after which a quiet period is looked at again, so that windows without a gap have an end too. They repeat every week.
const LONGEST_PERIOD: SignedDuration = SignedDuration::from_hours(8 * 24);

/// By how much a clock is put back at most. A local time that is further away is certainly before or after another.
const CLOCK_CHANGE_MAX: SignedDuration = SignedDuration::from_hours(3);

/// What was held leaves within this time after the end of its quiet period, so that a whole time zone does not wake up at once.
const SPREAD_NORMAL: SignedDuration = SignedDuration::from_mins(5);

/// The same for bulk.
const SPREAD_BULK: SignedDuration = SignedDuration::from_mins(30);

words!(
    /// A day of the week.
    Weekday, "weekday", {
        /// Monday.
        Mon = "mon",
        /// Tuesday.
        Tue = "tue",
        /// Wednesday.
        Wed = "wed",
        /// Thursday.
        Thu = "thu",
        /// Friday.
        Fri = "fri",
        /// Saturday.
        Sat = "sat",
        /// Sunday.
        Sun = "sun",
    }
);

words!(
    /// What happens to a notification in quiet hours.
    WhenBlocked, "when_blocked", {
        /// It waits until they end.
        Hold = "hold",
        /// It ends, and is not sent.
        Drop = "drop",
    }
);

/// A time of the day, written `22:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay(Time);

impl FromStr for TimeOfDay {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let (hour, minute) = text.split_once(':')?;
            let number = |digits: &str| {
                let is_number = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
                is_number.then(|| digits.parse().ok())?
            };
            Time::new(number(hour)?, number(minute)?, 0, 0).ok().map(Self)
        };
        read().ok_or_else(|| Invalid::new("time", "must be a time of the day, 00:00 to 23:59"))
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
    }
}

impl Serialize for TimeOfDay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeOfDay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|invalid: Invalid| de::Error::custom(invalid.rule))
    }
}

/// A window of the day in which a recipient is not to be disturbed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct QuietHours {
    /// When it begins.
    #[schema(value_type = String)]
    pub from: TimeOfDay,
    /// When it ends; on the next day, if that is not after `from`.
    #[schema(value_type = String)]
    pub to: TimeOfDay,
    /// The days on which it begins; every day if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<Vec<Weekday>>,
    /// The channels that it is for; all but webhooks, which disturb nobody, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<Channel>>,
    /// What happens meanwhile; it is held if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<WhenBlocked>,
}

objects!(QuietHours);

impl QuietHours {
    /// Checks a list of windows.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at the list.
    pub fn check(windows: &[Self]) -> Result<(), Invalid> {
        if windows.len() > WINDOWS_MAX {
            return Err(Invalid::new("", format_args!("must be at most {WINDOWS_MAX}")));
        }
        for (index, window) in windows.iter().enumerate() {
            window
                .check_members()
                .map_err(|invalid| invalid.within(&format!("[{index}]")))?;
        }
        Ok(())
    }

    fn check_members(&self) -> Result<(), Invalid> {
        if self.from == self.to {
            return Err(Invalid::new("to", "must differ from from"));
        }
        check_list("days", self.days.as_deref(), Weekday::ALL.len())?;
        check_list("channels", self.channels.as_deref(), Channel::ALL.len())
    }

    fn is_for(&self, channel: Channel) -> bool {
        let listed = self.channels.as_ref().map(|channels| channels.contains(&channel));
        listed.unwrap_or(channel != Channel::Webhook)
    }

    fn begins_on(&self, date: Date) -> bool {
        let day = Weekday::ALL[usize::from(date.weekday().to_monday_zero_offset().unsigned_abs())];
        self.days.as_ref().is_none_or(|days| days.contains(&day))
    }

    /// The local times at which the window that begins on `date` begins and ends.
    fn on(&self, date: Date) -> Option<(DateTime, DateTime)> {
        let last = if self.to > self.from {
            date
        } else {
            date.tomorrow().ok()?
        };
        Some((date.to_datetime(self.from.0), last.to_datetime(self.to.0)))
    }
}

fn check_list<T: PartialEq>(member: &str, list: Option<&[T]>, most: usize) -> Result<(), Invalid> {
    let Some(list) = list else { return Ok(()) };
    if !(1..=most).contains(&list.len()) {
        return Err(Invalid::new(member, format_args!("must be 1 to {most}")));
    }
    let is_twice = |index: usize| list[..index].contains(&list[index]);
    match (1..list.len()).find(|index| is_twice(*index)) {
        Some(index) => Err(Invalid::new(format!("{member}[{index}]"), "must not be given twice")),
        None => Ok(()),
    }
}

/// Whether a notification may be sent at a time of the day.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    windows: &'a [QuietHours],
    app: &'a App,
    /// What the category says of all windows.
    then: Option<WhenBlocked>,
    channel: Channel,
    now: Timestamp,
}

impl<'a> Question<'a> {
    /// The question for a notification of `app` to a recipient who has set the windows `own`; `None` if no window concerns it,
    /// at whatever time.
    pub fn new(
        app: &'a App,
        own: Option<&'a [QuietHours]>,
        category: Option<&Category>,
        channel: Channel,
        class: Class,
        now: Timestamp,
    ) -> Option<Self> {
        let windows = own.unwrap_or(&app.quiet_hours);
        if class == Class::Urgent || !windows.iter().any(|window| window.is_for(channel)) {
            return None;
        }
        let policy = category.and_then(|category| app.categories.get(category));
        if policy.is_some_and(|policy| policy.kind == CategoryKind::Critical) {
            return None;
        }
        Some(Self {
            windows,
            app,
            then: policy.and_then(|policy| policy.quiet_hours),
            channel,
            now,
        })
    }

    /// The answer for a device in the first known of `zones`. What waits leaves by `spread` after its quiet period, or sooner if the
    /// next begins before.
    pub fn ruling(&self, zones: [Option<&str>; 2], spread: impl FnOnce() -> SignedDuration) -> Ruling {
        let zone = match Zone::of(zones, self.app.unknown_zone, self.app.timezone.as_deref()) {
            Zone::Known(zone) => zone,
            Zone::Send => return Ruling::Send,
            Zone::Drop => {
                return Ruling::Drop {
                    state: State::Suppressed,
                    why: UNKNOWN_ZONE,
                };
            }
        };
        let Some((until, then)) = self.period(&zone, self.now) else {
            return Ruling::Send;
        };
        match self.then.unwrap_or(then) {
            WhenBlocked::Hold => Ruling::Wait {
                until: self.release(&zone, until, spread()),
                why: QUIET_HOURS,
            },
            WhenBlocked::Drop => Ruling::Drop {
                state: State::Suppressed,
                why: QUIET_HOURS,
            },
        }
    }

    /// A moment up to `spread` after `end` that is not in the next quiet period.
    fn release(&self, zone: &TimeZone, end: Timestamp, spread: SignedDuration) -> Timestamp {
        let mut after = spread;
        while !after.is_zero() {
            match end.checked_add(after) {
                Ok(at) if self.covering(zone, at).is_none() => return at,
                _ => after = SignedDuration::from_secs(after.as_secs() / 2),
            }
        }
        end
    }

    /// The end of the quiet period that contains `at`, and what happens at `at`: the strictest that one of its windows says.
    fn period(&self, zone: &TimeZone, at: Timestamp) -> Option<(Timestamp, WhenBlocked)> {
        let (mut end, then) = self.covering(zone, at)?;
        let latest = at.saturating_add(LONGEST_PERIOD).unwrap_or(Timestamp::MAX);
        while end < latest
            && let Some((later, _)) = self.covering(zone, end)
        {
            end = later;
        }
        Some((end, then))
    }

    /// The latest end of the windows that contain `at`.
    fn covering(&self, zone: &TimeZone, at: Timestamp) -> Option<(Timestamp, WhenBlocked)> {
        let local = zone.to_datetime(at);
        let (before, after) = (
            local.saturating_sub(CLOCK_CHANGE_MAX),
            local.saturating_add(CLOCK_CHANGE_MAX),
        );
        let mut found: Option<(DateTime, Timestamp, WhenBlocked)> = None;
        let first = before.date().yesterday().unwrap_or(Date::MIN);
        let dates = iter::successors(Some(first), |date| date.tomorrow().ok());
        for date in dates.take_while(|date| *date <= after.date()) {
            let begin_then = |window: &&QuietHours| window.is_for(self.channel) && window.begins_on(date);
            for window in self.windows.iter().filter(begin_then) {
                let Some((from, to)) = window.on(date) else {
                    continue;
                };
                let then = window.then.unwrap_or(WhenBlocked::Hold);
                // One that ends no later than another, and is no stricter, adds nothing.
                let adds_nothing = found.is_some_and(|(last, _, strictest)| to <= last && then <= strictest);
                if from > after || to < before || adds_nothing {
                    continue;
                }
                let (Some(begins), Some(ends)) = (first_at(zone, from), last_before(zone, to)) else {
                    continue;
                };
                if (begins..ends).contains(&at) {
                    let (last, end, strictest) = found.unwrap_or((to, ends, then));
                    found = Some((last.max(to), end.max(ends), strictest.max(then)));
                }
            }
        }
        found.map(|(_, end, strictest)| (end, strictest))
    }
}

/// The first moment at which the clock in `zone` shows `local` or later.
fn first_at(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    let times = zone.to_ambiguous_timestamp(local);
    match times.offset() {
        AmbiguousOffset::Gap { .. } => change_after(zone, times.earlier().ok()?),
        AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => times.earlier().ok(),
    }
}

/// The moment after the last one at which the clock in `zone` shows a time before `local`.
fn last_before(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    let times = zone.to_ambiguous_timestamp(local);
    match times.offset() {
        AmbiguousOffset::Unambiguous { .. } => times.earlier().ok(),
        AmbiguousOffset::Gap { .. } => change_after(zone, times.earlier().ok()?),
        AmbiguousOffset::Fold { .. } => {
            let (earlier, later) = (times.earlier().ok()?, times.later().ok()?);
            // A clock that is put back to `local` itself shows nothing before it again.
            let is_put_back_to = change_after(zone, earlier) == Some(later);
            Some(if is_put_back_to { earlier } else { later })
        }
    }
}

/// When the clock in `zone` is changed for the first time after `at`.
fn change_after(zone: &TimeZone, at: Timestamp) -> Option<Timestamp> {
    zone.following(at).next().map(|change| change.timestamp())
}

/// By how much a job leaves later than its quiet period ends, if it is held: always the same, and spread evenly over the jobs. The
/// members of a slice leave together.
pub fn spread(job: &Job) -> SignedDuration {
    let id = match job.slice {
        Some(slice) => derive("quiet-hours", &[&job.notification.to_string(), &slice.to_string()]),
        None => job.id.0,
    };
    spread_of(job.class, id)
}

fn spread_of(class: Class, id: Uuid) -> SignedDuration {
    let within = match class {
        Class::Urgent => return SignedDuration::ZERO,
        Class::Normal => SPREAD_NORMAL,
        Class::Bulk => SPREAD_BULK,
    };
    let within_ms = within.as_millis().unsigned_abs().max(1);
    SignedDuration::from_millis(i64::try_from(id.as_u128() % within_ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};
    use serde_json::{Value, json};

    use super::*;

    fn app(windows: &Value) -> App {
        let mut app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
        app.quiet_hours = serde_json::from_value(windows.clone()).unwrap();
        QuietHours::check(&app.quiet_hours).unwrap();
        app
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn ask(app: &App, zone: &str, now: &str) -> Ruling {
        let question = Question::new(app, None, None, Channel::Push, Class::Normal, at(now));
        question.map_or(Ruling::Send, |question| {
            question.ruling([None, Some(zone)], || SignedDuration::ZERO)
        })
    }

    fn until(text: &str) -> Ruling {
        Ruling::Wait {
            until: at(text),
            why: QUIET_HOURS,
        }
    }

    const DROPPED: Ruling = Ruling::Drop {
        state: State::Suppressed,
        why: QUIET_HOURS,
    };

    #[test]
    fn a_window_crosses_midnight_and_begins_on_its_days() {
        let nights = app(&json!([{ "from": "22:00", "to": "07:00", "days": ["fri", "sat"] }]));
        for (now, ruling) in [
            // 2026-11-27 is a Friday, and Zurich is one hour ahead of UTC.
            ("2026-11-27T03:00:00Z", Ruling::Send),
            ("2026-11-27T20:59:59.999Z", Ruling::Send),
            ("2026-11-27T21:00:00Z", until("2026-11-28T06:00:00Z")),
            ("2026-11-28T05:59:59Z", until("2026-11-28T06:00:00Z")),
            ("2026-11-28T06:00:00Z", Ruling::Send),
            ("2026-11-29T05:00:00Z", until("2026-11-29T06:00:00Z")),
            ("2026-11-29T22:00:00Z", Ruling::Send),
        ] {
            assert_eq!(ask(&nights, "Europe/Zurich", now), ruling, "{now}");
        }
    }

    #[test]
    fn windows_that_overlap_or_adjoin_have_one_end() {
        let windows = app(&json!([
            { "from": "20:00", "to": "23:00", "then": "drop" },
            { "from": "22:00", "to": "06:00" },
            { "from": "06:00", "to": "07:30" },
        ]));
        assert_eq!(ask(&windows, "UTC", "2026-11-27T20:00:00Z"), DROPPED);
        assert_eq!(
            ask(&windows, "UTC", "2026-11-27T22:30:00Z"),
            DROPPED,
            "the strictest counts"
        );
        let held = until("2026-11-28T07:30:00Z");
        assert_eq!(ask(&windows, "UTC", "2026-11-27T23:00:00Z"), held);
        // What is held before others are dropped is not dropped when it leaves.
        let windows =
            app(&json!([{ "from": "22:00", "to": "00:00" }, { "from": "00:00", "to": "07:00", "then": "drop" }]));
        let held = until("2026-11-28T07:00:00Z");
        assert_eq!(ask(&windows, "UTC", "2026-11-27T22:00:00Z"), held);
        // Without a gap there is no end; it is looked at again after days.
        let windows = app(&json!([{ "from": "22:00", "to": "10:00" }, { "from": "10:00", "to": "22:00" }]));
        let held = until("2026-12-05T22:00:00Z");
        assert_eq!(ask(&windows, "UTC", "2026-11-27T22:00:00Z"), held);
    }

    #[test]
    fn clocks_are_changed_in_quiet_hours() {
        let nights = app(&json!([{ "from": "02:30", "to": "06:00" }]));
        // The clock shows no 02:30 on this day, so that they begin when it is put forward, at 01:00 UTC.
        assert_eq!(ask(&nights, "Europe/Zurich", "2026-03-29T00:59:59Z"), Ruling::Send);
        let held = until("2026-03-29T04:00:00Z");
        assert_eq!(ask(&nights, "Europe/Zurich", "2026-03-29T01:00:00Z"), held);
        // It shows 02:30 twice, and they begin with the first.
        assert_eq!(ask(&nights, "Europe/Zurich", "2026-10-25T00:29:59Z"), Ruling::Send);
        for now in ["2026-10-25T00:30:00Z", "2026-10-25T01:10:00Z"] {
            assert_eq!(ask(&nights, "Europe/Zurich", now), until("2026-10-25T05:00:00Z"));
        }
        // They end with the second.
        let evenings = app(&json!([{ "from": "20:00", "to": "02:30" }]));
        assert_eq!(
            ask(&evenings, "Europe/Zurich", "2026-10-25T00:45:00Z"),
            until("2026-10-25T01:30:00Z")
        );
        // Put back to 02:00 itself, the clock shows nothing before it again.
        let evenings = app(&json!([{ "from": "20:00", "to": "02:00" }]));
        assert_eq!(
            ask(&evenings, "Europe/Zurich", "2026-10-24T23:30:00Z"),
            until("2026-10-25T00:00:00Z")
        );
    }

    #[test]
    fn what_is_urgent_critical_or_for_another_channel_passes() {
        let mut app = app(
            &json!([{ "from": "00:00", "to": "23:59" }, { "from": "12:00", "to": "13:00", "channels": ["webhook"] }]),
        );
        app.categories = serde_json::from_value(json!({
            "codes": { "kind": "critical" }, "offers": { "quiet_hours": "drop" }, "news": { "kind": "commercial" },
        }))
        .unwrap();
        let ask = |category: &str, channel, class, own: Option<&[QuietHours]>| {
            let category = category.parse().unwrap();
            Question::new(&app, own, Some(&category), channel, class, at("2026-11-27T11:59:00Z"))
                .map(|question| question.ruling([None, Some("UTC")], || SignedDuration::ZERO))
        };
        let held = Some(until("2026-11-27T23:59:00Z"));
        assert_eq!(ask("news", Channel::Push, Class::Bulk, None), held);
        assert_eq!(ask("unknown", Channel::Sms, Class::Normal, None), held);
        assert_eq!(ask("news", Channel::Push, Class::Urgent, None), None);
        assert_eq!(ask("codes", Channel::Push, Class::Normal, None), None);
        assert_eq!(ask("offers", Channel::Push, Class::Normal, None), Some(DROPPED));
        assert_eq!(ask("news", Channel::Webhook, Class::Normal, None), Some(Ruling::Send));
        assert_eq!(
            ask("news", Channel::Push, Class::Normal, Some(&[])),
            None,
            "a recipient may have none"
        );
    }

    #[test]
    fn an_app_decides_for_those_without_a_zone() {
        let mut app = app(&json!([{ "from": "08:00", "to": "09:00" }]));
        app.timezone = Some("Asia/Tokyo".to_owned());
        let ask = |app: &App, now| {
            let question = Question::new(app, None, None, Channel::Push, Class::Normal, at(now)).unwrap();
            question.ruling([None, None], || SignedDuration::ZERO)
        };
        let (tokyo, utc) = ("2026-11-26T23:30:00Z", "2026-11-27T08:30:00Z");
        assert_eq!(
            (ask(&app, tokyo), ask(&app, utc)),
            (until("2026-11-27T00:00:00Z"), Ruling::Send)
        );
        app.unknown_zone = super::super::zone::UnknownZone::Utc;
        assert_eq!(
            (ask(&app, tokyo), ask(&app, utc)),
            (Ruling::Send, until("2026-11-27T09:00:00Z"))
        );
        app.unknown_zone = super::super::zone::UnknownZone::Send;
        assert_eq!((ask(&app, tokyo), ask(&app, utc)), (Ruling::Send, Ruling::Send));
        app.unknown_zone = super::super::zone::UnknownZone::Drop;
        let dropped = Ruling::Drop {
            state: State::Suppressed,
            why: UNKNOWN_ZONE,
        };
        assert_eq!((ask(&app, tokyo), ask(&app, utc)), (dropped, dropped));
    }

    #[test]
    fn what_was_held_leaves_spread_and_not_into_the_next_window() {
        let app = app(&json!([{ "from": "22:00", "to": "07:00" }, { "from": "07:02", "to": "08:00" }]));
        let question = Question::new(
            &app,
            None,
            None,
            Channel::Push,
            Class::Normal,
            at("2026-11-27T23:00:00Z"),
        )
        .unwrap();
        let (end, next) = (at("2026-11-28T07:00:00Z"), at("2026-11-28T07:02:00Z"));
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..500 {
            let by = spread_of(Class::Normal, derive("test", &[&number.to_string()]));
            assert!(by < SPREAD_NORMAL);
            let Ruling::Wait { until, .. } = question.ruling([Some("UTC"), None], || by) else {
                panic!("it is night")
            };
            assert!((end..next).contains(&until), "{until}");
            seen.insert(until);
        }
        assert!(seen.len() > 100, "{}", seen.len());
        let id = Uuid::from_u128(7);
        assert_eq!(spread_of(Class::Urgent, id), SignedDuration::ZERO);
        assert_eq!(spread_of(Class::Bulk, id), spread_of(Class::Bulk, id));
    }

    #[test]
    fn a_window_that_breaks_a_rule_is_named() {
        let check = |windows: Value| {
            let windows: Vec<QuietHours> = serde_json::from_value(windows).unwrap();
            QuietHours::check(&windows).map_or_else(|invalid| invalid.field, |()| "ok".to_owned())
        };
        let night = json!({ "from": "22:00", "to": "07:00" });
        assert_eq!(
            check(json!([night.clone(), { "from": "00:00", "to": "23:59", "days": null, "then": "drop" }])),
            "ok"
        );
        for (members, field) in [
            (json!({ "to": "22:00" }), "[1].to"),
            (json!({ "days": [] }), "[1].days"),
            (json!({ "days": ["mon", "tue", "mon"] }), "[1].days[2]"),
            (json!({ "channels": [] }), "[1].channels"),
            (json!({ "channels": ["push", "push"] }), "[1].channels[1]"),
        ] {
            let mut window = night.clone();
            window
                .as_object_mut()
                .unwrap()
                .extend(members.as_object().unwrap().clone());
            assert_eq!(check(json!([night.clone(), window])), field);
        }
        assert_eq!(check(json!(vec![night.clone(); 15])), "");
        for bad in ["24:00", "7:00", "07:60", "+7:00", "07:00:00", "", "seven"] {
            let window = json!({ "from": bad, "to": "07:00" });
            let error = serde_json::from_value::<QuietHours>(window).unwrap_err().to_string();
            assert!(error.starts_with("must be a time of the day"), "{error}");
        }
        for bad in [
            json!({ "from": "22:00" }),
            json!({ "from": "22:00", "to": "07:00", "more": 1 }),
            json!(["22:00", "07:00"]),
        ] {
            assert!(serde_json::from_value::<QuietHours>(bad).is_err());
        }
        assert_eq!(
            serde_json::to_value(serde_json::from_value::<QuietHours>(night.clone()).unwrap()).unwrap(),
            night
        );
    }

    /// Quiet hours found by looking at the clock at every minute of some days: no time is computed from a local time.
    struct Clock {
        first: i64,
        /// By minute, the latest time that the clock has shown so far, in minutes since 1970.
        reached: Vec<i64>,
        /// By minute, the earliest time that it will still show.
        ahead: Vec<i64>,
    }

    impl Clock {
        fn watch(zone: &TimeZone, from: Timestamp, days: i64) -> Self {
            let first = from.as_second().div_euclid(60);
            let shown = |minute: i64| {
                let at = Timestamp::from_second(minute * 60).unwrap();
                minute + i64::from(zone.to_offset(at).seconds()).div_euclid(60)
            };
            let shown: Vec<i64> = (first..first + days * 24 * 60).map(shown).collect();
            let mut reached = shown.clone();
            for index in 1..reached.len() {
                reached[index] = reached[index].max(reached[index - 1]);
            }
            let mut ahead = shown;
            for index in (1..ahead.len()).rev() {
                ahead[index - 1] = ahead[index - 1].min(ahead[index]);
            }
            Self { first, reached, ahead }
        }

        fn is_quiet(&self, windows: &[QuietHours], minute: i64) -> bool {
            let index = usize::try_from(minute - self.first).unwrap();
            let (reached, ahead) = (self.reached[index], self.ahead[index]);
            let minutes = |time: TimeOfDay| i64::from(time.0.hour()) * 60 + i64::from(time.0.minute());
            windows.iter().any(|window| {
                let (from, mut to) = (minutes(window.from), minutes(window.to));
                if to <= from {
                    to += 24 * 60;
                }
                let today = reached.div_euclid(24 * 60);
                (today - 3..=today + 1).any(|day| {
                    // The first of January 1970 was a Thursday.
                    let weekday = Weekday::ALL[usize::try_from((day + 3).rem_euclid(7)).unwrap()];
                    let begins = window.days.as_ref().is_none_or(|days| days.contains(&weekday));
                    begins && reached >= day * 24 * 60 + from && ahead < day * 24 * 60 + to
                })
            })
        }
    }

    /// Zones with changes by 30, 60 and 120 minutes, at midnight, just after it and by a whole day, and one without any.
    const ZONES: [&str; 12] = [
        "Europe/Zurich",
        "America/New_York",
        "America/St_Johns",
        "America/Sao_Paulo",
        "America/Havana",
        "Australia/Lord_Howe",
        "Pacific/Chatham",
        "Pacific/Apia",
        "Asia/Beirut",
        "Asia/Kolkata",
        "Africa/Casablanca",
        "Antarctica/Troll",
    ];

    fn a_window() -> impl Strategy<Value = QuietHours> {
        let minute = 0..24 * 60_i32;
        // Most changes of clocks are at night.
        let time = prop_oneof![minute, 0..4 * 60];
        let days = proptest::option::of(proptest::collection::btree_set(select(Weekday::ALL), 1..=6));
        (time.clone(), time, days).prop_filter_map("from and to differ", |(from, to, days)| {
            let of = |minute: i32| format!("{:02}:{:02}", minute / 60, minute % 60).parse().unwrap();
            (from != to).then(|| QuietHours {
                from: of(from),
                to: of(to),
                days: days.map(|days| days.into_iter().collect()),
                channels: None,
                then: None,
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn periods_are_those_that_are_found_by_the_minute(
            zone in select(&ZONES),
            year in 2008_i16..2028,
            change in 0_usize..3,
            minutes in -36 * 60_i64..36 * 60,
            second in 0_i64..60,
            windows in proptest::collection::vec(a_window(), 1..4),
        ) {
            let zone = TimeZone::get(zone).unwrap();
            let year = jiff::civil::date(year, 1, 1).to_zoned(TimeZone::UTC).unwrap().timestamp();
            let change = zone.following(year).nth(change).map_or(year, |change| change.timestamp());
            let now = change + SignedDuration::from_secs(minutes * 60 + second);
            let app = App { quiet_hours: windows.clone(), ..app(&json!([])) };
            let question = Question::new(&app, None, None, Channel::Push, Class::Normal, now).unwrap();
            let found = question.period(&zone, now).map(|(until, _)| until);

            let clock = Clock::watch(&zone, now - SignedDuration::from_hours(4 * 24), 14);
            let minute = now.as_second().div_euclid(60);
            let latest = minute + 8 * 24 * 60;
            let end = (minute..=latest).find(|minute| !clock.is_quiet(&windows, *minute)).unwrap_or(latest);
            let expected = (end > minute).then_some(Timestamp::from_second(end * 60).unwrap());
            // Beyond days the end is cut.
            match (found, expected) {
                (Some(found), Some(expected)) if end == latest => prop_assert!(found >= expected),
                (found, expected) => prop_assert_eq!(found, expected),
            }
        }
    }
}
