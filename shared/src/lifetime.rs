//! How long a notification may live, whatever its channel.

/// Longest time to live in seconds: FCM's maximum of four weeks; Apple stores for 30 days.
pub const MAX_TTL_S: u32 = 28 * 24 * 3600;
