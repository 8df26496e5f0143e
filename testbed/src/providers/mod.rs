//! Simulators of the providers, faithful enough for development, tests and measurements.
//!
//! [`Apns`] speaks HTTP/2 over TLS as `api.push.apple.com` does, [`Fcm`] HTTP/2 and HTTP/1.1 over TLS as
//! `fcm.googleapis.com` and `oauth2.googleapis.com` do, and so does [`WebPush`] as a push service of browsers. [`Hms`] is Huawei's, [`JPush`] Aurora's. [`Smtp`] is a mail
//! server that takes submissions, [`SendGrid`] and [`Mailchimp`] are the APIs of mail services, [`Twilio`] and [`Vonage`] take text
//! messages, [`Sns`] those and pushes, and [`Receivers`] webhooks. All validate the requests, answer with the provider's own errors, misbehave as a [`Script`]
//! defines, and keep a [`Log`] of the requests that reached them. Their common
//! part is a [`Simulator`]; [`Simulators`] has one for each provider. A further provider is a folder here with a
//! [`Simulation`], and an arm in [`Simulators::get`].
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
//! Known differences from the real providers are documented where they are decided, and listed in
//! `testbed/conformance/README.md`.

use std::net::SocketAddr;

mod admin;
mod api;
pub mod apns;
mod clock;
mod devices;
pub mod fcm;
mod form;
pub mod hms;
mod http1;
mod http2;
pub mod jpush;
mod listener;
pub mod log;
pub mod mailchimp;
mod reply;
pub mod script;
pub mod sendgrid;
mod simulator;
pub mod smtp;
pub mod sns;
pub mod tls;
pub mod twilio;
pub mod vonage;
pub mod web_push;
pub mod webhook;
mod wire;

pub use admin::{Admin, Scripts};
pub use api::{ApiConfig, ApiSimulator};
pub use apns::{Apns, ApnsConfig, ApnsKey};
pub(crate) use clock::now_ms;
pub use clock::now_s;
pub use devices::Devices;
pub use fcm::{Fcm, FcmConfig, ServiceAccount};
pub use hms::Hms;
pub use jpush::JPush;
pub use log::{Log, LogMode, RecordedPush, Stats};
pub use mailchimp::Mailchimp;
pub use script::{Answer, RetryAfter, Rule, Script};
pub use sendgrid::SendGrid;
pub use simulator::{Simulation, Simulator, Simulators};
pub use smtp::{Encryption, Manners, Smtp, SmtpConfig};
pub use sns::Sns;
pub use tls::Authority;
pub use twilio::Twilio;
pub use vonage::Vonage;
pub use web_push::{WebPush, WebPushConfig};
pub use webhook::Receivers;

/// The host and port by which clients reach a simulator that listens on `addr`. The host is one that the certificate names.
pub fn reachable(addr: SocketAddr) -> String {
    if addr.ip().is_loopback() {
        format!("localhost:{}", addr.port())
    } else {
        addr.to_string()
    }
}
