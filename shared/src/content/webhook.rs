//! The content of a webhook.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::check_life;
use crate::{
    address::Format,
    invalid::Invalid,
    tolerant::{self, objects},
};

/// Life of a webhook in seconds if the caller gives none: three days.
const LIFE_S: u32 = 3 * 24 * 3600;

/// Most bytes of `data` as JSON.
const MAX_DATA_BYTES: usize = 32_768;

/// Longest text for chats, in characters.
const MAX_TEXT_CHARACTERS: usize = 4000;

/// The content of a webhook.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Webhook {
    /// The type of the event.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// What happened, as signed receivers get it.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub data: Map<String, Value>,
    /// The text that chats get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Seconds after acceptance during which it is worth delivering; 0 means now or never. Default three days.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    pub ttl: Option<u32>,
}

objects!(Webhook);

impl Webhook {
    /// Time to live in seconds.
    pub fn ttl_s(&self) -> u32 {
        self.ttl.unwrap_or(LIFE_S)
    }

    /// Whether there is something for a receiver of this form.
    pub(super) fn has_something_for(&self, format: Format) -> bool {
        match format {
            Format::Signed => self.event_type.is_some(),
            Format::Chat => self.text.is_some(),
        }
    }

    /// Checks the rules that the types do not enforce.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at this struct.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        check_life(self.ttl_s())?;
        let is_type = |text: &String| {
            (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        match &self.event_type {
            Some(event_type) if !is_type(event_type) => {
                return Err(Invalid::new("type", "must be 1 to 128 of A-Z a-z 0-9 _ . -"));
            }
            None if self.text.is_none() => return Err(Invalid::new("type", "must be given, or text")),
            None if !self.data.is_empty() => return Err(Invalid::new("type", "must be given with data")),
            _ => {}
        }
        let is_text = |text: &String| (1..=MAX_TEXT_CHARACTERS).contains(&text.chars().count());
        if self.text.as_ref().is_some_and(|text| !is_text(text)) {
            return Err(Invalid::new("text", "must be 1 to 4000 characters"));
        }
        let size = serde_json::to_vec(&self.data).map_or(0, |json| json.len());
        if size > MAX_DATA_BYTES {
            return Err(Invalid::new("data", "must be at most 32768 bytes as JSON"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_that_breaks_a_rule_is_named() {
        for (field, webhook) in [
            ("", json!({ "type": "order.paid", "data": { "a": [1, {}] } })),
            ("", json!({ "text": "Paid" })),
            ("type", json!({})),
            ("type", json!({ "type": "a b" })),
            ("type", json!({ "text": "Paid", "data": { "a": 1 } })),
            ("text", json!({ "text": "" })),
            ("text", json!({ "text": "a".repeat(4001) })),
            ("data", json!({ "type": "a", "data": { "a": "b".repeat(32_768) } })),
            ("ttl", json!({ "type": "a", "ttl": 2_419_201 })),
        ] {
            let read: Webhook = serde_json::from_value(webhook).unwrap();
            let broken = read.check().map_or_else(|invalid| invalid.field, |()| String::new());
            assert_eq!(broken, field, "{read:?}");
        }
    }
}
