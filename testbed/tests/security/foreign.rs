//! The door as a service sees it that was written with another client: nats-py, in its app's account, over TLS.

use std::{path::Path, process::Stdio, time::Duration};

use shared::nats::roles::Role;
use testbed::{
    audit::Audit,
    peal::{APP, Peal, Plan},
};
use tokio::{process::Command, time::timeout};

use crate::rig::{TIMEOUT, app, plan};

/// `testbed/conformance/nats_client.py` publishes, asks, reads the status feed and finds the micro service, and does what newcomers
/// do wrong. Afterwards each notification that it sent has been pushed once, and the books hold.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nats-py; testbed/conformance/run has it and runs this"]
async fn a_service_of_another_client_library_is_served_and_told_what_is_wrong() {
    let python = std::env::var_os("PYTHON").expect("PYTHON names an interpreter that has nats-py");
    let plan = Plan {
        residency: Some("eu".to_owned()),
        ..plan()
    };
    let peal = Peal::start(plan).await.unwrap();
    peal.register("ann", "eu", &[("apns", "aaaa")]).await.unwrap();
    let eu = peal.nats.region("eu");
    let nats = eu.nats(&Role::Service(app(APP))).unwrap();
    let conformance = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let mut client = Command::new(python);
    client
        .arg(conformance.join("nats_client.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PEAL_APP", APP)
        .env("PEAL_NATS", &nats.url)
        .env("PEAL_NATS_ELSEWHERE", peal.nats.region("us").url())
        .env("PEAL_NKEY_FILE", nats.nkey_file.unwrap())
        .env("PEAL_CA", nats.ca_file.unwrap())
        .env("PEAL_CERT", nats.cert_file.unwrap())
        .env("PEAL_CERT_KEY", nats.key_file.unwrap())
        .env_remove("SIMULATORS")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let status = timeout(Duration::from_mins(3), client.status()).await.unwrap().unwrap();
    assert!(status.success(), "{status}\n{}", peal.complaints());
    // Of the mistakes one is none for the door: who cannot hear the answer was heard.
    let audit = Audit::read_settled(&peal, TIMEOUT).await.unwrap();
    let total = audit.equation();
    assert!(audit.report.holds(), "{:?}", audit.report.broken);
    assert_eq!((total.accepted, total.in_flight), (5, 0), "{total}");
    let pushes = peal.simulators.apns.log().delivered_to("aaaa");
    assert_eq!(pushes.len(), 4, "{pushes:?}");
}
