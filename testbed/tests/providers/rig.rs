//! A worker's providers, pointed at simulators, and the outcomes that tests expect.

use std::{
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use edge_worker::providers::{
    Attempt, Attempted, BadCredential, EndpointSettings, Message, Outcome, Providers, ReceiverSettings, Recorded,
    Renditions, Settings,
};
use futures::future::join_all;
use jiff::Timestamp;
pub(crate) use shared::testing::{address, job};
use shared::{
    address::Address,
    clock::Clock,
    content::{Content, push::Push},
    id::AppId,
    job::Job,
    provider::{Credential, Provider, apns, fcm, web_push},
};
use testbed::providers::{
    ApiConfig, Apns, ApnsConfig, ApnsKey, Authority, Fcm, FcmConfig, Simulator, WebPush, WebPushConfig,
};

pub(crate) const TOPIC: &str = "com.example.shop";

pub(crate) struct Rig {
    pub(crate) providers: Providers,
    pub(crate) app: AppId,
    pub(crate) authority: Authority,
    _ca: tempfile::TempDir,
}

/// The settings of a [`Rig`] that tests vary. Without endpoints, the rig uses those of the simulator that it starts.
pub(crate) struct Choices {
    pub(crate) apns: Vec<String>,
    pub(crate) fcm: Vec<String>,
    /// Hosts of push services.
    pub(crate) services: Vec<String>,
    /// Whether other hosts get web pushes.
    pub(crate) others: bool,
    /// The port of this machine at which every API is.
    pub(crate) api: Option<u16>,
    /// Where requests may go whose URL comes from a tenant or a user.
    pub(crate) receivers: ReceiverSettings,
    pub(crate) connections: usize,
    pub(crate) timeout: Duration,
    pub(crate) endpoints: EndpointSettings,
    pub(crate) clock: Clock,
}

/// Receivers on this machine may be reached.
pub(crate) fn on_this_machine() -> ReceiverSettings {
    ReceiverSettings {
        ports: (1024..=u16::MAX).collect(),
        private: ["127.0.0.0/8", "::1/128"]
            .map(|network| network.parse().unwrap())
            .to_vec(),
        ..ReceiverSettings::default()
    }
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            apns: Vec::new(),
            fcm: Vec::new(),
            services: vec!["localhost".into()],
            others: true,
            api: None,
            receivers: on_this_machine(),
            connections: 4,
            timeout: Duration::from_secs(10),
            endpoints: EndpointSettings::default(),
            clock: Clock::system(),
        }
    }
}

impl Rig {
    pub(crate) fn new(authority: Authority, choices: Choices) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca_file: PathBuf = directory.path().join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let timeout_ms = u64::try_from(choices.timeout.as_millis()).unwrap();
        let mut settings = Settings::default();
        settings.apns.production.clone_from(&choices.apns);
        settings.apns.sandbox = choices.apns;
        settings.apns.ca_file = Some(ca_file.clone());
        settings.apns.connections = choices.connections;
        settings.apns.timeout_ms = timeout_ms;
        settings.fcm.endpoints = choices.fcm;
        settings.fcm.ca_file = Some(ca_file.clone());
        macro_rules! api {
            ($($provider:ident),+) => {$(
                settings.$provider.endpoint = choices.api.map_or(settings.$provider.endpoint, https_localhost);
                settings.$provider.ca_file = Some(ca_file.clone());
                settings.$provider.timeout_ms = timeout_ms;
            )+};
        }
        api!(twilio, vonage, hms, jpush, sns);
        settings.hms.oauth_endpoint.clone_from(&settings.hms.endpoint);
        settings.webhook.ca_file = Some(ca_file.clone());
        settings.webhook.timeout_ms = timeout_ms;
        settings.receivers = choices.receivers;
        settings.fcm.connections = choices.connections;
        settings.fcm.timeout_ms = timeout_ms;
        settings.web_push.services = choices.services;
        settings.web_push.others = choices.others;
        settings.web_push.ca_file = Some(ca_file);
        settings.web_push.timeout_ms = timeout_ms;
        settings.endpoints = choices.endpoints;
        let providers = Providers::new(&settings, choices.clock).unwrap();
        Self {
            providers,
            app: "shop".parse().unwrap(),
            authority,
            _ca: directory,
        }
    }

    pub(crate) async fn with_apns(config: ApnsConfig, choices: Choices) -> (Self, Apns) {
        let authority = config
            .authority
            .clone()
            .unwrap_or_else(|| Authority::generate().unwrap());
        let apns = Apns::start(ApnsConfig {
            authority: Some(authority.clone()),
            ..config
        })
        .await
        .unwrap();
        let endpoints = if choices.apns.is_empty() {
            vec![localhost(apns.addr().port())]
        } else {
            choices.apns
        };
        let rig = Self::new(
            authority,
            Choices {
                apns: endpoints,
                ..choices
            },
        );
        rig.configure_apns(apns.key());
        (rig, apns)
    }

    pub(crate) async fn with_fcm(config: FcmConfig, choices: Choices) -> (Self, Fcm) {
        let authority = config
            .authority
            .clone()
            .unwrap_or_else(|| Authority::generate().unwrap());
        let fcm = Fcm::start(FcmConfig {
            authority: Some(authority.clone()),
            ..config
        })
        .await
        .unwrap();
        let endpoints = if choices.fcm.is_empty() {
            vec![https_localhost(fcm.addr().port())]
        } else {
            choices.fcm
        };
        let rig = Self::new(
            authority,
            Choices {
                fcm: endpoints,
                ..choices
            },
        );
        rig.configure_fcm(&fcm.account().project_id, fcm.service_account_json())
            .unwrap();
        (rig, fcm)
    }

    pub(crate) async fn with_web_push(config: WebPushConfig, choices: Choices) -> (Self, WebPush) {
        let authority = Authority::generate().unwrap();
        let service = WebPush::start(WebPushConfig {
            authority: Some(authority.clone()),
            ..config
        })
        .await
        .unwrap();
        let rig = Self::new(authority, choices);
        rig.configure_web_push(service.key().pem.clone()).unwrap();
        (rig, service)
    }

    /// With the simulator that `start` starts, at which every API is, and `credential` for it.
    pub(crate) async fn with_api<S: Deref<Target = Simulator>>(
        choices: Choices,
        start: impl AsyncFnOnce(ApiConfig) -> anyhow::Result<S>,
        credential: impl FnOnce(&S) -> Credential,
    ) -> (Self, S) {
        let authority = Authority::generate().unwrap();
        let config = ApiConfig {
            authority: Some(authority.clone()),
            ..ApiConfig::default()
        };
        let simulator = start(config).await.unwrap();
        let api = Some(simulator.addr().port());
        let rig = Self::new(authority, Choices { api, ..choices });
        rig.providers.configure(&rig.app, vec![credential(&simulator)]).unwrap();
        (rig, simulator)
    }

    pub(crate) fn configure_web_push(&self, private_key: String) -> Result<(), BadCredential> {
        let credential = Credential::WebPush(web_push::Credential {
            subject: "mailto:operators@example.com".into(),
            private_key: private_key.into(),
        });
        self.providers.configure(&self.app, vec![credential])
    }

    pub(crate) fn configure_apns(&self, key: &ApnsKey) {
        self.providers
            .configure(&self.app, vec![Credential::Apns(apns_credential(key))])
            .unwrap();
    }

    pub(crate) fn configure_fcm(&self, project_id: &str, service_account: String) -> Result<(), BadCredential> {
        let credential = Credential::Fcm(fcm::Credential {
            project_id: project_id.to_owned(),
            service_account: service_account.into(),
            quota_per_minute: None,
        });
        self.providers.configure(&self.app, vec![credential])
    }

    /// Makes one attempt to push the alert `event` to the device `token`.
    pub(crate) async fn alert(&self, provider: Provider, token: &str, event: &str) -> Attempted {
        let push = Push {
            title: Some("ding".into()),
            ..Push::default()
        };
        self.push(provider, token, event, push, now()).await
    }

    pub(crate) async fn push(
        &self,
        provider: Provider,
        token: &str,
        event: &str,
        push: Push,
        accepted_at: Timestamp,
    ) -> Attempted {
        self.push_to(&address(&self.app, provider, token), event, push, accepted_at)
            .await
    }

    pub(crate) async fn push_to(
        &self,
        address: &Address,
        event: &str,
        push: Push,
        accepted_at: Timestamp,
    ) -> Attempted {
        let job = job(&self.app, event, push, accepted_at);
        let job = Arc::new(job);
        let message = Message::new(job.clone(), Renditions::default());
        self.providers
            .deliver(Attempt {
                app: &self.app,
                address,
                delivery: job.delivery(address.id),
                number: 1,
                message: &message,
                expires_at: job.expires_at(),
                handover: &Recorded,
            })
            .await
    }

    /// Makes one attempt to send `content` to `address`.
    pub(crate) async fn send(&self, content: Content, address: &Address) -> Attempted {
        let push = Push {
            title: Some("ding".into()),
            ..Push::default()
        };
        let job = Arc::new(Job {
            content,
            ..job(&self.app, "event", push, now())
        });
        let message = Message::new(job.clone(), Renditions::default());
        self.providers
            .deliver(Attempt {
                app: &self.app,
                address,
                delivery: job.delivery(address.id),
                number: 1,
                message: &message,
                expires_at: job.expires_at(),
                handover: &Recorded,
            })
            .await
    }

    pub(crate) async fn push_apns(&self, token: &str) -> Attempted {
        self.alert(Provider::Apns, token, "event").await
    }

    pub(crate) async fn push_fcm(&self, token: &str) -> Attempted {
        self.alert(Provider::Fcm, token, "event").await
    }

    /// Pushes one alert to each of `devices` devices at once.
    pub(crate) async fn push_many_apns(&self, devices: usize) -> Vec<Attempted> {
        join_all((0..devices).map(async |n| self.push_apns(&format!("{n:08x}")).await)).await
    }

    pub(crate) async fn push_many_fcm(&self, devices: usize) -> Vec<Attempted> {
        join_all((0..devices).map(async |n| self.push_fcm(&format!("device-{n}")).await)).await
    }
}

/// The system's time.
pub(crate) fn now() -> Timestamp {
    Clock::system().now()
}

pub(crate) fn localhost(port: u16) -> String {
    format!("localhost:{port}")
}

pub(crate) fn https_localhost(port: u16) -> String {
    format!("https://localhost:{port}")
}

/// A port on which nothing listens.
pub(crate) fn unused_port() -> u16 {
    testbed::port::reserve().unwrap()
}

pub(crate) fn apns_credential(key: &ApnsKey) -> apns::Credential {
    apns::Credential {
        team_id: key.team_id.clone(),
        key_id: key.key_id.clone(),
        topic: TOPIC.into(),
        private_key: key.pem.clone().into(),
    }
}

pub(crate) fn is_accepted(attempted: &Attempted) -> bool {
    matches!(attempted.outcome, Outcome::Accepted { .. })
}

pub(crate) fn assert_all_accepted(attempts: &[Attempted]) {
    let others: Vec<_> = attempts.iter().filter(|attempted| !is_accepted(attempted)).collect();
    assert!(
        others.is_empty(),
        "{} of {} were not accepted: {:?}",
        others.len(),
        attempts.len(),
        others.first()
    );
}

pub(crate) fn ambiguous(reason: &'static str) -> Outcome {
    Outcome::Ambiguous { reason: reason.into() }
}

pub(crate) fn gone(reason: &'static str) -> Outcome {
    Outcome::AddressGone {
        reason: reason.into(),
        since: None,
    }
}

pub(crate) fn rejected(reason: &'static str) -> Outcome {
    Outcome::Rejected { reason: reason.into() }
}

pub(crate) fn retry_later(reason: &'static str, seconds: Option<u64>) -> Outcome {
    Outcome::RetryLater {
        reason: reason.into(),
        not_before: seconds.map(Duration::from_secs),
    }
}

pub(crate) fn endpoint_trouble(reason: &'static str) -> Outcome {
    Outcome::EndpointTrouble {
        reason: reason.into(),
        not_before: None,
    }
}

pub(crate) fn credential_trouble(reason: &'static str) -> Outcome {
    Outcome::CredentialTrouble {
        reason: reason.into(),
        not_before: None,
    }
}

/// A clock that stands still, and the seconds since the epoch that it shows, for a test to change.
pub(crate) fn settable_clock(at: Timestamp) -> (Clock, Arc<AtomicI64>) {
    let seconds = Arc::new(AtomicI64::new(at.as_second()));
    let shown = seconds.clone();
    (
        Clock::from_fn(move || Timestamp::from_second(shown.load(Ordering::Relaxed)).unwrap()),
        seconds,
    )
}
