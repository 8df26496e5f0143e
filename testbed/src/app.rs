//! The app that every test mesh has.

/// Its id.
pub const APP: &str = "shop";

/// The bundle id of its iOS app, which is the topic of its pushes through APNs.
pub const TOPIC: &str = "com.example.shop";
