//! What the documentation tells an operator to do, done with the commands and the files that it shows.

use std::{fs, path::Path, time::Duration};

use async_nats::{
    Client,
    jetstream::{self, consumer::PullConsumer},
};
use futures::StreamExt;
use serde_json::{Value, json};
use shared::nats::{
    accounts,
    connect::{self, Nats},
    roles::Role,
    topology,
};
use testbed::{
    nats::{self, Server},
    peal::{Peal, Plan},
};
use tokio::{process::Command, time::timeout};

use crate::rig::{TIMEOUT, app};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testbed");
const HUB_TOML: &str = include_str!("../../../deploy/nats/example/hub.toml");

/// Runs `peal`, which must succeed. Returns what it prints.
async fn peal(arguments: &[&str], folder: &Path) -> String {
    let mut program = Command::new(PROGRAM);
    program.arg("peal").args(arguments).current_dir(folder);
    let done = timeout(TIMEOUT, program.kill_on_drop(true).output())
        .await
        .unwrap()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The example of an operator's settings, for this mesh.
fn hub_toml(mesh: &Peal) -> String {
    let environment = fs::read_to_string(mesh.write_environment().unwrap()).unwrap();
    let key = environment
        .lines()
        .find_map(|line| line.strip_prefix("export PEAL_MESH_KEY='")?.strip_suffix('\''))
        .unwrap();
    let hub = mesh.nats.hub();
    let nats = hub.nats(&Role::Operator("hub".parse().unwrap())).unwrap();
    let file = |file: Option<std::path::PathBuf>| file.unwrap().display().to_string();
    let places = [
        ("# mesh_key = \"\"", format!("mesh_key = \"{key}\"")),
        ("\"nats://nats-hub.internal:4222\"", format!("{:?}", nats.url)),
        ("\"operator.nk\"", format!("{:?}", file(nats.nkey_file))),
        ("\"ca.pem\"", format!("{:?}", file(nats.ca_file))),
        ("\"operator.pem\"", format!("{:?}", file(nats.cert_file))),
        ("\"operator.key\"", format!("{:?}", file(nats.key_file))),
        ("\"single\"", "\"demo\"".to_owned()),
    ];
    places.into_iter().fold(HUB_TOML.to_owned(), |text, (from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text.replace(from, &to)
    })
}

async fn connect_as(server: &Server, id: &str, nkey: &Path) -> Client {
    let nats = Nats {
        nkey_file: Some(nkey.to_owned()),
        ..server.nats_of_test().unwrap()
    };
    connect::connect(&nats, &Role::Service(app(id)), "testbed")
        .await
        .unwrap()
}

/// Whether a gateway answers, which the account imports like all else.
async fn reaches_gateways(service: &Client) -> bool {
    service.request("$SRV.PING.peal-send", "".into()).await.is_ok()
}

/// Publishes until the app's intake has been made, and returns the stream that stored it.
async fn publish(service: &Client, event: &str) -> String {
    let js = connect::jetstream(service.clone());
    let body = json!({ "event_id": event, "to": { "recipients": ["ann"] }, "push": { "title": "Hi" } }).to_string();
    let storing = async {
        loop {
            let stored = js.publish("send.bank", body.clone().into()).await.unwrap();
            if let Ok(stored) = stored.await {
                return stored.stream;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(TIMEOUT, storing).await.unwrap()
}

/// The next state that the app's feed reports.
async fn next_state(service: &Client) -> Value {
    let js = jetstream::with_domain(service.clone(), accounts::FEED_DOMAIN);
    // A gateway makes it a moment after it has made the intake.
    let found = async {
        loop {
            match js.get_consumer_from_stream("svc_bank", topology::RECEIPTS).await {
                Ok(feed) => return feed,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let feed: PullConsumer = timeout(TIMEOUT, found).await.unwrap();
    let mut batches = feed.messages().await.unwrap();
    let reading = async {
        loop {
            let message = batches.next().await.unwrap().unwrap();
            message.ack().await.unwrap();
            let batch: Value = serde_json::from_slice(&message.payload).unwrap();
            if let Some(receipt) = batch["receipts"].get(0) {
                return json!([receipt["state"], receipt["reason"]]);
            }
        }
    };
    timeout(TIMEOUT, reading).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_added_to_servers_with_files_while_everything_runs() {
    let plan = Plan {
        regions: vec!["eu".into()],
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(PROGRAM.into(), nats::from_env().unwrap())
    };
    let mesh = Peal::start(plan).await.unwrap();
    let eu = mesh.nats.region("eu");
    let shop = mesh.connect_as_app("eu").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);

    let public = peal(&["nkey", "app-bank.nk"], folder.path()).await;
    let entry = |id: &str| format!("[[app]]\nid = \"{id}\"\ndefault_region = \"eu\"\nservices = true\n");
    fs::write(
        file("mesh.toml"),
        format!("[region.eu]\n{}{}", entry("shop"), entry("bank")),
    )
    .unwrap();
    fs::write(file("hub.toml"), hub_toml(&mesh)).unwrap();
    let roles = peal(&["roles", "mesh.toml", "--region", "eu"], folder.path()).await;
    eu.replace_roles(&format!("PEAL_NKEY_APP_BANK: {public}{roles}"))
        .unwrap();

    eu.reload().await.unwrap();
    let bank = connect_as(eu, "bank", &file("app-bank.nk")).await;
    // nats-server 2.15 subscribes for the imports of those accounts only that were there before the reload. If this fails, one
    // reload is enough, and the documentation says too much.
    assert!(!reaches_gateways(&bank).await, "one reload was enough");
    eu.reload().await.unwrap();
    assert!(reaches_gateways(&bank).await);

    let provisioned = gateway::program::provision(Some(&file("hub.toml")), &file("mesh.toml")).await;
    assert_eq!(
        format!("{provisioned:?}"),
        format!("{:?}", std::process::ExitCode::SUCCESS)
    );
    assert_eq!(publish(&bank, "first").await, "INTAKE_bank");
    assert_eq!(next_state(&bank).await, json!(["suppressed", "unknown_recipient"]));
    assert!(reaches_gateways(&shop).await);
    for (who, client) in [("shop", &shop), ("bank", &bank)] {
        let connects = client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(connects, 1, "{who} lost its connection");
    }
}
