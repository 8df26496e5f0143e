//! Ports for processes that must be told where to listen.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Mutex,
};

use anyhow::bail;
use rand::Rng;

/// Below the ports that Linux gives to outgoing connections. A port of that range could be taken while its server is down, even by
/// the client that tries to reach the server.
const RESERVABLE_PORTS: Range<u16> = 10_000..30_000;

/// Sockets with the names of the ports that this process has reserved. Their names are free again when the process ends.
static RESERVED_PORTS: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());

/// A port on which nothing listens, for this process and its children until it ends. No other test that runs meanwhile gets it.
///
/// # Errors
/// When no port is free.
pub fn reserve() -> anyhow::Result<u16> {
    for _ in 0..1000 {
        let port = rand::rng().random_range(RESERVABLE_PORTS);
        let name = SocketAddr::from_abstract_name(format!("peal-testbed-port-{port}"))?;
        let Ok(reservation) = UnixDatagram::bind_addr(&name) else {
            continue;
        };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            RESERVED_PORTS.lock().expect("nothing panics with it").push(reservation);
            return Ok(port);
        }
    }
    bail!(
        "no free port between {} and {}",
        RESERVABLE_PORTS.start,
        RESERVABLE_PORTS.end
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        // By chance alone, 2,000 of 20,000 ports would contain an equal pair.
        let ports: BTreeSet<u16> = (0..2000).map(|_| reserve().unwrap()).collect();
        assert_eq!(ports.len(), 2000);
        assert!(ports.iter().all(|port| RESERVABLE_PORTS.contains(port)));
    }
}
