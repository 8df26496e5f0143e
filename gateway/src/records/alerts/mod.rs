//! Alerts developers to dead letters, failing receivers and API keys that end soon: a webhook for each app concerned, grouped by channel and reason, rate-limited.
//!
//! The gateways of a region share a durable consumer on the dead letters, so each letter is reported once, and again
//! later if the receiver did not accept the alert. The webhook is signed as Standard Webhooks 1.0 specifies.
//!
//! Receivers of webhooks that fail for days, or are disabled, are alerted to in the same way, from what workers tell; such an alert is
//! given up after some tries, and the state of the address still says it.
//!
//! No app waits for another: each is reported to by a task of its own, and letters of an app that was alerted shortly before
//! go back to the server until its next alert.

mod ends;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{AckKind, Message, consumer::PullConsumer};
use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use shared::{
    app::App,
    id::{AddressId, AppId, RecipientId, Region},
    nats::{
        envelope,
        receivers::Troubled,
        refusal::{is_about, unless_refused},
        subject::{self, DeadSubject},
        topology,
    },
    signature::{self, SigningKey},
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::dead_letters::LetterId;
use crate::context::Context;

/// One round of alerts reports at most this many letters after the first; the next round reports the rest.
const ALERT_LETTERS_MAX: usize = 5000;

/// How long to wait for more letters after the first, so that a burst becomes one alert.
const BURST_WAIT: Duration = Duration::from_secs(1);

/// How long a receiver may take to answer.
const RECEIVER_TIMEOUT: Duration = Duration::from_secs(15);

/// Alerts that are being posted at one time, at most.
const ALERTS_IN_PROGRESS_MAX: usize = 64;

/// An alert that the receiver did not accept is retried at the latest after this time.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Receivers of webhooks in one alert, at most; the next one has the rest.
const ALERT_RECEIVERS_MAX: usize = 100;

/// Receivers of one app that wait for an alert, at most.
const WAITING_RECEIVERS_MAX: usize = 1000;

/// How often an alert is tried that no dead letter keeps.
const TRIES_MAX: u32 = 8;

/// How alerts are sent.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertSettings {
    /// Minimum time between two alerts to one app, in seconds.
    pub every_s: u64,
}

/// Sends the alerts of a region.
#[derive(Debug)]
pub(crate) struct Alerts {
    context: Arc<Context>,
    every: Duration,
    http: reqwest::Client,
    /// One permit for each alert that may be posted now.
    places: Semaphore,
    /// The last alert to each app.
    last: Mutex<HashMap<AppId, LastAlert>>,
    /// Receivers of webhooks that wait for an alert, the oldest first. An app that is here has a task that reports them.
    troubled: Mutex<HashMap<AppId, VecDeque<Troubled>>>,
}

/// The last alert to an app.
#[derive(Debug, Clone, Copy)]
struct LastAlert {
    /// Before this time the app is sent no other.
    next_at: Instant,
    /// How many alerts in a row its receiver did not accept.
    failures: u32,
}

/// The body of the webhook.
#[derive(Debug, Serialize)]
struct Alert<D> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: Timestamp,
    data: D,
}

#[derive(Debug, Serialize)]
struct Data<'a> {
    app: &'a AppId,
    region: &'a Region,
    dead_letters: usize,
    groups: Vec<Group<'a>>,
}

#[derive(Debug, Serialize)]
struct Group<'a> {
    channel: &'a str,
    reason: &'a str,
    dead_letters: usize,
    /// The newest letter of the group, as an example to look at.
    #[serde(serialize_with = "as_text")]
    letter: LetterId,
}

#[derive(Debug, Serialize)]
struct Receivers<'a> {
    app: &'a AppId,
    region: &'a Region,
    endpoints: Vec<Endpoint<'a>>,
}

/// A receiver of webhooks that fails or is disabled. Its URL may be a secret and is not shown.
#[derive(Debug, Serialize)]
struct Endpoint<'a> {
    recipient: &'a RecipientId,
    address_id: AddressId,
    failing_since: Timestamp,
    /// How much of the time has passed after which it is disabled.
    percent: u8,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_at: Option<Timestamp>,
}

/// One letter to report.
#[derive(Debug)]
struct PulledLetter {
    channel: String,
    reason: String,
    sequence: u64,
    message: Message,
}

impl Alerts {
    /// # Errors
    /// When the HTTP client cannot be built.
    pub(crate) fn new(context: Arc<Context>, settings: AlertSettings) -> Result<Self, reqwest::Error> {
        // Redirects are not followed: a receiver has one address.
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(RECEIVER_TIMEOUT)
            .user_agent(concat!("peal-gateway/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            context,
            every: Duration::from_secs(settings.every_s),
            http,
            places: Semaphore::new(ALERTS_IN_PROGRESS_MAX),
            last: Mutex::default(),
            troubled: Mutex::default(),
        })
    }

    /// Sends alerts until the process ends. Those to receivers of webhooks come by `troubled`.
    pub(crate) async fn run(self, troubled: mpsc::Receiver<Troubled>) {
        let alerts = Arc::new(self);
        let letters = async {
            loop {
                if let Err(error) = alerts.round_if_permitted().await {
                    tracing::warn!(%error, "cannot read dead letters for alerts; retrying");
                    sleep(Duration::from_secs(5)).await;
                }
            }
        };
        tokio::join!(letters, alerts.take_in(troubled), alerts.report_ends());
    }

    async fn take_in(self: &Arc<Self>, mut troubled: mpsc::Receiver<Troubled>) {
        while let Some(one) = troubled.recv().await {
            let tenants = self.context.config.tenants();
            if tenants.apps.get(&one.app).is_none_or(|app| app.alerts.is_none()) {
                continue;
            }
            let mut waiting = self.troubled.lock().unwrap_or_else(PoisonError::into_inner);
            let of_app = waiting.entry(one.app.clone()).or_insert_with(|| {
                tokio::spawn(Arc::clone(self).report_receivers(one.app.clone()));
                VecDeque::new()
            });
            if of_app.len() < WAITING_RECEIVERS_MAX {
                of_app.push_back(one);
            } else {
                tracing::warn!(app = %one.app, "too many receivers fail; the app is not alerted to one of them");
            }
        }
    }

    /// Reports the receivers of an app that wait, until none does.
    async fn report_receivers(self: Arc<Self>, app: AppId) {
        sleep(BURST_WAIT).await;
        while let Some(troubled) = self.next_receivers(&app) {
            let id = format!("endpoints-{}-{app}-{}", self.context.here, Uuid::new_v4().simple());
            for _ in 0..TRIES_MAX {
                while let Some(wait) = self.wait_for(&app) {
                    sleep(wait).await;
                }
                let Ok(_place) = self.places.acquire().await else {
                    return;
                };
                let posted = self.post_receivers(&app, &id, &troubled).await;
                if let Err(error) = &posted {
                    tracing::warn!(%app, error, receivers = troubled.len(), "alert was not accepted");
                }
                if self.note(&app, posted.is_ok()).is_none() {
                    break;
                }
            }
        }
    }

    /// The next receivers for one alert: all fail, or all are disabled. An app without any is forgotten.
    fn next_receivers(&self, app: &AppId) -> Option<Vec<Troubled>> {
        let mut waiting = self.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        let of_app = waiting.get_mut(app)?;
        let Some(first) = of_app.front().map(is_disabled) else {
            waiting.remove(app);
            return None;
        };
        let alike = of_app.iter().take_while(|one| is_disabled(one) == first).count();
        Some(of_app.drain(..alike.min(ALERT_RECEIVERS_MAX)).collect())
    }

    async fn post_receivers(&self, app: &AppId, id: &str, troubled: &[Troubled]) -> Result<(), String> {
        let tenants = self.context.config.tenants();
        let (Some(known), Some(first)) = (tenants.apps.get(app), troubled.first()) else {
            return Ok(());
        };
        let kind = if is_disabled(first) {
            "endpoint.disabled"
        } else {
            "endpoint.failing"
        };
        let endpoints = troubled.iter().map(Endpoint::of).collect();
        let data = Receivers {
            app,
            region: &self.context.here,
            endpoints,
        };
        self.post(known, kind, id, data).await
    }

    async fn round_if_permitted(self: &Arc<Self>) -> Result<(), async_nats::Error> {
        let concerns = |subject: &str| {
            [topology::DEAD, topology::ALERTS_CONSUMER]
                .iter()
                .all(|name| is_about(subject, name))
        };
        unless_refused(&self.context.js.client(), concerns, self.round()).await?
    }

    /// Waits for a letter, and reports it together with the letters of the same burst.
    async fn round(self: &Arc<Self>) -> Result<(), async_nats::Error> {
        let consumer: PullConsumer = self
            .context
            .js
            .get_consumer_from_stream(topology::ALERTS_CONSUMER, topology::DEAD)
            .await?;
        let mut first = consumer
            .batch()
            .max_messages(1)
            .expires(Duration::from_secs(30))
            .messages()
            .await?;
        let Some(first) = first.next().await else { return Ok(()) };
        let mut messages = vec![first?];
        sleep(BURST_WAIT).await;
        let mut more = consumer.fetch().max_messages(ALERT_LETTERS_MAX).messages().await?;
        while let Some(message) = more.next().await {
            messages.push(message?);
        }
        let mut by_app: BTreeMap<AppId, Vec<PulledLetter>> = BTreeMap::new();
        for message in messages {
            match PulledLetter::read(message) {
                Ok((app, letter)) => by_app.entry(app).or_default().push(letter),
                // It names no app to alert.
                Err(message) => message.ack().await?,
            }
        }
        let tenants = self.context.config.tenants();
        for (app, letters) in by_app {
            if tenants.apps.get(&app).is_none_or(|app| app.alerts.is_none()) {
                acknowledge(letters).await?;
                continue;
            }
            match self.wait_for(&app) {
                Some(wait) => give_back(letters, wait).await?,
                None => drop(tokio::spawn(Arc::clone(self).report(app, letters))),
            }
        }
        Ok(())
    }

    /// How long the next alert to `app` must still wait. If it need not, the one after it waits from now on.
    fn wait_for(&self, app: &AppId) -> Option<Duration> {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = match last.get(app) {
            Some(last) if last.next_at > now => return Some(self.every.min(last.next_at - now)),
            Some(last) => last.failures,
            None => 0,
        };
        // Until its receiver has answered; then it is known when the next may be sent.
        let next_at = now + self.every.max(RECEIVER_TIMEOUT);
        last.insert(app.clone(), LastAlert { next_at, failures });
        None
    }

    /// Notes what became of an alert to `app`. Returns when to repeat it, if its receiver did not accept it.
    fn note(&self, app: &AppId, accepted: bool) -> Option<Duration> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.get_mut(app)?;
        last.failures = if accepted { 0 } else { last.failures.saturating_add(1) };
        let doublings = last.failures.saturating_sub(1).min(16);
        let wait = self.every.saturating_mul(1 << doublings).min(RETRY_AFTER_MAX);
        last.next_at = Instant::now() + wait;
        (!accepted).then_some(wait)
    }

    async fn report(self: Arc<Self>, app: AppId, letters: Vec<PulledLetter>) {
        let Ok(_place) = self.places.acquire().await else {
            return;
        };
        let tenants = self.context.config.tenants();
        let posted = match tenants.apps.get(&app) {
            Some(known) => self.post_letters(known, &letters).await,
            None => Ok(()),
        };
        if let Err(error) = &posted {
            tracing::warn!(%app, error, letters = letters.len(), "alert was not accepted; retrying");
        }
        let settled = match self.note(&app, posted.is_ok()) {
            Some(wait) => give_back(letters, wait).await,
            None => acknowledge(letters).await,
        };
        if let Err(error) = settled {
            tracing::warn!(%error, "dead letters of an alert could not be acknowledged; they are reported again");
        }
    }

    async fn post_letters(&self, app: &App, letters: &[PulledLetter]) -> Result<(), String> {
        let data = Data {
            app: &app.id,
            region: &self.context.here,
            dead_letters: letters.len(),
            groups: self.groups(letters),
        };
        let sequences = letters.iter().map(|letter| letter.sequence);
        // The id depends only on the letters, so that the receiver can recognise a retry.
        let (first, last) = (sequences.clone().min().unwrap_or(0), sequences.max().unwrap_or(0));
        let id = format!("dead-{}-{}-{first}-{last}", self.context.here, app.id);
        self.post(app, "dead_letters.created", &id, data).await
    }

    async fn post(&self, app: &App, kind: &'static str, id: &str, data: impl Serialize) -> Result<(), String> {
        let Some(alerts) = &app.alerts else { return Ok(()) };
        let secret = app.alerts_secret(&self.context.mesh_key);
        let secret = secret.ok_or("the secret cannot be opened with this mesh key")?;
        let key = SigningKey::of_stored(&secret).ok_or("the secret is not whsec_ followed by base64")?;
        let now = self.context.clock.now();
        let alert = Alert {
            kind,
            timestamp: now,
            data,
        };
        let body = serde_json::to_string(&alert).expect("an alert always serializes");
        let seconds = now.as_second();
        let request = self
            .http
            .post(&alerts.url)
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header(
                "webhook-signature",
                signature::sign([&key], id, seconds, body.as_bytes()),
            )
            .body(body);
        match request.send().await.map(|answer| answer.status().as_u16()) {
            Ok(200..300) => Ok(()),
            // Standard Webhooks: 410 Gone means that the receiver wants no more webhooks.
            Ok(410) => {
                tracing::error!(app = %app.id, "the receiver of alerts answered 410 Gone; change its URL");
                Ok(())
            }
            Ok(status) => Err(format!("the receiver answered with {status}")),
            // The error names the URL, which may hold a secret.
            Err(error) => Err(error.without_url().to_string()),
        }
    }

    fn groups<'a>(&self, letters: &'a [PulledLetter]) -> Vec<Group<'a>> {
        let mut groups: BTreeMap<(&str, &str), (usize, u64)> = BTreeMap::new();
        for letter in letters {
            let (count, newest) = groups.entry((&letter.channel, &letter.reason)).or_default();
            *count += 1;
            *newest = letter.sequence.max(*newest);
        }
        groups
            .into_iter()
            .map(|((channel, reason), (count, newest))| Group {
                channel,
                reason,
                dead_letters: count,
                letter: LetterId {
                    region: self.context.here.clone(),
                    sequence: newest,
                },
            })
            .collect()
    }
}

async fn acknowledge(letters: Vec<PulledLetter>) -> Result<(), async_nats::Error> {
    for letter in letters {
        letter.message.ack().await?;
    }
    Ok(())
}

/// Leaves letters with the server for this time.
async fn give_back(letters: Vec<PulledLetter>, wait: Duration) -> Result<(), async_nats::Error> {
    for letter in letters {
        letter.message.ack_with(AckKind::Nak(Some(wait))).await?;
    }
    Ok(())
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn is_disabled(troubled: &Troubled) -> bool {
    troubled.trouble.disabled.is_some()
}

impl<'a> Endpoint<'a> {
    fn of(troubled: &'a Troubled) -> Self {
        let Troubled {
            recipient,
            address,
            trouble,
            ..
        } = troubled;
        Self {
            recipient,
            address_id: *address,
            failing_since: trouble.since,
            percent: trouble.alerted_percent,
            reason: &trouble.reason,
            disabled_at: trouble.disabled.as_ref().map(|disabled| disabled.at),
        }
    }
}

impl PulledLetter {
    #[expect(clippy::result_large_err, reason = "the message must be acknowledged either way")]
    fn read(message: Message) -> Result<(AppId, Self), Message> {
        let Some(DeadSubject { channel, app }) = subject::parse_dead(&message.subject) else {
            return Err(message);
        };
        let Ok(info) = message.info() else { return Err(message) };
        let sequence = info.stream_sequence;
        let headers = message.headers.as_ref();
        let reason = headers.and_then(|headers| envelope::header(headers, envelope::REASON));
        let letter = Self {
            channel,
            reason: reason.unwrap_or("unknown").to_owned(),
            sequence,
            message,
        };
        Ok((app, letter))
    }
}
