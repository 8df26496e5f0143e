//! The settings files of gateways and workers, and their first start.

use std::{fmt::Write, path::PathBuf};

use anyhow::Context;
use shared::{
    nats::{connect::Nats, roles::Role},
    provider::Provider,
};

use super::{APP, CA_FILE, Peal, Program, Region};
use crate::{
    links::Between,
    network::{self, Place},
    port,
    providers::reachable,
};

/// Where the gateways are said to be known outside of the mesh.
pub const PUBLIC_URL: &str = "https://peal.example";

impl Peal {
    /// Starts the gateway and the workers of a region.
    pub(super) fn start_region(&mut self, name: &str) -> anyhow::Result<Region> {
        let gateway = self.start_gateway(name, 1)?;
        let more_gateways = (2..=self.plan.gateways)
            .map(|number| self.start_gateway(name, number))
            .collect::<Result<_, _>>()?;
        let workers = (1..=self.plan.workers)
            .map(|number| self.start_worker(name, number))
            .collect::<Result<_, _>>()?;
        Ok(Region {
            name: name.to_owned(),
            gateway,
            more_gateways,
            workers,
        })
    }

    fn start_gateway(&mut self, region: &str, number: usize) -> anyhow::Result<Program> {
        let place = self.plan.links.place(&network::edge(region));
        let port = port::reserve()?;
        let config = format!(
            "listen = \"{}:{port}\"\n{}\n{}",
            place.address(),
            self.common(region, &Role::Gateway(region.parse()?), 5)?,
            self.plan.gateway_settings
        );
        let name = match number {
            1 => format!("gateway-{region}"),
            further => format!("gateway-{region}-{further}"),
        };
        self.start_program("gateway", &name, &config, port, place)
    }

    /// Starts an admin gateway at the hub.
    pub(super) fn start_admin(&self) -> anyhow::Result<Program> {
        let hub = self.nats.hub();
        let nats = hub.nats(&Role::Admin)?;
        let (port, place) = (port::reserve()?, self.plan.links.place(network::HUB));
        let config = format!(
            "listen = \"{}:{port}\"\nadmin = true\nmesh_key = \"{}\"\n[nats]\nurl = \"{}\"\n{}[mesh]\nregion = \"{}\"\n",
            place.address(),
            self.mesh_key,
            nats.url,
            files(&nats),
            hub.domain(),
        );
        self.start_program("gateway", "admin", &config, port, place)
    }

    fn start_program(
        &self,
        kind: &'static str,
        name: &str,
        config: &str,
        port: u16,
        place: Place,
    ) -> anyhow::Result<Program> {
        let former = self.plan.former.as_ref().filter(|former| former.begins_with(name));
        let former = former.map(|former| former.program(kind));
        let config = self.write_config(name, config)?;
        Program::start(&self.plan.program, kind, former, config, port, place)
    }

    fn start_worker(&mut self, region: &str, number: usize) -> anyhow::Result<Program> {
        let port = port::reserve()?;
        let place = self.plan.links.place(&network::edge(region));
        let name = format!("worker-{region}-{number}");
        let providers = self.providers(region)?;
        let common = self.common(region, &Role::Worker(region.parse()?), 10)?;
        let config = format!(
            "name = \"{name}\"\nadmin_listen = \"{}:{port}\"\ndata = \"{}\"\n{}\n{common}\n{providers}",
            place.address(),
            self.folder.path().join(&name).display(),
            self.plan.worker_settings,
        );
        self.start_program("edge-worker", &name, &config, port, place)
    }

    /// A worker's settings of all providers.
    fn providers(&mut self, region: &str) -> anyhow::Result<String> {
        let ca = self.folder.path().join(CA_FILE);
        let mut tables = String::new();
        // Each process may run as the former version at some time.
        let is_former = self.plan.former.is_some();
        let mut ports = Vec::new();
        for simulator in self.simulators.all() {
            // The former version refuses settings of providers that it does not know.
            if is_former && !matches!(simulator.provider(), Provider::Apns | Provider::Fcm) {
                continue;
            }
            let address = self
                .plan
                .links
                .connect(&mut self.links, Between::Provider, region, simulator.addr())?;
            write!(
                tables,
                "[providers.{}]\n{}ca_file = \"{}\"\n{}\n",
                simulator.provider(),
                simulator.worker_settings(&reachable(address)),
                ca.display(),
                self.plan.provider_settings,
            )?;
            if simulator.provider() == Provider::Smtp {
                writeln!(tables, "{}", self.plan.smtp_settings)?;
            }
            ports.extend([address.port(), simulator.addr().port()]);
        }
        if !is_former {
            let private: &[&str] = match self.plan.allowed_hosts {
                Some(_) => &[],
                None => &["0.0.0.0/0", "::/0"],
            };
            writeln!(
                tables,
                "[providers.receivers]\nports = {ports:?}\nprivate = {private:?}"
            )?;
        }
        Ok(tables)
    }

    /// Settings that gateways and workers have in common.
    fn common(&mut self, region: &str, role: &Role, grace_s: u64) -> anyhow::Result<String> {
        let nats = self.nats.region(region).nats(role)?;
        let mut urls = Vec::new();
        for server in self.nats.servers(region) {
            let address = (server.address(), server.port()).into();
            let address = self
                .plan
                .links
                .connect(&mut self.links, Between::Nats, region, address)?;
            urls.push(format!("nats://{address}"));
        }
        let otlp = self
            .plan
            .otlp_endpoint
            .as_ref()
            .map(|url| format!("otlp_endpoint = \"{url}\"\n"))
            .unwrap_or_default();
        // The former version refuses settings that it does not know.
        let public_url = match self.plan.former {
            Some(_) => String::new(),
            None => format!("public_url = \"{PUBLIC_URL}\"\n"),
        };
        Ok(format!(
            "{public_url}grace_s = {grace_s}\nmesh_key = \"{}\"\n[nats]\nurl = \"{}\"\n{}[mesh]\nregion = \"{region}\"\nmax_bytes = {}\ndurability = {}\n[telemetry]\n{otlp}sample_ratio = {:?}\n",
            self.mesh_key,
            urls.join(","),
            files(&nats),
            self.plan.max_bytes,
            serde_json::to_string(&self.plan.durability)?,
            self.plan.sample_ratio,
        ))
    }

    /// Writes a file with the environment in which `peal` and the examples reach this mesh: as an operator at the hub, with the
    /// API key at the gateway of the first region, and as a service of [`APP`] at the servers there. The service's variables
    /// are those of the program `nats`. It exists as long as the mesh.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_environment(&self) -> anyhow::Result<PathBuf> {
        let hub = self.nats.hub();
        let nats = hub.nats(&Role::Operator(hub.domain().parse()?))?;
        let first = self.regions.first().context("a mesh has a region")?;
        let service = self.nats.region(&first.name).nats(&Role::Service(APP.parse()?))?;
        let file = |file: Option<PathBuf>| file.map(|file| file.display().to_string());
        let variables = [
            ("PEAL_URL", Some(first.gateway.url.clone())),
            ("PEAL_KEY", Some(self.key.clone())),
            ("PEAL_APP", Some(APP.to_owned())),
            ("NATS_URL", Some(service.url)),
            ("NATS_NKEY", file(service.nkey_file)),
            ("NATS_CA", file(service.ca_file)),
            ("NATS_CERT", file(service.cert_file)),
            ("NATS_KEY", file(service.key_file)),
            ("PEAL_MESH_KEY", Some(self.mesh_key.clone())),
            ("PEAL_MESH__REGION", Some(hub.domain().to_owned())),
            ("PEAL_NATS__URL", Some(nats.url)),
            ("PEAL_NATS__NKEY_FILE", file(nats.nkey_file)),
            ("PEAL_NATS__CA_FILE", file(nats.ca_file)),
            ("PEAL_NATS__CERT_FILE", file(nats.cert_file)),
            ("PEAL_NATS__KEY_FILE", file(nats.key_file)),
        ];
        let mut text = String::new();
        for (name, value) in variables {
            if let Some(value) = value {
                writeln!(text, "export {name}='{value}'")?;
            }
        }
        let path = self.folder.path().join("peal.env");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn write_config(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

/// The settings that name files, as lines of TOML.
pub(super) fn files(nats: &Nats) -> String {
    let files = [
        ("nkey_file", &nats.nkey_file),
        ("ca_file", &nats.ca_file),
        ("cert_file", &nats.cert_file),
        ("key_file", &nats.key_file),
    ];
    files
        .into_iter()
        .filter_map(|(name, file)| Some(format!("{name} = \"{}\"\n", file.as_ref()?.display())))
        .collect()
}
