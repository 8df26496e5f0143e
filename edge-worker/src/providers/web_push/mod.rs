//! Web push: pushes to browsers by the push service that each of them chose.
//!
//! The rules are those of RFC 8030 (HTTP), RFC 8188 and RFC 8291 (encryption) and RFC 8292 (VAPID), and what Apple, Google,
//! Microsoft and Mozilla publish about their push services.

mod client;
mod config;
mod encrypt;
mod outcome;
mod request;
mod vapid;

use std::{
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use shared::{
    address::{Address, Target},
    content::push::Push,
    provider::{Provider, web_push},
};

pub use self::config::Settings;
use self::config::{SERVICES, is_within};
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::WebPush, config::Account};
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

/// What is sent, and to which browser.
#[derive(Debug, Clone, Copy)]
struct Browser<'a> {
    push: &'a Push,
    target: &'a web_push::Target,
}

impl<'a> Browser<'a> {
    /// `None` if the attempt is for another provider.
    fn of(attempt: &Attempt<'a>) -> Option<Self> {
        let Target::WebPush(target) = &attempt.address.target else {
            return None;
        };
        Some(Self {
            push: attempt.message.push()?,
            target,
        })
    }
}

impl Carrier for WebPush {
    const PROVIDER: Provider = Provider::WebPush;
    const TEMPLATE: &'static str = "POST /{subscription}";
    const ENVIRONMENTS: &'static [Option<&'static str>] = &[
        Some(SERVICES[0]),
        Some(SERVICES[1]),
        Some(SERVICES[2]),
        Some(SERVICES[3]),
    ];

    type Settings = Settings;
    type Credential = web_push::Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Self::connect(settings, common)
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: web_push::Credential) -> Result<Account, BadCredential> {
        self.open(credential)
    }

    fn name(account: &Account) -> String {
        account.vapid.name().to_owned()
    }

    fn environment(address: &Address) -> usize {
        service(host(address)).unwrap_or_default()
    }

    fn destination(address: &Address) -> Option<u64> {
        let host = host(address);
        service(host).is_none().then(|| {
            let mut hasher = DefaultHasher::new();
            host.hash(&mut hasher);
            hasher.finish()
        })
    }

    fn attempt(
        &self,
        account: &Account,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> impl Future<Output = Outcome> + Send {
        self.send(account, attempt, progress)
    }
}

/// The host of a subscription's endpoint, without port; empty for other addresses.
fn host(address: &Address) -> &str {
    let Target::WebPush(target) = &address.target else {
        return "";
    };
    let url = target.endpoint.reveal();
    let rest = url.strip_prefix("https://").unwrap_or(url);
    rest.split([':', '/', '?']).next().unwrap_or_default()
}

/// The index of the push service that `host` belongs to.
fn service(host: &str) -> Option<usize> {
    SERVICES.iter().position(|service| is_within(host, service))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use reqwest::Url;
    use shared::{
        clock::Clock,
        content::push::Push,
        provider::{
            Provider,
            web_push::{self, Credential, Target},
        },
    };

    use super::{WebPush, encrypt::encrypt, request::request, vapid::Vapid};
    use crate::providers::carrier::Carrier;

    #[test]
    fn every_service_and_every_other_host_has_breakers_of_its_own() {
        let app = "shop".parse().unwrap();
        let environment = |endpoint: &str| {
            let address = shared::testing::address(&app, Provider::WebPush, endpoint);
            match WebPush::destination(&address) {
                Some(_) => "own",
                None => WebPush::ENVIRONMENTS[WebPush::environment(&address)].unwrap(),
            }
        };
        for (endpoint, name) in [
            ("https://fcm.googleapis.com/fcm/send/a:b", "fcm.googleapis.com"),
            (
                "https://updates.push.services.mozilla.com/wpush/v2/a",
                "push.services.mozilla.com",
            ),
            ("https://web.push.apple.com/a", "push.apple.com"),
            (
                "https://wns2-par02p.notify.windows.com/w/?token=a",
                "notify.windows.com",
            ),
            ("https://push.example.net:8443/a", "own"),
            ("https://push.example.net/fcm.googleapis.com", "own"),
            ("https://push.example.net?.push.apple.com", "own"),
        ] {
            assert_eq!(environment(endpoint), name, "{endpoint}");
        }
    }

    /// Microseconds of CPU that the request of a push may take.
    const MOST_CPU_US: u64 = 150;

    /// Nanoseconds that this thread has run (Linux: `Documentation/scheduler/sched-stats.rst`).
    fn ran_ns() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    #[ignore = "a measurement, of an optimized build"]
    fn the_request_of_a_push_costs_little() {
        let credential = Credential {
            subject: "mailto:ops@example.com".into(),
            private_key: include_str!("../testdata/p256.pem").to_owned().into(),
        };
        let vapid = Vapid::new(credential.signing_key().unwrap(), credential.subject, Clock::system());
        let browser = PrivateKey::generate(&ECDH_P256).unwrap().compute_public_key().unwrap();
        let p256dh = BASE64_URL_SAFE_NO_PAD.encode(browser).parse().unwrap();
        let auth = "BTBZMqHH6r4Tts7J_aSIgg".parse().unwrap();
        let target = Target::new(
            "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",
            p256dh,
            auth,
        )
        .unwrap();
        let push = Push {
            title: Some("Your order has left the warehouse".into()),
            body: Some("x".repeat(300)),
            data: [("order".to_owned(), "42".to_owned())].into(),
            ..Push::default()
        };
        let send = || {
            let payload = web_push::render(&push, "9f1c7f5e-0000-4000-8000-000000000000");
            let endpoint: Url = target.endpoint.reveal().parse().unwrap();
            let token = vapid.header(&endpoint.origin().ascii_serialization()).unwrap();
            let body = encrypt(&target, &payload).unwrap();
            request(endpoint, token, &push, Duration::from_mins(1), body).unwrap()
        };
        for _ in 0..200 {
            send();
        }
        let (count, began) = (5000, ran_ns());
        for _ in 0..count {
            send();
        }
        let each_us = (ran_ns() - began) / count / 1000;
        assert!(each_us <= MOST_CPU_US, "{each_us} µs");
        eprintln!("{each_us} µs of CPU each");
    }
}
