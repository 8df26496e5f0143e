//! The links between the parts of a mesh, and the trouble that can be made on them: by proxies on this machine's
//! loopback, or on real packets between network namespaces.

mod cable;
mod proxy;

use std::{net::SocketAddr, sync::Arc};

use serde::Deserialize;

pub use self::{cable::Cable, proxy::Proxy};
use crate::network::{self, Network, Place};

/// What the parts of a mesh reach each other through.
#[derive(Debug, Clone, Default)]
pub enum Links {
    /// This machine's loopback, without anything in between.
    #[default]
    Direct,
    /// Proxies that can make trouble; the number seeds their randomness.
    Proxies(u64),
    /// A network in which each party has a namespace of its own.
    Network(Arc<Network>),
}

/// A kind of link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Between {
    /// Between a region and the hub, or between a helper and the region that it helps.
    Regions,
    /// Between a gateway or a worker and its nats-server.
    Nats,
    /// Between a worker and a provider.
    Provider,
}

/// What is wrong with a link.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Open connections are reset, and so are new ones.
    Cut,
    /// No packet gets through.
    Hold(Direction),
    /// Everything arrives late.
    Delay {
        /// The least delay, milliseconds.
        ms: u64,
        /// How much longer a delay may be at random, milliseconds.
        jitter_ms: u64,
    },
    /// The cable carries at most this many bytes a second in each direction.
    Rate(u64),
    /// Connections are reset at random, after this many bytes on average.
    Resets(u64),
    /// Everything arrives in pieces of at most this many bytes.
    Slices(usize),
    /// This percentage of packets is lost in each direction.
    Loss(u8),
}

/// The directions in which a link is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the party that opens connections.
    Up,
    /// To the party that opens connections.
    Down,
    /// Both.
    Both,
}

/// What stands between two parts of a mesh.
#[derive(Debug)]
pub struct Link {
    /// Its kind.
    pub between: Between,
    /// The region it belongs to.
    pub region: String,
    /// For a helper's link, the region that it helps.
    pub helped: Option<String>,
    medium: Medium,
}

#[derive(Debug)]
enum Medium {
    Proxy(Proxy),
    Cable(Cable),
}

impl Link {
    /// Whether one of its ends is in this region.
    pub fn touches(&self, region: &str) -> bool {
        self.region == region || self.helped.as_deref() == Some(region)
    }

    /// Makes this trouble from now on, and no other.
    ///
    /// # Errors
    /// When the link's medium cannot make it.
    pub fn set(&self, trouble: &Trouble) -> anyhow::Result<()> {
        match &self.medium {
            Medium::Proxy(proxy) => proxy.set(trouble),
            Medium::Cable(cable) => cable.set(trouble),
        }
    }
}

impl Links {
    /// Where a party runs.
    pub(crate) fn place(&self, party: &str) -> Place {
        match self {
            Self::Network(network) => network.place(party).clone(),
            Self::Direct | Self::Proxies(_) => Place::default(),
        }
    }

    /// Makes the link by which `region` reaches whatever listens on `target`, and adds it to `made`. Returns the address
    /// to connect to: a proxy's, if there are proxies.
    ///
    /// # Errors
    /// When a proxy finds no free port.
    pub(crate) fn connect(
        &self,
        made: &mut Vec<Link>,
        between: Between,
        region: &str,
        target: SocketAddr,
    ) -> anyhow::Result<SocketAddr> {
        let (medium, address) = match self {
            Self::Direct => return Ok(target),
            Self::Proxies(seed) => {
                let proxy = Proxy::start(target, seed ^ made.len() as u64)?;
                let address = proxy.address();
                (Medium::Proxy(proxy), address)
            }
            // All programs of a region share one cable.
            Self::Network(_) if made.iter().any(|link| link.between == between && link.region == region) => {
                return Ok(target);
            }
            Self::Network(network) => {
                let (from, to) = match between {
                    Between::Regions => (network::nats(region), network::HUB.to_owned()),
                    Between::Nats => (network::edge(region), network::nats(region)),
                    Between::Provider => (network::edge(region), network::PROVIDER.to_owned()),
                };
                (Medium::Cable(Cable::between(network, &from, &to)), target)
            }
        };
        made.push(Link {
            between,
            region: region.to_owned(),
            helped: None,
            medium,
        });
        Ok(address)
    }

    /// The links from each region's helpers to the servers of the other regions. They exist only between namespaces:
    /// elsewhere helpers connect directly.
    pub(crate) fn of_helpers(&self, regions: &[String]) -> Vec<Link> {
        let Self::Network(network) = self else {
            return Vec::new();
        };
        let pairs = regions
            .iter()
            .flat_map(|helper| regions.iter().map(move |helped| (helper, helped)));
        pairs
            .filter(|(helper, helped)| helper != helped)
            .map(|(helper, helped)| Link {
                between: Between::Regions,
                region: helper.clone(),
                helped: Some(helped.clone()),
                medium: Medium::Cable(Cable::between(network, &network::edge(helper), &network::nats(helped))),
            })
            .collect()
    }
}
