//! Requests to the gateways of a running mesh.

use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};
use shared::{provider::Provider, testing};
use tokio::time::{Instant, sleep};

use super::{Peal, READY_WITHIN};

impl Peal {
    /// Sends a request to a region's gateway and returns the status and the body.
    ///
    /// # Errors
    /// When the gateway does not answer.
    pub async fn ask(
        &self,
        method: &str,
        region: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let url = format!("{}{path}", self.region(region).gateway.url);
        let mut request = self.http.request(method.parse()?, url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Registers a recipient whose home is `home`, with devices as pairs of provider and token, at the gateway there. For
    /// web push the token is the endpoint, and the browser that of RFC 8291.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn register(&self, recipient: &str, home: &str, devices: &[(&str, &str)]) -> anyhow::Result<()> {
        self.register_at(home, recipient, home, devices).await
    }

    /// Like [`Self::register`], but at the gateway of the region `at`.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn register_at(
        &self,
        at: &str,
        recipient: &str,
        home: &str,
        devices: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let path = format!("/v1/recipients/{recipient}");
        self.expect("PUT", at, &path, Some(&json!({ "home": home }))).await?;
        for (provider, token) in devices {
            let body = match *provider {
                "smtp" => json!({ "type": "email", "email": token }),
                provider => json!({ "provider": provider, "token": token }),
            };
            self.expect("POST", at, &format!("{path}/addresses"), Some(&body))
                .await?;
        }
        Ok(())
    }

    /// The body that registers an address. What a simulator knows as `token` is a device token, the last part of a subscription's or
    /// receiver's URL, a mailbox or a number. A receiver is a chat, which has no secret.
    pub fn address(&self, provider: Provider, token: &str) -> Value {
        match provider {
            Provider::Apns | Provider::Fcm => json!({ "provider": provider, "token": token }),
            Provider::WebPush => json!({
                "type": "web_push",
                "endpoint": self.simulators.web_push.endpoint(token),
                "p256dh": testing::WEB_PUSH_P256DH,
                "auth": testing::WEB_PUSH_AUTH,
            }),
            Provider::Smtp | Provider::SendGrid | Provider::Mailchimp | Provider::Log => {
                json!({ "type": "email", "email": token })
            }
            Provider::Twilio | Provider::Vonage => json!({ "type": "phone", "phone": token }),
            Provider::Hms => json!({ "type": "hms", "token": token, "generation": 1 }),
            Provider::JPush => json!({ "type": "jpush", "token": token }),
            Provider::Sns => json!({ "type": "sns", "target_arn": token }),
            Provider::Webhook => {
                json!({ "type": "webhook", "url": self.simulators.webhook.url(token), "format": "chat" })
            }
        }
    }

    /// Waits until `region` knows where `recipient` lives.
    ///
    /// # Errors
    /// When it does not within `READY_WITHIN`.
    pub async fn wait_known(&self, region: &str, recipient: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let path = format!("/v1/recipients/{recipient}");
        while self.ask("GET", region, &path, None).await?.0 != 200 {
            if Instant::now() >= deadline {
                bail!("{region} does not know {recipient}");
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Sends a request that must succeed, and returns the body of the answer.
    ///
    /// # Errors
    /// When the answer is not a success; the error holds it.
    pub async fn expect(&self, method: &str, region: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.ask(method, region, path, body).await?;
        if !(200..300).contains(&status) {
            bail!("{method} {path} in {region}: {status} {answer}");
        }
        Ok(answer)
    }

    /// Waits until every region has received the API key, which is written at the hub.
    pub(super) async fn wait_configured(&self) -> anyhow::Result<()> {
        self.wait_configured_for(&self.key).await
    }

    /// Waits until every region has received this API key.
    pub(super) async fn wait_configured_for(&self, key: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        for region in &self.regions {
            let url = format!("{}/v1/recipients/nobody", region.gateway.url);
            while self.http.get(&url).bearer_auth(key).send().await?.status() == 401 {
                if Instant::now() >= deadline {
                    bail!("the API key did not reach {}", region.name);
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }
}
