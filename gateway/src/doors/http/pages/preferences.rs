//! `/p/{token}`: a recipient sees and changes its preferences, by a link that its app gave away.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    response::{IntoResponse, Redirect, Response},
};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use maud::{Markup, html};
use shared::{
    app::App,
    channel::Channel,
    id::{Category, Region, Topic},
    policy::{category::CategoryKind, zone},
    preferences::{Change, Choices, Preferences, PreferencesPatch},
    recipient::{Recipient, RecipientKey},
    reference::PreferenceLink,
};
use url::form_urlencoded;

use super::{Refusal, UNKNOWN, check_residency, enter, form, page, title_of};
use crate::{
    doors::http::{api::Api, problem::Problem},
    recipients::{homes::Topics, register::NotRegistered},
};

/// Most bytes of the form: 256 categories on four channels and 1,000 topics.
const FORM_BYTES_MAX: usize = 262_144;

/// The query of the page after a change.
const SAVED: &str = "saved";

/// What the page is called.
const TITLE: &str = "Your notifications";

/// The value of the field before a switch that was on, or off, when the page was shown: only what the person changed is stored.
const WAS_ON: &str = "was-on";
const WAS_OFF: &str = "was-off";

/// The value of a switch that is on. One that is off is not sent.
const ON: &str = "on";

/// How the mute is chosen: the field's values.
const MUTE_FIELD: &str = "mute";
const MUTE_WAS_FIELD: &str = "mute-was";
const MUTE_OFF: &str = "off";
const MUTE_DAY: &str = "day";
const MUTE_WEEK: &str = "week";
const MUTE_FOREVER: &str = "forever";
const MUTE_UNTIL: &str = "until";

const DAY: SignedDuration = SignedDuration::from_hours(24);
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What a link leads to.
struct Known {
    app: Arc<App>,
    key: RecipientKey,
    home: Region,
    recipient: Recipient,
}

/// Shows what the recipient has agreed to.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    token: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let _place = enter(&api)?;
    let known = Known::open(&api, token).await?;
    let topics = api.homes.topics(&known.home, &known.key).await.map_err(Problem::from)?;
    let now = api.context.clock.now();
    let content = known.content(&topics, now, query.as_deref() == Some(SAVED));
    Ok(page(Some(&known.app), TITLE, &content))
}

/// Stores what the recipient has changed on the page, and shows the page again.
pub(super) async fn store(
    State(api): State<Arc<Api>>,
    token: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let _place = enter(&api)?;
    let known = Known::open(&api, token).await?;
    let form = form(request, FORM_BYTES_MAX).await?;
    let change = change(&form, api.context.clock.now());
    if change != PreferencesPatch::default() {
        let amending = api.homes.amend(&known.home, &known.key, change);
        let amended = amending.await.map_err(NotRegistered::from);
        amended.map_err(Problem::from)?;
    }
    Ok(Redirect::to(&format!("?{SAVED}")).into_response())
}

impl Known {
    /// What the link leads to, if this mesh made it, it has not ended, and the recipient is still known.
    async fn open(api: &Api, token: Result<Path<String>, PathRejection>) -> Result<Self, Refusal> {
        let Ok(Path(token)) = token else {
            return Err(UNKNOWN);
        };
        let opened = PreferenceLink::open(&api.context.config.id_key(), &token);
        let (app, PreferenceLink { recipient, expires_at }) = opened.ok_or(UNKNOWN)?;
        let app = api.context.config.tenants().apps.get(&app).cloned().ok_or(UNKNOWN)?;
        check_residency(api, &app)?;
        if expires_at <= api.context.clock.now() {
            return Err(Refusal(
                StatusCode::GONE,
                "This link has ended. A newer message has a new one.",
            ));
        }
        let key = RecipientKey {
            app: app.id.clone(),
            recipient,
        };
        // One who was deleted or erased must not come back by a link.
        let home = api.homes.home(&key).await.map_err(Problem::from)?.ok_or(UNKNOWN)?;
        let recipient = api.homes.read(&home, &key).await.map_err(Problem::from)?;
        if !recipient.is_known() {
            return Err(UNKNOWN);
        }
        Ok(Self {
            app,
            key,
            home,
            recipient,
        })
    }

    fn content(&self, topics: &Topics, now: Timestamp, is_saved: bool) -> Markup {
        let preferences = self.recipient.preferences.clone().at(now);
        let channels = self.channels();
        let categories = self.categories();
        html! {
            @if is_saved { p.done role="status" { "Saved." } }
            form method="post" {
                section {
                    h2 { label for="mute" { "Pause" } }
                    p.hint { "While it lasts, nothing comes but what you must get." }
                    (mute(&preferences, &self.zone()))
                }
                @if !channels.is_empty() {
                    section {
                        h2 { "Messages" }
                        table {
                            thead { tr {
                                td {}
                                @for channel in &channels { th scope="col" { (label(*channel)) } }
                            } }
                            tbody {
                                tr.all {
                                    th scope="row" { "Everything" }
                                    @for channel in &channels {
                                        (cell(&format!("channel.{channel}"), "Everything", *channel, agreed(preferences.channels.get(channel))))
                                    }
                                }
                                @for category in categories {
                                    (self.row(category, &preferences, &channels))
                                }
                            }
                        }
                    }
                }
                @if !topics.is_empty() {
                    section {
                        h2 { "Topics" }
                        ul {
                            @for topic in topics.keys() {
                                li { label {
                                    (switch(&format!("topic.{topic}"), None, agreed(preferences.topics.get(topic))))
                                    span { (topic) }
                                } }
                            }
                        }
                    }
                }
                button { "Save" }
            }
        }
    }

    /// One category: its title, and a switch for each channel.
    fn row(&self, category: &Category, preferences: &Preferences, channels: &[Channel]) -> Markup {
        let title = title_of(&self.app, category);
        let is_critical = self.app.kind(Some(category)) == CategoryKind::Critical;
        let choices = preferences.categories.get(category);
        html! {
            tr {
                th scope="row" { (title) @if is_critical { small { "Needed to use the service" } } }
                @for channel in channels {
                    @if is_critical {
                        td { input type="checkbox" checked[agreed(preferences.channels.get(channel))] disabled
                            aria-label=(described(title, *channel)); }
                    } @else {
                        (cell(&format!("category.{category}.{channel}"), title, *channel,
                            agreed(choices.and_then(|choices| choices.get(channel)))))
                    }
                }
            }
        }
    }

    /// The categories that the app declares, and those that the recipient has spoken of, by title.
    fn categories(&self) -> Vec<&Category> {
        let declared = self.app.categories.keys();
        let spoken_of = self.recipient.preferences.categories.keys();
        let mut all: Vec<&Category> = declared.chain(spoken_of).collect();
        all.sort_by_key(|category| (title_of(&self.app, category).to_lowercase(), *category));
        all.dedup();
        all
    }

    /// The channels on which the app can send. Webhooks are shown only if the recipient has a receiver; few people do.
    fn channels(&self) -> Vec<Channel> {
        let has_receiver = |channel: Channel| {
            let mut addresses = self.recipient.addresses.iter();
            addresses.any(|(address, _)| address.target.channel() == channel)
        };
        let is_shown = |channel: &Channel| {
            let carries = self.app.has_provider_for(*channel);
            let is_spoken_of = self.recipient.preferences.channels.contains_key(channel);
            is_spoken_of || carries && (*channel != Channel::Webhook || has_receiver(*channel))
        };
        Channel::ALL.iter().copied().filter(is_shown).collect()
    }

    fn zone(&self) -> TimeZone {
        let name = self
            .recipient
            .profile
            .as_ref()
            .and_then(|profile| profile.timezone.as_deref());
        name.and_then(|name| zone::get(name).ok()).unwrap_or(TimeZone::UTC)
    }
}

/// What is agreed to where nothing is said.
fn agreed(choice: Option<&bool>) -> bool {
    choice.copied().unwrap_or(true)
}

const fn label(channel: Channel) -> &'static str {
    match channel {
        Channel::Push => "Push",
        Channel::Email => "E-mail",
        Channel::Sms => "SMS",
        Channel::Webhook => "Webhook",
    }
}

fn described(title: &str, channel: Channel) -> String {
    format!("{title}: {}", label(channel))
}

fn cell(name: &str, title: &str, channel: Channel, is_on: bool) -> Markup {
    html! { td { (switch(name, Some(described(title, channel)), is_on)) } }
}

/// A switch, behind a hidden field of the same name that says how it was.
fn switch(name: &str, description: Option<String>, is_on: bool) -> Markup {
    html! {
        input type="hidden" name=(name) value=(if is_on { WAS_ON } else { WAS_OFF });
        input type="checkbox" name=(name) value=(ON) checked[is_on] aria-label=[description];
    }
}

fn mute(preferences: &Preferences, zone: &TimeZone) -> Markup {
    let until = preferences.muted_until.filter(|_| preferences.muted);
    let is = match until {
        Some(_) => MUTE_UNTIL,
        None if preferences.muted => MUTE_FOREVER,
        None => MUTE_OFF,
    };
    let until = until.map(|until| {
        until
            .to_zoned(zone.clone())
            .strftime("Until %-d %B %Y, %H:%M %Z")
            .to_string()
    });
    let choices = [
        (MUTE_OFF, "No pause"),
        (MUTE_DAY, "For a day"),
        (MUTE_WEEK, "For a week"),
        (MUTE_FOREVER, "Until I end it here"),
    ];
    html! {
        input type="hidden" name=(MUTE_WAS_FIELD) value=(is);
        select id="mute" name=(MUTE_FIELD) {
            @if let Some(until) = &until { option value=(MUTE_UNTIL) selected { (until) } }
            @for (value, text) in choices { option value=(value) selected[value == is] { (text) } }
        }
    }
}

/// What a form of the page changes. Fields that the page does not have are ignored.
fn change(form: &[u8], now: Timestamp) -> PreferencesPatch {
    let mut switches: BTreeMap<String, (Option<bool>, bool)> = BTreeMap::new();
    let (mut mute, mut mute_was) = (None, None);
    for (name, value) in form_urlencoded::parse(form) {
        match (&*name, &*value) {
            (MUTE_FIELD, _) => mute = Some(value),
            (MUTE_WAS_FIELD, _) => mute_was = Some(value),
            (_, WAS_ON | WAS_OFF) => switches.entry(name.into_owned()).or_default().0 = Some(value == WAS_ON),
            (_, ON) => switches.entry(name.into_owned()).or_default().1 = true,
            _ => {}
        }
    }
    let mut channels: Choices<Channel> = BTreeMap::new();
    let mut categories: BTreeMap<Category, Option<Choices<Channel>>> = BTreeMap::new();
    let mut topics: Choices<Topic> = BTreeMap::new();
    for (name, (was, is_on)) in switches {
        if was.is_none_or(|was| was == is_on) {
            continue;
        }
        let mut parts = name.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("channel"), Some(channel), None, None) => {
                channels.extend(channel.parse().map(|channel| (channel, Some(is_on))));
            }
            (Some("category"), Some(category), Some(channel), None) => {
                if let (Ok(category), Ok(channel)) = (category.parse(), channel.parse()) {
                    let choices = categories.entry(category).or_default();
                    choices.get_or_insert_default().insert(channel, Some(is_on));
                }
            }
            (Some("topic"), Some(topic), None, None) => {
                topics.extend(topic.parse().map(|topic| (topic, Some(is_on))));
            }
            _ => {}
        }
    }
    let mute = mute.filter(|mute| Some(mute) != mute_was.as_ref());
    let (muted, muted_until) = match mute.as_deref() {
        Some(MUTE_OFF) => (Change::Set(false), Change::Keep),
        Some(MUTE_DAY) => (Change::Set(true), Change::Set(now + DAY)),
        Some(MUTE_WEEK) => (Change::Set(true), Change::Set(now + WEEK)),
        Some(MUTE_FOREVER) => (Change::Set(true), Change::Remove),
        _ => (Change::Keep, Change::Keep),
    };
    PreferencesPatch {
        channels: unless_empty(channels),
        categories: unless_empty(categories),
        muted,
        muted_until,
        topics: unless_empty(topics),
        ..PreferencesPatch::default()
    }
}

fn unless_empty<K, V>(choices: BTreeMap<K, V>) -> Change<BTreeMap<K, V>> {
    if choices.is_empty() {
        Change::Keep
    } else {
        Change::Set(choices)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use shared::recipient::Membership;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn changed(form: &str) -> Value {
        serde_json::to_value(change(form.as_bytes(), NOW)).unwrap()
    }

    #[test]
    fn a_form_changes_what_the_person_changed_and_nothing_else() {
        let unchanged = "channel.push=was-on&channel.push=on&channel.sms=was-off&category.offers.email=was-on&category.offers.email=on\
            &topic.news=was-off&mute=off&mute-was=off";
        assert_eq!(changed(unchanged), json!({}));
        let form = "channel.push=was-on&channel.sms=was-off&channel.sms=on&category.offers.email=was-on\
            &category.news.push=was-off&category.news.push=on&topic.sport=was-on&mute=day&mute-was=off";
        let expected = json!({
            "channels": { "push": false, "sms": true },
            "categories": { "offers": { "email": false }, "news": { "push": true } },
            "topics": { "sport": false },
            "muted": true,
            "muted_until": "1970-01-02T00:00:00Z",
        });
        assert_eq!(changed(form), expected);
        assert_eq!(
            changed("mute=forever&mute-was=until"),
            json!({ "muted": true, "muted_until": null })
        );
        assert_eq!(changed("mute=off&mute-was=forever"), json!({ "muted": false }));
        assert_eq!(changed("mute=until&mute-was=until"), json!({}));
        for foreign in [
            "channel.fax=was-on",
            "channel.push=on",
            "channel.push.sms=was-on",
            "category.offers=was-on",
            "category.Off%20ers.push=was-on",
            "category.offers.push.sms=was-on",
            "topic.=was-on",
            "x=was-on",
            "mute=later",
            "%ff=%ff&&=",
        ] {
            assert_eq!(changed(foreign), json!({}), "{foreign}");
        }
    }

    fn known() -> Known {
        let mut app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
        app.categories = serde_json::from_value(json!({
            "codes": { "kind": "critical", "title": "Codes <to> sign in" },
            "offers": { "kind": "commercial", "title": "\"Offers\" & more" },
        }))
        .unwrap();
        let key = shared::testing::mesh_key();
        app.seal(
            &key,
            &shared::provider::Credential::read(shared::provider::Provider::Log, serde_json::Map::new()).unwrap(),
        );
        let recipient = Recipient {
            preferences: serde_json::from_value(json!({
                "channels": { "sms": false },
                "categories": { "offers": { "email": false }, "undeclared": { "push": false } },
                "topics": { "sport": false },
                "muted": true,
                "muted_until": "1970-01-01T12:00:00Z",
            }))
            .unwrap(),
            ..Recipient::default()
        };
        Known {
            key: RecipientKey {
                app: app.id.clone(),
                recipient: "ann".parse().unwrap(),
            },
            app: app.into(),
            home: "eu".parse().unwrap(),
            recipient,
        }
    }

    #[test]
    fn the_page_shows_what_is_agreed_to_and_posted_back_it_changes_nothing() {
        let membership = Membership {
            since: NOW,
            moved: None,
        };
        let topics: Topics = ["news", "sport"]
            .map(|topic| (topic.parse().unwrap(), membership))
            .into();
        let html = known().content(&topics, NOW, false).into_string();
        assert!(
            html.contains("Codes &lt;to&gt; sign in") && html.contains("&quot;Offers&quot; &amp; more"),
            "{html}"
        );
        assert!(html.contains("Until 1 January 1970, 12:00 UTC") && !html.contains("Saved."));
        let inputs: Vec<&str> = html
            .split("<input ")
            .skip(1)
            .map(|rest| rest.split('>').next().unwrap())
            .collect();
        let attribute = |input: &str, name: &str| {
            let value = input.split_once(&format!("{name}=\""))?.1;
            Some(value.split_once('"')?.0.to_owned())
        };
        let (mut form, mut states) = (form_urlencoded::Serializer::new(String::new()), Vec::new());
        form.append_pair(MUTE_FIELD, MUTE_UNTIL);
        for input in inputs {
            let Some(name) = attribute(input, "name") else {
                assert!(input.contains("disabled"), "{input}");
                continue;
            };
            let is_box = input.contains("checkbox");
            if !is_box || input.contains("checked") {
                form.append_pair(&name, &attribute(input, "value").unwrap());
            }
            if is_box {
                states.push((name, input.contains("checked")));
            }
        }
        assert_eq!(changed(&form.finish()), json!({}));
        let off: Vec<&str> = states
            .iter()
            .filter(|(_, is_on)| !is_on)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            off,
            [
                "channel.sms",
                "category.offers.email",
                "category.undeclared.push",
                "topic.sport"
            ]
        );
        assert_eq!(states.len(), 3 + 2 * 3 + 2, "{states:?}");
        assert!(!html.contains("webhook"), "ann has no receiver");
    }
}
