//! What one attempt means for its delivery.

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;

/// A stable word for logs, metrics and receipts: the provider's own reason where it gave a known one, else ours in
/// lower case. Never content, never an address.
pub type Reason = Cow<'static, str>;

/// What one attempt means for its delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider took responsibility.
    Accepted {
        /// The provider's name for the push.
        provider_id: Option<String>,
    },
    /// Not accepted now; another attempt may succeed. Neither push nor credential is to blame.
    RetryLater {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// Least wait the provider asks for.
        not_before: Option<Duration>,
    },
    /// The provider says that this address is gone.
    AddressGone {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// When the provider saw that it was gone; a registration after that is a new one.
        since: Option<Timestamp>,
    },
    /// The provider refused this push for good; another attempt would be refused too.
    Rejected {
        /// The reason, see [`Reason`].
        reason: Reason,
    },
    /// It was sent, and whether the provider took it is unknown.
    Ambiguous {
        /// The reason, see [`Reason`].
        reason: Reason,
    },
    /// The credential does not work; neither push nor address is to blame, and the next push will fare no better.
    CredentialTrouble {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// Least wait before the credential can work again, if known.
        not_before: Option<Duration>,
    },
    /// It is not this push's turn: it was not sent, and the provider was not asked.
    NotYet {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// How long to wait until its turn.
        wait: Duration,
    },
    /// The provider was not reached, and nothing was sent.
    EndpointTrouble {
        /// The reason, see [`Reason`].
        reason: Reason,
        /// Least wait before the endpoint can work again, if known.
        not_before: Option<Duration>,
    },
}

impl Outcome {
    /// The outcome's name in metrics and spans.
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

    /// Whether it counts against the attempts that a push has: not if the push is not to blame.
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

/// A reason that the provider invented after this was written: its own word if that is short and plain, else `other`.
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
