//! One mail as the body of a request (Mailchimp: "Send new message").
//!
//! Sender, subject, content and files are the same for all recipients, so they are rendered once; key and recipient are added.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use shared::{
    address::{Mailbox, NamedMailbox},
    content::email::{Attachment, Email},
    provider::{Provider, mailchimp::OWN},
    reference::MEMBER,
};

use super::config::Account;
use crate::providers::{Attempt, html::with_preheader, tracking::headers};

/// The body for `attempt`; `None` if the mail names no author, which a gateway fills in.
pub(super) fn body(account: &Account, attempt: &Attempt<'_>, email: &Email, to: &Mailbox) -> Option<Vec<u8>> {
    let from = email.from.as_ref()?;
    let shared = attempt.message.rendition(Provider::Mailchimp, || shared(email, from));
    let mut own = json!({
        "to": [{ "email": to.reveal(), "type": "to" }],
        // Webhooks name them, whatever becomes of the mail.
        "metadata": { "peal_delivery": attempt.delivery.to_string() },
    });
    if let Some(reference) = attempt.reference() {
        own["metadata"][MEMBER] = reference.into();
    }
    let mut headers = headers(email, attempt.unsubscribe_url().as_deref());
    if let Some(reply_to) = &email.reply_to {
        headers.insert("Reply-To".to_owned(), reply_to.email.reveal().into());
    }
    let over = email.mailchimp.as_ref().and_then(|over| over.payload.get("message"));
    let over = over.and_then(|message| message.get("headers")?.as_object());
    headers.extend(
        over.into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    if !headers.is_empty() {
        own["headers"] = headers.into();
    }
    if let Some(subaccount) = &account.subaccount {
        own["subaccount"] = subaccount.as_str().into();
    }
    let own = own.to_string();
    let key = Value::from(account.key.reveal()).to_string();
    let mut body = Vec::with_capacity(shared.len() + own.len() + key.len() + 64);
    body.extend_from_slice(b"{\"key\":");
    body.extend_from_slice(key.as_bytes());
    // The shared part ends within the message, without its closing brace, and the own part goes on with it.
    body.push(b',');
    body.extend_from_slice(shared);
    body.push(b',');
    body.extend_from_slice(&own.as_bytes()[1..]);
    body.push(b'}');
    Some(body)
}

fn shared(email: &Email, from: &NamedMailbox) -> Bytes {
    let mut mail = Map::new();
    let mut set = |name: &str, value: Value| mail.insert(name.to_owned(), value);
    set("from_email", from.email.reveal().into());
    if let Some(name) = &from.name {
        set("from_name", name.as_str().into());
    }
    set("subject", email.subject.as_str().into());
    if let Some(text) = &email.text {
        set("text", text.as_str().into());
    }
    if let Some(html) = &email.html {
        set("html", with_preheader(html, email.preheader.as_deref()).into());
    }
    let (inline, attached): (Vec<_>, Vec<_>) = email.attachments.iter().partition(|file| file.content_id.is_some());
    let file = |file: &Attachment| {
        // Its name is what HTML calls `cid:…`.
        let name = file.content_id.as_deref().unwrap_or(&file.name);
        json!({ "type": file.media_type, "name": name, "content": file.content })
    };
    for (name, files) in [("images", inline), ("attachments", attached)] {
        if !files.is_empty() {
            set(name, files.into_iter().map(file).collect());
        }
    }
    let mut request = Map::new();
    request.insert("async".to_owned(), false.into());
    request.insert("message".to_owned(), mail.into());
    if let Some(over) = &email.mailchimp {
        over.lay_over(&mut request, OWN);
    }
    let mut message = request.remove("message").unwrap_or_default();
    // They stand in the own part.
    message.as_object_mut().map(|members| members.remove("headers"));
    let (request, mut message) = (Value::Object(request).to_string(), message.to_string());
    message.pop();
    // Without the braces of the request.
    format!("{},\"message\":{message}", &request[1..request.len() - 1]).into()
}
