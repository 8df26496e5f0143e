//! Why a worker cannot start.

use shared::{
    nats::{connect::ConnectError, topology::ApplyError},
    seal::SealError,
};

use crate::{cache, ledger, providers::BadSettings};

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The mesh key is missing or malformed.
    #[error("mesh_key: {0}")]
    MeshKey(#[from] SealError),
    /// A certificate, an endpoint or a time limit of a provider cannot be used.
    #[error("providers: {0}")]
    Providers(#[from] BadSettings),
    /// The folder of cache and ledger, or the address to listen on, cannot be used. The first field names the setting.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// NATS cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refuses to let this process read the configuration of the streams.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] cache::StoreError),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] ledger::StoreError),
}
