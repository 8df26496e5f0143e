//! When API keys were last used, by the hour.
//!
//! Each region writes entries of its own into the directory, where nothing follows from them: whoever steals a region can state a
//! wrong hour, and changes no key.

use std::collections::HashMap;

use async_nats::{header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    border::Border,
    direct::{self, Found, NoAnswer},
    publish::{self, NotStored},
    subject,
    topology::{DIRECTORY, Domain},
};
use crate::id::Region;

/// Keys whose entries are read at once: one answer has at most 1024, and every region has an entry of its own.
const KEYS_AT_ONCE: usize = 32;

/// How far ahead of a reader's clock an hour may begin.
const AHEAD_MAX: SignedDuration = SignedDuration::from_secs(60);

/// One region's entry about a key.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The beginning of the hour.
    at: Timestamp,
}

/// The beginning of the hour of `at`.
pub fn hour(at: Timestamp) -> Timestamp {
    let seconds = at.as_second();
    Timestamp::from_second(seconds - seconds.rem_euclid(3600)).unwrap_or(at)
}

/// Records that gateways of `here` used these keys in the hour that begins at `hour`. Of several gateways that do so at one time one
/// writes.
///
/// # Errors
/// When the stream does not answer. Some of them may be recorded then.
pub async fn record(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    keys: &[String],
    hour: Timestamp,
) -> Result<(), NotStored> {
    let filters: Vec<String> = keys.iter().map(|key| subject::directory_used(here, key)).collect();
    let found = direct::last_of(js, &Domain::Here, DIRECTORY, &filters).await?;
    let known: HashMap<&str, &Found> = found.iter().map(|found| (found.subject.as_str(), found)).collect();
    let payload = serde_json::to_vec(&Entry { at: hour }).expect("entries always serialize");
    for subject in filters {
        let former = known.get(subject.as_str());
        if former.and_then(|found| at(found)).is_some_and(|former| former >= hour) {
            continue;
        }
        let mut headers = border.headers(&subject, &payload);
        let expected = former.map_or(0, |found| found.sequence);
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        match publish::store(js, subject, headers, payload.clone().into()).await {
            // Another gateway was first.
            Ok(_) | Err(NotStored::Refused) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// When these keys were last used in any region, by their ids, as far as this region knows at `now`.
///
/// # Errors
/// [`NoAnswer`], within a few seconds.
pub async fn read(
    js: &jetstream::Context,
    border: &Border,
    keys: &[&str],
    now: Timestamp,
) -> Result<HashMap<String, Timestamp>, NoAnswer> {
    let mut found = Vec::new();
    for keys in keys.chunks(KEYS_AT_ONCE) {
        let filters: Vec<String> = keys.iter().map(|key| subject::directory_used_anywhere(key)).collect();
        found.extend(direct::last_of(js, &Domain::Here, DIRECTORY, &filters).await?);
    }
    let mut used: HashMap<String, Timestamp> = HashMap::new();
    for found in found.iter().filter(|found| border.admits_found(found)) {
        let (Some(key), Some(at)) = (subject::key_of_used(&found.subject), at(found)) else {
            continue;
        };
        if at.duration_since(now) > AHEAD_MAX {
            continue;
        }
        let newest = used.entry(key.to_owned()).or_insert(at);
        *newest = at.max(*newest);
    }
    Ok(used)
}

fn at(found: &Found) -> Option<Timestamp> {
    serde_json::from_slice::<Entry>(&found.payload)
        .ok()
        .map(|entry| entry.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_begins_on_the_hour() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(hour(at("2026-11-26T23:59:59.9Z")), at("2026-11-26T23:00:00Z"));
        assert_eq!(hour(at("2026-11-27T00:00:00Z")), at("2026-11-27T00:00:00Z"));
    }

    #[test]
    fn the_key_is_read_from_the_subject() {
        let eu = "eu".parse().unwrap();
        let subject = subject::directory_used(&eu, "0123456789abcdef");
        assert_eq!(subject::key_of_used(&subject), Some("0123456789abcdef"));
        assert_eq!(
            subject::DirectoryKey::parse(&subject),
            None,
            "it is nobody's home or address"
        );
    }
}
