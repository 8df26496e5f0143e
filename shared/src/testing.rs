//! Jobs and addresses for tests and measurements; behind the feature `testing`.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use crate::{
    address::{Address, Format, Receiver, Target},
    channel::{Channel, Class},
    content::{Content, push::Push},
    id::{AppId, EventId, JobId, NotificationId, RecipientId},
    id_key::IdKey,
    job::{Addressee, Job},
    provider::{
        Provider,
        apns::{self, Environment, Kind},
        fcm, hms, jpush, sns, web_push,
    },
    seal::MeshKey,
    trial::Trial,
};

/// A job at its first attempt, with `push` for the recipient `ann`, accepted in `eu`.
///
/// # Panics
/// If `event` is not an event id.
pub fn job(app: &AppId, event: &str, push: Push, accepted_at: Timestamp) -> Job {
    let event: EventId = event.parse().expect("tests name events validly");
    let recipient: RecipientId = "ann".parse().expect("a fixed word is a recipient");
    Job {
        id: JobId::of(&IdKey::unkeyed(), app, &event, &recipient, Channel::Push),
        notification: NotificationId::of(app, &event),
        app: app.clone(),
        class: Class::Normal,
        origin: "eu".parse().expect("a fixed word is a region"),
        accepted_at,
        attempt: 1,
        discounted: 0,
        remaining: None,
        slice: None,
        topic: None,
        event,
        to: Addressee::Recipient(recipient),
        proof: None,
        category: None,
        trial: Trial::NONE,
        content: Content::Push(push.into()),
        place: None,
    }
}

/// The public key of the subscription in RFC 8291, appendix A.
pub const WEB_PUSH_P256DH: &str =
    "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";

/// The secret of the same subscription.
pub const WEB_PUSH_AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

/// The address of a device, registered in 1970; for APNs, in the production environment. For web push the token is the endpoint,
/// and the keys are those of RFC 8291, appendix A. For webhooks it is a chat at the URL, for e-mail and the provider that sends
/// nothing a mailbox.
///
/// # Panics
/// If `token` is of another form.
pub fn address(app: &AppId, provider: Provider, token: &str) -> Address {
    let token = token.to_owned();
    let target = match provider {
        Provider::Apns => {
            apns::Target::new(&token, Kind::Device, Environment::Production, None, None).map(Target::Apns)
        }
        Provider::Fcm => fcm::Target::new(token).map(Target::Fcm),
        Provider::WebPush => {
            let [p256dh, auth] = [WEB_PUSH_P256DH, WEB_PUSH_AUTH];
            let keys = p256dh.parse().and_then(|p256dh| Ok((p256dh, auth.parse()?)));
            keys.and_then(|(p256dh, auth)| web_push::Target::new(&token, p256dh, auth))
                .map(Target::WebPush)
        }
        Provider::Smtp | Provider::SendGrid | Provider::Mailchimp | Provider::Log => token.parse().map(Target::Email),
        Provider::Twilio | Provider::Vonage => token.parse().map(Target::Phone),
        Provider::Hms => hms::Target::new(token, hms::Generation::Third).map(Target::Hms),
        Provider::JPush => jpush::Target::new(token).map(Target::JPush),
        Provider::Sns => sns::Target::new(&token).map(Target::Sns),
        Provider::Webhook => Receiver::new(&token, Format::Chat, None).map(Target::Webhook),
    };
    let target = target.expect("tests use valid tokens");
    Address::new(&IdKey::unkeyed(), app, target, Timestamp::UNIX_EPOCH)
}

/// A mesh key, always the same.
pub fn mesh_key() -> MeshKey {
    MeshKey::from_base64("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").expect("32 bytes of base64")
}

/// A key of ids, the same for the same seed.
///
/// # Panics
/// Never: it opens what it sealed.
pub fn id_key(seed: u8) -> IdKey {
    let mesh_key = mesh_key();
    let text = STANDARD.encode([seed; 32]);
    IdKey::open(&mesh_key, &mesh_key.seal("mesh/ids", &text)).expect("the key was sealed with this mesh key")
}
