//! One mail as the body of a request (`SendGrid`: Mail Send API v3).
//!
//! Sender, subject, content and files are the same for all recipients, so they are rendered once; the recipient is added.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use shared::{
    address::{Mailbox, NamedMailbox},
    content::email::Email,
    provider::{Provider, sendgrid::OWN},
    reference::MEMBER,
};

use crate::providers::{Attempt, html::with_preheader, tracking::headers};

/// The body for `attempt`; `None` if the mail names no author, which a gateway fills in.
pub(super) fn body(attempt: &Attempt<'_>, email: &Email, to: &Mailbox) -> Option<Vec<u8>> {
    let from = email.from.as_ref()?;
    let shared = attempt.message.rendition(Provider::SendGrid, || shared(email, from));
    let mut personal = json!({
        "to": [{ "email": to.reveal() }],
        // Events name them, whatever becomes of the mail.
        "custom_args": { "peal_delivery": attempt.delivery.to_string() },
    });
    if let Some(reference) = attempt.reference() {
        personal["custom_args"][MEMBER] = reference.into();
    }
    let headers = headers(email, attempt.unsubscribe_url().as_deref());
    if !headers.is_empty() {
        personal["headers"] = headers.into();
    }
    let mut body = Vec::with_capacity(shared.len() + 256);
    // The shared part is an object without its closing brace.
    body.extend_from_slice(shared);
    body.extend_from_slice(b",\"personalizations\":[");
    body.extend_from_slice(personal.to_string().as_bytes());
    body.extend_from_slice(b"]}");
    Some(body)
}

fn shared(email: &Email, from: &NamedMailbox) -> Bytes {
    let mut mail = Map::new();
    mail.insert("from".to_owned(), named(from));
    if let Some(reply_to) = &email.reply_to {
        mail.insert("reply_to".to_owned(), named(reply_to));
    }
    mail.insert("subject".to_owned(), email.subject.clone().into());
    let text = email.text.as_deref().filter(|text| !text.is_empty());
    let html = email.html.as_deref().filter(|html| !html.is_empty());
    let html = html.map(|html| with_preheader(html, email.preheader.as_deref()));
    // Text must come first.
    let text = text.map(|text| json!({ "type": "text/plain", "value": text }));
    let html = html.map(|html| json!({ "type": "text/html", "value": html }));
    mail.insert("content".to_owned(), [text, html].into_iter().flatten().collect());
    if !email.attachments.is_empty() {
        let files = email.attachments.iter().map(|file| {
            let mut attachment = json!({ "content": file.content, "filename": file.name, "type": file.media_type });
            match &file.content_id {
                Some(id) => {
                    attachment["disposition"] = "inline".into();
                    attachment["content_id"] = id.as_str().into();
                }
                None => attachment["disposition"] = "attachment".into(),
            }
            attachment
        });
        mail.insert("attachments".to_owned(), files.collect());
    }
    if let Some(over) = &email.sendgrid {
        over.lay_over(&mut mail, OWN);
    }
    let mut text = Value::Object(mail).to_string();
    text.pop();
    text.into()
}

fn named(mailbox: &NamedMailbox) -> Value {
    match mailbox.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => json!({ "email": mailbox.email.reveal(), "name": name }),
        None => json!({ "email": mailbox.email.reveal() }),
    }
}
