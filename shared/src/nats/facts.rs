//! Facts about recipients: written in any region, stored in the home region.

use std::collections::{BTreeMap, HashMap};

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use jiff::Timestamp;

use super::{
    ask::Regions,
    border::Border,
    current,
    direct::{self, Found},
    envelope, publish, subject, topology, version,
};
use crate::{
    address::Address,
    id::{AddressId, AppId, Region, Topic},
    recipient::{Fact, FactName, Membership, Profile, Recipient, RecipientKey},
    tolerant,
};

/// Why facts could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRead {
    /// The region that stores them does not answer.
    #[error("the home region does not answer")]
    NoAnswer,
    /// The server does not permit this process to read them.
    #[error("the server does not permit to read the facts")]
    Forbidden,
    /// The facts that it returned cannot be read.
    #[error("the stored facts cannot be read")]
    Unreadable,
}

impl From<direct::NoAnswer> for NotRead {
    fn from(error: direct::NoAnswer) -> Self {
        match error {
            direct::NoAnswer::Silent => Self::NoAnswer,
            direct::NoAnswer::Forbidden => Self::Forbidden,
        }
    }
}

/// Stores a fact for a recipient whose home is `home`. If that is another region, the fact is stored in the outbox
/// and forwarded.
///
/// # Errors
/// When this region's stream did not confirm that it stored the fact.
pub async fn write(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    home: &Region,
    key: &RecipientKey,
    fact: &Fact,
) -> Result<publish::Stored, publish::NotStored> {
    let subject = subject_for(here, home, key, fact.name());
    let (mut headers, value) = (version::headers(), fact.encode());
    sign(border, home, &mut headers, &subject, &value);
    publish::store(js, subject, headers, value.into()).await
}

/// Signs a fact for another region, where the key of this region's gateways alone must not suffice to write facts.
fn sign(border: &Border, home: &Region, headers: &mut HeaderMap, subject: &str, value: &[u8]) {
    if let Some(key) = subject::outbound_fact_key_of(home, subject) {
        border.sign_fact(headers, key, value);
    }
}

/// Removes a fact.
///
/// # Errors
/// When this region's stream did not confirm that it stored the removal.
pub async fn remove(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    home: &Region,
    key: &RecipientKey,
    name: FactName,
) -> Result<publish::Stored, publish::NotStored> {
    let (subject, mut headers) = (subject_for(here, home, key, name), removal());
    sign(border, home, &mut headers, &subject, b"");
    publish::store(js, subject, headers, "".into()).await
}

/// Removes a fact from the former home of a recipient who moved. That home still sends the broadcasts accepted before
/// `moved`: see [`Membership::moved`](crate::recipient::Membership::moved).
///
/// # Errors
/// When this region's stream did not confirm that it stored the removal.
pub async fn take_along(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    home: &Region,
    key: &RecipientKey,
    (name, moved): (FactName, Timestamp),
) -> Result<publish::Stored, publish::NotStored> {
    let mut headers = removal();
    headers.insert(envelope::MOVED, moved.as_millisecond().to_string());
    let subject = subject_for(here, home, key, name);
    sign(border, home, &mut headers, &subject, b"");
    publish::store(js, subject, headers, "".into()).await
}

/// Removes a fact of a recipient who lives here, unless it was written again after `revision`.
///
/// # Errors
/// [`publish::NotStored::Refused`] if it was.
pub async fn remove_unchanged(
    js: &jetstream::Context,
    key: &RecipientKey,
    name: FactName,
    revision: u64,
) -> Result<publish::Stored, publish::NotStored> {
    let mut headers = removal();
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
    publish::store(js, subject::fact(key, name), headers, "".into()).await
}

/// One address of a recipient as this region stores it, and its revision. Misses nothing that was acknowledged before.
///
/// # Errors
/// When the region's servers do not answer within two seconds, or the fact cannot be read.
pub async fn address(
    js: &jetstream::Context,
    border: &Border,
    key: &RecipientKey,
    address: AddressId,
) -> Result<Option<(Address, u64)>, NotRead> {
    let filter = subject::fact(key, FactName::Address(address));
    let found = current::last(js, topology::RECIPIENTS, &filter).await?;
    match found.filter(|found| admits(border, found) && !found.is_removal()) {
        Some(found) => {
            let address = tolerant::read(&found.payload).map_err(|_| NotRead::Unreadable)?;
            Ok(Some((address, found.sequence)))
        }
        None => Ok(None),
    }
}

fn removal() -> HeaderMap {
    let mut headers = version::headers();
    headers.insert("KV-Operation", "DEL");
    headers
}

fn subject_for(here: &Region, home: &Region, key: &RecipientKey, name: FactName) -> String {
    if here == home {
        subject::fact(key, name)
    } else {
        subject::fact_outbound(home, key, name)
    }
}

/// All facts about a recipient except its topics, as this region stores them. Misses nothing that was acknowledged before.
///
/// # Errors
/// When the region's servers do not answer within two seconds, or a stored fact cannot be read.
pub async fn read(js: &jetstream::Context, border: &Border, key: &RecipientKey) -> Result<Recipient, NotRead> {
    let mut found = current::last_of(js, topology::RECIPIENTS, &subject::facts_of(key)).await?;
    found.retain(|found| admits(border, found));
    recipient(found)
}

pub(super) fn admits(border: &Border, found: &Found) -> bool {
    border.admits_fact(&found.subject, &found.headers, found.stored_at, &found.payload)
}

/// All facts about a recipient except its topics, as `home` stores them.
///
/// # Errors
/// When `home` does not answer within a few seconds, or a stored fact cannot be read.
pub async fn read_at(regions: &Regions, home: &Region, key: &RecipientKey) -> Result<Recipient, NotRead> {
    recipient(regions.facts(home, &subject::facts_of(key)).await?)
}

fn recipient(found: Vec<Found>) -> Result<Recipient, NotRead> {
    let mut recipient = Recipient::default();
    for (fact, revision) in parse(found)? {
        match fact {
            Some(fact) => recipient.learn(fact, revision),
            None => recipient.is_incomplete = true,
        }
    }
    Ok(recipient)
}

/// The topics that a recipient is a member of, as `home` stores them. As new as those of [`read`].
///
/// # Errors
/// As [`read_at`].
pub async fn topics_at(
    regions: &Regions,
    home: &Region,
    key: &RecipientKey,
) -> Result<BTreeMap<Topic, Membership>, NotRead> {
    let facts = parse(regions.facts(home, &[subject::topics_of(key)]).await?)?;
    let topics = facts.into_iter().filter_map(|(fact, _)| match fact {
        Some(Fact::Topic(topic, membership)) => Some((topic, membership)),
        Some(Fact::Profile(_) | Fact::Address(_) | Fact::Preferences(_)) | None => None,
    });
    Ok(topics.collect())
}

/// Profiles of recipients in the order in which a region stored them.
#[derive(Debug)]
pub struct Profiles {
    /// Each with its sequence. Those of recipients who moved away name their new home.
    pub profiles: Vec<(RecipientKey, Profile, u64)>,
    /// From which sequence on the rest is; `None` if these are the last.
    pub next: Option<u64>,
}

/// Up to `count` profiles of recipients of `app`, as `region` stores them, from the sequence `from` on.
///
/// # Errors
/// As [`read_at`].
pub async fn profiles_at(
    regions: &Regions,
    region: &Region,
    app: &AppId,
    from: u64,
    count: usize,
) -> Result<Profiles, NotRead> {
    let found = regions
        .facts_from(region, &subject::profiles_of(app), from, count)
        .await?;
    let next = direct::next_page(&found, count);
    let profiles = named(found)?
        .into_iter()
        .filter_map(|(key, fact, sequence)| match fact {
            Some(Fact::Profile(profile)) => Some((key, profile, sequence)),
            _ => None,
        });
    Ok(Profiles {
        profiles: profiles.collect(),
        next,
    })
}

/// All facts about these recipients, with their topics, as `region` stores them.
///
/// # Errors
/// As [`read_at`]; also when a fact is of a newer version, because a part would look like the whole.
pub async fn all_at(
    regions: &Regions,
    region: &Region,
    keys: &[RecipientKey],
) -> Result<HashMap<RecipientKey, Vec<Fact>>, NotRead> {
    let filters: Vec<String> = keys.iter().map(subject::all_facts_of).collect();
    let mut all: HashMap<RecipientKey, Vec<Fact>> = HashMap::new();
    for (key, fact, _) in named(regions.facts(region, &filters).await?)? {
        all.entry(key).or_default().push(fact.ok_or(NotRead::Unreadable)?);
    }
    Ok(all)
}

/// The facts in these messages, each with its revision; `None` for an address of a newer version.
fn parse(found: Vec<Found>) -> Result<Vec<(Option<Fact>, u64)>, NotRead> {
    let facts = named(found)?.into_iter();
    Ok(facts.map(|(_, fact, revision)| (fact, revision)).collect())
}

/// As [`parse`], each with its recipient.
fn named(found: Vec<Found>) -> Result<Vec<(RecipientKey, Option<Fact>, u64)>, NotRead> {
    let mut facts = Vec::with_capacity(found.len());
    for found in found.into_iter().filter(|found| !found.is_removal()) {
        let Some((key, name)) = subject::fact_key_of(&found.subject).and_then(subject::parse_fact_key) else {
            continue;
        };
        let is_address = matches!(name, FactName::Address(_));
        match Fact::decode(name, &found.payload) {
            Ok(fact) => facts.push((key, Some(fact), found.sequence)),
            // A recipient can be reached without one address, but not without consent and home.
            Err(error) if is_address && version::is_unknown(&found.headers) => {
                tracing::warn!(subject = found.subject, %error, "an address of a newer version cannot be read");
                facts.push((key, None, found.sequence));
            }
            Err(_) => return Err(NotRead::Unreadable),
        }
    }
    Ok(facts)
}
