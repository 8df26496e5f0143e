//! Providers that misbehave.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use http::StatusCode;
use serde_json::Value;
use shared::provider::Provider;
use tokio::time::{Instant, sleep};

use super::Injector;
use crate::{
    faults::scenario::{Rules, SimulatorFault},
    peal::APP,
    providers::{ApnsKey, Rule, Script, now_ms},
};

/// How often a fault that disturbs all connections is repeated.
const DISTURB_EVERY: Duration = Duration::from_millis(200);

/// The key that takes the place of the app's APNs key.
const NEW_KEY_ID: &str = "PEALKEY002";

impl Injector {
    /// Lets simulators follow other rules for `hold`.
    pub(super) async fn follow_for(&mut self, scripts: &[Rules], hold: Duration) -> anyhow::Result<()> {
        for rules in scripts {
            self.set_script(rules.provider, rules.rules.clone())?;
        }
        let since = now_ms();
        sleep(hold).await;
        let troubled = scripts.iter().map(|rules| rules.provider).collect();
        self.phases.troubles.push((troubled, since..now_ms()));
        self.follow_lasting()
    }

    pub(super) fn set_script(&self, provider: Provider, rules: Vec<Rule>) -> anyhow::Result<()> {
        let script = Script { seed: self.seed, rules };
        self.peal.simulators.of(provider)?.script().set(script)
    }

    /// Lets every simulator follow only the rules that apply during the whole scenario.
    pub(super) fn follow_lasting(&self) -> anyhow::Result<()> {
        for simulator in self.peal.simulators.all() {
            let provider = simulator.provider();
            let of = self.lasting.iter().filter(|rules| rules.provider == provider);
            self.set_script(provider, of.flat_map(|rules| rules.rules.clone()).collect())?;
        }
        Ok(())
    }

    /// Makes a fault that only a simulator can make.
    pub(super) async fn simulator(&mut self, fault: SimulatorFault, hold: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + hold;
        match fault {
            SimulatorFault::GoAway => {
                while Instant::now() < end {
                    self.peal.simulators.all().for_each(|simulator| simulator.go_away());
                    sleep(DISTURB_EVERY).await;
                }
            }
            SimulatorFault::Close => {
                while Instant::now() < end {
                    self.peal.simulators.all().for_each(|simulator| simulator.cut());
                    sleep(DISTURB_EVERY).await;
                }
            }
            SimulatorFault::RevokeTokens => self.peal.simulators.fcm.revoke_access_tokens(),
            SimulatorFault::TokensDown => {
                self.peal.simulators.fcm.refuse_tokens(true);
                self.peal.simulators.fcm.revoke_access_tokens();
                sleep(hold).await;
                self.peal.simulators.fcm.refuse_tokens(false);
            }
            SimulatorFault::Restart => {
                self.peal.simulators.apns.stop().await;
                sleep(hold).await;
                let simulators = Arc::get_mut(&mut self.peal.simulators).context("the simulators are in use")?;
                simulators.apns.start_again().await?;
            }
            SimulatorFault::RevokeKey => {
                let key: ApnsKey = self.peal.simulators.apns.key().clone();
                self.peal.simulators.apns.revoke_key(&key.team_id, &key.key_id);
                sleep(hold).await;
                self.peal.simulators.apns.register_key(&key.into())?;
            }
            SimulatorFault::RotateKey => self.rotate_key(hold).await?,
        }
        Ok(())
    }

    /// Gives the app a new APNs key. Apple forgets the former after `hold`.
    async fn rotate_key(&self, hold: Duration) -> anyhow::Result<()> {
        let apns = &self.peal.simulators.apns;
        let former = apns.key().clone();
        let new = ApnsKey::generate(&former.team_id, NEW_KEY_ID)?;
        let pem = new.pem.clone();
        apns.register_key(&new.into())?;
        let operator = self.peal.operator_key().await?;
        let url = format!("{}/v1/apps/{APP}", self.peal.regions[0].gateway.url);
        let shown = async || self.peal.http.get(&url).bearer_auth(&operator).send().await;
        let mut answer = shown().await?;
        // A region learns of the key of the operator by its link to the hub.
        while answer.status() == StatusCode::UNAUTHORIZED {
            sleep(DISTURB_EVERY).await;
            answer = shown().await?;
        }
        let mut app: Value = answer.error_for_status()?.json().await?;
        app["apns"]["key_id"] = NEW_KEY_ID.into();
        app["apns"]["private_key"] = pem.into();
        let written = self.peal.http.put(&url).bearer_auth(&operator).json(&app);
        written.send().await?.error_for_status()?;
        sleep(hold).await;
        apns.revoke_key(&former.team_id, &former.key_id);
        Ok(())
    }
}
