//! The identities in one mesh: certificates, and an `NKey` for each role.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use shared::nats::{nkey::Nkey, roles::Role};
use tempfile::TempDir;

use crate::providers::Authority;

/// Keys in a temporary folder. Each key is generated when it is first used. Clones share the same keys.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: TempDir,
    generated: Mutex<HashMap<String, Key>>,
}

/// One `NKey`.
#[derive(Debug, Clone)]
pub struct Key {
    /// The file with the seed.
    pub file: PathBuf,
    /// The seed.
    pub seed: String,
    /// The public half.
    pub public: String,
}

impl Keys {
    /// Generates a certificate authority and a certificate.
    ///
    /// # Errors
    /// When they cannot be generated or written.
    pub fn generate() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("nats-keys-").tempdir()?;
        let authority = Authority::generate()?;
        fs::write(folder.path().join("ca.pem"), authority.pem())?;
        fs::write(folder.path().join("cert.pem"), authority.leaf_pem())?;
        fs::write(folder.path().join("key.pem"), authority.key_pem())?;
        Ok(Self(Arc::new(Inner {
            folder,
            generated: Mutex::default(),
        })))
    }

    /// The certificate authority that signed every certificate, a PEM file.
    pub fn ca(&self) -> PathBuf {
        self.folder().join("ca.pem")
    }

    /// The certificate of every server and client, a PEM file.
    pub fn cert(&self) -> PathBuf {
        self.folder().join("cert.pem")
    }

    /// The private key of [`Self::cert`], a PEM file.
    pub fn key(&self) -> PathBuf {
        self.folder().join("key.pem")
    }

    /// The key of a role. All operators share one key.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn of(&self, role: &Role) -> anyhow::Result<Key> {
        match role {
            Role::Operator(_) => self.named("operator"),
            // A worker has the same key at home and where it helps.
            Role::Helper(_, from) => self.of(&Role::Worker(from.clone())),
            Role::Service(app) => self.named(&format!("app-{app}")),
            role => self.named(&role.inbox()),
        }
    }

    /// The key of the user of the servers' own account.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn of_system(&self) -> anyhow::Result<Key> {
        self.named("system")
    }

    /// The key of the test itself, which has all permissions.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn of_test(&self) -> anyhow::Result<Key> {
        self.named("test")
    }

    fn named(&self, name: &str) -> anyhow::Result<Key> {
        let mut generated = self.0.generated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = generated.get(name) {
            return Ok(key.clone());
        }
        let nkey = Nkey::generate();
        let key = Key {
            file: self.folder().join(format!("{name}.nk")),
            seed: nkey.seed.reveal().to_owned(),
            public: nkey.public,
        };
        fs::write(&key.file, &key.seed)?;
        generated.insert(name.to_owned(), key.clone());
        Ok(key)
    }

    fn folder(&self) -> &Path {
        self.0.folder.path()
    }
}
