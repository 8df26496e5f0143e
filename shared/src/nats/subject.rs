//! Builds and parses subjects; no other file spells one.

use std::fmt::{self, Write};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    channel::{Channel, Class},
    id::{AddressId, AppId, ErasureId, JobId, NotificationId, RecipientId, Region, ScheduleId},
    invalid::Invalid,
    recipient::{FactName, RecipientKey},
    suppression::SuppressionId,
};

/// First tokens of all of Peal's own subjects, which a leaf link must not carry: a message published in one region
/// belongs to that region's streams alone, and only sourcing takes it further. A leaf link must not carry
/// acknowledgements either: they name a stream, a consumer and a sequence, but no region, and would settle another
/// region's message.
pub const LOCAL_PREFIXES: [&str; 25] = [
    "send",
    "notify",
    "due",
    "spill",
    "slice",
    "split",
    "moved",
    "alive",
    "schedule",
    "receipt",
    "feedback",
    "dead",
    "directory",
    "idempotency",
    "fact",
    "spend",
    "planned",
    "$KV.recipients",
    "$KV.quota",
    "$JS.ACK.NOTIFY",
    "$JS.ACK.SCHEDULE",
    "$JS.ACK.DEAD",
    "$JS.ACK.RECEIPTS",
    "$JS.ACK.PLANNED",
    "$JS.ACK.*.door",
];

/// The subject on which nats-servers report the hops of traced messages.
pub const TRACE_HOPS: &str = "peal.trace.hops";

/// The reports of apps' messages, as they arrive in Peal's account.
pub const TRACE_HOPS_OF_APPS: &str = "peal.trace.hops.*";

/// The reports of the messages of one app, as they arrive in Peal's account. In the app's account they have the subject
/// [`TRACE_HOPS`]; so no app can report in the name of another.
pub fn trace_hops_of(app: &AppId) -> String {
    format!("{TRACE_HOPS}.{app}")
}

/// The name of the NATS micro service by which gateways answer requests of services.
pub const SEND_SERVICE: &str = "peal-send";

/// The four tokens of `notify.<channel>.<region>.<class>.<app>`, the subject of fresh work. After `due.` or `spill.` they
/// name work that is due again, and after `slice.` a part of a broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The channel that the message is sent on.
    pub channel: Channel,
    /// The region whose workers do the work.
    pub region: Region,
    /// How urgent the work is; each class has permits of its own.
    pub class: Class,
    /// The app that sends the notification.
    pub app: AppId,
}

/// The two queues of a lane. Each has a consumer and permits of its own, so that work beyond an app's share of the lane
/// does not hold up the work of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The lane itself: work within each app's share.
    Main,
    /// Work beyond its app's share.
    Overflow,
}

/// What the channel's token ends with in subjects of the overflow. The channel comes before the region, so the filters of
/// sources, which name no channel, match both tiers.
const OVERFLOW: &str = "-overflow";

impl Tier {
    /// Both tiers.
    pub const ALL: [Self; 2] = [Self::Main, Self::Overflow];

    /// The name of the consumer of this tier, where the main one is called `main`.
    pub fn consumer(self, main: String) -> String {
        match self {
            Self::Main => main,
            Self::Overflow => format!("{main}{OVERFLOW}"),
        }
    }

    /// `subject`, which is one of a lane's main tier or a filter of such subjects, in this tier.
    ///
    /// # Panics
    /// If `subject` has fewer than two tokens.
    pub fn subject(self, subject: &str) -> String {
        match self {
            Self::Main => subject.to_owned(),
            Self::Overflow => {
                let mut tokens = subject.splitn(3, '.');
                let mut next = || tokens.next().expect("subjects of lanes have five tokens");
                let (kind, channel, rest) = (next(), next(), next());
                format!("{kind}.{channel}{OVERFLOW}.{rest}")
            }
        }
    }

    /// The tier of the lane that `subject` belongs to.
    pub fn of(subject: &str) -> Self {
        let channel = subject.split('.').nth(1);
        if channel.is_some_and(|channel| channel.ends_with(OVERFLOW)) {
            Self::Overflow
        } else {
            Self::Main
        }
    }
}

impl Lane {
    /// The subject of fresh work.
    pub fn notify(&self) -> String {
        format!("notify.{self}")
    }

    /// The subject of retries that are due.
    pub fn due(&self) -> String {
        format!("due.{self}")
    }

    /// The subject of retries that are due and that the region's helpers should take first.
    pub fn spill(&self) -> String {
        format!("spill.{self}")
    }

    /// The subject of slices of broadcasts.
    pub fn slice(&self) -> String {
        format!("slice.{self}")
    }

    /// The subject under which workers hand a job to their gateways, which publish it for the recipient's new home.
    pub fn moved(&self) -> String {
        format!("moved.{self}")
    }

    /// The subject of dead letters of this lane.
    pub fn dead(&self) -> String {
        format!("dead.{}.{}.{}", self.channel, self.region, self.app)
    }

    /// Parses `notify.…`, `due.…`, `spill.…` or `slice.…`, of either tier, or `moved.…`.
    ///
    /// # Errors
    /// Names the token that breaks a rule, such as `subject.channel`.
    pub fn parse(subject: &str) -> Result<Self, Invalid> {
        let shape = || Invalid::new("subject", "must be notify.<channel>.<region>.<class>.<app>");
        let rest = subject
            .strip_prefix("notify.")
            .or_else(|| subject.strip_prefix("due."))
            .or_else(|| subject.strip_prefix("spill."))
            .or_else(|| subject.strip_prefix("slice."))
            .or_else(|| subject.strip_prefix("moved."))
            .ok_or_else(shape)?;
        let mut tokens = rest.split('.');
        let mut next = || tokens.next().ok_or_else(shape);
        let lane = Self {
            channel: main_channel(next()?)
                .parse()
                .map_err(|invalid: Invalid| invalid.within("subject"))?,
            region: next()?.parse().map_err(|invalid: Invalid| invalid.within("subject"))?,
            class: next()?.parse().map_err(|invalid: Invalid| invalid.within("subject"))?,
            app: next()?.parse().map_err(|invalid: Invalid| invalid.within("subject"))?,
        };
        if tokens.next().is_some() {
            Err(shape())
        } else {
            Ok(lane)
        }
    }
}

/// The channel of work, in a subject that [`Lane::parse`] reads; `None` if this version does not know it.
pub fn channel_of(subject: &str) -> Option<Channel> {
    main_channel(subject.split('.').nth(1)?).parse().ok()
}

/// A channel's token without the mark of the overflow.
fn main_channel(token: &str) -> &str {
    token.strip_suffix(OVERFLOW).unwrap_or(token)
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.channel, self.region, self.class, self.app)
    }
}

/// The subject on which services whose NATS account is `account` publish notifications to their app's intake.
pub fn send(account: &str) -> String {
    format!("send.{account}")
}

/// The subject on which services whose NATS account is `account` send notifications as requests.
pub fn send_now(account: &str) -> String {
    format!("send.{account}.now")
}

/// The requests of all services.
pub const SEND_NOW_FILTER: &str = "send.*.now";

/// The subjects of all intakes.
pub const SEND_FILTER: &str = "send.*";

/// The account in `send.<account>` or `send.<account>.now`.
pub fn account_of(subject: &str) -> Option<&str> {
    let rest = subject.strip_prefix("send.")?;
    let account = rest.strip_suffix(".now").unwrap_or(rest);
    (!account.is_empty() && !account.contains('.')).then_some(account)
}

/// A lane's subject as a template for span names (semantic conventions: `messaging.destination.template`).
pub const NOTIFY_TEMPLATE: &str = "notify.{channel}.{region}";

/// All fresh work of `region`.
pub fn notify_all_filter(region: &Region) -> String {
    format!("notify.*.{region}.>")
}

/// All fresh work of `channel`, `region` and `class`.
pub fn notify_class_filter(channel: Channel, region: &Region, class: Class) -> String {
    format!("notify.{channel}.{region}.{class}.>")
}

/// All fresh work of every region.
pub const NOTIFY_FILTER: &str = "notify.>";

/// Whether `subject` is one of fresh work.
pub fn is_fresh(subject: &str) -> bool {
    subject.starts_with("notify.")
}

/// All retries that are due.
pub const DUE_FILTER: &str = "due.>";

/// All retries that are due and that helpers should take first.
pub const SPILL_FILTER: &str = "spill.>";

/// All retries of `channel`.
pub fn due_channel_filter(channel: Channel) -> String {
    format!("due.{channel}.>")
}

/// All retries of `channel` that helpers take first.
pub fn spill_channel_filter(channel: Channel) -> String {
    format!("spill.{channel}.>")
}

/// All jobs whose recipients moved, on their way to the gateways.
pub const MOVED_FILTER: &str = "moved.>";

/// All slices of broadcasts.
pub const SLICE_FILTER: &str = "slice.>";

/// All slices of broadcasts of `channel` and `class`.
pub fn slice_class_filter(channel: Channel, class: Class) -> String {
    format!("slice.{channel}.*.{class}.>")
}

/// Whether `subject` is the subject of a slice.
pub fn is_slice(subject: &str) -> bool {
    subject.starts_with("slice.")
}

/// All notes of how broadcasts were split.
pub const SPLIT_FILTER: &str = "split.>";

/// The note of how a broadcast was split. While it exists the broadcast cannot be split again.
pub fn split(broadcast: JobId) -> String {
    format!("split.{broadcast}")
}

/// The subject of questions to the gateways of `region`, from those of other regions.
pub fn ask(region: &Region) -> String {
    format!("ask.{region}")
}

/// The subject of requests of the gateways of `region` to the admin gateways, which are at the hub.
pub fn admin(region: &Region) -> String {
    format!("admin.{region}")
}

/// The requests of all regions' gateways to the admin gateways.
pub const ADMIN_FILTER: &str = "admin.*";

/// The region whose gateway made the request with this subject.
pub fn region_of_admin(subject: &str) -> Option<Region> {
    subject.strip_prefix("admin.")?.parse().ok()
}

/// The subject on which a worker of `region` announces itself. Rank 0: the region's own workers; 1 and up: its helpers,
/// in their order.
pub fn alive(region: &Region, rank: usize) -> String {
    format!("alive.{region}.{rank}")
}

/// The announcements of all workers of `region`.
pub fn alive_filter(region: &Region) -> String {
    format!("alive.{region}.*")
}

/// The rank in `alive.<region>.<rank>`.
pub fn rank_of(subject: &str) -> Option<usize> {
    subject.rsplit('.').next()?.parse().ok()
}

/// All pools of quotas, in their bucket.
pub const QUOTA_FILTER: &str = "$KV.quota.*";

/// The pool of the project with this digest, in its bucket.
pub fn quota(name: Uuid) -> String {
    format!("$KV.quota.{name}")
}

/// The digest of the project in a subject of [`quota`].
pub fn quota_of(subject: &str) -> Option<Uuid> {
    subject.strip_prefix("$KV.quota.")?.parse().ok()
}

/// All counters of segments, and of notifications.
pub const SPEND_FILTER: &str = "spend.*.*.*";

/// The counter of what `app` sends in the window that begins at `start`, under the cap or the limit with this digest.
pub fn spend(app: &AppId, cap: Uuid, start: Timestamp) -> String {
    format!("spend.{app}.{cap}.{}", start.as_second())
}

/// Everything about notifications that are not accepted before their time.
pub const PLANNED_FILTER: &str = "planned.>";

/// A notification of `app` that waits for its time: a schedule.
pub fn planned_wait(app: &AppId, notification: NotificationId) -> String {
    format!("planned.wait.{app}.{notification}")
}

/// All notifications of `app` that wait for their time.
pub fn planned_waits_of(app: &AppId) -> String {
    format!("planned.wait.{app}.*")
}

/// All notifications of all apps that wait for their time.
pub const PLANNED_WAITS: &str = "planned.wait.*.*";

/// A notification of `app` whose time has come, until a gateway has accepted it.
pub fn planned_due(app: &AppId, notification: NotificationId) -> String {
    format!("planned.due.{app}.{notification}")
}

/// All notifications of `app` whose time has come.
pub fn planned_dues_of(app: &AppId) -> String {
    format!("planned.due.{app}.>")
}

/// All notifications of all apps whose time has come.
pub const PLANNED_DUES: &str = "planned.due.*.*";

/// What was decided about a notification of `app` that waited for its time: that it was changed, cancelled, or is accepted.
pub fn planned_fate(app: &AppId, notification: NotificationId) -> String {
    format!("planned.fate.{app}.{notification}")
}

/// What was decided about all notifications that waited for their time.
pub const PLANNED_FATES: &str = "planned.fate.*.*";

/// Whatever there is about one notification of `app` that waits, or waited, for its time.
pub fn planned_any(app: &AppId, notification: NotificationId) -> String {
    format!("planned.*.{app}.{notification}")
}

/// The note that a notification of `app` belongs to the group with this digest.
pub fn planned_member(app: &AppId, group: Uuid, notification: NotificationId) -> String {
    format!("planned.group.{app}.{group}.{notification}")
}

/// The notes of all notifications of `app` that belong to the group with this digest.
pub fn planned_members_of(app: &AppId, group: Uuid) -> String {
    format!("planned.group.{app}.{group}.*")
}

/// The definition of the schedule `id` of `app`.
pub fn recurring(app: &AppId, id: &ScheduleId) -> String {
    format!("planned.recurring.{app}.definition.{id}")
}

/// The definitions of all schedules of `app`.
pub fn recurring_of(app: &AppId) -> String {
    format!("planned.recurring.{app}.definition.*")
}

/// What fires when the schedule `id` of `app` is due next.
pub fn recurring_alarm(app: &AppId, id: &ScheduleId) -> String {
    format!("planned.recurring.{app}.alarm.{id}")
}

/// The alarm of the schedule `id` of `app`, once it is due.
pub fn recurring_due(app: &AppId, id: &ScheduleId) -> String {
    format!("planned.due.{app}.recurring.{id}")
}

/// The schedule in a subject of [`recurring`] or [`recurring_due`].
pub fn schedule_of(subject: &str) -> Option<ScheduleId> {
    let mut tokens = subject.strip_prefix("planned.")?.split('.');
    match (tokens.next()?, tokens.nth(1)?) {
        ("recurring", "definition") | ("due", "recurring") => tokens.next()?.parse().ok(),
        _ => None,
    }
}

/// Everything about the planned notifications of `app`.
pub fn planned_of(app: &AppId) -> String {
    format!("planned.*.{app}.>")
}

/// App and notification in `planned.<kind>.<app>.<notification>`.
pub fn parse_planned(subject: &str) -> Option<(AppId, NotificationId)> {
    let mut tokens = subject.strip_prefix("planned.")?.split('.').skip(1);
    let parsed = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
    tokens.next().is_none().then_some(parsed)
}

/// The notification in a subject of [`planned_member`].
pub fn member_of_group(subject: &str) -> Option<NotificationId> {
    subject.rsplit('.').next()?.parse().ok()
}

/// All schedules: work that waits for its time.
pub const SCHEDULE_FILTER: &str = "schedule.>";

/// The schedule of one delivery's retry. A subject holds one schedule: parking the delivery again replaces it.
pub fn schedule(job: JobId, address: AddressId) -> String {
    format!("schedule.{job}.{address}")
}

/// The schedule of a job that is deferred as a whole. No address has the id `whole`.
pub fn schedule_whole(job: JobId) -> String {
    format!("schedule.{job}.whole")
}

/// Receipts from `region` for notifications that `origin` accepted.
pub fn receipt(region: &Region, origin: &Region, app: &AppId) -> String {
    format!("receipt.{region}.{origin}.{app}")
}

/// Whether `receipt.<region>.<origin>.…` is about notifications that another region accepted.
pub fn is_receipt_for_another(subject: &str) -> bool {
    let mut tokens = subject.split('.').skip(1);
    let (region, origin) = (tokens.next(), tokens.next());
    region != origin
}

/// Receipts of first attempts at jobs of broadcasts. The receipts of slices already count them for the region that
/// accepted the broadcast, so these are not copied there, and only readers that need them filter for them: a broadcast
/// may have a million.
pub fn receipt_of_members(region: &Region, app: &AppId) -> String {
    format!("receipt.{region}.{region}.members.{app}")
}

/// All receipts but those of members.
pub const RECEIPTS_FILTER: &str = "receipt.*.*.*";

/// All receipts from `region`.
pub fn receipt_filter(region: &Region) -> String {
    format!("receipt.{region}.>")
}

/// Receipts from `region` for notifications that `origin` accepted, for all apps.
pub fn receipt_origin_filter(region: &Region, origin: &Region) -> String {
    format!("receipt.{region}.{origin}.>")
}

/// Receipts from `region` for notifications of `app`, including those of broadcasts' members.
pub fn receipts_of(region: &Region, app: &AppId) -> [String; 2] {
    [
        format!("receipt.{region}.*.{app}"),
        format!("receipt.{region}.*.members.{app}"),
    ]
}

/// Receipts from every region for notifications of `app`, including those of broadcasts' members.
pub fn receipts_anywhere(app: &AppId) -> [String; 2] {
    [format!("receipt.*.*.{app}"), format!("receipt.*.*.members.{app}")]
}

/// The app in a subject of receipts or of dead letters.
pub fn app_of(subject: &str) -> Option<&str> {
    subject.rsplit('.').next()
}

/// Feedback about `notification` that gateways of `taken` took, for the region that worked on it.
pub fn feedback(taken: &Region, home: &Region, app: &AppId, notification: NotificationId) -> String {
    format!("feedback.{taken}.{home}.{app}.{notification}")
}

/// All feedback that gateways of `taken` took.
pub fn feedback_filter(taken: &Region) -> String {
    format!("feedback.{taken}.>")
}

/// All feedback that gateways of `taken` took for `home`.
pub fn feedback_home_filter(taken: &Region, home: &Region) -> String {
    format!("feedback.{taken}.{home}.>")
}

/// The feedback about `notification` that `home` has, whatever region took it.
pub fn feedback_about(home: &Region, app: &AppId, notification: NotificationId) -> String {
    format!("feedback.*.{home}.{app}.{notification}")
}

/// All dead letters of `region`.
pub fn dead_filter(region: &Region) -> String {
    format!("dead.*.{region}.>")
}

/// All dead letters of `app` in `region`.
pub fn dead_of(region: &Region, app: &AppId) -> String {
    format!("dead.*.{region}.{app}")
}

/// Dead letters whose subject could not be read; the app is unknown.
pub fn dead_unreadable(region: &Region) -> String {
    format!("dead.unreadable.{region}.unknown")
}

/// Dead letters of what services of `app` published and a gateway of `region` refused.
pub fn dead_refused(region: &Region, app: &AppId) -> String {
    format!("dead.refused.{region}.{app}")
}

/// All dead letters of `region` of what broke a rule.
pub fn dead_refused_filter(region: &Region) -> String {
    format!("dead.refused.{region}.*")
}

/// A parsed `dead.<channel>.<region>.<app>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadSubject {
    /// The channel, or `unreadable` or `refused`.
    pub channel: String,
    /// The app, or `unknown`.
    pub app: AppId,
}

/// Parses the subject of a dead letter; `None` if `subject` is not one.
pub fn parse_dead(subject: &str) -> Option<DeadSubject> {
    let mut tokens = subject.strip_prefix("dead.")?.split('.');
    let (channel, _region, app) = (tokens.next()?, tokens.next()?, tokens.next()?);
    Some(DeadSubject {
        channel: channel.to_owned(),
        app: app.parse().ok()?,
    })
}

/// All directory entries that `region` writes.
pub fn directory_filter(region: &Region) -> String {
    format!("directory.{region}.>")
}

/// The entry of `region` about a recipient's home.
pub fn directory_home(region: &Region, key: &RecipientKey) -> String {
    format!("directory.{region}.home.{}", recipient_path(key))
}

/// The entries of all regions about a recipient's home.
pub fn directory_home_anywhere(key: &RecipientKey) -> String {
    format!("directory.*.home.{}", recipient_path(key))
}

/// The entry of `region` about an address's owner.
pub fn directory_owner(region: &Region, app: &AppId, address: AddressId) -> String {
    format!("directory.{region}.owner.{app}.{address}")
}

/// The entries of all regions about an address's owner.
pub fn directory_owner_anywhere(app: &AppId, address: AddressId) -> String {
    format!("directory.*.owner.{app}.{address}")
}

/// All entries of `region` about owners of addresses.
pub fn directory_owner_filter(region: &Region) -> String {
    format!("directory.{region}.owner.>")
}

/// The record of `region` that a notification was withdrawn.
pub fn directory_cancelled(region: &Region, app: &AppId, notification: NotificationId) -> String {
    format!("directory.{region}.cancelled.{app}.{notification}")
}

/// All records of withdrawn notifications, from all regions.
pub const CANCELLED_FILTER: &str = "directory.*.cancelled.>";

/// The mark that a gateway of `region` writes after each record of a withdrawal. Only the newest is kept: who has read it has
/// read all records before it, because it matches [`CANCELLED_FILTER`] too.
pub fn directory_cancelled_mark(region: &Region) -> String {
    format!("directory.{region}.cancelled.mark")
}

/// The entry of `region` in the suppression list of `app`.
pub fn directory_suppressed(region: &Region, app: &AppId, id: SuppressionId) -> String {
    format!("directory.{region}.suppressed.{app}.{id}")
}

/// The entries of all regions under one id in the suppression list of `app`.
pub fn directory_suppressed_anywhere(app: &AppId, id: SuppressionId) -> String {
    format!("directory.*.suppressed.{app}.{id}")
}

/// All entries of all regions in the suppression list of `app`.
pub fn directory_suppressed_of(app: &AppId) -> String {
    format!("directory.*.suppressed.{app}.*")
}

/// All entries in suppression lists, from all regions.
pub const SUPPRESSED_FILTER: &str = "directory.*.suppressed.>";

/// The mark that a gateway of `region` writes after each change of a suppression list, as for withdrawals; see
/// [`directory_cancelled_mark`].
pub fn directory_suppressed_mark(region: &Region) -> String {
    format!("directory.{region}.suppressed.mark")
}

/// App and id in `directory.<region>.suppressed.<app>.<id>`; `None` for a mark.
pub fn suppressed_of(subject: &str) -> Option<(AppId, SuppressionId)> {
    let mut tokens = subject.splitn(3, '.').nth(2)?.strip_prefix("suppressed.")?.split('.');
    let (app, id) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
    tokens.next().is_none().then_some((app, id))
}

/// The request of `region` to erase a recipient. It matches [`CANCELLED_FILTER`].
pub fn erasure(region: &Region, app: &AppId, id: ErasureId) -> String {
    format!("directory.{region}.cancelled.{app}.erase.{id}")
}

/// The same, of whichever region.
pub fn erasure_anywhere(app: &AppId, id: ErasureId) -> String {
    format!("directory.*.cancelled.{app}.erase.{id}")
}

/// The record of `region` that it has erased a recipient.
pub fn erased(region: &Region, app: &AppId, id: ErasureId) -> String {
    format!("directory.{region}.cancelled.{app}.erased.{id}")
}

/// The same, of every region.
pub fn erased_anywhere(app: &AppId, id: ErasureId) -> String {
    format!("directory.*.cancelled.{app}.erased.{id}")
}

/// All requests to erase and all records of them, of all regions.
pub const ERASURES_FILTER: &str = "directory.*.cancelled.*.*.*";

/// A parsed subject of an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErasureSubject {
    /// The region that wrote it.
    pub region: Region,
    /// The app whose recipient it is.
    pub app: AppId,
    /// The erasure.
    pub id: ErasureId,
    /// Whether it asks, or records that the region is done.
    pub is_request: bool,
}

/// Parses the subject of an erasure; `None` if `subject` is not one.
pub fn parse_erasure(subject: &str) -> Option<ErasureSubject> {
    let mut tokens = subject.strip_prefix("directory.")?.split('.');
    let region = tokens.next()?.parse().ok()?;
    if tokens.next()? != "cancelled" {
        return None;
    }
    let app = tokens.next()?.parse().ok()?;
    let is_request = match tokens.next()? {
        "erase" => true,
        "erased" => false,
        _ => return None,
    };
    let id = tokens.next()?.parse().ok()?;
    tokens.next().is_none().then_some(ErasureSubject {
        region,
        app,
        id,
        is_request,
    })
}

/// The mark of a gateway of `region` that says how far its bucket of recipients is restored.
pub fn directory_restored(region: &Region) -> String {
    format!("directory.{region}.facts.restored")
}

/// The hour in which `region` last used the key of an app with this id.
pub fn directory_used(region: &Region, key_id: &str) -> String {
    format!("directory.{region}.used.{key_id}")
}

/// The hours in which every region last used the key with this id.
pub fn directory_used_anywhere(key_id: &str) -> String {
    format!("directory.*.used.{key_id}")
}

/// The key in `directory.<region>.used.<key id>`.
pub fn key_of_used(subject: &str) -> Option<&str> {
    let (_, key_id) = subject.strip_prefix("directory.")?.split_once(".used.")?;
    Some(key_id)
}

/// The notification in `directory.<region>.cancelled.<app>.<notification>`.
pub fn cancelled_of(subject: &str) -> Option<NotificationId> {
    subject.split('.').nth(4)?.parse().ok()
}

/// All records of idempotency keys that `region` writes.
pub fn idempotency_filter(region: &Region) -> String {
    format!("idempotency.{region}.>")
}

/// The subject to which the gateways of `region` publish to test that its server stores messages. Only the newest message
/// of it is kept, and it belongs to no key.
pub fn canary(region: &Region) -> String {
    format!("idempotency.{region}.canary")
}

/// The record of `region` about an idempotency key, which is named by its digest.
pub fn idempotency(region: &Region, app: &AppId, key: Uuid) -> String {
    format!("idempotency.{region}.{app}.{key}")
}

/// The records of all regions about an idempotency key.
pub fn idempotency_anywhere(app: &AppId, key: Uuid) -> String {
    format!("idempotency.*.{app}.{key}")
}

/// A parsed directory subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryKey {
    /// The home of a recipient.
    Home(RecipientKey),
    /// The owner of an address.
    Owner(AppId, AddressId),
}

impl DirectoryKey {
    /// Parses `directory.<region>.…`; `None` for kinds of entries that this version does not know.
    pub fn parse(subject: &str) -> Option<Self> {
        let mut tokens = subject.strip_prefix("directory.")?.splitn(3, '.').skip(1);
        let kind = tokens.next()?;
        let rest = tokens.next()?;
        let (app, last) = rest.split_once('.')?;
        let app = app.parse().ok()?;
        match kind {
            "home" => Some(Self::Home(RecipientKey {
                app,
                recipient: unescape(last)?,
            })),
            "owner" => Some(Self::Owner(app, last.parse().ok()?)),
            _ => None,
        }
    }
}

/// All facts on their way to `home`, about recipients who live there.
pub fn fact_filter(home: &Region) -> String {
    format!("fact.{home}.>")
}

/// A fact on its way from another region to `home`.
pub fn fact_outbound(home: &Region, key: &RecipientKey, name: FactName) -> String {
    format!("fact.{home}.{}", fact_key(key, name))
}

/// The part of the subject of a fact on its way to `home` that is its key in the bucket there.
pub fn outbound_fact_key_of<'a>(home: &Region, subject: &'a str) -> Option<&'a str> {
    subject
        .strip_prefix("fact.")?
        .strip_prefix(home.as_str())?
        .strip_prefix('.')
}

/// All facts of a region, in their bucket.
pub const FACTS_FILTER: &str = "$KV.recipients.>";

/// All addresses of a region, in their bucket.
pub const ADDRESSES_FILTER: &str = "$KV.recipients.*.*.address.*";

/// The profiles of all recipients of `app`, in their bucket.
pub fn profiles_of(app: &AppId) -> String {
    format!("$KV.recipients.{app}.*.profile")
}

/// All facts of one recipient, in their bucket.
pub fn all_facts_of(key: &RecipientKey) -> String {
    format!("$KV.recipients.{}.>", recipient_path(key))
}

/// One fact, in its bucket.
pub fn fact(key: &RecipientKey, name: FactName) -> String {
    format!("$KV.recipients.{}", fact_key(key, name))
}

/// The fact under this key, in its bucket.
pub fn fact_of_key(key: &str) -> String {
    format!("$KV.recipients.{key}")
}

/// All facts of one recipient except its topics, in their bucket.
pub fn facts_of(key: &RecipientKey) -> [String; 3] {
    let path = recipient_path(key);
    ["profile", "preferences", "address.*"].map(|name| format!("$KV.recipients.{path}.{name}"))
}

/// The topics of one recipient, in their bucket.
pub fn topics_of(key: &RecipientKey) -> String {
    format!("$KV.recipients.{}.topic.*", recipient_path(key))
}

/// The part of a fact's subject that is its key in the bucket and in the edge cache.
pub fn fact_key_of(subject: &str) -> Option<&str> {
    subject.strip_prefix("$KV.recipients.")
}

/// A fact's key: `<app>.<recipient>.<name>`, with the recipient escaped.
pub fn fact_key(key: &RecipientKey, name: FactName) -> String {
    let mut text = recipient_path(key);
    match name {
        FactName::Profile => text.push_str(".profile"),
        FactName::Preferences => text.push_str(".preferences"),
        FactName::Address(id) => {
            let _infallible = write!(text, ".address.{id}");
        }
        FactName::Topic(topic) => {
            let _infallible = write!(text, ".topic.{topic}");
        }
    }
    text
}

/// `<app>.<recipient>`, with every character escaped that a subject may not contain.
pub fn recipient_path(key: &RecipientKey) -> String {
    let mut text = String::with_capacity(key.app.as_str().len() + key.recipient.as_str().len() + 64);
    text.push_str(key.app.as_str());
    text.push('.');
    escape(key.recipient.as_str(), &mut text);
    text
}

/// Parses a fact's key; `None` for kinds of facts that this version does not know.
pub fn parse_fact_key(text: &str) -> Option<(RecipientKey, FactName)> {
    let (app, rest) = text.split_once('.')?;
    let (recipient, name) = rest.split_once('.')?;
    let (app, recipient) = (app.parse().ok()?, unescape(recipient)?);
    Some((RecipientKey { app, recipient }, parse_fact_name(name)?))
}

/// Parses the part of a fact's key after the recipient; `None` for kinds of facts that this version does not know.
pub fn parse_fact_name(text: &str) -> Option<FactName> {
    match text.split_once('.') {
        None if text == "profile" => Some(FactName::Profile),
        None if text == "preferences" => Some(FactName::Preferences),
        Some(("address", id)) => id.parse().ok().map(FactName::Address),
        Some(("topic", topic)) => topic.parse().ok().map(FactName::Topic),
        _ => None,
    }
}

/// The recipient, from the part that [`recipient_path`] wrote after the dot.
pub fn parse_recipient(text: &str) -> Option<RecipientId> {
    unescape(text)
}

/// Writes `=XX` for every byte that a bucket's key may not contain. The result contains no dot.
fn escape(text: &str, to: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            to.push(byte.into());
        } else {
            let _infallible = write!(to, "={byte:02X}");
        }
    }
}

fn unescape(text: &str) -> Option<RecipientId> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'=' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()?.parse().ok()
}

/// Whether `subject` matches `filter`, which may have the wildcards `*` and, at its end, `>`.
pub(super) fn matches(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    proptest! {
        #[test]
        fn a_written_lane_parses_back(region in "[a-z0-9-]{1,32}", app in "[a-z0-9-]{1,32}", class in 0usize..3, channel in 0usize..4) {
            let lane = Lane {
                channel: Channel::ALL[channel],
                region: region.parse().unwrap(),
                class: Class::ALL[class],
                app: app.parse().unwrap(),
            };
            prop_assert_eq!(Lane::parse(&lane.notify()).unwrap(), lane.clone());
            for tier in Tier::ALL {
                let due = tier.subject(&lane.due());
                prop_assert_eq!(Tier::of(&due), tier);
                prop_assert_eq!(Lane::parse(&due).unwrap(), lane.clone());
            }
        }

        #[test]
        fn a_recipient_in_a_key_parses_back(recipient in "[^\\s\\p{C}]{1,32}", id: u128) {
            let key = RecipientKey { app: "shop".parse().unwrap(), recipient: recipient.parse().unwrap() };
            for name in [FactName::Profile, FactName::Preferences, FactName::Address(AddressId(Uuid::from_u128(id))), FactName::Topic("news".parse().unwrap())] {
                let subject = fact(&key, name.clone());
                prop_assert!(subject.bytes().all(|b| b.is_ascii_graphic() && !b"*>".contains(&b)));
                prop_assert_eq!(parse_fact_key(fact_key_of(&subject).unwrap()), Some((key.clone(), name)));
            }
            let subject = directory_home(&"eu".parse().unwrap(), &key);
            prop_assert_eq!(DirectoryKey::parse(&subject), Some(DirectoryKey::Home(key)));
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(notify|due|directory|\\$KV\\.recipients)?[.a-z=0-9%é-]{0,60}") {
            // A subject that parses is written back unchanged.
            if let Ok(lane) = Lane::parse(&text) {
                let subjects = [lane.notify(), lane.due(), lane.spill(), lane.slice()];
                let tiers = Tier::ALL.map(|tier| subjects.clone().map(|subject| tier.subject(&subject)));
                prop_assert!(tiers.concat().contains(&text));
            }
            drop(DirectoryKey::parse(&text));
            drop(parse_fact_key(&text));
        }

        #[test]
        fn a_written_owner_parses_back(app in "[a-z0-9-]{1,32}", id: u128) {
            let (app, address): (AppId, _) = (app.parse().unwrap(), AddressId(Uuid::from_u128(id)));
            let subject = directory_owner(&"eu".parse().unwrap(), &app, address);
            prop_assert_eq!(DirectoryKey::parse(&subject), Some(DirectoryKey::Owner(app, address)));
        }
    }

    #[test]
    fn receipts_for_another_region_are_told_from_the_own() {
        let (eu, us, shop) = ("eu".parse().unwrap(), "us".parse().unwrap(), "shop".parse().unwrap());
        assert!(is_receipt_for_another(&receipt(&eu, &us, &shop)));
        assert!(!is_receipt_for_another(&receipt(&eu, &eu, &shop)));
        assert!(!is_receipt_for_another(&receipt_of_members(&eu, &shop)));
    }

    #[test]
    fn a_bad_subject_names_the_token() {
        let field = |subject| Lane::parse(subject).unwrap_err().field;
        assert_eq!(field("notify.fax.eu.normal.shop"), "subject.channel");
        assert_eq!(field("notify.push.eu.soon.shop"), "subject.class");
        assert_eq!(field("notify.push.eu.normal.shop.more"), "subject");
        assert_eq!(field("other.push.eu.normal.shop"), "subject");
    }

    #[test]
    fn filters_match_as_the_server_does() {
        for (filter, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*.c", "a.b.c", true),
            ("a.*", "a", false),
            ("*.b", "a.b", true),
            (">", "a", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.b", "a.c", false),
        ] {
            assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
        }
    }
}
