//! Looks for what providers report about deliveries, so that a provider whose reports have grown slow is asked after the app's
//! others (`providers/reports.rs`).
//!
//! It reads FEEDBACK of the region that works on the delivery, where every report arrives that carries the reference of one of the
//! app's messages and that the provider has signed. So neither another app nor a recipient makes a provider look quick or slow.

use std::time::Duration;

use async_nats::jetstream;
use jiff::Timestamp;
use shared::{
    feedback::Feedback,
    id::{AddressId, AppId, JobId, NotificationId, Region},
    job::Job,
    nats::{
        border::Border,
        direct::{Found, NoAnswer},
        feedback,
    },
    provider::Provider,
    telemetry::metric::Metrics,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{attempt::AddressAttempt, context::Pipeline};
use crate::providers::Followed;

/// When it is looked, after the provider's answer. The last look is when the report is late.
const LOOKS_AFTER: [Duration; 8] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
    Duration::from_mins(1),
    Duration::from_mins(2),
    Duration::from_mins(5),
];

/// A delivery whose report is looked for.
#[derive(Debug)]
struct Delivered {
    js: jetstream::Context,
    border: Border,
    home: Region,
    app: AppId,
    notification: NotificationId,
    job: JobId,
    address: AddressId,
    provider: Provider,
    at: Timestamp,
    followed: Followed,
    metrics: Metrics,
}

/// What the looks for a report came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The report came so long after the provider's answer.
    After(Duration),
    Nothing,
    /// What was reported could not be read.
    Unread,
}

impl Pipeline {
    /// Looks for the report about a delivery, if that may change which provider is asked. Ends with the process, which forgets
    /// what it has learned.
    pub(super) fn follow_report(&self, job: &Job, attempt: &AddressAttempt) {
        let AddressAttempt { address, attempted, .. } = attempt;
        // What is reported about the members of a broadcast lies under one subject, and may be very much.
        if job.slice.is_some() {
            return;
        }
        let Some(followed) = self.providers.follow(&job.app, address, attempted.provider) else {
            return;
        };
        let delivered = Delivered {
            js: self.js.clone(),
            border: self.border.clone(),
            home: self.region.clone(),
            app: job.app.clone(),
            notification: job.notification,
            job: job.id,
            address: address.id,
            provider: attempted.provider,
            at: attempted.ended_at,
            followed,
            metrics: self.telemetry.metrics.clone(),
        };
        let lifecycle = self.lifecycle.clone();
        self.lifecycle.spawn_job(Box::pin(async move {
            tokio::select! {
                () = delivered.follow() => (),
                () = lifecycle.finishing() => (),
            }
        }));
    }
}

impl Delivered {
    async fn follow(self) {
        let within = self.followed.within();
        let seen = look_until(within, || self.look()).await;
        let (result, waited) = match seen {
            Seen::After(waited) if waited <= within => ("in_time", Some(waited)),
            Seen::After(_) | Seen::Nothing => ("late", None),
            Seen::Unread => return self.metrics.followed(self.provider, "unread"),
        };
        self.metrics.followed(self.provider, result);
        sleep(self.followed.learn(waited)).await;
    }

    /// How long after the provider's answer the first report came; `None` if there is none.
    async fn look(&self) -> Result<Option<Duration>, NoAnswer> {
        let (app, notification) = (&self.app, self.notification);
        let found = feedback::found(&self.js, &self.border, &self.home, app, notification).await?;
        let is_full = found.len() >= feedback::READ_MAX;
        let first = first_report(found, notification, self.job, self.address, self.provider);
        if first.is_none() && is_full {
            return Err(NoAnswer::Silent);
        }
        Ok(first.map(|at| Duration::try_from(at.duration_since(self.at)).unwrap_or_default()))
    }
}

/// When the first of `found` was stored that `provider` reported about this delivery.
fn first_report(
    found: Vec<Found>,
    notification: NotificationId,
    job: JobId,
    address: AddressId,
    provider: Provider,
) -> Option<Timestamp> {
    let stored_at = |found: Found| {
        let stored_at = found.stored_at;
        let read = feedback::read([found], notification);
        let is_it = |report: &Feedback| report.provider == Some(provider) && report.is_about(job, address);
        read.iter().any(is_it).then_some(stored_at)
    };
    found.into_iter().filter_map(stored_at).min()
}

/// Looks at growing intervals, the last time after `within`. A look that fails is made up for by the next.
async fn look_until<F>(within: Duration, mut look: impl FnMut() -> F) -> Seen
where
    F: Future<Output = Result<Option<Duration>, NoAnswer>>,
{
    let began = Instant::now();
    let mut seen = Seen::Nothing;
    for after in LOOKS_AFTER.into_iter().filter(|after| *after < within).chain([within]) {
        sleep_until(began + after).await;
        seen = match look().await {
            Ok(Some(waited)) => return Seen::After(waited),
            Ok(None) => Seen::Nothing,
            Err(_) => Seen::Unread,
        };
    }
    seen
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use async_nats::HeaderMap;
    use shared::{
        channel::Channel,
        feedback::{Kind, Report},
        reference::Reference,
    };
    use uuid::Uuid;

    use super::*;

    fn job(number: u128) -> JobId {
        Uuid::from_u128(number).to_string().parse().unwrap()
    }

    /// What `provider` reported about the delivery of `job` to the address `address`, stored `second` seconds after 1970.
    fn found(provider: Option<Provider>, job: JobId, address: AddressId, second: i64) -> Found {
        let report = Report {
            reference: String::new(),
            event: second.to_string(),
            kind: Kind::Undelivered,
            at: Timestamp::UNIX_EPOCH,
            reason: None,
            hard: None,
        };
        let reference = Reference {
            channel: Channel::Sms,
            notification: NotificationId(Uuid::nil()),
            job: Some(job),
            address,
            sent_at: None,
        };
        let feedback = report.about(&"shop".parse().unwrap(), provider, &reference);
        Found {
            subject: String::new(),
            sequence: 1,
            stored_at: Timestamp::from_second(second).unwrap(),
            headers: HeaderMap::new(),
            payload: serde_json::to_vec(&feedback).unwrap().into(),
        }
    }

    #[test]
    fn only_a_report_of_this_provider_about_this_delivery_counts() {
        let [here, elsewhere]: [AddressId; 2] = [1, 2].map(|id| Uuid::from_u128(id).to_string().parse().unwrap());
        let twilio = Some(Provider::Twilio);
        let others = vec![
            found(twilio, job(2), here, 1),
            found(twilio, job(1), elsewhere, 2),
            found(Some(Provider::Vonage), job(1), here, 3),
            found(None, job(1), here, 4),
        ];
        let first = |found: &[Found]| {
            let notification = NotificationId(Uuid::nil());
            first_report(found.to_vec(), notification, job(1), here, Provider::Twilio).map(Timestamp::as_second)
        };
        assert_eq!(first(&others), None);
        let own = [found(twilio, job(1), here, 9), found(twilio, job(1), here, 6)];
        assert_eq!(first(&[others, own.to_vec()].concat()), Some(6));
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_a_few_times_a_minute_until_the_report_is_late() {
        let looks = async |within: u64, reported_at: u64, fails: std::ops::Range<usize>| {
            let began = Instant::now();
            let mut at = Vec::new();
            let seen = look_until(Duration::from_secs(within), || {
                let now = began.elapsed().as_secs();
                at.push(now);
                let reported = (now >= reported_at).then(|| Duration::from_secs(reported_at));
                ready(if fails.contains(&at.len()) {
                    Err(NoAnswer::Silent)
                } else {
                    Ok(reported)
                })
            })
            .await;
            (seen, at)
        };
        let after = |seconds| Seen::After(Duration::from_secs(seconds));
        assert_eq!(looks(60, 1, 0..0).await, (after(1), vec![2]));
        assert_eq!(looks(60, 12, 0..0).await, (after(12), vec![2, 5, 10, 20]));
        assert_eq!(looks(60, 12, 1..5).await.0, after(12), "failed looks are made up for");
        assert_eq!(looks(60, 99, 0..0).await, (Seen::Nothing, vec![2, 5, 10, 20, 40, 60]));
        assert_eq!(looks(90, 99, 0..0).await.1.last(), Some(&90));
        assert_eq!(looks(600, 999, 0..0).await.1, [2, 5, 10, 20, 40, 60, 120, 300, 600]);
        assert_eq!(looks(60, 99, 6..7).await.0, Seen::Unread, "nothing is known at the end");
    }
}
