//! Recipients: their homes, where their facts are stored, and the owners of addresses.

pub(crate) mod homes;
pub(crate) mod owners;
