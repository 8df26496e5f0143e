//! What recipients do at the gateway of a region while it is cut off, and the expected results there and elsewhere.

use anyhow::Context;
use serde_json::{Value, json};
use shared::provider::Provider;
use tokio::time::{Duration, Instant, sleep};

use super::load::{self, Callers, Recipient};
use crate::peal::Peal;

/// After the heal, an address that was registered for another region must be known there within this time.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);

/// How often a notification is sent to a recipient whose device may not be known yet: until then each is suppressed.
const NOTIFY_EVERY: Duration = Duration::from_secs(1);

/// Three recipients who register at the gateway of a region that is cut off.
pub(super) struct Isolation<'a> {
    peal: &'a Peal,
    callers: &'a Callers,
    region: &'a str,
    /// Lives there, and stays opted in.
    keen: Recipient,
    /// Lives there, and opts out.
    weary: Recipient,
    /// Lives elsewhere.
    distant: Recipient,
}

impl<'a> Isolation<'a> {
    /// The `number`th time that a region is cut off.
    pub(super) fn new(peal: &'a Peal, callers: &'a Callers, region: &'a str, number: usize) -> anyhow::Result<Self> {
        let mut others = peal.regions.iter().filter(|other| other.name != region);
        let elsewhere = &others.next().context("a region alone in its mesh is not cut off")?.name;
        let person = |name: &str, home: &str| Recipient::new(name, number, home, &[Provider::Apns], 1);
        Ok(Self {
            peal,
            callers,
            region,
            keen: person("keen", region)?,
            weary: person("weary", region)?,
            distant: person("distant", elsewhere)?,
        })
    }

    /// Checks that a recipient who registers there is notified before `end`, and that one who opts out is not.
    pub(super) async fn meanwhile(&self, end: Instant) -> anyhow::Result<Vec<String>> {
        let mut failures = Vec::new();
        // This comes before the device, so that no worker knows the device without the preference.
        self.peal.register(&self.weary.id, self.region, &[]).await?;
        let path = format!("/v1/recipients/{}/preferences", self.weary.id);
        let opted_out = json!({ "channels": { "push": false } });
        self.peal.expect("PUT", self.region, &path, Some(&opted_out)).await?;
        for person in [&self.keen, &self.weary, &self.distant] {
            let device = &person.devices[0];
            let device = (device.provider.as_str(), &*device.token);
            self.peal
                .register_at(self.region, &person.id, &person.home, &[device])
                .await?;
        }

        self.notify(self.region, &self.keen, "alone").await?;
        // This one must not arrive.
        let event = format!("alone-{}", self.weary.id);
        let answer = load::notify(self.peal, self.region, &self.weary.id, &event).await?;
        let status = format!(
            "/v1/notifications/{}",
            answer["notification_id"].as_str().unwrap_or_default()
        );

        let (mut heard, mut state) = (false, Value::Null);
        while Instant::now() < end && !(heard && state == "suppressed") {
            sleep(Duration::from_millis(20)).await;
            heard = self.has_heard(&self.keen);
            let (_, answer) = self.peal.ask("GET", self.region, &status, None).await?;
            state = answer["deliveries"][0]["state"].clone();
        }
        if !heard {
            failures.push(format!(
                "a device registered in {} while it was cut off was not notified",
                self.region
            ));
        }
        if state != "suppressed" {
            failures.push(format!(
                "preferences changed in {} while it was cut off had no effect: {state}",
                self.region
            ));
        }
        Ok(failures)
    }

    /// Checks that the device of the recipient who lives elsewhere becomes known there.
    pub(super) async fn afterwards(&self) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + KNOWN_WITHIN;
        let (path, home) = (format!("/v1/recipients/{}", self.distant.id), &*self.distant.home);
        while self.peal.ask("GET", home, &path, None).await?.1["addresses"] != 1 && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        for number in 0.. {
            self.notify(home, &self.distant, &format!("healed{number}")).await?;
            let again = Instant::now() + NOTIFY_EVERY;
            while Instant::now() < again {
                if self.has_heard(&self.distant) {
                    return Ok(Vec::new());
                }
                sleep(Duration::from_millis(20)).await;
            }
            if again > deadline {
                break;
            }
        }
        Ok(vec![format!(
            "a device of {home}, registered in {} while it was cut off, was not notified after the heal",
            self.region
        )])
    }

    async fn notify(&self, at: &str, person: &Recipient, event: &str) -> anyhow::Result<()> {
        let event = format!("{event}-{}", person.id);
        self.callers.expect_also(load::job(&self.peal.ids, &person.id, &event)?);
        load::notify(self.peal, at, &person.id, &event).await?;
        Ok(())
    }

    fn has_heard(&self, person: &Recipient) -> bool {
        let device = &person.devices[0];
        let simulator = self.peal.simulators.get(device.provider);
        simulator.is_some_and(|simulator| !simulator.log().delivered_to(&device.token).is_empty())
    }
}
