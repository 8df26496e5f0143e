//! The categories that an app declares: what kind of notifications they are, and what applies to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{limit::Limit, quiet::WhenBlocked};
use crate::{
    channel::words,
    id::Category,
    invalid::Invalid,
    tolerant::{self, objects},
};

/// Most categories of an app.
const CATEGORIES_MAX: usize = 256;

/// Most bytes of a title.
const TITLE_BYTES_MAX: usize = 128;

words!(
    /// What the notifications of a category are.
    CategoryKind, "kind", {
        /// Anything that a recipient may refuse.
        Default = "default",
        /// What the recipient must get, such as a code to sign in: it passes mute, quiet hours and limits. Only the opt-out of a
        /// whole channel stops it.
        Critical = "critical",
        /// Advertising: each message offers a way to unsubscribe.
        Commercial = "commercial",
    }
    default Default
);

/// What applies to the notifications of one category.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct CategoryPolicy {
    /// What they are.
    #[serde(
        deserialize_with = "tolerant::or_default",
        skip_serializing_if = "tolerant::is_usual"
    )]
    pub kind: CategoryKind,
    /// Its name for recipients; the category itself if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What happens to them in quiet hours; what the quiet hours say if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiet_hours: Option<WhenBlocked>,
    /// How often each recipient is sent one.
    #[serde(deserialize_with = "tolerant::or_default", skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

objects!(CategoryPolicy);

/// The categories of an app that differ from [`CategoryPolicy::default`], by name.
pub type Categories = BTreeMap<Category, CategoryPolicy>;

impl CategoryPolicy {
    /// Checks the categories of an app.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at the map.
    pub fn check(categories: &Categories) -> Result<(), Invalid> {
        if categories.len() > CATEGORIES_MAX {
            let rule = format_args!("must be at most {CATEGORIES_MAX} categories");
            return Err(Invalid::new("", rule));
        }
        for (category, policy) in categories {
            policy
                .check_members()
                .map_err(|invalid| invalid.within(category.as_str()))?;
        }
        Ok(())
    }

    fn check_members(&self) -> Result<(), Invalid> {
        let is_title =
            |title: &String| (1..=TITLE_BYTES_MAX).contains(&title.len()) && !title.chars().any(char::is_control);
        if !self.title.as_ref().is_none_or(is_title) {
            let rule = format_args!("must be 1 to {TITLE_BYTES_MAX} bytes without control characters");
            return Err(Invalid::new("title", rule));
        }
        Limit::check_of_category(&self.limits).map_err(|invalid| invalid.within("limits"))
    }
}

/// Categories as they are stored, perhaps by a newer version. What cannot be read applies as if it were not declared: then
/// nothing is critical that a recipient has refused.
pub(crate) fn stored(members: BTreeMap<String, Value>) -> Categories {
    let read = |(name, policy): (String, Value)| {
        let policy = tolerant::read(policy.to_string().as_bytes()).unwrap_or_default();
        Some((name.parse().ok()?, policy))
    };
    members.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(categories: Value) -> Categories {
        serde_json::from_value(categories).unwrap()
    }

    #[test]
    fn a_category_that_breaks_a_rule_is_named() {
        let offers = json!({ "offers": { "kind": "commercial", "title": "Offers" }, "codes": { "kind": "critical" } });
        CategoryPolicy::check(&read(offers.clone())).unwrap();
        assert_eq!(serde_json::to_value(read(offers.clone())).unwrap(), offers);
        for title in [String::new(), "a\nb".to_owned(), "ä".repeat(65)] {
            let refused = CategoryPolicy::check(&read(json!({ "offers": { "title": title } }))).unwrap_err();
            assert_eq!(refused.field, "offers.title", "{title:?}");
        }
        let many: Categories = (0..=CATEGORIES_MAX)
            .map(|number| (format!("c{number}").parse().unwrap(), CategoryPolicy::default()))
            .collect();
        assert_eq!(CategoryPolicy::check(&many).unwrap_err().field, "");
        for bad in [
            json!({ "offers": { "kind": "loud" } }),
            json!({ "offers": { "tilte": "Offers" } }),
            json!({ "offers": ["commercial"] }),
            json!({ "Offers!": {} }),
        ] {
            assert!(serde_json::from_value::<Categories>(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(
            read(json!({ "offers": { "kind": null, "title": null } }))[&"offers".parse().unwrap()],
            CategoryPolicy::default()
        );
    }

    #[test]
    fn what_a_newer_version_stored_is_read_as_far_as_it_is_known() {
        let newer = json!({
            "codes": { "kind": "critical", "colour": { "dark": "#000" } },
            "alarms": { "kind": "deafening" },
            "Not A Category": {},
        });
        let known = stored(serde_json::from_value(newer).unwrap());
        assert_eq!(known.len(), 2);
        assert_eq!(known[&"codes".parse().unwrap()].kind, CategoryKind::Critical);
        assert_eq!(known[&"alarms".parse().unwrap()], CategoryPolicy::default());
    }
}
