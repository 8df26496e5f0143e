//! The errors of APNs.

use http::StatusCode;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $status:ident,)*) => {
        /// Why APNs refused a push: the `reason` in its answer.
        ///
        /// From Apple's "Handling notification responses from APNs", and two that live servers are known to send.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The `reason` in the body.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The HTTP status of the answer.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }
        }
    };
}

reasons! {
    /// `apns-collapse-id` is longer than 64 bytes.
    BadCollapseId = BAD_REQUEST,
    /// The device token is not hexadecimal, or not one of this environment.
    BadDeviceToken = BAD_REQUEST,
    /// `apns-expiration` is not a number.
    BadExpirationDate = BAD_REQUEST,
    /// `apns-id` is not a UUID.
    BadMessageId = BAD_REQUEST,
    /// `apns-priority` is not 10, 5 or 1, or is 10 for a background push.
    BadPriority = BAD_REQUEST,
    /// `apns-topic` is malformed.
    BadTopic = BAD_REQUEST,
    /// The token belongs to another app.
    DeviceTokenNotForTopic = BAD_REQUEST,
    /// A header occurs twice.
    DuplicateHeaders = BAD_REQUEST,
    /// The connection was idle for too long.
    IdleTimeout = BAD_REQUEST,
    /// `apns-push-type` is not a known type.
    InvalidPushType = BAD_REQUEST,
    /// The path has no device token.
    MissingDeviceToken = BAD_REQUEST,
    /// There is no `apns-topic`.
    MissingTopic = BAD_REQUEST,
    /// There is no payload.
    PayloadEmpty = BAD_REQUEST,
    /// The sender, or this type of push, may not use the topic.
    TopicDisallowed = BAD_REQUEST,
    /// The certificate is invalid.
    BadCertificate = FORBIDDEN,
    /// The certificate is for another environment.
    BadCertificateEnvironment = FORBIDDEN,
    /// The key is for another environment.
    BadEnvironmentKeyIdInToken = FORBIDDEN,
    /// Another spelling of [`Self::BadEnvironmentKeyIdInToken`], observed from live servers.
    BadEnvironmentKeyInToken = FORBIDDEN,
    /// The provider token is older than an hour.
    ExpiredProviderToken = FORBIDDEN,
    /// The sender has no permission; also the answer to a second team on one connection.
    Forbidden = FORBIDDEN,
    /// The provider token is malformed, not signed by a known key, or from the future.
    InvalidProviderToken = FORBIDDEN,
    /// There is no provider token.
    MissingProviderToken = FORBIDDEN,
    /// The key is unrelated to the one first used on the connection.
    UnrelatedKeyIdInToken = FORBIDDEN,
    /// The path is not `/3/device/{token}`.
    BadPath = NOT_FOUND,
    /// The method is not POST.
    MethodNotAllowed = METHOD_NOT_ALLOWED,
    /// The device token has expired; comes with a `timestamp`.
    ExpiredToken = GONE,
    /// The device token is no longer active; comes with a `timestamp`.
    Unregistered = GONE,
    /// The payload is longer than 4096 bytes, or 5120 for `voip`.
    PayloadTooLarge = PAYLOAD_TOO_LARGE,
    /// The team changes its provider token more often than every 20 minutes.
    TooManyProviderTokenUpdates = TOO_MANY_REQUESTS,
    /// Too many pushes to one device.
    TooManyRequests = TOO_MANY_REQUESTS,
    /// APNs failed.
    InternalServerError = INTERNAL_SERVER_ERROR,
    /// APNs is unavailable.
    ServiceUnavailable = SERVICE_UNAVAILABLE,
    /// The server is shutting down; a new connection reaches another one.
    Shutdown = SERVICE_UNAVAILABLE,
}

impl Reason {
    /// The reason of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }
}
