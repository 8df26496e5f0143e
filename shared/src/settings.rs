//! Settings: defaults, then a file, then the environment. Errors name the key and its source.

use std::path::Path;

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use serde::de::DeserializeOwned;

/// Unusable settings: names the key, the fault, and the file or variable that set it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadSettings(Box<figment::Error>);

/// Reads settings: `defaults` (TOML), then `file` if given, then variables `PEAL_…`, with `__` between the parts of a key.
///
/// # Errors
/// When the file is missing, a key is unknown, or a value does not fit.
pub fn load<T: DeserializeOwned>(defaults: &str, file: Option<&Path>) -> Result<T, BadSettings> {
    let mut figment = Figment::new().merge(Toml::string(defaults));
    if let Some(file) = file {
        figment = figment.merge(Toml::file_exact(file));
    }
    let known: Vec<String> = figment
        .extract::<figment::value::Dict>()
        .map_err(|error| BadSettings(error.into()))?
        .into_keys()
        .collect();
    // Only variables whose first part is a known key: other programs use the prefix PEAL_ too.
    let env = Env::prefixed("PEAL_").filter(move |key| {
        let first = key.as_str().to_ascii_lowercase();
        known
            .iter()
            .any(|name| first == *name || first.starts_with(&format!("{name}__")))
    });
    figment
        .merge(env.split("__"))
        .extract()
        .map_err(|error| BadSettings(error.into()))
}

/// Reads one TOML file, without defaults or environment.
///
/// # Errors
/// When the file is missing, a key is unknown, or a value does not fit.
pub fn read<T: DeserializeOwned>(file: &Path) -> Result<T, BadSettings> {
    Figment::from(Toml::file_exact(file))
        .extract()
        .map_err(|error| BadSettings(error.into()))
}
