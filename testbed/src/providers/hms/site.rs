//! How the simulator of Huawei Push Kit answers one request.

use std::{
    collections::HashMap,
    fmt,
    sync::{PoisonError, RwLock},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::AUTHORIZATION, request::Parts};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::provider::{
    Provider,
    hms::{MAX_LIFE_S, MAX_MESSAGE},
};

use crate::providers::{
    api::{Api, Refusal, digest},
    clock::now_s,
    devices::{Devices, Registration},
    form,
    log::RecordedPush,
    reply::{Reply, text},
};

/// Seconds for which an access token is valid.
const ACCESS_TOKEN_LIFE_S: i64 = 3600;

/// The audience of every token that a service account signs.
const AUDIENCE: &str = "https://oauth-login.cloud.huawei.com/oauth2/v3/token";

/// Why a token is illegal, by the words of v3.
const ILLEGAL: [&str; 6] = [
    "tokenFormatError",
    "noRight",
    "noPushTypeRight",
    "appinfoError",
    "countryNotSupport",
    "disableSendHuaweiMsgBecauseOfPenalty",
];

/// An account of Huawei's with one application.
pub struct HmsApi {
    pub(super) project_id: String,
    pub(super) client_id: String,
    pub(super) client_secret: String,
    pub(super) key_id: String,
    pub(super) sub_account: String,
    pub(super) key: KeyPair,
    verifier: DecodingKey,
    /// When each access token expires, seconds since the epoch.
    access: RwLock<HashMap<String, i64>>,
}

impl fmt::Debug for HmsApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HmsApi")
            .field("project_id", &self.project_id)
            .finish_non_exhaustive()
    }
}

/// A request to send.
#[derive(Debug)]
pub struct Message {
    /// `v1`, `v2` or `v3`.
    version: String,
    /// The client or project in the path.
    sender: String,
    body: Value,
    /// The header `push-type`.
    push_type: Option<String>,
}

impl Message {
    fn is_third(&self) -> bool {
        self.version == "v3"
    }

    fn tokens(&self) -> &Value {
        if self.is_third() {
            &self.body["target"]["token"]
        } else {
            &self.body["message"]["token"]
        }
    }

    fn first_token(&self) -> &str {
        self.tokens()[0].as_str().unwrap_or_default()
    }
}

/// The claims of a token that a service account signed.
#[derive(Clone, Deserialize)]
struct Claims {
    iat: i64,
    exp: i64,
}

impl Api for HmsApi {
    const PROVIDER: Provider = Provider::Hms;

    type Message = Message;

    fn generate() -> Self {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("this size is supported");
        let verifier = DecodingKey::from_rsa_pem(key.public_key_pem().as_bytes()).expect("the key is one of RSA");
        Self {
            project_id: rand::random::<u32>().to_string(),
            client_id: rand::random::<u32>().to_string(),
            client_secret: format!("{:032x}", rand::random::<u128>()),
            key_id: format!("{:032x}", rand::random::<u128>()),
            sub_account: rand::random::<u32>().to_string(),
            key,
            verifier,
            access: RwLock::default(),
        }
    }

    /// A code of eight digits, or why a token is illegal.
    fn is_reason(reason: &str) -> bool {
        ILLEGAL.contains(&reason) || (reason.len() == 8 && reason.bytes().all(|byte| byte.is_ascii_digit()))
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Message, Reply> {
        let parts: Vec<&str> = head.uri.path().split('/').skip(1).collect();
        match parts[..] {
            ["oauth2", "v2" | "v3", "token"] if head.method == Method::POST => Err(self.grant(body)),
            [version @ ("v1" | "v2" | "v3"), sender, "messages:send"] if head.method == Method::POST => Ok(Message {
                version: version.to_owned(),
                sender: sender.to_owned(),
                body: serde_json::from_slice(body).unwrap_or_default(),
                push_type: head
                    .headers
                    .get("push-type")
                    .and_then(|kind| kind.to_str().ok())
                    .map(str::to_owned),
            }),
            _ => Err(Reply::not_found()),
        }
    }

    fn describe(&self, message: &Message) -> RecordedPush {
        let at = |pointer: &str| {
            message.body.pointer(pointer).map(|value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
        };
        RecordedPush {
            token: message.first_token().to_owned(),
            topic: Some(message.sender.clone()),
            push_type: message.push_type.clone(),
            collapse_id: at("/message/android/notification/tag").or_else(|| at("/payload/notification/notifyId")),
            expiration: at("/message/android/ttl").or_else(|| at("/pushOptions/ttl")),
            priority: at("/message/android/urgency"),
            ..RecordedPush::default()
        }
    }

    /// Requests carry no id, so equal messages to one token count as the same.
    fn identity(&self, message: &Message, push: &RecordedPush) -> u128 {
        digest((&push.token, message.body.to_string()))
    }

    fn check(&self, head: &Parts, message: &Message, devices: &Devices) -> Result<(), Refusal> {
        self.check_message(&head.headers, message, devices)
            .map_err(|reason| Refusal::new(reason, self.refuse(message, reason, None)))
    }

    fn new_id() -> String {
        format!("{:024}", rand::random::<u64>())
    }

    fn accept(&self, _: &Message, id: &str, status: Option<StatusCode>) -> Reply {
        answer(status.unwrap_or(StatusCode::OK), "80000000", "Success", id)
    }

    fn refuse(&self, message: &Message, reason: &str, status: Option<StatusCode>) -> Reply {
        let id = Self::new_id();
        if ILLEGAL.contains(&reason) {
            let illegal = json!({ "success": 0, "failure": 1, "illegalTokens": { reason: [message.first_token()] } });
            return answer(status.unwrap_or(StatusCode::OK), "80300007", &illegal.to_string(), &id);
        }
        let usual = match reason {
            "80200001" | "80200003" => StatusCode::UNAUTHORIZED,
            "81000001" => StatusCode::INTERNAL_SERVER_ERROR,
            "80300007" | "80100000" => StatusCode::OK,
            _ => StatusCode::BAD_REQUEST,
        };
        answer(status.unwrap_or(usual), reason, "The request was refused", &id)
    }
}

impl HmsApi {
    /// Answers a request for an access token (RFC 6749, section 4.4). Huawei's errors are numbers.
    fn grant(&self, body: &[u8]) -> Reply {
        let form = form::read(body);
        let field = |name: &str| form.get(name).map(String::as_str);
        let refused = |error: u32, sub_error: u32| {
            let body = json!({ "error": error, "sub_error": sub_error, "error_description": "refused" });
            Reply::json(StatusCode::BAD_REQUEST, &body)
        };
        if field("grant_type") != Some("client_credentials") {
            return refused(1101, 20_001);
        }
        if field("client_id") != Some(&self.client_id) || field("client_secret") != Some(&self.client_secret) {
            return refused(1101, 20_041);
        }
        let token = format!("{:064x}", rand::random::<u128>());
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        access.insert(token.clone(), now_s() + ACCESS_TOKEN_LIFE_S);
        let body = json!({ "access_token": token, "expires_in": ACCESS_TOKEN_LIFE_S, "token_type": "Bearer" });
        Reply::json(StatusCode::OK, &body)
    }

    pub(super) fn expire_tokens(&self, at_s: i64) {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        access.values_mut().for_each(|expires| *expires = at_s - 1);
    }

    /// Checks a message. The error is Huawei's code, or why its token is illegal.
    fn check_message(&self, headers: &HeaderMap, message: &Message, devices: &Devices) -> Result<(), &'static str> {
        let bearer = text(headers, &AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let bearer = bearer.ok_or("80200001")?;
        if message.is_third() {
            self.check_signed(bearer)?;
        } else {
            let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
            match access.get(bearer) {
                None => return Err("80200001"),
                Some(expires) if *expires < now_s() => return Err("80200003"),
                Some(_) => {}
            }
        }
        let sender = if message.version == "v1" {
            &self.client_id
        } else {
            &self.project_id
        };
        if message.sender != *sender {
            return Err("80300002");
        }
        let tokens = message.tokens().as_array().map_or(0, Vec::len);
        if !(1..=1000).contains(&tokens) {
            return Err("80300010");
        }
        if message.is_third() {
            check_third(message)?;
        } else {
            check_first(message)?;
        }
        match devices.look_up(message.first_token(), if message.is_third() { "3" } else { "1" }) {
            Registration::Registered => Ok(()),
            // A token of the other generation is as wrong as one that does not exist.
            Registration::OtherOwner | Registration::Unknown if message.is_third() => Err("tokenFormatError"),
            Registration::OtherOwner | Registration::Unknown => Err("80300007"),
        }
    }

    /// Checks a token that a service account signed: PS256, at most an hour of life.
    fn check_signed(&self, token: &str) -> Result<(), &'static str> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| "80200001")?;
        let mut rules = Validation::new(Algorithm::PS256);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[&self.sub_account]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifier, &rules)
            .map_err(|_| "80200001")?
            .claims;
        if header.kid.as_deref() == Some(&self.key_id) && claims.exp - claims.iat <= 3600 {
            Ok(())
        } else {
            Err("80200001")
        }
    }
}

fn check_third(message: &Message) -> Result<(), &'static str> {
    let payload = &message.body["payload"];
    if payload.to_string().len() > MAX_MESSAGE {
        return Err("80300008");
    }
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let is_whole = match message.push_type.as_deref() {
        Some("0") => {
            let shown = &payload["notification"];
            ["category", "title", "body"].iter().all(|name| is_text(&shown[name]))
                && shown["clickAction"]["actionType"].is_u64()
                && shown
                    .get("notifyId")
                    .is_none_or(|id| id.as_u64().is_some_and(|id| id <= 0x7fff_ffff))
                && shown.get("badge").is_none_or(Value::is_object)
        }
        Some("6") => payload["extraData"].is_string(),
        Some("1" | "2" | "7" | "10") => payload.is_object(),
        _ => false,
    };
    let ttl = &message.body["pushOptions"]["ttl"];
    let lives = ttl.is_null() || ttl.as_u64().is_some_and(|ttl| (1..=MAX_LIFE_S).contains(&ttl));
    if is_whole && lives { Ok(()) } else { Err("80100003") }
}

fn check_first(message: &Message) -> Result<(), &'static str> {
    let mut content = message.body["message"].clone();
    let Some(members) = content.as_object_mut() else {
        return Err("80100003");
    };
    members.remove("token");
    if content.to_string().len() > MAX_MESSAGE {
        return Err("80300008");
    }
    let shown = &content["android"]["notification"];
    let is_click = |click: &Value| match click["type"].as_u64() {
        Some(2) => click["url"].as_str().is_some_and(|url| url.starts_with("https://")),
        Some(1 | 3) => true,
        _ => false,
    };
    let has_something = content["data"].is_string() || content["notification"].is_object() || shown.is_object();
    // A notification must say what a tap does.
    let clicks = !(content["notification"].is_object() || shown.is_object()) || is_click(&shown["click_action"]);
    let ttl = &content["android"]["ttl"];
    let seconds = ttl
        .as_str()
        .and_then(|ttl| ttl.strip_suffix('s'))
        .and_then(|ttl| ttl.parse().ok());
    let lives = ttl.is_null() || seconds.is_some_and(|seconds: u64| (1..=MAX_LIFE_S).contains(&seconds));
    if has_something && clicks && lives {
        Ok(())
    } else {
        Err("80100003")
    }
}

fn answer(status: StatusCode, code: &str, message: &str, id: &str) -> Reply {
    Reply::json(status, &json!({ "code": code, "msg": message, "requestId": id }))
}
