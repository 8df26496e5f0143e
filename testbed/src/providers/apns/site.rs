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
use super::token::{Checker, Verified, check_age};
use super::{Environment, Reason};
use crate::providers::devices::Registration;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, Site, TRACEPARENT, text, typed};
use crate::providers::script::Ruling;
use crate::providers::simulator::Records;

/// The state that all connections of an APNs simulator share.
#[derive(Debug)]
pub(crate) struct ApnsSite {
    pub(super) environment: Environment,
    pub(super) bundles: Option<Vec<String>>,
    pub(super) tokens: Checker,
    pub(super) clock: Clock,
    pub(super) records: Arc<Records>,
}

/// The state of a connection to APNs.
#[derive(Debug)]
pub(crate) struct Session {
    connection: u64,
    /// The header that was checked last, so that a repeated header costs only a comparison.
    last: Option<(HeaderValue, Arc<Verified>)>,
    /// The provider token to which the connection is bound.
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
        // The provider token is checked first, because it unlocks the connection. The result is used later.
        let sender = self.sender(session, &head.headers, now_ms);
        let ruling = check_head(head, id_check)
            .and_then(|checked| self.check(&checked, sender, &body).map(|()| checked))
            .map(|checked| self.records.script.rule(checked.token));

        let decision = match ruling {
            Ok(None) => Decision::accepted(),
            Ok(Some(ruling)) => Decision::ruled(ruling),
            Err(reason) => Decision::refused(reason),
        };
        let reason = decision.reason.as_deref();
        self.records
            .log
            .record(session.connection, decision.delivered.then_some(id), reason, || {
                push(session.connection, head, &id_header, body, &decision, now_ms)
            });
        self.reply(id_header, &decision, now_ms)
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
        check_age(&verified, now_ms)?;
        match &session.bound {
            Some(bound) if bound.team != verified.team => return Err(Reason::Forbidden),
            Some(bound) if !bound.signer.related(&verified.signer) => {
                return Err(Reason::UnrelatedKeyIdInToken);
            }
            Some(_) => {}
            None => {
                let is_other = |environment| environment != self.environment;
                if verified.signer.environment.is_some_and(is_other) {
                    return Err(Reason::BadEnvironmentKeyIdInToken);
                }
                session.bound = Some(Arc::clone(&verified));
            }
        }
        Ok(verified)
    }

    /// Checks the rules that need more than the head: registration, provider token and payload.
    fn check(&self, checked: &Checked<'_>, sender: Result<Arc<Verified>, Reason>, body: &[u8]) -> Result<(), Reason> {
        match self.records.devices.look_up(checked.token, checked.topic) {
            Registration::Registered => {}
            Registration::OtherOwner => return Err(Reason::DeviceTokenNotForTopic),
            Registration::Unknown => return Err(Reason::BadDeviceToken),
        }
        let sender = sender?;
        let contains_bundle = |topics: &Vec<String>| topics.iter().any(|topic| topic == checked.bundle);
        let restricted = sender.signer.topics.as_ref().or(self.bundles.as_ref());
        if !restricted.is_none_or(contains_bundle) {
            return Err(Reason::TopicDisallowed);
        }
        check_body(checked, body)
    }

    fn reply(&self, id: HeaderValue, decision: &Decision, now_ms: i64) -> Reply {
        let reply = if let Some(reason) = &decision.reason {
            let mut headers = typed("application/json");
            headers.insert(&request::APNS_ID, id);
            let timestamp = (decision.status == StatusCode::GONE).then(|| {
                let ruled = decision.ruling.as_ref().and_then(|ruling| ruling.answer.timestamp_ms);
                ruled.unwrap_or(now_ms)
            });
            let body = match timestamp {
                Some(timestamp) => json!({ "reason": reason, "timestamp": timestamp }).to_string(),
                None => json!({ "reason": reason }).to_string(),
            };
            Reply::new(decision.status, headers, body.into())
        } else {
            let mut headers = HeaderMap::with_capacity(2);
            headers.insert(&request::APNS_ID, id);
            if self.environment == Environment::Development {
                headers.insert(&request::APNS_UNIQUE_ID, request::new_id().0);
            }
            Reply::new(decision.status, headers, Bytes::new())
        };
        match &decision.ruling {
            Some(ruling) => reply.ruled(ruling, now_ms),
            None => reply,
        }
    }
}

/// The decision on a request.
struct Decision {
    status: StatusCode,
    reason: Option<String>,
    delivered: bool,
    ruling: Option<Ruling>,
}

impl Decision {
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
        let known = answer.reason.as_deref().and_then(Reason::parse);
        Self {
            status: answer.status_or(known.map(Reason::status)),
            reason: answer.reason.clone(),
            delivered: answer.delivers(),
            ruling: Some(ruling),
        }
    }
}

fn push(
    connection: u64,
    head: &Parts,
    id: &HeaderValue,
    payload: Bytes,
    decision: &Decision,
    at_ms: i64,
) -> RecordedPush {
    let header = |name| text(&head.headers, name).map(str::to_owned);
    let path = head.uri.path();
    RecordedPush {
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
        delivered: decision.delivered,
        status: decision.status.as_u16(),
        reason: decision.reason.clone(),
    }
}
