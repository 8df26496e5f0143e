//! Recipients: what callers state about them, their homes, where their facts are stored, the owners of addresses, and the
//! addresses that an app must not send to.

pub(crate) mod erasures;
pub(crate) mod export;
pub(crate) mod homes;
pub(crate) mod import;
pub(crate) mod owners;
pub(crate) mod register;
pub(crate) mod suppressions;
