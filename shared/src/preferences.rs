//! What a recipient agreed to receive, and changes of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::{
    channel::Channel,
    id::{Category, Topic},
    invalid::Invalid,
    policy::quiet::QuietHours,
    recipient::MAX_TOPICS,
    tolerant::{self, objects},
};

/// What a recipient agreed to receive. Absent means agreed. [`policy::consent`](crate::policy::consent) applies it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Preferences {
    /// `false` opts out of everything on that channel.
    #[serde(deserialize_with = "tolerant::or_default")]
    pub channels: BTreeMap<Channel, bool>,
    /// By category and channel; `false` opts out of that category on that channel.
    #[serde(deserialize_with = "tolerant::or_default")]
    pub categories: BTreeMap<Category, BTreeMap<Channel, bool>>,
    /// Whether the recipient wants nothing but what is critical.
    #[serde(
        deserialize_with = "tolerant::or_default",
        skip_serializing_if = "tolerant::is_usual"
    )]
    pub muted: bool,
    /// When `muted` ends; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub muted_until: Option<Timestamp>,
    /// `false` opts out of broadcasts to that topic. The recipient stays a member.
    #[serde(
        deserialize_with = "tolerant::or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub topics: BTreeMap<Topic, bool>,
    /// When not to disturb; those of the app if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiet_hours: Option<Vec<QuietHours>>,
}

/// A change of preferences, by the rules of RFC 7396: a member that is absent stays, and `null` removes what it names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct PreferencesPatch {
    /// By channel.
    #[serde(skip_serializing_if = "Change::keeps")]
    #[schema(value_type = Option<BTreeMap<Channel, Option<bool>>>)]
    pub channels: Change<Choices<Channel>>,
    /// By category and channel.
    #[serde(skip_serializing_if = "Change::keeps")]
    #[schema(value_type = Option<BTreeMap<Category, Option<BTreeMap<Channel, Option<bool>>>>>)]
    pub categories: Change<BTreeMap<Category, Option<Choices<Channel>>>>,
    /// Whether the recipient wants nothing but what is critical.
    #[serde(skip_serializing_if = "Change::keeps")]
    #[schema(value_type = Option<bool>)]
    pub muted: Change<bool>,
    /// When `muted` ends.
    #[serde(skip_serializing_if = "Change::keeps")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub muted_until: Change<Timestamp>,
    /// By topic.
    #[serde(skip_serializing_if = "Change::keeps")]
    #[schema(value_type = Option<BTreeMap<Topic, Option<bool>>>)]
    pub topics: Change<Choices<Topic>>,
    /// When not to disturb; replaced whole.
    #[serde(skip_serializing_if = "Change::keeps")]
    #[schema(value_type = Option<Vec<QuietHours>>)]
    pub quiet_hours: Change<Vec<QuietHours>>,
}

objects!(Preferences, PreferencesPatch);

/// What a change says of each name; `None` removes what was said.
pub type Choices<K> = BTreeMap<K, Option<bool>>;

/// What a change says of one member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Nothing: the member is absent.
    #[default]
    Keep,
    /// It is removed: `null`.
    Remove,
    /// It gets this value, or is merged with it.
    Set(T),
}

impl<T> Change<T> {
    const fn keeps(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Remove, Self::Set))
    }
}

impl<T: Serialize> Serialize for Change<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep | Self::Remove => serializer.serialize_none(),
            Self::Set(value) => value.serialize(serializer),
        }
    }
}

/// The most categories in the preferences of one recipient; more than a person can choose from.
const MAX_CATEGORIES: usize = 256;

impl Preferences {
    /// Whether they forbid nothing, whatever they say of quiet hours.
    pub fn are_empty(&self) -> bool {
        self.channels.is_empty() && self.categories.is_empty() && !self.muted && self.topics.is_empty()
    }

    /// Whether the recipient wants nothing but what is critical at `now`.
    pub fn is_muted(&self, now: Timestamp) -> bool {
        self.muted && self.muted_until.is_none_or(|until| now < until)
    }

    /// The same as they apply at `now`: a mute that has ended is none.
    #[must_use]
    pub fn at(mut self, now: Timestamp) -> Self {
        if !self.is_muted(now) {
            self.muted = false;
            self.muted_until = None;
        }
        self
    }

    /// Checks the rules that the types do not enforce.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub fn check(&self) -> Result<(), Invalid> {
        let at_most = |field: &str, count: usize, max: usize| {
            let rule = || Invalid::new(field, format_args!("must be at most {max}"));
            (count <= max).then_some(()).ok_or_else(rule)
        };
        at_most("categories", self.categories.len(), MAX_CATEGORIES)?;
        at_most("topics", self.topics.len(), MAX_TOPICS)?;
        let windows = self.quiet_hours.as_deref().unwrap_or_default();
        QuietHours::check(windows).map_err(|invalid| invalid.within("quiet_hours"))?;
        check_end(self.muted, self.muted_until)
    }

    /// These with a change that is made at `now`. A mute that has ended does not come back with a change of something else, and
    /// the end of a mute goes with it.
    ///
    /// # Errors
    /// The first member that breaks a rule after the change.
    pub fn merged(self, change: PreferencesPatch, now: Timestamp) -> Result<Self, Invalid> {
        change.check()?;
        let mut merged = self.at(now);
        merge(&mut merged.channels, change.channels);
        match change.categories {
            Change::Keep => {}
            Change::Remove => merged.categories.clear(),
            Change::Set(categories) => {
                for (category, choices) in categories {
                    match choices {
                        None => drop(merged.categories.remove(&category)),
                        Some(choices) => merge(merged.categories.entry(category).or_default(), Change::Set(choices)),
                    }
                }
            }
        }
        match change.muted {
            Change::Keep => {}
            Change::Remove => merged.muted = false,
            Change::Set(muted) => merged.muted = muted,
        }
        match change.muted_until {
            Change::Keep => {}
            Change::Remove => merged.muted_until = None,
            Change::Set(until) => merged.muted_until = Some(until),
        }
        if !merged.muted {
            merged.muted_until = None;
        }
        merge(&mut merged.topics, change.topics);
        match change.quiet_hours {
            Change::Keep => {}
            Change::Remove => merged.quiet_hours = None,
            Change::Set(windows) => merged.quiet_hours = Some(windows),
        }
        merged.check()?;
        Ok(merged)
    }
}

impl PreferencesPatch {
    /// Checks what must hold whatever it changes. Who names an end means a mute, also if another has ended meanwhile.
    ///
    /// # Errors
    /// The member that breaks a rule.
    pub fn check(&self) -> Result<(), Invalid> {
        let until = match self.muted_until {
            Change::Set(until) => Some(until),
            Change::Keep | Change::Remove => None,
        };
        check_end(self.muted == Change::Set(true), until)
    }
}

fn check_end(muted: bool, until: Option<Timestamp>) -> Result<(), Invalid> {
    if until.is_some() && !muted {
        return Err(Invalid::new(
            "muted_until",
            "must be given together with muted, which is true",
        ));
    }
    Ok(())
}

fn merge<K: Ord>(into: &mut BTreeMap<K, bool>, change: Change<Choices<K>>) {
    match change {
        Change::Keep => {}
        Change::Remove => into.clear(),
        Change::Set(choices) => {
            for (name, choice) in choices {
                match choice {
                    None => drop(into.remove(&name)),
                    Some(choice) => drop(into.insert(name, choice)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn merged(preferences: Value, change: Value) -> Result<Value, String> {
        let merged = read::<Preferences>(preferences).merged(read(change), NOW);
        let merged = merged.map_err(|invalid| invalid.to_string())?;
        Ok(serde_json::to_value(merged).unwrap())
    }

    #[test]
    fn a_change_is_merged_as_rfc_7396_says() {
        let before = json!({
            "channels": { "push": false, "sms": true },
            "categories": { "offers": { "push": false, "email": false }, "news": { "sms": false } },
            "topics": { "sport": false },
        });
        let is = |change: Value, members: Value| {
            let mut expected = before.clone();
            for (name, value) in members.as_object().unwrap() {
                expected[name] = value.clone();
            }
            expected.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            assert_eq!(merged(before.clone(), change.clone()).unwrap(), expected, "{change}");
        };
        is(json!({}), json!({}));
        is(
            json!({ "channels": { "push": null, "email": false } }),
            json!({ "channels": { "email": false, "sms": true } }),
        );
        is(json!({ "channels": null }), json!({ "channels": {} }));
        is(
            json!({ "categories": { "offers": { "push": null, "sms": false }, "news": null, "more": { "sms": null } } }),
            json!({ "categories": { "offers": { "email": false, "sms": false }, "more": {} } }),
        );
        is(json!({ "categories": null }), json!({ "categories": {} }));
        is(
            json!({ "topics": { "sport": true, "tv": false } }),
            json!({ "topics": { "sport": true, "tv": false } }),
        );
        is(json!({ "topics": null }), json!({ "topics": null }));
        is(json!({ "muted": true }), json!({ "muted": true }));
        is(json!({ "muted": null, "muted_until": null }), json!({}));
    }

    #[test]
    fn a_mute_has_one_meaning_before_and_after_its_end() {
        let at = |minutes: i64| NOW + SignedDuration::from_mins(minutes);
        let until = |minutes: i64| json!({ "muted": true, "muted_until": at(minutes).to_string() });
        let muted: Preferences = read(until(5));
        assert!(muted.is_muted(at(4)) && !muted.is_muted(at(5)) && !muted.are_empty());
        assert_eq!(muted.at(at(5)), Preferences::default());

        // While it lasts, its end stays unless it is named.
        assert_eq!(
            merged(until(5), json!({ "muted": true })).unwrap()["muted_until"],
            until(5)["muted_until"]
        );
        assert_eq!(
            merged(until(5), json!({ "muted": true, "muted_until": null }))
                .unwrap()
                .get("muted_until"),
            None
        );
        assert_eq!(
            merged(until(5), json!({ "muted": false })).unwrap().get("muted_until"),
            None
        );
        // One that has ended does not end the next at once.
        let again = merged(until(-5), json!({ "muted": true })).unwrap();
        assert_eq!((&again["muted"], again.get("muted_until")), (&json!(true), None));
        assert_eq!(merged(until(-5), json!({ "topics": {} })).unwrap().get("muted"), None);

        // An end without a mute would be a wish that nobody keeps.
        let alone = json!({ "muted_until": at(5).to_string() });
        assert_eq!(
            read::<Preferences>(alone.clone()).check().unwrap_err().field,
            "muted_until"
        );
        for change in [alone, json!({ "muted": false, "muted_until": at(5).to_string() })] {
            assert!(
                merged(until(9), change.clone())
                    .unwrap_err()
                    .starts_with("muted_until: "),
                "{change}"
            );
        }
    }

    #[test]
    fn preferences_have_an_end() {
        let many = |count: usize, value: Value| -> Value {
            (0..count).map(|number| (format!("n{number}"), value.clone())).collect()
        };
        for (member, max, value) in [
            ("categories", MAX_CATEGORIES, json!({})),
            ("topics", MAX_TOPICS, json!(false)),
        ] {
            let full = json!({ member: many(max, value.clone()) });
            read::<Preferences>(full.clone()).check().unwrap();
            let refused = merged(full, json!({ member: { "one-more": value } })).unwrap_err();
            assert!(refused.starts_with(&format!("{member}: ")), "{refused}");
        }
    }

    #[test]
    fn preferences_that_0_1_stored_are_read_and_0_1_reads_what_it_knows() {
        let former = json!({ "channels": { "sms": false }, "categories": {} });
        let preferences: Preferences = read(former.clone());
        assert_eq!(serde_json::to_value(preferences).unwrap(), former);
    }
}
