//! Keeps requests whose URL comes from a tenant or a user out of our own network (server-side request forgery).
//!
//! Such a request leaves only if its URL passes [`Guard::check`], and only through [`Guard::client`]. The first judges
//! addresses that stand in the URL, for which no client asks a resolver. The second judges each address that a name
//! resolves to, at the moment of connecting, and connects to no other; so a name that resolves to a public address first
//! and to a private one later gains nothing. Redirects are not followed.
//!
//! An operator may list private hosts for one app. Its requests to them, and no others, take a client of their own
//! ([`Guard::private_client`]): a connection that it keeps is never used by an app for which the host is not listed.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    path::Path,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use serde::Deserialize;
use shared::{id::AppId, private_host::PrivateHost};
use tokio::{sync::Semaphore, task::spawn_blocking};
use url::Host;

use super::{BadSettings, https};

/// Names that are resolved at one time. Each takes a thread until the system's resolver gives up, also if nobody waits for
/// the answer any more, and the worker needs threads for its disk.
const LOOKUPS_MAX: usize = 64;

/// Idle connections to one receiver. There may be very many receivers.
const IDLE_PER_RECEIVER: usize = 4;

/// Where requests may go whose URL comes from a tenant or a user.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The ports.
    pub ports: Vec<u16>,
    /// Networks that may be reached although they are not public, such as `10.1.0.0/16`.
    pub private: Vec<IpNet>,
    /// Whether receivers without TLS may be reached, at `http` URLs. For tests.
    pub http: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ports: vec![443, 8443],
            private: Vec::new(),
            http: false,
        }
    }
}

/// A URL, or an address that its host resolves to, that no request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(in crate::providers) struct Forbidden(&'static str);

/// Decides where requests may go.
#[derive(Clone)]
pub(in crate::providers) struct Guard {
    settings: Arc<Settings>,
    /// By app, the private hosts that its webhooks may reach.
    hosts: Arc<ArcSwap<HashMap<AppId, HashSet<PrivateHost>>>>,
    lookup: Lookup,
}

/// By which client a request may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::providers) enum Way {
    /// [`Guard::client`].
    Public,
    /// [`Guard::private_client`].
    Private,
}

/// Resolves a name.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

impl Guard {
    pub(in crate::providers) fn new(settings: Settings) -> Self {
        let places = Arc::new(Semaphore::new(LOOKUPS_MAX));
        let lookup: Lookup = Arc::new(move |name| Box::pin(lookup(name, places.clone())));
        Self {
            settings: Arc::new(settings),
            hosts: Arc::default(),
            lookup,
        }
    }

    /// Replaces the private hosts that `app` may reach.
    pub(in crate::providers) fn allow(&self, app: &AppId, hosts: &[PrivateHost]) {
        self.hosts.rcu(|all| {
            let mut all = HashMap::clone(all);
            if hosts.is_empty() {
                all.remove(app);
            } else {
                all.insert(app.clone(), hosts.iter().cloned().collect());
            }
            Arc::new(all)
        });
    }

    /// Checks `url` for a request of `app`, as [`Self::check`] does.
    ///
    /// # Errors
    /// The rule that `url` breaks.
    pub(in crate::providers) fn way(&self, app: &AppId, url: &Url) -> Result<Way, Forbidden> {
        let all = self.hosts.load();
        let is_listed = all
            .get(app)
            .is_some_and(|hosts| PrivateHost::of(url).is_some_and(|host| hosts.contains(&host)));
        if is_listed {
            self.check_form(url).map(|()| Way::Private)
        } else {
            self.check(url).map(|()| Way::Public)
        }
    }

    /// Checks everything about `url` that needs no resolver. To be called for every request: a client connects to an
    /// address that stands in a URL without asking [`Self::client`]'s resolver.
    ///
    /// # Errors
    /// The rule that `url` breaks.
    pub(in crate::providers) fn check(&self, url: &Url) -> Result<(), Forbidden> {
        self.check_form(url)?;
        let address = match url.host() {
            Some(Host::Domain(_)) => return Ok(()),
            Some(Host::Ipv4(address)) => address.into(),
            Some(Host::Ipv6(address)) => address.into(),
            None => return Err(Forbidden("the URL must have a host")),
        };
        if self.allows(address) {
            Ok(())
        } else {
            Err(Forbidden("the URL must have a public address"))
        }
    }

    /// Checks the scheme and the port of `url`.
    fn check_form(&self, url: &Url) -> Result<(), Forbidden> {
        match url.scheme() {
            "https" => {}
            "http" if self.settings.http => {}
            _ => return Err(Forbidden("the URL must be https")),
        }
        let port = url.port_or_known_default();
        if port.is_some_and(|port| self.settings.ports.contains(&port)) {
            Ok(())
        } else {
            Err(Forbidden("the URL must have a port that receivers may use"))
        }
    }

    /// Whether requests may go to `address`.
    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_listed = self.settings.private.iter().any(|network| network.contains(&address));
        // Behind a gateway from IPv6 to IPv4 the address that counts is the one within.
        is_public(address) || (is_listed && behind_nat64(address).is_none_or(|inner| self.allows(inner.into())))
    }

    /// A client that connects only to addresses that are allowed. See [`https::client`] for `ca_file`.
    pub(in crate::providers) fn client(
        &self,
        ca_file: Option<&Path>,
        connect_within: Duration,
    ) -> Result<Client, BadSettings> {
        self.client_to(ca_file, connect_within, Self::allows)
    }

    /// A client for requests of [`Way::Private`] alone. The names that they go to are listed, so they may resolve to any
    /// address but those that are never a receiver's.
    pub(in crate::providers) fn private_client(
        &self,
        ca_file: Option<&Path>,
        connect_within: Duration,
    ) -> Result<Client, BadSettings> {
        self.client_to(ca_file, connect_within, |_, address| may_be_listed(address))
    }

    fn client_to(
        &self,
        ca_file: Option<&Path>,
        connect_within: Duration,
        allows: fn(&Self, IpAddr) -> bool,
    ) -> Result<Client, BadSettings> {
        let guard = self.clone();
        https::builder(ca_file, connect_within)?
            .https_only(!self.settings.http)
            .pool_max_idle_per_host(IDLE_PER_RECEIVER)
            .dns_resolver(Arc::new(Resolver { guard, allows }))
            .build()
            .map_err(BadSettings::Client)
    }
}

/// Resolves names to the addresses that `allows` permits.
struct Resolver {
    guard: Guard,
    allows: fn(&Guard, IpAddr) -> bool,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.settings).finish()
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, allows) = (self.guard.clone(), self.allows);
        Box::pin(async move {
            let found = (guard.lookup)(name.as_str().to_owned()).await?;
            let allowed: Vec<_> = found.iter().filter(|address| allows(&guard, **address)).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(Forbidden("the name must resolve to a public address").into());
            }
            // The client puts the URL's port in place of the zero.
            let allowed: Vec<_> = allowed.iter().map(|address| SocketAddr::new(**address, 0)).collect();
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Asks the system's resolver.
async fn lookup(name: String, places: Arc<Semaphore>) -> io::Result<Vec<IpAddr>> {
    let place = places.acquire_owned().await.map_err(io::Error::other)?;
    let found = spawn_blocking(move || {
        let found = (name.as_str(), 0).to_socket_addrs();
        drop(place);
        found
    });
    Ok(found.await??.map(|address| address.ip()).collect())
}

/// Whether `address` can be reached from the whole internet, by the registries of special-purpose addresses of IANA
/// (RFC 6890 and its updates). IPv4 addresses that are written as IPv6 addresses count as what they are; those that a
/// gateway would translate (NAT64, 6to4, Teredo) are not public.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_UNICAST.contains(&address) && !NOT_PUBLIC_V6.iter().any(|network| network.contains(&address))
        }
    }
}

/// Whether a name that an operator listed may resolve to `address`. Who answers for the name may be another than who listed it,
/// so it never leads to this host by the unspecified address, to link-local servers such as those of metadata, or to groups.
fn may_be_listed(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !NEVER_LISTED_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(inner) => {
            let is_plain = !NEVER_LISTED_V6.iter().any(|network| network.contains(&inner));
            is_plain && behind_nat64(address).is_none_or(|inner| may_be_listed(inner.into()))
        }
    }
}

/// The IPv4 address that a gateway would translate `address` to: RFC 6052 and RFC 8215.
fn behind_nat64(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let is_translated = NAT64.iter().any(|network| network.contains(&address));
    let [.., a, b, c, d] = address.octets();
    is_translated.then(|| Ipv4Addr::new(a, b, c, d))
}

const fn v4(a: u8, b: u8, c: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), length)
}

const fn v6(first: [u16; 3], length: u8) -> Ipv6Net {
    let [a, b, c] = first;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

const NOT_PUBLIC_V4: &[Ipv4Net] = &[
    v4(0, 0, 0, 8),       // this network; 0.0.0.0 is this host
    v4(10, 0, 0, 8),      // private
    v4(100, 64, 0, 10),   // carriers' NAT, and the metadata of some clouds
    v4(127, 0, 0, 8),     // loopback
    v4(169, 254, 0, 16),  // link-local, and the metadata of most clouds
    v4(172, 16, 0, 12),   // private
    v4(192, 0, 0, 24),    // protocol assignments
    v4(192, 0, 2, 24),    // documentation
    v4(192, 88, 99, 24),  // relays of 6to4
    v4(192, 168, 0, 16),  // private
    v4(198, 18, 0, 15),   // benchmarks
    v4(198, 51, 100, 24), // documentation
    v4(203, 0, 113, 24),  // documentation
    v4(224, 0, 0, 4),     // multicast
    v4(240, 0, 0, 4),     // reserved, and broadcast
];

/// The only part of IPv6 with public addresses. Outside are loopback, unspecified, unique local, link-local, multicast,
/// NAT64 and everything that is not assigned.
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0], 3);

const NOT_PUBLIC_V6: &[Ipv6Net] = &[
    v6([0x2001, 0, 0], 23),     // protocol assignments, among them Teredo, benchmarks and ORCHID
    v6([0x2001, 0xdb8, 0], 32), // documentation
    v6([0x2002, 0, 0], 16),     // 6to4
    v6([0x3fff, 0, 0], 20),     // documentation
];

const NEVER_LISTED_V4: &[Ipv4Net] = &[
    v4(0, 0, 0, 8),      // this network; 0.0.0.0 is this host
    v4(169, 254, 0, 16), // link-local, and the metadata of most clouds
    v4(224, 0, 0, 4),    // multicast
    v4(240, 0, 0, 4),    // reserved, and broadcast
];

const NEVER_LISTED_V6: &[Ipv6Net] = &[
    v6([0, 0, 0], 128),         // unspecified: this host
    v6([0xfe80, 0, 0], 10),     // link-local
    v6([0xff00, 0, 0], 8),      // multicast
    v6([0xfd00, 0xec2, 0], 32), // the metadata of one cloud
];

const NAT64: &[Ipv6Net] = &[v6([0x64, 0xff9b, 0], 96), v6([0x64, 0xff9b, 1], 48)];

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use shared::clock::Clock;

    use super::{
        super::{
            endpoints,
            https::{Https, MAX_ANSWER_BYTES},
        },
        *,
    };
    use crate::providers::{Outcome, attempt::Progress, carrier::Common};

    /// A guard with this resolver, for receivers without TLS on any of `ports`.
    fn guard(ports: Vec<u16>, private: &[&str], lookup: Lookup) -> Guard {
        Guard {
            settings: Arc::new(Settings {
                ports,
                private: private.iter().map(|network| network.parse().unwrap()).collect(),
                http: true,
            }),
            hosts: Arc::default(),
            lookup,
        }
    }

    fn nobody() -> Lookup {
        Arc::new(|_| Box::pin(async { Ok(Vec::new()) }))
    }

    fn check(url: &str) -> Result<(), Forbidden> {
        Guard::new(Settings::default()).check(&url.parse().unwrap())
    }

    #[test]
    fn urls_with_addresses_that_are_not_public_are_refused_however_they_are_written() {
        for host in [
            // loopback
            "127.0.0.1",
            "127.1",
            "127.255.255.254",
            "0x7f.1",
            "0x7f000001",
            "0177.0.0.1",
            "2130706433",
            "017700000001",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "127。0。0。1",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            // unspecified, this network
            "0",
            "0.0.0.0",
            "0.1.2.3",
            "[::]",
            "[::ffff:0.0.0.0]",
            // private
            "10.0.0.1",
            "012.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "3232235777",
            "[fc00::1]",
            "[fd12:3456:789a::1]",
            "[::ffff:10.0.0.1]",
            // link-local and metadata
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "[fe80::1]",
            "[febf::1]",
            "[fec0::1]",
            "[fd00:ec2::254]",
            "[::ffff:a9fe:a9fe]",
            // carriers' NAT
            "100.64.0.1",
            "100.127.255.255",
            "100.100.100.200",
            // assignments, benchmarks, documentation
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "[2001:db8::1]",
            "[2001:2::1]",
            "[2001:10::1]",
            "[2001:20::1]",
            "[3fff::1]",
            "[100::1]",
            "[5f00::1]",
            // translated
            "[64:ff9b::127.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b::8.8.8.8]",
            "[64:ff9b:1::10.0.0.1]",
            "[2002:7f00:1::]",
            "[2002:a9fe:a9fe::1]",
            "[2001::1]",
            "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
            // multicast, reserved, broadcast
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "[ff02::1]",
            "[ff0e::1]",
        ] {
            let url = format!("https://{host}/hook");
            assert_eq!(
                check(&url),
                Err(Forbidden("the URL must have a public address")),
                "{url}"
            );
        }
    }

    #[test]
    fn urls_with_public_addresses_and_with_names_are_accepted() {
        for host in [
            "8.8.8.8",
            "0x08080808",
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "[2606:4700:4700::1111]",
            "[2001:4860:4860::8888]",
            "[2a00:1450:4001:82f::200e]",
            "[::ffff:8.8.8.8]",
            "hooks.example.com",
            "localhost",
            "xn--mnchen-3ya.example",
            "[2001:200::1]",
        ] {
            let url = format!("https://{host}/hook");
            assert_eq!(check(&url), Ok(()), "{url}");
        }
    }

    #[test]
    fn only_https_and_known_ports_are_accepted() {
        for (url, ok) in [
            ("https://example.com", true),
            ("https://example.com:443/", true),
            ("https://example.com:8443/", true),
            ("https://user:secret@example.com/", true),
            ("https://example.com:22/", false),
            ("https://example.com:4222/", false),
            ("https://example.com:0/", false),
            ("http://example.com/", false),
            ("http://example.com:443/", false),
            ("ftp://example.com/", false),
            ("file:///etc/passwd", false),
            ("gopher://example.com:443/", false),
            ("data:text/plain,x", false),
        ] {
            assert_eq!(check(url).is_ok(), ok, "{url}");
        }
    }

    #[test]
    fn listed_networks_may_be_reached_and_no_others() {
        let guard = guard(vec![443], &["10.1.0.0/16", "fd00:1::/32", "64:ff9b::/96"], nobody());
        for (address, allowed) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd00:1::5", true),
            ("fd00:2::5", false),
            ("64:ff9b::8.8.8.8", true),
            ("64:ff9b::10.1.2.3", true),
            ("64:ff9b::169.254.169.254", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(guard.allows(address.parse().unwrap()), allowed, "{address}");
        }
    }

    /// Answers every request with 204, and counts connections.
    async fn receiver(address: &str, port: u16) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind((address, port)).await.unwrap();
        let (port, connections) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let counter = connections.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let _read = stream.read(&mut request).await.unwrap();
                stream
                    .write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                    .await
                    .unwrap();
            }
        });
        (port, connections)
    }

    fn https_of(guard: &Guard) -> Https {
        let common = Common {
            endpoints: endpoints::Settings::default(),
            receivers: guard.clone(),
            clock: Clock::system(),
        };
        Https::with(guard.client(None, Duration::from_secs(2)).unwrap(), &common)
    }

    async fn ask(guard: &Guard, url: &str) -> (Result<u16, Outcome>, Progress) {
        let https = https_of(guard);
        let request = https.post(url.parse().unwrap()).build().unwrap();
        let mut progress = Progress::none(&"".into());
        let answer = https.exchange(request, &mut progress).await;
        (answer.map(|answer| answer.status), progress)
    }

    /// 127.0.0.2 stands for a public address, because its network is listed; 127.0.0.1 for a private one.
    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_the_second_time_reaches_nothing() {
        let (port, public) = receiver("127.0.0.2", 0).await;
        let (_, private) = receiver("127.0.0.1", port).await;
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let lookup: Lookup = Arc::new(move |_| {
            let address = if counter.fetch_add(1, Ordering::SeqCst) == 0 {
                "127.0.0.2"
            } else {
                "127.0.0.1"
            };
            Box::pin(async move { Ok(vec![address.parse().unwrap()]) })
        });
        let guard = guard(vec![port], &["127.0.0.2/32"], lookup);
        let url = format!("http://rebind.example:{port}/");
        assert_eq!(ask(&guard, &url).await.0, Ok(204));
        for _ in 0..3 {
            let (answer, progress) = ask(&guard, &url).await;
            assert_eq!(answer, Err(Outcome::rejected("forbidden_address")));
            assert!(!progress.sent);
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!((count(&asked), count(&public), count(&private)), (4, 1, 0));
    }

    /// Answers with the number of the connection, and keeps it open.
    async fn keeping_receiver() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                    }
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn a_private_host_is_reached_by_the_app_for_which_it_is_listed_and_by_no_other() {
        let port = keeping_receiver().await;
        let lookup: Lookup = Arc::new(|_| Box::pin(async { Ok(vec!["127.0.0.1".parse().unwrap()]) }));
        let guard = guard(vec![port], &[], lookup);
        let app = |id: &str| -> AppId { id.parse().unwrap() };
        let [shop, bank] = [app("shop"), app("bank")];
        let hosts = ["hooks.internal", "127.0.0.1"].map(|host| host.parse().unwrap());
        let common = Common {
            endpoints: endpoints::Settings::default(),
            receivers: guard.clone(),
            clock: Clock::system(),
        };
        let within = Duration::from_secs(2);
        let public = Https::with(guard.client(None, within).unwrap(), &common);
        let private = Https::with(guard.private_client(None, within).unwrap(), &common);
        let ask = async |app: &AppId, host: &str| {
            let url: Url = format!("http://{host}:{port}/").parse().unwrap();
            let https = match guard.way(app, &url) {
                Ok(Way::Public) => &public,
                Ok(Way::Private) => &private,
                Err(_) => return Err(Outcome::rejected("forbidden_address")),
            };
            let mut progress = Progress::none(&"".into());
            let answer = https.exchange(https.post(url).build().unwrap(), &mut progress).await;
            answer.map(|answer| answer.status)
        };
        let forbidden = Err(Outcome::rejected("forbidden_address"));
        let everywhere = ["hooks.internal", "127.0.0.1", "2130706433", "[::ffff:127.0.0.1]"];
        for host in everywhere {
            assert_eq!(ask(&shop, host).await, forbidden, "{host}");
        }
        guard.allow(&shop, &hosts);
        for host in everywhere {
            assert_eq!(ask(&shop, host).await, Ok(204), "{host}");
            // Also while a connection to it is kept.
            assert_eq!(ask(&bank, host).await, forbidden, "{host}");
        }
        for host in ["other.internal", "hooks.internal.", "a.hooks.internal", "127.0.0.2"] {
            assert_eq!(ask(&shop, host).await, forbidden, "{host}");
        }
        guard.allow(&shop, &[]);
        for host in everywhere {
            assert_eq!(ask(&shop, host).await, forbidden, "{host}");
        }
    }

    #[tokio::test]
    async fn a_listed_name_keeps_to_the_ports_and_leads_to_no_metadata() {
        let lookup: Lookup = Arc::new(|_| {
            let found = [
                "169.254.169.254",
                "0.0.0.0",
                "fe80::1",
                "::",
                "64:ff9b::a9fe:a9fe",
                "fd00:ec2::254",
            ];
            Box::pin(async move { Ok(found.map(|address| address.parse().unwrap()).to_vec()) })
        });
        let guard = guard(vec![443], &[], lookup);
        let shop: AppId = "shop".parse().unwrap();
        guard.allow(&shop, &["hooks.internal".parse().unwrap()]);
        let way = |url: &str| guard.way(&shop, &url.parse().unwrap());
        assert_eq!(way("https://hooks.internal/"), Ok(Way::Private));
        assert!(way("https://hooks.internal:4222/").is_err() && way("ftp://hooks.internal:443/").is_err());
        let client = guard.private_client(None, Duration::from_secs(2)).unwrap();
        let error = client.get("http://hooks.internal:443/").send().await.unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        assert!(
            causes.into_iter().any(<dyn std::error::Error>::is::<Forbidden>),
            "{error:?}"
        );
        for (address, may) in [
            ("10.0.0.1", true),
            ("127.0.0.1", true),
            ("fd00::1", true),
            ("8.8.8.8", true),
            ("::ffff:169.254.1.1", false),
        ] {
            assert_eq!(may_be_listed(address.parse().unwrap()), may, "{address}");
        }
    }

    #[tokio::test]
    async fn private_addresses_among_public_ones_are_left_out() {
        let (port, public) = receiver("127.0.0.2", 0).await;
        let (_, private) = receiver("127.0.0.1", port).await;
        let lookup: Lookup = Arc::new(|_| {
            let found = ["127.0.0.1", "::1", "127.0.0.2", "169.254.169.254"];
            Box::pin(async move { Ok(found.map(|address| address.parse().unwrap()).to_vec()) })
        });
        let guard = guard(vec![port], &["127.0.0.2/32"], lookup);
        for _ in 0..5 {
            assert_eq!(ask(&guard, &format!("http://mixed.example:{port}/")).await.0, Ok(204));
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!((count(&public), count(&private)), (5, 0));
    }

    /// With the system's own resolver.
    #[tokio::test]
    async fn localhost_is_refused_when_it_is_resolved() {
        let (port, connections) = receiver("127.0.0.1", 0).await;
        let guard = Guard::new(Settings {
            ports: vec![port],
            private: Vec::new(),
            http: true,
        });
        let (answer, progress) = ask(&guard, &format!("http://localhost:{port}/")).await;
        assert_eq!(answer, Err(Outcome::rejected("forbidden_address")));
        assert!(!progress.sent && connections.load(Ordering::SeqCst) == 0);
    }

    #[tokio::test]
    async fn a_request_that_was_not_sent_is_not_in_doubt() {
        let unused = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let guard = guard(vec![unused], &["127.0.0.0/8"], nobody());
        let (answer, progress) = ask(&guard, &format!("http://127.0.0.1:{unused}/")).await;
        assert_eq!(answer, Err(Outcome::endpoint("connect", None)));
        assert!(!progress.sent && progress.endpoint.ends_with(&format!(":{unused}")));
        let nowhere = format!("http://nowhere.example:{unused}/");
        let (answer, progress) = ask(&guard, &nowhere).await;
        assert!(matches!(answer, Err(Outcome::EndpointTrouble { .. })), "{answer:?}");
        assert!(!progress.sent);
        // It is accepted, and closed without an answer.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let (answer, progress) = ask(&guard, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(answer, Err(Outcome::ambiguous("connection_lost")));
        assert!(progress.sent);
    }

    #[tokio::test]
    async fn a_long_body_is_cut_and_a_redirect_is_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let long = |bytes: usize| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n");
            head + &"x".repeat(bytes)
        };
        tokio::spawn(async move {
            let answers = [
                "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
                long(MAX_ANSWER_BYTES + 1),
                long(MAX_ANSWER_BYTES),
            ];
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _read = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let guard = guard(vec![port], &["127.0.0.0/8"], nobody());
        let https = https_of(&guard);
        let mut answers = Vec::new();
        for _ in 0..3 {
            let url = format!("http://127.0.0.1:{port}/").parse().unwrap();
            let request = https.post(url).build().unwrap();
            let mut progress = Progress::none(&"".into());
            let answer = https.exchange(request, &mut progress).await.unwrap();
            assert_eq!(progress.status, Some(answer.status));
            answers.push((answer.status, answer.body.map(|body| body.len())));
        }
        assert_eq!(answers, [(302, Some(0)), (200, None), (200, Some(MAX_ANSWER_BYTES))]);
    }
}
