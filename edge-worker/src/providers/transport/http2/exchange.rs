//! One request and its answer, sent again at once where it provably was not processed.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use http::{Request, Response, uri::Authority};
use tokio::time::Instant;

use super::{
    connection::{Connection, NoAnswer},
    pool::{Lease, Pool},
};
use crate::providers::{Attempted, Outcome};

/// How often a request is sent again at once, if it provably was not processed.
const MOST_REPEATS: u32 = 2;

/// How far an attempt has come; read when its time is up.
#[derive(Debug)]
pub(in crate::providers) struct Progress {
    /// `host:port`.
    pub(in crate::providers) endpoint: Arc<str>,
    pub(in crate::providers) status: Option<u16>,
    pub(in crate::providers) sent: bool,
}

impl Progress {
    /// Nothing has been tried.
    pub(in crate::providers) fn none(nowhere: &Arc<str>) -> Self {
        Self {
            endpoint: nowhere.clone(),
            status: None,
            sent: false,
        }
    }

    fn sent(&mut self, connection: &Connection) {
        self.endpoint = connection.route.host.name.clone();
        self.status = None;
        self.sent = true;
    }

    /// The attempt that began at `began`, with its `outcome`; `None` if no more time was left.
    pub(in crate::providers) fn into_attempted(self, outcome: Option<Outcome>, began: Instant) -> Attempted {
        Attempted {
            outcome: outcome.unwrap_or_else(|| self.timed_out()),
            status: self.status,
            endpoint: self.endpoint,
            took: began.elapsed(),
        }
    }

    fn timed_out(&self) -> Outcome {
        match (self.sent, self.status) {
            (true, Some(200)) => Outcome::Accepted { provider_id: None },
            // Refused, but the rest of the answer, which says why, did not come.
            (true, Some(_)) => Outcome::retry_later("answer_incomplete", None),
            (true, None) => Outcome::ambiguous("timeout"),
            (false, _) => Outcome::endpoint("no_stream_free", None),
        }
    }
}

/// An answer whose body is still to be read, and the right to its stream, to be kept meanwhile.
pub(in crate::providers) struct Exchanged {
    pub(in crate::providers) answer: Response<RecvStream>,
    pub(in crate::providers) lease: Lease,
}

/// Sends what `request` makes for an authority, on a connection of `pool`.
///
/// # Errors
/// What it means that there is no answer; rejected if `request` cannot be made.
pub(in crate::providers) async fn exchange(
    pool: &Arc<Pool>,
    progress: &mut Progress,
    request: impl Fn(&Authority) -> Result<Request<Bytes>, &'static str>,
) -> Result<Exchanged, Outcome> {
    let mut avoid = None;
    let mut repeats = 0;
    loop {
        let mut lease = match pool.lease(avoid).await {
            Ok(lease) => lease,
            Err(unreachable) => {
                progress.endpoint = unreachable.endpoint;
                return Err(Outcome::endpoint(unreachable.reason, None));
            }
        };
        let request = request(&lease.connection().route.host.authority).map_err(Outcome::rejected)?;
        progress.sent(lease.connection());
        let unprocessed = match lease.send(request).await {
            Ok(answer) => {
                progress.status = Some(answer.status().as_u16());
                return Ok(Exchanged { answer, lease });
            }
            Err(NoAnswer::Broken) => return Err(Outcome::ambiguous("connection_lost")),
            Err(NoAnswer::Refused) => {
                avoid = Some(lease.connection().id);
                Outcome::retry_later("refused_stream", None)
            }
            Err(NoAnswer::Unsent) => {
                lease.leave_connection();
                Outcome::endpoint("connection_closed", None)
            }
        };
        progress.sent = false;
        if repeats == MOST_REPEATS {
            return Err(unprocessed);
        }
        repeats += 1;
    }
}
