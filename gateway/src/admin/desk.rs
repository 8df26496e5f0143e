//! The one way in which apps, keys and regions are written: who may, what is checked, and that of two writers who read the
//! same entry one is refused.

use std::sync::Arc;

use async_nats::jetstream;
use serde::{Deserialize, Serialize};
use shared::{
    api_key::{ApiKey, NewKey, Presented, Scope},
    app::App,
    clock::Clock,
    control::Control,
    id::{AppId, ControlId, Region},
    invalid::Invalid,
    nats::{
        config::{self, NotCurrent, NotLoaded, Tenants},
        publish::NotStored,
    },
    seal::MeshKey,
    site::Site,
};

use super::{
    change::{self, Change},
    document::{AppDocument, KeyDocument, keys_of},
};

/// Most keys of one app.
const APP_KEYS_MAX: usize = 100;

/// Most controls that the keys of one app made, and most that operators made.
const CONTROLS_MAX: (usize, usize) = (200, 1000);

/// The members of an app that its own key may change. All others are the operator's: what they cost, where data lives, and
/// which hosts Peal connects to.
const MEMBERS_OF_APP: [&str; 9] = [
    "ambiguity",
    "categories",
    "page",
    "quiet_hours",
    "limits",
    "unknown_zone",
    "timezone",
    "routes",
    "keys",
];

/// The providers whose endpoints no credential can change.
const PROVIDERS_OF_APP: [&str; 9] = [
    "apns",
    "fcm",
    "web_push",
    "sendgrid",
    "mailchimp",
    "twilio",
    "vonage",
    "webhook",
    "log",
];

/// Who writes.
#[derive(Debug, Clone)]
pub(crate) enum Authority {
    /// An operator, with a key for it or at the hub.
    Operator,
    /// An app for itself, with a key of these scopes.
    App(AppId, Vec<Scope>),
}

/// Why something was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The key is unknown, expired or malformed.
    #[error("the key is not valid")]
    Unauthenticated,
    /// The key lacks a scope.
    #[error("the key lacks the scope {0}")]
    Lacking(Scope),
    /// The app is suspended.
    #[error("the app is suspended")]
    Suspended,
    /// There is no such thing, or it is another app's.
    #[error("there is no such {0}")]
    NotFound(String),
    /// Only an operator may change this member.
    #[error("{0}: must be changed by the operator")]
    OperatorOnly(String),
    /// A member breaks a rule.
    #[error("{field}: {rule}")]
    Invalid {
        /// The member.
        field: String,
        /// The rule.
        rule: String,
    },
    /// There are as many as there may be.
    #[error("there may be at most {0}")]
    TooMany(usize),
    /// Somebody else has changed it meanwhile.
    #[error("somebody else has changed it meanwhile")]
    VersionConflict,
    /// The hub's configuration cannot be read or written now.
    #[error("the hub's configuration does not answer: {0}")]
    Unavailable(String),
}

impl From<Invalid> for Refusal {
    fn from(Invalid { field, rule }: Invalid) -> Self {
        Self::Invalid { field, rule }
    }
}

impl From<NotCurrent> for Refusal {
    fn from(error: NotCurrent) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<NotLoaded> for Refusal {
    fn from(error: NotLoaded) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<NotStored> for Refusal {
    fn from(error: NotStored) -> Self {
        match error {
            NotStored::Refused => Self::VersionConflict,
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// An app after a write, or as it would be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Written {
    /// The app as it is shown; keys that were made with their texts.
    pub(crate) app: AppDocument,
    pub(crate) version: String,
    pub(crate) is_new: bool,
    /// What changed, or would change.
    pub(crate) changes: Vec<Change>,
    /// How many keys were made, or would be.
    pub(crate) keys: usize,
}

/// Whether to write, or only to tell what would change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Write,
    Plan,
}

/// The hub's configuration, for writers.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    hub: jetstream::Context,
    mesh_key: MeshKey,
    clock: Clock,
}

impl Desk {
    /// `hub` is a context of the hub's domain.
    pub(crate) fn new(hub: jetstream::Context, mesh_key: MeshKey, clock: Clock) -> Self {
        Self { hub, mesh_key, clock }
    }

    /// Who the holder of `presented` is, as the hub's leader knows at this moment, if its key has the scope `needed`.
    pub(super) async fn authority(&self, presented: &Presented, needed: Scope) -> Result<Authority, Refusal> {
        let now = self.clock.now();
        let legacies = config::current_legacies(&self.hub, &self.mesh_key).await?;
        let admitted = |key: &ApiKey| key.admits(&self.mesh_key, &legacies, presented, now);
        let may_write = |key: &ApiKey| key.scopes.contains(&needed);
        let operator = config::current_operator(&self.hub, &presented.key_id).await?.value;
        if let Some(key) = operator.filter(admitted) {
            return if may_write(&key) {
                Ok(Authority::Operator)
            } else {
                Err(Refusal::Lacking(needed))
            };
        }
        let key = config::current_key(&self.hub, &presented.key_id).await?.value;
        let key = key.filter(admitted).ok_or(Refusal::Unauthenticated)?;
        // A key for tests must not make one that is none.
        if key.test || !may_write(&key) {
            return Err(Refusal::Lacking(needed));
        }
        let app = config::current_app(&self.hub, &key.app).await?.value;
        match app {
            None => Err(Refusal::Unauthenticated),
            Some(app) if app.suspended => Err(Refusal::Suspended),
            Some(app) => Ok(Authority::App(app.id, key.scopes)),
        }
    }

    /// Writes an app whole, and makes those of its keys that it does not have. `if_match` is the version that it must have.
    pub(crate) async fn put_app(
        &self,
        by: &Authority,
        document: &AppDocument,
        if_match: Option<&str>,
        mode: Mode,
    ) -> Result<Written, Refusal> {
        by.may_see(&document.id)?;
        let former = config::current_app(&self.hub, &document.id).await?;
        if if_match.is_some_and(|version| version != former.version) {
            return Err(Refusal::VersionConflict);
        }
        if former.value.is_none() && !matches!(by, Authority::Operator) {
            return Err(no_app());
        }
        let known = config::read_once(&self.hub).await?;
        let app = document.seal(former.value.as_ref(), &self.mesh_key)?;
        check_place(&app, &known)?;
        let changes = change::of_app(former.value.as_ref(), &app, &self.mesh_key);
        by.may_change(&changes)?;
        let keys: Vec<&ApiKey> = keys_of(&known, &app.id).collect();
        let missing = self.missing(by, document, &keys)?;
        let mut shown: Vec<KeyDocument> = keys.iter().map(|key| KeyDocument::of(key, None)).collect();
        let mut version = former.version.clone();
        if mode == Mode::Write {
            if former.value.as_ref() != Some(&app) {
                version = config::replace_app(&self.hub, &former, &app).await?;
            }
            for new in &missing {
                shown.push(self.issue(&app.id, new.clone()).await?);
            }
        }
        Ok(Written {
            app: AppDocument::of(&app, &self.mesh_key, shown),
            version,
            is_new: former.value.is_none(),
            changes,
            keys: missing.len(),
        })
    }

    /// The keys of `document` that are to be made.
    fn missing(&self, by: &Authority, document: &AppDocument, keys: &[&ApiKey]) -> Result<Vec<NewKey>, Refusal> {
        let mut missing = Vec::new();
        for (index, key) in document.keys.iter().enumerate() {
            let Some(new) = key.wanted() else { continue };
            if keys.iter().any(|known| known.is_like(&new)) {
                continue;
            }
            let within = |invalid: Invalid| invalid.within(&format!("keys[{index}]"));
            new.check(self.clock.now()).map_err(within)?;
            by.may_grant(&new)?;
            missing.push(new);
        }
        if keys.len() + missing.len() > APP_KEYS_MAX && !missing.is_empty() {
            return Err(Invalid::new("keys", format_args!("must be at most {APP_KEYS_MAX}")).into());
        }
        Ok(missing)
    }

    /// Removes an app that is suspended, and its keys.
    pub(super) async fn delete_app(&self, by: &Authority, id: &AppId, if_match: Option<&str>) -> Result<(), Refusal> {
        by.may_see(id)?;
        let former = config::current_app(&self.hub, id).await?;
        let app = former.value.as_ref().ok_or_else(no_app)?;
        if !matches!(by, Authority::Operator) {
            return Err(Refusal::OperatorOnly("id".to_owned()));
        }
        if if_match.is_some_and(|version| version != former.version) {
            return Err(Refusal::VersionConflict);
        }
        if !app.suspended {
            return Err(Invalid::new("suspended", "must be true before the app is deleted").into());
        }
        let known = config::read_once(&self.hub).await?;
        for key in keys_of(&known, id) {
            config::remove_key(&self.hub, &key.key_id).await?;
        }
        Ok(config::remove_app(&self.hub, &former, id).await?)
    }

    /// Makes a key of an app.
    pub(super) async fn issue_key(&self, by: &Authority, id: &AppId, new: NewKey) -> Result<KeyDocument, Refusal> {
        by.may_see(id)?;
        if config::current_app(&self.hub, id).await?.value.is_none() {
            return Err(no_app());
        }
        new.check(self.clock.now())?;
        by.may_grant(&new)?;
        if keys_of(&config::read_once(&self.hub).await?, id).count() >= APP_KEYS_MAX {
            return Err(Invalid::new("keys", format_args!("must be at most {APP_KEYS_MAX}")).into());
        }
        self.issue(id, new).await
    }

    async fn issue(&self, app: &AppId, new: NewKey) -> Result<KeyDocument, Refusal> {
        let (key, text) = ApiKey::issue(&self.mesh_key, app.clone(), new, self.clock.now());
        config::put_key(&self.hub, &key).await?;
        tracing::info!(%app, key = key.key_id, "key made");
        Ok(KeyDocument::of(&key, Some(text)))
    }

    /// Revokes a key of an app.
    pub(super) async fn revoke_key(&self, by: &Authority, id: &AppId, key_id: &str) -> Result<(), Refusal> {
        by.may_see(id)?;
        let key = config::current_key(&self.hub, key_id).await?.value;
        if key.is_none_or(|key| key.app != *id) {
            return Err(Refusal::NotFound("key".to_owned()));
        }
        config::remove_key(&self.hub, key_id).await?;
        tracing::info!(app = %id, key = key_id, "key revoked");
        Ok(())
    }

    /// Writes a region. Returns what changed, or would change.
    pub(crate) async fn put_region(
        &self,
        by: &Authority,
        region: &Region,
        site: &Site,
        if_match: Option<&str>,
        mode: Mode,
    ) -> Result<Vec<Change>, Refusal> {
        if !matches!(by, Authority::Operator) {
            return Err(Refusal::NotFound("region".to_owned()));
        }
        if region.as_str() == shared::nats::topology::HUB {
            return Err(Invalid::new("region", "must not be the name of the hub").into());
        }
        let former = config::current_region(&self.hub, region).await?;
        if if_match.is_some_and(|version| version != former.version) {
            return Err(Refusal::VersionConflict);
        }
        let known = config::read_once(&self.hub).await?;
        let mut resident = known.apps.values().filter(|app| app.residency.as_ref() == Some(region));
        if let Some(app) = resident.find(|_| !site.helpers.is_empty()) {
            return Err(Invalid::new(
                "helpers",
                format_args!("must be empty: the data of {} stays here", app.id),
            )
            .into());
        }
        let json = |site: &Site| serde_json::to_value(site).unwrap_or_default();
        let changes = change::between(&former.value.as_ref().map(json).unwrap_or_default(), &json(site));
        if mode == Mode::Write && former.value.as_ref() != Some(site) {
            config::replace_region(&self.hub, &former, region, site).await?;
        }
        Ok(changes)
    }

    /// Makes a control. An app's own key makes those that name its app.
    pub(super) async fn add_control(&self, by: &Authority, control: Control) -> Result<Control, Refusal> {
        let control = Control {
            id: ControlId::fresh(),
            by_operator: matches!(by, Authority::Operator),
            created_at: self.clock.now(),
            ..control
        };
        control.check()?;
        if let Authority::App(own, _) = by
            && control.scope.app.as_ref() != Some(own)
        {
            return Err(Invalid::new("app", format_args!("must be {own}, the app of the key")).into());
        }
        let known = config::read_once(&self.hub).await?;
        if let Some(region) = &control.scope.region
            && !known.regions.contains_key(region)
        {
            return Err(Invalid::new("region", "must be a region of this mesh").into());
        }
        if let Some(app) = &control.scope.app
            && !known.apps.contains_key(app)
        {
            return Err(no_app());
        }
        let is_of_same = |known: &&Arc<Control>| {
            known.by_operator == control.by_operator && (control.by_operator || known.scope.app == control.scope.app)
        };
        let count = known.controls.values().filter(is_of_same).count();
        let (of_app, of_operators) = CONTROLS_MAX;
        let max = if control.by_operator { of_operators } else { of_app };
        if count >= max {
            return Err(Refusal::TooMany(max));
        }
        config::create_control(&self.hub, &control).await?;
        tracing::info!(id = %control.id, action = %control.action, who = control.who, "control made");
        Ok(control)
    }

    /// Removes a control. An app's own key removes those that a key of its app made.
    pub(super) async fn remove_control(&self, by: &Authority, who: &str, id: ControlId) -> Result<(), Refusal> {
        let known = config::read_once(&self.hub).await?;
        let control = known.controls.get(&id).filter(|control| by.sees(control));
        let control = control.ok_or_else(|| Refusal::NotFound("control".to_owned()))?;
        if control.by_operator && !matches!(by, Authority::Operator) {
            return Err(Refusal::OperatorOnly("id".to_owned()));
        }
        config::remove_control(&self.hub, id).await?;
        tracing::info!(%id, who, "control removed");
        Ok(())
    }
}

fn no_app() -> Refusal {
    Refusal::NotFound("app".to_owned())
}

/// An app with a residency must live in a region without helpers: the workers of a helper hold copies of the facts and jobs
/// of the region that it helps.
fn check_place(app: &App, known: &Tenants) -> Result<(), Invalid> {
    let Some(site) = known.regions.get(&app.default_region) else {
        return Err(Invalid::new("default_region", "must be a region of this mesh"));
    };
    if app.residency.is_some() && !site.helpers.is_empty() {
        return Err(Invalid::new("residency", "must not be a region that has helpers"));
    }
    Ok(())
}

impl Authority {
    /// Another app is answered as if it did not exist.
    fn may_see(&self, app: &AppId) -> Result<(), Refusal> {
        match self {
            Self::App(own, _) if own != app => Err(no_app()),
            _ => Ok(()),
        }
    }

    /// Whether it may see this control: an app, those that name it.
    fn sees(&self, control: &Control) -> bool {
        match self {
            Self::Operator => true,
            Self::App(own, _) => control.scope.app.as_ref() == Some(own),
        }
    }

    /// An app's key makes no key with more rights than its own.
    fn may_grant(&self, new: &NewKey) -> Result<(), Refusal> {
        match self {
            Self::Operator => Ok(()),
            Self::App(_, scopes) => {
                let beyond = new.scopes.iter().find(|scope| !scopes.contains(scope));
                beyond.map_or(Ok(()), |scope| Err(Refusal::Lacking(*scope)))
            }
        }
    }

    fn may_change(&self, changes: &[Change]) -> Result<(), Refusal> {
        match self {
            Self::Operator => Ok(()),
            Self::App(..) => {
                let beyond = changes.iter().find(|change| !is_of_app(change));
                beyond.map_or(Ok(()), |change| Err(Refusal::OperatorOnly(change.member.clone())))
            }
        }
    }
}

/// Whether an app's own key may make this change.
fn is_of_app(change: &Change) -> bool {
    let mut names = change.member.split('.');
    match (names.next(), names.next()) {
        (Some("credentials"), Some(provider)) => change.is_secret || PROVIDERS_OF_APP.contains(&provider),
        (Some("apns" | "fcm"), _) => true,
        (Some(member), _) => MEMBERS_OF_APP.contains(&member),
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_apps_own_key_may_change_is_a_list() {
        let change = |member: &str, is_secret: bool| Change {
            member: member.to_owned(),
            from: None,
            to: None,
            is_secret,
        };
        let own = Authority::App("shop".parse().unwrap(), vec![Scope::AppsWrite, Scope::Send]);
        for member in [
            "ambiguity.push",
            "categories.offers.kind",
            "page.name",
            "quiet_hours",
            "limits",
            "unknown_zone",
            "timezone",
            "apns.topic",
            "fcm",
            "credentials.twilio.account_sid",
            "credentials.log",
            "routes.sms",
        ] {
            own.may_change(&[change(member, false)]).unwrap();
        }
        own.may_change(&[change("credentials.smtp", true)]).unwrap();
        for member in [
            "default_region",
            "residency",
            "services",
            "outbox",
            "account",
            "suspended",
            "quota.jobs_per_s",
            "senders.email",
            "sms_countries",
            "spend_caps",
            "allowed_hosts",
            "alerts.url",
            "credentials.smtp.host",
            "credentials.smtp",
            "credentials.of_a_newer_provider.host",
            "a_newer_member",
        ] {
            let refused = own.may_change(&[change("routes.push", false), change(member, false)]);
            assert_eq!(refused, Err(Refusal::OperatorOnly(member.to_owned())));
            Authority::Operator.may_change(&[change(member, false)]).unwrap();
        }
    }

    #[test]
    fn an_apps_key_sees_its_own_app_and_grants_what_it_has() {
        let own = Authority::App("shop".parse().unwrap(), vec![Scope::AppsWrite, Scope::Send]);
        own.may_see(&"shop".parse().unwrap()).unwrap();
        assert_eq!(own.may_see(&"bank".parse().unwrap()), Err(no_app()));
        own.may_grant(&NewKey::with(&[Scope::Send])).unwrap();
        let beyond = own.may_grant(&NewKey::with(&[Scope::Send, Scope::RecipientsRead]));
        assert_eq!(beyond, Err(Refusal::Lacking(Scope::RecipientsRead)));
    }
}
