//! From an order to stored jobs.

pub(crate) mod accept;
pub(crate) mod content;
pub(crate) mod order;
pub(crate) mod publish;
