//! Simulators of the push providers, faithful enough to develop, test and measure against.
//!
//! [`Apns`] speaks HTTP/2 over TLS as `api.push.apple.com` does, [`Fcm`] HTTP/2 and HTTP/1.1 over TLS as
//! `fcm.googleapis.com` and `oauth2.googleapis.com` do. Both validate what they are sent, answer with the provider's
//! own errors, can be told to misbehave by a [`Script`], and keep a [`Log`] of what reached them.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use testbed::providers::{Answer, Apns, ApnsConfig, Rule};
//!
//! let apns = Apns::start(ApnsConfig::default()).await?;
//! apns.script().add(Rule::token("dead").answer(Answer::reason("Unregistered")))?;
//! // ... push to https://localhost:{apns.addr().port()} with apns.key() and apns.ca_pem() ...
//! assert_eq!(apns.log().delivered_to("beef").len(), 1);
//! apns.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! What is not faithful is said where it is decided; the list is in `testbed/conformance/README.md`.

use std::net::SocketAddr;

mod admin;
pub mod apns;
mod clock;
mod devices;
pub mod fcm;
mod http1;
mod http2;
pub mod keys;
mod listener;
pub mod log;
mod reply;
pub mod script;
pub mod tls;
mod wire;

pub use admin::{Admin, Scripts};
pub use apns::{Apns, ApnsConfig};
pub(crate) use clock::now_ms;
pub use clock::now_s;
pub use devices::Devices;
pub use fcm::{Fcm, FcmConfig};
pub use keys::{ApnsKey, ServiceAccount};
pub use log::{Log, LogMode, Push, Stats};
pub use script::{Answer, RetryAfter, Rule, Script};
pub use tls::Authority;

/// Where clients reach what listens on `addr`, by a name or address that the certificate has.
pub fn reachable(addr: SocketAddr) -> String {
    if addr.ip().is_loopback() {
        format!("localhost:{}", addr.port())
    } else {
        addr.to_string()
    }
}
