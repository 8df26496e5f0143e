//! Controls: what operators and apps hold or end while everything runs. They are entries of the configuration, so workers obey
//! within seconds, and go on obeying while their region is cut off.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    channel::{Channel, Class, words},
    id::{AppId, Category, ControlId, Region},
    invalid::Invalid,
};

/// Most characters of the reason that is given for a control.
const WHY_CHARS_MAX: usize = 256;

words!(
    /// What a control does with the work that it covers.
    Action, "control_action", {
        /// It waits, and is neither lost nor counted as an attempt.
        Pause = "pause",
        /// It ends as `suppressed`.
        Kill = "kill",
    }
);

/// Which work a control covers: what matches every member that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The app that sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    /// Its category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// Its channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// Its class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The region that works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
}

/// A control as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Names it.
    pub id: ControlId,
    /// What it does.
    pub action: Action,
    /// What it covers.
    #[serde(flatten)]
    pub scope: Scope,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The reason, for people.
    pub why: String,
    /// The key that made it, by its id.
    pub who: String,
    /// Whether that was an operator's: then the app cannot remove it.
    pub by_operator: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Work that a control may cover.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The app that sent it.
    pub app: &'a AppId,
    /// Its category.
    pub category: Option<&'a Category>,
    /// Its channel.
    pub channel: Channel,
    /// Its class.
    pub class: Class,
    /// The region that works on it.
    pub region: &'a Region,
}

impl Control {
    /// Checks the rules that the types do not enforce, for a control that is made at `created_at`.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.scope == Scope::default() {
            let rule = "must be given, or category, channel, class or region";
            return Err(Invalid::new("app", rule));
        }
        if !(1..=WHY_CHARS_MAX).contains(&self.why.chars().count()) || self.why.chars().any(char::is_control) {
            let rule = format_args!("must be 1 to {WHY_CHARS_MAX} characters without control characters");
            return Err(Invalid::new("why", rule));
        }
        if self.until.is_some_and(|until| until <= self.created_at) {
            return Err(Invalid::new("until", "must be in the future"));
        }
        Ok(())
    }

    /// Whether it is obeyed at `now`.
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// Whether it covers `work`.
    pub fn covers(&self, work: Work<'_>) -> bool {
        let Scope {
            app,
            category,
            channel,
            class,
            region,
        } = &self.scope;
        app.as_ref().is_none_or(|app| app == work.app)
            && category.as_ref().is_none_or(|category| Some(category) == work.category)
            && channel.is_none_or(|channel| channel == work.channel)
            && class.is_none_or(|class| class == work.class)
            && region.as_ref().is_none_or(|region| region == work.region)
    }
}
