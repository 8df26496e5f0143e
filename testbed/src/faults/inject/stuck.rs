//! Work that no worker can do.

use std::time::Duration;

use anyhow::Context;
use async_nats::{HeaderMap, jetstream};
use serde_json::json;
use shared::{
    channel::{Channel, Class},
    nats::{border::Border, config::Config, connect, facts, publish, subject, subject::Lane, topology},
    provider::Provider,
    recipient::{Fact, FactName, RecipientKey},
    testing,
};
use tokio::time::{Instant, sleep};

use super::Injector;
use crate::{
    faults::load::{self, Recipient},
    peal::APP,
};

/// Finished work is trimmed within this time. Workers trim every half minute.
const TRIMMED_WITHIN: Duration = Duration::from_secs(100);

/// The size of a message that the server takes, but not with further headers.
const LARGEST_MESSAGE_BYTES: usize = 1_048_450;

/// How long the notification of the recipient who cannot be read lives.
const UNREADABLE_TTL_S: u32 = 20;

impl Injector {
    /// Makes work that cannot be done, and checks that what is finished is trimmed nevertheless. The recipient with many
    /// `devices` must be notified on each.
    pub(super) async fn get_stuck(&mut self, devices: usize) -> anyhow::Result<Vec<String>> {
        let region = self.peal.regions[0].name.clone();
        let js = connect::jetstream(self.peal.connect(&region).await?);
        let many = Recipient::new("many", 0, &region, &[Provider::Apns], devices)?;
        let unreadable = Recipient::new("unreadable", 0, &region, &[Provider::Apns], 1)?;
        for recipient in [&many, &unreadable] {
            let path = format!("/v1/recipients/{}", recipient.id);
            self.peal.expect("PUT", &region, &path, Some(&json!({}))).await?;
        }
        let here = region.parse()?;
        // Facts of this region need no signature, so any key will do.
        let border = Border::new(Config::new(testing::mesh_key()));
        for device in &many.devices {
            let address = Fact::Address(testing::address(&APP.parse()?, device.provider, &device.token));
            facts::write(&js, &border, &here, &here, &key(&many)?, &address).await?;
        }
        let preferences = subject::fact(&key(&unreadable)?, FactName::Preferences);
        publish::store(&js, preferences, HeaderMap::new(), "{".into()).await?;
        // The workers' caches follow within milliseconds.
        sleep(Duration::from_secs(2)).await;

        let event = "stuck";
        load::notify(&self.peal, &region, &many.id, event).await?;
        self.callers
            .expect_delivery(load::job(&self.peal.ids, &many.id, event)?, many);
        self.callers
            .expect_also(load::job(&self.peal.ids, &unreadable.id, event)?);
        let body = json!({
            "event_id": event,
            "to": { "recipients": [unreadable.id] },
            "push": { "title": "Hello", "ttl": UNREADABLE_TTL_S },
        });
        self.peal
            .expect("POST", &region, "/v1/notifications", Some(&body))
            .await?;
        self.publish_largest(&js, &region).await?;
        is_trimmed(&js).await
    }

    async fn publish_largest(&mut self, js: &jetstream::Context, region: &str) -> anyhow::Result<()> {
        let lane = Lane {
            channel: Channel::Push,
            region: region.parse()?,
            class: Class::Normal,
            app: APP.parse()?,
        };
        let payload = vec![b'x'; LARGEST_MESSAGE_BYTES];
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "largest");
        publish::store(js, lane.notify(), headers, payload.into()).await?;
        self.unreadable += 1;
        Ok(())
    }
}

/// Waits until everything that is stored now is trimmed. Returns the failure if it is not.
async fn is_trimmed(js: &jetstream::Context) -> anyhow::Result<Vec<String>> {
    let state = async || -> anyhow::Result<_> {
        let stream = js.get_stream(topology::NOTIFY).await.context("the stream of work")?;
        Ok(stream.cached_info().state.clone())
    };
    let stored = state().await?.last_sequence;
    let begun = Instant::now();
    while state().await?.first_sequence <= stored {
        if begun.elapsed() > TRIMMED_WITHIN {
            let first = state().await?.first_sequence;
            return Ok(vec![format!(
                "work is not trimmed: #{first} to #{stored} are still stored"
            )]);
        }
        sleep(Duration::from_millis(500)).await;
    }
    Ok(Vec::new())
}

fn key(recipient: &Recipient) -> anyhow::Result<RecipientKey> {
    Ok(RecipientKey {
        app: APP.parse()?,
        recipient: recipient.id.parse()?,
    })
}
