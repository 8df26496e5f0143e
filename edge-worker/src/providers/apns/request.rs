//! One push as an HTTP/2 request (Apple: Sending notification requests to APNs).

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::AUTHORIZATION,
    uri::{Authority, PathAndQuery, Scheme},
};
use shared::{
    id::DeliveryId,
    provider::{Provider, apns},
};

use super::{
    Device,
    config::{Account, topic_of_address},
};
use crate::providers::Attempt;

static APNS_ID: HeaderName = HeaderName::from_static("apns-id");
static APNS_TOPIC: HeaderName = HeaderName::from_static("apns-topic");
static APNS_PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
static APNS_PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
static APNS_EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
static APNS_COLLAPSE_ID: HeaderName = HeaderName::from_static("apns-collapse-id");

/// The request for `attempt`.
///
/// # Errors
/// The reason that APNs would give, if a header or the path cannot be formed.
pub(super) fn request(
    account: &Account,
    attempt: &Attempt<'_>,
    device: &Device<'_>,
    authority: &Authority,
    authorization: &HeaderValue,
) -> Result<Request<Bytes>, &'static str> {
    let push = device.push;
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(AUTHORIZATION, authorization.clone());
    headers.insert(&APNS_TOPIC, topic_of(account, device).ok_or("BadTopic")?);
    headers.insert(
        &APNS_PUSH_TYPE,
        HeaderValue::from_static(push.apns_push_type().as_str()),
    );
    headers.insert(&APNS_PRIORITY, priority(push.apns_priority()));
    headers.insert(&APNS_ID, apns_id(attempt.delivery));
    // 0 means that APNs tries once and stores nothing.
    let expiration = if push.ttl_s() == 0 {
        0
    } else {
        attempt.expires_at.as_second().max(1)
    };
    headers.insert(&APNS_EXPIRATION, HeaderValue::from(expiration));
    headers.insert(
        &APNS_COLLAPSE_ID,
        collapse_id(&attempt.message.collapse_id(push)).ok_or("BadCollapseId")?,
    );

    let body = attempt.message.rendition(Provider::Apns, || apns::render(push).into());
    let mut request = Request::new(body.clone());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri(authority, device.token).ok_or("BadDeviceToken")?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn topic_of(account: &Account, device: &Device<'_>) -> Option<HeaderValue> {
    let push = device.push;
    let kind = push.apns_push_type();
    if let Some(chosen) = push.apns.as_ref().and_then(|apns| apns.topic.as_deref()) {
        return HeaderValue::from_str(chosen).ok();
    }
    match device.topic {
        Some(topic) if topic != account.bundle => topic_of_address(topic, kind),
        _ => Some(account.topic(kind)),
    }
}

fn priority(priority: u8) -> HeaderValue {
    match priority {
        10 => HeaderValue::from_static("10"),
        5 => HeaderValue::from_static("5"),
        other => HeaderValue::from(u16::from(other)),
    }
}

/// Keeps a value that is not repeated out of HPACK's table, where it would displace repeated ones. This saves a quarter
/// of the cost of a push, and Apple advises it. The flag "never indexed" is meant for secrets, but has this effect.
fn unrepeated(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

fn collapse_id(id: &str) -> Option<HeaderValue> {
    let id = a2::CollapseId::new(id).ok()?;
    HeaderValue::from_str(id.value).ok().map(unrepeated)
}

fn apns_id(delivery: DeliveryId) -> HeaderValue {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    delivery.0.hyphenated().encode_lower(&mut text);
    unrepeated(HeaderValue::from_bytes(&text).expect("a UUID is ASCII"))
}

fn uri(authority: &Authority, token: &str) -> Option<Uri> {
    const PATH: &str = "/3/device/";
    let mut path = Vec::with_capacity(PATH.len() + token.len());
    path.extend_from_slice(PATH.as_bytes());
    path.extend_from_slice(token.as_bytes());
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(path)).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use shared::{
        address::Target,
        clock::Clock,
        content::push::{Priority, Push},
        job::Job,
        provider::apns::{self, Credential, Override, PushType},
        testing,
    };

    use super::*;
    use crate::providers::{
        EndpointSettings, Message, ReceiverSettings, Renditions,
        apns::{Apns, Settings},
        carrier::Common,
        transport::guard::Guard,
    };

    const KEY: &str = include_str!("../testdata/p256.pem");

    fn job(push: Push) -> Job {
        let accepted_at = Timestamp::from_second(1_800_000_000).unwrap();
        testing::job(&"shop".parse().unwrap(), "order", push, accepted_at)
    }

    fn requested(push: Push, adjust: impl FnOnce(&mut apns::Target)) -> Result<Request<Bytes>, &'static str> {
        let settings = Settings {
            ca_file: None,
            ..Settings::default()
        };
        let common = Common {
            endpoints: EndpointSettings::default(),
            receivers: Guard::new(ReceiverSettings::default()),
            clock: Clock::system(),
        };
        let apns = Apns::connect(&settings, &common).unwrap();
        let account = apns.open(&Credential {
            team_id: "TEAM123456".into(),
            key_id: "KEY1234567".into(),
            topic: "com.example.shop".into(),
            private_key: KEY.to_owned().into(),
        });
        let job = job(push);
        let mut address = testing::address(&job.app, Provider::Apns, "BEEF");
        if let Target::Apns(target) = &mut address.target {
            adjust(target);
        }
        let job = Arc::new(job);
        let message = Message::new(job.clone(), Renditions::default());
        let attempt = Attempt {
            app: &job.app,
            address: &address,
            delivery: job.delivery(address.id),
            number: 1,
            message: &message,
            expires_at: job.expires_at(),
        };
        let authority = Authority::from_static("api.push.apple.com");
        request(
            &account.unwrap(),
            &attempt,
            &Device::of(&attempt).unwrap(),
            &authority,
            &HeaderValue::from_static("bearer x"),
        )
    }

    fn shown(push: Push) -> Vec<(String, String)> {
        let request = requested(push, |_| {}).unwrap();
        let headers = request.headers().iter();
        headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect()
    }

    fn header(push: Push, name: &str) -> String {
        let headers = shown(push);
        headers.into_iter().find(|(found, _)| found == name).unwrap().1
    }

    fn alert() -> Push {
        Push {
            title: Some("Hello".into()),
            ..Push::default()
        }
    }

    fn of_type(kind: PushType) -> Push {
        Push {
            apns: Some(Override {
                push_type: Some(kind),
                ..Override::default()
            }),
            ..alert()
        }
    }

    #[test]
    fn an_alert_has_every_header_that_apple_asks_for() {
        let request = requested(alert(), |_| {}).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "https://api.push.apple.com/3/device/beef");
        let job = job(alert());
        let delivery = job.delivery(testing::address(&job.app, Provider::Apns, "beef").id);
        assert_eq!(
            shown(alert()),
            [
                ("authorization", "bearer x"),
                ("apns-topic", "com.example.shop"),
                ("apns-push-type", "alert"),
                ("apns-priority", "10"),
                ("apns-id", &delivery.to_string()),
                ("apns-expiration", "1802419200"),
                ("apns-collapse-id", &job.id.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn every_push_type_has_its_topic() {
        for (kind, suffix) in [
            (PushType::Alert, ""),
            (PushType::Background, ""),
            (PushType::Voip, ".voip"),
            (PushType::Complication, ".complication"),
            (PushType::Fileprovider, ".pushkit.fileprovider"),
            (PushType::Mdm, ""),
            (PushType::Liveactivity, ".push-type.liveactivity"),
            (PushType::Pushtotalk, ".voip-ptt"),
            (PushType::Location, ".location-query"),
            (PushType::Controls, ".push-type.controls"),
            (PushType::Widgets, ".push-type.widgets"),
        ] {
            assert_eq!(header(of_type(kind), "apns-push-type"), kind.as_str());
            assert_eq!(header(of_type(kind), "apns-topic"), format!("com.example.shop{suffix}"));
        }
    }

    #[test]
    fn the_override_and_then_the_address_choose_the_topic() {
        let other = |target: &mut apns::Target| target.topic = Some("com.example.kiosk".into());
        let request = requested(of_type(PushType::Voip), other).unwrap();
        assert_eq!(request.headers()["apns-topic"], "com.example.kiosk.voip");
        let mut push = of_type(PushType::Voip);
        push.apns.as_mut().unwrap().topic = Some("as.written".into());
        assert_eq!(requested(push, other).unwrap().headers()["apns-topic"], "as.written");
    }

    #[test]
    fn a_topic_that_has_the_suffix_of_the_push_type_gets_no_second_one() {
        for (registered, kind, sent) in [
            ("com.example.shop.voip", PushType::Voip, "com.example.shop.voip"),
            ("com.example.kiosk.voip", PushType::Voip, "com.example.kiosk.voip"),
            (
                "com.example.shop.voip-ptt",
                PushType::Pushtotalk,
                "com.example.shop.voip-ptt",
            ),
            (
                "com.example.shop.push-type.widgets",
                PushType::Widgets,
                "com.example.shop.push-type.widgets",
            ),
            ("com.example.shop", PushType::Voip, "com.example.shop.voip"),
            ("com.example.kiosk", PushType::Alert, "com.example.kiosk"),
        ] {
            let adjust = |target: &mut apns::Target| target.topic = Some(registered.into());
            let request = requested(of_type(kind), adjust).unwrap();
            assert_eq!(request.headers()["apns-topic"], sent, "{registered} {kind}");
        }
    }

    #[test]
    fn priority_expiration_and_collapse_id_follow_apples_rules() {
        let background = Push {
            silent: true,
            ..Push::default()
        };
        assert_eq!(header(background, "apns-priority"), "5");
        assert_eq!(
            header(
                Push {
                    priority: Priority::Normal,
                    ..alert()
                },
                "apns-priority"
            ),
            "5"
        );
        let least = Override {
            priority: Some(1),
            ..Override::default()
        };
        assert_eq!(
            header(
                Push {
                    apns: Some(least),
                    ..alert()
                },
                "apns-priority"
            ),
            "1"
        );
        assert_eq!(
            header(
                Push {
                    ttl: Some(0),
                    ..alert()
                },
                "apns-expiration"
            ),
            "0",
            "tried once, not stored"
        );
        assert_eq!(
            header(
                Push {
                    ttl: Some(60),
                    ..alert()
                },
                "apns-expiration"
            ),
            "1800000060"
        );
        assert_eq!(
            header(
                Push {
                    collapse_key: Some("score".into()),
                    ..alert()
                },
                "apns-collapse-id"
            ),
            "score"
        );
    }

    #[test]
    fn an_invalid_header_is_refused_with_apples_reason() {
        let long = Push {
            collapse_key: Some("x".repeat(65)),
            ..alert()
        };
        assert_eq!(requested(long, |_| {}).err(), Some("BadCollapseId"));
        let broken = |target: &mut apns::Target| target.topic = Some("two\nlines".into());
        assert_eq!(requested(alert(), broken).err(), Some("BadTopic"));
    }
}
