//! The senders of an app: what may stand in `from`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    address::{Mailbox, NamedMailbox, is_domain},
    channel::Channel,
    content::{Content, sms},
    invalid::Invalid,
};

/// Most senders of a channel.
const MAX_SENDERS: usize = 100;

/// By channel, what may stand in `from`: mailboxes and domains for e-mail; numbers, short codes and words for text messages.
/// The first that can stand there is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Senders(BTreeMap<Channel, Vec<String>>);

impl Senders {
    /// No senders.
    pub const fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks their form.
    ///
    /// # Errors
    /// The first sender that breaks a rule; its path begins at the map.
    pub fn check(&self) -> Result<(), Invalid> {
        for (channel, senders) in &self.0 {
            let (may_send, rule): (fn(&str) -> bool, _) = match channel {
                Channel::Email => (
                    |text| is_domain(text) || text.parse::<Mailbox>().is_ok(),
                    "must be a mailbox or a domain",
                ),
                Channel::Sms => (
                    sms::is_sender,
                    "must be a number as in E.164, 3 to 8 digits, or 1 to 11 letters and digits with a letter",
                ),
                Channel::Push | Channel::Webhook => {
                    return Err(Invalid::new(channel.as_str(), "must be email or sms"));
                }
            };
            if !(1..=MAX_SENDERS).contains(&senders.len()) {
                return Err(Invalid::new(channel.as_str(), "must be 1 to 100 senders"));
            }
            if let Some(index) = senders.iter().position(|sender| !may_send(sender)) {
                return Err(Invalid::new(format!("{channel}[{index}]"), rule));
            }
        }
        Ok(())
    }

    /// `content` with a sender: its own if the app may use it, else the default.
    ///
    /// # Errors
    /// The sender, if the app may not use it, or there is no default where one is needed.
    pub fn fill_in(&self, mut content: Content) -> Result<Content, Invalid> {
        match &mut content {
            Content::Push(_) | Content::Webhook(_) => {}
            Content::Email(email) => match &email.from {
                Some(from) if self.of(Channel::Email).any(|sender| is_of(&from.email, sender)) => {}
                Some(_) => return Err(Invalid::new("email.from.email", "must be one of the app's senders")),
                None => {
                    let default = self.of(Channel::Email).find_map(|sender| sender.parse().ok());
                    let missing =
                        || Invalid::new("email.from", "must be given: the app has no mailbox among its senders");
                    let from = NamedMailbox {
                        email: default.ok_or_else(missing)?,
                        name: None,
                    };
                    Arc::make_mut(email).from = Some(from);
                }
            },
            Content::Sms(sms) => match &sms.from {
                Some(from) if self.of(Channel::Sms).any(|sender| sender == from) => {}
                Some(_) => return Err(Invalid::new("sms.from", "must be one of the app's senders")),
                // A provider may choose among the numbers of the account.
                None => {
                    let default = self.of(Channel::Sms).next().map(str::to_owned);
                    if default.is_some() {
                        Arc::make_mut(sms).from = default;
                    }
                }
            },
        }
        Ok(content)
    }

    fn of(&self, channel: Channel) -> impl Iterator<Item = &str> {
        self.0.get(&channel).into_iter().flatten().map(String::as_str)
    }
}

/// Whether a sender, a mailbox or a domain, covers `mailbox`.
fn is_of(mailbox: &Mailbox, sender: &str) -> bool {
    match sender.parse::<Mailbox>() {
        Ok(sender) => sender == *mailbox,
        Err(_) => sender.eq_ignore_ascii_case(mailbox.domain()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::content::{email::Email, sms::Sms};

    fn senders(json: Value) -> Senders {
        serde_json::from_value(json).unwrap()
    }

    fn email(from: Option<&str>) -> Content {
        let from = from.map(|email| json!({ "email": email }));
        let email: Email = serde_json::from_value(json!({ "subject": "Hi", "text": "x", "from": from })).unwrap();
        Content::Email(email.into())
    }

    #[test]
    fn an_email_comes_from_a_mailbox_or_domain_of_the_app() {
        let shop = senders(json!({ "email": ["shop.example", "news@other.example"] }));
        shop.check().unwrap();
        let from = |content: Content| match shop.fill_in(content) {
            Ok(Content::Email(email)) => Ok(email.from.clone().unwrap().email.reveal().to_owned()),
            Ok(other) => panic!("{other:?}"),
            Err(invalid) => Err(invalid),
        };
        assert_eq!(from(email(None)), Ok("news@other.example".to_owned()));
        assert_eq!(from(email(Some("ann@Shop.Example"))), Ok("ann@shop.example".to_owned()));
        assert_eq!(
            from(email(Some("news@other.example"))),
            Ok("news@other.example".to_owned())
        );
        for foreign in ["ceo@other.example", "ann@bank.example", "ann@sub.shop.example"] {
            assert_eq!(from(email(Some(foreign))).unwrap_err().field, "email.from.email");
        }
        assert_eq!(Senders::default().fill_in(email(None)).unwrap_err().field, "email.from");
    }

    #[test]
    fn a_text_message_may_leave_the_sender_to_the_provider() {
        let sms = |from: Option<&str>| {
            let sms: Sms = serde_json::from_value(json!({ "text": "x", "from": from })).unwrap();
            Content::Sms(sms.into())
        };
        let shop = senders(json!({ "sms": ["Shop", "+41791234567"] }));
        shop.check().unwrap();
        assert_eq!(shop.fill_in(sms(None)), Ok(sms(Some("Shop"))));
        assert_eq!(shop.fill_in(sms(Some("+41791234567"))), Ok(sms(Some("+41791234567"))));
        assert_eq!(shop.fill_in(sms(Some("Bank"))).unwrap_err().field, "sms.from");
        assert_eq!(Senders::default().fill_in(sms(None)), Ok(sms(None)));
    }

    #[test]
    fn a_sender_that_breaks_a_rule_is_named() {
        for (field, bad) in [
            ("email[1]", json!({ "email": ["a.example", "b c"] })),
            ("sms[0]", json!({ "sms": ["Much too long a word"] })),
            ("email", json!({ "email": [] })),
            ("push", json!({ "push": ["x"] })),
        ] {
            assert_eq!(senders(bad).check().unwrap_err().field, field);
        }
    }
}
