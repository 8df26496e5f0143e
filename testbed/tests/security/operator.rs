//! Servers with an operator: accounts as JWTs, which are added, changed and revoked while everything runs.

use std::{fs, path::Path, time::Duration};

use async_nats::{Client, connection::State};
use futures::future::try_join_all;
use shared::{
    app::App,
    nats::{
        connect::{self, Nats},
        roles::Role,
        topology::{self, Durability, RegionSettings},
    },
};
use tempfile::TempDir;
use testbed::nats::{self, Mesh, Server};
use tokio::{process::Command, time::timeout};

use crate::{
    accounts::{here, prepare, tenant, two_apps},
    rig::{TIMEOUT, app, region},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testbed");

/// The machine of the operator: the file of regions and apps, and the folder of keys.
struct Operator {
    folder: TempDir,
}

impl Operator {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn creds(&self, user: &str) -> std::path::PathBuf {
        self.file("keys").join(format!("{user}.creds"))
    }

    /// Writes which apps have services.
    fn set_apps(&self, apps: &[&str]) {
        let entry = |app: &&str| format!("[[app]]\nid = \"{app}\"\ndefault_region = \"eu\"\nservices = true\n");
        let text = format!("[region.eu]\n{}", apps.iter().map(entry).collect::<String>());
        fs::write(self.file("mesh.toml"), text).unwrap();
    }

    /// Runs `peal`. Returns what it prints.
    async fn peal(&self, command: &str, more: &[&Path]) -> String {
        let mut program = Command::new(PROGRAM);
        program.args(["peal", command]).arg(self.file("mesh.toml"));
        program
            .args(["--region", "eu", "--jwt"])
            .arg(self.file("keys"))
            .args(more);
        let done = timeout(TIMEOUT, program.kill_on_drop(true).output())
            .await
            .unwrap()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// Gives the running servers the accounts as they should be now.
    async fn push(&self, eu: &Server, more: &[&str]) -> String {
        let Nats {
            url,
            ca_file,
            cert_file,
            key_file,
            ..
        } = eu.nats_of_test().unwrap();
        let [ca, cert, key] = [ca_file, cert_file, key_file].map(|file| file.unwrap().display().to_string());
        let settings = format!(
            "[nats]\nurl = \"{url}\"\nca_file = \"{ca}\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n[mesh]\nregion = \"eu\"\n"
        );
        let config = self.file("settings.toml");
        fs::write(&config, settings).unwrap();
        let more = ["--config".as_ref(), config.as_path()]
            .into_iter()
            .chain(more.iter().map(Path::new));
        self.peal("accounts", &more.collect::<Vec<_>>()).await
    }
}

/// Publishes to the intake of the app, and returns the stream that stored it.
async fn send(service: &Client, id: &str) -> Result<String, String> {
    let js = connect::jetstream(service.clone());
    let stored = js
        .publish(format!("send.{id}"), "{}".into())
        .await
        .map_err(|error| error.to_string())?;
    stored
        .await
        .map(|stored| stored.stream)
        .map_err(|error| error.to_string())
}

async fn connect_service(eu: &Server, operator: &Operator, id: &str) -> anyhow::Result<Client> {
    eu.connect_by_creds(&Role::Service(app(id)), &operator.creds(&format!("app-{id}")))
        .await
}

/// The public key of the account with this title, among what `peal accounts` printed.
fn key_of(printed: &str, title: &str) -> String {
    let line = printed
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{title}\t")));
    line.unwrap_or_else(|| panic!("no {title} in {printed}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_moves_to_an_operator_with_its_streams_and_apps_come_and_go() {
    let settings = nats::Settings {
        apps: vec![app("shop"), app("bank")],
        ..two_apps()
    };
    let mesh = Mesh::start(settings, &["eu"]).await.unwrap();
    let eu = mesh.region("eu");
    let peal = prepare(eu).await;
    let js = connect::jetstream(peal);
    js.publish("notify.push.eu.normal.shop", "{}".into())
        .await
        .unwrap()
        .await
        .unwrap();

    // The streams of an account lie in a folder that is named by the account. Under an operator that is its public key.
    let operator = Operator::new();
    operator.set_apps(&["shop"]);
    let roles = operator.peal("roles", &[]).await;
    eu.stop().await.unwrap();
    eu.replace_roles(&roles).unwrap();
    let linked = roles
        .lines()
        .find_map(|line| line.strip_prefix("PEAL_ACCOUNT: "))
        .unwrap();
    let store = eu.store().join("jetstream");
    fs::rename(store.join("APP"), store.join(linked)).unwrap();
    eu.restart().await.unwrap();

    let gateway = Role::Gateway(region("eu"));
    let gateway = eu
        .connect_by_creds(&gateway, &operator.creds("gateway-eu"))
        .await
        .unwrap();
    let js = connect::jetstream(gateway.clone());
    let notify = js.get_stream(topology::NOTIFY).await.unwrap();
    assert_eq!(notify.cached_info().state.messages, 1, "the streams came along");
    let lane: Result<async_nats::jetstream::consumer::PullConsumer, _> =
        js.get_consumer_from_stream("push-normal", topology::NOTIFY).await;
    assert!(lane.is_ok(), "and so did their consumers");
    reaches_hub(&gateway).await;
    assert!(
        eu.connect(&Role::Gateway(region("eu"))).await.is_err(),
        "keys without a JWT"
    );

    // An intake takes what is published under the account's key; its services call it by the app's id.
    let printed = operator.push(eu, &[]).await;
    let make_intake = async |id: &str, printed: &str| {
        let app = App {
            account: Some(key_of(printed, id).parse().unwrap()),
            ..tenant(id)
        };
        topology::apply_intake(&js, &here("eu"), &app).await.unwrap();
    };
    make_intake("shop", &printed).await;
    let shop = connect_service(eu, &operator, "shop").await.unwrap();
    assert_eq!(send(&shop, "shop").await.as_deref(), Ok("INTAKE_shop"));
    assert!(send(&shop, "bank").await.is_err());

    // An app comes while everything runs.
    operator.set_apps(&["shop", "bank"]);
    let printed = operator.push(eu, &[]).await;
    make_intake("bank", &printed).await;
    let bank = connect_service(eu, &operator, "bank").await.unwrap();
    assert_eq!(send(&bank, "bank").await.as_deref(), Ok("INTAKE_bank"));
    assert!(send(&bank, "shop").await.is_err());
    let feed = async_nats::jetstream::with_domain(bank.clone(), "peal");
    let found: Result<async_nats::jetstream::consumer::PullConsumer, _> =
        feed.get_consumer_from_stream("svc_bank", topology::RECEIPTS).await;
    assert!(found.is_ok(), "the feed of an app that came later");
    let other: Result<async_nats::jetstream::consumer::PullConsumer, _> =
        feed.get_consumer_from_stream("svc_shop", topology::RECEIPTS).await;
    assert!(other.is_err());
    assert_eq!(connect::connects(&shop), 1, "no connection was lost");
    // Gateways have new permissions, for the new app, and connect again by themselves.
    reaches_hub(&gateway).await;

    // A stolen key is renewed: the former one is of no use.
    let stolen = operator.file("stolen.creds");
    fs::copy(operator.creds("app-shop"), &stolen).unwrap();
    operator.push(eu, &["--renew", "app-shop"]).await;
    disconnected(&shop).await;
    assert!(eu.connect_by_creds(&Role::Service(app("shop")), &stolen).await.is_err());
    let shop = connect_service(eu, &operator, "shop").await.unwrap();
    assert_eq!(send(&shop, "shop").await.as_deref(), Ok("INTAKE_shop"));

    // An app goes.
    let gone = operator.file("gone.creds");
    fs::copy(operator.creds("app-bank"), &gone).unwrap();
    operator.set_apps(&["shop"]);
    let printed = operator.push(eu, &[]).await;
    assert!(printed.contains("removed\t"), "{printed}");
    disconnected(&bank).await;
    assert!(bank_is_refused(eu, &gone).await);
    assert_eq!(send(&shop, "shop").await.as_deref(), Ok("INTAKE_shop"));
    let printed = operator.push(eu, &[]).await;
    assert!(!printed.contains("removed\t"), "once: {printed}");

    // All of it survives a restart.
    eu.restart().await.unwrap();
    assert!(bank_is_refused(eu, &gone).await);
    let shop = connect_service(eu, &operator, "shop").await.unwrap();
    assert_eq!(send(&shop, "shop").await.as_deref(), Ok("INTAKE_shop"));

    // It returns, with a new key alone.
    operator.set_apps(&["shop", "bank"]);
    operator.push(eu, &[]).await;
    let bank = connect_service(eu, &operator, "bank").await.unwrap();
    assert_eq!(send(&bank, "bank").await.as_deref(), Ok("INTAKE_bank"));
    assert!(bank_is_refused(eu, &gone).await);
}

async fn bank_is_refused(eu: &Server, creds: &Path) -> bool {
    eu.connect_by_creds(&Role::Service(app("bank")), creds).await.is_err()
}

/// Waits until the region reaches the streams of the hub. An answer that there is no such stream counts.
async fn reaches_hub(gateway: &Client) {
    let reached = async {
        let ask = || gateway.request("$JS.hub.API.STREAM.INFO.KV_config", "".into());
        while !matches!(timeout(Duration::from_secs(1), ask()).await, Ok(Ok(_))) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, reached).await.unwrap();
}

async fn disconnected(client: &Client) {
    let ended = async {
        while client.connection_state() == State::Connected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, ended).await.unwrap();
}

/// The servers of a region agree on accounts, also with one that was down while an app was removed and a key was renewed.
#[tokio::test(flavor = "multi_thread")]
async fn three_servers_agree_on_accounts() {
    let settings = nats::Settings {
        clusters: true,
        ..two_apps()
    };
    let mesh = Mesh::start(settings, &["eu"]).await.unwrap();
    let servers = mesh.servers("eu");
    let operator = Operator::new();
    operator.set_apps(&["shop", "bank"]);
    let roles = operator.peal("roles", &[]).await;
    for server in &servers {
        server.stop().await.unwrap();
        server.replace_roles(&roles).unwrap();
    }
    try_join_all(servers.iter().map(|server| server.restart()))
        .await
        .unwrap();

    let role = Role::Gateway(region("eu"));
    let gateway = servers[0]
        .connect_by_creds(&role, &operator.creds("gateway-eu"))
        .await
        .unwrap();
    let js = connect::jetstream(gateway);
    let topology = topology::Mesh {
        here: RegionSettings {
            durability: Durability::Production,
            ..here("eu")
        },
        regions: vec![region("eu")],
    };
    // The servers first elect a leader.
    eventually("the streams are made", async || {
        topology::apply_region(&js, &topology, true).await.is_ok()
    })
    .await;
    let printed = operator.push(servers[0], &[]).await;
    for id in ["shop", "bank"] {
        let app = App {
            account: Some(key_of(&printed, id).parse().unwrap()),
            ..tenant(id)
        };
        topology::apply_intake(&js, &topology.here, &app).await.unwrap();
    }
    let intake = js.get_stream("INTAKE_shop").await.unwrap();
    assert_eq!(intake.cached_info().config.num_replicas, 3);
    for server in &servers {
        for id in ["shop", "bank"] {
            let service = connect_service(server, &operator, id).await.unwrap();
            assert_eq!(send(&service, id).await, Ok(format!("INTAKE_{id}")));
        }
    }

    let stolen = operator.file("stolen.creds");
    fs::copy(operator.creds("app-shop"), &stolen).unwrap();
    let gone = operator.file("gone.creds");
    fs::copy(operator.creds("app-bank"), &gone).unwrap();
    servers[2].kill().unwrap();
    operator.push(servers[1], &["--renew", "app-shop"]).await;
    operator.set_apps(&["shop"]);
    operator.push(servers[1], &[]).await;
    let refuses = async |server: &Server| {
        let connect = async |id, creds| server.connect_by_creds(&Role::Service(app(id)), creds).await.is_err();
        connect("shop", &stolen).await && connect("bank", &gone).await
    };
    let works = async |server: &Server| match connect_service(server, &operator, "shop").await {
        Ok(service) => send(&service, "shop").await.as_deref() == Ok("INTAKE_shop"),
        Err(_) => false,
    };
    for server in &servers[..2] {
        eventually("the two servers refuse", async || refuses(server).await).await;
        eventually("and serve", async || works(server).await).await;
    }
    servers[2].restart().await.unwrap();
    eventually("the third learns of it", async || refuses(servers[2]).await).await;
    eventually("and serves", async || works(servers[2]).await).await;

    // All at once, as after a power cut.
    for server in &servers {
        server.kill().unwrap();
    }
    try_join_all(servers.iter().map(|server| server.restart()))
        .await
        .unwrap();
    for server in &servers {
        eventually("they serve again", async || works(server).await).await;
        assert!(refuses(server).await);
    }
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(TIMEOUT, wait).await.unwrap_or_else(|_| panic!("{what}"));
}
