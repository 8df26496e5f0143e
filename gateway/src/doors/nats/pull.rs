//! Takes messages from the intakes, and makes jobs of each. All gateways of a region share the intakes. What is due of each app is
//! taken in the same way; [`super::due`] accepts it.
//!
//! A message is acknowledged once every job of it is stored and every notification that breaks a rule is a dead letter. Until
//! then it is in flight as a whole: after a crash the server delivers it again, and the ids of jobs and letters keep what is
//! stored single.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::HeaderMap;
use shared::{
    app::App,
    failpoint::failpoint,
    id::AppId,
    lifecycle::Lifecycle,
    nats::{
        config::Tenants,
        connect,
        intake::{Arrival, Inbox, PULL_EXPIRES_AFTER, Published, Source},
        roles::Role,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval},
};
use tokio_util::task::TaskTracker;

use super::{Door, letter::Refusal, trace};
use crate::{
    doors::{
        problem::{Problem, REGION_UNAVAILABLE},
        send,
    },
    intake::request::Orders,
    trace::Trace,
};

/// Maximum number of messages of one app that this gateway holds.
const APP_MESSAGES_MAX: usize = 128;

/// Maximum bytes of one pull.
const PULL_BYTES_MAX: usize = 1 << 20;

/// Maximum number of messages that are made jobs of at a time.
const AT_WORK_MAX: usize = 512;

/// Maximum number of those that are of one app.
const APP_AT_WORK_MAX: usize = 64;

/// The pause before an intake that did not answer is asked again.
const RETRY_PULL_AFTER: Duration = Duration::from_millis(250);

/// How often connection and pulls are checked.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// A pull whose end was not reported counts as ended this long after it should have.
const PULL_OVERDUE_AFTER: Duration = Duration::from_secs(5);

/// The delay of the first redelivery of what could not be stored; it doubles with each try.
const GIVE_BACK_FOR: Duration = Duration::from_millis(250);

/// The longest delay of a redelivery.
pub(super) const GIVE_BACK_FOR_MAX: Duration = Duration::from_secs(5);

/// After this number of tries, which is more than a minute, a home that is no region of this mesh is a mistake and not a region
/// that is being added.
const STRANGE_HOME_TRIES: i64 = 20;

/// What this gateway holds of one app.
#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Box<Published>>,
    at_work: usize,
    /// How many messages the open pull may still bring.
    pulling: usize,
    /// When the open pull is taken to be lost, or when the next one may be sent.
    deadline: Instant,
    /// When the app's quota may admit more.
    full_until: Instant,
}

/// The work on one message of this app has ended; if the app's quota refused it, with the time after which it admits more.
#[derive(Debug)]
struct Done {
    app: AppId,
    quota_frees_after: Option<Duration>,
}

/// All intakes of a region, or all that is due, as one gateway sees them.
#[derive(Debug)]
struct Puller {
    door: Arc<Door>,
    source: Source,
    queues: BTreeMap<AppId, Queue>,
    /// The apps with waiting messages, in the order of their turns.
    turns: VecDeque<AppId>,
    at_work: usize,
    done: mpsc::UnboundedSender<Done>,
    works: TaskTracker,
}

pub(super) async fn run(
    door: Arc<Door>,
    source: Source,
    mut apps: watch::Receiver<BTreeSet<AppId>>,
    lifecycle: Lifecycle,
) {
    let context = Arc::clone(&door.context);
    let inbox = Role::Gateway(context.here.clone()).inbox();
    let name = match source {
        Source::Intakes => "door",
        Source::Planned => "due",
    };
    let inbox = format!("{inbox}.{name}.{}", door.instance);
    let Ok(mut inbox) = Inbox::open(context.js.clone(), source, inbox).await else {
        return;
    };
    let (sender, mut done) = mpsc::unbounded_channel();
    let mut puller = Puller {
        door,
        source,
        queues: BTreeMap::new(),
        turns: VecDeque::new(),
        at_work: 0,
        done: sender,
        works: TaskTracker::new(),
    };
    let (client, mut check) = (context.js.client(), interval(CHECK_EVERY));
    let mut connection = connect::connects(&client);
    apps.mark_changed();
    loop {
        // The app whose intake may be asked for more; `None` means any.
        let mut touched = None;
        tokio::select! {
            () = lifecycle.finishing() => break,
            arrival = inbox.next() => match arrival {
                Some(arrival) => touched = puller.take(arrival),
                None => break,
            },
            Some(worked_off) = done.recv() => {
                puller.worked_off(&worked_off);
                touched = Some(worked_off.app);
            }
            Ok(()) = apps.changed() => puller.serve(&apps.borrow_and_update()),
            _ = check.tick() => {
                let now = connect::connects(&client);
                // A server forgets the pulls of a connection that is lost.
                puller.end_overdue(std::mem::replace(&mut connection, now) != now);
            }
        }
        puller.begin();
        // Without homes a recipient's job would go to the wrong region.
        if context.is_informed() {
            puller.pull(&inbox, touched.as_ref(), &context.config.tenants()).await;
        }
    }
    inbox.close().await;
    for message in puller.queues.values().flat_map(|queue| &queue.waiting) {
        message.give_back(Duration::ZERO).await;
    }
    puller.works.close();
    puller.works.wait().await;
}

impl Puller {
    fn serve(&mut self, apps: &BTreeSet<AppId>) {
        self.queues
            .retain(|app, queue| apps.contains(app) || !queue.waiting.is_empty() || queue.at_work > 0);
        for app in apps {
            self.queues.entry(app.clone()).or_insert_with(Queue::new);
        }
    }

    /// Takes in what arrived, and returns the app that it concerns.
    fn take(&mut self, arrival: Arrival) -> Option<AppId> {
        match arrival {
            Arrival::Published(message) => {
                let app = message.app.clone();
                let queue = self.queues.entry(app.clone()).or_insert_with(Queue::new);
                queue.pulling = queue.pulling.saturating_sub(1);
                if queue.pulling == 0 {
                    queue.deadline = Instant::now();
                }
                if queue.waiting.is_empty() && queue.at_work < APP_AT_WORK_MAX {
                    self.turns.push_back(app.clone());
                }
                queue.waiting.push_back(message);
                Some(app)
            }
            Arrival::PullEnded { app, lost } => {
                if let Some(queue) = self.queues.get_mut(&app) {
                    queue.pulling = 0;
                    queue.deadline = Instant::now() + if lost { RETRY_PULL_AFTER } else { Duration::ZERO };
                }
                Some(app)
            }
            Arrival::Other => None,
        }
    }

    fn worked_off(&mut self, Done { app, quota_frees_after }: &Done) {
        self.at_work -= 1;
        if let Some(queue) = self.queues.get_mut(app) {
            if let Some(wait) = quota_frees_after {
                queue.full_until = queue.full_until.max(Instant::now() + *wait);
            }
            if queue.at_work == APP_AT_WORK_MAX && !queue.waiting.is_empty() {
                self.turns.push_back(app.clone());
            }
            queue.at_work -= 1;
        }
    }

    fn end_overdue(&mut self, all: bool) {
        let now = Instant::now();
        for queue in self.queues.values_mut().filter(|queue| queue.pulling > 0) {
            if all || now > queue.deadline {
                queue.pulling = 0;
                queue.deadline = now;
            }
        }
    }

    /// Begins work on waiting messages: one message of each app in turn.
    fn begin(&mut self) {
        while self.at_work < AT_WORK_MAX {
            let Some(app) = self.turns.pop_front() else { return };
            let Some(queue) = self.queues.get_mut(&app) else {
                continue;
            };
            let Some(message) = queue.waiting.pop_front() else {
                continue;
            };
            queue.at_work += 1;
            self.at_work += 1;
            if !queue.waiting.is_empty() && queue.at_work < APP_AT_WORK_MAX {
                self.turns.push_back(app);
            }
            let (door, source, done) = (Arc::clone(&self.door), self.source, self.done.clone());
            self.works.spawn(Box::pin(async move {
                let quota_frees_after = match source {
                    Source::Intakes => door.work_off(&message).await,
                    Source::Planned => door.fire(&message).await,
                };
                let app = message.app;
                // The receiver is gone when the process ends.
                drop(done.send(Done { app, quota_frees_after }));
            }));
        }
    }

    /// Asks for more of the app `of` if this gateway has room, or of all apps if it is `None`. Suspended apps wait.
    async fn pull(&mut self, inbox: &Inbox, of: Option<&AppId>, tenants: &Tenants) {
        let now = Instant::now();
        let queues: &mut (dyn Iterator<Item = (&AppId, &mut Queue)> + Send) = match of {
            Some(app) => &mut self.queues.get_mut(app).map(|queue| (app, queue)).into_iter(),
            None => &mut self.queues.iter_mut(),
        };
        for (app, queue) in queues {
            if tenants.apps.get(app).is_some_and(|app| app.suspended) {
                continue;
            }
            let free = APP_MESSAGES_MAX - (queue.waiting.len() + queue.at_work).min(APP_MESSAGES_MAX);
            if queue.pulling > 0 || now < queue.deadline.max(queue.full_until) || free < APP_MESSAGES_MAX / 4 {
                continue;
            }
            match inbox.pull(app, free, PULL_BYTES_MAX).await {
                Ok(()) => {
                    queue.pulling = free;
                    queue.deadline = now + PULL_EXPIRES_AFTER + PULL_OVERDUE_AFTER;
                }
                Err(error) => {
                    tracing::debug!(%app, %error, "cannot ask for the messages of an app; retrying");
                    queue.deadline = now + RETRY_PULL_AFTER;
                }
            }
        }
    }
}

impl Queue {
    fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            at_work: 0,
            pulling: 0,
            deadline: Instant::now(),
            full_until: Instant::now(),
        }
    }
}

/// What became of a message: what of it is refused, with everything else stored.
type WorkedOff = Result<Vec<Refusal>, NotYet>;

/// Something of the message could not be stored now.
#[derive(Debug)]
struct NotYet(Problem);

impl Door {
    /// Makes jobs and dead letters of a message, and acknowledges it; or gives it back. Returns when the app's quota admits
    /// more, if it is used up.
    async fn work_off(&self, message: &Published) -> Option<Duration> {
        let tenants = self.context.config.tenants();
        let Some(app) = tenants.apps.get(&message.app).filter(|app| !app.suspended) else {
            message.give_back(GIVE_BACK_FOR_MAX).await;
            return None;
        };
        let none = HeaderMap::new();
        let headers = message.message().headers.as_ref().unwrap_or(&none);
        let trace = trace::of_message(&self.context.telemetry, headers);
        let worked_off = self.accept(app, headers, message, &trace).await;
        let code = match &worked_off {
            Ok(refusals) => refusals.first().map(Refusal::code),
            Err(NotYet(problem)) => Some(problem.kind().code),
        };
        trace::end(&trace, code);
        let kept = match worked_off {
            Ok(refusals) => self
                .keep(message, headers, refusals)
                .await
                .map_err(|why| why.to_string()),
            Err(NotYet(problem)) => {
                if let Some(wait) = problem.quota_frees_after() {
                    message.give_back(wait).await;
                    return Some(wait);
                }
                Err(problem.detail().to_owned())
            }
        };
        failpoint("gateway.before-acknowledge");
        match kept {
            Ok(()) => message.acknowledge().await,
            Err(why) => {
                tracing::warn!(app = %message.app, sequence = message.sequence, why, "a message of an intake waits");
                message.give_back(delay(message.tries)).await;
            }
        }
        None
    }

    async fn accept(&self, app: &Arc<App>, headers: &HeaderMap, message: &Published, trace: &Trace) -> WorkedOff {
        let body = &message.message().payload;
        let within = self.request_timeout;
        let settle = |problem: Problem, index, json| {
            let is_strange = problem.kind() == REGION_UNAVAILABLE && message.tries >= STRANGE_HOME_TRIES;
            if problem.is_passing() && !is_strange {
                Err(NotYet(problem))
            } else {
                Ok(Refusal::new(index, json, problem))
            }
        };
        match self.orders(app, headers, body, message.stored_at) {
            Err(refused) => Ok(vec![Refusal::new(None, body.clone(), refused.into())]),
            Ok(Orders::One(order)) => match send::accept(&self.intake, *order, trace, within).await {
                Ok(_) => Ok(Vec::new()),
                Err(failed) => settle(failed.problem, None, body.clone()).map(|refusal| vec![refusal]),
            },
            Ok(Orders::Many(orders)) => {
                let (jsons, orders): (Vec<_>, Vec<_>) = orders.into_iter().unzip();
                let results = send::accept_many(&self.intake, orders.into_iter(), trace, within).await;
                let results = results.into_items().into_iter().zip(jsons).enumerate();
                let failed = results.filter_map(|(index, (result, json))| Some((index, result.err()?, json)));
                failed
                    .map(|(index, problem, json)| {
                        settle(problem, Some(index), String::from(Box::<str>::from(json)).into())
                    })
                    .collect()
            }
        }
    }
}

/// How long a message waits that was delivered `tries` times.
pub(super) fn delay(tries: i64) -> Duration {
    let doublings = u32::try_from(tries.clamp(1, 16) - 1).unwrap_or_default();
    (GIVE_BACK_FOR * 2_u32.pow(doublings)).min(GIVE_BACK_FOR_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_stored_waits_longer_and_longer() {
        let delays = [1, 2, 3, 6, 100].map(|tries| delay(tries).as_millis());
        assert_eq!(delays, [250, 500, 1000, 5000, 5000]);
    }
}
