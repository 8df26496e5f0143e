//! A gateway in this process, in a mesh of a hub and the region `eu`. The region `us` is configured, but no server runs
//! it.

use std::time::Duration;

use async_nats::jetstream;
use base64::{Engine, engine::general_purpose::STANDARD};
use gateway::{Gateway, config::Settings, provision};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use shared::{
    api_key::{NewKey, Scope},
    app::{App, Quota},
    clock::Clock,
    id::{AppId, Region},
    id_key::IdKey,
    lifecycle::Lifecycle,
    nats::{
        config, connect,
        roles::Role,
        topology::{self, Durability, RegionSettings},
    },
    provider::{Credential, log},
    recipient::RecipientKey,
    seal::MeshKey,
    site::Site,
    telemetry::Telemetry,
};
use testbed::nats::{self, Mesh, SyncInterval};
use tokio::time::{sleep, timeout};

/// Longer than any step of these tests takes on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Where links lead.
pub(crate) const PUBLIC_URL: &str = "https://peal.example";

pub(crate) struct Rig {
    pub(crate) nats: Mesh,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) js: jetstream::Context,
    pub(crate) hub: jetstream::Context,
    pub(crate) mesh_key: MeshKey,
    /// An API key of the app `shop` with every scope.
    pub(crate) key: String,
    gateway: Gateway,
    pub(crate) http: reqwest::Client,
}

/// A response of the gateway.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// Starts with the settings of a test as `adjust` changes them.
    pub(crate) async fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        Self::start_on(nats::from_env().unwrap().into(), adjust).await
    }

    /// Starts like [`Self::with`], on servers that flush before they acknowledge.
    pub(crate) async fn with_single_durability(adjust: impl FnOnce(&mut Settings)) -> Self {
        let servers = nats::Settings {
            sync_interval: SyncInterval::Always,
            ..nats::from_env().unwrap().into()
        };
        Self::start_on(servers, |settings| {
            settings.mesh.durability = Durability::Single;
            adjust(settings);
        })
        .await
    }

    async fn start_on(servers: nats::Settings, adjust: impl FnOnce(&mut Settings)) -> Self {
        let servers = nats::Settings {
            regions: vec![region("eu"), region("us")],
            apps: vec![app(), "bank".parse().unwrap()],
            ..servers
        };
        let nats = Mesh::start(servers, &["eu"]).await.unwrap();
        let mesh_key = STANDARD.encode([7; 32]);
        let mut settings = Settings::load(None).unwrap();
        settings.listen = "127.0.0.1:0".parse().unwrap();
        settings.mesh_key = mesh_key.clone().into();
        settings.nats = nats.region("eu").nats(&Role::Gateway(region("eu"))).unwrap();
        settings.mesh.region = region("eu");
        settings.telemetry.sample_ratio = 0.0;
        settings.public_url = serde_json::from_value(PUBLIC_URL.into()).unwrap();
        adjust(&mut settings);
        let client = nats.region("eu").connect_as_test().await.unwrap();
        let operator = nats.hub().connect(&Role::Operator(region("hub"))).await.unwrap();
        let hub = provision::hub(operator);
        provision::prepare_hub(&hub, &MeshKey::from_base64(&mesh_key).unwrap(), 1)
            .await
            .unwrap();
        for name in ["eu", "us"] {
            provision::write_region(&hub, &region(name), &Site::default())
                .await
                .unwrap();
        }
        let lifecycle = Lifecycle::default();
        let admin = Settings {
            admin: true,
            nats: nats.hub().nats(&Role::Admin).unwrap(),
            mesh: RegionSettings {
                region: region("hub"),
                ..settings.mesh.clone()
            },
            ..settings.clone()
        };
        let telemetry = Telemetry::start(&admin.telemetry, "peal-gateway", "admin", &region("hub")).unwrap();
        gateway::start_admin(admin, telemetry, Clock::system(), &lifecycle)
            .await
            .unwrap();
        let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", "test", &settings.mesh.region).unwrap();
        let gateway = Gateway::start(settings, telemetry, Clock::system(), &lifecycle)
            .await
            .unwrap();
        let mut rig = Self {
            nats,
            lifecycle,
            js: connect::jetstream(client),
            hub,
            mesh_key: MeshKey::from_base64(&mesh_key).unwrap(),
            key: String::new(),
            gateway,
            http: reqwest::Client::builder().timeout(TIMEOUT).build().unwrap(),
        };
        rig.key = rig.issue_key("shop", Scope::ALL).await;
        rig
    }

    /// Starts another gateway of `eu`, with this mesh key. It runs until the test ends.
    pub(crate) async fn another_gateway(&self, mesh_key: String) -> Gateway {
        let mut settings = Settings::load(None).unwrap();
        settings.listen = "127.0.0.1:0".parse().unwrap();
        settings.mesh_key = mesh_key.into();
        settings.nats = self.nats.region("eu").nats(&Role::Gateway(region("eu"))).unwrap();
        settings.mesh.region = region("eu");
        let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", "another", &region("eu")).unwrap();
        Gateway::start(settings, telemetry, Clock::system(), &Lifecycle::default())
            .await
            .unwrap()
    }

    /// The mesh's key of ids.
    pub(crate) async fn ids(&self) -> IdKey {
        config::read(&self.hub).await.unwrap().id_key(&self.mesh_key).unwrap()
    }

    /// Provisions `app` with a key of these scopes, and returns the key once the gateway knows it.
    pub(crate) async fn issue_key(&self, app: &str, scopes: &[Scope]) -> String {
        self.issue_key_within(app, scopes, Quota::default()).await
    }

    /// Like [`Self::issue_key`], with a quota of the app.
    pub(crate) async fn issue_key_within(&self, app: &str, scopes: &[Scope], quota: Quota) -> String {
        let app = App {
            quota,
            ..self.new_app(app)
        };
        self.issue(app, NewKey::with(scopes)).await
    }

    /// Provisions `app` with this key, and returns the key once the gateway knows it.
    pub(crate) async fn issue(&self, app: App, new: NewKey) -> String {
        let mut keys = provision::write_app(&self.hub, &self.mesh_key, &app, &[new])
            .await
            .unwrap();
        let key = keys.remove(0);
        eventually("the gateway knows the key", async || {
            let status = self
                .call("GET", "/v1/notifications/none", Some(&key), None)
                .await
                .status;
            status != 401 && status != 503
        })
        .await;
        key
    }

    /// An app whose services publish.
    pub(crate) fn new_app(&self, id: &str) -> App {
        let mut app = App {
            services: true,
            senders: serde_json::from_value(json!({ "email": ["news@shop.example"], "sms": ["Shop"] })).unwrap(),
            ..App::new(id.parse().unwrap(), region("eu"))
        };
        app.seal(&self.mesh_key, &Credential::Log(log::Credential::default()));
        app
    }

    /// Lets services of `app` publish no more.
    pub(crate) async fn end_services(&self, app: &str, quota: Quota) {
        let app = App {
            services: false,
            quota,
            ..self.new_app(app)
        };
        provision::write_app(&self.hub, &self.mesh_key, &app, &[])
            .await
            .unwrap();
    }

    /// Calls with the key of `shop`. `Value::Null` stands for no body.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = (body != Value::Null).then_some(body);
        self.call(method, path, Some(&self.key), body).await
    }

    pub(crate) async fn call(&self, method: &str, path: &str, key: Option<&str>, body: Option<Value>) -> Answer {
        let mut request = self.request(method, path);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            if path.starts_with("/v1/imports") {
                request = request.header("content-type", "application/x-ndjson");
            }
            request = request.json(&body);
        }
        send(request).await
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method.parse().unwrap(), format!("{}{path}", self.url()))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.gateway.addr())
    }

    /// Where the gateway serves HTTP.
    pub(crate) fn addr(&self) -> std::net::SocketAddr {
        self.gateway.addr()
    }

    /// Removes the limit on the size of NOTIFY.
    pub(crate) async fn lift_limit(&self) {
        let stream = self.js.get_stream(topology::NOTIFY).await.unwrap();
        let mut config = stream.cached_info().config.clone();
        config.max_bytes = -1;
        self.js.update_stream(config).await.unwrap();
    }

    /// Sends a notification with the title "Hi" to `recipients`, under `event` if it is not empty.
    pub(crate) async fn notify(&self, event: &str, recipients: &[&str]) -> Answer {
        let mut body = json!({ "to": { "recipients": recipients }, "push": { "title": "Hi" } });
        if !event.is_empty() {
            body["event_id"] = json!(event);
        }
        self.ask("POST", "/v1/notifications", body).await
    }

    /// How many messages a stream holds.
    pub(crate) async fn count(&self, stream: &str) -> u64 {
        self.js.get_stream(stream).await.unwrap().cached_info().state.messages
    }
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.unwrap();
    Answer {
        status,
        headers,
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The code of a problem, after checking its other members and its content type.
    pub(crate) fn code(&self) -> &str {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert_eq!(
            self.body["request_id"].as_str(),
            self.header("x-request-id"),
            "{self:?}"
        );
        let code = self.body["code"].as_str().unwrap();
        assert_eq!(self.body["type"], format!("urn:peal:problem:{code}"), "{self:?}");
        code
    }
}

pub(crate) fn region(name: &str) -> Region {
    name.parse().unwrap()
}

pub(crate) fn app() -> AppId {
    "shop".parse().unwrap()
}

pub(crate) fn recipient(name: &str) -> RecipientKey {
    RecipientKey {
        app: app(),
        recipient: name.parse().unwrap(),
    }
}

/// Waits until `holds`; `what` names the condition in the panic.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, wait)
        .await
        .unwrap_or_else(|_| panic!("timed out; expected: {what}"));
}
