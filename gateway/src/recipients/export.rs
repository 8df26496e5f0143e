//! Reads all recipients of an app, region by region, in the order in which their profiles were written. A page is in memory at a
//! time, and every recipient names the place behind it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::Timestamp;
use serde::Serialize;
use shared::{
    address::{Address, Members},
    app::App,
    id::{AppId, RecipientId, Region, Topic},
    nats::facts,
    preferences::Preferences,
    recipient::{Fact, Profile, RecipientKey},
};

use super::homes::Homes;

/// Profiles of a page: the facts of so many recipients are in memory at a time.
const PAGE_RECIPIENTS: usize = 64;

/// A recipient with all that an import takes.
#[derive(Debug, Serialize)]
pub(crate) struct ExportLine {
    /// The app's id of the recipient.
    recipient_id: RecipientId,
    /// Its profile.
    recipient: ExportedProfile,
    /// Its addresses with their tokens and secrets.
    addresses: Vec<Members>,
    /// Its preferences, if it has stated any.
    #[serde(skip_serializing_if = "Option::is_none")]
    preferences: Option<Preferences>,
    /// Its topics.
    topics: Vec<Topic>,
    /// Continues the export behind this line.
    cursor: String,
}

/// A profile as an import takes it.
#[derive(Debug, Serialize)]
struct ExportedProfile {
    /// The region where the recipient lives.
    home: Region,
    /// BCP 47 language tag, such as `de-CH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<String>,
    /// IANA time zone, such as `Europe/Zurich`.
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
}

/// Where an export goes on: when it began, and from which profile on in each region that is left, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    began_at: Timestamp,
    left: Vec<(Region, u64)>,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.began_at.as_millisecond())?;
        let mut left = self.left.iter();
        left.try_for_each(|(region, from)| write!(f, ".{region}.{from}"))
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let began_at = parts.next().and_then(|text| text.parse().ok()).ok_or(())?;
        let began_at = Timestamp::from_millisecond(began_at).map_err(|_| ())?;
        let mut left = Vec::new();
        while let Some(region) = parts.next() {
            let from = parts.next().and_then(|text| text.parse().ok()).ok_or(())?;
            left.push((region.parse().map_err(|_| ())?, from));
        }
        Ok(Self { began_at, left })
    }
}

/// An export in progress.
#[derive(Debug)]
pub(crate) struct Export {
    homes: Homes,
    app: AppId,
    cursor: Cursor,
    /// Where regions stopped answering.
    silent: Vec<(Region, u64)>,
}

impl Export {
    /// An export of all recipients of `app`, or of what is behind `cursor`.
    pub(crate) fn new(homes: Homes, app: &App, cursor: Option<Cursor>) -> Self {
        let beginning = || {
            let regions = match &app.residency {
                Some(residency) => vec![residency.clone()],
                None => homes.context.regions(),
            };
            Cursor {
                began_at: homes.context.clock.now(),
                left: regions.into_iter().map(|region| (region, 1)).collect(),
            }
        };
        let mut cursor = cursor.unwrap_or_else(beginning);
        // A region may have left the mesh since.
        cursor.left.retain(|(region, _)| homes.context.is_region(region));
        Self {
            homes,
            app: app.id.clone(),
            cursor,
            silent: Vec::new(),
        }
    }

    /// The next recipients; `None` if there are no more. Empty if a page had none. A region that does not answer is left out.
    pub(crate) async fn page(&mut self) -> Option<Vec<ExportLine>> {
        let (region, from) = self.cursor.left.first().cloned()?;
        match self.read(&region, from).await {
            Ok((lines, next)) => {
                match next {
                    Some(next) => self.cursor.left[0].1 = next,
                    None => drop(self.cursor.left.remove(0)),
                }
                Some(lines)
            }
            Err(error) => {
                tracing::warn!(%region, %error, "an export leaves out what a region does not answer");
                self.silent.push(self.cursor.left.remove(0));
                Some(Vec::new())
            }
        }
    }

    /// Where to go on to get what is missing, and the regions that did not answer; `None` if nothing is missing.
    pub(crate) fn missing(self) -> Option<(Cursor, Vec<Region>)> {
        let regions: Vec<Region> = self.silent.iter().map(|(region, _)| region.clone()).collect();
        let mut cursor = self.cursor;
        cursor.left.extend(self.silent);
        (!cursor.left.is_empty()).then_some((cursor, regions))
    }

    /// A page of the recipients who live in `region`, and where the next one begins.
    async fn read(&self, region: &Region, from: u64) -> Result<(Vec<ExportLine>, Option<u64>), facts::NotRead> {
        let stores = &self.homes.context.stores;
        let page = facts::profiles_at(stores, region, &self.app, from, PAGE_RECIPIENTS).await?;
        let mut here = Vec::new();
        let mut elsewhere = Vec::new();
        for (key, profile, sequence) in page.profiles {
            if profile.home == *region {
                here.push((key, sequence));
            } else if profile.updated_at >= self.cursor.began_at {
                // Moved while the export runs, perhaps to a region that it has read already.
                elsewhere.push((key, profile.home, sequence));
            }
        }
        let keys: Vec<RecipientKey> = here.iter().map(|(key, _)| key.clone()).collect();
        let mut known = facts::all_at(stores, region, &keys).await?;
        let mut found: BTreeMap<u64, (RecipientKey, Vec<Fact>)> = BTreeMap::new();
        for (key, sequence) in here {
            let facts = known.remove(&key).unwrap_or_default();
            found.insert(sequence, (key, facts));
        }
        for (key, home, sequence) in elsewhere {
            let mut known = facts::all_at(stores, &home, std::slice::from_ref(&key)).await?;
            let facts = known.remove(&key).unwrap_or_default();
            found.insert(sequence, (key, facts));
        }
        let lines = found.into_iter().filter_map(|(sequence, (key, facts))| {
            let mut cursor = self.cursor.clone();
            cursor.left[0].1 = sequence + 1;
            cursor.left.extend(self.silent.iter().cloned());
            line(key, facts, &cursor)
        });
        Ok((lines.collect(), page.next))
    }
}

/// `None` for a recipient who was removed meanwhile.
fn line(key: RecipientKey, facts: Vec<Fact>, cursor: &Cursor) -> Option<ExportLine> {
    let (mut profile, mut addresses, mut preferences, mut topics) = (None, Vec::new(), None, Vec::new());
    for fact in facts {
        match fact {
            Fact::Profile(known) => profile = Some(known),
            Fact::Address(address) => addresses.push(address),
            Fact::Preferences(known) => preferences = Some(known),
            Fact::Topic(topic, _) => topics.push(topic),
        }
    }
    let Profile {
        home, locale, timezone, ..
    } = profile?;
    // In the order in which they were registered, whatever the order of the bucket.
    addresses.sort_by_key(|address: &Address| (address.registered_at, address.id));
    Some(ExportLine {
        recipient_id: key.recipient,
        recipient: ExportedProfile { home, locale, timezone },
        addresses: addresses.into_iter().map(Members::from).collect(),
        preferences,
        topics,
        cursor: cursor.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for text in ["1790000000000", "1790000000000.eu.1", "1790000000000.eu-2.17.us.1"] {
            assert_eq!(text.parse::<Cursor>().unwrap().to_string(), text);
        }
        for text in ["", "x", "1.eu", "1.eu.x", "1.EU.1", "1.eu.-1", "99999999999999999999"] {
            assert_eq!(text.parse::<Cursor>(), Err(()), "{text}");
        }
    }
}
