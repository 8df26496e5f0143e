//! SMTP: mails, the outcome of each answer, and what may be sent again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use edge_worker::providers::{
    Attempt, Attempted, BadCredential, Handover, Message, Outcome, Providers, Recorded, Renditions, Settings,
};
use futures::future::{BoxFuture, join_all};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    content::{Content, push::Push},
    id::AppId,
    job::Job,
    provider::{Credential, Provider, smtp},
};
use testbed::providers::{Answer, Authority, Encryption, Manners, Rule, Smtp, SmtpConfig};

use crate::rig::{
    address, ambiguous, assert_all_accepted, credential_trouble, endpoint_trouble, is_accepted, job, now, rejected,
    retry_later, unused_port,
};

/// The reason of the worker's own time limits.
const TIMEOUT: &str = "timeout";

struct Rig {
    providers: Providers,
    app: AppId,
    server: Smtp,
    _ca: tempfile::TempDir,
}

impl Rig {
    async fn new(manners: Manners, adjust: impl FnOnce(&mut Settings)) -> Self {
        let authority = Authority::generate().unwrap();
        let server = Smtp::start(SmtpConfig {
            authority: Some(authority.clone()),
            manners,
            ..SmtpConfig::default()
        })
        .await
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let mut settings = Settings::default();
        settings.smtp.ca_file = Some(ca_file);
        adjust(&mut settings);
        let rig = Self {
            providers: Providers::new(&settings, Clock::system()).unwrap(),
            app: "shop".parse().unwrap(),
            server,
            _ca: folder,
        };
        rig.configure(|_| {}).unwrap();
        rig
    }

    async fn usual() -> Self {
        Self::new(Manners::default(), |_| {}).await
    }

    fn configure(&self, adjust: impl FnOnce(&mut smtp::Credential)) -> Result<(), BadCredential> {
        let mut credential = self.server.credential();
        adjust(&mut credential);
        let credentials = vec![Credential::Smtp(credential)];
        self.providers.configure(&self.app, credentials)
    }

    fn job(&self, event: &str, change: &Value) -> Job {
        let mut email = json!({
            "subject": "Your order",
            "text": "It is on its way.",
            "from": { "email": "news@shop.example.com", "name": "The Shop" },
        });
        email
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        Job {
            content: Content::Email(Arc::new(serde_json::from_value(email).unwrap())),
            ..job(&self.app, event, Push::default(), now())
        }
    }

    async fn send(&self, to: &str, job: Job, handover: &dyn Handover) -> Attempted {
        let address = address(&self.app, Provider::Smtp, to);
        let job = Arc::new(job);
        let message = Message::new(job.clone(), Renditions::default());
        let attempt = Attempt {
            app: &self.app,
            address: &address,
            delivery: job.delivery(address.id),
            number: 1,
            message: &message,
            expires_at: job.expires_at(),
            handover,
        };
        self.providers.deliver(attempt).await
    }

    async fn mail(&self, to: &str) -> Attempted {
        self.send(to, self.job("event", &json!({})), &Recorded).await
    }

    /// The mails that were delivered to `to`.
    fn delivered(&self, to: &str) -> Vec<String> {
        let pushes = self.server.log().delivered_to(to).into_iter();
        pushes
            .map(|push| String::from_utf8(push.payload.to_vec()).unwrap())
            .collect()
    }

    fn connections(&self) -> u64 {
        self.server.stats().connections
    }
}

#[tokio::test]
async fn a_server_takes_a_mail_by_starttls_and_by_tls() {
    for encryption in [Encryption::StartTls, Encryption::Implicit] {
        let manners = Manners {
            encryption,
            ..Manners::default()
        };
        let rig = Rig::new(manners, |_| {}).await;
        let job = rig.job(
            "event",
            &json!({ "html": "<p>On its way", "headers": { "X-Order": "42" } }),
        );
        let delivery = job.delivery(address(&rig.app, Provider::Smtp, "ann@example.com").id);
        let attempted = rig.send("ann@example.com", job, &Recorded).await;
        let Outcome::Accepted {
            provider_id: Some(queue_id),
        } = &attempted.outcome
        else {
            panic!("{attempted:?}")
        };
        assert_eq!(queue_id.len(), 12, "{queue_id}");
        assert_eq!(&*attempted.endpoint, format!("localhost:{}", rig.server.addr().port()));
        let push = &rig.server.log().delivered_to("ann@example.com")[0];
        assert_eq!(
            push.topic.as_deref(),
            Some("news@shop.example.com"),
            "the sender of the envelope"
        );
        assert_eq!(push.collapse_id, Some(delivery.to_string()), "ENVID");
        let mail = &rig.delivered("ann@example.com")[0];
        for line in [
            "From: \"The Shop\" <news@shop.example.com>",
            "To: <ann@example.com>",
            "Subject: Your order",
            &format!("Message-ID: <{delivery}@shop.example.com>"),
            "X-Order: 42",
            "It is on its way.",
        ] {
            assert!(mail.lines().any(|given| given == line), "{line} in {mail}");
        }
        assert!(mail.contains("multipart/alternative"), "{mail}");
    }
}

#[tokio::test]
async fn a_server_without_extensions_takes_mails_too() {
    let manners = Manners {
        pipelining: false,
        dsn: false,
        size: None,
        ..Manners::default()
    };
    let rig = Rig::new(manners, |_| {}).await;
    assert!(is_accepted(&rig.mail("ann@example.com").await));
}

#[tokio::test]
async fn mails_share_connections() {
    let rig = Rig::new(Manners::default(), |settings| settings.smtp.connections = 4).await;
    for _ in 0..20 {
        assert!(is_accepted(&rig.mail("ann@example.com").await));
    }
    assert_eq!(rig.connections(), 1);
    let mailboxes: Vec<_> = (0..100).map(|n| format!("ann{n}@example.com")).collect();
    let attempts = join_all(mailboxes.iter().map(|to| rig.mail(to))).await;
    assert_all_accepted(&attempts);
    assert!(rig.connections() <= 4, "{}", rig.connections());
    // The same credential again keeps them.
    rig.configure(|_| {}).unwrap();
    assert!(is_accepted(&rig.mail("ann@example.com").await));
    assert!(rig.connections() <= 4, "{}", rig.connections());
}

#[tokio::test]
async fn a_connection_ends_after_its_number_of_mails_or_when_the_server_says_so() {
    let own = Rig::new(Manners::default(), |settings| settings.smtp.mails_per_connection = 2).await;
    let manners = Manners {
        mails: 2,
        ..Manners::default()
    };
    let theirs = Rig::new(manners, |_| {}).await;
    for rig in [own, theirs] {
        for _ in 0..6 {
            assert!(is_accepted(&rig.mail("ann@example.com").await));
        }
        assert_eq!(rig.connections(), 3);
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced() {
    let rig = Rig::usual().await;
    assert!(is_accepted(&rig.mail("ann@example.com").await));
    rig.server.cut();
    let attempted = rig.mail("ann@example.com").await;
    assert!(is_accepted(&attempted), "{attempted:?}");
    assert_eq!(rig.connections(), 2);
}

#[tokio::test]
async fn a_connection_without_use_is_closed() {
    let rig = Rig::new(Manners::default(), |settings| settings.smtp.idle_ms = 200).await;
    assert!(is_accepted(&rig.mail("ann@example.com").await));
    let deadline = Instant::now() + Duration::from_secs(5);
    while rig.server.stats().open_connections > 0 {
        assert!(Instant::now() < deadline, "it stays open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn each_refusal_has_its_outcome_and_the_connection_goes_on() {
    let gone = |reason: &'static str| Outcome::AddressGone {
        reason: reason.into(),
        since: None,
    };
    let rig = Rig::usual().await;
    for (number, (reason, outcome)) in [
        ("RCPT 550 5.1.1 no such user", gone("smtp_550_5.1.1")),
        ("RCPT 550 no such user", rejected("smtp_550")),
        ("RCPT 451 4.7.1 greylisted", retry_later("smtp_451_4.7.1", None)),
        (
            "RCPT 554 5.7.1 relay access denied",
            credential_trouble("smtp_554_5.7.1"),
        ),
        ("DATA 452 4.3.1 disk full", retry_later("smtp_452_4.3.1", None)),
        ("END 554 5.6.0 malformed", rejected("smtp_554_5.6.0")),
        ("END 550 5.2.1 disabled", gone("smtp_550_5.2.1")),
        ("END 451 4.3.0 later", retry_later("smtp_451_4.3.0", None)),
    ]
    .into_iter()
    .enumerate()
    {
        let to = format!("ann{number}@example.com");
        let rule = Rule::token(&to).answer(Answer::reason(reason));
        rig.server.script().add(rule).unwrap();
        assert_eq!(rig.mail(&to).await.outcome, outcome, "{reason}");
        assert!(rig.delivered(&to).is_empty());
        assert!(is_accepted(&rig.mail("bob@example.com").await), "after {reason}");
    }
    assert!(rig.connections() <= 2, "{}", rig.connections());
}

#[tokio::test]
async fn a_mail_that_is_too_large_is_not_sent() {
    let manners = Manners {
        size: Some(2_000),
        ..Manners::default()
    };
    let rig = Rig::new(manners, |_| {}).await;
    let long = rig.job("event", &json!({ "text": "word ".repeat(1_000) }));
    let attempted = rig.send("ann@example.com", long, &Recorded).await;
    assert_eq!(attempted.outcome, rejected("smtp_552_5.3.4"));
    assert!(rig.server.log().pushes().is_empty());
}

#[tokio::test]
async fn what_the_server_has_against_the_credential_pauses_it() {
    let rig = Rig::usual().await;
    rig.configure(|credential| credential.password = Some("wrong".to_owned().into()))
        .unwrap();
    assert_eq!(
        rig.mail("ann@example.com").await.outcome,
        credential_trouble("smtp_535_5.7.8")
    );
    for _ in 0..2 {
        rig.mail("ann@example.com").await;
    }
    let attempted = rig.mail("ann@example.com").await;
    assert!(
        matches!(&attempted.outcome, Outcome::CredentialTrouble { reason, .. } if reason == "breaker_open"),
        "{attempted:?}"
    );
    // Another password is another credential, with breakers of its own.
    rig.configure(|_| {}).unwrap();
    assert!(is_accepted(&rig.mail("ann@example.com").await));

    rig.configure(|credential| (credential.user, credential.password) = (None, None))
        .unwrap();
    let attempted = rig.mail("ann@example.com").await;
    assert_eq!(
        attempted.outcome,
        credential_trouble("smtp_530_5.7.0"),
        "it must log in"
    );
}

#[tokio::test]
async fn replies_before_a_recipient_is_named_have_outcomes() {
    for (manners, outcome) in [
        (
            Manners {
                greeting: Some("421 4.3.2 too many connections".into()),
                ..Manners::default()
            },
            endpoint_trouble("smtp_421_4.3.2"),
        ),
        (
            Manners {
                greeting: Some("554 5.7.1 blocked".into()),
                ..Manners::default()
            },
            credential_trouble("smtp_554_5.7.1"),
        ),
        (
            Manners {
                auth_reply: Some("454 4.7.0 temporary authentication failure".into()),
                ..Manners::default()
            },
            endpoint_trouble("smtp_454_4.7.0"),
        ),
        (
            Manners {
                mail_reply: Some("553 5.7.1 not your address".into()),
                ..Manners::default()
            },
            credential_trouble("smtp_553_5.7.1"),
        ),
        (
            Manners {
                mail_reply: Some("451 4.3.0 later".into()),
                ..Manners::default()
            },
            retry_later("smtp_451_4.3.0", None),
        ),
    ] {
        let rig = Rig::new(manners, |_| {}).await;
        assert_eq!(rig.mail("ann@example.com").await.outcome, outcome);
    }
}

#[tokio::test]
async fn nothing_is_sent_without_encryption_by_the_right_server() {
    let manners = Manners {
        encryption: Encryption::Never,
        ..Manners::default()
    };
    let rig = Rig::new(manners, |_| {}).await;
    assert_eq!(
        rig.mail("ann@example.com").await.outcome,
        endpoint_trouble("no_starttls")
    );

    let stranger = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(stranger.path(), Authority::generate().unwrap().pem()).unwrap();
    let path = stranger.path().to_owned();
    let rig = Rig::new(Manners::default(), |settings| settings.smtp.ca_file = Some(path)).await;
    assert_eq!(
        rig.mail("ann@example.com").await.outcome,
        endpoint_trouble("tls_failed")
    );
    assert!(rig.server.log().pushes().is_empty());
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_endpoint_trouble() {
    let rig = Rig::usual().await;
    rig.configure(|credential| credential.port = unused_port().try_into().ok())
        .unwrap();
    assert_eq!(rig.mail("ann@example.com").await.outcome, endpoint_trouble("connect"));
    rig.configure(|credential| credential.host = "no-such-host.invalid".into())
        .unwrap();
    assert_eq!(
        rig.mail("ann@example.com").await.outcome,
        endpoint_trouble("unresolved")
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_endpoint_trouble_in_time() {
    let manners = Manners {
        greeting: None,
        ..Manners::default()
    };
    let rig = Rig::new(manners, |settings| settings.smtp.timeout_ms = 500).await;
    let began = Instant::now();
    let attempted = rig.mail("ann@example.com").await;
    assert!(
        matches!(attempted.outcome, Outcome::EndpointTrouble { .. }),
        "{attempted:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(3));
}

/// Counts the handovers, and what had arrived at the server by then.
#[derive(Debug)]
struct Counted<'a> {
    server: &'a Smtp,
    handovers: AtomicUsize,
    answer: bool,
    delay: Duration,
}

impl<'a> Counted<'a> {
    fn new(server: &'a Smtp) -> Self {
        Self {
            server,
            handovers: AtomicUsize::new(0),
            answer: true,
            delay: Duration::ZERO,
        }
    }
}

impl Handover for Counted<'_> {
    fn record(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            assert!(self.server.log().pushes().is_empty(), "the server has the mail already");
            self.handovers.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.delay).await;
            self.answer
        })
    }
}

#[tokio::test]
async fn the_final_answer_may_take_longer_than_an_attempt() {
    let rig = Rig::new(Manners::default(), |settings| {
        settings.smtp.timeout_ms = 1_000;
        settings.smtp.final_answer_ms = 10_000;
    })
    .await;
    rig.server
        .script()
        .add(Rule::always().delay(Duration::from_secs(3)))
        .unwrap();
    let counted = Counted::new(&rig.server);
    let attempted = rig
        .send("ann@example.com", rig.job("event", &json!({})), &counted)
        .await;
    assert!(is_accepted(&attempted), "{attempted:?}");
    assert!(attempted.took >= Duration::from_secs(3), "{attempted:?}");
    assert_eq!(counted.handovers.into_inner(), 1);
}

#[tokio::test]
async fn silence_after_the_mail_is_in_doubt() {
    let rig = Rig::new(Manners::default(), |settings| {
        settings.smtp.timeout_ms = 500;
        settings.smtp.final_answer_ms = 1_000;
    })
    .await;
    rig.server
        .script()
        .add(Rule::token("ann@example.com").answer(Answer::black_hole().delivered(true)))
        .unwrap();
    let attempted = rig.mail("ann@example.com").await;
    assert_eq!(attempted.outcome, ambiguous(TIMEOUT));
    assert!(attempted.took >= Duration::from_secs(1), "{attempted:?}");
    assert_eq!(rig.delivered("ann@example.com").len(), 1);
}

#[tokio::test]
async fn a_connection_that_ends_instead_of_an_answer_is_in_doubt() {
    let rig = Rig::usual().await;
    rig.server
        .script()
        .add(Rule::token("ann@example.com").answer(Answer::close().delivered(true)))
        .unwrap();
    assert_eq!(rig.mail("ann@example.com").await.outcome, ambiguous("connection_lost"));
    assert!(is_accepted(&rig.mail("bob@example.com").await));
}

#[tokio::test]
async fn nothing_is_handed_over_that_could_not_be_recorded() {
    let rig = Rig::new(Manners::default(), |settings| settings.smtp.timeout_ms = 1_000).await;
    let refused = Counted {
        answer: false,
        ..Counted::new(&rig.server)
    };
    let attempted = rig
        .send("ann@example.com", rig.job("event", &json!({})), &refused)
        .await;
    assert_eq!(attempted.outcome, endpoint_trouble("not_recorded"));
    let slow = Counted {
        delay: Duration::from_secs(30),
        ..Counted::new(&rig.server)
    };
    let attempted = rig.send("ann@example.com", rig.job("event", &json!({})), &slow).await;
    assert_eq!(attempted.outcome, endpoint_trouble("not_recorded"));
    assert!(rig.server.log().pushes().is_empty());
}

#[tokio::test]
async fn a_mail_that_finds_all_connections_busy_waits_and_comes_again() {
    let rig = Rig::new(Manners::default(), |settings| settings.smtp.connections = 1).await;
    let slow = Rule::token("slow@example.com").delay(Duration::from_secs(8));
    rig.server.script().add(slow).unwrap();
    let (slow, waiting) = tokio::join!(rig.mail("slow@example.com"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        rig.mail("ann@example.com").await
    });
    assert!(is_accepted(&slow), "{slow:?}");
    assert!(
        matches!(&waiting.outcome, Outcome::NotYet { reason, .. } if reason == "connections_busy"),
        "{waiting:?}"
    );
    assert_eq!(rig.connections(), 1);
}

#[tokio::test]
async fn bounces_go_where_the_credential_says() {
    let rig = Rig::usual().await;
    let sender = |to: &str| rig.server.log().delivered_to(to)[0].topic.clone().unwrap();
    rig.configure(|credential| credential.bounces = "bounces@example.com".parse().ok())
        .unwrap();
    rig.mail("ann@example.com").await;
    assert_eq!(sender("ann@example.com"), "bounces@example.com");
    rig.configure(|credential| {
        credential.bounces = "bounces@example.com".parse().ok();
        credential.verp = true;
    })
    .unwrap();
    let job = rig.job("event", &json!({}));
    let delivery = job.delivery(address(&rig.app, Provider::Smtp, "bob@example.com").id);
    rig.send("bob@example.com", job, &Recorded).await;
    let own = format!("bounces+{}@example.com", delivery.0.simple());
    assert_eq!(sender("bob@example.com"), own);
}

/// A new Ed25519 key in PEM.
fn ed25519() -> (String, Vec<u8>) {
    let key = Ed25519KeyPair::generate().unwrap();
    let der = key.to_pkcs8v1().unwrap();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n");
    (pem, key.public_key().as_ref().to_vec())
}

#[tokio::test]
async fn a_mail_is_signed_by_the_domain_of_its_author() {
    let rig = Rig::usual().await;
    let key = |domain: &str| smtp::Dkim {
        domain: domain.to_owned(),
        selector: "a1".to_owned(),
        private_key: ed25519().0.into(),
    };
    rig.configure(|credential| {
        credential.dkim = vec![key("shop.example.com"), key("example.com"), key("other.example")]
    })
    .unwrap();
    assert!(is_accepted(&rig.mail("ann@example.com").await));
    let mail = rig.delivered("ann@example.com").remove(0);
    let signatures = mail.lines().filter(|line| line.starts_with("DKIM-Signature:")).count();
    assert_eq!(signatures, 2, "{mail}");

    rig.configure(|credential| credential.dkim = vec![key("other.example")])
        .unwrap();
    assert_eq!(rig.mail("bob@example.com").await.outcome, rejected("from_not_signed"));

    let bad = rig.configure(|credential| {
        credential.dkim = vec![smtp::Dkim {
            private_key: "no key".to_owned().into(),
            ..key("example.com")
        }];
    });
    assert_eq!(bad.unwrap_err().field, "dkim.private_key");
}

#[tokio::test]
async fn a_copy_of_a_mail_has_the_same_message_id() {
    let rig = Rig::usual().await;
    for _ in 0..2 {
        assert!(is_accepted(&rig.mail("ann@example.com").await));
    }
    let stats = rig.server.stats();
    assert_eq!((stats.delivered, stats.duplicates), (2, 1));
}
