//! The load: callers that send notifications, and repeat each until it is accepted.

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
use jiff::Timestamp;
use serde_json::json;
use shared::{
    address::Members,
    channel::{Channel, Class},
    id::{AddressId, AppId, DeliveryId, JobId},
    id_key::IdKey,
    nats::{
        connect, publish,
        subject::{self, Lane},
    },
    provider::Provider,
    testing,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::scenario::{Load, Protocol};
use crate::{
    peal::{APP, Peal},
    providers::now_ms,
};

/// The most requests that wait for an answer at one time; further ones are sent later.
const REQUESTS_IN_FLIGHT_MAX: usize = 512;

/// A recipient and its devices.
#[derive(Debug, Clone)]
pub(super) struct Recipient {
    pub(super) id: String,
    pub(super) home: String,
    pub(super) devices: Vec<Device>,
}

#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) provider: Provider,
    /// What the simulator's log knows it by.
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
                Provider::WebPush | Provider::Hms | Provider::JPush => format!("{digit:x}-{id}-{copy}"),
                Provider::Twilio | Provider::Vonage => format!("+4179{number:05}{copy:02}"),
                Provider::Sns => {
                    format!("arn:aws:sns:eu-central-1:123456789012:endpoint/GCM/shop/{digit:x}-{id}-{copy}")
                }
                Provider::Webhook => format!("/{digit:x}-{id}-{copy}"),
                Provider::Smtp | Provider::SendGrid | Provider::Mailchimp | Provider::Log => {
                    format!("{digit:x}-{id}-{copy}@example.com")
                }
            };
            let address = match provider {
                // Its URL is known when the simulators run: see [`Self::at`].
                Provider::Webhook => format!("https://localhost{token}"),
                Provider::WebPush => format!("https://localhost/{token}"),
                _ => token.clone(),
            };
            Device {
                provider,
                address: testing::address(&app, provider, &address).id,
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

    /// Its devices that a notification on this channel is for.
    pub(super) fn on(&self, channel: Channel) -> impl Iterator<Item = &Device> {
        self.devices
            .iter()
            .filter(move |device| device.provider.carries(channel))
    }

    /// The same with the ids that its addresses have in this mesh, if they are keyed.
    pub(super) fn at(mut self, peal: &Peal) -> anyhow::Result<Self> {
        let app: AppId = APP.parse()?;
        for device in &mut self.devices {
            if matches!(device.provider, Provider::Apns | Provider::Fcm) {
                continue;
            }
            let members: Members = serde_json::from_value(peal.address(device.provider, &device.token))?;
            device.address = members.address(&peal.ids, &app, Timestamp::UNIX_EPOCH)?.id;
        }
        Ok(self)
    }

    pub(super) async fn register(&self, peal: &Peal) -> anyhow::Result<()> {
        let (tokens, contacts): (Vec<_>, Vec<_>) = self
            .devices
            .iter()
            .partition(|device| matches!(device.provider, Provider::Apns | Provider::Fcm));
        let devices: Vec<(&str, &str)> = tokens
            .iter()
            .map(|device| (device.provider.as_str(), &*device.token))
            .collect();
        peal.register(&self.id, &self.home, &devices).await?;
        let path = format!("/v1/recipients/{}/addresses", self.id);
        for device in contacts {
            let body = peal.address(device.provider, &device.token);
            peal.expect("POST", &self.home, &path, Some(&body)).await?;
        }
        Ok(())
    }
}

/// Registers all recipients, and waits until every region knows where they live.
///
/// # Errors
/// When a gateway refuses, or a region does not learn it in time.
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

/// Sends a notification that is no part of the load, and returns the answer.
///
/// # Errors
/// When the gateway of `at` does not accept it.
pub(super) async fn notify(peal: &Peal, at: &str, recipient: &str, event: &str) -> anyhow::Result<serde_json::Value> {
    let body = json!({ "event_id": event, "to": { "recipients": [recipient] }, "push": { "title": "Hello" } });
    peal.expect("POST", at, "/v1/notifications", Some(&body)).await
}

/// The id of the job that such a notification becomes.
///
/// # Errors
/// When `recipient` or `event` is not a valid id.
pub(super) fn job(ids: &IdKey, recipient: &str, event: &str) -> anyhow::Result<JobId> {
    job_on(ids, recipient, event, Channel::Push)
}

fn job_on(ids: &IdKey, recipient: &str, event: &str, channel: Channel) -> anyhow::Result<JobId> {
    let (app, event, recipient) = (APP.parse()?, event.parse()?, recipient.parse()?);
    Ok(JobId::of(ids, &app, &event, &recipient, channel))
}

/// Whether storms are sent to this recipient.
pub(super) fn is_in_storm(recipient: usize) -> bool {
    recipient % 16 == 15
}

/// One notification that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) event: String,
    pub(super) recipient: usize,
    pub(super) channel: Channel,
    pub(super) class: Class,
    /// The region that it was sent to.
    pub(super) from: String,
    /// When it was first sent, milliseconds since the epoch.
    pub(super) at_ms: i64,
    /// Whether it belongs to a burst that was sent in addition to the load.
    pub(super) in_burst: bool,
    /// How long it took until the caller received the acceptance; `None` if it never did.
    pub(super) accepted: Option<Duration>,
}

/// The callers that send notifications, and what they sent.
#[derive(Debug)]
pub(super) struct Callers {
    doors: HashMap<String, Door>,
    http: reqwest::Client,
    key: String,
    /// The mesh's key of ids.
    pub(super) ids: IdKey,
    channels: Vec<Channel>,
    /// Whether each notification is for all channels, one as the fallback of the other.
    fallback: bool,
    ttl_s: Option<u32>,
    /// Whether each notification is sent to several regions at once, with an `Idempotency-Key`.
    everywhere: bool,
    patience: Duration,
    pub(super) recipients: Vec<Recipient>,
    sent: Mutex<Vec<Sent>>,
    also: Mutex<HashSet<String>>,
    /// Deliveries besides the load that must be made, each once.
    besides: Mutex<Vec<(JobId, Recipient)>>,
    /// How many requests were made; the gateways of a region serve them in turn.
    asked: AtomicUsize,
    begun: AtomicUsize,
    enough: AtomicBool,
}

#[derive(Debug)]
struct Door {
    /// One for each gateway of the region.
    urls: Vec<String>,
    /// As a service of the app.
    js: jetstream::Context,
    /// As a service of the former version, in a mesh with its programs.
    former: Option<jetstream::Context>,
}

impl Callers {
    pub(super) async fn new(peal: &Peal, load: &Load, recipients: Vec<Recipient>) -> anyhow::Result<Self> {
        let mut doors = HashMap::new();
        for region in &peal.regions {
            let former = match peal.former() {
                Some(_) => Some(connect::jetstream(peal.connect_as_former_service(&region.name).await?)),
                None => None,
            };
            let door = Door {
                urls: region
                    .gateways()
                    .map(|gateway| format!("{}/v1/notifications", gateway.url))
                    .collect(),
                js: connect::jetstream(peal.connect_as_app(&region.name).await?),
                former,
            };
            doors.insert(region.name.clone(), door);
        }
        Ok(Self {
            doors,
            http: peal.http.clone(),
            key: peal.key.clone(),
            ids: peal.ids.clone(),
            channels: load.channels(),
            fallback: load.fallback,
            ttl_s: load.ttl_s,
            everywhere: load.everywhere,
            patience: Duration::from_secs_f64(load.patience_s),
            recipients,
            sent: Mutex::default(),
            also: Mutex::default(),
            besides: Mutex::default(),
            asked: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            enough: AtomicBool::new(false),
        })
    }

    /// Sends until the whole load is sent and [`Self::stop_when_due`] was called.
    pub(super) async fn run(self: Arc<Self>, load: Load, run: u64) {
        let places = Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX));
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
            let protocol = load.protocols[number / 3 % load.protocols.len()];
            let sent = from.iter().map(|from| Sent {
                event: format!("e{run:x}-{number}"),
                recipient: number % self.recipients.len(),
                channel: self.channels[number % self.channels.len()],
                class: load.classes[number / 2 % load.classes.len()],
                from: from.clone(),
                at_ms: now_ms(),
                in_burst: false,
                accepted: None,
            });
            let sending: Vec<_> = sent.map(|sent| self.clone().send_and_record(protocol, sent)).collect();
            asking.spawn(async move {
                join_all(sending).await;
                drop(place);
            });
            while asking.try_join_next().is_some() {}
        }
        asking.join_all().await;
    }

    /// How many notifications have been started, as a share of `of`.
    pub(super) fn progress(&self, of: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
        let share = self.begun.load(Ordering::Relaxed) as f64 / of.max(1) as f64;
        share
    }

    /// Lets the load end as soon as it has its least number of notifications.
    pub(super) fn stop_when_due(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// The notifications so far whose final answer is known.
    pub(super) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn keep(&self, sent: Sent) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
    }

    /// Records that pushes of this job may arrive although it is no part of the load.
    pub(super) fn expect_also(&self, job: JobId) {
        self.also
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(job.to_string());
    }

    /// The jobs of [`Self::expect_also`].
    pub(super) fn also_expected(&self) -> HashSet<String> {
        self.also.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that this job, which is no part of the load, must be delivered to all devices of the recipient.
    pub(super) fn expect_delivery(&self, job: JobId, recipient: Recipient) {
        self.expect_also(job);
        self.besides
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((job, recipient));
    }

    /// The jobs of [`Self::expect_delivery`], and whom they are for.
    pub(super) fn expected_deliveries(&self) -> Vec<(JobId, Recipient)> {
        self.besides.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send_and_record(self: Arc<Self>, protocol: Protocol, sent: Sent) {
        let accepted = self.send_until_stored(&sent.from, protocol, &sent).await;
        self.keep(Sent { accepted, ..sent });
    }

    /// Repeats the notification with the same ids until it is stored. Returns how long that took, or `None` if it was
    /// refused or the caller gave up.
    pub(super) async fn send_until_stored(&self, from: &str, protocol: Protocol, sent: &Sent) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < self.patience {
            let answered = match protocol {
                Protocol::Http => self.post(from, sent).await,
                Protocol::Nats => self.publish(from, sent).await,
                Protocol::FormerNats => self.publish_job(from, sent).await,
            };
            if let Some(accepted) = answered {
                return accepted.then(|| begun.elapsed());
            }
            sleep(Duration::from_millis(200)).await;
        }
        None
    }

    /// What was sent, once for each channel that it is for.
    pub(super) fn steps(&self, sent: &Sent) -> Vec<Sent> {
        if !self.fallback {
            return vec![sent.clone()];
        }
        let step = |channel: &Channel| Sent {
            channel: *channel,
            ..sent.clone()
        };
        self.channels.iter().map(step).collect()
    }

    fn content(&self, sent: &Sent) -> serde_json::Value {
        let mut content = match sent.channel {
            Channel::Push => json!({ "title": "Hello" }),
            Channel::Email => json!({ "subject": "Hello", "text": "Hello" }),
            // Text messages and chats carry no id, so the job stands in the text.
            Channel::Sms | Channel::Webhook => {
                json!({ "text": self.job(sent).map(|job| job.to_string()).unwrap_or_default() })
            }
        };
        if let Some(ttl) = self.ttl_s {
            content["ttl"] = ttl.into();
        }
        content
    }

    fn request(&self, sent: &Sent) -> serde_json::Value {
        let mut request = json!({
            "event_id": sent.event,
            "to": { "recipients": [self.recipients[sent.recipient].id] },
            "class": sent.class,
        });
        let steps = self.steps(sent);
        for step in &steps {
            request[step.channel.as_str()] = self.content(step);
        }
        if self.fallback {
            let steps: Vec<_> = steps.iter().map(|step| json!({ "channel": step.channel })).collect();
            request["plan"] = json!({ "mode": "fallback", "steps": steps });
        }
        request
    }

    /// Whether it was accepted; `None` if it may be repeated.
    async fn post(&self, from: &str, sent: &Sent) -> Option<bool> {
        let body = self.request(sent);
        let urls = &self.doors[from].urls;
        let url = &urls[self.asked.fetch_add(1, Ordering::Relaxed) % urls.len()];
        let mut request = self.http.post(url).bearer_auth(&self.key).json(&body);
        if self.everywhere {
            request = request.header("Idempotency-Key", &sent.event);
        }
        match request.send().await.ok()?.status().as_u16() {
            202 => Some(true),
            // Another caller's request with this `Idempotency-Key` is in progress.
            409 if self.everywhere => None,
            429 | 500.. => None,
            status => {
                eprintln!("{} was refused with {status}", sent.event);
                Some(false)
            }
        }
    }

    async fn publish(&self, from: &str, sent: &Sent) -> Option<bool> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", sent.event.as_str());
        let body = self.request(sent).to_string();
        let js = &self.doors[from].js;
        let stored = publish::store(js, subject::send(APP), headers, body.into()).await;
        stored.is_ok().then_some(true)
    }

    async fn publish_job(&self, from: &str, sent: &Sent) -> Option<bool> {
        let recipient = &self.recipients[sent.recipient];
        let lane = Lane {
            channel: Channel::Push,
            region: recipient.home.parse().ok()?,
            class: sent.class,
            app: APP.parse().ok()?,
        };
        let mut headers = HeaderMap::new();
        // The id that the gateway would give it, so that a stream recognizes it from either protocol.
        headers.insert("Nats-Msg-Id", self.job(sent).ok()?.to_string());
        let body = json!({ "event_id": sent.event, "recipient": recipient.id, "push": self.content(sent) });
        let js = self.doors[from].former.as_ref()?;
        let stored = publish::store(js, lane.notify(), headers, body.to_string().into()).await;
        stored.is_ok().then_some(true)
    }

    /// Sends `count` notifications in addition to the load, as fast as they are accepted, to the `chosen` recipients in
    /// turn. Their event ids are `name` with a number.
    pub(super) async fn send_burst(self: &Arc<Self>, name: &str, from: &str, chosen: &[usize], count: usize) {
        let in_burst = stream::iter(0..count).map(|number| {
            let sent = Sent {
                event: format!("{name}-{number}"),
                recipient: chosen[number % chosen.len()],
                channel: self.channels[0],
                class: Class::Normal,
                from: from.to_owned(),
                at_ms: now_ms(),
                in_burst: true,
                accepted: None,
            };
            self.clone().send_and_record(Protocol::Http, sent)
        });
        in_burst.buffer_unordered(REQUESTS_IN_FLIGHT_MAX).collect::<()>().await;
    }

    /// The indices of all recipients for which `meant` is true.
    pub(super) fn recipients_where(&self, meant: impl Fn(usize, &Recipient) -> bool) -> Vec<usize> {
        let numbered = self.recipients.iter().enumerate();
        numbered
            .filter(|(number, recipient)| meant(*number, recipient))
            .map(|(number, _)| number)
            .collect()
    }

    /// Sends everything again that was accepted, over both protocols. Returns how many were not accepted again.
    pub(super) async fn replay(&self, from: &str) -> usize {
        let accepted = self.sent().into_iter().filter(|sent| sent.accepted.is_some());
        let again = accepted.flat_map(|sent| [(Protocol::Http, sent.clone()), (Protocol::Nats, sent)]);
        let refused = stream::iter(again)
            .map(|(protocol, sent)| async move { self.send_until_stored(from, protocol, &sent).await.is_none() });
        refused
            .buffer_unordered(64)
            .fold(0, async |count, refused| count + usize::from(refused))
            .await
    }

    /// The id of the job that a notification becomes.
    pub(super) fn job(&self, sent: &Sent) -> anyhow::Result<JobId> {
        job_on(
            &self.ids,
            &self.recipients[sent.recipient].id,
            &sent.event,
            sent.channel,
        )
    }

    /// The job of each delivery in the load, for providers whose messages name deliveries.
    pub(super) fn jobs_by_delivery(&self) -> anyhow::Result<HashMap<String, String>> {
        let mut jobs = HashMap::new();
        for sent in self.sent().iter().flat_map(|sent| self.steps(sent)) {
            let job = self.job(&sent)?;
            for device in self.recipients[sent.recipient].on(sent.channel) {
                jobs.insert(DeliveryId::of(job, device.address).to_string(), job.to_string());
            }
        }
        Ok(jobs)
    }
}
