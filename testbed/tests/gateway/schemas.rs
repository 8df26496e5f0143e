//! The API against its own description, tried by Schemathesis.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use crate::rig::Rig;

/// Generates requests from `/v1/openapi.json`, valid and invalid ones: none may end in a server error, no answer may depart
/// from the description, valid data must be taken and invalid data refused.
#[tokio::test]
#[ignore = "needs Schemathesis; testbed/conformance/run has it and runs this"]
async fn the_api_keeps_to_its_description() {
    let program = std::env::var_os("SCHEMATHESIS").expect("SCHEMATHESIS names the program");
    let rig = Rig::start().await;
    let conformance = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    // It keeps the requests that failed in the folder where it runs.
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(program)
        .arg("--config-file")
        .arg(conformance.join("schemathesis.toml"))
        .arg("--no-color")
        .arg("run")
        .arg(format!("{}/v1/openapi.json", rig.url()))
        .args(["--header", &format!("Authorization: Bearer {}", rig.key)])
        .env("PYTHONPATH", conformance)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .status()
        .await
        .unwrap();
    assert!(status.success(), "{status}");
}
