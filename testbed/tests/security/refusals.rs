//! How programs and callers learn of a refusal.

use async_nats::HeaderMap;
use base64::{Engine, engine::general_purpose::STANDARD};
use edge_worker::EdgeWorker;
use gateway::{Gateway, config::Settings, provision};
use serde_json::{Value, json};
use shared::{
    api_key::{NewKey, Scope},
    app::App,
    clock::Clock,
    lifecycle::Lifecycle,
    nats::{
        config,
        connect::{self, Nats},
        direct::{self, NoAnswer},
        follow,
        publish::{self, NotStored},
        roles::Role,
        topology::{self, Domain},
    },
    seal::MeshKey,
    site::Site,
    telemetry::Telemetry,
};
use testbed::{
    nats::{self, Mesh},
    peal::{APP, Peal},
};
use tokio::time::timeout;

use crate::rig::{TIMEOUT, app, mesh, region, settings};

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_error_and_not_a_timeout() {
    let peal = mesh().await;
    let eu = peal.nats.region("eu");
    let js = connect::jetstream(eu.connect(&Role::Service(app("shop"))).await.unwrap());
    let store = async |subject: &str| {
        let stored = publish::store(&js, subject.to_owned(), HeaderMap::new(), "{}".into()).await;
        stored.map(|stored| stored.stream)
    };
    assert_eq!(store("notify.push.eu.normal.shop").await, Err(NotStored::Forbidden));
    // The door of another app is not there.
    assert_eq!(store("send.bank").await, Err(NotStored::NoStream));
    // One refusal ends all waits for the same subject, and no others.
    let many = (0..2000).map(|number| {
        let shop = number % 2 == 0;
        let subject = if shop {
            "send.shop"
        } else {
            "notify.push.eu.normal.shop"
        };
        let store = &store;
        async move { (shop, store(subject).await) }
    });
    for (shop, stored) in futures::future::join_all(many).await {
        let expected = if shop {
            Ok(topology::intake(&app("shop")))
        } else {
            Err(NotStored::Forbidden)
        };
        assert_eq!(stored, expected);
    }
    let error = follow::stream_state(&js, topology::RECEIPTS)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("permission denied for $JS.API.STREAM.INFO.RECEIPTS"),
        "{error}"
    );
    let error = follow::follow(&js, topology::RECEIPTS, ">", 1).await.err().unwrap();
    assert!(error.to_string().contains("permission denied for"), "{error}");
    let found = direct::last_of(&js, &Domain::Here, topology::RECIPIENTS, &["x".to_owned()]).await;
    assert!(matches!(found, Err(NoAnswer::Forbidden)));
    // Only an operator may write the hub's apps.
    let hub = provision::hub(eu.connect(&Role::Gateway(region("eu"))).await.unwrap());
    let forged = config::put_app(&hub, &existing_app(&peal).await).await;
    assert_eq!(forged, Err(NotStored::Forbidden));
}

/// The app that the mesh was started with.
async fn existing_app(peal: &Peal) -> App {
    let hub = provision::hub(peal.connect_as_operator().await.unwrap());
    let tenants = config::read(&hub).await.unwrap();
    App::clone(&tenants.apps[&app(APP)])
}

/// Settings of a gateway of eu that connects with `nats`.
fn gateway_settings(nats: Nats) -> Settings {
    let mut settings = Settings::load(None).unwrap();
    settings.listen = "127.0.0.1:0".parse().unwrap();
    settings.mesh_key = STANDARD.encode([7; 32]).into();
    settings.nats = nats;
    settings.mesh.region = region("eu");
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_the_key_of_another_role_ends_at_once_with_the_reason() {
    let mesh = Mesh::start(settings(), &["eu"]).await.unwrap();
    let eu = mesh.region("eu");
    let lifecycle = Lifecycle::default();
    let (gateway, worker) = (Role::Gateway(region("eu")), Role::Worker(region("eu")));

    let settings = gateway_settings(eu.nats(&worker).unwrap());
    let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", "test", &region("eu")).unwrap();
    let started = Gateway::start(settings, telemetry.clone(), Clock::system(), &lifecycle).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("permission denied for _INBOX.eu.gateway."), "{error}");

    let mut settings: edge_worker::config::Settings =
        shared::settings::load(edge_worker::config::DEFAULTS, None).unwrap();
    let data = tempfile::tempdir().unwrap();
    settings.data = data.path().to_owned();
    settings.mesh_key = STANDARD.encode([7; 32]).into();
    settings.nats = eu.nats(&gateway).unwrap();
    settings.mesh.region = region("eu");
    let started = EdgeWorker::start(settings, telemetry, Clock::system(), &lifecycle).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("permission denied for _INBOX.eu.worker."), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_learns_that_the_gateway_lacks_a_permission() {
    let settings = nats::Settings {
        edits: vec![("\"notify.push.eu.normal.>\"".into(), String::new())],
        ..settings()
    };
    let mesh = Mesh::start(settings, &["eu"]).await.unwrap();
    let operator = mesh.hub().connect(&Role::Operator(region("hub"))).await.unwrap();
    let hub = provision::hub(operator);
    let settings = gateway_settings(mesh.region("eu").nats(&Role::Gateway(region("eu"))).unwrap());
    let lifecycle = Lifecycle::default();
    let telemetry = Telemetry::start(&settings.telemetry, "peal-gateway", "test", &region("eu")).unwrap();
    let mesh_key = MeshKey::from_base64(settings.mesh_key.reveal()).unwrap();
    provision::prepare_hub(&hub, &mesh_key, 1).await.unwrap();
    let shop = App {
        services: true,
        ..App::new(app("shop"), region("eu"))
    };
    provision::write_region(&hub, &region("eu"), &Site::default())
        .await
        .unwrap();
    let keys = provision::write_app(&hub, &mesh_key, &shop, &[NewKey::with(Scope::ALL)])
        .await
        .unwrap();
    let gateway = Gateway::start(settings, telemetry, Clock::system(), &lifecycle)
        .await
        .unwrap();

    let http = reqwest::Client::builder().timeout(TIMEOUT).build().unwrap();
    let send = async |class: &str| {
        let body = json!({ "to": { "recipients": ["ann"] }, "class": class, "push": { "title": "Hi" } });
        let url = format!("http://{}/v1/notifications", gateway.addr());
        let answer = http.post(url).bearer_auth(&keys[0]).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    // Wait until the gateway knows the key.
    let known = async { while matches!(send("urgent").await.0, 401 | 503) {} };
    timeout(TIMEOUT, known).await.unwrap();
    assert_eq!(send("urgent").await.0, 202);
    let (status, problem) = send("normal").await;
    assert_eq!(
        (status, &problem["code"]),
        (500, &json!("gateway_not_permitted")),
        "{problem}"
    );
}
