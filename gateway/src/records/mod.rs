//! What happened: the records that gateways write, the receipts of the workers, what both come to, and dead letters.

pub(crate) mod alerts;
pub(crate) mod broadcast;
pub(crate) mod dead_letters;
pub(crate) mod receipts;
pub(crate) mod recorder;
pub(crate) mod status;
