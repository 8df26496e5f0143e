//! How often a recipient is sent to: at most a number of notifications in a window, by app and by category.
//!
//! Windows are fixed and begin at midnight UTC, or at a multiple of their length after it. Who counts is the region's own server
//! ([`crate::nats::spend`]), so that all workers of the region see one sum.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::category::CategoryKind;
use crate::{
    app::App,
    channel::{Channel, Class, words},
    digest::derive,
    id::{Category, Topic},
    invalid::Invalid,
    job::{Addressee, Job},
    spend::{Window, whole},
    tolerant::{self, objects},
};

/// The reason of what waits or ends because of a limit.
pub const RATE_LIMIT: &str = "rate_limit";

/// Most limits of an app.
const APP_LIMITS_MAX: usize = 32;

/// Most limits of a category.
const CATEGORY_LIMITS_MAX: usize = 8;

/// Most notifications that a limit may allow in a window.
const COUNT_MAX: u32 = 1_000_000;

/// The shortest and the longest window, in seconds. The counters are kept for two days.
const WINDOW_S: (u32, u32) = (60, 86_400);

words!(
    /// What happens to a notification beyond a limit.
    WhenLimited, "when_limited", {
        /// It ends, and is not sent.
        Drop = "drop",
        /// It waits until the window ends, and is counted again.
        Delay = "delay",
    }
    default Drop
);

/// The most notifications that a recipient is sent in a window. What is absent excludes none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Limit {
    /// The most notifications in a window.
    #[serde(deserialize_with = "whole")]
    pub count: u32,
    /// The length of a window in seconds.
    #[serde(deserialize_with = "whole")]
    pub window_s: u32,
    /// The channel on which they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// The topic whose broadcasts are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Topic>,
    /// What happens to what exceeds it.
    #[serde(
        default,
        deserialize_with = "tolerant::or_default",
        skip_serializing_if = "tolerant::is_usual"
    )]
    pub then: WhenLimited,
}

objects!(Limit);

impl Limit {
    /// Checks the limits of an app.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at the list.
    pub fn check_of_app(limits: &[Self]) -> Result<(), Invalid> {
        Self::check(limits, APP_LIMITS_MAX)
    }

    /// Checks the limits of a category.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at the list.
    pub fn check_of_category(limits: &[Self]) -> Result<(), Invalid> {
        Self::check(limits, CATEGORY_LIMITS_MAX)
    }

    fn check(limits: &[Self], most: usize) -> Result<(), Invalid> {
        if limits.len() > most {
            return Err(Invalid::new("", format_args!("must be at most {most} limits")));
        }
        for (index, limit) in limits.iter().enumerate() {
            let invalid = |member: &str, rule: &str| Err(Invalid::new(format!("[{index}]{member}"), rule));
            if !(1..=COUNT_MAX).contains(&limit.count) {
                return invalid(".count", "must be 1 to 1000000");
            }
            if !(WINDOW_S.0..=WINDOW_S.1).contains(&limit.window_s) {
                return invalid(".window_s", "must be 60 to 86400");
            }
            let is_same = |other: &Self| {
                (other.window_s, other.channel, &other.topic) == (limit.window_s, limit.channel, &limit.topic)
            };
            if limits[..index].iter().any(is_same) {
                return invalid("", "must differ from the others in window_s, channel or topic");
            }
        }
        Ok(())
    }

    fn counts(&self, channel: Channel, topic: Option<&Topic>) -> bool {
        self.channel.is_none_or(|only| only == channel) && self.topic.as_ref().is_none_or(|only| Some(only) == topic)
    }
}

/// A limit that concerns a job: of the app, or of the job's category.
#[derive(Debug, Clone, Copy)]
pub struct Applied<'a> {
    /// The limit.
    pub limit: &'a Limit,
    /// The category, if the limit is its own.
    category: Option<&'a Category>,
}

impl Applied<'_> {
    /// The window that contains `now`.
    pub fn window(&self, now: Timestamp) -> Window {
        Window::of(self.limit.window_s, now)
    }

    /// Names the counter of this limit for the addressee of `job`, without saying who that is. A change of `count` or `then` keeps
    /// the name, and so what was counted.
    pub fn id(&self, job: &Job) -> Uuid {
        let Limit {
            window_s,
            channel,
            topic,
            ..
        } = self.limit;
        let address;
        let (kind, addressee) = match &job.to {
            Addressee::Recipient(recipient) => ("recipient", recipient.as_str()),
            Addressee::Address(to) => {
                address = to.id.to_string();
                ("address", address.as_str())
            }
        };
        derive(
            "limit",
            &[
                kind,
                addressee,
                self.category.map_or("", Category::as_str),
                channel.map_or("", Channel::as_str),
                topic.as_ref().map_or("", Topic::as_str),
                &window_s.to_string(),
            ],
        )
    }
}

/// The limits of `app` that concern what is sent to a topic, or to recipients by name if `topic` is `None`: those of few notifications
/// first, so that what one stops uses up little of the others. Urgent and critical ones have none.
pub fn applied<'a>(
    app: &'a App,
    category: Option<&'a Category>,
    channel: Channel,
    class: Class,
    topic: Option<&Topic>,
) -> Vec<Applied<'a>> {
    let policy = category.and_then(|category| app.categories.get(category));
    let of_category = policy.map_or(&[][..], |policy| &policy.limits);
    let is_critical = policy.is_some_and(|policy| policy.kind == CategoryKind::Critical);
    if class == Class::Urgent || is_critical || (app.limits.is_empty() && of_category.is_empty()) {
        return Vec::new();
    }
    let own = of_category.iter().map(|limit| Applied { limit, category });
    let all = app.limits.iter().map(|limit| Applied { limit, category: None });
    let mut applied: Vec<_> = own.chain(all).filter(|it| it.limit.counts(channel, topic)).collect();
    applied.sort_by_key(|it| {
        let Limit {
            window_s,
            channel,
            topic,
            ..
        } = it.limit;
        (it.category.is_none(), topic.is_none(), channel.is_none(), *window_s)
    });
    applied
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{content::push::Push, testing};

    fn limits(limits: &Value) -> Vec<Limit> {
        serde_json::from_value(limits.clone()).unwrap()
    }

    fn app() -> App {
        let mut app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
        app.limits = limits(&json!([
            { "count": 10, "window_s": 86400 },
            { "count": 3, "window_s": 3600, "channel": "push", "then": "delay" },
            { "count": 1, "window_s": 60, "topic": "news" },
        ]));
        let offers =
            json!({ "offers": { "limits": [{ "count": 1, "window_s": 86400 }] }, "codes": { "kind": "critical" } });
        app.categories = serde_json::from_value(offers).unwrap();
        app
    }

    #[test]
    fn a_limit_concerns_its_category_channel_and_topic() {
        let app = app();
        let windows = |category: &str, channel, class, topic: Option<&str>| {
            let (category, topic) = (category.parse().unwrap(), topic.map(|topic| topic.parse().unwrap()));
            let applied = applied(&app, Some(&category), channel, class, topic.as_ref());
            applied
                .iter()
                .map(|it| (it.limit.count, it.limit.window_s))
                .collect::<Vec<_>>()
        };
        let (hour, day) = ((3, 3600), (10, 86_400));
        assert_eq!(windows("other", Channel::Push, Class::Normal, None), [hour, day]);
        assert_eq!(windows("other", Channel::Sms, Class::Bulk, None), [day]);
        assert_eq!(
            windows("other", Channel::Push, Class::Bulk, Some("news")),
            [(1, 60), hour, day]
        );
        assert_eq!(windows("other", Channel::Push, Class::Bulk, Some("olds")), [hour, day]);
        assert_eq!(
            windows("offers", Channel::Push, Class::Normal, None),
            [(1, 86_400), hour, day]
        );
        assert!(windows("offers", Channel::Push, Class::Urgent, None).is_empty());
        assert!(windows("codes", Channel::Push, Class::Normal, None).is_empty());
    }

    #[test]
    fn each_recipient_category_and_limit_has_a_counter_of_its_own() {
        let app = app();
        let (offers, job) = (
            "offers".parse().unwrap(),
            testing::job(&app.id, "e1", Push::default(), Timestamp::UNIX_EPOCH),
        );
        let ids = |app: &App, job: &Job| {
            let applied = applied(app, Some(&offers), Channel::Push, Class::Normal, None);
            applied.iter().map(|it| it.id(job)).collect::<Vec<_>>()
        };
        let ann = ids(&app, &job);
        let bob = ids(
            &app,
            &Job {
                to: Addressee::Recipient("bob".parse().unwrap()),
                ..job.clone()
            },
        );
        let distinct: std::collections::HashSet<_> = ann.iter().chain(&bob).collect();
        assert_eq!(distinct.len(), 6);
        let mut changed = app.clone();
        for limit in &mut changed.limits {
            (limit.count, limit.then) = (7, WhenLimited::Delay);
        }
        assert_eq!(ids(&changed, &job), ann, "what was counted is kept");
    }

    #[test]
    fn a_limit_that_breaks_a_rule_is_named() {
        let check = |list: Value| {
            Limit::check_of_app(&limits(&list)).map_or_else(|invalid| invalid.field, |()| "ok".to_owned())
        };
        let hourly = json!({ "count": 1, "window_s": 3600 });
        for (members, field) in [
            (json!({ "channel": "sms" }), "ok"),
            (json!({ "window_s": 60 }), "ok"),
            (json!({ "count": 2, "then": "delay" }), "[1]"),
            (json!({ "count": 0 }), "[1].count"),
            (json!({ "count": 1_000_001 }), "[1].count"),
            (json!({ "window_s": 59 }), "[1].window_s"),
            (json!({ "window_s": 86_401 }), "[1].window_s"),
        ] {
            let mut limit = hourly.clone();
            limit
                .as_object_mut()
                .unwrap()
                .extend(members.as_object().unwrap().clone());
            assert_eq!(check(json!([hourly.clone(), limit])), field, "{members}");
        }
        let many: Vec<Value> = (0..33)
            .map(|number| json!({ "count": 1, "window_s": 60 + number }))
            .collect();
        assert_eq!(check(json!(many)), "");
        assert_eq!(
            Limit::check_of_category(&limits(&json!(many[..9]))).unwrap_err().field,
            ""
        );
        for bad in [
            json!({ "count": 1 }),
            json!({ "count": 1, "window_s": 60, "then": "digest" }),
            json!([1, 60]),
        ] {
            assert!(serde_json::from_value::<Limit>(bad).is_err());
        }
    }
}
