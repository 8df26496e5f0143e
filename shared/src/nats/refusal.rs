//! Requests that a server refuses because a permission is missing.
//!
//! The server reports a refusal outside the answers (`-ERR Permissions Violation …`), so a caller waiting for an answer
//! would wait until its time-out. Here the refusal ends the wait.

use std::{
    collections::VecDeque,
    future::{Future, pending},
    sync::{Arc, PoisonError, RwLock, Weak},
};

use async_nats::{Client, ServerError, Statistics};
use tokio::sync::watch;

use super::subject::TRACE_HOPS;

/// The server does not permit this key to use the subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("permission denied for {0}")]
pub struct Forbidden(pub String);

/// How many refusals are kept for waiting callers; the client itself keeps only 128.
const MAX_REFUSALS_KEPT: usize = 1024;

/// The refusals on one connection.
#[derive(Debug, Clone)]
pub(super) struct Refusals(watch::Sender<Newest>);

#[derive(Debug, Default)]
struct Newest {
    /// How many refusals the connection has had.
    count: u64,
    /// The subjects of the last [`MAX_REFUSALS_KEPT`], oldest first.
    subjects: VecDeque<String>,
}

/// The refusals on every connection of this process. A client cannot carry them; its counters identify it.
static CONNECTIONS: RwLock<Vec<(Weak<Statistics>, Refusals)>> = RwLock::new(Vec::new());

impl Refusals {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Makes the refusals known to the callers of `client`, for as long as it exists.
    pub(super) fn attach_to(self, client: &Client) {
        let mut connections = CONNECTIONS.write().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|(client, _)| client.strong_count() > 0);
        connections.push((Arc::downgrade(&client.statistics()), self));
    }

    /// Records a server error if it is a refusal, and returns its subject.
    pub(super) fn record(&self, error: &ServerError) -> Option<String> {
        let subject = subject_of(error)?.to_owned();
        self.0.send_modify(|newest| {
            newest.count += 1;
            if newest.subjects.len() == MAX_REFUSALS_KEPT {
                newest.subjects.pop_front();
            }
            newest.subjects.push_back(subject.clone());
        });
        Some(subject)
    }
}

/// Resolves when the server refuses, from now on, a subject that `concerns` the caller. A refused inbox concerns every
/// caller: no answer would arrive. So does a refused report of hops, because the server then refuses the traced message
/// itself.
pub(super) fn refused<C: Fn(&str) -> bool + Send>(
    client: &Client,
    concerns: C,
) -> impl Future<Output = Forbidden> + Send + use<C> {
    let subscription = subscription_of(client).map(|mut newest| {
        let before = newest.borrow_and_update().count;
        (newest, before)
    });
    async move {
        let Some((mut updates, mut before)) = subscription else {
            return pending().await;
        };
        while updates.changed().await.is_ok() {
            let newest = updates.borrow_and_update();
            let fresh = usize::try_from(newest.count - before).unwrap_or(MAX_REFUSALS_KEPT);
            let mut fresh = newest.subjects.iter().rev().take(fresh);
            if let Some(subject) = fresh
                .find(|subject| subject.starts_with("_INBOX.") || subject.as_str() == TRACE_HOPS || concerns(subject))
            {
                return Forbidden(subject.clone());
            }
            before = newest.count;
        }
        pending().await
    }
}

/// The result of `action`, unless the server meanwhile refuses a subject that `concerns` it.
///
/// # Errors
/// [`Forbidden`], with the refused subject.
pub async fn unless_refused<T>(
    client: &Client,
    concerns: impl Fn(&str) -> bool + Send,
    action: impl Future<Output = T>,
) -> Result<T, Forbidden> {
    let refused = refused(client, concerns);
    tokio::select! {
        biased;
        done = action => Ok(done),
        forbidden = refused => Err(forbidden),
    }
}

/// Whether `refused` is `subject` as the server reports it: a server of that domain removes `$JS.<domain>`.
pub(super) fn is_same(refused: &str, subject: &str) -> bool {
    let mapped = |prefix: &str| {
        let (domain, rest) = subject.strip_prefix("$JS.")?.split_once(".API.")?;
        (!domain.contains('.')).then(|| refused.strip_prefix(prefix) == Some(rest))
    };
    refused == subject || mapped("$JS.API.") == Some(true) || mapped("") == Some(true)
}

/// Whether `subject` belongs to a stream: its API, its flow control or its acknowledgements.
pub fn is_about(subject: &str, stream: &str) -> bool {
    subject.split('.').any(|token| token == stream)
}

fn subscription_of(client: &Client) -> Option<watch::Receiver<Newest>> {
    let counters = client.statistics();
    let connections = CONNECTIONS.read().unwrap_or_else(PoisonError::into_inner);
    let (_, refusals) = connections
        .iter()
        .find(|(client, _)| client.as_ptr() == Arc::as_ptr(&counters))?;
    Some(refusals.0.subscribe())
}

/// The subject in `Permissions Violation for Publish to "…"`, or for a subscription.
fn subject_of(error: &ServerError) -> Option<&str> {
    let ServerError::Other(text) = error else { return None };
    let about = text.strip_prefix("Permissions Violation for ")?;
    about.split('"').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refused_subject_is_read_from_the_server_error() {
        let subject = |text: &str| subject_of(&ServerError::Other(text.to_owned())).map(str::to_owned);
        assert_eq!(
            subject(r#"Permissions Violation for Publish to "notify.push.eu.normal.shop""#).as_deref(),
            Some("notify.push.eu.normal.shop")
        );
        assert_eq!(
            subject(r#"Permissions Violation for Subscription to "_INBOX.a" using queue "q""#).as_deref(),
            Some("_INBOX.a")
        );
        assert_eq!(subject("Slow Consumer Detected"), None);
    }

    #[test]
    fn a_refused_subject_matches_although_the_server_removed_its_domain() {
        assert!(is_same("a.b", "a.b") && !is_same("a.b", "a.b.c") && !is_same("b", "a.b"));
        assert!(is_same("$KV.config.app.shop", "$JS.hub.API.$KV.config.app.shop"));
        assert!(is_same("$JS.API.STREAM.INFO.X", "$JS.eu.API.STREAM.INFO.X"));
        assert!(!is_same("$JS.API.STREAM.INFO.X", "$JS.eu.API.STREAM.INFO.Y"));
        assert!(!is_same("STREAM.INFO.X", "$JS.API.STREAM.INFO.X"));
    }

    #[tokio::test]
    async fn only_new_refusals_are_counted_and_the_newest_are_kept() {
        let refusals = Refusals::new();
        let refusal_of =
            |subject: &str| ServerError::Other(format!("Permissions Violation for Publish to \"{subject}\""));
        assert_eq!(refusals.record(&refusal_of("a.b")).as_deref(), Some("a.b"));
        let mut newest = refusals.0.subscribe();
        assert_eq!(newest.borrow_and_update().count, 1);
        for _ in 0..2 * MAX_REFUSALS_KEPT {
            refusals.record(&refusal_of("a.c"));
        }
        assert!(newest.has_changed().unwrap());
        assert_eq!(newest.borrow().subjects.len(), MAX_REFUSALS_KEPT);
        assert_eq!(newest.borrow().count, 1 + 2 * MAX_REFUSALS_KEPT as u64);
    }
}
