//! Questions between the gateways of two regions: the facts of a recipient who lives elsewhere, and dead letters.
//!
//! No role may read the streams of another region. A gateway there reads them, and answers what holds the mesh key: the
//! question and the answers are sealed. So a stolen NATS key can neither ask nor read. Facts and letters of an app that
//! resides in one region are answered to nobody.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, jetstream};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, try_join};
use uuid::Uuid;

use super::{
    border::Border,
    config::Config,
    connect, current,
    direct::{self, Found, NoAnswer},
    facts::{self, NotRead},
    feedback,
    follow::{self, StreamState},
    preferences::{Amendment, NotAmended},
    publish::NotStored,
    receivers::{self, Observation, Troubled},
    refusal,
    restore::{self, Kept},
    subject,
    topology::{self, DEAD, Domain, RECIPIENTS},
};
use crate::{
    clock::Clock,
    id::{AppId, NotificationId, Region},
    preferences::Preferences,
    recipient::{Fact, FactName},
    seal::{MeshKey, Vault},
    tolerant,
};

/// How long to wait for all answers to a question.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Questions that a gateway answers at the same time.
const ANSWERING_MAX: usize = 64;

/// The pause before a gateway listens again after an interruption.
const RETRY_LISTEN_AFTER: Duration = Duration::from_secs(1);

/// The purpose of the [`Vault`] that seals questions and answers.
const PURPOSE: &str = "ask";

/// Where facts and letters are read: in this region, or by the gateways of another. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Regions {
    js: jetstream::Context,
    here: Region,
    config: Config,
    border: Border,
    vault: Vault,
}

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// Ties the answers to the question.
    nonce: Uuid,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// The newest facts under each of these subjects.
    Facts { filters: Vec<String> },
    /// At most `count` facts from the sequence `from` on.
    FactsFrom { filter: String, from: u64, count: usize },
    /// At most `count` letters from the sequence `from` on.
    Letters { filter: String, from: u64, count: usize },
    /// What was reported about a notification.
    Feedback { app: AppId, notification: NotificationId },
    /// Deletes the letter with this sequence.
    DeleteLetter { sequence: u64 },
    /// Changes preferences of a recipient who lives here, and answers with the fact; with none if the change breaks a rule.
    Amend { amendment: Amendment },
    /// Writes facts again. Only the region's own workers ask for it.
    PutBack { facts: Vec<Kept> },
    /// Records how far the bucket of recipients that was created at this time, in milliseconds since 1970, is restored.
    Restored { bucket_ms: i64, is_complete: bool },
    /// Takes in what a worker saw of a receiver of webhooks. Only the region's own workers ask for it.
    Observed { observation: Observation },
}

/// An answer. Each message that was found is one, followed by its body; the last answer is another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Found {
        subject: String,
        sequence: u64,
        stored_at: Timestamp,
        headers: Vec<(String, String)>,
    },
    /// Everything was done, and this many messages were found.
    Done { found: usize },
    /// The region's own stream did not answer.
    Failed,
}

impl Regions {
    /// Reads in the region `here` over `js`, and elsewhere through the gateways there.
    pub fn new(js: jetstream::Context, here: Region, config: Config, mesh_key: &MeshKey) -> Self {
        let vault = mesh_key.vault(PURPOSE);
        Self {
            js,
            here,
            border: Border::new(config.clone()),
            config,
            vault,
        }
    }

    /// The newest facts that match `filters`, as `region` stores them; at most 1024.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds.
    pub async fn facts(&self, region: &Region, filters: &[String]) -> Result<Vec<Found>, NoAnswer> {
        if *region == self.here {
            return Box::pin(self.facts_here(filters)).await;
        }
        let what = What::Facts {
            filters: filters.to_vec(),
        };
        match self.ask(region, what).await {
            // Gateways of 0.1 answer no questions; their region's streams are read. Where that is no longer permitted, the
            // region does not answer.
            Err(Unasked::Nobody) => {
                let there = Domain::Region(region);
                let read = direct::last_of(&self.js, &there, RECIPIENTS, filters);
                read.await.map_err(|_| NoAnswer::Silent)
            }
            asked => Ok(asked?),
        }
    }

    /// Up to `count` facts and removals that match `filter`, as `region` stores them, from the sequence `from` on in the order in
    /// which they were stored. Fewer are the last.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds; also from gateways of 0.1.
    pub async fn facts_from(
        &self,
        region: &Region,
        filter: &str,
        from: u64,
        count: usize,
    ) -> Result<Vec<Found>, NoAnswer> {
        if *region == self.here {
            return Box::pin(self.facts_from_here(filter, from, count)).await;
        }
        let filter = filter.to_owned();
        Ok(self.ask(region, What::FactsFrom { filter, from, count }).await?)
    }

    /// Up to `count` dead letters of `region` whose subject matches `filter`, from the sequence `from` on, oldest first.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds.
    pub async fn letters(
        &self,
        region: &Region,
        filter: &str,
        from: u64,
        count: usize,
    ) -> Result<Vec<Found>, NoAnswer> {
        if *region == self.here {
            return direct::from(&self.js, &Domain::Here, DEAD, filter, from, count).await;
        }
        let what = What::Letters {
            filter: filter.to_owned(),
            from,
            count,
        };
        match self.ask(region, what).await {
            Err(Unasked::Nobody) => {
                let there = Domain::Region(region);
                let read = direct::from(&self.js, &there, DEAD, filter, from, count);
                read.await.map_err(|_| NoAnswer::Silent)
            }
            asked => Ok(asked?),
        }
    }

    /// What was reported about `notification` of `app`, as far as `region` worked on it; the first 1024 reports.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds.
    pub async fn feedback(
        &self,
        region: &Region,
        app: &AppId,
        notification: NotificationId,
    ) -> Result<Vec<Found>, NoAnswer> {
        if *region == self.here {
            return self.feedback_here(app, notification).await;
        }
        let app = app.clone();
        let asked = self.ask(region, What::Feedback { app, notification }).await;
        asked.map_err(NoAnswer::from)
    }

    async fn feedback_here(&self, app: &AppId, notification: NotificationId) -> Result<Vec<Found>, NoAnswer> {
        feedback::found(&self.js, &self.border, &self.here, app, notification).await
    }

    /// Deletes a dead letter of `region`. Safe to repeat.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds.
    pub async fn delete_letter(&self, region: &Region, sequence: u64) -> Result<(), NoAnswer> {
        if *region == self.here {
            return delete(&self.js, sequence).await;
        }
        match self.ask(region, What::DeleteLetter { sequence }).await {
            Err(Unasked::Nobody) => {
                let deleted = delete(&connect::jetstream_of(self.js.client(), region), sequence).await;
                deleted.map_err(|_| NoAnswer::Silent)
            }
            asked => asked.map(drop).map_err(NoAnswer::from),
        }
    }

    /// Makes a change of preferences at `home`, where the recipient lives, behind everything that this region has written for that
    /// home before. Returns the preferences after it.
    ///
    /// # Errors
    /// Within a few seconds; then it may have been made. Repeating is safe. Gateways of a former version do not answer.
    pub async fn amend(&self, home: &Region, mut amendment: Amendment) -> Result<Preferences, NotAmended> {
        if *home == self.here {
            return self.amend_here(amendment).await;
        }
        amendment.fence(&self.js, &self.border, &self.here, home).await?;
        let question = What::Amend {
            amendment: amendment.clone(),
        };
        let found = self.ask(home, question).await.map_err(NoAnswer::from)?;
        if let Some(fact) = found.first() {
            return Ok(tolerant::read(&fact.payload).map_err(|_| NotRead::Unreadable)?);
        }
        // The same merge here tells which rule it breaks.
        let known = facts::read_at(self, home, &amendment.key()).await?;
        known.preferences.merged(amendment.change, amendment.at)?;
        Err(NoAnswer::Silent.into())
    }

    async fn amend_here(&self, amendment: Amendment) -> Result<Preferences, NotAmended> {
        Box::pin(self.require_facts()).await?;
        Box::pin(amendment.apply(&self.js, &self.border, &self.here)).await
    }

    /// Has a gateway of this region write `facts` again, except where something newer is stored. At most some hundred
    /// kilobytes.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds; then all may be written again.
    pub async fn put_back(&self, facts: Vec<Kept>) -> Result<(), NoAnswer> {
        let asked = self.ask(&self.here, What::PutBack { facts }).await;
        asked.map(drop).map_err(NoAnswer::from)
    }

    /// Has a gateway of this region record how far the bucket of recipients that was created at `bucket_ms` (milliseconds
    /// since 1970) is restored.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds.
    pub async fn mark_restored(&self, bucket_ms: i64, is_complete: bool) -> Result<(), NoAnswer> {
        let what = What::Restored { bucket_ms, is_complete };
        self.ask(&self.here, what).await.map(drop).map_err(NoAnswer::from)
    }

    /// Has a gateway of this region take in what was seen of a receiver of webhooks.
    ///
    /// # Errors
    /// [`NoAnswer`], within a few seconds; also while no gateway of this version runs.
    pub async fn observed(&self, observation: Observation) -> Result<(), NoAnswer> {
        let asked = self.ask(&self.here, What::Observed { observation }).await;
        asked.map(drop).map_err(NoAnswer::from)
    }

    async fn ask(&self, region: &Region, what: What) -> Result<Vec<Found>, Unasked> {
        let asking = self.ask_and_collect(region, what);
        match tokio::time::timeout(ANSWERED_WITHIN, asking).await {
            Ok(Err(Unasked::Nobody)) if self.config.tenants().proofs_since.is_some() => Err(Unasked::Silent),
            Ok(asked) => asked,
            Err(_) => Err(Unasked::Silent),
        }
    }

    async fn ask_and_collect(&self, region: &Region, what: What) -> Result<Vec<Found>, Unasked> {
        let question = Question {
            nonce: Uuid::new_v4(),
            what,
        };
        let name = name_of_answers(question.nonce);
        let subject = subject::ask(region);
        let question = serde_json::to_vec(&question).map_err(|_| Unasked::Silent)?;
        let question = self.vault.seal(subject.as_bytes(), &question);
        let client = self.js.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| Unasked::Silent)?;
        let asking = client.publish_with_reply(subject, inbox, question.into());
        asking.await.map_err(|_| Unasked::Silent)?;
        let mut all = Vec::new();
        while let Some(message) = answers.next().await {
            if message.status.is_some() {
                return Err(Unasked::Nobody);
            }
            // Anybody with the NATS key of this region's gateways may write into its inboxes.
            let Ok(opened) = self.vault.open(&name, &message.payload) else {
                continue;
            };
            match read_answer(&opened).ok_or(Unasked::Silent)? {
                (Answer::Done { found }, _) if found == all.len() => return Ok(all),
                (Answer::Done { .. } | Answer::Failed, _) => return Err(Unasked::Silent),
                (answer, payload) => all.extend(found(answer, payload)),
            }
        }
        Err(Unasked::Silent)
    }

    /// Answers the questions of other regions' gateways and of this region's workers until the process ends, and passes on the
    /// receivers whose apps are to be alerted.
    pub async fn answer_forever(self, clock: Clock, alerts: mpsc::Sender<Troubled>) {
        let client = self.js.client();
        loop {
            let subject = subject::ask(&self.here);
            if let Ok(questions) = client.queue_subscribe(subject, "gateways".to_owned()).await {
                questions
                    .for_each_concurrent(ANSWERING_MAX, |message| self.answer(&client, &clock, &alerts, message))
                    .await;
            }
            tokio::time::sleep(RETRY_LISTEN_AFTER).await;
        }
    }

    async fn answer(&self, client: &Client, clock: &Clock, alerts: &mpsc::Sender<Troubled>, message: Message) {
        let Some(reply) = message.reply else { return };
        let opened = self.vault.open(message.subject.as_bytes(), &message.payload).ok();
        let Some(question) = opened.and_then(|opened| serde_json::from_slice::<Question>(&opened).ok()) else {
            tracing::warn!("a question that does not come from a gateway of this mesh is not answered");
            return;
        };
        let name = name_of_answers(question.nonce);
        let mut answers = match self.look_up(question.what, clock, alerts).await {
            Ok(found) => {
                let count = found.len();
                let mut answers: Vec<_> = found.into_iter().map(answer_of).collect();
                answers.push((Answer::Done { found: count }, Bytes::new()));
                answers
            }
            Err(_) => vec![(Answer::Failed, Bytes::new())],
        }
        .into_iter();
        let published = async {
            for (answer, payload) in answers.by_ref() {
                let sealed = self.vault.seal(&name, &written(&answer, &payload));
                client.publish(reply.clone(), sealed.into()).await?;
            }
            Ok::<_, async_nats::PublishError>(())
        };
        if let Err(error) = published.await {
            tracing::warn!(%error, "a question of another region's gateway could not be answered");
        }
    }

    async fn look_up(
        &self,
        what: What,
        clock: &Clock,
        alerts: &mpsc::Sender<Troubled>,
    ) -> Result<Vec<Found>, NoAnswer> {
        match what {
            What::Facts { filters } => {
                let mut found = self.facts_here(&filters).await?;
                found.retain(|found| self.may_leave(app_of_fact(&found.subject)));
                Ok(found)
            }
            What::FactsFrom { filter, from, count } => {
                let mut found = self.facts_from_here(&filter, from, count).await?;
                found.retain(|found| self.may_leave(app_of_fact(&found.subject)));
                Ok(found)
            }
            What::Letters { filter, from, count } => {
                let mut found = direct::from(&self.js, &Domain::Here, DEAD, &filter, from, count).await?;
                found.retain(|found| self.may_leave(subject::app_of(&found.subject)));
                Ok(found)
            }
            What::Feedback { app, notification } if self.may_leave(Some(app.as_str())) => {
                self.feedback_here(&app, notification).await
            }
            What::Feedback { .. } => Ok(Vec::new()),
            What::DeleteLetter { sequence } => {
                let filter = subject::dead_filter(&self.here);
                let found = direct::from(&self.js, &Domain::Here, DEAD, &filter, sequence, 1).await?;
                let letter = found.first().filter(|found| found.sequence == sequence);
                if letter.is_some_and(|letter| self.may_leave(subject::app_of(&letter.subject))) {
                    delete(&self.js, sequence).await?;
                }
                Ok(Vec::new())
            }
            What::Amend { amendment } if amendment.is_new(clock) && self.may_leave(Some(amendment.app.as_str())) => {
                self.answer_amendment(amendment).await
            }
            What::Amend { .. } => Err(NoAnswer::Silent),
            What::PutBack { facts } => {
                let written = restore::write(&self.js, facts).await;
                stored("facts could not be written again", written)
            }
            What::Restored { bucket_ms, is_complete } => {
                let marked = restore::mark(&self.js, &self.border, &self.here, bucket_ms, is_complete).await;
                stored("the restoration could not be recorded", marked)
            }
            What::Observed { observation } => {
                let troubled = receivers::record(&self.js, &self.border, observation).await?;
                if troubled.is_some_and(|troubled| alerts.try_send(troubled).is_err()) {
                    tracing::warn!("too many receivers fail at once; an app is not alerted to one of them");
                }
                Ok(Vec::new())
            }
        }
    }

    async fn answer_amendment(&self, amendment: Amendment) -> Result<Vec<Found>, NoAnswer> {
        let subject = subject::fact(&amendment.key(), FactName::Preferences);
        match self.amend_here(amendment).await {
            Ok(preferences) => Ok(vec![Found {
                subject,
                sequence: 0,
                stored_at: Timestamp::UNIX_EPOCH,
                headers: HeaderMap::new(),
                payload: Fact::Preferences(preferences).encode().into(),
            }]),
            Err(NotAmended::Invalid(_)) => Ok(Vec::new()),
            Err(error) => {
                tracing::warn!(%error, "preferences could not be changed for another region");
                Err(NoAnswer::Silent)
            }
        }
    }

    async fn facts_here(&self, filters: &[String]) -> Result<Vec<Found>, NoAnswer> {
        let (mut found, ()) = try_join!(
            current::last_of(&self.js, RECIPIENTS, filters),
            Box::pin(self.require_facts()),
        )?;
        found.retain(|found| facts::admits(&self.border, found));
        Ok(found)
    }

    async fn facts_from_here(&self, filter: &str, mut from: u64, count: usize) -> Result<Vec<Found>, NoAnswer> {
        Box::pin(self.require_facts()).await?;
        let mut all: Vec<Found> = Vec::new();
        loop {
            let wanted = count - all.len();
            let page = direct::from(&self.js, &Domain::Here, RECIPIENTS, filter, from, wanted).await?;
            let is_last = page.len() < wanted;
            from = page.last().map_or(from, |last| last.sequence + 1);
            all.extend(page.into_iter().filter(|found| facts::admits(&self.border, found)));
            if is_last || all.len() == count {
                return Ok(all);
            }
        }
    }

    /// Whether this region's bucket of recipients, which is in this state, is complete; see [`restore::is_complete`].
    ///
    /// # Errors
    /// When the leader of this region's directory does not answer.
    pub async fn has_facts(&self, bucket: &StreamState) -> Result<bool, NoAnswer> {
        restore::is_complete(&self.js, &self.here, bucket).await
    }

    /// Fails while this region's bucket of recipients is being restored, when the absence of a fact means nothing.
    ///
    /// # Errors
    /// [`NoAnswer::Silent`].
    pub async fn require_facts(&self) -> Result<(), NoAnswer> {
        let bucket = follow::stream_state(&self.js, RECIPIENTS).await;
        let bucket = bucket.map_err(|_| NoAnswer::Silent)?;
        if self.has_facts(&bucket).await? {
            Ok(())
        } else {
            Err(NoAnswer::Silent)
        }
    }

    /// Whether facts and letters of `app` may be known outside this region.
    fn may_leave(&self, app: Option<&str>) -> bool {
        let tenants = self.config.tenants();
        let app = app
            .and_then(|app| app.parse().ok())
            .and_then(|app| tenants.apps.get(&app));
        app.is_none_or(|app| app.residency.is_none())
    }
}

/// Why a question has no answer.
#[derive(Debug, Clone, Copy)]
enum Unasked {
    /// No gateway of the region listens, and the mesh may have gateways of 0.1, which do not: they read the streams
    /// themselves, and so may this one beside them.
    Nobody,
    Silent,
}

impl From<Unasked> for NoAnswer {
    fn from(_: Unasked) -> Self {
        Self::Silent
    }
}

fn stored(what: &str, stored: Result<(), NotStored>) -> Result<Vec<Found>, NoAnswer> {
    stored.map(|()| Vec::new()).map_err(|error| {
        tracing::warn!(%error, "{what}");
        NoAnswer::Silent
    })
}

fn name_of_answers(nonce: Uuid) -> Vec<u8> {
    format!("answer {nonce}").into_bytes()
}

fn app_of_fact(subject: &str) -> Option<&str> {
    subject::fact_key_of(subject)?.split('.').next()
}

async fn delete(js: &jetstream::Context, sequence: u64) -> Result<(), NoAnswer> {
    let stream = js.get_stream_no_info(DEAD).await.map_err(|_| NoAnswer::Silent)?;
    let deleting = stream.delete_message(sequence);
    let of_letters = |subject: &str| refusal::is_about(subject, topology::DEAD);
    match refusal::unless_refused(&js.client(), of_letters, deleting).await {
        Err(_) => Err(NoAnswer::Forbidden),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            tracing::warn!(sequence, %error, "cannot remove the dead letter");
            Err(NoAnswer::Silent)
        }
    }
}

fn answer_of(found: Found) -> (Answer, Bytes) {
    let each = found.headers.iter();
    let headers = each
        .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.to_string())))
        .collect();
    let answer = Answer::Found {
        subject: found.subject,
        sequence: found.sequence,
        stored_at: found.stored_at,
        headers,
    };
    (answer, found.payload)
}

fn found(answer: Answer, payload: Bytes) -> Option<Found> {
    let Answer::Found {
        subject,
        sequence,
        stored_at,
        headers: pairs,
    } = answer
    else {
        return None;
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name.as_str(), value.as_str());
    }
    Some(Found {
        subject,
        sequence,
        stored_at,
        headers,
        payload,
    })
}

/// An answer as bytes: the length of its JSON, the JSON, and the body of the message that was found.
fn written(answer: &Answer, payload: &[u8]) -> Vec<u8> {
    let json = serde_json::to_vec(answer).expect("answers always serialize");
    let length = u32::try_from(json.len()).expect("headers are shorter than 4 GB");
    [&length.to_be_bytes(), &json[..], payload].concat()
}

fn read_answer(bytes: &[u8]) -> Option<(Answer, Bytes)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (json, payload) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((serde_json::from_slice(json).ok()?, Bytes::copy_from_slice(payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let mut headers = HeaderMap::new();
        headers.insert("Peal-Version", "1");
        headers.append("Twice", "a");
        headers.append("Twice", "b");
        let message = Found {
            subject: "$KV.recipients.shop.ann.profile".to_owned(),
            sequence: 7,
            stored_at: Timestamp::UNIX_EPOCH,
            headers: headers.clone(),
            payload: Bytes::from_static(b"{}"),
        };
        let (answer, payload) = answer_of(message);
        let (answer, payload) = read_answer(&written(&answer, &payload)).unwrap();
        let read = found(answer, payload).unwrap();
        assert_eq!(
            (read.subject.as_str(), read.sequence),
            ("$KV.recipients.shop.ann.profile", 7)
        );
        assert_eq!((read.headers, &read.payload[..]), (headers, &b"{}"[..]));
        for bytes in [&b""[..], b"\0\0\0\x05{}", b"\0\0\0\x02{}"] {
            assert!(read_answer(bytes).is_none());
        }
    }
}
