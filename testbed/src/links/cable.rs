//! The cable between two parties, each in a network namespace of its own. Its packets are real, and really get lost.

use std::net::Ipv4Addr;

use anyhow::{bail, ensure};

use super::{Direction, Trouble};
use crate::network::{DEVICE, Network, Place};

/// A cable, as one of the two parties sees it.
#[derive(Debug)]
pub struct Cable {
    /// Where the party is, whose end of the cable gets the rules.
    at: Place,
    peer: Ipv4Addr,
    switch: Place,
    /// The bridge's end of the party's cable.
    port: String,
}

impl Cable {
    /// The cable that carries packets between two parties; trouble is made at the end of `from`.
    pub(crate) fn between(network: &Network, from: &str, to: &str) -> Self {
        Self {
            at: network.place(from).clone(),
            peer: network.place(to).address(),
            switch: network.switch().clone(),
            port: from.to_owned(),
        }
    }

    /// Makes this trouble from now on, and no other. A rate limits everything on the party's end of
    /// the cable, whichever peer it is for.
    ///
    /// # Errors
    /// When only a proxy can make it.
    pub(crate) fn set(&self, trouble: &Trouble) -> anyhow::Result<()> {
        let drops = |loss: u8| format!("numgen random mod 100 < {loss} drop");
        let (up, down) = match trouble {
            Trouble::None | Trouble::Rate(_) => (None, None),
            Trouble::Cut => {
                // The resets themselves must get through.
                let reset = "tcp flags & rst == 0 reject with tcp reset".to_owned();
                (Some(reset.clone()), Some(reset))
            }
            Trouble::Hold(direction) => {
                let held = |one| (*direction == Direction::Both || *direction == one).then(|| "drop".to_owned());
                (held(Direction::Up), held(Direction::Down))
            }
            Trouble::Loss(percent) => (Some(drops(*percent)), Some(drops(*percent))),
            Trouble::Delay { .. } | Trouble::Resets(_) | Trouble::Slices(_) => {
                bail!("only a proxy can make {trouble:?}")
            }
        };
        let rule = |end: &str, what: Option<String>| {
            what.map_or_else(String::new, |what| format!("ip {end} {} {what};", self.peer))
        };
        // One table for each peer. It is declared first so that deleting it never fails.
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
            Trouble::Rate(bytes_per_second) => {
                ensure!(*bytes_per_second > 0, "a rate must be positive");
                format!("tbf rate {}bit burst 16kb latency 400ms", 8 * bytes_per_second)
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
    fn packets_are_dropped_or_refused_and_none_leaves_the_network() {
        if let Some(obstacle) = network::obstacle() {
            eprintln!("skipped: {obstacle}");
            return;
        }
        // This moves only the current thread.
        network::isolate().unwrap();
        let network = Network::new(&["eu".to_owned()]).unwrap();
        let (region, hub) = (network.place("nats-eu"), network.place("hub"));
        let listener = hub.run(|| TcpListener::bind((hub.address(), 0))).unwrap().unwrap();
        let there = (hub.address(), listener.local_addr().unwrap().port());
        let cable = Cable::between(&network, "nats-eu", "hub");
        for trouble in [
            Trouble::Hold(Direction::Up),
            Trouble::Hold(Direction::Down),
            Trouble::Hold(Direction::Both),
        ] {
            cable.set(&trouble).unwrap();
            assert_eq!(connect(region, there), Err(ErrorKind::TimedOut), "{trouble:?}");
            assert_eq!(connect(network.place("edge-eu"), there), Ok(()), "{trouble:?}");
        }
        cable.set(&Trouble::Loss(50)).unwrap();
        assert!((0..64).any(|_| connect(region, there).is_err()));
        cable.set(&Trouble::Cut).unwrap();
        assert_eq!(connect(region, there), Err(ErrorKind::ConnectionRefused));
        for trouble in [Trouble::Rate(10_000), Trouble::None] {
            cable.set(&trouble).unwrap();
            assert_eq!(connect(region, there), Ok(()), "{trouble:?}");
        }
        // 192.0.2.0/24 is reserved for documentation (RFC 5737).
        let outside = (Ipv4Addr::new(192, 0, 2, 1), 80);
        assert_eq!(connect(region, outside), Err(ErrorKind::NetworkUnreachable));
        assert!(cable.set(&Trouble::Slices(1)).is_err());
    }
}
