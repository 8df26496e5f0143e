//! What a server refuses for want of a permission.
//!
//! It says so beside the answers (`-ERR Permissions Violation …`), so whoever waits for an answer would wait until the
//! time is over. Here waiting ends with the refusal.

use std::{
    collections::VecDeque,
    future::{Future, pending},
    sync::{Arc, PoisonError, RwLock, Weak},
};

use async_nats::{Client, ServerError, Statistics};
use tokio::sync::watch;

use super::subject::TRACE_HOPS;

/// The server does not let this key use the subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("permission denied for {0}")]
pub struct Forbidden(pub String);

/// Refusals that are remembered for those who wait; the client itself forgets what exceeds 128 at once.
const REMEMBERED: usize = 1024;

/// What was refused on one connection.
#[derive(Debug, Clone)]
pub(super) struct Refusals(watch::Sender<Newest>);

#[derive(Debug, Default)]
struct Newest {
    /// How many there were.
    count: u64,
    /// The subjects of the last of them, oldest first.
    subjects: VecDeque<String>,
}

/// The refusals of every connection of this process. A client has no room for them, and is known by its counters.
static CONNECTIONS: RwLock<Vec<(Weak<Statistics>, Refusals)>> = RwLock::new(Vec::new());

impl Refusals {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Remembers them for as long as `client` is there.
    pub(super) fn belong_to(self, client: &Client) {
        let mut connections = CONNECTIONS.write().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|(client, _)| client.strong_count() > 0);
        connections.push((Arc::downgrade(&client.statistics()), self));
    }

    /// Takes what the server said; returns the subject if it was a refusal.
    pub(super) fn hear(&self, error: &ServerError) -> Option<String> {
        let subject = subject_of(error)?.to_owned();
        self.0.send_modify(|newest| {
            newest.count += 1;
            if newest.subjects.len() == REMEMBERED {
                newest.subjects.pop_front();
            }
            newest.subjects.push_back(subject.clone());
        });
        Some(subject)
    }
}

/// Ends when the server refuses, from now on, a subject that `concerns` the one who waits. A refused inbox concerns
/// everyone: no answer would arrive. So does a refused report of hops, for which the traced message itself is refused.
pub(super) fn refused<C: Fn(&str) -> bool + Send>(
    client: &Client,
    concerns: C,
) -> impl Future<Output = Forbidden> + Send + use<C> {
    let told = of(client).map(|mut told| {
        let before = told.borrow_and_update().count;
        (told, before)
    });
    async move {
        let Some((mut told, mut before)) = told else {
            return pending().await;
        };
        while told.changed().await.is_ok() {
            let newest = told.borrow_and_update();
            let fresh = usize::try_from(newest.count - before).unwrap_or(REMEMBERED);
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

/// What `doing` comes to, unless the server refuses meanwhile a subject that `concerns` it.
///
/// # Errors
/// [`Forbidden`].
pub async fn unless_refused<T>(
    client: &Client,
    concerns: impl Fn(&str) -> bool + Send,
    doing: impl Future<Output = T>,
) -> Result<T, Forbidden> {
    let refused = refused(client, concerns);
    tokio::select! {
        biased;
        done = doing => Ok(done),
        forbidden = refused => Err(forbidden),
    }
}

/// Whether `refused` is `subject` as the server saw it: that of the very domain takes `$JS.<domain>` off.
pub(super) fn is_same(refused: &str, subject: &str) -> bool {
    let mapped = |prefix: &str| {
        let (domain, rest) = subject.strip_prefix("$JS.")?.split_once(".API.")?;
        (!domain.contains('.')).then(|| refused.strip_prefix(prefix) == Some(rest))
    };
    refused == subject || mapped("$JS.API.") == Some(true) || mapped("") == Some(true)
}

/// Whether `subject` is about a stream: its API, its flow or its acknowledgements.
pub fn is_about(subject: &str, stream: &str) -> bool {
    subject.split('.').any(|token| token == stream)
}

fn of(client: &Client) -> Option<watch::Receiver<Newest>> {
    let counters = client.statistics();
    let connections = CONNECTIONS.read().unwrap_or_else(PoisonError::into_inner);
    let (_, refusals) = connections
        .iter()
        .find(|(client, _)| client.as_ptr() == Arc::as_ptr(&counters))?;
    Some(refusals.0.subscribe())
}

/// The subject of `Permissions Violation for Publish to "…"` and its like.
fn subject_of(error: &ServerError) -> Option<&str> {
    let ServerError::Other(text) = error else { return None };
    let about = text.strip_prefix("Permissions Violation for ")?;
    about.split('"').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_found_in_what_servers_say() {
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
    fn a_subject_is_known_again_when_the_server_took_its_domain_off() {
        assert!(is_same("a.b", "a.b") && !is_same("a.b", "a.b.c") && !is_same("b", "a.b"));
        assert!(is_same("$KV.config.app.shop", "$JS.hub.API.$KV.config.app.shop"));
        assert!(is_same("$JS.API.STREAM.INFO.X", "$JS.eu.API.STREAM.INFO.X"));
        assert!(!is_same("$JS.API.STREAM.INFO.X", "$JS.eu.API.STREAM.INFO.Y"));
        assert!(!is_same("STREAM.INFO.X", "$JS.API.STREAM.INFO.X"));
    }

    #[tokio::test]
    async fn only_what_concerns_one_and_comes_later_ends_the_wait() {
        let refusals = Refusals::new();
        let said = |subject: &str| ServerError::Other(format!("Permissions Violation for Publish to \"{subject}\""));
        assert_eq!(refusals.hear(&said("a.b")).as_deref(), Some("a.b"));
        let mut told = refusals.0.subscribe();
        assert_eq!(told.borrow_and_update().count, 1);
        for _ in 0..2 * REMEMBERED {
            refusals.hear(&said("a.c"));
        }
        assert!(told.has_changed().unwrap());
        assert_eq!(told.borrow().subjects.len(), REMEMBERED);
        assert_eq!(told.borrow().count, 1 + 2 * REMEMBERED as u64);
    }
}
