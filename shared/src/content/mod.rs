//! The content of a notification. In JSON, its member is named after its channel.

pub mod push;

use std::sync::Arc;

use self::push::Push;
use crate::{address::Target, channel::Channel, invalid::Invalid};

/// Longest life of a notification in seconds, on any channel: FCM's maximum of four weeks; Apple stores for 30 days.
pub const MAX_LIFE_S: u32 = 28 * 24 * 3600;

/// The content of a notification, for one channel. Cheap to clone: the jobs of a broadcast share it.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A push to a device.
    Push(Arc<Push>),
}

impl Content {
    /// The channel that the content is for.
    pub const fn channel(&self) -> Channel {
        match self {
            Self::Push(_) => Channel::Push,
        }
    }

    /// Checks the rules that the types do not enforce. `size` is the length in bytes of the JSON that contains this content:
    /// content far below every provider's limit is not rendered to check its size.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at the document that contains the content.
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

    /// Whether the content, rendered for this address, shows or runs anything.
    pub fn has_something_for(&self, target: &Target) -> bool {
        match self {
            Self::Push(push) => target.provider().has_something(push),
        }
    }

    /// Whether the content is for this kind of address.
    pub fn reaches(&self, target: &Target) -> bool {
        match self {
            Self::Push(push) => push.reaches(target),
        }
    }
}
