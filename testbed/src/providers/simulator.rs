//! What the simulators of all providers have in common, and the set of those that run.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use shared::provider::Provider;

use super::apns::Apns;
use super::devices::Devices;
use super::fcm::Fcm;
use super::listener::Listener;
use super::log::{Log, LogMode, Push, Stats};
use super::reply::Site;
use super::script::{Script, ScriptHandle};
use super::tls::Authority;
use super::wire::StreamLimits;

/// One running simulator for each provider.
#[derive(Debug)]
pub struct Simulators {
    /// Apple's.
    pub apns: Apns,
    /// Google's.
    pub fcm: Fcm,
}

impl Simulators {
    /// The simulator of a provider.
    pub fn get(&self, provider: Provider) -> &dyn Simulation {
        match provider {
            Provider::Apns => &self.apns,
            Provider::Fcm => &self.fcm,
        }
    }

    /// All simulators, in the order of [`Provider::ALL`].
    pub fn all(&self) -> impl Iterator<Item = &dyn Simulation> {
        Provider::ALL.iter().map(|provider| self.get(*provider))
    }

    /// The recorded pushes that reached a device, provider by provider.
    pub fn delivered(&self) -> impl Iterator<Item = (&dyn Simulation, Push)> {
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

/// The simulator of one provider, for code that serves every provider alike.
pub trait Simulation: Deref<Target = Simulator> + Send + Sync {
    /// The provider that it simulates.
    fn provider(&self) -> Provider;

    /// The provider's usual name, such as `APNs`.
    fn name(&self) -> &'static str;

    /// What the table `[providers.<provider>]` of an edge worker's settings says about the endpoint, as lines of TOML.
    /// `endpoint` is the host and port by which the worker reaches the simulator.
    fn worker_settings(&self, endpoint: &str) -> String;

    /// The job that a push belongs to, which is also what makes a repeated push replace the first on a device.
    fn job_of(&self, push: &Push) -> Option<String>;

    /// Whether a push that is sent again keeps its id.
    fn keeps_ids(&self) -> bool;

    /// What a client has to know, as members of `simulators.json`.
    fn connection_details(&self) -> Vec<(&'static str, Value)>;

    /// Files with credentials for clients: names and contents. Tokens are issued at `now_s`, seconds since the epoch.
    ///
    /// # Errors
    /// When a token cannot be signed.
    fn files(&self, now_s: i64) -> anyhow::Result<Vec<(&'static str, String)>>;

    /// One line that says where it listens, and with which credentials, whose files are in `dir`.
    fn summary(&self, dir: &Path) -> String;

    /// Shell commands that send a push, with the credentials in `dir`.
    fn example(&self, dir: &Path) -> String;
}

/// What a running simulator knows and has recorded; it survives a restart.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) devices: Devices,
    pub(crate) script: ScriptHandle,
    pub(crate) log: Log,
}

impl Records {
    /// `knows` says whether a reason is one of the provider's.
    pub(crate) fn new(script: Script, knows: fn(&str) -> bool, log: LogMode) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            devices: Devices::default(),
            script: ScriptHandle::new(script, knows)?,
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
    pub(crate) async fn start<S: Site>(
        listen: SocketAddr,
        authority: Authority,
        limits: StreamLimits,
        site: &Arc<S>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            listener: Listener::start(listen, &authority, limits, Arc::clone(site)).await?,
            authority,
            limits,
            records: Arc::clone(site.records()),
        })
    }

    pub(crate) async fn start_again<S: Site>(&mut self, site: &Arc<S>) -> anyhow::Result<()> {
        self.listener = Listener::start(self.addr(), &self.authority, self.limits, Arc::clone(site)).await?;
        Ok(())
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// The certificate clients must trust, PEM; valid for `localhost` and the providers' host names.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The devices it knows.
    pub fn devices(&self) -> &Devices {
        &self.records.devices
    }

    /// The requests that reached it.
    pub fn log(&self) -> &Log {
        &self.records.log
    }

    /// The script it follows.
    pub fn script(&self) -> &ScriptHandle {
        &self.records.script
    }

    /// The totals.
    pub fn stats(&self) -> Stats {
        self.records.log.stats()
    }

    /// Sends GOAWAY on every connection. Open requests are finished, and new connections are accepted.
    pub fn go_away(&self) {
        self.listener.leave();
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
