//! How the simulator of Amazon SNS answers one request (AWS: Publish, Common errors).

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, StatusCode, request::Parts};
use serde_json::{Map, Value};
use shared::provider::{Provider, sns};
use uuid::Uuid;

use super::signature;
use crate::providers::{
    api::{Api, Refusal, digest},
    clock::now_s,
    devices::{Devices, Registration},
    form,
    log::RecordedPush,
    reply::{Reply, typed},
};

/// Longest message in bytes.
const MESSAGE_BYTES_MAX: usize = 262_144;

/// Longest text message in bytes.
const TEXT_BYTES_MAX: usize = 1600;

/// An account of Amazon's.
#[derive(Debug)]
pub struct SnsApi {
    pub(super) region: String,
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
}

/// A request.
#[derive(Debug)]
pub struct Message {
    form: BTreeMap<String, String>,
    body: Bytes,
}

impl Message {
    fn field(&self, name: &str) -> Option<&str> {
        self.form.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// The value of an attribute.
    fn attribute(&self, name: &str) -> Option<&str> {
        let (key, _) = self
            .form
            .iter()
            .find(|(key, value)| key.ends_with(".Name") && *value == name)?;
        self.field(&key.replace(".Name", ".Value.StringValue"))
    }
}

/// The HTTP status with which Amazon returns an error code.
fn status_of(code: &str) -> StatusCode {
    match code {
        "AuthorizationError"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken"
        | "InvalidSecurity"
        | "ExpiredToken"
        | "OptInRequired"
        | "AccessDenied" => StatusCode::FORBIDDEN,
        "NotFound" => StatusCode::NOT_FOUND,
        "Throttled" => StatusCode::TOO_MANY_REQUESTS,
        "InternalError" | "InternalFailure" => StatusCode::INTERNAL_SERVER_ERROR,
        "ServiceUnavailable" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl Api for SnsApi {
    const PROVIDER: Provider = Provider::Sns;

    type Message = Message;

    fn generate() -> Self {
        Self {
            region: "eu-central-1".to_owned(),
            access_key_id: format!("AKIA{:016X}", rand::random::<u64>()),
            secret_access_key: format!("{:040x}", rand::random::<u128>()),
        }
    }

    /// An error code: letters and digits, the first a capital.
    fn is_reason(reason: &str) -> bool {
        reason.starts_with(|first: char| first.is_ascii_uppercase())
            && reason.bytes().all(|b| b.is_ascii_alphanumeric())
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Message, Reply> {
        if head.method == Method::POST && head.uri.path() == "/" {
            Ok(Message {
                form: form::read(body),
                body: body.clone(),
            })
        } else {
            Err(refusal("InvalidAction", None))
        }
    }

    fn describe(&self, message: &Message) -> RecordedPush {
        let target = message.field("TargetArn").or(message.field("PhoneNumber"));
        let own = |name: &str| message.attribute(name).map(str::to_owned);
        let platform = target.and_then(|arn| arn.split('/').nth(1)).unwrap_or_default();
        RecordedPush {
            token: target.unwrap_or_default().to_owned(),
            topic: own("AWS.SNS.SMS.SenderID").or_else(|| own("AWS.MM.SMS.OriginationNumber")),
            push_type: own("AWS.SNS.MOBILE.APNS.PUSH_TYPE"),
            priority: own("AWS.SNS.MOBILE.APNS.PRIORITY"),
            collapse_id: own("AWS.SNS.MOBILE.APNS.COLLAPSE_ID"),
            expiration: own(&format!("AWS.SNS.MOBILE.{platform}.TTL")),
            ..RecordedPush::default()
        }
    }

    /// Requests carry no id, so equal messages to one target count as the same.
    fn identity(&self, message: &Message, push: &RecordedPush) -> u128 {
        digest((&push.token, message.field("Message")))
    }

    fn check(&self, head: &Parts, message: &Message, devices: &Devices) -> Result<(), Refusal> {
        signature::check(self, head, &message.body, now_s())
            .and_then(|()| self.check_message(message, devices))
            .map_err(|code| Refusal::new(code, refusal(code, None)))
    }

    fn new_id() -> String {
        Uuid::new_v4().to_string()
    }

    fn accept(&self, _: &Message, id: &str, status: Option<StatusCode>) -> Reply {
        let body = format!(
            "<PublishResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><PublishResult><MessageId>{id}</MessageId>\
             </PublishResult><ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata></PublishResponse>",
            Self::new_id()
        );
        Reply::new(status.unwrap_or(StatusCode::OK), typed("text/xml"), body.into())
    }

    fn refuse(&self, _: &Message, code: &str, status: Option<StatusCode>) -> Reply {
        refusal(code, status)
    }
}

impl SnsApi {
    /// Checks a message. The error is Amazon's code.
    fn check_message(&self, message: &Message, devices: &Devices) -> Result<(), &'static str> {
        if message.field("Action") != Some("Publish") || message.field("Version") != Some("2010-03-31") {
            return Err("InvalidAction");
        }
        let text = message.field("Message").ok_or("InvalidParameter")?;
        match (message.field("TargetArn"), message.field("PhoneNumber")) {
            (Some(arn), None) => {
                let target = sns::Target::new(arn).map_err(|_| "InvalidParameter")?;
                if arn.split(':').nth(3) != Some(&self.region) || text.len() > MESSAGE_BYTES_MAX {
                    return Err("InvalidParameter");
                }
                if message.field("MessageStructure") == Some("json") {
                    let messages: Map<String, Value> = serde_json::from_str(text).map_err(|_| "InvalidParameter")?;
                    let all_are_text = messages.values().all(Value::is_string);
                    let own = messages.get(target.platform_name()).and_then(Value::as_str);
                    // What Apple and Google get must be JSON.
                    let own_is_json = own.is_none_or(|own| serde_json::from_str::<Map<String, Value>>(own).is_ok());
                    if !messages.contains_key("default") || !all_are_text || !own_is_json {
                        return Err("InvalidParameter");
                    }
                }
                let priority = message.attribute("AWS.SNS.MOBILE.APNS.PRIORITY");
                if priority.is_some_and(|priority| !["1", "5", "10"].contains(&priority)) {
                    return Err("InvalidParameter");
                }
                match devices.look_up(arn, &self.region) {
                    Registration::Registered => Ok(()),
                    Registration::OtherOwner => Err("AuthorizationError"),
                    Registration::Unknown => Err("NotFound"),
                }
            }
            (None, Some(number)) => {
                let is_number = number.strip_prefix('+').is_some_and(form::is_number);
                let sender = message.attribute("AWS.SNS.SMS.SenderID");
                let is_sender = sender.is_none_or(|sender| (1..=11).contains(&sender.len()));
                if is_number && is_sender && text.len() <= TEXT_BYTES_MAX {
                    Ok(())
                } else {
                    Err("InvalidParameter")
                }
            }
            _ => Err("InvalidParameter"),
        }
    }
}

/// A refusal, with the status that is usual for its code if no other is given.
fn refusal(code: &str, status: Option<StatusCode>) -> Reply {
    let body = format!(
        "<ErrorResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>The request was refused.</Message></Error><RequestId>{}</RequestId></ErrorResponse>",
        SnsApi::new_id()
    );
    let status = status.unwrap_or_else(|| status_of(code));
    Reply::new(status, typed("text/xml"), body.into())
}
