//! The cable of a party that has a network namespace of its own: real packets, really lost.

use std::net::Ipv4Addr;

use anyhow::{bail, ensure};

use super::proxy::{Trouble, Ways};
use crate::network::{DEVICE, Place};

/// Between a party and its peer, seen from the party.
#[derive(Debug)]
pub struct Wire {
    at: Place,
    peer: Ipv4Addr,
    switch: Place,
    /// Its end at the bridge.
    port: String,
}

impl Wire {
    pub(crate) fn new(at: Place, peer: Ipv4Addr, switch: Place, port: &str) -> Self {
        Self {
            at,
            peer,
            switch,
            port: port.to_owned(),
        }
    }

    /// Makes this trouble from now on, and no other. A rate is that of the party's whole cable.
    ///
    /// # Errors
    /// When a wire cannot make it.
    pub(crate) fn set(&self, trouble: &Trouble) -> anyhow::Result<()> {
        let drops = |loss: u8| format!("numgen random mod 100 < {loss} drop");
        let (up, down) = match trouble {
            Trouble::None | Trouble::Rate(_) => (None, None),
            Trouble::Cut => {
                // The resets themselves must get through.
                let reset = "tcp flags & rst == 0 reject with tcp reset".to_owned();
                (Some(reset.clone()), Some(reset))
            }
            Trouble::Hold(ways) => {
                let held = |way| (*ways == Ways::Both || *ways == way).then(|| "drop".to_owned());
                (held(Ways::Up), held(Ways::Down))
            }
            Trouble::Loss(percent) => (Some(drops(*percent)), Some(drops(*percent))),
            Trouble::Delay { .. } | Trouble::Resets(_) | Trouble::Slices(_) => {
                bail!("only a proxy can make {trouble:?}")
            }
        };
        let rule = |end: &str, what: Option<String>| {
            what.map_or_else(String::new, |what| format!("ip {end} {} {what};", self.peer))
        };
        // One table for each peer. The first line is there so that the second never fails.
        let table = format!("inet to-{}", self.peer.to_bits());
        let rules = format!(
            "table {table} {{}}; delete table {table}; table {table} {{ \
             chain up {{ type filter hook output priority 0; {} }}; \
             chain down {{ type filter hook input priority 0; {} }}; }}",
            rule("daddr", up),
            rule("saddr", down),
        );
        self.at.command("nft", &[&rules])?;
        let shape = match trouble {
            Trouble::Rate(a_second) => {
                ensure!(*a_second > 0, "a rate is positive");
                format!("tbf rate {}bit burst 16kb latency 400ms", 8 * a_second)
            }
            _ => "noqueue".to_owned(),
        };
        for (place, device) in [(&self.at, DEVICE), (&self.switch, &*self.port)] {
            let shape = format!("qdisc replace dev {device} root {shape}");
            place.command("tc", &shape.split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;
    use crate::network::{self, Network};

    fn connect(from: &Place, to: (Ipv4Addr, u16)) -> Result<(), ErrorKind> {
        let connected = from.run(|| TcpStream::connect_timeout(&to.into(), Duration::from_millis(400)));
        connected.unwrap().map(drop).map_err(|error| error.kind())
    }

    #[test]
    fn packets_are_dropped_and_refused_and_none_leaves_the_network() {
        if let Some(obstacle) = network::obstacle() {
            eprintln!("skipped: {obstacle}");
            return;
        }
        // Only this thread's network.
        network::isolate().unwrap();
        let network = Network::new(&["eu".to_owned()]).unwrap();
        let (region, hub) = (network.place("nats-eu"), network.place("hub"));
        let listener = hub.run(|| TcpListener::bind((hub.address(), 0))).unwrap().unwrap();
        let there = (hub.address(), listener.local_addr().unwrap().port());
        let wire = network.wire("nats-eu", "hub");
        for trouble in [
            Trouble::Hold(Ways::Up),
            Trouble::Hold(Ways::Down),
            Trouble::Hold(Ways::Both),
        ] {
            wire.set(&trouble).unwrap();
            assert_eq!(connect(region, there), Err(ErrorKind::TimedOut), "{trouble:?}");
            assert_eq!(connect(network.place("edge-eu"), there), Ok(()), "{trouble:?}");
        }
        wire.set(&Trouble::Loss(50)).unwrap();
        assert!((0..64).any(|_| connect(region, there).is_err()));
        wire.set(&Trouble::Cut).unwrap();
        assert_eq!(connect(region, there), Err(ErrorKind::ConnectionRefused));
        for trouble in [Trouble::Rate(10_000), Trouble::None] {
            wire.set(&trouble).unwrap();
            assert_eq!(connect(region, there), Ok(()), "{trouble:?}");
        }
        // 192.0.2.0/24 is nobody's (RFC 5737).
        let outside = (Ipv4Addr::new(192, 0, 2, 1), 80);
        assert_eq!(connect(region, outside), Err(ErrorKind::NetworkUnreachable));
        assert!(wire.set(&Trouble::Slices(1)).is_err());
    }
}
