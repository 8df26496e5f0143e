//! What each `Idempotency-Key` was used for, so that any gateway of any region answers a repetition alike.
//!
//! A record is claimed before anything else is stored and completed with the answer. The claim is a write that expects
//! the subject's last sequence, so of two gateways that claim at once one is refused. Each region writes its own records
//! and reads everybody's; two regions that are cut off from each other, or use a key within the same few milliseconds,
//! both accept, and the jobs' own ids keep the deliveries single.

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    direct, publish,
    publish::NotStored,
    subject,
    topology::{Domain, IDEMPOTENCY},
};
use crate::{
    digest::derive,
    id::{AppId, EventId, Region},
};

/// After this a claim without an answer is taken to be of a gateway that died; longer than a request may take.
const ABANDONED: SignedDuration = SignedDuration::from_secs(60);

/// What was answered, for repetitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The event id.
    pub event_id: EventId,
    /// Jobs stored.
    pub jobs: usize,
    /// How many of them were there before.
    pub duplicates: usize,
    /// The trace of the first request, if it was traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Digest of the request's content; absent if nothing was stored and the key is free again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<Uuid>,
    /// When it was claimed; the epoch if the request was refused and may be repeated at once.
    at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

/// A key that this request now holds. [`Held::complete`] or [`Held::release`] it; if neither happens, as when the gateway
/// dies, the same request may claim it again after a minute.
#[derive(Debug)]
pub struct Held {
    subject: String,
    sequence: u64,
    request: Uuid,
    at: Timestamp,
}

/// What a key is found to be.
#[derive(Debug)]
pub enum Claim {
    /// Free, and now this request's.
    Held(Held),
    /// Used by the same request, which was answered so.
    Answered(Answer),
    /// Used by the same request, which has not been answered yet.
    InProgress,
    /// Used by a request with another body.
    OtherRequest,
}

/// Claims `key` of `app` for the request whose body has the digest `request`. `alone` says that no other region exists.
///
/// # Errors
/// When the stream did not say that it stored the claim.
pub async fn claim(
    js: &jetstream::Context,
    here: &Region,
    alone: bool,
    app: &AppId,
    key: &EventId,
    request: Uuid,
    now: Timestamp,
) -> Result<Claim, NotStored> {
    let key = derive("idempotency", &[key.as_str()]);
    let own = subject::idempotency(here, app, key);
    let mut held = Held {
        subject: own.clone(),
        sequence: 0,
        request,
        at: now,
    };
    let claimed = held.write(js);
    let elsewhere = async {
        if alone {
            Vec::new()
        } else {
            // A region that cannot be asked must not stop this one; its record is not here to be asked anyway.
            read(js, &subject::idempotency_anywhere(app, key))
                .await
                .unwrap_or_default()
        }
    };
    let (claimed, elsewhere) = tokio::join!(claimed, elsewhere);
    match claimed {
        Ok(sequence) => held.sequence = sequence,
        Err(NotStored::Refused) => {
            let found = read(js, &own).await.map_err(|error| match error {
                direct::NoAnswer::Silent => NotStored::NoAnswer,
                direct::NoAnswer::Forbidden => NotStored::Forbidden,
            })?;
            let (_, sequence, record) = found.into_iter().next().ok_or(NotStored::NoAnswer)?;
            if let Some(said) = said(&record, request, now) {
                return Ok(said);
            }
            held.sequence = sequence;
            match held.write(js).await {
                Ok(sequence) => held.sequence = sequence,
                Err(NotStored::Refused) => return Ok(Claim::InProgress),
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    }
    let elsewhere = elsewhere.into_iter().filter(|(subject, ..)| *subject != own);
    for (_, _, record) in elsewhere {
        if let Some(said) = said(&record, request, now) {
            if record.answer.is_some() {
                // Next time the answer is found here.
                held.overwrite(js, &record).await;
            } else {
                held.release(js, true).await;
            }
            return Ok(said);
        }
    }
    Ok(Claim::Held(held))
}

/// What a record says to a request; `None` if the request may have the key.
fn said(record: &Record, request: Uuid, now: Timestamp) -> Option<Claim> {
    match (&record.answer, record.request) {
        (_, None) => None,
        (_, Some(other)) if other != request => Some(Claim::OtherRequest),
        (Some(answer), _) => Some(Claim::Answered(answer.clone())),
        (None, _) if now.duration_since(record.at) > ABANDONED => None,
        (None, _) => Some(Claim::InProgress),
    }
}

async fn read(js: &jetstream::Context, filter: &str) -> Result<Vec<(String, u64, Record)>, direct::NoAnswer> {
    let found = direct::last_of(js, &Domain::Here, IDEMPOTENCY, &[filter.to_owned()]).await?;
    Ok(found
        .into_iter()
        .filter_map(|found| {
            let record = serde_json::from_slice(&found.payload).ok()?;
            Some((found.subject, found.sequence, record))
        })
        .collect())
}

impl Held {
    /// Keeps the answer for repetitions. Fails in silence: without the answer a repetition is worked on again, which
    /// stores nothing twice.
    pub async fn complete(self, js: &jetstream::Context, answer: Answer) {
        let record = Record {
            request: Some(self.request),
            at: self.at,
            answer: Some(answer),
        };
        self.overwrite(js, &record).await;
    }

    /// Gives the key up, because the request was refused. If `nothing_stored`, any request may use it; else only the
    /// same, which stores what is missing.
    pub async fn release(self, js: &jetstream::Context, nothing_stored: bool) {
        let record = Record {
            request: (!nothing_stored).then_some(self.request),
            at: Timestamp::UNIX_EPOCH,
            answer: None,
        };
        self.overwrite(js, &record).await;
    }

    async fn overwrite(&self, js: &jetstream::Context, record: &Record) {
        if let Err(error) = self.put(js, record).await {
            tracing::debug!(%error, "idempotency record could not be completed");
        }
    }

    async fn write(&self, js: &jetstream::Context) -> Result<u64, NotStored> {
        let record = Record {
            request: Some(self.request),
            at: self.at,
            answer: None,
        };
        self.put(js, &record).await
    }

    async fn put(&self, js: &jetstream::Context, record: &Record) -> Result<u64, NotStored> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, self.sequence.to_string());
        let payload = serde_json::to_vec(record).expect("a record always serializes");
        publish::store(js, self.subject.clone(), headers, payload.into())
            .await
            .map(|stored| stored.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::of_content;

    #[test]
    fn a_record_speaks_only_to_whom_it_concerns() {
        let now = Timestamp::from_second(1000).unwrap();
        let (mine, other) = (of_content(b"a"), of_content(b"b"));
        let record = |request, at, answered: bool| Record {
            request,
            at,
            answer: answered.then(|| Answer {
                event_id: "e".parse().unwrap(),
                jobs: 1,
                duplicates: 0,
                trace_id: None,
            }),
        };
        let says = |record: Record| said(&record, mine, now);
        assert!(says(record(None, now, false)).is_none());
        assert!(matches!(says(record(Some(mine), now, false)), Some(Claim::InProgress)));
        assert!(matches!(says(record(Some(mine), now, true)), Some(Claim::Answered(_))));
        assert!(says(record(Some(mine), Timestamp::UNIX_EPOCH, false)).is_none());
        for at in [now, Timestamp::UNIX_EPOCH] {
            for answered in [true, false] {
                assert!(matches!(
                    says(record(Some(other), at, answered)),
                    Some(Claim::OtherRequest)
                ));
            }
        }
    }
}
