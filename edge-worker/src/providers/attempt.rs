//! One attempt, how far it has come, and its result.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use shared::{
    address::Address,
    id::{AppId, DeliveryId},
    provider::Provider,
};

use super::{Message, Outcome};

/// One attempt to reach one address.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The app whose credential is used.
    pub app: &'a AppId,
    /// Where to send.
    pub address: &'a Address,
    /// The delivery this attempt belongs to; the same for every attempt. It is the `apns-id`.
    pub delivery: DeliveryId,
    /// What to send.
    pub message: &'a Message,
    /// When the push stops being worth delivering.
    pub expires_at: Timestamp,
}

/// The result of an [`Attempt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// What it means for the delivery.
    pub outcome: Outcome,
    /// The provider that was asked, or would have been.
    pub provider: Provider,
    /// The HTTP status, if an answer came.
    pub status: Option<u16>,
    /// `host:port` that was tried last; empty if none was.
    pub endpoint: Arc<str>,
    /// Names the request in traces: the method and the URL template, such as `POST /3/device/{token}`.
    pub template: &'static str,
    /// When the attempt began, before it waited for its allowance.
    pub started_at: Timestamp,
    /// When its outcome was known.
    pub ended_at: Timestamp,
    /// How long the provider took, with all repeats in process; zero if it was not asked.
    pub took: Duration,
}

/// How far an attempt has come. The desk reads it when the time of the attempt is up, so it must be current at every
/// await.
#[derive(Debug)]
pub(super) struct Progress {
    /// `host:port` of the endpoint that is tried; empty before one is.
    pub(super) endpoint: Arc<str>,
    /// The HTTP status of the answer, once its head has arrived.
    pub(super) status: Option<u16>,
    /// Whether bytes of the request may have reached the provider.
    pub(super) sent: bool,
}

impl Progress {
    /// Nothing has been tried.
    pub(super) fn none(nowhere: &Arc<str>) -> Self {
        Self {
            endpoint: nowhere.clone(),
            status: None,
            sent: false,
        }
    }

    /// What it means that the attempt was cut off here.
    pub(super) fn cut_off(&self) -> Outcome {
        match (self.sent, self.status) {
            (true, Some(200)) => Outcome::Accepted { provider_id: None },
            // Refused, but the rest of the answer, which says why, did not come.
            (true, Some(_)) => Outcome::retry_later("answer_incomplete", None),
            (true, None) => Outcome::ambiguous("timeout"),
            (false, _) => Outcome::endpoint("no_stream_free", None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_cut_off_is_in_doubt_only_after_bytes_were_sent() {
        let cut_off = |sent, status| {
            let progress = Progress {
                endpoint: "".into(),
                status,
                sent,
            };
            progress.cut_off()
        };
        assert_eq!(cut_off(false, None), Outcome::endpoint("no_stream_free", None));
        assert_eq!(cut_off(true, None), Outcome::ambiguous("timeout"));
        assert_eq!(cut_off(true, Some(200)), Outcome::Accepted { provider_id: None });
        assert_eq!(
            cut_off(true, Some(503)),
            Outcome::retry_later("answer_incomplete", None)
        );
    }
}
