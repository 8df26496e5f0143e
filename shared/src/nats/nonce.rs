//! Names that are taken once for some time: the nonces of signed requests, and what an app was told.
//!
//! They stand beside the records of idempotency keys: a write that expects its subject to be empty takes one, so that of two
//! gateways of a region one is refused. Every region copies the others' and looks there too. Two regions that are cut off from
//! each other, or get a request within the time that a copy takes, both take its nonce. The server removes each after its time.

use std::time::Duration;

use async_nats::{
    header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL},
    jetstream,
};

use super::{
    border::Border,
    direct::{self, Found, NoAnswer},
    publish::{self, NotStored},
    subject,
    topology::{Domain, IDEMPOTENCY},
};
use crate::{
    digest::derive,
    id::{AppId, Region},
};

/// How long the nonce of a signed request stays taken. Longer than the time in which a request may be signed before and after it is sent, together.
pub const KEPT_FOR: Duration = Duration::from_mins(11);

/// Takes `nonce` of the key `key_id` for this time, at most two days, unless it was taken before; returns whether it was free.
///
/// # Errors
/// When the stream did not say whether it stored the nonce.
pub async fn take(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    key_id: &str,
    nonce: &str,
    kept_for: Duration,
) -> Result<bool, NotStored> {
    let name = derive("nonce", &[key_id, nonce]);
    let own = subject::idempotency(here, app, name);
    let taken = async || {
        let filter = [subject::idempotency_anywhere(app, name)];
        let found = direct::last_of(js, &Domain::Here, IDEMPOTENCY, &filter).await?;
        Ok::<Vec<Found>, NoAnswer>(found.into_iter().filter(|found| border.admits_found(found)).collect())
    };
    let payload = b"{}";
    let mut headers = border.headers(&own, payload);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    headers.insert(NATS_MESSAGE_TTL, format!("{}s", kept_for.as_secs()));
    let storing = publish::store(js, own.clone(), headers, payload.as_slice().into());
    let elsewhere = async {
        if border.is_only_region() {
            Vec::new()
        } else {
            // The copies of this region. That they cannot be read must not stop the request.
            taken().await.unwrap_or_default()
        }
    };
    let (stored, elsewhere) = tokio::join!(storing, elsewhere);
    match stored {
        Ok(_) => Ok(elsewhere.iter().all(|found| found.subject == own)),
        // Because the nonce is taken, or for another reason.
        Err(NotStored::Refused) => match taken().await {
            Ok(found) if found.iter().any(|found| found.subject == own) => Ok(false),
            _ => Err(NotStored::Refused),
        },
        Err(error) => Err(error),
    }
}
