//! What a notification says. The member of the JSON that has the content is named after its channel.

pub mod push;

use std::sync::Arc;

use self::push::Push;
use crate::{address::Target, channel::Channel, invalid::Invalid};

/// Longest life of a notification in seconds, on any channel: FCM's maximum of four weeks; Apple stores for 30 days.
pub const MAX_LIFE_S: u32 = 28 * 24 * 3600;

/// What a notification says, on one channel. Cheap to clone: members of a broadcast share it.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A push to a device.
    Push(Arc<Push>),
}

impl Content {
    /// The channel that it takes.
    pub const fn channel(&self) -> Channel {
        match self {
            Self::Push(_) => Channel::Push,
        }
    }

    /// Checks what the types do not. `size` is the length in bytes of JSON that has this content in it: content that is
    /// far below every provider's limit need not be rendered to know that it fits.
    ///
    /// # Errors
    /// The first member that breaks a rule, seen from the document that the content is in.
    pub fn check(&self, size: usize) -> Result<(), Invalid> {
        match self {
            Self::Push(push) => {
                push.check().map_err(|invalid| invalid.within("push"))?;
                if size <= push::SURELY_FITS {
                    Ok(())
                } else {
                    push.check_size()
                }
            }
        }
    }

    /// Seconds after acceptance during which it is worth delivering; 0 means now or never.
    pub fn life_s(&self) -> u32 {
        match self {
            Self::Push(push) => push.ttl_s(),
        }
    }

    /// Whether it is for this kind of address.
    pub fn reaches(&self, target: &Target) -> bool {
        match self {
            Self::Push(push) => push.reaches(target),
        }
    }
}
