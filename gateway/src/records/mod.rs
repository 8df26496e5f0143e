//! What happened to notifications: the gateways' records, the workers' receipts, the status that follows from both,
//! feedback, dead letters and alerts.

pub(crate) mod alerts;
pub(crate) mod broadcast;
pub(crate) mod dead_letters;
pub(crate) mod feedback;
pub(crate) mod receipts;
pub(crate) mod recorder;
pub(crate) mod status;
