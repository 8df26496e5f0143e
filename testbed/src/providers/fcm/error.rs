//! The errors of the FCM HTTP v1 API.

use http::StatusCode;
use serde_json::{Value, json};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $http:ident, $status:literal, $message:literal;)*) => {
        /// Why FCM refused a message: the `errorCode` in its answer.
        ///
        /// From Google's reference of `google.firebase.fcm.v1.ErrorCode`; the last two are plain Google API errors
        /// that carry no `FcmError` detail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The `errorCode`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status of the answer.
            pub const fn http_status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$http,)* }
            }

            /// The canonical status, `error.status`.
            pub const fn status(self) -> &'static str {
                match self { $(Self::$name => $status,)* }
            }

            /// The text that Google sends in `error.message`.
            pub const fn message(self) -> &'static str {
                match self { $(Self::$name => $message,)* }
            }
        }
    };
}

codes! {
    /// The message or the token is malformed.
    InvalidArgument = "INVALID_ARGUMENT", BAD_REQUEST, "INVALID_ARGUMENT",
        "Request contains an invalid argument.";
    /// The project's own APNs key or web push key is wrong or missing.
    ThirdPartyAuthError = "THIRD_PARTY_AUTH_ERROR", UNAUTHORIZED, "UNAUTHENTICATED",
        "Auth error from APNS or Web Push Service";
    /// The token belongs to another project.
    SenderIdMismatch = "SENDER_ID_MISMATCH", FORBIDDEN, "PERMISSION_DENIED",
        "SenderId mismatch";
    /// The token is no longer valid.
    Unregistered = "UNREGISTERED", NOT_FOUND, "NOT_FOUND",
        "Requested entity was not found.";
    /// Too many messages; `Retry-After` contains the time to wait.
    QuotaExceeded = "QUOTA_EXCEEDED", TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED",
        "Quota exceeded for quota metric 'Messages sent' and limit 'Messages sent per minute'.";
    /// FCM failed.
    Internal = "INTERNAL", INTERNAL_SERVER_ERROR, "INTERNAL",
        "Internal error encountered.";
    /// FCM is unavailable.
    Unavailable = "UNAVAILABLE", SERVICE_UNAVAILABLE, "UNAVAILABLE",
        "The service is currently unavailable.";
    /// The OAuth access token is missing, unknown or expired.
    Unauthenticated = "UNAUTHENTICATED", UNAUTHORIZED, "UNAUTHENTICATED",
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid \
         authentication credential.";
    /// The access token may not send for this project.
    PermissionDenied = "PERMISSION_DENIED", FORBIDDEN, "PERMISSION_DENIED",
        "Permission 'cloudmessaging.messages.create' denied on resource.";
}

/// An invalid field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) field: String,
    pub(crate) description: String,
}

impl Violation {
    pub(crate) fn new(field: &str, description: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            description: description.into(),
        }
    }
}

impl ErrorCode {
    /// The code of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }

    /// The body of the answer.
    pub(crate) fn body(self) -> Value {
        let details = match self {
            Self::Unauthenticated | Self::PermissionDenied => json!([]),
            _ => json!([self.detail()]),
        };
        error_body(self.http_status(), self.status(), self.message(), details)
    }

    fn detail(self) -> Value {
        json!({
            "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError",
            "errorCode": self.as_str(),
        })
    }
}

/// The body for a scripted error: that of its code, or one made from an unknown reason and status.
pub(crate) fn scripted_body(reason: &str, status: StatusCode) -> Value {
    let Some(code) = ErrorCode::parse(reason) else {
        let detail = json!([{
            "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError",
            "errorCode": reason,
        }]);
        return error_body(status, reason, reason, detail);
    };
    let mut body = code.body();
    body["error"]["code"] = status.as_u16().into();
    body
}

/// The body for invalid fields. Google adds its `FcmError` only if it could parse the request.
pub(crate) fn violations_body(violations: &[Violation], readable: bool) -> Value {
    let list: Vec<Value> = violations
        .iter()
        .map(|violation| json!({ "field": violation.field, "description": violation.description }))
        .collect();
    let bad_request = json!({
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": list,
    });
    let code = ErrorCode::InvalidArgument;
    let details = if readable {
        json!([code.detail(), bad_request])
    } else {
        json!([bad_request])
    };
    let message = violations
        .iter()
        .map(|violation| violation.description.as_str())
        .collect::<Vec<_>>()
        .join("\n");
    error_body(code.http_status(), code.status(), &message, details)
}

/// The common form of all Google API errors.
pub(crate) fn error_body(http_status: StatusCode, status: &str, message: &str, details: Value) -> Value {
    let mut error = json!({
        "code": http_status.as_u16(),
        "message": message,
        "status": status,
    });
    if details.as_array().is_some_and(|details| !details.is_empty()) {
        error["details"] = details;
    }
    json!({ "error": error })
}
