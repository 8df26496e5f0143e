//! Turns an order into stored jobs.

pub(crate) mod accept;
pub(crate) mod body;
pub(crate) mod budget;
pub(crate) mod meter;
pub(crate) mod moved;
pub(crate) mod order;
pub(crate) mod plan;
pub(crate) mod publish;
pub(crate) mod request;
pub(crate) mod waiting;
