//! Sealing the secrets of an entry of the configuration under the first of the mesh's keys. Entries are taken as JSON: those of a
//! newer version keep members that this one does not know.

use serde_json::Value;

use super::{APP, ID_KEY, KEY, LEGACIES, OPERATOR, opened};
use crate::{
    api_key::ApiKey,
    app::{alerts_seal_name, seal_name_of},
    id::AppId,
    id_key,
    seal::{Legacy, MeshKey, SealError, Sealed},
};

/// The entry with its secrets resealed; `None` if nothing is to be changed.
pub(super) fn entry(kind: &str, name: &str, json: &[u8], mesh_key: &MeshKey) -> Result<Option<Value>, SealError> {
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else {
        return Ok(None);
    };
    let before = value.clone();
    match kind {
        APP => {
            let Ok(app) = name.parse::<AppId>() else {
                return Ok(None);
            };
            if let Some(secret) = value.pointer_mut("/alerts/secret") {
                all(secret, &alerts_seal_name(&app), mesh_key)?;
            }
            // As 0.1 stored them, two stand beside the others.
            for former in ["apns", "fcm"] {
                if let Some(credential) = value.get_mut(former) {
                    credentials(credential, &seal_name_of(&app, former), mesh_key)?;
                }
            }
            let sealed = value.get_mut("credentials").and_then(Value::as_object_mut);
            for (provider, credential) in sealed.into_iter().flatten() {
                credentials(credential, &seal_name_of(&app, provider), mesh_key)?;
            }
        }
        KEY | OPERATOR => {
            let app = value
                .get("app")
                .and_then(Value::as_str)
                .and_then(|app| app.parse().ok());
            if let (Some(app), Some(secret)) = (app, value.get_mut("signing_secret")) {
                all(secret, &ApiKey::seal_name(&app, name), mesh_key)?;
            }
        }
        "mesh" if name == ID_KEY => {
            if let Some(secret) = value.get_mut("sealed") {
                all(secret, id_key::SEAL_NAME, mesh_key)?;
            }
        }
        "mesh" if name == LEGACIES => {
            if let Some(secrets) = value.get_mut("sealed") {
                all(secrets, LEGACIES, mesh_key)?;
                let known: Vec<Sealed> = serde_json::from_value(secrets.clone()).map_err(|_| SealError::Closed)?;
                *secrets = serde_json::to_value(legacies(&known, mesh_key)).expect("sealed secrets serialize");
            }
        }
        _ => {}
    }
    Ok((value != before).then_some(value))
}

/// What former keys left, `known` among it, with what the keys behind the first leave.
pub(super) fn legacies(known: &[Sealed], mesh_key: &MeshKey) -> Vec<Sealed> {
    let kept = opened(known, mesh_key);
    let seal = |legacy: &Legacy| {
        let json = serde_json::to_string(legacy).expect("a legacy serializes");
        mesh_key.seal(LEGACIES, &json)
    };
    let added = mesh_key.legacies();
    let added = added.iter().filter(|legacy| !kept.contains(legacy)).map(seal);
    known.iter().cloned().chain(added).collect()
}

/// Reseals a credential: sealed whole, or as 0.1 stored it, with one member sealed among others in the clear.
fn credentials(value: &mut Value, name: &str, mesh_key: &MeshKey) -> Result<(), SealError> {
    match value {
        Value::Object(members) => {
            for member in ["private_key", "service_account"] {
                if let Some(secret) = members.get_mut(member) {
                    all(secret, name, mesh_key)?;
                }
            }
            Ok(())
        }
        secrets => all(secrets, name, mesh_key),
    }
}

/// Reseals a secret, or each of a list.
fn all(value: &mut Value, name: &str, mesh_key: &MeshKey) -> Result<(), SealError> {
    match value {
        Value::Array(secrets) => secrets.iter_mut().try_for_each(|secret| all(secret, name, mesh_key)),
        Value::String(_) => {
            let sealed: Sealed = serde_json::from_value(value.clone()).map_err(|_| SealError::Closed)?;
            if let Some(resealed) = mesh_key.reseal(name, &sealed)? {
                *value = serde_json::to_value(resealed).expect("a sealed secret serializes");
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        api_key::{NewKey, Scope},
        app::App,
        id_key::IdKey,
        provider::{Credential, log},
    };

    fn keys(bytes: &[u8]) -> MeshKey {
        let texts: Vec<String> = bytes.iter().map(|byte| STANDARD.encode([*byte; 32])).collect();
        MeshKey::from_base64(&texts.join(" ")).unwrap()
    }

    /// Reseals an entry from key 7 to key 8. Doing so again changes nothing.
    fn resealed(kind: &str, name: &str, value: &Value) -> Value {
        let both = keys(&[8, 7]);
        let changed = entry(kind, name, value.to_string().as_bytes(), &both).unwrap().unwrap();
        let again = entry(kind, name, changed.to_string().as_bytes(), &both).unwrap();
        assert_eq!(again, None, "{kind} {name}");
        let refused = entry(kind, name, value.to_string().as_bytes(), &keys(&[9, 8]));
        assert!(kind == "mesh" && name == LEGACIES || refused == Err(SealError::Closed));
        changed
    }

    #[test]
    fn every_secret_of_the_configuration_opens_with_the_new_key_alone() {
        let (old, new) = (keys(&[7]), keys(&[8]));
        let id: AppId = "shop".parse().unwrap();
        let mut app = App::new(id.clone(), "eu".parse().unwrap());
        app.seal(&old, &Credential::Log(log::Credential::default()));
        let mut value = serde_json::to_value(&app).unwrap();
        value["newer"] = json!({ "kept": true });
        value["alerts"] = json!({ "url": "https://x", "secret": old.seal(&alerts_seal_name(&id), "whsec_") });
        value["fcm"] = json!({ "project_id": "p", "service_account": old.seal("shop/fcm", "{}") });
        let changed = resealed("app", "shop", &value);
        assert_eq!(changed["newer"], value["newer"]);
        let read: App = serde_json::from_value(changed.clone()).unwrap();
        assert!(
            new.open(&alerts_seal_name(&id), &read.alerts.as_ref().unwrap().secret)
                .is_ok()
        );
        let former: Sealed = serde_json::from_value(changed["fcm"]["service_account"].clone()).unwrap();
        assert!(new.open("shop/fcm", &former).is_ok());
        let log: Sealed = serde_json::from_value(changed["credentials"]["log"].clone()).unwrap();
        assert!(new.open("shop/log", &log).is_ok());

        let signing = NewKey {
            signing: true,
            ..NewKey::with(&[Scope::Send])
        };
        let (key, _) = ApiKey::issue(&old, id, signing, Timestamp::UNIX_EPOCH);
        let key: ApiKey =
            serde_json::from_value(resealed("key", &key.key_id, &serde_json::to_value(&key).unwrap())).unwrap();
        assert!(key.signing_secret(&new).is_some());

        let sealed = json!({ "sealed": IdKey::generate(&old) });
        let before = IdKey::open(&old, &serde_json::from_value(sealed["sealed"].clone()).unwrap()).unwrap();
        let changed = resealed("mesh", ID_KEY, &sealed);
        let after = IdKey::open(&new, &serde_json::from_value(changed["sealed"].clone()).unwrap()).unwrap();
        assert_eq!(
            before.derive("job", &["x"]),
            after.derive("job", &["x"]),
            "the ids stay"
        );

        let first = resealed("mesh", LEGACIES, &json!({ "sealed": [] }));
        let legacies = first["sealed"].as_array().unwrap();
        assert_eq!(legacies.len(), 1);
        let next = keys(&[9, 8]);
        let second = entry("mesh", LEGACIES, first.to_string().as_bytes(), &next)
            .unwrap()
            .unwrap();
        assert_eq!(second["sealed"].as_array().unwrap().len(), 2);
        for sealed in second["sealed"].as_array().unwrap() {
            let sealed: Sealed = serde_json::from_value(sealed.clone()).unwrap();
            assert!(keys(&[9]).open(LEGACIES, &sealed).is_ok());
        }
        assert_eq!(entry("region", "eu", b"{}", &next), Ok(None));
    }
}
