//! What a message carries so that reports about it find their way back, and so that its recipient can unsubscribe.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};
use shared::{
    channel::Channel,
    content::email::Email,
    id::Region,
    id_key::IdKey,
    policy::category::CategoryKind,
    provider::Provider,
    public_url::PublicUrl,
    reference::{MEMBER, Reference, Unsubscription},
};

use super::Attempt;

/// What the references of a job's messages are made of. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracking {
    /// The mesh's key of ids, which signs.
    pub ids: Arc<IdKey>,
    /// The region that works on the job.
    pub home: Region,
    /// Where the gateways are known outside of the mesh.
    pub public_url: Option<PublicUrl>,
    /// What the notifications of a mail's category are.
    pub kind: CategoryKind,
    /// When the message is sent.
    pub sent_at: Timestamp,
}

/// The headers that `email` has at a mail service: its own, and those for unsubscription.
pub(super) fn headers(email: &Email, unsubscribe: Option<&str>) -> Map<String, Value> {
    let own = email.headers.iter();
    let mut headers: Map<String, Value> = own.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    if let Some(url) = unsubscribe {
        headers.insert("List-Unsubscribe".to_owned(), format!("<{url}>").into());
        headers.insert("List-Unsubscribe-Post".to_owned(), "List-Unsubscribe=One-Click".into());
    }
    headers
}

impl Attempt<'_> {
    /// The signed reference of this attempt; `None` if the mesh makes none.
    pub(super) fn reference(&self) -> Option<String> {
        let tracking = self.message.tracking()?;
        self.stated(tracking).sign(&tracking.ids, self.app, &tracking.home)
    }

    /// The reference of this attempt for a bounce address; `None` if the mesh makes none.
    pub(super) fn short_reference(&self) -> Option<String> {
        let tracking = self.message.tracking()?;
        self.stated(tracking)
            .sign_short(&tracking.ids, self.app, &tracking.home)
    }

    /// Where `provider` is to report what becomes of this message; `None` if the gateways are not known outside.
    pub(super) fn callback_url(&self, provider: Provider) -> Option<String> {
        let public = self.message.tracking()?.public_url.as_ref()?;
        Some(format!("{public}/v1/callbacks/{provider}/{}", self.app))
    }

    /// The same with the reference of this attempt in its query.
    pub(super) fn callback_url_with_reference(&self, provider: Provider) -> Option<String> {
        let (url, reference) = (self.callback_url(provider)?, self.reference()?);
        Some(format!("{url}?{MEMBER}={reference}"))
    }

    /// Where one click unsubscribes the recipient (RFC 8058). `None` for what is critical, and for a mail to an address that is not
    /// registered and without a category, such as a one-time code: there is nothing to unsubscribe from.
    pub(super) fn unsubscribe_url(&self) -> Option<String> {
        let tracking = self.message.tracking()?;
        let public = tracking.public_url.as_ref()?;
        let job = self.message.job();
        let is_escapable =
            tracking.kind != CategoryKind::Critical && (job.recipient().is_some() || job.category.is_some());
        if job.channel() != Channel::Email || !is_escapable {
            return None;
        }
        let unsubscription = Unsubscription {
            reference: self.stated(tracking),
            category: job.category.clone(),
        };
        let token = unsubscription.sign(&tracking.ids, self.app, &tracking.home)?;
        Some(format!("{public}/u/{token}"))
    }

    fn stated(&self, tracking: &Tracking) -> Reference {
        let job = self.message.job();
        Reference {
            channel: job.channel(),
            notification: job.notification,
            job: Some(job.id),
            address: self.address.id,
            sent_at: Some(tracking.sent_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::{
        address::Address,
        content::{Content, push::Push},
        id::AppId,
        job::{Addressee, Job},
        testing::{address, id_key, job},
    };

    use super::*;
    use crate::providers::{Message, Recorded, Renditions};

    fn mail(change: impl FnOnce(&mut Job)) -> Job {
        let email = serde_json::from_str(r#"{"subject":"Hi","text":"Hi","headers":{"X-Order":"42"}}"#).unwrap();
        let mut job = Job {
            content: Content::Email(Arc::new(email)),
            ..job(
                &"shop".parse().unwrap(),
                "event",
                Push::default(),
                Timestamp::UNIX_EPOCH,
            )
        };
        change(&mut job);
        job
    }

    fn mailbox() -> Address {
        address(&"shop".parse().unwrap(), Provider::Smtp, "ann@example.com")
    }

    /// Calls `test` with an attempt at `job` in a mesh with a key of ids, or without. Its category `codes` is critical, all others
    /// are commercial.
    fn attempted<T>(job: Job, is_keyed: bool, public_url: Option<&str>, test: impl FnOnce(&Attempt<'_>) -> T) -> T {
        let (job, address) = (Arc::new(job), mailbox());
        let tracking = Tracking {
            ids: Arc::new(if is_keyed { id_key(7) } else { IdKey::unkeyed() }),
            home: "eu".parse().unwrap(),
            public_url: public_url.map(|url| serde_json::from_value(url.into()).unwrap()),
            kind: match &job.category {
                Some(category) if category.as_str() == "codes" => CategoryKind::Critical,
                Some(_) => CategoryKind::Commercial,
                None => CategoryKind::Default,
            },
            sent_at: Timestamp::from_second(1_764_000_000).unwrap(),
        };
        let message = Message::new(Arc::clone(&job), Renditions::default()).tracked(tracking);
        test(&Attempt {
            app: &job.app,
            address: &address,
            delivery: job.delivery(address.id),
            number: 1,
            message: &message,
            expires_at: job.expires_at(),
            handover: &Recorded,
        })
    }

    const PUBLIC_URL: Option<&str> = Some("https://peal.example.com");

    #[test]
    fn a_reference_leads_back_to_its_delivery_at_its_app_alone() {
        let regions: [Region; 2] = ["us".parse().unwrap(), "eu".parse().unwrap()];
        let open = |app: &str, text: &str| {
            let app: AppId = app.parse().unwrap();
            Reference::open(&id_key(7), &app, &regions, text).map(|(opened, home)| (opened, home.clone()))
        };
        attempted(mail(|_| ()), true, PUBLIC_URL, |attempt| {
            let reference = attempt.reference().unwrap();
            let (opened, home) = open("shop", &reference).unwrap();
            assert_eq!((opened.delivery(), home.as_str()), (Some(attempt.delivery), "eu"));
            assert_eq!(open("bank", &reference), None);
            let (short, _) = open("shop", &attempt.short_reference().unwrap()).unwrap();
            assert_eq!(
                (short.notification, short.address),
                (opened.notification, attempt.address.id)
            );
            let url = attempt.callback_url_with_reference(Provider::Twilio).unwrap();
            let expected = "https://peal.example.com/v1/callbacks/twilio/shop?peal_reference=";
            assert_eq!(url, format!("{expected}{reference}"));
            // Vonage takes at most 100 characters, and so do mail servers (RFC 3461 §4.4).
            assert!(reference.len() <= 100);
        });
        attempted(mail(|_| ()), false, PUBLIC_URL, |attempt| {
            assert_eq!((attempt.reference(), attempt.unsubscribe_url()), (None, None));
            assert_eq!(attempt.callback_url_with_reference(Provider::Twilio), None);
        });
        attempted(mail(|_| ()), true, None, |attempt| {
            assert!(attempt.reference().is_some());
            assert_eq!(
                (attempt.callback_url(Provider::Vonage), attempt.unsubscribe_url()),
                (None, None)
            );
        });
    }

    #[test]
    fn one_click_unsubscribes_from_the_category_unless_it_is_critical() {
        let regions: [Region; 1] = ["eu".parse().unwrap()];
        let url = |job: Job| {
            attempted(job, true, PUBLIC_URL, |attempt| {
                assert!(attempt.reference().is_some());
                attempt.unsubscribe_url()
            })
        };
        let category = |url: &str| {
            let token = url.strip_prefix("https://peal.example.com/u/").unwrap();
            let (app, opened, _) = Unsubscription::open(&id_key(7), &regions, token).unwrap();
            assert_eq!((app.as_str(), opened.reference.address), ("shop", mailbox().id));
            opened.category
        };
        assert_eq!(category(&url(mail(|_| ())).unwrap()), None);
        let news = url(mail(|job| job.category = Some("news".parse().unwrap()))).unwrap();
        assert_eq!(category(&news), Some("news".parse().unwrap()));
        let codes = mail(|job| job.category = Some("codes".parse().unwrap()));
        assert_eq!(url(codes), None, "what is critical cannot be unsubscribed from");
        let direct = |job: &mut Job| job.to = Addressee::Address(Box::new(mailbox()));
        assert_eq!(url(mail(direct)), None);
        let advertised = mail(|job| {
            direct(job);
            job.category = Some("offers".parse().unwrap());
        });
        assert_eq!(category(&url(advertised).unwrap()), Some("offers".parse().unwrap()));
        let push = job(
            &"shop".parse().unwrap(),
            "event",
            Push::default(),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(url(push), None);
        let email = mail(|_| ());
        let Content::Email(email) = &email.content else {
            panic!()
        };
        let written = headers(email, Some("https://peal.example.com/u/x"));
        assert_eq!(written["List-Unsubscribe"], "<https://peal.example.com/u/x>");
        assert_eq!(written["List-Unsubscribe-Post"], "List-Unsubscribe=One-Click");
        assert_eq!((&written["X-Order"], headers(email, None).len()), (&"42".into(), 1));
    }
}
