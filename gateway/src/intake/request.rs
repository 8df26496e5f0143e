//! The JSON of a request to send, the same at every door, and the orders that it becomes.

use std::{collections::HashSet, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use shared::{
    address::Members,
    app::App,
    channel::{Channel, Class},
    content::{Content, Contents, MAX_LIFE_S, email::Email, push::Push, sms::Sms, webhook::Webhook},
    id::{Category, EventId, GroupKey, RecipientId, Topic},
    id_key::IdKey,
    invalid::Invalid,
    nats::planned::{self, Planned},
    only_objects,
    plan::{Arrangement, Plan},
    tolerant::or_default,
    trial::Trial,
};
use utoipa::ToSchema;

use super::{
    body::SplitBody,
    order::{Addressees, Later, Order},
};
use crate::json::{self, Unread};

/// Maximum number of notifications in one request.
const ITEMS_MAX: usize = 100;

/// Maximum number of jobs that the notifications of one request become.
const JOBS_MAX: usize = 1000;

/// Maximum size of a request with many notifications, in bytes.
const MANY_BYTES_MAX: usize = 65_536;

/// How far ahead of this region's clock a caller's may be.
const CREATED_AHEAD_MAX: SignedDuration = SignedDuration::from_secs(60);

/// No notification is worth delivering longer than this after it happened.
const CREATED_AGO_MAX: SignedDuration = SignedDuration::from_secs(MAX_LIFE_S as i64);

/// How far ahead a notification may be planned: a year and a day.
const PLANNED_AHEAD_MAX: SignedDuration = SignedDuration::from_hours(366 * 24);

/// Maximum size of a notification that waits for its time, in bytes.
const PLANNED_BYTES_MAX: usize = 65_536;

/// How long after `send_at`, or after it came, a notification may still be worth delivering.
const EXPIRES_WITHIN: SignedDuration = SignedDuration::from_secs(MAX_LIFE_S as i64);

/// A notification to send.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct SendRequest {
    /// The caller's id of the event. Two requests with the same event id are one notification. The header
    /// `Idempotency-Key` may carry it instead. Without either, every request is a new notification.
    event_id: Option<EventId>,
    /// The addressees: recipients or a topic.
    to: AddresseesRequest,
    /// The channel of the content, for callers that name it.
    channel: Option<Channel>,
    /// The class, which decides the lane: `urgent`, `normal` or `bulk`.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(default = "normal")]
    class: Class,
    /// The category of the notification. Recipients who opted out of it do not get it.
    category: Option<Category>,
    /// The content for devices.
    #[schema(value_type = Option<Push>)]
    push: Option<Arc<Push>>,
    /// The content for mailboxes.
    #[schema(value_type = Option<Email>)]
    email: Option<Arc<Email>>,
    /// The content for phones.
    #[schema(value_type = Option<Sms>)]
    sms: Option<Arc<Sms>>,
    /// The content for HTTP receivers.
    #[schema(value_type = Option<Webhook>)]
    webhook: Option<Arc<Webhook>>,
    /// Which channels are used in what order, if there is content for several.
    #[schema(value_type = Option<Plan>)]
    plan: Option<Plan>,
    /// Whether it takes the whole path and ends at the provider `log`; `true` by a test key, unless it is given.
    test: Option<bool>,
    /// When it happened; its life counts from here if that is earlier than its acceptance.
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
    /// It is not accepted before this time. A time that is past means now.
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
    /// It is not sent after this time. This or the `ttl` of the content counts, whichever is earlier.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// What it belongs to, such as a room or an order: notifications are listed and cancelled by it.
    group_key: Option<GroupKey>,
    /// What the caller wrote, if it may have to wait.
    #[serde(skip)]
    #[schema(ignore)]
    json: Option<Box<RawValue>>,
}

only_objects!(SendRequest);

/// Many notifications, each accepted or refused by itself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct ManyRequest {
    /// The notifications, in order. Each needs an `event_id`.
    #[schema(value_type = Vec<SendRequest>, min_items = 1, max_items = 100)]
    notifications: Vec<Box<RawValue>>,
}

only_objects!(ManyRequest);

/// The body of a request to send: one notification or many.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only describes the body; `Request` reads it")]
pub(crate) enum SendBody {
    One(Box<SendRequest>),
    Many(ManyRequest),
}

/// The addressees: either recipients or the members of a topic.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = To)]
pub(crate) struct AddresseesRequest {
    /// The recipients, each named once.
    #[schema(min_items = 1)]
    recipients: Option<Vec<RecipientId>>,
    /// Instead of recipients: an address, which need not be registered. Suppressions apply, preferences do not exist.
    #[schema(value_type = Option<Members>)]
    address: Option<Members>,
    /// Instead of recipients: all current members of this topic. Also requires the scope `notifications:broadcast`.
    topic: Option<Topic>,
}

only_objects!(AddresseesRequest);

/// Why a request, or one notification of many, is refused: it breaks a rule of the contract, whatever happens later.
#[derive(Debug, Clone)]
pub(crate) enum Refused {
    /// The JSON cannot be read, or a member breaks a rule.
    Unread(Unread),
    /// It is larger than this number of bytes.
    TooLarge(usize),
    /// The app has no provider that carries the channel.
    NotCarried(Channel),
}

impl From<Unread> for Refused {
    fn from(unread: Unread) -> Self {
        Self::Unread(unread)
    }
}

impl From<Invalid> for Refused {
    fn from(invalid: Invalid) -> Self {
        Self::Unread(invalid.into())
    }
}

/// A request that was read.
#[derive(Debug)]
pub(crate) enum Request {
    /// One notification.
    One(Box<SendRequest>),
    /// Each of many, with its own JSON.
    Many(Vec<(Box<RawValue>, Result<SendRequest, Refused>)>),
}

/// What a request becomes.
#[derive(Debug)]
pub(crate) enum Orders {
    /// One order.
    One(Box<Order>),
    /// The order of each notification, or why there is none, with its own JSON.
    Many(Vec<(Box<RawValue>, Result<Order, Refused>)>),
}

/// What a request must keep to besides its own form.
#[derive(Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) app: &'a Arc<App>,
    /// Whether a test key sends it.
    pub(crate) by_test_key: bool,
    /// The mesh's key of ids.
    pub(crate) ids: &'a IdKey,
    /// When the request was stored, or came.
    pub(crate) at: Timestamp,
    /// Maximum number of recipients of one notification.
    pub(crate) recipients_max: usize,
    /// Number of jobs that a notification to a topic becomes.
    pub(crate) regions: usize,
}

impl Request {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// When it cannot be read. One notification of many that cannot be read does not refuse the others.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Refused> {
        // The words may also stand inside the content of one notification. Both attempts then cost a little time.
        if !contains(body, br#""notifications""#) {
            return Ok(Self::One(SendRequest::read(body)?.into()));
        }
        let many = match json::parse::<ManyRequest>(body) {
            Ok(many) => many,
            Err(unread) if has_notifications(body) => return Err(beside(body).unwrap_or(unread).into()),
            Err(_) => return Ok(Self::One(SendRequest::read(body)?.into())),
        };
        if body.len() > MANY_BYTES_MAX {
            return Err(Refused::TooLarge(MANY_BYTES_MAX));
        }
        let count = many.notifications.len();
        if !(1..=ITEMS_MAX).contains(&count) {
            let rule = format!("must hold 1 to {ITEMS_MAX} notifications, holds {count}");
            return Err(Invalid::new("notifications", rule).into());
        }
        let read = |item: Box<RawValue>| {
            let read = SendRequest::read(item.get().as_bytes()).map_err(Refused::from);
            (item, read)
        };
        let items: Vec<_> = many.notifications.into_iter().map(read).collect();
        let mut events = HashSet::with_capacity(count);
        for (index, (_, item)) in items.iter().enumerate() {
            if let Ok(SendRequest {
                event_id: Some(event), ..
            }) = item
                && !events.insert(event.as_str())
            {
                return Err(Invalid::new(format!("notifications[{index}].event_id"), "must not be given twice").into());
            }
        }
        Ok(Self::Many(items))
    }

    /// The orders of the request. `event` decides the event id of a single notification, from the one in the body.
    ///
    /// # Errors
    /// The rule that the request as a whole breaks.
    pub(crate) fn orders(
        self,
        terms: &Terms<'_>,
        event: impl FnOnce(Option<EventId>) -> Result<EventId, Invalid>,
    ) -> Result<Orders, Refused> {
        match self {
            Self::One(request) => {
                let id = event(request.event_id.clone())?;
                Ok(Orders::One(request.into_order(terms, id)?.into()))
            }
            Self::Many(items) => {
                let order = |read: Result<SendRequest, Refused>| {
                    let request = read?;
                    let missing = || Invalid::new("event_id", "must be given");
                    let id = request.event_id.clone().ok_or_else(missing)?;
                    request.into_order(terms, id)
                };
                let orders: Vec<_> = items.into_iter().map(|(json, read)| (json, order(read))).collect();
                let jobs = orders.iter().filter_map(|(_, order)| order.as_ref().ok());
                let jobs: usize = jobs.map(|order| order.jobs(terms.regions)).sum();
                if jobs > JOBS_MAX {
                    let rule = format!("must become at most {JOBS_MAX} jobs, would become {jobs}");
                    return Err(Invalid::new("notifications", rule).into());
                }
                Ok(Orders::Many(orders))
            }
        }
    }
}

impl Orders {
    /// Whether any order is to a topic.
    pub(crate) fn any_to_topic(&self) -> bool {
        let is_to_topic = |order: &Order| matches!(order.to, Addressees::Topic(_));
        match self {
            Self::One(order) => is_to_topic(order),
            Self::Many(orders) => orders.iter().any(|(_, order)| order.as_ref().is_ok_and(is_to_topic)),
        }
    }
}

/// The order of a planned notification whose time has come. `terms.at` is the time for which it was planned.
///
/// # Errors
/// The rule that it breaks by now: an app changes, and so do its providers.
pub(crate) fn due(planned: &Planned, terms: &Terms<'_>) -> Result<Order, Refused> {
    let request = json::parse::<SendRequest>(planned.notification.get().as_bytes())?;
    let request = SendRequest {
        // What it happened at was checked when it was planned, and its life counts from `send_at`.
        created_at: None,
        send_at: None,
        expires_at: planned.plan.expires_at,
        group_key: planned.plan.group_key.clone().or(request.group_key),
        ..request
    };
    request.into_order(terms, planned.plan.event_id.clone())
}

/// The order of a notification that recurs, as if it came now.
///
/// # Errors
/// The rule that it breaks; the path begins at the notification.
pub(crate) fn recurring(notification: &RawValue, terms: &Terms<'_>) -> Result<Order, Refused> {
    if notification.get().len() > PLANNED_BYTES_MAX {
        return Err(Refused::TooLarge(PLANNED_BYTES_MAX));
    }
    let request = json::parse::<SendRequest>(notification.get().as_bytes())?;
    let given = [
        ("event_id", request.event_id.is_some()),
        ("created_at", request.created_at.is_some()),
        ("send_at", request.send_at.is_some()),
        ("expires_at", request.expires_at.is_some()),
    ];
    if let Some((name, _)) = given.iter().find(|(_, is_given)| *is_given) {
        return Err(Invalid::new(*name, "must not be given: each instant has its own").into());
    }
    let order = request.into_order(terms, EventId::fresh())?;
    SplitBody::render(&order)?;
    Ok(order)
}

/// What is to be changed of a notification that waits for its time. What is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct NotificationChange {
    /// It is not accepted before this time. A time that is past means now.
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
    /// It is not sent after this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// The content for devices, as a whole.
    #[schema(value_type = Option<Push>)]
    push: Option<Value>,
    /// The content for mailboxes, as a whole.
    #[schema(value_type = Option<Email>)]
    email: Option<Value>,
    /// The content for phones, as a whole.
    #[schema(value_type = Option<Sms>)]
    sms: Option<Value>,
    /// The content for HTTP receivers, as a whole.
    #[schema(value_type = Option<Webhook>)]
    webhook: Option<Value>,
}

only_objects!(NotificationChange);

impl NotificationChange {
    /// The planned notification after this change, if it keeps to every rule. `terms.at` is now.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn apply(&self, planned: Planned, terms: &Terms<'_>) -> Result<Planned, Refused> {
        let mut members = members(planned.notification.get().as_bytes());
        // Its life counts from `send_at`.
        members.remove("created_at");
        let send_at = self.send_at.unwrap_or(planned.plan.send_at).max(terms.at);
        members.insert("send_at".to_owned(), send_at.to_string().into());
        if let Some(expires_at) = self.expires_at {
            members.insert("expires_at".to_owned(), expires_at.to_string().into());
        }
        let contents = [
            ("push", &self.push),
            ("email", &self.email),
            ("sms", &self.sms),
            ("webhook", &self.webhook),
        ];
        for (name, content) in contents {
            if let Some(content) = content {
                members.insert(name.to_owned(), content.clone());
            }
        }
        let json = Value::Object(members).to_string();
        let request = SendRequest::read(json.as_bytes())?;
        let order = request.into_order(terms, planned.plan.event_id.clone())?;
        SplitBody::render(&order)?;
        Ok(Planned {
            plan: planned::Plan {
                send_at,
                expires_at: order.expires_at,
                jobs: u32::try_from(order.jobs(terms.regions)).unwrap_or(u32::MAX),
                ..planned.plan
            },
            notification: json::parse_raw(json.as_bytes())?,
        })
    }
}

impl SendRequest {
    fn read(body: &[u8]) -> Result<Self, Unread> {
        let mut request: Self = json::parse(body)?;
        if request.send_at.is_some() {
            request.json = Some(json::parse_raw(body)?);
        }
        Ok(request)
    }

    fn into_order(self, terms: &Terms<'_>, event: EventId) -> Result<Order, Refused> {
        let contents = Contents {
            push: self.push,
            email: self.email,
            sms: self.sms,
            webhook: self.webhook,
        };
        let is_planned = self.plan.is_some();
        let contents = match self.plan {
            Some(_) if self.channel.is_some() => {
                return Err(Invalid::new("channel", "must not be given together with plan").into());
            }
            Some(plan) => plan.arrange(contents)?,
            None => {
                let content = contents.only()?;
                if self.channel.is_some_and(|named| named != content.channel()) {
                    return Err(Invalid::new("channel", "must be that of the content").into());
                }
                Arrangement::Each(vec![content])
            }
        };
        // A push has been accepted without a credential since 0.1: it waits for one.
        let is_carried = |channel: &Channel| *channel == Channel::Push || terms.app.has_provider_for(*channel);
        let not_carried = contents
            .contents()
            .map(Content::channel)
            .find(|channel| !is_carried(channel));
        if let Some(channel) = not_carried {
            return Err(Refused::NotCarried(channel));
        }
        let to = self.to.check(terms)?;
        match (&to, &contents) {
            (Addressees::Address(_), _) if is_planned => {
                return Err(Invalid::new("plan", "must not be given together with to.address").into());
            }
            (Addressees::Address(address), _) => {
                let unreached = contents.contents().find(|content| !content.reaches(&address.target));
                if let Some(channel) = unreached.map(Content::channel) {
                    let rule = format_args!("must be an address that {channel} reaches with this content");
                    return Err(Invalid::new("to.address", rule).into());
                }
            }
            (Addressees::Topic(_), Arrangement::Course(_)) => {
                let rule = "is not built yet for to.topic, unless it is all (channels)";
                return Err(Unread::NotBuilt(Invalid::new("plan.mode", rule)).into());
            }
            _ => {}
        }
        let later = later(self.send_at, self.json, terms.at)?;
        let created = life_from(self.created_at, terms.at)?;
        let life_from = later.as_ref().map_or(created, |later| later.send_at);
        let life_s = life_s(self.expires_at, life_from, life_from.max(terms.at))?;
        let contents = contents.try_map(|content| terms.app.senders.fill_in(content))?;
        let contents = match life_s {
            None => contents,
            Some(life_s) => contents.map(|content| content.living_at_most(life_s)),
        };
        Ok(Order {
            app: Arc::clone(terms.app),
            event,
            to,
            class: self.class,
            category: self.category,
            trial: Trial {
                test: self.test.unwrap_or(terms.by_test_key),
                test_key: terms.by_test_key,
            },
            contents,
            life_from,
            later,
            expires_at: self.expires_at,
            group_key: self.group_key,
        })
    }
}

impl AddresseesRequest {
    fn check(self, terms: &Terms<'_>) -> Result<Addressees, Invalid> {
        match (self.recipients, self.address, self.topic) {
            (Some(recipients), None, None) => {
                check(&recipients, terms.recipients_max)?;
                Ok(Addressees::Recipients(recipients))
            }
            (None, Some(address), None) => {
                let address = address.address(terms.ids, &terms.app.id, terms.at);
                let address = address.map_err(|invalid| invalid.within("to.address"))?;
                Ok(Addressees::Address(address.into()))
            }
            (None, None, Some(topic)) => Ok(Addressees::Topic(topic)),
            _ => Err(Invalid::new("to", "must name either recipients, an address or a topic")),
        }
    }
}

fn check(recipients: &[RecipientId], max: usize) -> Result<(), Invalid> {
    if recipients.is_empty() || recipients.len() > max {
        let rule = format!("must name 1 to {max} recipients, names {}", recipients.len());
        return Err(Invalid::new("to.recipients", rule));
    }
    if recipients.len() == 1 {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(recipients.len());
    match recipients.iter().position(|recipient| !seen.insert(recipient.as_str())) {
        Some(index) => Err(Invalid::new(
            format!("to.recipients[{index}]"),
            "must not be named twice",
        )),
        None => Ok(()),
    }
}

/// From when the life of a notification counts that was created at `created_at` and came at `at`.
fn life_from(created_at: Option<Timestamp>, at: Timestamp) -> Result<Timestamp, Invalid> {
    let Some(created_at) = created_at else { return Ok(at) };
    let ago = at.duration_since(created_at);
    if ago > CREATED_AGO_MAX || -ago > CREATED_AHEAD_MAX {
        return Err(Invalid::new("created_at", "must be at most 28 days ago and 60 s ahead"));
    }
    Ok(created_at.min(at))
}

/// Until when a notification waits that came at `at`; `None` if it does not.
fn later(send_at: Option<Timestamp>, json: Option<Box<RawValue>>, at: Timestamp) -> Result<Option<Later>, Refused> {
    let Some((send_at, json)) = send_at.zip(json).filter(|(send_at, _)| *send_at > at) else {
        return Ok(None);
    };
    if send_at.duration_since(at) > PLANNED_AHEAD_MAX {
        return Err(Invalid::new("send_at", "must be at most 366 days ahead").into());
    }
    if json.get().len() > PLANNED_BYTES_MAX {
        return Err(Refused::TooLarge(PLANNED_BYTES_MAX));
    }
    Ok(Some(Later { send_at, json }))
}

/// How long a notification whose life counts from `life_from` is worth delivering, if it says until when. It is to be accepted at
/// `accepted_at`.
fn life_s(expires_at: Option<Timestamp>, life_from: Timestamp, accepted_at: Timestamp) -> Result<Option<u32>, Invalid> {
    let Some(expires_at) = expires_at else { return Ok(None) };
    let after = expires_at.duration_since(accepted_at);
    if after <= SignedDuration::ZERO || after > EXPIRES_WITHIN {
        let rule = "must be after send_at, or after now without send_at, and at most 28 days after it";
        return Err(Invalid::new("expires_at", rule));
    }
    // Less than a second is one: a life of 0 would mean now or never.
    let life = expires_at.duration_since(life_from).as_secs().max(1);
    Ok(Some(u32::try_from(life).unwrap_or(u32::MAX)))
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

fn members(body: &[u8]) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_slice(body).unwrap_or_default()
}

fn has_notifications(body: &[u8]) -> bool {
    members(body).contains_key("notifications")
}

/// The error for a member beside `notifications`, if there is one.
fn beside(body: &[u8]) -> Option<Unread> {
    let members = members(body);
    let other = members.keys().find(|name| *name != "notifications")?;
    Some(Invalid::new(other.as_str(), "must not be given together with notifications").into())
}

/// The jobs that a request with this body would become; for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub(crate) fn jobs(body: &[u8]) -> Result<Vec<(RecipientId, bytes::Bytes)>, Refused> {
    let app = Arc::new(App::new("shop".parse()?, "eu".parse()?));
    let terms = Terms {
        app: &app,
        by_test_key: false,
        ids: &IdKey::unkeyed(),
        at: Timestamp::UNIX_EPOCH,
        recipients_max: 1000,
        regions: 2,
    };
    let fresh = |event: Option<EventId>| Ok(event.unwrap_or_else(EventId::fresh));
    let orders = match Request::read(body)?.orders(&terms, fresh)? {
        Orders::One(order) => vec![*order],
        Orders::Many(orders) => orders.into_iter().filter_map(|(_, order)| order.ok()).collect(),
    };
    let mut jobs = Vec::new();
    for order in orders {
        let bodies = super::body::SplitBody::render(&order)?;
        if let Addressees::Recipients(recipients) = &order.to {
            let each = recipients
                .iter()
                .flat_map(|one| bodies.iter().map(move |body| (one, body)));
            jobs.extend(each.map(|(one, body)| (one.clone(), body.to(one.as_str()))));
        }
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn recipients(names: &[&str]) -> Vec<RecipientId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn the_error_for_a_repeated_recipient_names_its_index() {
        assert!(check(&recipients(&["a", "b", "c"]), 3).is_ok());
        assert_eq!(
            check(&recipients(&["a", "b", "c", "b"]), 4).unwrap_err().field,
            "to.recipients[3]"
        );
        assert_eq!(check(&recipients(&["a", "b"]), 1).unwrap_err().field, "to.recipients");
        assert!(check(&[], 1).is_err());
    }

    #[test]
    fn exactly_one_of_recipients_and_topic_is_required() {
        let (app, ids) = (
            Arc::new(App::new("shop".parse().unwrap(), "eu".parse().unwrap())),
            IdKey::unkeyed(),
        );
        let terms = Terms {
            app: &app,
            by_test_key: false,
            ids: &ids,
            at: Timestamp::UNIX_EPOCH,
            recipients_max: 10,
            regions: 1,
        };
        let to = |json: &str| serde_json::from_str::<AddresseesRequest>(json).unwrap().check(&terms);
        assert!(matches!(to(r#"{"topic":"news"}"#), Ok(Addressees::Topic(_))));
        assert!(matches!(to(r#"{"recipients":["ann"]}"#), Ok(Addressees::Recipients(_))));
        let direct = r#"{"address":{"type":"phone","phone":"+41791234567"}}"#;
        assert!(matches!(to(direct), Ok(Addressees::Address(_))));
        for (field, bad) in [
            ("to", "{}"),
            ("to", r#"{"topic":"news","recipients":["ann"]}"#),
            (
                "to",
                r#"{"topic":"news","address":{"type":"phone","phone":"+41791234567"}}"#,
            ),
            ("to.address.phone", r#"{"address":{"type":"phone"}}"#),
        ] {
            assert_eq!(to(bad).unwrap_err().field, field);
        }
    }

    #[test]
    fn life_counts_from_the_earlier_of_creation_and_storing() {
        let at = Timestamp::from_second(10_000_000).unwrap();
        let created = |seconds: i64| life_from(Some(at + SignedDuration::from_secs(seconds)), at);
        assert_eq!(life_from(None, at), Ok(at));
        assert_eq!(created(-5), Ok(at - SignedDuration::from_secs(5)));
        assert_eq!(created(60), Ok(at));
        for bad in [61, -i64::from(MAX_LIFE_S) - 1] {
            assert_eq!(created(bad).unwrap_err().field, "created_at");
        }
    }

    /// The only order of a request that comes at `at`, or the field at fault.
    fn order_at(at: Timestamp, body: &Value) -> Result<Order, String> {
        let app = Arc::new(App::new("shop".parse().unwrap(), "eu".parse().unwrap()));
        let terms = Terms {
            app: &app,
            by_test_key: false,
            ids: &IdKey::unkeyed(),
            at,
            recipients_max: 10,
            regions: 1,
        };
        let request = SendRequest::read(body.to_string().as_bytes()).unwrap();
        request
            .into_order(&terms, "e".parse().unwrap())
            .map_err(|refused| match refused {
                Refused::Unread(Unread::Invalid(invalid)) => invalid.field,
                other => format!("{other:?}"),
            })
    }

    #[test]
    fn a_life_counts_from_send_at_and_ends_at_expires_at() {
        let at = Timestamp::from_second(10_000_000).unwrap();
        let after = |seconds: i64| at + SignedDuration::from_secs(seconds);
        let order = |send_at: Option<i64>, expires_at: Option<i64>| {
            let mut body = json!({ "to": { "recipients": ["ann"] }, "push": { "title": "x", "ttl": 3600 } });
            for (name, seconds) in [("send_at", send_at), ("expires_at", expires_at)] {
                if let Some(seconds) = seconds {
                    body[name] = json!(after(seconds).to_string());
                }
            }
            order_at(at, &body)
        };
        let life = |order: &Order| order.contents.contents().next().map(Content::life_s);
        let lives = |send_at, expires_at| {
            let order = order(send_at, expires_at).unwrap();
            (
                order.life_from,
                order.later.as_ref().map(|later| later.send_at),
                life(&order),
            )
        };
        assert_eq!(lives(None, Some(60)), (at, None, Some(60)));
        assert_eq!(
            lives(Some(-5), Some(7200)),
            (at, None, Some(3600)),
            "the ttl is shorter"
        );
        assert_eq!(lives(Some(100), Some(160)), (after(100), Some(after(100)), Some(60)));
        let days = |days: i64| Some(days * 24 * 3600);
        assert!(order(days(366), None).is_ok());
        for (send_at, expires_at, field) in [
            (days(367), None, "send_at"),
            (None, Some(0), "expires_at"),
            (Some(100), Some(100), "expires_at"),
            (Some(100), Some(101 + i64::from(MAX_LIFE_S)), "expires_at"),
        ] {
            assert_eq!(
                order(send_at, expires_at).unwrap_err(),
                field,
                "{send_at:?} {expires_at:?}"
            );
        }
    }

    #[test]
    fn what_is_due_is_as_it_was_planned_and_a_change_keeps_to_every_rule() {
        let at = Timestamp::from_second(10_000_000).unwrap();
        let send_at = at + SignedDuration::from_hours(24);
        let mut body = item("e");
        body["created_at"] = json!(at.to_string());
        body["send_at"] = json!(send_at.to_string());
        body["group_key"] = json!("room/1");
        let order = order_at(at, &body).unwrap();
        let planned = Planned {
            plan: planned::Plan {
                event_id: order.event.clone(),
                send_at,
                expires_at: None,
                group_key: order.group_key.clone(),
                schedule_id: None,
                planned_at: at,
                test_key: false,
                jobs: 1,
                revision: None,
            },
            notification: order.later.unwrap().json,
        };
        let app = Arc::new(App::new("shop".parse().unwrap(), "eu".parse().unwrap()));
        let ids = IdKey::unkeyed();
        let terms = |at| Terms {
            app: &app,
            by_test_key: false,
            ids: &ids,
            at,
            recipients_max: 10,
            regions: 1,
        };
        let order = due(&planned, &terms(send_at)).unwrap();
        assert!(order.later.is_none() && order.life_from == send_at && order.event == planned.plan.event_id);
        assert_eq!(order.group_key, planned.plan.group_key);

        let change = |json: Value| serde_json::from_value::<NotificationChange>(json).unwrap();
        let changed = change(
            json!({ "push": { "title": "y" }, "expires_at": (send_at + SignedDuration::from_secs(60)).to_string() }),
        );
        let changed = changed.apply(planned.clone(), &terms(at)).unwrap();
        let order = due(&changed, &terms(send_at)).unwrap();
        assert_eq!(order.contents.contents().next().map(Content::life_s), Some(60));
        let sooner = change(json!({ "send_at": "1970-01-01T00:00:00Z" })).apply(planned.clone(), &terms(at));
        assert_eq!(sooner.unwrap().plan.send_at, at, "the past means now");
        for bad in [
            json!({ "email": { "subject": "x", "text": "y" } }),
            json!({ "push": { "bogus": 1 } }),
        ] {
            assert!(change(bad).apply(planned.clone(), &terms(at)).is_err());
        }
    }

    fn item(event: &str) -> Value {
        json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "x" } })
    }

    fn orders(body: &Value) -> Result<Vec<Result<EventId, String>>, String> {
        let app = Arc::new(App::new("shop".parse().unwrap(), "eu".parse().unwrap()));
        let terms = Terms {
            app: &app,
            by_test_key: false,
            ids: &IdKey::unkeyed(),
            at: Timestamp::UNIX_EPOCH,
            recipients_max: 1000,
            regions: 2,
        };
        let field = |refused: Refused| match refused {
            Refused::Unread(Unread::Invalid(invalid) | Unread::NotBuilt(invalid)) => invalid.field,
            other => format!("{other:?}"),
        };
        let request = Request::read(body.to_string().as_bytes()).map_err(field)?;
        let orders = request.orders(&terms, |event| Ok(event.unwrap_or_else(EventId::fresh)));
        Ok(match orders.map_err(field)? {
            Orders::One(order) => vec![Ok(order.event)],
            Orders::Many(orders) => {
                let one = |(_, order): (_, Result<Order, Refused>)| order.map(|order| order.event).map_err(field);
                orders.into_iter().map(one).collect()
            }
        })
    }

    #[test]
    fn each_of_many_is_read_by_itself() {
        let event = |name: &str| Ok(name.parse::<EventId>().unwrap());
        let mut reserved = item("c");
        reserved["send_at_local"] = json!("2026-12-24T18:00");
        let mut nameless = item("d");
        nameless.as_object_mut().unwrap().remove("event_id");
        let body = json!({ "notifications": [item("a"), 7, reserved, nameless, item("e")] });
        assert_eq!(
            orders(&body).unwrap(),
            [
                event("a"),
                Err("body".to_owned()),
                Err("send_at_local".to_owned()),
                Err("event_id".to_owned()),
                event("e")
            ]
        );
    }

    #[test]
    fn the_words_in_a_title_do_not_make_many_of_one() {
        let mut one = item("a");
        one["push"]["title"] = json!("notifications");
        one["push"]["data"] = json!({ "notifications": "" });
        assert_eq!(orders(&one).unwrap().len(), 1);
    }

    #[test]
    fn many_have_limits_as_a_whole() {
        let refused = |body: &Value| orders(body).unwrap_err();
        assert_eq!(refused(&json!({ "notifications": [] })), "notifications");
        assert_eq!(refused(&json!({ "notifications": "a" })), "notifications");
        let items: Vec<Value> = (0..101).map(|number| item(&number.to_string())).collect();
        assert_eq!(refused(&json!({ "notifications": items })), "notifications");
        assert!(orders(&json!({ "notifications": items[..100] })).is_ok());
        assert_eq!(
            refused(&json!({ "notifications": [item("a"), item("b"), item("a")] })),
            "notifications[2].event_id"
        );
        assert_eq!(
            refused(&json!({ "notifications": [item("a")], "class": "bulk" })),
            "class"
        );
        let crowd = |event: &str| {
            let names: Vec<String> = (0..501).map(|number| number.to_string()).collect();
            json!({ "event_id": event, "to": { "recipients": names }, "push": { "title": "x" } })
        };
        assert_eq!(
            refused(&json!({ "notifications": [crowd("a"), crowd("b")] })),
            "notifications"
        );
        let mut large = item("a");
        large["push"]["data"] = json!({ "x": "y".repeat(MANY_BYTES_MAX) });
        assert_eq!(refused(&json!({ "notifications": [large] })), "TooLarge(65536)");
    }
}
