//! Where the facts of a recipient are, and to which recipient an address belongs.

pub(crate) mod homes;
pub(crate) mod owners;
