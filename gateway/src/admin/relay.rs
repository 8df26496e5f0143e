//! The relay: gateways of regions hand writes to the admin gateways at the hub, with the caller's key.
//!
//! Only gateways can ask, and only at the subject of their own region. Question and answer are sealed under the mesh key, and
//! the answer is tied to the question by a nonce that nobody else reads. Neither makes anything be written: that takes the
//! caller's key, which an admin gateway looks up anew. So a stolen gateway writes nothing without an operator's key.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Client, Message};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use shared::{
    api_key::{Presented, Scope},
    clock::Clock,
    control::Control,
    id::{AppId, ControlId, Region},
    nats::{roles::Role, subject},
    seal::{MeshKey, Vault},
    site::Site,
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::context::Context;

use super::{
    change::Change,
    desk::{Authority, Desk, Mode, Refusal, Written},
    document::{AppDocument, KeyDocument},
};

/// The purpose of the vault that seals questions and answers.
const PURPOSE: &str = "admin";

/// How long a region waits for an answer; longer than a write takes whose leader must first be elected.
const ANSWERED_WITHIN: Duration = Duration::from_secs(8);

/// How far the clocks of a region and of the hub may differ. A question that is older is refused, and younger ones are
/// remembered, so that none is carried out twice.
const CLOCKS_DIFFER_MAX: SignedDuration = SignedDuration::from_secs(60);

/// Questions that an admin gateway works on at the same time.
const ANSWERING_MAX: usize = 32;

/// The pause before an admin gateway listens again after an interruption.
const RETRY_LISTEN_AFTER: Duration = Duration::from_secs(1);

/// What is to be written. `if_match` is the version that the entry must have, in every question that writes one: so a question
/// that somebody repeats later changes nothing, whichever admin gateway it reaches.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Act {
    PutApp {
        document: Box<AppInFull>,
        if_match: Option<String>,
        mode: Mode,
    },
    DeleteApp {
        app: AppId,
        if_match: Option<String>,
    },
    IssueKey {
        app: AppId,
        key: KeyDocument,
    },
    RevokeKey {
        app: AppId,
        key_id: String,
    },
    PutRegion {
        region: Region,
        site: Site,
        if_match: Option<String>,
        mode: Mode,
    },
    /// The admin gateway gives it its id and its time.
    AddControl(Control),
    RemoveControl(ControlId),
}

impl Act {
    /// What the caller's key must be allowed.
    fn scope(&self) -> Scope {
        match self {
            Self::PutApp { .. }
            | Self::DeleteApp { .. }
            | Self::IssueKey { .. }
            | Self::RevokeKey { .. }
            | Self::PutRegion { .. } => Scope::AppsWrite,
            Self::AddControl(_) | Self::RemoveControl(_) => Scope::ControlsWrite,
        }
    }
}

/// The JSON of an app as the caller sent it, with its secrets: [`AppDocument`] does not write them.
pub(crate) type AppInFull = serde_json::Value;

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Done {
    App(Box<Written>),
    Key(KeyDocument),
    Region(Vec<Change>),
    Control(Control),
    Removed,
}

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// Ties the answer to the question.
    nonce: Uuid,
    at: Timestamp,
    /// The caller's API key.
    key: String,
    act: Act,
}

/// No admin gateway answers. What was asked may be done all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no admin gateway answers")]
pub(crate) struct Unreachable;

/// The end of the relay in a region.
#[derive(Debug)]
pub(crate) struct Relay {
    client: Client,
    here: Region,
    vault: Vault,
    clock: Clock,
    /// The callers whose writes are in progress.
    callers: Mutex<HashSet<String>>,
}

/// The place of a caller whose write is in progress.
pub(crate) struct Turn<'a>(&'a Relay, String);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0
            .callers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.1);
    }
}

impl Relay {
    pub(crate) fn new(context: &Context) -> Self {
        Self {
            client: context.js.client(),
            here: context.here.clone(),
            vault: context.mesh_key.vault(PURPOSE),
            clock: context.clock.clone(),
            callers: Mutex::default(),
        }
    }

    /// The turn of `caller`; `None` while its former write is in progress. So one app cannot keep the admin gateways from all
    /// others.
    pub(crate) fn enter(&self, caller: &str) -> Option<Turn<'_>> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.insert(caller.to_owned()).then(|| Turn(self, caller.to_owned()))
    }

    /// Has an admin gateway carry out `act` for the holder of `key`.
    pub(crate) async fn ask(&self, key: &str, act: Act) -> Result<Result<Done, Refusal>, Unreachable> {
        let question = Question {
            nonce: Uuid::new_v4(),
            at: self.clock.now(),
            key: key.to_owned(),
            act,
        };
        let (subject, name) = (subject::admin(&self.here), name_of_answer(question.nonce));
        let question = serde_json::to_vec(&question).map_err(|_| Unreachable)?;
        let question = self.vault.seal(subject.as_bytes(), &question);
        let asking = self.client.request(subject, question.into());
        let answer = match timeout(ANSWERED_WITHIN, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::warn!(%error, "no admin gateway answers");
                return Err(Unreachable);
            }
            Err(_) => return Err(Unreachable),
        };
        // Anybody with the NATS key of this region's gateways may write into its inboxes.
        let opened = self.vault.open(&name, &answer.payload).map_err(|_| Unreachable)?;
        serde_json::from_slice(&opened).map_err(|_| Unreachable)
    }
}

fn name_of_answer(nonce: Uuid) -> Vec<u8> {
    format!("answer {nonce}").into_bytes()
}

/// The end of the relay at the hub.
#[derive(Debug)]
pub(super) struct Counter {
    client: Client,
    desk: Desk,
    vault: Vault,
    clock: Clock,
    answered: Mutex<HashMap<Uuid, Timestamp>>,
}

impl Counter {
    pub(super) fn new(client: Client, desk: Desk, mesh_key: &MeshKey, clock: Clock) -> Self {
        Self {
            client,
            desk,
            vault: mesh_key.vault(PURPOSE),
            clock,
            answered: Mutex::default(),
        }
    }

    /// Answers until the process ends.
    pub(super) async fn answer_forever(self) {
        loop {
            let queue = "admins".to_owned();
            if let Ok(questions) = self.client.queue_subscribe(subject::ADMIN_FILTER, queue).await {
                questions
                    .for_each_concurrent(ANSWERING_MAX, |message| self.answer(message))
                    .await;
            }
            sleep(RETRY_LISTEN_AFTER).await;
        }
    }

    async fn answer(&self, message: Message) {
        let Some(reply) = message.reply else { return };
        let subject = message.subject.as_str();
        let Some(question) = self.open(subject, &reply, &message.payload) else {
            tracing::warn!(
                subject,
                "a question that no gateway of this mesh asked, or that was asked before, is not answered"
            );
            return;
        };
        let name = name_of_answer(question.nonce);
        let done = self.carry_out(question).await;
        let answer = serde_json::to_vec(&done).expect("answers always serialize");
        let answer = self.vault.seal(&name, &answer);
        if let Err(error) = self.client.publish(reply, answer.into()).await {
            tracing::warn!(%error, "a region's gateway could not be answered");
        }
    }

    /// The question, if a gateway of the region asked it just now and for itself.
    fn open(&self, subject: &str, reply: &str, sealed: &[u8]) -> Option<Question> {
        let region = subject::region_of_admin(subject)?;
        if !reply.starts_with(&format!("{}.", Role::Gateway(region).inbox())) {
            return None;
        }
        let opened = self.vault.open(subject.as_bytes(), sealed).ok()?;
        let question: Question = serde_json::from_slice(&opened).ok()?;
        let now = self.clock.now();
        let is_recent = |at: Timestamp| now.duration_since(at).abs() <= CLOCKS_DIFFER_MAX;
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.retain(|_, at| is_recent(*at));
        (is_recent(question.at) && answered.insert(question.nonce, question.at).is_none()).then_some(question)
    }

    async fn carry_out(&self, question: Question) -> Result<Done, Refusal> {
        let presented: Presented = question.key.parse().map_err(|_| Refusal::Unauthenticated)?;
        let by = self.desk.authority(&presented, question.act.scope()).await?;
        match question.act {
            Act::PutApp {
                document,
                if_match,
                mode,
            } => {
                let document = read(*document)?;
                let written = self.desk.put_app(&by, &document, if_match.as_deref(), mode).await?;
                if mode == Mode::Write {
                    note(&by, &document.id, "app written");
                }
                Ok(Done::App(written.into()))
            }
            Act::DeleteApp { app, if_match } => {
                self.desk.delete_app(&by, &app, if_match.as_deref()).await?;
                note(&by, &app, "app removed");
                Ok(Done::Removed)
            }
            Act::IssueKey { app, key } => {
                key.check_new()?;
                let new = key.wanted().ok_or(Refusal::Unauthenticated)?;
                self.desk.issue_key(&by, &app, new).await.map(Done::Key)
            }
            Act::RevokeKey { app, key_id } => {
                self.desk.revoke_key(&by, &app, &key_id).await?;
                Ok(Done::Removed)
            }
            Act::PutRegion {
                region,
                site,
                if_match,
                mode,
            } => {
                let writing = self.desk.put_region(&by, &region, &site, if_match.as_deref(), mode);
                let changes = writing.await?;
                Ok(Done::Region(changes))
            }
            Act::AddControl(control) => {
                let who = presented.key_id;
                self.desk
                    .add_control(&by, Control { who, ..control })
                    .await
                    .map(Done::Control)
            }
            Act::RemoveControl(id) => {
                self.desk.remove_control(&by, &presented.key_id, id).await?;
                Ok(Done::Removed)
            }
        }
    }
}

fn read(document: AppInFull) -> Result<AppDocument, Refusal> {
    serde_path_to_error::deserialize(document).map_err(|error| shared::invalid::Invalid::of_json(&error).into())
}

fn note(by: &Authority, app: &AppId, what: &str) {
    let is_operator = matches!(by, Authority::Operator);
    tracing::info!(%app, is_operator, "{what}");
}
