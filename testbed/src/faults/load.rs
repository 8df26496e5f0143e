//! The load: callers who hand in notifications and try again until they are told that theirs are stored.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, jetstream};
use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use serde_json::json;
use shared::{
    channel::{Channel, Class, Provider},
    id::{AddressId, AppId, JobId},
    nats::{connect, publish, subject::Lane},
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::scenario::{Load, Way};
use crate::{
    peal::{APP, Peal},
    providers::now_ms,
};

/// Requests that wait for an answer at one time; those on top come later.
const WAITING: usize = 512;

/// One who is notified.
#[derive(Debug, Clone)]
pub(super) struct Recipient {
    pub(super) id: String,
    pub(super) home: String,
    pub(super) devices: Vec<Device>,
}

#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) provider: Provider,
    pub(super) token: String,
    pub(super) address: AddressId,
}

impl Recipient {
    /// Recipient `number` of a load. Tokens begin with the last hexadecimal digit of the number (at FCM behind `fcm:`),
    /// so that a script can pick sixteenths.
    pub(super) fn new(
        name: &str,
        number: usize,
        home: &str,
        devices: &[Provider],
        copies: usize,
    ) -> anyhow::Result<Self> {
        let app: AppId = APP.parse()?;
        let id = format!("{name}{number}");
        let seed = id.bytes().fold(0_u64, |seed, byte| seed * 31 + u64::from(byte)) % 0xffff_ffff;
        let device = |(copy, provider): (usize, Provider)| {
            let digit = number % 16;
            let token = match provider {
                Provider::Apns => format!("{digit:x}{seed:031x}{copy:032x}"),
                Provider::Fcm => format!("fcm:{digit:x}-{id}-{copy}"),
            };
            Device {
                provider,
                address: AddressId::of(&app, provider, &token),
                token,
            }
        };
        Ok(Self {
            devices: (0..copies)
                .flat_map(|copy| devices.iter().map(move |provider| (copy, *provider)))
                .map(device)
                .collect(),
            home: home.to_owned(),
            id,
        })
    }

    pub(super) async fn register(&self, peal: &Peal) -> anyhow::Result<()> {
        let devices: Vec<(&str, &str)> = self
            .devices
            .iter()
            .map(|device| (device.provider.as_str(), &*device.token))
            .collect();
        peal.register(&self.id, &self.home, &devices).await
    }
}

/// Registers all, and waits until every region knows where they live.
///
/// # Errors
/// When a gateway refuses, or the regions do not learn.
pub(super) async fn register(peal: &Peal, recipients: &[Recipient]) -> anyhow::Result<()> {
    stream::iter(recipients.iter().map(anyhow::Ok))
        .try_for_each_concurrent(16, |recipient| recipient.register(peal))
        .await?;
    for recipient in recipients {
        for region in &peal.regions {
            peal.wait_known(&region.name, &recipient.id).await?;
        }
    }
    Ok(())
}

/// Notifies one recipient on top of the load; the answer.
///
/// # Errors
/// When the gateway of `at` does not accept it.
pub(super) async fn notify(peal: &Peal, at: &str, recipient: &str, event: &str) -> anyhow::Result<serde_json::Value> {
    let body = json!({ "event_id": event, "to": { "recipients": [recipient] }, "push": { "title": "Hello" } });
    peal.expect("POST", at, "/v1/notifications", Some(&body)).await
}

/// The job that such a notification is.
///
/// # Errors
/// When `recipient` or `event` is no id.
pub(super) fn job(recipient: &str, event: &str) -> anyhow::Result<JobId> {
    let (app, event, recipient) = (APP.parse()?, event.parse()?, recipient.parse()?);
    Ok(JobId::of(&app, &event, &recipient, Channel::Push))
}

/// Whether storms are for this recipient.
pub(super) fn is_stormy(recipient: usize) -> bool {
    recipient % 16 == 15
}

/// One notification that was handed in.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) event: String,
    pub(super) recipient: usize,
    pub(super) class: Class,
    /// Where it is handed in.
    pub(super) from: String,
    /// When it was first handed in, milliseconds since 1970.
    pub(super) at_ms: i64,
    /// Whether it came on top of the load, as fast as it was taken.
    pub(super) hurried: bool,
    /// After how long the caller was told that it is stored; `None` if it never was.
    pub(super) accepted: Option<Duration>,
}

/// Where notifications are handed in.
#[derive(Debug)]
pub(super) struct Callers {
    doors: HashMap<String, Door>,
    http: reqwest::Client,
    key: String,
    ttl_s: Option<u32>,
    /// Whether each is handed in by several callers, who say so.
    everywhere: bool,
    patience: Duration,
    pub(super) recipients: Vec<Recipient>,
    sent: Mutex<Vec<Sent>>,
    also: Mutex<HashSet<String>>,
    begun: AtomicUsize,
    enough: AtomicBool,
}

#[derive(Debug)]
struct Door {
    url: String,
    js: jetstream::Context,
}

impl Callers {
    pub(super) async fn new(peal: &Peal, load: &Load, recipients: Vec<Recipient>) -> anyhow::Result<Self> {
        let mut doors = HashMap::new();
        for region in &peal.regions {
            let door = Door {
                url: format!("{}/v1/notifications", region.gateway.url),
                js: connect::jetstream(peal.connect_as_service(&region.name).await?),
            };
            doors.insert(region.name.clone(), door);
        }
        Ok(Self {
            doors,
            http: peal.http.clone(),
            key: peal.key.clone(),
            ttl_s: load.ttl_s,
            everywhere: load.everywhere,
            patience: Duration::from_secs_f64(load.patience_s),
            recipients,
            sent: Mutex::default(),
            also: Mutex::default(),
            begun: AtomicUsize::new(0),
            enough: AtomicBool::new(false),
        })
    }

    /// Sends until everything is sent and [`Self::enough`] was called.
    pub(super) async fn run(self: Arc<Self>, load: Load, run: u64) {
        let places = Arc::new(Semaphore::new(WAITING));
        let mut asking = JoinSet::new();
        let begun = Instant::now();
        for number in 0.. {
            if number >= load.notifications && self.enough.load(Ordering::Relaxed) {
                break;
            }
            #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
            let due = begun + Duration::from_secs_f64(number as f64 / load.rate);
            sleep_until(due).await;
            let Ok(place) = places.clone().acquire_owned().await else {
                break;
            };
            self.begun.store(number + 1, Ordering::Relaxed);
            let at = number % load.from.len();
            let from = if load.everywhere {
                &*load.from
            } else {
                &load.from[at..=at]
            };
            let way = load.ways[number / 3 % load.ways.len()];
            let sent = from.iter().map(|from| Sent {
                event: format!("e{run:x}-{number}"),
                recipient: number % self.recipients.len(),
                class: load.classes[number / 2 % load.classes.len()],
                from: from.clone(),
                at_ms: now_ms(),
                hurried: false,
                accepted: None,
            });
            let handing_in: Vec<_> = sent.map(|sent| self.clone().hand_in_and_keep(way, sent)).collect();
            asking.spawn(async move {
                join_all(handing_in).await;
                drop(place);
            });
            while asking.try_join_next().is_some() {}
        }
        asking.join_all().await;
    }

    /// The share of `of` notifications that has been begun.
    pub(super) fn progress(&self, of: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
        let share = self.begun.load(Ordering::Relaxed) as f64 / of.max(1) as f64;
        share
    }

    /// Nothing more is needed than what the load wants by itself.
    pub(super) fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// What was handed in so far and answered.
    pub(super) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn keep(&self, sent: Sent) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
    }

    /// A job that is no part of the load was asked for, too.
    pub(super) fn ask_also(&self, job: JobId) {
        self.also
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(job.to_string());
    }

    /// Those jobs.
    pub(super) fn also_asked(&self) -> HashSet<String> {
        self.also.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn hand_in_and_keep(self: Arc<Self>, way: Way, sent: Sent) {
        let accepted = self.hand_in(&sent.from, way, &sent).await;
        self.keep(Sent { accepted, ..sent });
    }

    /// Tries until it is stored, always with the same ids; how long that took, if it was.
    pub(super) async fn hand_in(&self, from: &str, way: Way, sent: &Sent) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < self.patience {
            let answered = match way {
                Way::Http => self.post(from, sent).await,
                Way::Nats => self.publish(from, sent).await,
            };
            if let Some(accepted) = answered {
                return accepted.then(|| begun.elapsed());
            }
            sleep(Duration::from_millis(200)).await;
        }
        None
    }

    fn push(&self) -> serde_json::Value {
        match self.ttl_s {
            Some(ttl) => json!({ "title": "Hello", "ttl": ttl }),
            None => json!({ "title": "Hello" }),
        }
    }

    /// `None` if it is worth another try.
    async fn post(&self, from: &str, sent: &Sent) -> Option<bool> {
        let body = json!({
            "event_id": sent.event,
            "to": { "recipients": [self.recipients[sent.recipient].id] },
            "class": sent.class,
            "push": self.push(),
        });
        let mut request = self.http.post(&self.doors[from].url).bearer_auth(&self.key).json(&body);
        if self.everywhere {
            request = request.header("Idempotency-Key", &sent.event);
        }
        match request.send().await.ok()?.status().as_u16() {
            202 => Some(true),
            // Another caller is about to be answered.
            409 if self.everywhere => None,
            429 | 500.. => None,
            status => {
                eprintln!("{} was refused with {status}", sent.event);
                Some(false)
            }
        }
    }

    async fn publish(&self, from: &str, sent: &Sent) -> Option<bool> {
        let recipient = &self.recipients[sent.recipient];
        let lane = Lane {
            channel: Channel::Push,
            region: recipient.home.parse().ok()?,
            class: sent.class,
            app: APP.parse().ok()?,
        };
        let mut headers = HeaderMap::new();
        // The id that the gateway would give it, so that a stream knows it from both ways.
        headers.insert("Nats-Msg-Id", self.job(sent).ok()?.to_string());
        let body = json!({ "event_id": sent.event, "recipient": recipient.id, "push": self.push() });
        let js = &self.doors[from].js;
        let stored = publish::store(js, lane.notify(), headers, body.to_string().into()).await;
        stored.is_ok().then_some(true)
    }

    /// Hands in `count` on top of the load, as fast as they are taken, to the `chosen` recipients in turn. Events are
    /// called `name` with a number.
    pub(super) async fn hurry(self: &Arc<Self>, name: &str, from: &str, chosen: &[usize], count: usize) {
        let hurried = stream::iter(0..count).map(|number| {
            let sent = Sent {
                event: format!("{name}-{number}"),
                recipient: chosen[number % chosen.len()],
                class: Class::Normal,
                from: from.to_owned(),
                at_ms: now_ms(),
                hurried: true,
                accepted: None,
            };
            self.clone().hand_in_and_keep(Way::Http, sent)
        });
        hurried.buffer_unordered(WAITING).collect::<()>().await;
    }

    /// The numbers of those recipients who are meant.
    pub(super) fn those(&self, meant: impl Fn(usize, &Recipient) -> bool) -> Vec<usize> {
        let numbered = self.recipients.iter().enumerate();
        numbered
            .filter(|(number, recipient)| meant(*number, recipient))
            .map(|(number, _)| number)
            .collect()
    }

    /// Hands in everything again that was accepted, by both ways; how many were not taken.
    pub(super) async fn replay(&self, from: &str) -> usize {
        let accepted = self.sent().into_iter().filter(|sent| sent.accepted.is_some());
        let again = accepted.flat_map(|sent| [(Way::Http, sent.clone()), (Way::Nats, sent)]);
        let refused =
            stream::iter(again).map(|(way, sent)| async move { self.hand_in(from, way, &sent).await.is_none() });
        refused
            .buffer_unordered(64)
            .fold(0, async |count, refused| count + usize::from(refused))
            .await
    }

    /// The job that a notification is.
    pub(super) fn job(&self, sent: &Sent) -> anyhow::Result<JobId> {
        job(&self.recipients[sent.recipient].id, &sent.event)
    }
}
