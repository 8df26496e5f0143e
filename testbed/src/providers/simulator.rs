//! The common part of all provider simulators, and the set of running simulators.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde_json::Value;
use shared::provider::Provider;

use super::api::ApiConfig;
use super::apns::{Apns, ApnsConfig};
use super::devices::Devices;
use super::fcm::{Fcm, FcmConfig};
use super::hms::Hms;
use super::jpush::JPush;
use super::listener::{Https, Listener, Protocol};
use super::log::{Log, LogMode, RecordedPush, Stats};
use super::mailchimp::Mailchimp;
use super::reply::Site;
use super::script::{Script, ScriptHandle};
use super::sendgrid::SendGrid;
use super::smtp::{Smtp, SmtpConfig};
use super::sns::Sns;
use super::tls::Authority;
use super::twilio::Twilio;
use super::vonage::Vonage;
use super::web_push::{WebPush, WebPushConfig};
use super::webhook::Receivers;
use super::wire::StreamLimits;

/// One running simulator for each provider.
#[derive(Debug)]
pub struct Simulators {
    /// Apple's.
    pub apns: Apns,
    /// Google's.
    pub fcm: Fcm,
    /// A push service of browsers.
    pub web_push: WebPush,
    /// A mail server.
    pub smtp: Smtp,
    /// `SendGrid`'s.
    pub sendgrid: SendGrid,
    /// Mailchimp's.
    pub mailchimp: Mailchimp,
    /// Twilio's.
    pub twilio: Twilio,
    /// Vonage's.
    pub vonage: Vonage,
    /// Huawei Push Kit.
    pub hms: Hms,
    /// `JPush`.
    pub jpush: JPush,
    /// Amazon SNS.
    pub sns: Sns,
    /// Receivers of webhooks.
    pub webhook: Receivers,
}

impl Simulators {
    /// Starts all, with these settings for Apple's and Google's, and `config` of each other provider.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start(
        apns: ApnsConfig,
        fcm: FcmConfig,
        mut config: impl FnMut(Provider) -> ApiConfig,
    ) -> anyhow::Result<Self> {
        let (web_push, smtp) = (config(Provider::WebPush), config(Provider::Smtp));
        Ok(Self {
            apns: Apns::start(apns).await?,
            fcm: Fcm::start(fcm).await?,
            web_push: WebPush::start(WebPushConfig {
                listen: web_push.listen,
                authority: web_push.authority,
                log: web_push.log,
                script: web_push.script,
                ..WebPushConfig::default()
            })
            .await?,
            smtp: Smtp::start(SmtpConfig {
                listen: smtp.listen,
                authority: smtp.authority,
                log: smtp.log,
                script: smtp.script,
                ..SmtpConfig::default()
            })
            .await?,
            sendgrid: SendGrid::start(config(Provider::SendGrid)).await?,
            mailchimp: Mailchimp::start(config(Provider::Mailchimp)).await?,
            twilio: Twilio::start(config(Provider::Twilio)).await?,
            vonage: Vonage::start(config(Provider::Vonage)).await?,
            hms: Hms::start(config(Provider::Hms)).await?,
            jpush: JPush::start(config(Provider::JPush)).await?,
            sns: Sns::start(config(Provider::Sns)).await?,
            webhook: Receivers::start(config(Provider::Webhook)).await?,
        })
    }

    /// The simulator of a provider; `None` if it needs none.
    pub fn get(&self, provider: Provider) -> Option<&dyn Simulation> {
        match provider {
            Provider::Apns => Some(&self.apns),
            Provider::Fcm => Some(&self.fcm),
            Provider::WebPush => Some(&self.web_push),
            Provider::Smtp => Some(&self.smtp),
            Provider::SendGrid => Some(&self.sendgrid),
            Provider::Mailchimp => Some(&self.mailchimp),
            Provider::Log => None,
            Provider::Twilio => Some(&self.twilio),
            Provider::Vonage => Some(&self.vonage),
            Provider::Hms => Some(&self.hms),
            Provider::JPush => Some(&self.jpush),
            Provider::Sns => Some(&self.sns),
            Provider::Webhook => Some(&self.webhook),
        }
    }

    /// The simulator of a provider.
    ///
    /// # Errors
    /// When the provider needs none.
    pub fn of(&self, provider: Provider) -> anyhow::Result<&dyn Simulation> {
        self.get(provider)
            .with_context(|| format!("{provider} has no simulator"))
    }

    /// All simulators, in the order of [`Provider::ALL`].
    pub fn all(&self) -> impl Iterator<Item = &dyn Simulation> {
        Provider::ALL.iter().filter_map(|provider| self.get(*provider))
    }

    /// The recorded pushes that reached a device, provider by provider.
    pub fn delivered(&self) -> impl Iterator<Item = (&dyn Simulation, RecordedPush)> {
        self.all().flat_map(|simulator| {
            let pushes = simulator.log().delivered();
            pushes.into_iter().map(move |push| (simulator, push))
        })
    }

    /// Closes the ports and connections of all simulators.
    pub async fn stop(&self) {
        for simulator in self.all() {
            simulator.stop().await;
        }
    }
}

/// The simulator of one provider, for code that handles all providers alike.
pub trait Simulation: Deref<Target = Simulator> + Send + Sync {
    /// The provider that it simulates.
    fn provider(&self) -> Provider;

    /// The provider's usual name, such as `APNs`.
    fn name(&self) -> &'static str;

    /// The endpoint settings in the table `[providers.<provider>]` of an edge worker's configuration, as lines of TOML.
    /// `endpoint` is the host and port by which the worker reaches the simulator.
    fn worker_settings(&self, endpoint: &str) -> String {
        format!("endpoint = \"https://{endpoint}\"\n")
    }

    /// The id of the job that a push belongs to. It also makes a repeated push replace the first one on the device.
    fn job_of(&self, _push: &RecordedPush) -> Option<String> {
        None
    }

    /// The id of the delivery that a push belongs to, if it names that instead of its job.
    fn delivery_of<'a>(&self, _push: &'a RecordedPush) -> Option<&'a str> {
        None
    }

    /// Whether a push that is sent again keeps its id; most providers give every request a new one.
    fn keeps_ids(&self) -> bool {
        false
    }

    /// The details that a client needs to connect, as members of `simulators.json`.
    fn connection_details(&self) -> Vec<(&'static str, Value)>;

    /// Files with credentials for clients: names and contents. Tokens are issued at `now_s`, seconds since the epoch.
    ///
    /// # Errors
    /// When a token cannot be signed.
    fn files(&self, _now_s: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    /// One line with its address and credentials, whose files are in `dir`.
    fn summary(&self, dir: &Path) -> String {
        let (name, port, dir) = (self.name(), self.addr().port(), dir.display());
        format!("{name} https://localhost:{port}  ({dir}/simulators.json has its secrets)")
    }

    /// Shell commands that send a push, with the credentials in `dir`.
    fn example(&self, dir: &Path) -> String;
}

/// The devices, script and log of a simulator; they survive a restart.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) devices: Devices,
    pub(crate) script: ScriptHandle,
    pub(crate) log: Log,
}

impl Records {
    /// `is_reason` returns whether a reason is one of the provider's.
    pub(crate) fn new(script: Script, is_reason: fn(&str) -> bool, log: LogMode) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            devices: Devices::default(),
            script: ScriptHandle::new(script, is_reason)?,
            log: Log::new(log),
        }))
    }
}

/// A running simulator of any provider. Dropping it stops it.
#[derive(Debug)]
pub struct Simulator {
    listener: Listener,
    authority: Authority,
    limits: StreamLimits,
    records: Arc<Records>,
}

impl Simulator {
    /// Starts to listen, on the current runtime.
    pub(crate) async fn start<S: Site>(
        listen: SocketAddr,
        authority: Authority,
        limits: StreamLimits,
        site: &Arc<S>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            listener: Listener::start(listen, Https::new(&authority, limits, Arc::clone(site))?).await?,
            authority,
            limits,
            records: Arc::clone(site.records()),
        })
    }

    /// Starts to listen, on the current runtime, and speaks another protocol than HTTP.
    pub(crate) async fn start_with<P: Protocol>(
        listen: SocketAddr,
        authority: Authority,
        records: Arc<Records>,
        protocol: Arc<P>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            listener: Listener::start(listen, protocol).await?,
            authority,
            limits: StreamLimits { first: 1, full: 1 },
            records,
        })
    }

    /// Listens again at the same address, after [`Self::stop`].
    pub(crate) async fn start_again<S: Site>(&mut self, site: &Arc<S>) -> anyhow::Result<()> {
        let protocol = Https::new(&self.authority, self.limits, Arc::clone(site))?;
        self.listener = Listener::start(self.addr(), protocol).await?;
        Ok(())
    }

    /// The address on which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// The certificate authority that clients must trust, PEM. Its certificates are valid for `localhost` and the
    /// providers' host names.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The registered devices.
    pub fn devices(&self) -> &Devices {
        &self.records.devices
    }

    /// The requests that reached it.
    pub fn log(&self) -> &Log {
        &self.records.log
    }

    /// The script that defines its answers.
    pub fn script(&self) -> &ScriptHandle {
        &self.records.script
    }

    /// Totals since the start, or since the log was cleared.
    pub fn stats(&self) -> Stats {
        self.records.log.stats()
    }

    /// Sends GOAWAY on every connection. Open requests are answered, and new connections are accepted.
    pub fn go_away(&self) {
        self.listener.go_away();
    }

    /// Closes every connection without notice. New ones are accepted.
    pub fn cut(&self) {
        self.listener.cut();
    }

    /// Closes the port and every connection. Another simulator with the same authority, credentials and `listen` can
    /// take its place.
    pub async fn stop(&self) {
        self.listener.stop().await;
    }
}
