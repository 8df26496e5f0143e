//! One push as the body of a request (Google: `projects.messages.send`).

use std::time::Duration;

use serde_json::{Value, json};
use shared::payload;

use crate::providers::Attempt;

/// By how much the life in the rendered message may exceed what is left of it.
const SLACK: u64 = 2;

/// The body for `attempt`, of whose life `left` is left.
///
/// FCM counts a message's life from when it gets it, so a late attempt says what is left. A life that the app itself
/// wrote into `push.fcm.android` stays.
pub(super) fn body(attempt: &Attempt<'_>, left: Duration) -> Vec<u8> {
    let message = attempt.message;
    let token = attempt.address.token.reveal();
    let own_life = message
        .push()
        .fcm
        .as_ref()
        .is_some_and(|over| over.android.contains_key("ttl"));
    if own_life || left.as_secs() + SLACK >= u64::from(message.push().ttl_s()) {
        return payload::fcm_request(message.fcm(), token);
    }
    let mut late = message.fcm().clone();
    if let Some(Value::Object(android)) = late.get_mut("android") {
        android.insert("ttl".into(), json!(format!("{}s", left.as_secs())));
    }
    payload::fcm_request(&late, token)
}
