//! Where recipients live, and to whom an address belongs.

pub(crate) mod homes;
pub(crate) mod owners;
