//! Facts, and at once notifications that depend on them, by another gateway of the region, while other faults are made.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use futures::{TryStreamExt, stream};
use serde_json::{Value, json};
use shared::provider::Provider;
use tokio::time::{Instant, sleep};

use super::Injector;
use crate::{
    faults::load::{self, Callers, Recipient},
    peal::Peal,
};

/// Tries in progress at the same time.
const CONCURRENT: usize = 8;

/// A request is repeated for this long while gateways or servers are in trouble.
const ANSWERED_WITHIN: Duration = Duration::from_mins(1);

/// What a try changes. Each is tried in turn.
#[derive(Debug, Clone, Copy)]
enum Change {
    Registered,
    OptedOut,
    DevicesRemoved,
    HandedOver,
    Deleted,
}

impl Change {
    const ALL: [Self; 5] = [
        Self::Registered,
        Self::OptedOut,
        Self::DevicesRemoved,
        Self::HandedOver,
        Self::Deleted,
    ];
}

impl Injector {
    /// Begins `count` tries at a region with several gateways, which go on while other faults are made. A push that arrives
    /// against a fact, or is missing in spite of one, fails the scenario.
    pub(super) fn begin_back_to_back(&mut self, count: usize, region: Option<&str>) -> anyhow::Result<()> {
        let region = self.choose_region(region);
        let caller = Arc::new(Caller::new(&self.peal, &region));
        let tries = (0..count)
            .map(|number| Try::new(number, &region))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (callers, ids) = (self.callers.clone(), self.peal.ids.clone());
        self.background.spawn(async move {
            stream::iter(tries.into_iter().map(anyhow::Ok))
                .try_for_each_concurrent(CONCURRENT, |of| {
                    let (caller, callers, ids) = (&caller, &callers, &ids);
                    async move { caller.make(&of, callers, ids).await }
                })
                .await
        });
        Ok(())
    }

    /// Waits until everything has ended that was begun.
    ///
    /// # Errors
    /// The first error of it.
    pub(super) async fn end_background(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.background.join_next().await {
            ended??;
        }
        Ok(())
    }
}

struct Try {
    number: usize,
    change: Change,
    recipient: Recipient,
    /// Who takes over the device.
    other: Recipient,
}

impl Try {
    fn new(number: usize, region: &str) -> anyhow::Result<Self> {
        let recipient = Recipient::new("b", number, region, &[Provider::Apns], 1)?;
        let other = Recipient {
            id: format!("other-{}", recipient.id),
            ..recipient.clone()
        };
        Ok(Self {
            number,
            change: Change::ALL[number % Change::ALL.len()],
            recipient,
            other,
        })
    }
}

/// Callers of the gateways of one region.
struct Caller {
    http: reqwest::Client,
    key: String,
    /// One for each gateway.
    urls: Vec<String>,
}

impl Caller {
    fn new(peal: &Peal, region: &str) -> Self {
        Self {
            http: peal.http.clone(),
            key: peal.key.clone(),
            urls: peal
                .region(region)
                .gateways()
                .map(|program| program.url.clone())
                .collect(),
        }
    }

    /// Makes one try: the fact at one gateway, the notification at the next.
    async fn make(&self, of: &Try, callers: &Callers, ids: &shared::id_key::IdKey) -> anyhow::Result<()> {
        let (fact, next) = (of.number, of.number + 1);
        let path = format!("recipients/{}", of.recipient.id);
        if !matches!(of.change, Change::Registered) {
            self.register(fact, &of.recipient).await?;
        }
        match of.change {
            Change::Registered => self.register(fact, &of.recipient).await?,
            Change::HandedOver => self.register(fact, &of.other).await?,
            Change::OptedOut => {
                let wanted = json!({ "channels": { "push": false } });
                self.ask(fact, "PUT", &format!("{path}/preferences"), Some(&wanted))
                    .await?;
            }
            Change::DevicesRemoved => self.ask(fact, "DELETE", &format!("{path}/addresses"), None).await?,
            Change::Deleted => self.ask(fact, "DELETE", &path, None).await?,
        }
        let reached = match of.change {
            Change::Registered => Some(&of.recipient),
            Change::HandedOver => Some(&of.other),
            Change::OptedOut | Change::DevicesRemoved | Change::Deleted => None,
        };
        let event = format!("back-to-back-{}", of.number);
        // Before the notification: it may be delivered before it is answered.
        if let Some(reached) = reached {
            callers.expect_delivery(load::job(ids, &reached.id, &event)?, reached.clone());
        }
        let to = match of.change {
            Change::HandedOver => vec![&of.recipient.id, &of.other.id],
            _ => vec![&of.recipient.id],
        };
        let body = json!({ "event_id": event, "to": { "recipients": to }, "push": { "title": "Hello" } });
        self.ask(next, "POST", "notifications", Some(&body)).await
    }

    async fn register(&self, gateway: usize, recipient: &Recipient) -> anyhow::Result<()> {
        let token = &recipient.devices.first().context("a device")?.token;
        let body = json!({ "provider": "apns", "token": token });
        let path = format!("recipients/{}/addresses", recipient.id);
        self.ask(gateway, "POST", &path, Some(&body)).await
    }

    /// Repeats a request until it succeeds. Only trouble in the mesh is a reason to repeat it.
    async fn ask(&self, gateway: usize, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<()> {
        let url = format!("{}/v1/{path}", self.urls[gateway % self.urls.len()]);
        let begun = Instant::now();
        for attempt in 0.. {
            let mut request = self.http.request(method.parse()?, &url).bearer_auth(&self.key);
            if let Some(body) = body {
                request = request.json(body);
            }
            let what = match request.send().await {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    // An attempt that failed may have removed it.
                    if (200..300).contains(&status) || (method == "DELETE" && attempt > 0 && status == 404) {
                        return Ok(());
                    }
                    if !matches!(status, 429 | 503) {
                        bail!("{method} {path}: {status} {}", answer.text().await?);
                    }
                    status.to_string()
                }
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > ANSWERED_WITHIN {
                bail!("{method} {path}: {what} for {ANSWERED_WITHIN:?}");
            }
            sleep(Duration::from_millis(100)).await;
        }
        unreachable!("the loop returns")
    }
}
