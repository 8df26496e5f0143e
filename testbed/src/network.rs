//! Network namespaces: a mesh whose parties are connected by one bridge, without a route to the outside.
//!
//! A namespace has no name. It exists only while a process holds it, so a run that is killed leaves nothing behind.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Handle;

/// The addresses of parties, the providers' first. Certificates name all of them.
pub fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (Ipv4Addr::new(10, 77, 0, 2).to_bits()..)
        .take(30)
        .map(Ipv4Addr::from_bits)
}

/// The address of the testbed itself, where the load comes from.
const LOAD_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The testbed's own end of its cable.
const LOAD_DEVICE: &str = "load";

/// Every other party's end of its cable.
pub(crate) const DEVICE: &str = "eth0";

/// The party that is the hub's nats-server.
pub(crate) const HUB: &str = "hub";

/// The party with the simulators of all providers.
pub(crate) const PROVIDER: &str = "provider";

/// Moves the process into a network of its own, without a route to the outside. Call it while the process has only one
/// thread, because it moves only the thread that calls.
///
/// # Errors
/// When this process lacks the permission.
pub fn isolate() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    command("ip", &["link", "set", "lo", "up"])
}

/// Why this machine cannot make networks, or `None` if it can.
pub fn obstacle() -> Option<String> {
    let tried = Place::new(Ipv4Addr::LOCALHOST).and_then(|place| {
        place.command("ip", &["link", "set", "lo", "up"])?;
        place.command("nft", &["add", "table", "inet", "trial"])?;
        let shape = "qdisc add dev lo root tbf rate 1mbit burst 8kb latency 100ms";
        place.command("tc", &shape.split(' ').collect::<Vec<_>>())
    });
    tried
        .err()
        .map(|error| format!("no network namespaces on this machine: {error:#}"))
}

/// Where a party runs: on this machine's own loopback, or in a namespace.
#[derive(Debug, Clone)]
pub struct Place {
    address: Ipv4Addr,
    namespace: Option<Arc<File>>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST,
            namespace: None,
        }
    }
}

impl Place {
    fn new(address: Ipv4Addr) -> anyhow::Result<Self> {
        let maker = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            anyhow::Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let namespace = maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Self {
            address,
            namespace: Some(Arc::new(namespace)),
        })
    }

    /// The address on which its servers listen.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Runs `action` there, on a thread of its own. Processes that it starts and sockets that it opens stay there for as long
    /// as they exist.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let runtime = Handle::try_current().ok();
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                if let Some(namespace) = &self.namespace {
                    setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
                }
                let _entered = runtime.as_ref().map(Handle::enter);
                Ok(action())
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a program there and waits until it ends.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.run(|| command(program, arguments))?
    }

    /// The namespace as `ip` addresses it, or `None` on the machine's own loopback.
    fn path(&self) -> Option<String> {
        let file = self.namespace.as_ref()?;
        Some(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }
}

/// One bridge, and on it the testbed, the hub, the providers, and two parties of each region: its nats-server, and its
/// gateway with its workers.
#[derive(Debug)]
pub struct Network {
    switch: Place,
    parties: BTreeMap<String, Place>,
}

impl Network {
    /// Makes the network. The process must have called [`isolate`] before.
    ///
    /// # Errors
    /// When this process lacks the permission, or `ip` is not installed.
    pub fn new(regions: &[String]) -> anyhow::Result<Self> {
        let mut network = Self {
            switch: Place::new(Ipv4Addr::UNSPECIFIED)?,
            parties: BTreeMap::new(),
        };
        network
            .switch
            .command("ip", &["link", "add", "bridge", "type", "bridge"])?;
        network.switch.command("ip", &["link", "set", "bridge", "up"])?;
        let here = Place {
            address: LOAD_ADDRESS,
            namespace: None,
        };
        network.plug("testbed", LOAD_DEVICE, &here)?;
        let names = [PROVIDER.to_owned(), HUB.to_owned()].into_iter();
        let names = names.chain(regions.iter().flat_map(|name| [nats(name), edge(name)]));
        for (address, name) in addresses().zip(names) {
            let place = Place::new(address)?;
            network.plug(&name, DEVICE, &place)?;
            if name == HUB || regions.iter().any(|region| name == nats(region)) {
                // As deploy/README.md recommends for the hosts of nats-servers.
                place.run(|| fs::write("/proc/sys/net/ipv4/tcp_retries2", "3"))??;
            }
            network.parties.insert(name, place);
        }
        Ok(network)
    }

    /// Connects a party to the bridge by a cable. The bridge's end has the party's name.
    fn plug(&self, name: &str, device: &str, place: &Place) -> anyhow::Result<()> {
        command("ip", &["link", "add", device, "type", "veth", "peer", "name", name])?;
        let switch = self.switch.path().context("a namespace")?;
        command("ip", &["link", "set", name, "netns", &switch])?;
        self.switch
            .command("ip", &["link", "set", name, "master", "bridge", "up"])?;
        if let Some(path) = place.path() {
            command("ip", &["link", "set", device, "netns", &path])?;
            place.command("ip", &["link", "set", "lo", "up"])?;
        }
        let address = format!("{}/24", place.address);
        place.command("ip", &["address", "add", &address, "dev", device])?;
        place.command("ip", &["link", "set", device, "up"])
    }

    /// Where a party is: `HUB`, `PROVIDER`, or one that [`nats`] or [`edge`] names.
    ///
    /// # Panics
    /// When there is no such party.
    pub fn place(&self, party: &str) -> &Place {
        self.parties.get(party).expect("a party of the network")
    }

    /// Where the bridge is, with one end of each party's cable.
    pub(crate) fn switch(&self) -> &Place {
        &self.switch
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // All other ends are in namespaces, which end with the processes in them.
        if let Err(error) = command("ip", &["link", "delete", LOAD_DEVICE]) {
            eprintln!("the testbed's network may still be there: {error:#}");
        }
    }
}

/// The party that is a region's nats-server.
pub fn nats(region: &str) -> String {
    format!("nats-{region}")
}

/// The party that is a region's gateway with its workers.
pub fn edge(region: &str) -> String {
    format!("edge-{region}")
}

fn command(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.to_owned())?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", complaint.trim());
    Ok(())
}
