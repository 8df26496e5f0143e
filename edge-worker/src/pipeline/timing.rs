//! Lets wait what must not be sent at this time of the day, or ends it ([`shared::policy::quiet`]). It is decided again when it comes
//! back, by the preferences of that time.
//!
//! A member of a slice that waits as a whole waits with its slice, so that a broadcast into the night is one message for a thousand
//! members, and not a thousand. The slice comes back when the first of them may be sent to; the ledger knows the others.

use jiff::{SignedDuration, Timestamp};
use shared::{
    address::Address,
    job::Job,
    policy::{
        Ruling,
        quiet::{self, Question, QuietHours},
    },
    receipt::State,
};

use super::{
    consent::{Agreed, Spared},
    context::Pipeline,
    hold::Held,
    in_flight::ActiveJob,
    settlement::{Step, Stop},
};

/// How long after acceptance a slice may wait for its members. It must end while the ledger still knows its first deliveries, which
/// is three days. Members who wait longer leave the slice.
const SLICE_WAITS_WITHIN: SignedDuration = SignedDuration::from_hours(48);

/// What is known about the times at which a recipient may be sent to.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// The recipient's time zone.
    pub(super) timezone: Option<String>,
    /// The recipient's quiet hours; `None` if they are those of the app.
    pub(super) quiet_hours: Option<Vec<QuietHours>>,
}

/// A job that may be sent at this time of the day, at least to some of its addresses.
#[derive(Debug)]
pub(super) struct Timely {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    /// Those that nothing is sent to.
    pub(super) spared: Vec<Spared>,
    /// Those that nothing is sent to now.
    pub(super) held: Vec<Held>,
}

impl Pipeline {
    /// Applies the quiet hours.
    pub(super) async fn timing(&self, agreed: Agreed) -> Step<Timely> {
        let timely = self.apply_quiet_hours(agreed);
        if timely.held.is_empty() || !timely.addresses.is_empty() || !timely.spared.is_empty() {
            return Ok(timely);
        }
        Box::pin(self.wait(timely)).await
    }

    /// Lets a job wait as a whole, all of whose addresses are held: a member of a slice with it. It goes on if it cannot.
    pub(super) async fn wait(&self, timely: Timely) -> Step<Timely> {
        let Timely { active, held, .. } = timely;
        if let Some(until) = waits_with_slice(&active.job, &held) {
            return Err(Stop::HoldMember(active.pulled.into(), until));
        }
        let active = self.hold_whole(active, &held).await?;
        Ok(Timely {
            active,
            addresses: Vec::new(),
            spared: Vec::new(),
            held,
        })
    }

    fn apply_quiet_hours(&self, agreed: Agreed) -> Timely {
        let Agreed {
            active,
            addresses,
            mut spared,
            times,
        } = agreed;
        let (job, now) = (&active.job, self.clock.now());
        let tenants = self.config.tenants();
        let question = tenants.apps.get(&job.app).and_then(|app| {
            let (own, category) = (times.quiet_hours.as_deref(), job.category.as_ref());
            Question::new(app, own, category, job.channel(), job.class, now)
        });
        let Some(question) = question else {
            return Timely {
                active,
                addresses,
                spared,
                held: Vec::new(),
            };
        };
        // It comes back before it expires, so that it ends with a receipt soon after.
        let latest = job.expires_at() - SignedDuration::from_secs(1);
        let (mut sent, mut held) = (Vec::with_capacity(addresses.len()), Vec::new());
        for (address, revision) in addresses {
            let zones = [address.timezone.as_deref(), times.timezone.as_deref()];
            let (state, reason) = match question.ruling(zones, || quiet::spread(job)) {
                Ruling::Send => {
                    sent.push((address, revision));
                    continue;
                }
                Ruling::Wait { until, why } if until.min(latest) > now => {
                    held.push(Held {
                        address,
                        revision,
                        until: until.min(latest),
                        why,
                    });
                    continue;
                }
                Ruling::Wait { .. } => (State::Expired, State::Expired.as_str()),
                Ruling::Drop { state, why } => (state, why),
            };
            spared.push(Spared { address, state, reason });
        }
        Timely {
            active,
            addresses: sent,
            spared,
            held,
        }
    }
}

/// Until when a member of a slice waits with it; `None` if its addresses wait for themselves.
fn waits_with_slice(job: &Job, held: &[Held]) -> Option<Timestamp> {
    let until = held.iter().map(|held| held.until).min()?;
    let is_member = job.slice.is_some() && job.remaining.is_none();
    (is_member && until.duration_since(job.accepted_at) <= SLICE_WAITS_WITHIN).then_some(until)
}
