//! Unusual behaviour of callers and of recipients.

use std::{collections::HashSet, time::Duration};

use anyhow::ensure;
use futures::future::join_all;
use serde_json::json;
use shared::provider::Provider;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Injector, Victim};
use crate::{
    faults::load::{self, Recipient, is_in_storm},
    providers::{Answer, Rule, now_ms},
};

/// How many recipients withdraw.
const WITHDRAWING_RECIPIENTS: usize = 16;

/// Every device must be notified for its new owner within this time.
const MOVED_DEVICES_NOTIFIED_WITHIN: Duration = Duration::from_secs(20);

impl Injector {
    /// Sends everything that was accepted a second time.
    pub(super) async fn replay(&mut self) -> anyhow::Result<()> {
        let refused = self.callers.replay(&self.peal.regions[0].name).await;
        ensure!(refused == 0, "{refused} notifications were refused the second time");
        Ok(())
    }

    /// Sends `count` notifications to one recipient in sixteen as fast as they are accepted, while Apple gives `answer`
    /// to their devices.
    pub(super) async fn storm(&mut self, count: usize, answer: &Answer, hold: Duration) -> anyhow::Result<()> {
        let rule = Rule {
            prefix: Some("f".to_owned()),
            answer: answer.clone(),
            ..Rule::default()
        };
        self.set_script(Provider::Apns, vec![rule])?;
        let chosen = self.callers.recipients_where(|number, _| is_in_storm(number));
        let from = &self.peal.regions[0].name;
        self.callers.send_burst("storm", from, &chosen, count).await;
        self.wait_all_pulled().await?;
        self.phases.complete = now_ms();
        sleep(hold).await;
        self.follow_lasting()
    }

    /// Opens `count` connections to a gateway. Half of them send nothing, the other half send a request very slowly.
    /// Meanwhile further connections are opened and closed.
    pub(super) async fn idle_sockets(&mut self, count: usize, hold: Duration) -> anyhow::Result<()> {
        let url = &self.peal.regions[0].gateway.url;
        let address = url.trim_start_matches("http://").to_owned();
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            sockets.push(TcpStream::connect(&address).await?);
        }
        for socket in sockets.iter_mut().step_by(2) {
            socket
                .write_all(b"POST /v1/notifications HTTP/1.1\r\nhost: x\r\nx-slow: ")
                .await?;
        }
        let end = Instant::now() + hold;
        while Instant::now() < end {
            for socket in sockets.iter_mut().step_by(2) {
                // The gateway may have closed the connection by then.
                let (Ok(()) | Err(_)) = socket.write_all(b"x").await;
            }
            for _ in 0..20 {
                drop(TcpStream::connect(&address).await?);
            }
            sleep(Duration::from_millis(200)).await;
        }
        let closed = sockets.iter_mut().map(async |socket| {
            let mut answer = Vec::new();
            timeout(Duration::from_secs(1), socket.read_to_end(&mut answer))
                .await
                .is_ok()
        });
        let closed = join_all(closed).await.into_iter().filter(|closed| *closed).count();
        ensure!(
            closed == count,
            "{} of {count} connections are still open",
            count - closed
        );
        Ok(())
    }

    /// While no worker runs, some recipients remove their devices, others opt out, and then all are notified. None of
    /// these pushes may arrive.
    pub(super) async fn withdraw(&mut self) -> anyhow::Result<()> {
        let region = self.peal.regions[0].name.clone();
        let withdrawing: Vec<Recipient> = (0..WITHDRAWING_RECIPIENTS)
            .map(|number| Recipient::new("w", number, &region, &[Provider::Apns], 1))
            .collect::<anyhow::Result<_>>()?;
        load::register(&self.peal, &withdrawing).await?;
        let workers: Vec<Victim> = self
            .everyone()
            .into_iter()
            .filter(|victim| matches!(victim, Victim::Worker(0, _)))
            .collect();
        for worker in &workers {
            self.stop(*worker).await?;
        }
        for (number, recipient) in withdrawing.iter().enumerate() {
            let path = format!("/v1/recipients/{}", recipient.id);
            if number % 2 == 0 {
                self.peal
                    .expect("DELETE", &region, &format!("{path}/addresses"), None)
                    .await?;
            } else {
                let opted_out = json!({ "channels": { "push": false } });
                self.peal
                    .expect("PUT", &region, &format!("{path}/preferences"), Some(&opted_out))
                    .await?;
            }
            self.notify(&recipient.id, "withdrawn").await?;
        }
        for worker in workers {
            self.start(worker).await?;
        }
        Ok(())
    }

    /// Sends a broadcast to `members` recipients who live in all regions.
    pub(super) async fn broadcast(&mut self, members: usize) -> anyhow::Result<()> {
        self.broadcasts += 1;
        let topic = format!("topic{}", self.broadcasts);
        let regions: Vec<String> = self.peal.regions.iter().map(|region| region.name.clone()).collect();
        let people: Vec<Recipient> = (0..members)
            .map(|number| {
                let home = &regions[number % regions.len()];
                Recipient::new(&format!("{topic}-"), number, home, &[Provider::Apns], 1)
            })
            .collect::<anyhow::Result<_>>()?;
        load::register(&self.peal, &people).await?;
        for person in &people {
            let path = format!("/v1/recipients/{}/topics/{topic}", person.id);
            self.peal.expect("PUT", &person.home, &path, None).await?;
        }
        let body =
            json!({ "event_id": topic, "to": { "topic": topic }, "class": "bulk", "push": { "title": "Hello" } });
        self.peal
            .expect("POST", &regions[0], "/v1/notifications", Some(&body))
            .await?;
        for person in people {
            self.callers
                .expect_delivery(load::job(&self.peal.ids, &person.id, &topic)?, person);
        }
        Ok(())
    }

    /// Moves the first `count` recipients of the load from their home to the next region.
    pub(super) async fn move_recipients(&mut self, count: usize) -> anyhow::Result<()> {
        let regions: Vec<&String> = self.peal.regions.iter().map(|region| &region.name).collect();
        for recipient in self.callers.recipients.iter().take(count) {
            let at = regions.iter().position(|region| **region == recipient.home);
            let next = regions[at.map_or(0, |at| (at + 1) % regions.len())];
            let path = format!("/v1/recipients/{}", recipient.id);
            self.peal
                .expect("PUT", &recipient.home, &path, Some(&json!({ "home": next })))
                .await?;
        }
        Ok(())
    }

    async fn notify(&self, recipient: &str, event: &str) -> anyhow::Result<()> {
        let region = &self.peal.regions[0].name;
        load::notify(&self.peal, region, recipient, &format!("{event}-{recipient}")).await?;
        Ok(())
    }

    /// Registers many devices at once, then all of them for other recipients, and notifies both. A device may get only
    /// the pushes for its second owner.
    pub(super) async fn stampede(&mut self, count: usize) -> anyhow::Result<Vec<String>> {
        let region = self.peal.regions[0].name.clone();
        let people = |name: &'static str| {
            let region = region.clone();
            move |number| {
                let mut person = Recipient::new("s", number, &region, &[Provider::Apns], 1)?;
                person.id = format!("{name}{number}");
                anyhow::Ok(person)
            }
        };
        let first: Vec<Recipient> = (0..count).map(people("first")).collect::<Result<_, _>>()?;
        let second: Vec<Recipient> = (0..count).map(people("second")).collect::<Result<_, _>>()?;
        load::register(&self.peal, &first).await?;
        load::register(&self.peal, &second).await?;
        for (first, second) in first.iter().zip(&second) {
            self.callers
                .expect_also(load::job(&self.peal.ids, &second.id, &format!("moved-{}", second.id))?);
            self.notify(&first.id, "moved").await?;
            self.notify(&second.id, "moved").await?;
        }
        let tokens: HashSet<&str> = second.iter().map(|person| &*person.devices[0].token).collect();
        let arrived = || {
            let pushes = self.peal.simulators.delivered();
            pushes.filter(|(_, push)| tokens.contains(&*push.token)).count()
        };
        let all = async {
            while arrived() < count {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let in_time = timeout(MOVED_DEVICES_NOTIFIED_WITHIN, all).await.is_ok();
        Ok(if in_time {
            Vec::new()
        } else {
            vec![format!(
                "{} of {count} devices were notified for their new owner",
                arrived()
            )]
        })
    }
}
