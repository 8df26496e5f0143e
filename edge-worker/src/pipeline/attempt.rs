//! One attempt as the pipeline sees it.

use shared::address::Address;

use crate::providers::Attempted;

/// One attempt at one address of a recipient.
#[derive(Debug)]
pub(super) struct AddressAttempt {
    pub(super) address: Address,
    /// The revision of the address in the bucket of recipients.
    pub(super) revision: u64,
    pub(super) attempted: Attempted,
}
