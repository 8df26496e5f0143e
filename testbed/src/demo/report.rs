//! What the demo prints.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use serde_json::Value;
use shared::receipt::State;

use super::{
    say,
    scenes::{Expected, Scene},
};
use crate::{
    audit::Audit,
    network::Place,
    peal::Peal,
    process::Process,
    providers::{Admin, Stats},
    sink::Sink,
};

/// A web viewer for traces, if `otelite` is installed.
#[derive(Debug)]
pub(super) struct Viewer {
    url: String,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Viewer {
    /// Starts `otelite` if it is installed; otherwise the demo prints traces itself.
    pub(super) fn start(sink: &Sink) -> Option<Self> {
        let folder = tempfile::tempdir().ok()?;
        let store = folder.path().to_str()?;
        let arguments = ["serve", "--addr", "127.0.0.1:13000", "--storage-path", store];
        let process = Process::start(
            "otelite",
            "otelite".as_ref(),
            &arguments,
            &[],
            &folder.path().join("log"),
            &Place::default(),
        )
        .ok()?;
        sink.forward_to("http://127.0.0.1:4317");
        Some(Self {
            url: "http://127.0.0.1:13000".to_owned(),
            _process: process,
            _folder: folder,
        })
    }
}

/// Prints the parts of the mesh and their addresses.
pub(super) fn parts(peal: &Peal, admin: &Admin, viewer: Option<&Viewer>) -> anyhow::Result<()> {
    say!("  hub          {}", peal.nats.hub().url())?;
    for region in &peal.regions {
        say!(
            "  region {}    nats {}  gateway {}  {} edge workers",
            region.name,
            peal.nats.region(&region.name).url(),
            region.gateway.url,
            region.workers.len()
        )?;
    }
    for simulator in peal.simulators.all() {
        let (name, port) = (simulator.name(), simulator.addr().port());
        say!("  {name:<12} localhost:{port} (simulator)")?;
    }
    say!(
        "  admin        http://{}  GET /log /stats /script, PUT /script",
        admin.addr()
    )?;
    match viewer {
        Some(viewer) => say!("  traces       {}", viewer.url)?,
        None => say!("  traces       shown below (install otelite to see them in a browser)")?,
    }
    Ok(())
}

/// Waits until a scene is over, and prints its deliveries. Returns the expectations that were not met.
pub(super) async fn scene(peal: &Peal, scene: &Scene) -> anyhow::Result<Vec<String>> {
    say!("{} [{}: {}]", scene.title, scene.region, scene.answer)?;
    let Some(notification) = &scene.notification else {
        say!("")?;
        return Ok(Vec::new());
    };
    let status = wait_done(peal, scene, notification).await?;
    let mut found: Vec<Found> = Vec::new();
    for delivery in status.get("deliveries").and_then(Value::as_array).into_iter().flatten() {
        let text = |key: &str| delivery.get(key).and_then(Value::as_str).map(str::to_owned);
        let word = |key: &str| text(key).unwrap_or_default();
        for attempt in delivery.get("attempts").and_then(Value::as_array).into_iter().flatten() {
            let part = |key: &str| attempt.get(key).and_then(Value::as_str).unwrap_or_default();
            say!(
                "  {:<14} {:<6} {:<3} {:<5} attempt {}  {:<10} {}{}",
                part("at").get(11..23).unwrap_or_default(),
                word("recipient"),
                word("region"),
                text("provider").unwrap_or_else(|| "-".into()),
                attempt.get("attempt").unwrap_or(&Value::Null),
                part("state"),
                part("reason"),
                attempt
                    .get("by")
                    .and_then(Value::as_str)
                    .map(|by| format!("by {by}"))
                    .unwrap_or_default(),
            )?;
        }
        found.push((
            word("recipient"),
            word("region"),
            text("provider"),
            word("state"),
            text("reason"),
        ));
    }
    say!("")?;
    Ok(compare(scene, found))
}

/// Recipient, region, provider, state and reason of a delivery.
type Found = (String, String, Option<String>, String, Option<String>);

fn compare(scene: &Scene, mut found: Vec<Found>) -> Vec<String> {
    let mut failures = Vec::new();
    let fits = |found: &Found, expected: &Expected| {
        found.0 == expected.0
            && found.1 == expected.1
            && found.2.as_deref() == expected.2
            && found.3 == expected.3
            && (expected.4.is_none() || found.4.as_deref() == expected.4)
    };
    for expected in &scene.expected {
        match found.iter().position(|found| fits(found, expected)) {
            Some(at) => {
                found.swap_remove(at);
            }
            None => failures.push(format!("{}: expected {expected:?}", scene.title)),
        }
    }
    failures.extend(
        found
            .into_iter()
            .map(|extra| format!("{}: unexpected {extra:?}", scene.title)),
    );
    failures
}

pub(super) async fn wait_done(peal: &Peal, scene: &Scene, notification: &str) -> anyhow::Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let path = format!("/v1/notifications/{notification}");
        let (code, status) = peal.ask("GET", &scene.region, &path, None).await?;
        let deliveries = status.get("deliveries").and_then(Value::as_array).map_or(0, Vec::len);
        let done = code == 200
            && status.get("state").and_then(Value::as_str) == Some("done")
            && deliveries >= scene.expected.len();
        if done || Instant::now() >= deadline {
            return Ok(status);
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Prints how many messages arrived at the simulators, and compares that with the receipts.
pub(super) fn simulators(peal: &Peal, audit: &Audit) -> anyhow::Result<Vec<String>> {
    let stats: Vec<Stats> = peal.simulators.all().map(|simulator| simulator.stats()).collect();
    let arrived: u64 = stats.iter().map(|stats| stats.delivered).sum();
    let repeated: u64 = stats.iter().map(|stats| stats.duplicates).sum();
    say!("The simulators: {arrived} messages reached their addresses, {repeated} of them twice")?;
    let delivered = audit.equation().by_state.get(&State::Delivered).copied().unwrap_or(0) as u64;
    let mut failures = Vec::new();
    if arrived != delivered {
        failures.push(format!(
            "by the receipts {delivered} messages were delivered, but {arrived} arrived at the simulators"
        ));
    }
    if repeated > 0 {
        failures.push("a message was delivered twice".to_owned());
    }
    Ok(failures)
}

/// Prints commands to try next.
pub(super) fn invitation(peal: &Peal, admin: &Admin, viewer: Option<&Viewer>) -> anyhow::Result<()> {
    let environment = peal.write_environment()?;
    say!(
        "\nThe mesh stays up until Ctrl-C. In another terminal, with all keys, addresses and certificates:\n\n  source {}\n",
        environment.display()
    )?;
    say!("Send over HTTP, then see what became of it:\n")?;
    say!(
        "  curl -s -H \"Authorization: Bearer $PEAL_KEY\" -H 'Content-Type: application/json' $PEAL_URL/v1/notifications \\"
    )?;
    say!(
        "    -d '{{\"event_id\":\"hello-1\",\"to\":{{\"recipients\":[\"ann\",\"bob\"]}},\"push\":{{\"title\":\"Hello\"}}}}'"
    )?;
    say!("  curl -s -H \"Authorization: Bearer $PEAL_KEY\" \"$PEAL_URL/v1/notifications?event_id=hello-1\"\n")?;
    say!(
        "Send over NATS, as a service of the app; programs in Python, Node.js, Rust and the shell are in examples/:\n"
    )?;
    say!("  cargo peal send --nats $NATS_URL --app $PEAL_APP --event-id hello-2 --to ann --title Hello --wait\n")?;
    say!("Look at the mesh:\n")?;
    say!("  cargo peal verify    also top, tail and dead")?;
    say!("  curl -s $PEAL_URL/v1/openapi.json")?;
    say!("  curl -s $PEAL_URL/metrics")?;
    say!("\nChange the app while everything runs:\n")?;
    say!("  cargo peal apps show $PEAL_APP > app.json    edit it, then: cargo peal apps put app.json")?;
    say!("\nRead what reached the simulators: the e-mails, the text messages, the pushes:\n")?;
    say!(
        "  curl -s http://{}/log/smtp    also apns, twilio, webhook, …",
        admin.addr()
    )?;
    if let Some(viewer) = viewer {
        say!("\n  traces: {}", viewer.url)?;
    }
    Ok(())
}
