//! `SendGrid` and Mailchimp Transactional: mails, and the outcome of each answer.

use std::{sync::Arc, time::Duration};

use edge_worker::providers::{Attempt, Attempted, Message, Outcome, Providers, Recorded, Renditions, Settings};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    content::{Content, push::Push},
    id::AppId,
    job::Job,
    provider::{Credential, Provider, mailchimp, sendgrid},
};
use testbed::providers::{Answer, ApiConfig, Authority, Mailchimp, RetryAfter, Rule, SendGrid, Simulator};

use crate::rig::{
    address, ambiguous, credential_trouble, endpoint_trouble, https_localhost, is_accepted, job, now, rejected,
    retry_later, unused_port,
};

struct Rig {
    providers: Providers,
    app: AppId,
    sendgrid: SendGrid,
    mailchimp: Mailchimp,
    _ca: tempfile::TempDir,
}

impl Rig {
    async fn new(adjust: impl FnOnce(&mut Settings)) -> Self {
        let authority = Authority::generate().unwrap();
        let config = || ApiConfig {
            authority: Some(authority.clone()),
            ..ApiConfig::default()
        };
        let sendgrid = SendGrid::start_for("shop.example.com", config());
        let mailchimp = Mailchimp::start(config());
        let (sendgrid, mailchimp) = (sendgrid.await.unwrap(), mailchimp.await.unwrap());
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let mut settings = Settings::default();
        settings.sendgrid.endpoint = https_localhost(sendgrid.addr().port());
        settings.sendgrid.eu_endpoint = https_localhost(unused_port());
        settings.sendgrid.ca_file = Some(ca_file.clone());
        settings.mailchimp.endpoint = https_localhost(mailchimp.addr().port());
        settings.mailchimp.ca_file = Some(ca_file);
        adjust(&mut settings);
        Self {
            providers: Providers::new(&settings, Clock::system()).unwrap(),
            app: "shop".parse().unwrap(),
            sendgrid,
            mailchimp,
            _ca: folder,
        }
    }

    async fn usual() -> Self {
        Self::new(|_| {}).await
    }

    fn simulator(&self, provider: Provider) -> &Simulator {
        match provider {
            Provider::Mailchimp => &self.mailchimp,
            _ => &self.sendgrid,
        }
    }

    fn credential(&self, provider: Provider) -> Credential {
        match provider {
            Provider::Mailchimp => Credential::Mailchimp(self.mailchimp.credential()),
            _ => Credential::SendGrid(self.sendgrid.credential()),
        }
    }

    async fn send(&self, credential: Credential, to: &str, change: &Value) -> Attempted {
        self.providers.configure(&self.app, vec![credential]).unwrap();
        let mut email = json!({
            "subject": "Your order",
            "text": "It is on its way.",
            "from": { "email": "news@shop.example.com", "name": "The Shop" },
        });
        email
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let job = Arc::new(Job {
            content: Content::Email(Arc::new(serde_json::from_value(email).unwrap())),
            ..job(&self.app, "event", Push::default(), now())
        });
        let address = address(&self.app, Provider::SendGrid, to);
        let message = Message::new(job.clone(), Renditions::default());
        let attempt = Attempt {
            app: &self.app,
            address: &address,
            delivery: job.delivery(address.id),
            number: 1,
            message: &message,
            expires_at: job.expires_at(),
            handover: &Recorded,
        };
        self.providers.deliver(attempt).await
    }

    async fn mail(&self, provider: Provider, to: &str) -> Attempted {
        self.send(self.credential(provider), to, &json!({})).await
    }
}

const BOTH: [Provider; 2] = [Provider::SendGrid, Provider::Mailchimp];

#[tokio::test]
async fn a_mail_has_everything_that_was_asked_for() {
    let rig = Rig::usual().await;
    let email = json!({
        "html": "<body><p>Hello",
        "preheader": "On its way",
        "reply_to": { "email": "help@shop.example.com" },
        "headers": { "X-Order": "42" },
        "attachments": [
            { "name": "a.pdf", "type": "application/pdf", "content": "aGk=" },
            { "name": "logo.png", "type": "image/png", "content": "aGk=", "content_id": "logo" },
        ],
    });
    for provider in BOTH {
        let attempted = rig.send(rig.credential(provider), "ann@example.com", &email).await;
        let push = rig.simulator(provider).log().delivered_to("ann@example.com").remove(0);
        let Outcome::Accepted { provider_id } = &attempted.outcome else {
            panic!("{attempted:?}")
        };
        assert_eq!(provider_id.as_deref(), Some(&*push.id));
        assert_eq!(push.topic.as_deref(), Some("news@shop.example.com"));
        let sent: Value = serde_json::from_slice(&push.payload).unwrap();
        let at = |pointer: &str| {
            sent.pointer(pointer)
                .unwrap_or_else(|| panic!("{pointer} in {sent}"))
                .clone()
        };
        let html = if provider == Provider::SendGrid {
            assert_eq!(at("/from/name"), "The Shop");
            assert_eq!(at("/reply_to/email"), "help@shop.example.com");
            assert_eq!(at("/content/0/value"), "It is on its way.");
            assert_eq!(at("/personalizations/0/headers/X-Order"), "42");
            assert_eq!(at("/attachments/0/filename"), "a.pdf");
            assert_eq!(at("/attachments/1/content_id"), "logo");
            assert_eq!(
                at("/personalizations/0/custom_args/peal_delivery"),
                push.collapse_id.unwrap()
            );
            at("/content/1/value")
        } else {
            assert_eq!(at("/message/from_name"), "The Shop");
            assert_eq!(at("/message/headers/Reply-To"), "help@shop.example.com");
            assert_eq!(at("/message/text"), "It is on its way.");
            assert_eq!(at("/message/headers/X-Order"), "42");
            assert_eq!(at("/message/attachments/0/name"), "a.pdf");
            assert_eq!(at("/message/images/0/name"), "logo");
            assert_eq!(at("/message/metadata/peal_delivery"), push.collapse_id.unwrap());
            at("/message/html")
        };
        assert!(html.as_str().unwrap().starts_with("<body><div style="), "{html}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_the_credentials_fault() {
    let rig = Rig::usual().await;
    let sendgrid = Credential::SendGrid(sendgrid::Credential {
        api_key: "SG.wrong".to_owned().into(),
        eu: false,
        webhook_key: None,
    });
    let attempted = rig.send(sendgrid, "ann@example.com", &json!({})).await;
    assert_eq!(attempted.outcome, credential_trouble("unauthorized"));
    let mailchimp = Credential::Mailchimp(mailchimp::Credential {
        api_key: "md-wrong".to_owned().into(),
        subaccount: None,
        webhook_key: None,
    });
    let attempted = rig.send(mailchimp, "ann@example.com", &json!({})).await;
    assert_eq!(attempted.outcome, credential_trouble("Invalid_Key"));

    let stranger = json!({ "from": { "email": "ceo@bank.example" } });
    let attempted = rig
        .send(rig.credential(Provider::SendGrid), "ann@example.com", &stranger)
        .await;
    assert_eq!(attempted.outcome, credential_trouble("forbidden"), "no verified sender");
}

#[tokio::test]
async fn each_answer_has_its_outcome() {
    let rig = Rig::usual().await;
    let gone = Outcome::AddressGone {
        reason: "hard_bounce".into(),
        since: None,
    };
    let failing = |status: u16| Answer::reason("scripted").status(status);
    let limited = failing(429).retry_after(RetryAfter::Seconds(7));
    for (number, (provider, answer, outcome)) in [
        (Provider::SendGrid, failing(400), rejected("http_400")),
        (Provider::SendGrid, failing(413), rejected("too_large")),
        (
            Provider::SendGrid,
            limited.clone(),
            retry_later("rate_limited", Some(7)),
        ),
        (Provider::SendGrid, failing(503), retry_later("http_503", None)),
        (
            Provider::SendGrid,
            failing(403).body("<html>"),
            endpoint_trouble("not_sendgrid"),
        ),
        (Provider::SendGrid, Answer::close(), ambiguous("connection_lost")),
        (Provider::Mailchimp, Answer::reason("hard-bounce"), gone),
        (Provider::Mailchimp, Answer::reason("spam"), rejected("spam")),
        (
            Provider::Mailchimp,
            Answer::reason("unsigned"),
            credential_trouble("unsigned"),
        ),
        (
            Provider::Mailchimp,
            Answer::reason("ValidationError"),
            rejected("ValidationError"),
        ),
        (
            Provider::Mailchimp,
            Answer::reason("PaymentRequired"),
            credential_trouble("PaymentRequired"),
        ),
        (
            Provider::Mailchimp,
            Answer::reason("ServiceUnavailable"),
            retry_later("ServiceUnavailable", None),
        ),
        (
            Provider::Mailchimp,
            Answer::accept().body("<html>"),
            ambiguous("answer_unreadable"),
        ),
        (Provider::Mailchimp, Answer::close(), ambiguous("connection_lost")),
    ]
    .into_iter()
    .enumerate()
    {
        let to = format!("ann{number}@example.com");
        let rule = Rule::token(&to).answer(answer);
        rig.simulator(provider).script().add(rule).unwrap();
        assert_eq!(rig.mail(provider, &to).await.outcome, outcome, "{number}");
        assert!(
            is_accepted(&rig.mail(provider, "bob@example.com").await),
            "after {number}"
        );
    }
}

#[tokio::test]
async fn silence_is_in_doubt_and_a_closed_port_is_not() {
    let rig = Rig::new(|settings| {
        settings.sendgrid.timeout_ms = 500;
        settings.mailchimp.timeout_ms = 500;
    })
    .await;
    for provider in BOTH {
        let silence = Rule::token("ann@example.com").answer(Answer::black_hole());
        rig.simulator(provider).script().add(silence).unwrap();
        let attempted = rig.mail(provider, "ann@example.com").await;
        assert_eq!(attempted.outcome, ambiguous("timeout"), "{provider}");
        assert!(attempted.took < Duration::from_secs(5));
    }
    // Nothing listens at the host for the EU.
    let eu = Credential::SendGrid(sendgrid::Credential {
        eu: true,
        ..rig.sendgrid.credential()
    });
    let attempted = rig.send(eu, "ann@example.com", &json!({})).await;
    assert_eq!(attempted.outcome, endpoint_trouble("connect"));
}
