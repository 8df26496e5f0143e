//! A small TCP proxy that makes trouble on the connections it carries.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::ensure;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Trouble;

/// The most bytes that are forwarded at once.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// A running proxy; it ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    trouble: watch::Sender<Trouble>,
    _end: DropGuard,
}

impl Proxy {
    /// Listens on a free port of this machine and forwards every connection to `target`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(target: SocketAddr, seed: u64) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (trouble, end) = (watch::Sender::default(), CancellationToken::new());
        let serving = accept(
            TcpListener::from_std(listener)?,
            target,
            trouble.subscribe(),
            seed,
            end.clone(),
        );
        tokio::spawn(end.clone().run_until_cancelled_owned(serving));
        Ok(Self {
            address,
            trouble,
            _end: end.drop_guard(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes this trouble from now on, and no other.
    ///
    /// # Errors
    /// When the trouble is with packets: a proxy sees only streams.
    pub fn set(&self, trouble: &Trouble) -> anyhow::Result<()> {
        ensure!(
            !matches!(trouble, Trouble::Hold(_) | Trouble::Rate(_) | Trouble::Loss(_)),
            "only a cable can make {trouble:?}"
        );
        self.trouble.send_replace(trouble.clone());
        Ok(())
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    trouble: watch::Receiver<Trouble>,
    seed: u64,
    end: CancellationToken,
) {
    let trouble = Arc::new(trouble);
    for number in 0.. {
        let Ok((client, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let forwarding = forward(client, target, trouble.clone(), StdRng::seed_from_u64(seed ^ number));
        tokio::spawn(end.clone().run_until_cancelled_owned(forwarding));
    }
}

/// Forwards one connection until it ends. To reset it, lingering is switched off, so that the peer gets a TCP reset
/// and no orderly close.
async fn forward(mut client: TcpStream, target: SocketAddr, trouble: Arc<watch::Receiver<Trouble>>, random: StdRng) {
    let mut watching = (*trouble).clone();
    let cut = *watching.borrow() == Trouble::Cut;
    let server = if cut {
        None
    } else {
        TcpStream::connect(target).await.ok()
    };
    let Some(mut server) = server else {
        let (Ok(()) | Err(_)) = client.set_zero_linger();
        return;
    };
    let (Ok(()) | Err(_)) = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let done = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(from_client, to_server, (*trouble).clone(), random.clone());
        let down = pump(from_server, to_client, (*trouble).clone(), random);
        tokio::select! {
            done = async { tokio::try_join!(up, down) } => done.is_ok(),
            _ = watching.wait_for(|now| *now == Trouble::Cut) => false,
        }
    };
    if !done {
        let (Ok(()) | Err(_)) = client.set_zero_linger().and_then(|()| server.set_zero_linger());
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut trouble: watch::Receiver<Trouble>,
    mut random: StdRng,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::ConnectionReset);
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    loop {
        let now = trouble.borrow_and_update().clone();
        let bytes_max = match now {
            Trouble::Slices(bytes) => bytes.clamp(1, CHUNK_BYTES_MAX),
            _ => CHUNK_BYTES_MAX,
        };
        let count = tokio::select! {
            count = from.read(&mut buffer[..bytes_max]) => count?,
            changed = trouble.changed() => {
                changed.map_err(gone)?;
                continue;
            }
        };
        if count == 0 {
            return to.shutdown().await;
        }
        match now {
            Trouble::Delay { ms, jitter_ms } => {
                sleep(Duration::from_millis(ms + random.random_range(0..=jitter_ms))).await;
            }
            Trouble::Resets(mean) if random.random_range(0..mean.max(1)) < count as u64 => {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            _ => {}
        }
        to.write_all(&buffer[..count]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that echoes, and a proxy in front of it.
    async fn echo_behind_proxy() -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = socket.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        Proxy::start(address, 1).unwrap()
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.unwrap()
    }

    async fn echoes(socket: &mut TcpStream) -> io::Result<bool> {
        socket.write_all(b"ping").await?;
        let mut answer = [0; 4];
        match tokio::time::timeout(Duration::from_millis(300), socket.read_exact(&mut answer)).await {
            Ok(read) => read.map(|_| answer == *b"ping"),
            Err(_) => Ok(false),
        }
    }

    #[tokio::test]
    async fn a_cut_resets_open_and_new_connections() {
        let proxy = echo_behind_proxy().await;
        let mut open = connect(&proxy).await;
        assert!(echoes(&mut open).await.unwrap());
        proxy.set(&Trouble::Cut).unwrap();
        let ended = open.read(&mut [0; 1]).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(echoes(&mut connect(&proxy).await).await.is_err());
        proxy.set(&Trouble::None).unwrap();
        assert!(echoes(&mut connect(&proxy).await).await.unwrap());
    }

    #[tokio::test]
    async fn slices_and_delays_keep_every_byte() {
        for trouble in [Trouble::Slices(1), Trouble::Delay { ms: 5, jitter_ms: 5 }] {
            let proxy = echo_behind_proxy().await;
            proxy.set(&trouble).unwrap();
            assert!(echoes(&mut connect(&proxy).await).await.unwrap());
        }
    }
}
