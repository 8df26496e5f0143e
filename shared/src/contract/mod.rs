//! The contract, read from its page: `docs/contract.md` is the source, and programs read it.
//!
//! The documents for machines take descriptions, defaults and the form of ids from the page. A request that was refused is
//! looked up here, so that a member that is reserved is not called unknown.

pub mod schema;

use std::{collections::BTreeMap, sync::LazyLock};

use serde_json::Value;

use crate::invalid::Invalid;

/// The page by its sections.
#[derive(Debug)]
pub struct Page(BTreeMap<&'static str, Section>);

/// What stands below one heading of the third level.
#[derive(Debug, Default)]
pub struct Section {
    /// `request`, `answer`, `both` or `event`, if the section is an object.
    pub side: &'static str,
    /// Where the object is sent or read, such as `http`.
    pub doors: Vec<&'static str>,
    /// The schemas that describe the object in `OpenAPI` and `AsyncAPI`.
    pub schemas: Vec<&'static str>,
    /// The heads of the table's columns.
    pub columns: Vec<&'static str>,
    /// The rows of the table, cell by cell.
    pub rows: Vec<Vec<&'static str>>,
    /// The blocks of code, each with its language.
    pub examples: Vec<(&'static str, &'static str)>,
}

/// A member of an object: one row of its table.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its type in the page's notation, such as `list<RecipientId>`.
    pub kind: &'static str,
    /// What the type does not say; `–` if nothing.
    pub limits: &'static str,
    /// Its value where it is absent, `required`, `always` or `–`.
    pub default: &'static str,
    /// A sentence for people.
    pub meaning: &'static str,
    /// The area of work that will build it; `None` if it is built.
    pub reserved: Option<&'static str>,
}

/// The heads of the table of an object.
pub const MEMBER_COLUMNS: [&str; 6] = ["member", "type", "limits", "default", "meaning", "state"];

/// The page.
pub fn page() -> &'static Page {
    static PAGE: LazyLock<Page> = LazyLock::new(|| Page::read(include_str!("../../../docs/contract.md")));
    &PAGE
}

/// The first member or word of `document` that is reserved and not built, if `document` is one of these objects.
pub fn not_built(objects: &[&str], document: &Value) -> Option<Invalid> {
    objects.iter().find_map(|object| not_built_in(object, document))
}

fn not_built_in(kind: &str, value: &Value) -> Option<Invalid> {
    if let Some(words) = kind.strip_prefix("word:") {
        let word = value.as_str()?;
        let (_, reserved) = page().words(words).into_iter().find(|(known, _)| *known == word)?;
        return reserved.map(|area| Invalid::new("", format_args!("is a word that is not built yet ({area})")));
    }
    if let Some(item) = generic(kind, "list") {
        let items = value.as_array()?.iter().enumerate();
        return items
            .map(|(index, value)| not_built_in(item, value).map(|invalid| invalid.within(&format!("[{index}]"))))
            .find_map(|found| found);
    }
    let members = value.as_object()?.iter();
    if let Some((key, of)) = generic(kind, "map").and_then(|inner| inner.split_once(',')) {
        return members
            .map(|(name, value)| {
                let found = not_built_in(key, &Value::from(name.as_str())).or_else(|| not_built_in(of, value));
                found.map(|invalid| invalid.within(name))
            })
            .find_map(|found| found);
    }
    let object = page().section(kind)?;
    members
        .filter_map(|(name, value)| Some((object.members().find(|member| member.name == name)?, value)))
        .find_map(|(member, value)| {
            let found = match member.reserved {
                Some(area) => Some(Invalid::new("", format_args!("is not built yet ({area})"))),
                None => not_built_in(member.kind, value),
            };
            found.map(|invalid| invalid.within(member.name))
        })
}

/// What stands in the angle brackets of `kind`, if it is a `name<…>`.
fn generic<'a>(kind: &'a str, name: &str) -> Option<&'a str> {
    kind.strip_prefix(name)?.strip_prefix('<')?.strip_suffix('>')
}

impl Member {
    /// Its value where it is absent, if the page states one value: a number or one word of code.
    pub fn default_value(&self) -> Option<Value> {
        let code = self.default.strip_prefix('`').and_then(|code| code.strip_suffix('`'));
        match code {
            Some(code) if code.contains('`') => None,
            Some(code) => Some(serde_json::from_str(code).unwrap_or_else(|_| code.into())),
            None => self.default.parse::<i64>().ok().map(Value::from),
        }
    }
}

impl Page {
    fn read(text: &'static str) -> Self {
        let sections = text.split("\n### ").skip(1).map(|section| {
            // The next heading of a higher level ends the section.
            let section = section.split("\n## ").next().unwrap_or_default();
            let (name, rest) = section.split_once('\n').unwrap_or_default();
            (name, Section::read(rest))
        });
        Self(sections.collect())
    }

    /// The section with this heading.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.0.get(name)
    }

    /// Every section with its heading.
    pub fn sections(&self) -> impl Iterator<Item = (&'static str, &Section)> {
        self.0.iter().map(|(name, section)| (*name, section))
    }

    /// The headings of the objects that a schema describes: more than one if a request may be either.
    pub fn objects_of(&self, schema: &str) -> Vec<&'static str> {
        let described = self.sections().filter(|(_, section)| section.schemas.contains(&schema));
        described.map(|(name, _)| name).collect()
    }

    /// Whether callers send what a schema describes.
    pub fn is_asked(&self, schema: &str) -> bool {
        let sections = self
            .objects_of(schema)
            .into_iter()
            .filter_map(|name| self.section(name));
        sections.into_iter().any(|section| match section.side {
            "request" => true,
            "both" => section.schemas[0] == schema,
            _ => false,
        })
    }

    /// The members that are built of what a schema describes, without those that only the other side has.
    pub fn members_of(&self, schema: &str) -> Vec<Member> {
        let sections = self
            .objects_of(schema)
            .into_iter()
            .filter_map(|name| self.section(name));
        let members = sections.flat_map(|section| {
            let is_asked = section.side == "request" || section.schemas.len() == 2 && section.schemas[0] == schema;
            let is_answered = section.schemas.len() == 2 && !is_asked;
            let built = section.members().filter(|member| member.reserved.is_none());
            let sent = built.filter(move |member| !is_asked || !member.limits.starts_with("answer "));
            let sent = sent.filter(move |member| !is_answered || !member.limits.ends_with("request only"));
            // What a request must keep to says nothing of the answer.
            sent.map(move |member| {
                let (limits, default) = if is_answered {
                    ("–", "–")
                } else {
                    (member.limits, member.default)
                };
                Member {
                    limits,
                    default,
                    ..member
                }
            })
        });
        members.collect()
    }

    /// The words of an enum in order, each with the area that will build it if it is reserved.
    pub fn words(&self, name: &str) -> Vec<(&'static str, Option<&'static str>)> {
        let enums = self.section("words").map_or(&[][..], |section| &section.rows);
        let Some([_, built, reserved]) = enums
            .iter()
            .find(|row| code(row[0]).next() == Some(name))
            .map(|row| &row[..])
        else {
            return Vec::new();
        };
        if let Some(table) = built.strip_prefix("see ").and_then(|table| code(table).next()) {
            let rows = self.section(table).map_or(&[][..], |section| &section.rows);
            return rows
                .iter()
                .flat_map(|row| code(row[0]).map(|word| (word, reserved_for(row))))
                .collect();
        }
        let reserved = reserved.split("; ").flat_map(|group| {
            let area = group.rsplit(' ').next();
            code(group).map(move |word| (word, area))
        });
        code(built).map(|word| (word, None)).chain(reserved).collect()
    }
}

impl Section {
    fn read(text: &'static str) -> Self {
        let mut section = Self::default();
        for line in text.lines() {
            if let Some((side, doors, schemas)) = line.split_once(" · doors ").and_then(|(side, rest)| {
                let (doors, schemas) = rest.split_once(" · schema ")?;
                Some((side, doors, schemas))
            }) {
                section.side = side;
                section.doors = code(doors).collect();
                section.schemas = code(schemas).collect();
            } else if let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) {
                let cells = cells.split(" | ").collect();
                if section.columns.is_empty() {
                    section.columns = cells;
                } else {
                    section.rows.push(cells);
                }
            }
        }
        let blocks = text.split("\n```").skip(1).step_by(2);
        section.examples = blocks.filter_map(|block| block.split_once('\n')).collect();
        section
    }

    /// The members of the object; none if the section is something else.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        let rows = if self.columns == MEMBER_COLUMNS {
            &self.rows[..]
        } else {
            &[]
        };
        rows.iter().filter_map(|row| {
            let [name, kind, limits, default, meaning, _] = row[..] else {
                return None;
            };
            Some(Member {
                name: name.trim_matches('`'),
                kind,
                limits,
                default,
                meaning,
                reserved: reserved_for(row),
            })
        })
    }
}

/// The area that the last cell of a row names; `None` if that is `built`.
fn reserved_for(row: &[&'static str]) -> Option<&'static str> {
    row.last().copied().filter(|state| !state.starts_with("built"))
}

/// The pieces of `text` between backticks.
pub fn code(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::{prelude::*, string::string_regex, test_runner::TestRunner};
    use serde_json::json;

    use super::*;
    use crate::{
        api_key::Scope,
        app::Ambiguity,
        body::Body,
        channel::{Channel, Class},
        content::push::Priority,
        id::{AppId, Category, EventId, RecipientId, Region, Topic},
        plan::{Mode, Until},
        policy::{
            category::CategoryKind,
            limit::WhenLimited,
            quiet::{Weekday, WhenBlocked},
            zone::UnknownZone,
        },
        provider::{
            Provider,
            apns::{Environment, Kind, PushType},
        },
        receipt::{HandledAs, State},
    };

    const AREAS: [&str; 4] = ["tenants", "channels", "policy", "seen"];

    fn is_known_type(kind: &str) -> bool {
        const PLAIN: [&str; 10] = [
            "string", "integer", "number", "boolean", "object", "any", "instant", "local", "time", "url",
        ];
        if let Some(item) = generic(kind, "list") {
            return is_known_type(item);
        }
        if let Some((key, of)) = generic(kind, "map").and_then(|inner| inner.split_once(',')) {
            return is_known_type(key) && is_known_type(of);
        }
        let ids = &page().section("ids").unwrap().rows;
        match kind.strip_prefix("word:") {
            Some(words) => !page().words(words).is_empty(),
            None => {
                PLAIN.contains(&kind)
                    || ids.iter().any(|row| row[0].trim_matches('`') == kind)
                    || page()
                        .section(kind)
                        .is_some_and(|section| section.members().count() > 0)
            }
        }
    }

    #[test]
    fn the_page_is_well_formed() {
        let mut members = 0;
        for (name, section) in page().sections() {
            for row in &section.rows {
                assert_eq!(row.len(), section.columns.len(), "{name}: {row:?}");
                assert!(row.iter().all(|cell| !cell.trim().is_empty()), "{name}: {row:?}");
            }
            assert_eq!(section.columns == MEMBER_COLUMNS, !section.side.is_empty(), "{name}");
            let mut seen = HashSet::new();
            for member in section.members() {
                members += 1;
                assert!(seen.insert(member.name), "{name}: {} twice", member.name);
                assert!(is_known_type(member.kind), "{name}.{}: {}", member.name, member.kind);
                assert!(
                    member.reserved.is_none_or(|area| AREAS.contains(&area)),
                    "{name}.{}",
                    member.name
                );
            }
        }
        assert!(members > 400, "only {members} members were read");
    }

    #[test]
    fn examples_have_members_that_are_built() {
        fn check(object: &str, value: &Value) {
            let members: Vec<_> = page().section(object).unwrap().members().collect();
            for (name, value) in value.as_object().unwrap() {
                let member = members.iter().find(|member| member.name == name);
                let member = member.unwrap_or_else(|| panic!("{object} has no {name}"));
                assert_eq!(member.reserved, None, "{object}.{name}");
                let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                let kind = generic(member.kind, "list").unwrap_or(member.kind);
                if page().section(kind).is_some() {
                    for item in items {
                        check(kind, item);
                    }
                }
            }
            for member in members
                .iter()
                .filter(|member| matches!(member.default, "required" | "always"))
            {
                let is_built = member.reserved.is_none() && !member.limits.starts_with("answer");
                assert!(
                    !is_built || value.get(member.name).is_some(),
                    "{object} lacks {}",
                    member.name
                );
            }
        }
        for (name, section) in page().sections() {
            for (_, example) in section.examples.iter().filter(|(language, _)| *language == "json") {
                check(name, &serde_json::from_str(example).unwrap());
            }
        }
    }

    #[test]
    fn words_are_those_of_the_code() {
        fn built(name: &str) -> Vec<&'static str> {
            let words = page().words(name).into_iter();
            words
                .filter(|(_, reserved)| reserved.is_none())
                .map(|(word, _)| word)
                .collect()
        }
        macro_rules! same {
            ($($name:literal: $of:ty),+ $(,)?) => {
                $(assert_eq!(built($name), <$of>::ALL.iter().map(|word| word.as_str()).collect::<Vec<_>>(), $name);)+
            };
        }
        same!(
            "channel": Channel, "class": Class, "priority": Priority, "provider": Provider, "kind": Kind,
            "environment": Environment, "apns_push_type": PushType, "ambiguity": Ambiguity, "scope": Scope,
            "handled_as": HandledAs, "plan_mode": Mode, "until": Until, "category_kind": CategoryKind, "when_blocked": WhenBlocked, "weekday": Weekday,
            "unknown_zone": UnknownZone, "when_limited": WhenLimited);
        let states = built("delivery_state");
        assert!(State::ALL.iter().all(|state| states.contains(&state.as_str())));
        assert_eq!(page().words("until").last(), Some(&("opened", Some("seen"))));
    }

    #[test]
    fn ids_have_the_form_that_the_parser_takes() {
        fn check<T: std::str::FromStr>(name: &str) {
            let ids = &page().section("ids").unwrap().rows;
            let row = ids.iter().find(|row| row[0].trim_matches('`') == name).unwrap();
            // The generator of texts knows no anchors.
            let pattern = row[1].trim_matches(['`', '^', '$']);
            let texts = string_regex(pattern).unwrap();
            TestRunner::default()
                .run(&texts, |text| {
                    prop_assert!(text.len() > 128 || text.parse::<T>().is_ok(), "{name}: {text:?}");
                    Ok(())
                })
                .unwrap();
            let most: usize = row[2]
                .trim_end_matches(" bytes")
                .split_once('–')
                .unwrap()
                .1
                .parse()
                .unwrap();
            assert!("a".repeat(most).parse::<T>().is_ok(), "{name}");
            for bad in ["", "a b", "a\n", &"a".repeat(most + 1)] {
                assert!(bad.parse::<T>().is_err(), "{name}: {bad:?}");
            }
        }
        check::<AppId>("AppId");
        check::<Region>("Region");
        check::<RecipientId>("RecipientId");
        check::<EventId>("EventId");
        check::<Category>("Category");
        check::<Topic>("Topic");
    }

    #[test]
    fn the_first_that_is_reserved_is_found_at_any_depth() {
        let found = |object: &str, document: Value| {
            not_built(&[object], &document).map(|invalid| (invalid.field, invalid.rule))
        };
        for (object, document, field, rule) in [
            (
                "notification",
                json!({ "digest": {} }),
                "digest",
                "is not built yet (policy)",
            ),
            (
                "notification",
                json!({ "to": { "topic": "news", "where": null } }),
                "to.where",
                "is not built yet (policy)",
            ),
            (
                "recipient",
                json!({ "attributes": {} }),
                "attributes",
                "is not built yet (policy)",
            ),
            (
                "import_line",
                json!({ "topics": [], "addresses": [{}, { "locale": "de" }] }),
                "addresses[1].locale",
                "is not built yet (policy)",
            ),
            (
                "status",
                json!({ "deliveries": [{}, { "attempts": [{ "endpoint": "" }] }] }),
                "deliveries[1].attempts[0].endpoint",
                "is not built yet (seen)",
            ),
            (
                "broadcast_status",
                json!({ "by_region": { "eu": {} }, "ramp_percent": 1 }),
                "ramp_percent",
                "is not built yet (policy)",
            ),
        ] {
            assert_eq!(found(object, document), Some((field.to_owned(), rule.to_owned())));
        }
        for (object, document) in [
            (
                "notification",
                json!({ "channel": "email", "emial": {}, "push": { "data": { "url": "x" } } }),
            ),
            ("notification", json!([{ "digest": {} }])),
            ("notification", json!("email")),
            ("preferences", json!({ "channels": { "sms": false } })),
            ("nothing", json!({ "digest": {} })),
        ] {
            assert_eq!(found(object, document), None);
        }
    }

    #[test]
    fn the_error_of_a_job_names_the_member_that_is_not_built() {
        let reserved =
            Body::read(br#"{"recipient":"ann","send_at_local":"5551234","push":{"title":"x"}}"#).unwrap_err();
        assert_eq!(reserved.to_string(), "send_at_local: is not built yet (policy)");
        let unknown = Body::read(br#"{"recipient":"ann","to":{},"push":{"title":"x"}}"#).unwrap_err();
        assert!(unknown.rule.starts_with("is not known"), "{unknown}");
        let (_, example) = page().section("job").unwrap().examples[0];
        Body::read(example.as_bytes()).unwrap();
    }
}
