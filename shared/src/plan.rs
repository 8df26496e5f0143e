//! Plans: several channels for one notification, and in what order they are used.
//!
//! With [`Mode::All`] each channel has a job of its own from the beginning. In the other modes the steps follow each other: the
//! job of a step that ends without success is followed by that of the next.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    channel::{Channel, words},
    content::{Content, Contents},
    feedback::{Feedback, Kind},
    id::{AddressId, JobId},
    invalid::Invalid,
    receipt::State,
    tolerant::{self, objects, or_default},
};

words!(
    /// How the steps of a plan relate.
    Mode, "mode", {
        /// Every channel is used.
        All = "all",
        /// The first step by which the recipient can be reached.
        First = "first",
        /// The next step is used when the one before has failed.
        Fallback = "fallback",
    }
);

words!(
    /// What makes a step succeed.
    Until, "until", {
        /// A provider accepted it.
        Delivered = "delivered",
        /// Its provider reported that it arrived.
        Confirmed = "confirmed",
    }
    default Delivered
);

/// Which channels are used, and in what order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Plan {
    /// How the steps relate.
    pub mode: Mode,
    /// The steps, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 4)]
    pub steps: Option<Vec<Step>>,
}

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = PlanStep)]
pub struct Step {
    /// The channel of the step.
    pub channel: Channel,
    /// What makes it succeed.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_default")]
    #[schema(default = "delivered")]
    pub until: Until,
    /// How long to wait for a confirmation before the next step, in seconds.
    #[serde(
        default,
        deserialize_with = "tolerant::whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 60, maximum = 604_800)]
    pub wait_s: Option<u32>,
}

impl Step {
    /// How long a step waits for a confirmation, at least and at most, in seconds.
    const WAIT_S: std::ops::RangeInclusive<u32> = 60..=604_800;

    /// How long it waits unless it says so, in seconds.
    const USUAL_WAIT_S: u32 = 600;

    /// A step that succeeds when a provider has accepted its message.
    pub const fn of(channel: Channel) -> Self {
        Self {
            channel,
            until: Until::Delivered,
            wait_s: None,
        }
    }

    /// Checks how long it waits in a plan of this mode.
    fn check(&self, mode: Mode) -> Result<(), Invalid> {
        let Some(wait) = self.wait_s else { return Ok(()) };
        if mode != Mode::Fallback || self.until != Until::Confirmed {
            return Err(Invalid::new(
                "wait_s",
                "must be given only in a fallback, with until confirmed",
            ));
        }
        if !Self::WAIT_S.contains(&wait) {
            return Err(Invalid::new("wait_s", "must be 60 to 604800"));
        }
        Ok(())
    }
}

objects!(Plan, Step);

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default(until: &Until) -> bool {
    *until == Until::default()
}

/// What the contents of a notification become.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrangement {
    /// A job for each of them.
    Each(Vec<Content>),
    /// A job for the first step, which the others may follow.
    Course(Course),
}

/// Two or more steps that follow each other, each with its content.
#[derive(Debug, Clone, PartialEq)]
pub struct Course {
    mode: Mode,
    steps: Vec<(Step, Content)>,
}

impl Plan {
    /// Gives each step its content.
    ///
    /// # Errors
    /// The first rule that is broken; its path begins at the document that holds the plan and the contents.
    pub fn arrange(self, contents: Contents) -> Result<Arrangement, Invalid> {
        let mut contents: Vec<Content> = contents.all().collect();
        if contents.is_empty() {
            return Err(Contents::none());
        }
        let steps = match (self.mode, self.steps) {
            (Mode::All, None) => return Ok(Arrangement::Each(contents)),
            (_, None) => return Err(Invalid::new("plan.steps", "must be given, unless the mode is all")),
            (_, Some(steps)) => steps,
        };
        if steps.is_empty() {
            return Err(Invalid::new("plan.steps", "must hold 1 to 4 steps"));
        }
        let mut arranged: Vec<(Step, Content)> = Vec::with_capacity(steps.len());
        for (index, step) in steps.into_iter().enumerate() {
            step.check(self.mode)
                .map_err(|invalid| invalid.within(&format!("plan.steps[{index}]")))?;
            let broken = |rule: &str| Err(Invalid::new(format!("plan.steps[{index}].channel"), rule));
            match contents.iter().position(|content| content.channel() == step.channel) {
                Some(at) => arranged.push((step, contents.remove(at))),
                None if arranged.iter().any(|(earlier, _)| earlier.channel == step.channel) => {
                    return broken("must not be named twice");
                }
                None => return broken("must be a channel that has content"),
            }
        }
        if let Some(content) = contents.first() {
            return Err(Invalid::new(
                content.channel().as_str(),
                "must have a step in plan.steps",
            ));
        }
        Ok(if self.mode == Mode::All || arranged.len() == 1 {
            Arrangement::Each(arranged.into_iter().map(|(_, content)| content).collect())
        } else {
            Arrangement::Course(Course {
                mode: self.mode,
                steps: arranged,
            })
        })
    }
}

impl Arrangement {
    /// Every content.
    pub fn contents(&self) -> Box<dyn Iterator<Item = &Content> + '_> {
        match self {
            Self::Each(contents) => Box::new(contents.iter()),
            Self::Course(course) => Box::new(course.contents()),
        }
    }

    /// The same arrangement with each content changed.
    #[must_use]
    pub fn map(self, change: impl Fn(Content) -> Content) -> Self {
        let changed: Result<Self, std::convert::Infallible> = self.try_map(|content| Ok(change(content)));
        match changed {
            Ok(changed) => changed,
        }
    }

    /// The same with other contents.
    ///
    /// # Errors
    /// The first error of `change`.
    pub fn try_map<E>(self, change: impl Fn(Content) -> Result<Content, E>) -> Result<Self, E> {
        Ok(match self {
            Self::Each(contents) => Self::Each(contents.into_iter().map(change).collect::<Result<_, E>>()?),
            Self::Course(Course { mode, steps }) => {
                let steps = steps.into_iter();
                let steps = steps.map(|(step, content)| Ok((step, change(content)?)));
                Self::Course(Course {
                    mode,
                    steps: steps.collect::<Result<_, E>>()?,
                })
            }
        })
    }
}

impl Course {
    /// How the steps relate.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The content of the step with this number, from 0.
    pub fn content(&self, step: u32) -> Option<&Content> {
        let (_, content) = self.steps.get(usize::try_from(step).ok()?)?;
        Some(content)
    }

    /// How long the step with this number waits for a confirmation, once it is delivered; `None` if it needs none.
    pub fn wait(&self, step: u32) -> Option<SignedDuration> {
        let (step, _) = self.steps.get(usize::try_from(step).ok()?)?;
        let waits = self.mode == Mode::Fallback && step.until == Until::Confirmed;
        waits.then(|| SignedDuration::from_secs(step.wait_s.unwrap_or(Step::USUAL_WAIT_S).into()))
    }

    /// Whether any step waits for a confirmation.
    pub fn waits(&self) -> bool {
        self.mode == Mode::Fallback && self.steps.iter().any(|(step, _)| step.until == Until::Confirmed)
    }

    /// The content of the first step.
    pub fn first(&self) -> &Content {
        &self.steps[0].1
    }

    /// The contents in the order of their steps.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        self.steps.iter().map(|(_, content)| content)
    }

    /// The plan, without its contents.
    pub fn plan(&self) -> Plan {
        Plan {
            mode: self.mode,
            steps: Some(self.steps.iter().map(|(step, _)| *step).collect()),
        }
    }
}

/// The place of a job in a course.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// All steps.
    pub course: std::sync::Arc<Course>,
    /// The number of the job's step, from 0.
    pub step: u32,
    /// Until when the job waits for the steps before it, if it was stored before all of them had ended.
    pub open_until: Option<Timestamp>,
}

/// How far one step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It may still succeed.
    Open,
    /// It has succeeded: no other step is needed.
    Satisfied,
    /// It is not known whether it has succeeded, or nobody wants it any more: no other step may follow.
    Stopped,
    /// It has ended without success: the next step follows.
    Failed,
}

/// How far a step has come whose job has these records: of each, the address, the number of the attempt and the state after it.
///
/// A step succeeds when one of its deliveries does. It has failed when all of them have ended otherwise, which is known only if
/// the pass over all addresses is complete: a retry may be reported before the pass that stored it.
pub fn progress(records: impl IntoIterator<Item = (Option<AddressId>, u32, State)>) -> Progress {
    let mut last: BTreeMap<Option<AddressId>, (u32, bool, State)> = BTreeMap::new();
    let mut is_complete = false;
    for (address, attempt, state) in records {
        // A wait as a whole tells nothing of what follows it.
        if state == State::Deferred {
            continue;
        }
        is_complete |= state.is_outcome() && attempt <= 1 || address.is_none() && state.is_final();
        let seen = (attempt, state.is_final(), state);
        let last = last.entry(address).or_insert(seen);
        if (seen.0, seen.1) > (last.0, last.1) {
            *last = seen;
        }
    }
    let any = |wanted: fn(State) -> bool| last.values().any(|(_, _, state)| wanted(*state));
    if any(|state| state == State::Delivered) {
        Progress::Satisfied
    } else if any(|state| matches!(state, State::Unknown | State::Cancelled)) {
        Progress::Stopped
    } else if !is_complete || any(|state| !state.is_final() || matches!(state, State::Unrecognized | State::Expanded)) {
        Progress::Open
    } else {
        Progress::Failed
    }
}

/// How far a step has come that needs a confirmation, and whose `job` has these records, as for [`progress`]. `reports` are all
/// about its notification, oldest first.
///
/// It succeeds when one of its messages is known to have arrived, whatever became of the others. A message that came back has
/// failed; of several reports about one message the last counts.
pub fn confirmation(
    records: impl IntoIterator<Item = (Option<AddressId>, u32, State)>,
    job: JobId,
    channel: Channel,
    reports: &[Feedback],
) -> Progress {
    let mut arrived: BTreeMap<AddressId, bool> = BTreeMap::new();
    let is_meant = |report: &&Feedback| report.channel == channel && report.is_about(job, report.address);
    for report in reports.iter().filter(is_meant) {
        match report.kind {
            // Whoever complains or unsubscribes has it.
            Kind::Confirmed | Kind::Complained | Kind::Unsubscribed => arrived.insert(report.address, true),
            Kind::Undelivered | Kind::Bounced => arrived.insert(report.address, false),
            Kind::Unrecognized => None,
        };
    }
    if arrived.values().any(|arrived| *arrived) {
        return Progress::Satisfied;
    }
    // A message that nothing is known of may still arrive.
    let as_reported = |(address, attempt, state): (Option<AddressId>, u32, State)| match (state, address) {
        (State::Delivered, Some(address)) if arrived.contains_key(&address) => {
            (Some(address), attempt, State::Rejected)
        }
        (State::Delivered, _) => (address, attempt, State::Parked),
        _ => (address, attempt, state),
    };
    progress(records.into_iter().map(as_reported))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::content::{push::Push, sms::Sms};

    fn contents() -> Contents {
        Contents {
            push: Some(Push::default().into()),
            sms: Some(Sms::default().into()),
            ..Contents::default()
        }
    }

    fn arranged(plan: Value) -> Result<Arrangement, String> {
        let plan: Plan = serde_json::from_value(plan).map_err(|error| error.to_string())?;
        plan.arrange(contents()).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn each_step_has_content_and_each_content_a_step() {
        let channels = |arrangement| -> Vec<Channel> {
            match arrangement {
                Ok(Arrangement::Course(course)) => course.contents().map(Content::channel).collect(),
                other => panic!("{other:?}"),
            }
        };
        let (push, sms) = (json!({ "channel": "push" }), json!({ "channel": "sms", "until": null }));
        let fallback = channels(arranged(json!({ "mode": "fallback", "steps": [sms, push] })));
        assert_eq!(fallback, [Channel::Sms, Channel::Push]);
        for plan in [json!({ "mode": "all" }), json!({ "mode": "all", "steps": [push, sms] })] {
            assert!(matches!(arranged(plan), Ok(Arrangement::Each(contents)) if contents.len() == 2));
        }
        for (plan, expected) in [
            (
                json!({ "mode": "first" }),
                "plan.steps: must be given, unless the mode is all",
            ),
            (
                json!({ "mode": "first", "steps": [] }),
                "plan.steps: must hold 1 to 4 steps",
            ),
            (
                json!({ "mode": "first", "steps": [push] }),
                "sms: must have a step in plan.steps",
            ),
            (
                json!({ "mode": "first", "steps": [push, push, sms] }),
                "plan.steps[1].channel: must not be named twice",
            ),
            (
                json!({ "mode": "all", "steps": [push, { "channel": "email" }, sms] }),
                "plan.steps[1].channel: must be a channel that has content",
            ),
        ] {
            assert_eq!(arranged(plan).unwrap_err(), expected);
        }
        let one = Plan {
            mode: Mode::Fallback,
            steps: Some(vec![Step::of(Channel::Push)]),
        };
        let only_push = Contents {
            sms: None,
            ..contents()
        };
        assert!(matches!(one.arrange(only_push), Ok(Arrangement::Each(contents)) if contents.len() == 1));
        let unknown = json!({ "mode": "first", "steps": [push], "later": 1 });
        assert!(serde_json::from_value::<Plan>(unknown).is_err());
    }

    #[test]
    fn only_a_step_of_a_fallback_waits_for_a_confirmation_and_only_within_bounds() {
        let arranged = |mode: &str, step: Value| {
            arranged(json!({ "mode": mode, "steps": [step, { "channel": "push" }] })).map(|arrangement| {
                match arrangement {
                    Arrangement::Course(course) => (course.wait(0), course.waits()),
                    Arrangement::Each(_) => (None, false),
                }
            })
        };
        let sms = |until: &str, wait_s: Option<u32>| json!({ "channel": "sms", "until": until, "wait_s": wait_s });
        let waits = |seconds| Ok((Some(SignedDuration::from_secs(seconds)), true));
        assert_eq!(arranged("fallback", sms("confirmed", None)), waits(600));
        assert_eq!(arranged("fallback", sms("confirmed", Some(60))), waits(60));
        assert_eq!(arranged("first", sms("confirmed", None)), Ok((None, false)));
        let rule = "plan.steps[0].wait_s: must be given only in a fallback, with until confirmed";
        for (mode, until) in [("fallback", "delivered"), ("first", "confirmed"), ("all", "confirmed")] {
            assert_eq!(
                arranged(mode, sms(until, Some(60))).unwrap_err(),
                rule,
                "{mode} {until}"
            );
        }
        for beyond in [59, 604_801] {
            let refused = arranged("fallback", sms("confirmed", Some(beyond))).unwrap_err();
            assert_eq!(refused, "plan.steps[0].wait_s: must be 60 to 604800");
        }
    }

    #[test]
    fn a_step_that_needs_a_confirmation_succeeds_by_it_alone() {
        use State::{Dead, Delivered, Parked, Rejected, Unknown};
        let (a, b) = (AddressId(Uuid::from_u128(1)), AddressId(Uuid::from_u128(2)));
        let (job, other) = (JobId(Uuid::from_u128(8)), JobId(Uuid::from_u128(9)));
        let report = |kind, address, about: Option<JobId>| Feedback {
            id: Uuid::nil(),
            kind,
            at: Timestamp::UNIX_EPOCH,
            notification: crate::id::NotificationId(Uuid::nil()),
            job: about,
            address,
            channel: Channel::Sms,
            provider: None,
            reason: None,
            hard: None,
        };
        let confirmed = |address| report(Kind::Confirmed, address, Some(job));
        let came_back = |address| report(Kind::Undelivered, address, Some(job));
        let mail = Feedback {
            channel: Channel::Email,
            ..confirmed(a)
        };
        for (records, reports, expected) in [
            (vec![(a, 1, Delivered)], vec![], Progress::Open),
            (vec![(a, 1, Delivered)], vec![confirmed(a)], Progress::Satisfied),
            (
                vec![(a, 1, Delivered)],
                vec![report(Kind::Confirmed, a, None)],
                Progress::Satisfied,
            ),
            (
                vec![(a, 1, Delivered)],
                vec![report(Kind::Complained, a, Some(job))],
                Progress::Satisfied,
            ),
            (
                vec![(a, 1, Delivered)],
                vec![report(Kind::Confirmed, a, Some(other)), mail],
                Progress::Open,
            ),
            (vec![(a, 1, Delivered)], vec![came_back(a)], Progress::Failed),
            (
                vec![(a, 1, Delivered)],
                vec![came_back(a), confirmed(a)],
                Progress::Satisfied,
            ),
            (
                vec![(a, 1, Delivered)],
                vec![confirmed(a), came_back(a)],
                Progress::Failed,
            ),
            (
                vec![(a, 1, Delivered), (b, 1, Delivered)],
                vec![came_back(a)],
                Progress::Open,
            ),
            (
                vec![(a, 1, Delivered), (b, 1, Delivered)],
                vec![came_back(a), confirmed(b)],
                Progress::Satisfied,
            ),
            (
                vec![(a, 1, Delivered), (b, 1, Parked)],
                vec![came_back(a)],
                Progress::Open,
            ),
            (
                vec![(a, 1, Delivered), (b, 1, Parked), (b, 2, Dead)],
                vec![came_back(a)],
                Progress::Failed,
            ),
            (vec![(a, 1, Delivered), (b, 1, Unknown)], vec![], Progress::Stopped),
            (vec![(a, 1, Rejected)], vec![], Progress::Failed),
            // The ledger has forgotten it.
            (vec![], vec![confirmed(a)], Progress::Satisfied),
            (vec![], vec![came_back(a)], Progress::Open),
        ] {
            let states = records
                .iter()
                .map(|(address, attempt, state)| (Some(*address), *attempt, *state));
            assert_eq!(
                confirmation(states, job, Channel::Sms, &reports),
                expected,
                "{records:?} {reports:?}"
            );
        }
    }

    #[test]
    fn a_step_fails_when_all_its_deliveries_have_and_the_pass_is_complete() {
        use State::{Attempting, Cancelled, Dead, Deferred, Delivered, Expired, Parked, Rejected, Suppressed, Unknown};
        let a = Some(AddressId(Uuid::from_u128(1)));
        let b = Some(AddressId(Uuid::from_u128(2)));
        for (records, expected) in [
            (vec![], Progress::Open),
            (vec![(None, 1, Deferred)], Progress::Open),
            (vec![(None, 1, Suppressed)], Progress::Failed),
            (vec![(None, 1, Deferred), (None, 1, Expired)], Progress::Failed),
            (vec![(None, 1, Cancelled)], Progress::Stopped),
            (vec![(a, 1, Rejected)], Progress::Failed),
            (vec![(a, 1, Attempting)], Progress::Open),
            (vec![(a, 1, Attempting), (a, 1, Unknown)], Progress::Stopped),
            (vec![(a, 1, Rejected), (b, 1, Delivered)], Progress::Satisfied),
            (vec![(a, 1, Rejected), (b, 1, Parked)], Progress::Open),
            (vec![(a, 1, Rejected), (b, 1, Parked), (b, 2, Dead)], Progress::Failed),
            (vec![(b, 2, Dead), (a, 1, Rejected), (b, 1, Parked)], Progress::Failed),
            (vec![(b, 1, Parked), (b, 2, Attempting)], Progress::Open),
            // The pass that stored this retry is not reported yet.
            (vec![(b, 2, Dead)], Progress::Open),
            (vec![(b, 2, Delivered)], Progress::Satisfied),
            // A person replayed the dead letter.
            (vec![(a, 1, Dead), (a, 2, Delivered)], Progress::Satisfied),
        ] {
            assert_eq!(progress(records.clone()), expected, "{records:?}");
        }
    }
}
