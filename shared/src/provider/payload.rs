//! Overrides that are laid over a provider's request as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    invalid::Invalid,
    tolerant::{self, objects},
};

/// Most bytes of the members as JSON.
const MAX_BYTES: usize = 16_384;

/// Overrides for a provider.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct ProviderPayload {
    /// Laid over the provider's request, member by member. It may not change the target, the sender or the credential.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub payload: Map<String, Value>,
}

objects!(ProviderPayload);

impl ProviderPayload {
    /// Checks members that become fields of a form. `own` are those that Peal alone sets.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at this struct.
    pub(crate) fn check_form(&self, own: &[&str]) -> Result<(), Invalid> {
        let size = serde_json::to_vec(&self.payload).map_or(0, |json| json.len());
        if size > MAX_BYTES {
            return Err(Invalid::new("payload", "must be at most 16384 bytes as JSON"));
        }
        for (name, value) in &self.payload {
            let field = || format!("payload.{name}");
            if own.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                return Err(Invalid::new(
                    field(),
                    "must not be given: it is the target, the sender or the credential",
                ));
            }
            if text(value).is_none() {
                return Err(Invalid::new(field(), "must be a string, a number, true or false"));
            }
        }
        Ok(())
    }

    /// Lays the members on the fields of a form, but those that Peal alone sets.
    pub(crate) fn lay_on(&self, form: &mut BTreeMap<String, String>, own: &[&str]) {
        for (name, value) in &self.payload {
            let is_own = own.iter().any(|own| own.eq_ignore_ascii_case(name));
            if let (false, Some(value)) = (is_own, text(value)) {
                form.insert(name.clone(), value);
            }
        }
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_that_breaks_a_rule_is_named() {
        for (field, payload) in [
            ("", json!({ "a": "b", "c": 1, "d": true })),
            ("payload.to", json!({ "to": "x" })),
            ("payload.TO", json!({ "TO": "x" })),
            ("payload.a", json!({ "a": [1] })),
            ("payload.a", json!({ "a": null })),
            ("payload", json!({ "a": "b".repeat(16_384) })),
        ] {
            let given: ProviderPayload = serde_json::from_value(json!({ "payload": payload })).unwrap();
            let broken = given
                .check_form(&["to"])
                .map_or_else(|invalid| invalid.field, |()| String::new());
            assert_eq!(broken, field);
        }
    }
}
