//! Recipients: what callers state about them, their homes, where their facts are stored, and the owners of addresses.

pub(crate) mod homes;
pub(crate) mod import;
pub(crate) mod owners;
pub(crate) mod register;
