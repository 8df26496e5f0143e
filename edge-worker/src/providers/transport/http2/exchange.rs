//! One request and its answer. A request that was provably not processed is sent again at once.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use http::{Request, Response, uri::Authority};

use super::{
    connection::NoAnswer,
    pool::{Lease, Pool},
};
use crate::providers::{Outcome, attempt::Progress};

/// How often a request that was provably not processed is sent again at once.
const MAX_REPEATS: u32 = 2;

/// An answer whose body is still to be read. Keep the lease until then: it counts the stream as open.
pub(in crate::providers) struct Exchanged {
    pub(in crate::providers) answer: Response<RecvStream>,
    pub(in crate::providers) lease: Lease,
}

/// Sends the request that `request` makes for an authority, on a connection of `pool`.
///
/// # Errors
/// The outcome of the attempt if no answer came; [`Outcome::Rejected`] if `request` fails.
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
        progress.endpoint = lease.connection().route.host.name.clone();
        (progress.status, progress.sent) = (None, true);
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
        if repeats == MAX_REPEATS {
            return Err(unprocessed);
        }
        repeats += 1;
    }
}
