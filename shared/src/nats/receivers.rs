//! What is known of the receivers of webhooks: since when one fails, and whether it is disabled. It is part of the address's fact,
//! so that it survives restarts, all workers of the region share it, and it ends with the next registration.
//!
//! A worker tells a gateway what changes it; the gateway writes the fact. Of two gateways that are told the same, one writes, and
//! that one alerts.

use async_nats::{header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{border::Border, direct::NoAnswer, facts, publish, subject, version};
use crate::{
    address::{Seen, Target, Trouble},
    id::{AddressId, AppId, RecipientId},
    recipient::{Fact, RecipientKey},
};

/// How often to try while others change the fact.
const ATTEMPTS_MAX: usize = 4;

/// What a worker saw of a receiver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Observation {
    /// The app that posts to it.
    pub app: AppId,
    /// The recipient whose address it is.
    pub recipient: RecipientId,
    /// The address.
    pub address: AddressId,
    /// When the address that was tried was registered: what is seen says nothing of a later registration.
    pub registered_at: Timestamp,
    /// What was seen.
    pub seen: Seen,
    /// When.
    pub at: Timestamp,
    /// The reason of the outcome, such as `http_503`.
    pub reason: String,
}

/// A receiver whose app is to be alerted.
#[derive(Debug, Clone, PartialEq)]
pub struct Troubled {
    /// The app that posts to it.
    pub app: AppId,
    /// The recipient whose address it is.
    pub recipient: RecipientId,
    /// The address.
    pub address: AddressId,
    /// Since when it fails, and whether it is disabled.
    pub trouble: Trouble,
}

/// Writes what follows from an observation into the address's fact. Returns what its app is to be alerted to, if it is.
///
/// # Errors
/// When the region's bucket does not answer.
pub(super) async fn record(
    js: &jetstream::Context,
    border: &Border,
    observation: Observation,
) -> Result<Option<Troubled>, NoAnswer> {
    let Observation {
        app,
        recipient,
        address: id,
        registered_at,
        seen,
        at,
        reason,
    } = observation;
    let key = RecipientKey {
        app: app.clone(),
        recipient: recipient.clone(),
    };
    for _ in 0..ATTEMPTS_MAX {
        let read = facts::address(js, border, &key, id).await;
        let Some((mut address, revision)) = read.map_err(|_| NoAnswer::Silent)? else {
            return Ok(None);
        };
        let Target::Webhook(receiver) = &mut address.target else {
            return Ok(None);
        };
        if address.registered_at > registered_at {
            return Ok(None);
        }
        let Some(change) = Trouble::after(receiver.trouble.as_ref(), seen, at, &reason) else {
            return Ok(None);
        };
        let trouble = change.trouble();
        receiver.trouble.clone_from(&trouble);
        let fact = Fact::Address(address);
        let mut headers = version::headers();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
        let stored = publish::store(js, subject::fact(&key, fact.name()), headers, fact.encode().into());
        match stored.await {
            Ok(_) => {
                return Ok(trouble.filter(Trouble::is_alert).map(|trouble| Troubled {
                    app,
                    recipient,
                    address: id,
                    trouble,
                }));
            }
            Err(publish::NotStored::Refused) => {}
            Err(_) => return Err(NoAnswer::Silent),
        }
    }
    Err(NoAnswer::Silent)
}
