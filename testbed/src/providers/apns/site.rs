//! How the APNs simulator answers one request.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::request::Parts;
use serde_json::json;
use shared::clock::Clock;
use shared::provider::Provider;

use super::request::{self, Checked, check_body, check_head, message_id};
use super::token::{Checker, Verified, current};
use super::{Environment, Reason};
use crate::providers::devices::Known;
use crate::providers::log::Push;
use crate::providers::reply::{Reply, Site, TRACEPARENT, text, typed};
use crate::providers::script::Ruling;
use crate::providers::simulator::Records;

/// What all connections of an APNs simulator share.
#[derive(Debug)]
pub(crate) struct ApnsSite {
    pub(super) environment: Environment,
    pub(super) bundles: Option<Vec<String>>,
    pub(super) tokens: Checker,
    pub(super) clock: Clock,
    pub(super) records: Arc<Records>,
}

/// What APNs remembers about a connection.
#[derive(Debug)]
pub(crate) struct Session {
    connection: u64,
    /// The header that was checked last, so that a repeated one costs a comparison.
    last: Option<(HeaderValue, Arc<Verified>)>,
    /// The provider token the connection is bound to.
    bound: Option<Arc<Verified>>,
}

impl Site for ApnsSite {
    const ALPN: &'static [&'static [u8]] = &[b"h2"];

    type Session = Session;

    fn open(&self, connection: u64) -> Session {
        Session {
            connection,
            last: None,
            bound: None,
        }
    }

    fn unlocked(&self, session: &Session) -> bool {
        session.bound.is_some()
    }

    fn records(&self) -> &Arc<Records> {
        &self.records
    }

    fn answer(&self, session: &mut Session, head: &Parts, body: Bytes) -> Reply {
        let now_ms = self.clock.now().as_millisecond();
        let (id_header, id, id_check) = message_id(&head.headers);
        // The provider token is looked at first, because it is what unlocks the connection; its verdict waits.
        let sender = self.sender(session, &head.headers, now_ms);
        let ruling = check_head(head, id_check)
            .and_then(|checked| self.check(&checked, sender, &body).map(|()| checked))
            .map(|checked| self.records.script.rule(checked.token));

        let verdict = match ruling {
            Ok(None) => Verdict::accepted(),
            Ok(Some(ruling)) => Verdict::ruled(ruling),
            Err(reason) => Verdict::refused(reason),
        };
        let reason = verdict.reason.as_deref();
        self.records
            .log
            .record(session.connection, verdict.delivered.then_some(id), reason, || {
                push(session.connection, head, &id_header, body, &verdict, now_ms)
            });
        self.reply(id_header, &verdict, now_ms)
    }
}

impl ApnsSite {
    fn sender(&self, session: &mut Session, headers: &HeaderMap, now_ms: i64) -> Result<Arc<Verified>, Reason> {
        let header = headers.get(AUTHORIZATION).ok_or(Reason::MissingProviderToken)?;
        let verified = match &session.last {
            Some((last, verified)) if last == header => Arc::clone(verified),
            _ => {
                let verified = self.tokens.check(header.as_bytes(), now_ms)?;
                session.last = Some((header.clone(), Arc::clone(&verified)));
                verified
            }
        };
        current(&verified, now_ms)?;
        match &session.bound {
            Some(bound) if bound.team != verified.team => return Err(Reason::Forbidden),
            Some(bound) if !bound.signer.related(&verified.signer) => {
                return Err(Reason::UnrelatedKeyIdInToken);
            }
            Some(_) => {}
            None => {
                let wrong = |environment| environment != self.environment;
                if verified.signer.environment.is_some_and(wrong) {
                    return Err(Reason::BadEnvironmentKeyIdInToken);
                }
                session.bound = Some(Arc::clone(&verified));
            }
        }
        Ok(verified)
    }

    /// The rules that need more than the head: registration, provider token, payload.
    fn check(&self, checked: &Checked<'_>, sender: Result<Arc<Verified>, Reason>, body: &[u8]) -> Result<(), Reason> {
        match self.records.devices.look_up(checked.token, checked.bundle) {
            Known::Yes => {}
            Known::Elsewhere => return Err(Reason::DeviceTokenNotForTopic),
            Known::No => return Err(Reason::BadDeviceToken),
        }
        let sender = sender?;
        let lists = |topics: &Vec<String>| topics.iter().any(|topic| topic == checked.bundle);
        let restricted = sender.signer.topics.as_ref().or(self.bundles.as_ref());
        if !restricted.is_none_or(lists) {
            return Err(Reason::TopicDisallowed);
        }
        check_body(checked, body)
    }

    fn reply(&self, id: HeaderValue, verdict: &Verdict, now_ms: i64) -> Reply {
        let reply = if let Some(reason) = &verdict.reason {
            let mut headers = typed("application/json");
            headers.insert(&request::APNS_ID, id);
            let timestamp = (verdict.status == StatusCode::GONE).then(|| {
                let ruled = verdict.ruling.as_ref().and_then(|ruling| ruling.answer.timestamp_ms);
                ruled.unwrap_or(now_ms)
            });
            let body = match timestamp {
                Some(timestamp) => json!({ "reason": reason, "timestamp": timestamp }).to_string(),
                None => json!({ "reason": reason }).to_string(),
            };
            Reply::new(verdict.status, headers, body.into())
        } else {
            let mut headers = HeaderMap::with_capacity(2);
            headers.insert(&request::APNS_ID, id);
            if self.environment == Environment::Development {
                headers.insert(&request::APNS_UNIQUE_ID, request::new_id().0);
            }
            Reply::new(verdict.status, headers, Bytes::new())
        };
        match &verdict.ruling {
            Some(ruling) => reply.ruled(ruling, now_ms),
            None => reply,
        }
    }
}

/// What is decided about a request.
struct Verdict {
    status: StatusCode,
    reason: Option<String>,
    delivered: bool,
    ruling: Option<Ruling>,
}

impl Verdict {
    fn accepted() -> Self {
        Self {
            status: StatusCode::OK,
            reason: None,
            delivered: true,
            ruling: None,
        }
    }

    fn refused(reason: Reason) -> Self {
        Self {
            status: reason.status(),
            reason: Some(reason.as_str().to_owned()),
            delivered: false,
            ruling: None,
        }
    }

    fn ruled(ruling: Ruling) -> Self {
        let answer = &ruling.answer;
        let own = answer.reason.as_deref().and_then(Reason::parse);
        Self {
            status: answer.status_or(own.map(Reason::status)),
            reason: answer.reason.clone(),
            delivered: answer.delivers(),
            ruling: Some(ruling),
        }
    }
}

fn push(connection: u64, head: &Parts, id: &HeaderValue, payload: Bytes, verdict: &Verdict, at_ms: i64) -> Push {
    let header = |name| text(&head.headers, name).map(str::to_owned);
    let path = head.uri.path();
    Push {
        at_ms,
        provider: Provider::Apns.as_str(),
        connection,
        token: path.strip_prefix("/3/device/").unwrap_or(path).to_owned(),
        id: id.to_str().unwrap_or_default().to_owned(),
        collapse_id: header(&request::APNS_COLLAPSE_ID),
        topic: header(&request::APNS_TOPIC),
        push_type: header(&request::APNS_PUSH_TYPE),
        priority: header(&request::APNS_PRIORITY),
        expiration: header(&request::APNS_EXPIRATION),
        traceparent: header(&TRACEPARENT),
        payload,
        delivered: verdict.delivered,
        status: verdict.status.as_u16(),
        reason: verdict.reason.clone(),
    }
}
