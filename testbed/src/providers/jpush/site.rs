//! How the simulator of JPush answers one request (JPush: Push API v3).

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, request::Parts};
use serde_json::{Value, json};
use shared::provider::Provider;
use uuid::Uuid;

use crate::providers::{
    api::{Api, Refusal, digest},
    devices::{Devices, Registration},
    log::RecordedPush,
    reply::{Reply, is_basic},
};

/// Longest notification and longest message in bytes, together (JPush: 4000).
const CONTENT_BYTES_MAX: usize = 4000;

/// Longest time to live in seconds: ten days.
const LIFE_MAX_S: u64 = 864_000;

/// An application at JPush.
#[derive(Debug)]
pub struct JPushApi {
    pub(super) app_key: String,
    pub(super) master_secret: String,
    /// Whether only `cid`s are taken that were issued.
    pub(super) only_issued: bool,
    /// By `cid`, the id of the message that was taken with it; none if it was issued only.
    pub(super) cids: RwLock<HashMap<String, Option<String>>>,
}

/// A request.
#[derive(Debug)]
pub struct Message {
    body: Value,
    /// Whether it is a dry run.
    is_tried: bool,
}

/// The HTTP status with which JPush returns a code.
fn status_of(code: &str) -> StatusCode {
    match code {
        "1004" => StatusCode::UNAUTHORIZED,
        "2003" => StatusCode::FORBIDDEN,
        "1001" => StatusCode::METHOD_NOT_ALLOWED,
        "2002" => StatusCode::TOO_MANY_REQUESTS,
        "1000" => StatusCode::INTERNAL_SERVER_ERROR,
        "1030" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl Api for JPushApi {
    const PROVIDER: Provider = Provider::JPush;

    type Message = Message;

    fn generate() -> Self {
        Self {
            app_key: format!("{:024x}", rand::random::<u64>()),
            master_secret: format!("{:024x}", rand::random::<u64>()),
            only_issued: false,
            cids: RwLock::default(),
        }
    }

    /// A code: four digits.
    fn is_reason(reason: &str) -> bool {
        reason.len() == 4 && reason.bytes().all(|byte| byte.is_ascii_digit())
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Message, Reply> {
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/v3/push/cid") => Err(self.issue(head)),
            (&Method::POST, path @ ("/v3/push" | "/v3/push/validate")) => Ok(Message {
                body: serde_json::from_slice(body).unwrap_or_default(),
                is_tried: path.ends_with("validate"),
            }),
            (_, "/v3/push") => Err(refusal("1001", None)),
            _ => Err(Reply::not_found()),
        }
    }

    fn describe(&self, Message { body, .. }: &Message) -> RecordedPush {
        let at = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        RecordedPush {
            token: at("/audience/registration_id/0").unwrap_or_default(),
            collapse_id: at("/options/apns_collapse_id"),
            topic: at("/cid"),
            expiration: body.pointer("/options/time_to_live").map(Value::to_string),
            ..RecordedPush::default()
        }
    }

    /// Requests without a `cid` carry no id, so equal ones count as the same.
    fn identity(&self, Message { body, .. }: &Message, _: &RecordedPush) -> u128 {
        digest(body.to_string())
    }

    fn check(&self, head: &Parts, message: &Message, devices: &Devices) -> Result<(), Refusal> {
        if !is_basic(&head.headers, &self.app_key, &self.master_secret) {
            return Err(Refusal::new("1004", refusal("1004", None)));
        }
        if !self.takes_cid(message) {
            let body = json!({ "error": { "code": 1003, "message": "cid is invalid" } });
            return Err(Refusal::new(
                "1003",
                limited(Reply::json(StatusCode::BAD_REQUEST, &body)),
            ));
        }
        check_message(message)
            .and_then(|()| self.check_audience(message, devices))
            .map_err(|code| Refusal::new(code, refusal(code, None)))
    }

    fn new_id() -> String {
        rand::random::<u32>().to_string()
    }

    /// A dry run delivers nothing, nor does a `cid` that was used.
    fn former(&self, message: &Message) -> Option<String> {
        if message.is_tried {
            return Some(Self::new_id());
        }
        let cids = self.cids.read().unwrap_or_else(PoisonError::into_inner);
        cids.get(message.body["cid"].as_str()?)?.clone()
    }

    fn remember(&self, message: &Message, id: &str) {
        if let Some(cid) = message.body["cid"].as_str() {
            let mut cids = self.cids.write().unwrap_or_else(PoisonError::into_inner);
            cids.insert(cid.to_owned(), Some(id.to_owned()));
        }
    }

    fn accept(&self, _: &Message, id: &str, status: Option<StatusCode>) -> Reply {
        let body = json!({ "sendno": "0", "msg_id": id });
        limited(Reply::json(status.unwrap_or(StatusCode::OK), &body))
    }

    fn refuse(&self, _: &Message, code: &str, status: Option<StatusCode>) -> Reply {
        refusal(code, status)
    }
}

impl JPushApi {
    /// Issues `cid`s: `{appkey}-{uuid}`.
    fn issue(&self, head: &Parts) -> Reply {
        if !is_basic(&head.headers, &self.app_key, &self.master_secret) {
            return refusal("1004", None);
        }
        let query = head.uri.query().unwrap_or_default();
        let mut fields = url::form_urlencoded::parse(query.as_bytes());
        let count = fields
            .find(|(name, _)| name == "count")
            .and_then(|(_, count)| count.parse().ok());
        let mut cids = self.cids.write().unwrap_or_else(PoisonError::into_inner);
        let issued: Vec<String> = (0..count.unwrap_or(1_usize).clamp(1, 1000))
            .map(|_| format!("{}-{}", self.app_key, Uuid::new_v4()))
            .inspect(|cid| {
                cids.insert(cid.clone(), None);
            })
            .collect();
        limited(Reply::json(StatusCode::OK, &json!({ "cidlist": issued })))
    }

    /// Whether the `cid` of a request, if it has one, may be used.
    fn takes_cid(&self, message: &Message) -> bool {
        let Some(cid) = message.body.get("cid") else {
            return true;
        };
        let cid = cid.as_str().unwrap_or_default();
        let uuid = cid.strip_prefix(&self.app_key).and_then(|rest| rest.strip_prefix('-'));
        let is_one = uuid.is_some_and(|uuid| Uuid::try_parse(uuid).is_ok());
        let cids = self.cids.read().unwrap_or_else(PoisonError::into_inner);
        is_one && (!self.only_issued || cids.contains_key(cid))
    }

    fn check_audience(&self, message: &Message, devices: &Devices) -> Result<(), &'static str> {
        let audience = &message.body["audience"];
        if audience == "all" {
            return Ok(());
        }
        let ids = audience["registration_id"].as_array().ok_or("1003")?;
        let are_ids = ids.iter().all(|id| id.as_str().is_some_and(|id| !id.is_empty()));
        if !(1..=1000).contains(&ids.len()) || !are_ids {
            return Err("1003");
        }
        let is_known =
            |id: &Value| devices.look_up(id.as_str().unwrap_or_default(), &self.app_key) == Registration::Registered;
        if ids.iter().any(is_known) { Ok(()) } else { Err("1011") }
    }
}

fn check_message(Message { body, .. }: &Message) -> Result<(), &'static str> {
    if !body.is_object() {
        return Err("1003");
    }
    if body["platform"].is_null() || body["audience"].is_null() {
        return Err("1002");
    }
    let platforms = match &body["platform"] {
        Value::String(all) => all == "all",
        Value::Array(some) => some
            .iter()
            .all(|one| ["android", "ios", "quickapp", "hmos"].iter().any(|known| one == known)),
        _ => false,
    };
    let (notification, message) = (&body["notification"], &body["message"]);
    if notification.is_null() && message.is_null() {
        return Err("1002");
    }
    let alerts = |platform: &str| {
        let own = &notification[platform];
        // Empty for Apple's devices: nothing is shown.
        own.is_null() || own["alert"].is_string() || own["alert"].is_object() || notification["alert"].is_string()
    };
    let is_whole = notification.as_object().is_some_and(|platforms| !platforms.is_empty());
    let shows = notification.is_null() || (is_whole && alerts("android") && alerts("ios"));
    let says = message.is_null()
        || message["msg_content"]
            .as_str()
            .is_some_and(|content| !content.is_empty());
    let ttl = &body["options"]["time_to_live"];
    let lives = ttl.is_null() || ttl.as_u64().is_some_and(|ttl| ttl <= LIFE_MAX_S);
    if !platforms || !shows || !says || !lives {
        return Err("1003");
    }
    if notification.to_string().len() + message.to_string().len() > CONTENT_BYTES_MAX {
        return Err("1005");
    }
    Ok(())
}

fn refusal(code: &str, status: Option<StatusCode>) -> Reply {
    let body =
        json!({ "error": { "code": code.parse::<u32>().unwrap_or_default(), "message": "The request was refused" } });
    limited(Reply::json(status.unwrap_or_else(|| status_of(code)), &body))
}

/// With the headers that say how many requests are left in this minute.
fn limited(mut reply: Reply) -> Reply {
    let headers = reply.response.headers_mut();
    for (name, value) in [
        ("x-rate-limit-limit", "600"),
        ("x-rate-limit-remaining", "599"),
        ("x-rate-limit-reset", "60"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}
