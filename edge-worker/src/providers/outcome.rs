//! The outcome of one attempt.

use std::{borrow::Cow, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;

/// A stable word for logs, metrics and receipts: the provider's own reason if it is known, such as `BadDeviceToken`,
/// else one of ours in lower case, such as `timeout`. Never content, never an address.
pub type Reason = Cow<'static, str>;

/// The reason if a provider is asked to reach what it cannot: a mistake of the worker's.
pub(super) const WRONG_TARGET: &str = "wrong_target";

/// The outcome of one attempt, the same for all providers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider accepted the push.
    Accepted {
        /// The provider's id of the push, if it returned one.
        provider_id: Option<String>,
    },
    /// Not accepted now; another attempt may succeed. Neither push nor credential is to blame.
    RetryLater {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// The minimum wait that the provider asks for.
        not_before: Option<Duration>,
    },
    /// The provider reports that this address is gone.
    AddressGone {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// When the provider noticed; an address that was registered later is kept.
        since: Option<Timestamp>,
    },
    /// The provider refused this push permanently; another attempt would be refused too.
    Rejected {
        /// The reason, see [`Reason`].
        reason: Reason,
    },
    /// It was sent, and whether the provider accepted it is unknown.
    Ambiguous {
        /// The reason, see [`Reason`].
        reason: Reason,
    },
    /// The credential does not work. Neither push nor address is to blame, and the next push will fail too.
    CredentialTrouble {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// The minimum wait before the credential can work again, if known.
        not_before: Option<Duration>,
    },
    /// The worker held the push back, because of a quota or a slow provider. Nothing was sent.
    NotYet {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// How long to wait before the next attempt.
        wait: Duration,
    },
    /// The provider was not reached, and nothing was sent.
    EndpointTrouble {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// The minimum wait before the endpoint can work again, if known.
        not_before: Option<Duration>,
    },
}

impl Outcome {
    /// The outcome's value in metrics and spans.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::RetryLater { .. } => "retry_later",
            Self::AddressGone { .. } => "address_gone",
            Self::Rejected { .. } => "rejected",
            Self::Ambiguous { .. } => "ambiguous",
            Self::CredentialTrouble { .. } => "credential_trouble",
            Self::EndpointTrouble { .. } => "endpoint_trouble",
            Self::NotYet { .. } => "not_yet",
        }
    }

    /// Whether it counts against the maximum number of attempts: only if the push itself may be to blame.
    pub const fn counts(&self) -> bool {
        !matches!(
            self,
            Self::CredentialTrouble { .. } | Self::EndpointTrouble { .. } | Self::NotYet { .. }
        )
    }

    pub(super) fn retry_later(reason: impl Into<Reason>, not_before: Option<Duration>) -> Self {
        Self::RetryLater {
            reason: reason.into(),
            not_before,
        }
    }

    /// The address is gone, and nobody says since when.
    pub(super) fn gone(reason: impl Into<Reason>) -> Self {
        Self::AddressGone {
            reason: reason.into(),
            since: None,
        }
    }

    pub(super) fn rejected(reason: impl Into<Reason>) -> Self {
        Self::Rejected { reason: reason.into() }
    }

    pub(super) fn ambiguous(reason: impl Into<Reason>) -> Self {
        Self::Ambiguous { reason: reason.into() }
    }

    pub(super) fn credential(reason: impl Into<Reason>, not_before: Option<Duration>) -> Self {
        Self::CredentialTrouble {
            reason: reason.into(),
            not_before,
        }
    }

    pub(super) fn endpoint(reason: impl Into<Reason>, not_before: Option<Duration>) -> Self {
        Self::EndpointTrouble {
            reason: reason.into(),
            not_before,
        }
    }
}

/// Names a secret in metrics and logs without telling it, for keys that are random and long.
pub(super) fn fingerprint(key: &str) -> String {
    let hash = digest(&SHA256, key.as_bytes());
    let start = hash
        .as_ref()
        .first_chunk()
        .map_or(0, |start| u32::from_be_bytes(*start));
    format!("{start:08x}")
}

/// A reason that was not documented when this was written: the provider's own word if it is short and plain, else
/// `other`.
pub(super) fn foreign_reason(text: &str, other: &'static str) -> Reason {
    let plain = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if plain {
        Cow::Owned(text.to_owned())
    } else {
        Cow::Borrowed(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_reason_is_kept_only_if_it_cannot_be_content() {
        assert_eq!(foreign_reason("BrandNew", "unknown"), "BrandNew");
        for odd in ["", "two words", "<html>", &"x".repeat(65), "ünï"] {
            assert_eq!(foreign_reason(odd, "unknown"), "unknown");
        }
    }
}
