//! What a write would change, by member, without secrets.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::{app::App, seal::MeshKey};
use utoipa::ToSchema;

use super::document::AppDocument;

/// One member that a write changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Change {
    /// Where: `quota.jobs_per_s`.
    pub(crate) member: String,
    /// Its value; absent if there is none, or it is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub(crate) from: Option<Value>,
    /// The value that is written; absent if it is removed, or is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub(crate) to: Option<Value>,
    /// It is a secret, which is not shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_secret: bool,
}

/// What changes between two documents.
pub(crate) fn between(former: &Value, new: &Value) -> Vec<Change> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten("", former, &mut before);
    flatten("", new, &mut after);
    let members: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = members
        .into_iter()
        .filter(|member| before.get(*member) != after.get(*member));
    changed
        .map(|member| Change {
            member: member.clone(),
            from: before.get(member).map(|value| (*value).clone()),
            to: after.get(member).map(|value| (*value).clone()),
            is_secret: false,
        })
        .collect()
}

/// What changes from `former` to `new`.
pub(super) fn of_app(former: Option<&App>, new: &App, mesh_key: &MeshKey) -> Vec<Change> {
    let shown = |app: &App| serde_json::to_value(AppDocument::of(app, mesh_key, Vec::new())).unwrap_or_default();
    let mut changes = between(&former.map(shown).unwrap_or_default(), &shown(new));
    for (provider, sealed) in &new.credentials {
        let known = former.and_then(|former| former.credentials.get(provider));
        if known.is_none_or(|known| known == sealed) {
            continue;
        }
        let open = |app: Option<&App>| app.and_then(|app| app.credential(mesh_key, *provider).ok().flatten());
        let has_same = match (open(former), open(Some(new))) {
            (Some(former), Some(new)) => former.has_secrets_of(&new),
            _ => false,
        };
        if !has_same {
            changes.push(secret(format!("credentials.{provider}")));
        }
    }
    let secret_of = |app: &App| app.alerts.as_ref().map(|alerts| alerts.secret.clone());
    let (before, after) = (former.and_then(secret_of), secret_of(new));
    if before.is_some() && after.is_some() && before != after {
        changes.push(secret("alerts.secret".to_owned()));
    }
    changes
}

fn secret(member: String) -> Change {
    Change {
        member,
        from: None,
        to: None,
        is_secret: true,
    }
}

/// The leaves of a document by their paths. Lists are leaves.
fn flatten<'a>(path: &str, value: &'a Value, leaves: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Null => {}
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                flatten(&path, value, leaves);
            }
        }
        leaf => drop(leaves.insert(path.to_owned(), leaf)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_named_by_member() {
        let former = json!({ "id": "shop", "quota": { "in_flight": 1 }, "sms_countries": ["CH"] });
        let new = json!({ "id": "shop", "quota": { "in_flight": 2, "jobs_per_s": 5 } });
        let changes = between(&former, &new);
        let seen: Vec<_> = changes
            .iter()
            .map(|change| (change.member.as_str(), change.from.clone(), change.to.clone()))
            .collect();
        let expected = [
            ("quota.in_flight", Some(json!(1)), Some(json!(2))),
            ("quota.jobs_per_s", None, Some(json!(5))),
            ("sms_countries", Some(json!(["CH"])), None),
        ];
        assert_eq!(seen, expected);
        assert!(between(&new, &new).is_empty());
    }
}
