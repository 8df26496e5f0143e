//! The suppression lists of apps, in the directory. Every region writes its own entries and holds those of all regions; of the
//! entries under one id the newest wins. An entry that was lifted stays as a removal, because an older one of another region
//! would count again without it.

use std::collections::HashMap;

use async_nats::jetstream;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    border::Border,
    current,
    direct::{self, NoAnswer},
    directory, publish, subject,
    topology::{self, Domain},
};
use crate::{
    id::{AppId, Region},
    suppression::{Suppression, SuppressionId},
};

/// Entries that one request for a page of a list reads. With one of each region they stay below what one answer holds.
const ENTRIES_PER_READ: usize = 100;

/// Requests for one page, at most: a filter may admit none of a million entries.
const READS_PER_PAGE_MAX: usize = 20;

/// One entry as stored. `is: None` records that the suppression was lifted.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    is: Option<Suppression>,
    at: Timestamp,
}

/// What matters of an entry when something is to be sent. It is read from entries of later versions too.
///
/// Entries of the same time are ordered by their end, so that all regions choose the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// When the entry was made.
    pub at: Timestamp,
    /// Until when nothing may be sent; `None` if the suppression was lifted.
    pub until: Option<Timestamp>,
}

impl Standing {
    /// Reads it from the payload of an entry.
    ///
    /// # Errors
    /// When the payload is no entry.
    pub fn read(payload: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Stored {
            is: Option<Ends>,
            at: Timestamp,
        }
        #[derive(Deserialize)]
        struct Ends {
            expires_at: Option<Timestamp>,
        }
        let Stored { is, at } = serde_json::from_slice(payload)?;
        Ok(Self {
            at,
            until: is.map(|is| is.expires_at.unwrap_or(Timestamp::MAX)),
        })
    }

    /// Whether nothing may be sent at `now`.
    pub fn forbids(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

impl Entry {
    fn standing(&self) -> Standing {
        Standing {
            at: self.at,
            until: self.is.as_ref().map(Suppression::until),
        }
    }

    /// The suppression, if it applies at `now`.
    fn in_force(self, now: Timestamp) -> Option<Suppression> {
        self.is.filter(|is| is.until() > now)
    }
}

/// A page of a list.
#[derive(Debug, Default)]
pub struct Page {
    /// What is in force, each with its id; the oldest entry first.
    pub suppressions: Vec<(SuppressionId, Suppression)>,
    /// The sequence with which the next page begins; absent if this one is the last.
    pub next: Option<u64>,
}

/// The suppressions of `app` under `ids` that are in force at `now`, in no order. Misses nothing that this region acknowledged
/// before.
///
/// # Errors
/// When this region's directory does not answer.
pub async fn in_force(
    js: &jetstream::Context,
    border: &Border,
    app: &AppId,
    ids: &[SuppressionId],
    now: Timestamp,
) -> Result<HashMap<SuppressionId, Suppression>, NoAnswer> {
    let filters: Vec<_> = ids
        .iter()
        .map(|id| subject::directory_suppressed_anywhere(app, *id))
        .collect();
    let found = current::last_of(js, topology::DIRECTORY, &filters).await?;
    let newest = newest(border, &found).into_iter();
    Ok(newest
        .filter_map(|(id, (_, entry))| Some((id, entry.in_force(now)?)))
        .collect())
}

/// Adds `wanted` to the list of `app` under `id`, at `wanted.created_at`, and returns what holds from then on: see
/// [`Suppression::and`]. Workers of `here` send nothing against it that they pull after this has returned, those of other
/// regions soon after. Safe to repeat.
///
/// # Errors
/// When the stream did not acknowledge the entry and its mark.
pub async fn add(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    id: SuppressionId,
    wanted: Suppression,
) -> Result<Suppression, publish::NotStored> {
    let now = wanted.created_at;
    let added = replace(js, border, here, app, id, now, |known| {
        Some(match known {
            Some(known) => known.and(wanted.clone()),
            None => wanted.clone(),
        })
    });
    Ok(added.await?.unwrap_or(wanted))
}

/// Takes what is under `id` off the list of `app`. Returns `false` if nothing was in force. Safe to repeat.
///
/// # Errors
/// When the stream did not acknowledge the entry and its mark.
pub async fn lift(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    id: SuppressionId,
    now: Timestamp,
) -> Result<bool, publish::NotStored> {
    if in_force(js, border, app, &[id], now).await?.is_empty() {
        return Ok(false);
    }
    replace(js, border, here, app, id, now, |_| None).await?;
    Ok(true)
}

/// Writes the entry of `here` that `change` makes of what is in force, and its mark.
async fn replace(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    id: SuppressionId,
    now: Timestamp,
    change: impl Fn(Option<Suppression>) -> Option<Suppression>,
) -> Result<Option<Suppression>, publish::NotStored> {
    let filter = subject::directory_suppressed_anywhere(app, id);
    let mut found = current::last_of(js, topology::DIRECTORY, &[filter]).await?;
    let others = newest(border, &found).remove(&id).map(|(_, entry)| entry);
    let subject = subject::directory_suppressed(here, app, id);
    let own = direct::take(&mut found, &subject);
    let changed = directory::change(js, border, &subject, own, |own: Option<Entry>| {
        let known = own.into_iter().chain(others.clone()).max_by_key(Entry::standing);
        let at = directory::after(known.as_ref().map(|known| known.at), now);
        let is = change(known.and_then(|known| known.in_force(now)));
        Entry { is, at }
    })
    .await?;
    // Whoever has read the mark has read the entry.
    let mark = subject::directory_suppressed_mark(here);
    let value = Bytes::from_static(b"{}");
    let headers = border.headers(&mark, &value);
    publish::store(js, mark, headers, value).await?;
    Ok(changed.is)
}

/// At most `limit` suppressions of `app` that are in force at `now` and that `admits` lets through, from the sequence `from`
/// on. May hold fewer, even none, although others follow. Sequences are those of this region's directory.
///
/// # Errors
/// When this region's directory does not answer.
pub async fn page(
    js: &jetstream::Context,
    border: &Border,
    app: &AppId,
    from: u64,
    limit: usize,
    now: Timestamp,
    admits: impl Fn(&Suppression) -> bool,
) -> Result<Page, NoAnswer> {
    let filter = subject::directory_suppressed_of(app);
    let mut page = Page {
        suppressions: Vec::new(),
        next: Some(from),
    };
    for _ in 0..READS_PER_PAGE_MAX {
        let Some(next) = page.next else { break };
        let read = direct::from(js, &Domain::Here, topology::DIRECTORY, &filter, next, ENTRIES_PER_READ);
        let read = read.await?;
        let mut filters: Vec<_> = read
            .iter()
            .filter_map(|found| subject::suppressed_of(&found.subject))
            .map(|(app, id)| subject::directory_suppressed_anywhere(&app, id))
            .collect();
        filters.sort();
        filters.dedup();
        if filters.is_empty() {
            page.next = None;
            break;
        }
        let of_all = direct::last_of(js, &Domain::Here, topology::DIRECTORY, &filters).await?;
        let newest = newest(border, &of_all);
        page.next = direct::next_page(&read, ENTRIES_PER_READ);
        for found in &read {
            let Some((_, id)) = subject::suppressed_of(&found.subject) else {
                continue;
            };
            // Each entry is listed once: where the newest one stands.
            let Some((sequence, entry)) = newest.get(&id) else {
                continue;
            };
            if *sequence != found.sequence {
                continue;
            }
            let Some(suppression) = entry.clone().in_force(now).filter(&admits) else {
                continue;
            };
            if page.suppressions.len() == limit {
                page.next = Some(found.sequence);
                return Ok(page);
            }
            page.suppressions.push((id, suppression));
        }
    }
    Ok(page)
}

/// How far a reader must have read to know every change of a list that a gateway of `here` has answered. One read of one message.
///
/// # Errors
/// When the leader of this region's directory does not answer.
pub async fn end(js: &jetstream::Context, here: &Region) -> Result<u64, NoAnswer> {
    let mark = current::last(js, topology::DIRECTORY, &subject::directory_suppressed_mark(here)).await?;
    Ok(mark.map_or(0, |mark| mark.sequence))
}

/// The newest entry under each id, with its sequence.
fn newest(border: &Border, found: &[direct::Found]) -> HashMap<SuppressionId, (u64, Entry)> {
    let mut newest: HashMap<SuppressionId, (u64, Entry)> = HashMap::new();
    for found in directory::believed(border, found) {
        let Some((_, id)) = subject::suppressed_of(&found.subject) else {
            continue;
        };
        let Some(entry) = directory::entry::<Entry>(found) else {
            continue;
        };
        let is_newer = |known: &(u64, Entry)| known.1.standing() >= entry.standing();
        if !newest.get(&id).is_some_and(is_newer) {
            newest.insert(id, (found.sequence, entry));
        }
    }
    newest
}
