//! One attempt, its progress, and its result.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
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
    /// The address to reach.
    pub address: &'a Address,
    /// The delivery this attempt belongs to; the same for every attempt. It is the `apns-id`.
    pub delivery: DeliveryId,
    /// Number of the attempt, from 1.
    pub number: u32,
    /// The message to send.
    pub message: &'a Message,
    /// When the time to live of the message ends.
    pub expires_at: Timestamp,
    /// Asked before the message is handed over to a provider whose final answer may take minutes.
    pub handover: &'a dyn Handover,
}

impl Attempt<'_> {
    /// The time to live that remains at `now`.
    pub(super) fn left(&self, now: Timestamp) -> Duration {
        Duration::try_from(self.expires_at.duration_since(now)).unwrap_or_default()
    }
}

/// What the caller of an attempt does before a provider is given a message whose final answer may take minutes.
pub trait Handover: fmt::Debug + Send + Sync {
    /// Records durably that the message is about to be handed over, so that no other worker sends it meanwhile. `false` if
    /// that cannot be recorded; then the message must not be handed over.
    fn record(&self) -> BoxFuture<'_, bool>;
}

/// For a caller that has recorded it before the attempt, or needs no record.
#[derive(Debug, Clone, Copy)]
pub struct Recorded;

impl Handover for Recorded {
    fn record(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }
}

/// The result of an [`Attempt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// The outcome, which decides what happens to the delivery.
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
    /// How long the provider took, including repeats within the attempt; zero if it was not asked.
    pub took: Duration,
}

impl Attempted {
    /// No provider was asked.
    pub fn none(outcome: Outcome, provider: Provider, now: Timestamp) -> Self {
        Self {
            outcome,
            provider,
            status: None,
            endpoint: "".into(),
            template: "",
            started_at: now,
            ended_at: now,
            took: Duration::ZERO,
        }
    }
}

/// The progress of an attempt. The desk reads it when the time limit is exceeded, so it must be current at every await.
#[derive(Debug)]
pub(super) struct Progress {
    /// `host:port` of the endpoint in use; empty before the first is tried.
    pub(super) endpoint: Arc<str>,
    /// The HTTP status of the answer, once its head has arrived.
    pub(super) status: Option<u16>,
    /// Whether bytes of the request may have reached the provider.
    pub(super) sent: bool,
    /// Whether the provider may refuse in the body of an answer whose status says that it accepts.
    pub(super) decides_in_body: bool,
    /// What the attempt waits for before it is sent; the reason if it waits for too long.
    pub(super) awaits: &'static str,
}

impl Progress {
    /// Nothing has been tried.
    pub(super) fn none(no_endpoint: &Arc<str>) -> Self {
        Self {
            endpoint: no_endpoint.clone(),
            status: None,
            sent: false,
            decides_in_body: false,
            awaits: "no_stream_free",
        }
    }

    /// The outcome of an attempt that is cut off at this point.
    pub(super) fn cut_off(&self) -> Outcome {
        match (self.sent, self.status) {
            (true, Some(200..=299)) if self.decides_in_body => Outcome::ambiguous("answer_incomplete"),
            (true, Some(200..=299)) => Outcome::Accepted { provider_id: None },
            // Refused, but the reason in the body did not arrive.
            (true, Some(_)) => Outcome::retry_later("answer_incomplete", None),
            (true, None) => Outcome::ambiguous("timeout"),
            (false, _) => Outcome::endpoint(self.awaits, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_cut_off_is_in_doubt_only_after_bytes_were_sent() {
        let progress = |sent, status| Progress {
            status,
            sent,
            ..Progress::none(&"".into())
        };
        let cut_off = |sent, status| progress(sent, status).cut_off();
        assert_eq!(cut_off(false, None), Outcome::endpoint("no_stream_free", None));
        assert_eq!(cut_off(true, None), Outcome::ambiguous("timeout"));
        for accepted in [200, 201, 202, 204] {
            assert_eq!(cut_off(true, Some(accepted)), Outcome::Accepted { provider_id: None });
        }
        let in_body = Progress {
            decides_in_body: true,
            ..progress(true, Some(200))
        };
        assert_eq!(in_body.cut_off(), Outcome::ambiguous("answer_incomplete"));
        assert_eq!(
            cut_off(true, Some(503)),
            Outcome::retry_later("answer_incomplete", None)
        );
    }
}
