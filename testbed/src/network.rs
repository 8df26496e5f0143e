//! Network namespaces: a mesh whose parties meet on one bridge only, and from which no road leads outside.
//!
//! A namespace has no name: it lives as long as somebody holds it, so a run that is killed leaves nothing behind.

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

use crate::faults::Wire;

/// Where parties can be, the providers first; certificates name all of them.
pub fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (Ipv4Addr::new(10, 77, 0, 2).to_bits()..)
        .take(30)
        .map(Ipv4Addr::from_bits)
}

/// Where the testbed itself is.
const LOAD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The testbed's own end of its cable.
const LOAD_DEVICE: &str = "load";

/// Everybody else's.
pub(crate) const DEVICE: &str = "eth0";

/// Puts the whole process into a network of its own, without a way out. Only before it has a second thread.
///
/// # Errors
/// When this process may not.
pub fn isolate() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    command("ip", &["link", "set", "lo", "up"])
}

/// Why this machine can make no networks; `None` if it can.
pub fn obstacle() -> Option<String> {
    let tried = Place::new(Ipv4Addr::LOCALHOST).and_then(|place| {
        place.command("ip", &["link", "set", "lo", "up"])?;
        place.command("nft", &["add", "table", "inet", "trial"])?;
        let shape = "qdisc add dev lo root tbf rate 1mbit burst 8kb latency 100ms";
        place.command("tc", &shape.split(' ').collect::<Vec<_>>())
    });
    tried
        .err()
        .map(|error| format!("no network namespaces here: {error:#}"))
}

/// Where a party is: on this machine's own loopback, or in a namespace.
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
        let making = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a namespace")?;
            anyhow::Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let namespace = making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Self {
            address,
            namespace: Some(Arc::new(namespace)),
        })
    }

    /// Where its servers listen.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Does `what` there, on a thread of its own: the processes it starts and the sockets it opens are there as long as they live.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let runtime = Handle::try_current().ok();
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                if let Some(namespace) = &self.namespace {
                    setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
                }
                let _entered = runtime.as_ref().map(Handle::enter);
                Ok(what())
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a program there to its end.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.run(|| command(program, arguments))?
    }

    /// What `ip` calls it.
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
    /// For a process that is isolated.
    ///
    /// # Errors
    /// When this process may not, or has no `ip`.
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
            address: LOAD,
            namespace: None,
        };
        network.plug("testbed", LOAD_DEVICE, &here)?;
        let names = ["provider".to_owned(), "hub".to_owned()].into_iter();
        let names = names.chain(regions.iter().flat_map(|name| [nats(name), edge(name)]));
        for (address, name) in addresses().zip(names) {
            let place = Place::new(address)?;
            network.plug(&name, DEVICE, &place)?;
            if name == "hub" || regions.iter().any(|region| name == nats(region)) {
                // As deploy/README.md says.
                place.run(|| fs::write("/proc/sys/net/ipv4/tcp_retries2", "3"))??;
            }
            network.parties.insert(name, place);
        }
        Ok(network)
    }

    /// A cable from the bridge to a party; the bridge's end has the party's name.
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

    /// Where a party is: `hub`, `provider`, or one that [`nats`] or [`edge`] names.
    ///
    /// # Panics
    /// When there is no such party.
    pub fn place(&self, party: &str) -> &Place {
        self.parties.get(party).expect("a party of the network")
    }

    /// What carries packets between two parties, for trouble at the end of the first.
    pub fn wire(&self, from: &str, to: &str) -> Wire {
        Wire::new(
            self.place(from).clone(),
            self.place(to).address,
            self.switch.clone(),
            from,
        )
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // All other ends are in namespaces that end with those who use them.
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
