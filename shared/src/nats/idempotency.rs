//! Records of how each `Idempotency-Key` was used, so that every gateway of every region answers a repetition alike.
//!
//! A gateway claims the record before it stores anything else, and completes it with the answer. The claim is a write
//! that expects the subject's last sequence, so of two gateways that claim at once one is refused. Each region writes
//! its own records and reads those of all regions; two regions that are cut off from each other, or use a key within
//! the same few milliseconds, both accept, and the jobs' own ids keep the deliveries single.

use async_nats::{header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    border::Border,
    direct, publish,
    publish::NotStored,
    subject,
    topology::{Domain, IDEMPOTENCY},
};
use crate::{
    digest::{derive, of_content, of_json},
    id::{AppId, EventId, Region},
};

/// A claim without an answer that is older than this is taken to be a dead gateway's; longer than a request may take.
const CLAIM_ABANDONED_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// The answer to a request, given again to its repetitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The event id of the stored notification.
    pub event_id: EventId,
    /// Jobs that the notification consists of.
    pub jobs: usize,
    /// How many of them were already stored.
    pub duplicates: usize,
    /// The trace of the first request, if it was traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// What a request was answered with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// The answer to one notification.
    One(Answer),
    /// The whole JSON of the answer to many.
    Many(Map<String, Value>),
}

/// Digests by which a repetition of a request is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of the bytes of the body, as version 0.1 compares them.
    exact: Uuid,
    /// Of the JSON, whatever the order of members and the white space.
    json: Uuid,
}

impl Fingerprint {
    /// The fingerprint of a request with this body.
    pub fn of(body: &[u8]) -> Self {
        Self {
            exact: of_content(body),
            json: of_json(body),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    /// [`Fingerprint::exact`] of the request; absent if nothing was stored and the key is free again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<Uuid>,
    /// [`Fingerprint::json`] of the request; absent also in records of version 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    json: Option<Uuid>,
    /// When the key was claimed; the epoch if the request was refused and may be repeated at once.
    at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Reply>,
}

/// A key that this request holds. End it with [`Held::complete`] or [`Held::release`]; if neither happens, as when the
/// gateway dies, the same request may claim the key again after a minute.
#[derive(Debug)]
pub struct Held {
    border: Border,
    subject: String,
    sequence: u64,
    request: Fingerprint,
    at: Timestamp,
}

/// The state of a key, as seen by one request.
#[derive(Debug)]
pub enum Claim {
    /// The key was free, and this request holds it now.
    Held(Held),
    /// Used by the same request, which got this answer.
    Answered(Reply),
    /// Used by the same request, which has not been answered yet.
    InProgress,
    /// Used by a request with another body.
    OtherRequest,
}

/// Claims `key` of `app` for the request with the fingerprint `request`.
///
/// # Errors
/// When the stream did not acknowledge the claim.
pub async fn claim(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    key: &EventId,
    request: Fingerprint,
    now: Timestamp,
) -> Result<Claim, NotStored> {
    let key = derive("idempotency", &[key.as_str()]);
    let own = subject::idempotency(here, app, key);
    let mut held = Held {
        border: border.clone(),
        subject: own.clone(),
        sequence: 0,
        request,
        at: now,
    };
    let claimed = held.write(js);
    let elsewhere = async {
        if border.is_only_region() {
            Vec::new()
        } else {
            // This region holds copies of the other regions' records. A failed read must not stop the request.
            read(js, border, &subject::idempotency_anywhere(app, key))
                .await
                .unwrap_or_default()
        }
    };
    let (claimed, elsewhere) = tokio::join!(claimed, elsewhere);
    match claimed {
        Ok(sequence) => held.sequence = sequence,
        Err(NotStored::Refused) => {
            let found = read(js, border, &own).await.map_err(|error| match error {
                direct::NoAnswer::Silent => NotStored::NoAnswer,
                direct::NoAnswer::Forbidden => NotStored::Forbidden,
            })?;
            let (_, sequence, record) = found.into_iter().next().ok_or(NotStored::NoAnswer)?;
            if let Some(claim) = claim_of(&record, request, now) {
                return Ok(claim);
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
        if let Some(claim) = claim_of(&record, request, now) {
            if record.answer.is_some() {
                // The next repetition finds the answer in this region's own record.
                held.overwrite(js, &record).await;
            } else {
                held.release(js, true).await;
            }
            return Ok(claim);
        }
    }
    Ok(Claim::Held(held))
}

/// What a record means for a request; `None` if the request may have the key.
fn claim_of(record: &Record, request: Fingerprint, now: Timestamp) -> Option<Claim> {
    let is_same = record.request == Some(request.exact) || record.json == Some(request.json);
    match (&record.answer, record.request) {
        (_, None) => None,
        (_, Some(_)) if !is_same => Some(Claim::OtherRequest),
        (Some(answer), _) => Some(Claim::Answered(answer.clone())),
        (None, _) if now.duration_since(record.at) > CLAIM_ABANDONED_AFTER => None,
        (None, _) => Some(Claim::InProgress),
    }
}

async fn read(
    js: &jetstream::Context,
    border: &Border,
    filter: &str,
) -> Result<Vec<(String, u64, Record)>, direct::NoAnswer> {
    let found = direct::last_of(js, &Domain::Here, IDEMPOTENCY, &[filter.to_owned()]).await?;
    Ok(found
        .into_iter()
        .filter(|found| border.admits_found(found))
        .filter_map(|found| {
            let record = serde_json::from_slice(&found.payload).ok()?;
            Some((found.subject, found.sequence, record))
        })
        .collect())
}

impl Held {
    /// Stores the answer for repetitions. A failure is only logged: without the answer a repetition is processed again,
    /// which stores nothing twice.
    pub async fn complete(self, js: &jetstream::Context, answer: Reply) {
        let record = Record {
            request: Some(self.request.exact),
            json: Some(self.request.json),
            at: self.at,
            answer: Some(answer),
        };
        self.overwrite(js, &record).await;
    }

    /// Gives up the key, because the request was refused. If `nothing_stored`, any request may use it; otherwise only the
    /// same request, which then stores the missing jobs.
    pub async fn release(self, js: &jetstream::Context, nothing_stored: bool) {
        let record = Record {
            request: (!nothing_stored).then_some(self.request.exact),
            json: (!nothing_stored).then_some(self.request.json),
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
            request: Some(self.request.exact),
            json: Some(self.request.json),
            at: self.at,
            answer: None,
        };
        self.put(js, &record).await
    }

    async fn put(&self, js: &jetstream::Context, record: &Record) -> Result<u64, NotStored> {
        let payload = serde_json::to_vec(record).expect("a record always serializes");
        let mut headers = self.border.headers(&self.subject, &payload);
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, self.sequence.to_string());
        publish::store(js, self.subject.clone(), headers, payload.into())
            .await
            .map(|stored| stored.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_answers_only_the_request_that_made_it() {
        let now = Timestamp::from_second(1000).unwrap();
        let mine = Fingerprint::of(br#"{"a":1,"b":[{"c":2,"d":"\u00e9"}]}"#);
        let reordered = Fingerprint::of("{ \"b\": [{\"d\": \"é\", \"c\": 2}],\n \"a\": 1 }".as_bytes());
        let other = Fingerprint::of(br#"{"a":1,"b":[{"c":3,"d":"\u00e9"}]}"#);
        let of_former = |request: Fingerprint| Record {
            request: Some(request.exact),
            json: None,
            at: now,
            answer: None,
        };
        let record = |request: Option<Fingerprint>, at, answered: bool| Record {
            request: request.map(|request| request.exact),
            json: request.map(|request| request.json),
            at,
            answer: answered.then(|| {
                Reply::One(Answer {
                    event_id: "e".parse().unwrap(),
                    jobs: 1,
                    duplicates: 0,
                    trace_id: None,
                })
            }),
        };
        let claim = |record: Record| claim_of(&record, mine, now);
        assert!(matches!(claim(of_former(mine)), Some(Claim::InProgress)));
        assert!(matches!(claim(of_former(reordered)), Some(Claim::OtherRequest)));
        assert!(matches!(
            claim(record(Some(reordered), now, true)),
            Some(Claim::Answered(_))
        ));
        assert!(claim(record(None, now, false)).is_none());
        assert!(matches!(claim(record(Some(mine), now, false)), Some(Claim::InProgress)));
        assert!(matches!(claim(record(Some(mine), now, true)), Some(Claim::Answered(_))));
        assert!(claim(record(Some(mine), Timestamp::UNIX_EPOCH, false)).is_none());
        for at in [now, Timestamp::UNIX_EPOCH] {
            for answered in [true, false] {
                assert!(matches!(
                    claim(record(Some(other), at, answered)),
                    Some(Claim::OtherRequest)
                ));
            }
        }
    }
}
