//! Why the push service refuses a push.

use http::StatusCode;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident, $http:ident;)*) => {
        /// The `reason` in the body of a refusal, as Apple's push service sends it. Apple documents the statuses and few of the
        /// words; those of the other rules are ours.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The HTTP status of the answer.
            pub const fn http_status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$http,)* }
            }
        }
    };
}

reasons! {
    /// `Topic` is not 1 to 32 characters of base64url (RFC 8030, section 5.4).
    BadWebPushTopic, BAD_REQUEST;
    /// `TTL` is missing or no number (RFC 8030, section 5.2).
    BadTtl, BAD_REQUEST;
    /// `Urgency` is none of the four words (RFC 8030, section 5.3).
    BadUrgency, BAD_REQUEST;
    /// `Content-Encoding` is not `aes128gcm`.
    BadContentEncoding, BAD_REQUEST;
    /// The browser cannot decrypt the body. A real push service does not know, and accepts it.
    DecryptionFailed, BAD_REQUEST;
    /// There is no VAPID token.
    MissingAuthorization, UNAUTHORIZED;
    /// The `Authorization` header is not `vapid t=…, k=…`.
    BadAuthorizationHeader, FORBIDDEN;
    /// The token's signature, audience, subject or expiry is wrong.
    BadJwtToken, FORBIDDEN;
    /// The subscription is restricted to another key.
    VapidPkHashMismatch, FORBIDDEN;
    /// There is no such subscription.
    NotFound, NOT_FOUND;
    /// Not a POST.
    MethodNotAllowed, METHOD_NOT_ALLOWED;
    /// The browser unsubscribed.
    Unregistered, GONE;
    /// The body has more than 4096 bytes.
    PayloadTooLarge, PAYLOAD_TOO_LARGE;
    /// Too many pushes.
    TooManyRequests, TOO_MANY_REQUESTS;
    /// The push service failed.
    InternalServerError, INTERNAL_SERVER_ERROR;
    /// The push service is not available.
    ServiceUnavailable, SERVICE_UNAVAILABLE;
}

impl Reason {
    /// The reason of this word.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }
}
