//! The programs of the version that one upgrades from. `.ci/build-former` builds them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, ensure};
use serde_json::json;
use shared::nats::roles::Role;
use tokio::process::Command;

use super::{APP, Plan, TOPIC, settings};
use crate::{nats, providers::Simulators};

/// The file with the commit that is built.
const COMMIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/former");

/// The environment variable with the folder of other programs to use as the former ones.
const FOLDER: &str = "PEAL_FORMER_DIR";

/// Every scope of the former version.
const FORMER_SCOPES: [&str; 5] = [
    "notifications:write",
    "notifications:broadcast",
    "notifications:read",
    "recipients:write",
    "recipients:read",
];

/// The version of a gateway or a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Build {
    /// This source tree.
    Current,
    /// The version that one upgrades from.
    Former,
}

/// The former programs, and which processes of a mesh begin as such.
#[derive(Debug, Clone)]
pub struct Former {
    folder: PathBuf,
    processes: Vec<String>,
}

impl Former {
    /// The former programs, and the processes that begin as such: by their names, or by the first parts of them, as
    /// `worker` means all workers and `worker-eu` those of one region.
    ///
    /// # Errors
    /// When they are not built, or of another commit.
    pub fn find(processes: &[String]) -> anyhow::Result<Self> {
        let folder = match std::env::var_os(FOLDER) {
            Some(folder) => folder.into(),
            None => built()?,
        };
        let former = Self {
            folder,
            processes: processes.to_vec(),
        };
        for kind in ["gateway", "edge-worker"] {
            let program = former.program(kind);
            ensure!(program.exists(), "there is no {}", program.display());
        }
        Ok(former)
    }

    /// The former program of a kind.
    pub(super) fn program(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("peal-{kind}"))
    }

    /// Whether a process begins as a former program.
    pub(super) fn begins_with(&self, process: &str) -> bool {
        self.processes.iter().any(|name| is_meant(name, process))
    }

    /// Writes the regions and the app into the hub's configuration as the former version does, because it cannot read
    /// credentials of a newer one. Returns an API key with every scope.
    pub(super) async fn provision(
        &self,
        nats: &nats::Mesh,
        plan: &Plan,
        mesh_key: &str,
        simulators: &Simulators,
        folder: &Path,
    ) -> anyhow::Result<String> {
        let (apns, fcm) = (simulators.apns.credential(TOPIC), simulators.fcm.credential());
        fs::write(folder.join("apns.p8"), apns.private_key.reveal())?;
        fs::write(folder.join("fcm.json"), fcm.service_account.reveal())?;
        let regions: serde_json::Map<_, _> = plan.regions.iter().map(|name| (name.clone(), json!({}))).collect();
        let mesh = json!({
            "region": regions,
            "app": [{
                "id": APP,
                "default_region": plan.regions.first().context("a mesh has a region")?,
                "apns": {
                    "team_id": apns.team_id,
                    "key_id": apns.key_id,
                    "topic": apns.topic,
                    "private_key_file": "apns.p8",
                },
                "fcm": { "project_id": fcm.project_id, "service_account_file": "fcm.json" },
                "keys": [{ "scopes": FORMER_SCOPES }],
            }],
        });
        let file = folder.join("mesh.toml");
        fs::write(&file, toml::to_string(&mesh)?)?;
        let hub = nats.hub();
        let nats = hub.nats(&Role::Operator(hub.domain().parse()?))?;
        let config = folder.join("provision.toml");
        let lines = settings::files(&nats);
        fs::write(
            &config,
            format!(
                "mesh_key = \"{mesh_key}\"\n[nats]\nurl = \"{}\"\n{lines}[mesh]\nregion = \"{}\"\n",
                nats.url, plan.regions[0]
            ),
        )?;
        let mut command = Command::new(self.program("gateway"));
        command.arg("--config").arg(config).arg("provision").arg(file);
        let done = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let printed = String::from_utf8_lossy(&done.stdout);
        let errors = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "the former provision: {printed}{errors}");
        let mut issued = printed
            .lines()
            .filter_map(|line| line.strip_prefix(APP)?.split('\t').nth(2));
        Ok(issued.next().context("an API key")?.to_owned())
    }
}

/// Whether `name` is the name of a process, or its first parts.
pub(crate) fn is_meant(name: &str, process: &str) -> bool {
    process
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The folder that `.ci/build-former` fills, beside the profile of the program that runs.
fn built() -> anyhow::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let mut above = running.ancestors().skip(1).map(|folder| folder.join("former"));
    let folder = above
        .find(|folder| folder.join("commit").exists())
        .context("the former programs are not built (.ci/build-former)")?;
    let commit = |file: &Path| fs::read_to_string(file).with_context(|| format!("reading {}", file.display()));
    ensure!(
        commit(&folder.join("commit"))?.trim() == commit(Path::new(COMMIT))?.trim(),
        "the former programs are of another commit (.ci/build-former)"
    );
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::is_meant;

    #[test]
    fn the_first_parts_of_a_name_mean_all_processes_below_them() {
        let meant = |name| is_meant(name, "worker-eu-1");
        assert!(meant("worker") && meant("worker-eu") && meant("worker-eu-1"));
        assert!(!meant("gateway") && !meant("worker-us") && !meant("worker-e"));
    }
}
