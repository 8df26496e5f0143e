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

const OWN_RULE: &str = "must not be given: it is the target, the sender or the credential";

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
    /// Checks members that are laid over a document. `own` are the paths of those that Peal alone sets.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at this struct.
    pub(crate) fn check(&self, own: &[&str]) -> Result<(), Invalid> {
        self.check_size()?;
        let given = |path: &&&str| {
            let mut names = path.split('.');
            let first = names.next().and_then(|name| self.payload.get(name));
            names.try_fold(first?, |value, name| value.get(name))
        };
        match own.iter().find(|path| given(path).is_some()) {
            Some(path) => Err(Invalid::new(format!("payload.{path}"), OWN_RULE)),
            None => Ok(()),
        }
    }

    /// Lays the members over a document, but those that Peal alone sets.
    pub fn lay_over(&self, document: &mut Map<String, Value>, own: &[&str]) {
        let mut members = self.payload.clone();
        for path in own {
            let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
            let parent = parents
                .split('.')
                .filter(|name| !name.is_empty())
                .try_fold(&mut members, |members, name| members.get_mut(name)?.as_object_mut());
            if let Some(parent) = parent {
                parent.remove(name);
            }
        }
        super::lay_over(document, &members);
    }

    fn check_size(&self) -> Result<(), Invalid> {
        let size = serde_json::to_vec(&self.payload).map_or(0, |json| json.len());
        if size > MAX_BYTES {
            return Err(Invalid::new("payload", "must be at most 16384 bytes as JSON"));
        }
        Ok(())
    }

    /// Checks members that become fields of a form. `own` are those that Peal alone sets.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at this struct.
    pub(crate) fn check_form(&self, own: &[&str]) -> Result<(), Invalid> {
        self.check_size()?;
        for (name, value) in &self.payload {
            let field = || format!("payload.{name}");
            if own.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                return Err(Invalid::new(field(), OWN_RULE));
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
    fn what_peal_alone_sets_is_refused_and_never_laid_over_a_document() {
        let own = ["key", "message.to"];
        let of = |payload: Value| serde_json::from_value::<ProviderPayload>(json!({ "payload": payload })).unwrap();
        for (field, payload) in [
            ("", json!({ "async": true, "message": { "tags": ["a"] } })),
            ("payload.key", json!({ "key": "x" })),
            ("payload.message.to", json!({ "message": { "to": [] } })),
            ("payload", json!({ "a": "b".repeat(16_384) })),
        ] {
            let broken = of(payload)
                .check(&own)
                .map_or_else(|invalid| invalid.field, |()| String::new());
            assert_eq!(broken, field);
        }
        let Value::Object(mut document) = json!({ "key": "k", "message": { "to": ["ann"], "text": "Hi" } }) else {
            unreachable!()
        };
        of(json!({ "key": "x", "message": { "to": [], "tags": ["a"] }, "async": true })).lay_over(&mut document, &own);
        assert_eq!(
            Value::Object(document),
            json!({ "key": "k", "message": { "to": ["ann"], "text": "Hi", "tags": ["a"] }, "async": true })
        );
    }

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
