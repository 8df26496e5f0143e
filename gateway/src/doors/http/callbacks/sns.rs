//! Amazon SES's notifications through Amazon SNS ("Verifying the signatures of Amazon SNS messages", "Amazon SNS notification
//! contents for Amazon SES", "Examples of event data that Amazon SES publishes").
//!
//! Everybody can have SNS send signed messages to everybody, so only those of the app's own topic count. Both URLs in a message
//! must lead to SNS itself; nothing else is ever asked.

use std::{
    collections::HashMap,
    fmt::Write,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use reqwest::Url;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use shared::{
    feedback::{Kind, Report},
    provider::smtp::Credential,
    reference::HEADER,
};
use webpki::{EndEntityCert, aws_lc_rs::RSA_PKCS1_2048_8192_SHA256};

use super::{Callback, Refused, json, malformed};

/// How long SNS may take to give a certificate or to confirm a subscription.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// Most bytes of a certificate.
const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// Certificates that are kept; SNS has one for each region at a time.
const CERTIFICATES_MAX: usize = 64;

/// Settings of callbacks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A certificate in PEM that verifies messages of SNS, instead of those that they name.
    pub sns_certificate_file: Option<PathBuf>,
}

/// A message of SNS.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    r#type: String,
    message_id: String,
    topic_arn: String,
    message: String,
    timestamp: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    token: Option<String>,
    #[serde(default, rename = "SubscribeURL")]
    subscribe_url: Option<String>,
    signature: String,
    signature_version: String,
    #[serde(rename = "SigningCertURL")]
    signing_cert_url: String,
}

impl Envelope {
    /// What is signed: names and values, each on a line, in the order of the names.
    fn signed(&self) -> String {
        let mut signed = String::new();
        let mut line = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _infallible = write!(signed, "{name}\n{value}\n");
            }
        };
        let is_notification = self.r#type == "Notification";
        line("Message", Some(&self.message));
        line("MessageId", Some(&self.message_id));
        if is_notification {
            line("Subject", self.subject.as_deref());
        } else {
            line("SubscribeURL", self.subscribe_url.as_deref());
        }
        line("Timestamp", Some(&self.timestamp));
        if !is_notification {
            line("Token", self.token.as_deref());
        }
        line("TopicArn", Some(&self.topic_arn));
        line("Type", Some(&self.r#type));
        signed
    }
}

/// Reads a callback.
pub(super) async fn read(
    callback: &Callback<'_>,
    credential: &Credential,
    certificates: &Certificates,
) -> Result<Vec<Report>, Refused> {
    let topic = credential.sns_topic.as_ref().ok_or(Refused::NoKey)?;
    let message: Envelope = json(callback.body)?;
    // Version 1 signs by SHA-1. The attribute SignatureVersion of the topic chooses.
    if message.signature_version != "2" || message.topic_arn != *topic {
        return Err(Refused::Unsigned);
    }
    let certificate = certificates.of(&message.signing_cert_url).await?;
    let signature = STANDARD.decode(&message.signature).map_err(|_| Refused::Unsigned)?;
    verify(&certificate, &message.signed(), &signature)?;
    callback.check_time(message.timestamp.parse().map_err(|_| Refused::Unsigned)?)?;
    match message.r#type.as_str() {
        "Notification" => Ok(report(callback, &message)?.into_iter().collect()),
        "SubscriptionConfirmation" => {
            certificates.confirm(message.subscribe_url.as_deref()).await?;
            tracing::info!("confirmed the subscription of a topic of SNS");
            Ok(Vec::new())
        }
        _ => Ok(Vec::new()),
    }
}

fn verify(certificate: &CertificateDer<'_>, signed: &str, signature: &[u8]) -> Result<(), Refused> {
    let certificate = EndEntityCert::try_from(certificate).map_err(|_| Refused::Unsigned)?;
    let verified = certificate.verify_signature(RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), signature);
    verified.map_err(|_| Refused::Unsigned)
}

/// What SES says. Notifications of an identity and events of a configuration set differ in little.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notice {
    #[serde(default, alias = "notificationType")]
    event_type: Option<String>,
    #[serde(default)]
    mail: Option<Mail>,
    #[serde(default)]
    bounce: Option<Returned>,
    #[serde(default)]
    complaint: Option<Detail>,
    #[serde(default)]
    delivery: Option<Detail>,
}

#[derive(Debug, Deserialize)]
struct Mail {
    #[serde(default)]
    headers: Vec<Header>,
}

#[derive(Debug, Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Returned {
    bounce_type: String,
    #[serde(default)]
    bounce_sub_type: Option<String>,
    #[serde(default)]
    bounced_recipients: Vec<Bounced>,
    #[serde(flatten)]
    detail: Detail,
}

#[derive(Debug, Deserialize)]
struct Bounced {
    #[serde(default)]
    status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    #[serde(default)]
    feedback_id: Option<String>,
    #[serde(default)]
    timestamp: Option<Timestamp>,
    #[serde(default)]
    complaint_feedback_type: Option<String>,
}

fn report(callback: &Callback<'_>, message: &Envelope) -> Result<Option<Report>, Refused> {
    // Before an address is verified SES publishes a sentence.
    if !message.message.starts_with('{') {
        return Ok(None);
    }
    let notice: Notice =
        json(message.message.as_bytes()).map_err(|_| malformed("Message", "must be a notice of SES"))?;
    let (kind, hard, reason, detail) = match (notice.event_type.as_deref(), notice.bounce) {
        (Some("Bounce"), Some(bounce)) => {
            let status = bounce.bounced_recipients.into_iter().find_map(|bounced| bounced.status);
            let hard = bounce.bounce_type == "Permanent";
            (
                Kind::Bounced,
                Some(hard),
                status.or(bounce.bounce_sub_type),
                Some(bounce.detail),
            )
        }
        (Some("Complaint"), _) => {
            let detail = notice.complaint;
            let kind = detail
                .as_ref()
                .and_then(|detail| detail.complaint_feedback_type.clone());
            (Kind::Complained, None, kind, detail)
        }
        (Some("Delivery"), _) => (Kind::Confirmed, None, None, notice.delivery),
        _ => return Ok(None),
    };
    let mut headers = notice.mail.map(|mail| mail.headers).unwrap_or_default().into_iter();
    let Some(header) = headers.find(|header| header.name.eq_ignore_ascii_case(HEADER)) else {
        return Ok(None);
    };
    let at = detail.as_ref().and_then(|detail| detail.timestamp);
    Ok(Some(Report {
        reference: header.value,
        event: detail.and_then(|detail| detail.feedback_id).unwrap_or_default(),
        kind,
        at: at.map_or(callback.now, |at| callback.past(at)),
        reason,
        hard,
    }))
}

/// The certificates by which SNS signs, and the way to SNS.
#[derive(Debug)]
pub(super) struct Certificates {
    http: reqwest::Client,
    fixed: Option<Arc<CertificateDer<'static>>>,
    known: Mutex<HashMap<Url, Arc<CertificateDer<'static>>>>,
}

impl Certificates {
    /// # Errors
    /// When a file cannot be read, or the HTTP client cannot be built.
    pub(super) fn new(settings: &Settings) -> Result<Self, io::Error> {
        let fixed = settings.sns_certificate_file.as_ref().map(|file| {
            let read = CertificateDer::from_pem_file(file);
            read.map(Arc::new).map_err(io::Error::other)
        });
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(true)
            .timeout(ANSWERED_WITHIN)
            .user_agent(concat!("peal-gateway/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            http: http.map_err(io::Error::other)?,
            fixed: fixed.transpose()?,
            known: Mutex::default(),
        })
    }

    async fn of(&self, url: &str) -> Result<Arc<CertificateDer<'static>>, Refused> {
        let url = at_sns(url).filter(|url| Path::new(url.path()).extension().is_some_and(|ext| ext == "pem"));
        let url = url.ok_or(Refused::Unsigned)?;
        if let Some(fixed) = &self.fixed {
            return Ok(Arc::clone(fixed));
        }
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(certificate) = known().get(&url) {
            return Ok(Arc::clone(certificate));
        }
        let pem = self.get(url.clone(), CERTIFICATE_BYTES_MAX).await?;
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|_| Refused::Unsigned)?;
        let certificate = Arc::new(certificate.into_owned());
        let mut known = known();
        if known.len() >= CERTIFICATES_MAX {
            known.clear();
        }
        known.insert(url, Arc::clone(&certificate));
        Ok(certificate)
    }

    /// Confirms a subscription at the URL that a signed message names.
    async fn confirm(&self, url: Option<&str>) -> Result<(), Refused> {
        let url = url.and_then(at_sns);
        let url = url.ok_or_else(|| malformed("SubscribeURL", "must lead to SNS"))?;
        self.get(url, CERTIFICATE_BYTES_MAX).await.map(drop)
    }

    async fn get(&self, url: Url, bytes_max: usize) -> Result<Vec<u8>, Refused> {
        let unreachable = |_| Refused::Unreachable;
        let answer = self.http.get(url).send().await;
        let mut answer = answer
            .and_then(reqwest::Response::error_for_status)
            .map_err(unreachable)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > bytes_max {
                return Err(Refused::Unreachable);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// `url`, if it leads to SNS: `https://sns.<region>.amazonaws.com/…`, or China's. TLS proves that the host is Amazon's.
fn at_sns(url: &str) -> Option<Url> {
    let url: Url = url.parse().ok()?;
    let host = url.host_str()?;
    let host = host.strip_suffix(".cn").unwrap_or(host);
    let region = host.strip_prefix("sns.")?.strip_suffix(".amazonaws.com")?;
    let is_region = !region.is_empty() && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_bare = url.username().is_empty() && url.password().is_none() && url.port().is_none();
    (url.scheme() == "https" && is_region && is_bare).then_some(url)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::testing::{NOW_S, callback},
        *,
    };

    const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:bounces";

    /// Made by `openssl req -x509 -newkey rsa:2048`, and signed with by `openssl dgst -sha256 -sign`.
    fn testdata(name: &str) -> PathBuf {
        Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/doors/http/callbacks/testdata"
        ))
        .join(name)
    }

    fn certificates() -> Certificates {
        let file = Some(testdata("sns.pem"));
        Certificates::new(&Settings {
            sns_certificate_file: file,
        })
        .unwrap()
    }

    fn credential(topic: &str) -> Credential {
        serde_json::from_value(json!({ "host": "email-smtp.eu-west-1.amazonaws.com", "sns_topic": topic })).unwrap()
    }

    fn message() -> Value {
        serde_json::from_slice(&std::fs::read(testdata("sns.json")).unwrap()).unwrap()
    }

    async fn reads(message: &Value, topic: &str) -> Result<Vec<Report>, Refused> {
        let body = message.to_string();
        let headers = http::HeaderMap::new();
        let callback = Callback {
            url: "",
            query: "",
            headers: &headers,
            body: body.as_bytes(),
            now: Timestamp::from_second(NOW_S).unwrap(),
        };
        read(&callback, &credential(topic), &certificates()).await
    }

    #[tokio::test]
    async fn a_notification_that_openssl_signed_is_read() {
        let report = reads(&message(), TOPIC).await.unwrap().pop().unwrap();
        assert_eq!((report.kind, report.hard), (Kind::Bounced, Some(true)));
        assert_eq!(
            (report.reference.as_str(), report.reason.as_deref()),
            ("abc", Some("5.1.1"))
        );
        assert_eq!(report.event, "0100017c-feedback");
    }

    #[tokio::test]
    async fn what_is_changed_in_a_notification_is_refused() {
        for (member, value) in [
            ("Message", json!("{}")),
            ("MessageId", json!("other")),
            ("Timestamp", json!("2025-11-26T11:59:59.000Z")),
            ("Subject", json!("other")),
            ("Type", json!("SubscriptionConfirmation")),
            ("SignatureVersion", json!("1")),
            ("Signature", json!("AAAA")),
            (
                "SigningCertURL",
                json!("https://sns.eu-west-1.amazonaws.com.evil.example/a.pem"),
            ),
            ("SigningCertURL", json!("https://sns.eu-west-1.amazonaws.com/a.exe")),
        ] {
            let mut message = message();
            message[member] = value.clone();
            let refused = reads(&message, TOPIC).await;
            assert!(
                matches!(refused, Err(Refused::Unsigned)),
                "{member} {value}: {refused:?}"
            );
        }
        let stranger = "arn:aws:sns:eu-west-1:999999999999:bounces";
        assert!(
            matches!(reads(&message(), stranger).await, Err(Refused::Unsigned)),
            "another account's topic"
        );
    }

    #[test]
    fn only_sns_is_asked() {
        for good in [
            "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0.pem",
            "https://sns.us-gov-west-1.amazonaws.com/?Action=ConfirmSubscription",
            "https://sns.cn-north-1.amazonaws.com.cn/x.pem",
        ] {
            assert!(at_sns(good).is_some(), "{good}");
        }
        for bad in [
            "http://sns.eu-west-1.amazonaws.com/x.pem",
            "https://sns.eu-west-1.amazonaws.com.evil.example/x.pem",
            "https://evil.example/sns.eu-west-1.amazonaws.com/x.pem",
            "https://sns.eu-west-1.amazonaws.com@evil.example/x.pem",
            "https://user@sns.eu-west-1.amazonaws.com/x.pem",
            "https://sns.eu-west-1.amazonaws.com:8443/x.pem",
            "https://sns.a.b.amazonaws.com/x.pem",
            "https://sns..amazonaws.com/x.pem",
            "https://s3.amazonaws.com/bucket/x.pem",
            "https://169.254.169.254/x.pem",
            "file:///etc/passwd",
            "",
        ] {
            assert!(at_sns(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn complaints_deliveries_and_bounces_that_pass_are_told_apart() {
        let read = |notice: Value| {
            let mut outer = message();
            outer["Message"] = notice.to_string().into();
            let outer: Envelope = serde_json::from_value(outer).unwrap();
            callback(&[], b"", |callback| report(callback, &outer)).unwrap()
        };
        let mail = json!({ "headers": [{ "name": "x-peal-reference", "value": "abc" }] });
        let transient = json!({ "notificationType": "Bounce", "mail": mail, "bounce": { "bounceType": "Transient" } });
        assert_eq!(read(transient).unwrap().hard, Some(false));
        let complaint =
            json!({ "eventType": "Complaint", "mail": mail, "complaint": { "complaintFeedbackType": "abuse" } });
        assert_eq!(read(complaint).unwrap().kind, Kind::Complained);
        let delivery =
            json!({ "eventType": "Delivery", "mail": mail, "delivery": { "timestamp": "2025-11-26T11:00:00.000Z" } });
        assert_eq!(read(delivery).unwrap().kind, Kind::Confirmed);
        let other = json!({ "eventType": "Complaint", "mail": { "headers": [] }, "complaint": {} });
        assert_eq!(read(other), None, "a mail that Peal did not send");
        assert_eq!(read(json!({ "eventType": "Open", "mail": mail })), None);
    }
}
