//! Consent: whether the preferences of a recipient let a notification through.

use jiff::Timestamp;

use super::{Ruling, category::CategoryKind};
use crate::{
    channel::Channel,
    id::{Category, Topic},
    preferences::Preferences,
    receipt::State,
};

/// The reason of what the preferences opt out of.
const OPTED_OUT: &str = "opted_out";

/// The reason of what does not pass a mute, of everything or of a topic.
const MUTED: &str = "muted";

/// What consent is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The channel of the content.
    pub channel: Channel,
    /// The category of the notification.
    pub category: Option<&'a Category>,
    /// What the notifications of that category are.
    pub kind: CategoryKind,
    /// The topic of the broadcast that the job belongs to.
    pub topic: Option<&'a Topic>,
}

/// Whether the recipient with these preferences agrees at `now`. What is critical is stopped by the opt-out of its channel
/// alone. Of several reasons the most lasting is given: the channel, the category, the mute, the topic.
pub fn consent(preferences: &Preferences, asked: Asked<'_>, now: Timestamp) -> Ruling {
    let refuses = |choice: Option<&bool>| choice == Some(&false);
    let opts_out = |category: &Category| {
        let channels = preferences.categories.get(category);
        refuses(channels.and_then(|channels| channels.get(&asked.channel)))
    };
    let why = if refuses(preferences.channels.get(&asked.channel)) {
        OPTED_OUT
    } else if asked.kind == CategoryKind::Critical {
        return Ruling::Send;
    } else if asked.category.is_some_and(opts_out) {
        OPTED_OUT
    } else if preferences.is_muted(now) || asked.topic.is_some_and(|topic| refuses(preferences.topics.get(topic))) {
        MUTED
    } else {
        return Ruling::Send;
    };
    Ruling::Drop {
        state: State::Suppressed,
        why,
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn choice(choice: Option<bool>, name: &str) -> Value {
        choice.map_or_else(|| json!({}), |choice| json!({ name: choice }))
    }

    /// Every combination of what the preferences say, of what is asked, and of the kind of the category, each with one reason.
    #[test]
    fn every_combination_has_one_reason() {
        const CHOICES: [Option<bool>; 3] = [None, Some(true), Some(false)];
        let ends = [None, Some(-1), Some(0), Some(1)].map(|s| s.map(|s| NOW + SignedDuration::from_secs(s)));
        let (offers, news): (Category, Topic) = ("offers".parse().unwrap(), "news".parse().unwrap());
        let mut seen = [0; 3];
        let mut combinations = 0;
        for (channel, category, topic) in iproduct(&CHOICES, &CHOICES, &CHOICES) {
            for (muted, until) in [false, true]
                .into_iter()
                .flat_map(|muted| ends.map(|until| (muted, until)))
            {
                let preferences: Preferences = serde_json::from_value(json!({
                    "channels": choice(channel, "push"),
                    "categories": { "offers": choice(category, "push"), "other": { "push": false } },
                    "topics": choice(topic, "news"),
                    "muted": muted,
                    "muted_until": until,
                }))
                .unwrap();
                for (asked_category, asked_topic, kind) in
                    iproduct(&[None, Some(&offers)], &[None, Some(&news)], CategoryKind::ALL)
                {
                    // What has no category has no kind.
                    if asked_category.is_none() && kind != CategoryKind::Default {
                        continue;
                    }
                    combinations += 1;
                    let is_critical = kind == CategoryKind::Critical;
                    let is_muted = muted && until.is_none_or(|until| until > NOW);
                    let expected = [
                        (channel == Some(false), OPTED_OUT),
                        (
                            !is_critical && asked_category.is_some() && category == Some(false),
                            OPTED_OUT,
                        ),
                        (!is_critical && is_muted, MUTED),
                        (!is_critical && asked_topic.is_some() && topic == Some(false), MUTED),
                    ];
                    let expected = expected.into_iter().find_map(|(holds, why)| holds.then_some(why));
                    let asked = Asked {
                        channel: Channel::Push,
                        category: asked_category,
                        kind,
                        topic: asked_topic,
                    };
                    let found = match consent(&preferences, asked, NOW) {
                        Ruling::Send => None,
                        Ruling::Drop { state, why } => {
                            assert_eq!(state, State::Suppressed);
                            Some(why)
                        }
                        Ruling::Wait { .. } => panic!("consent never waits"),
                    };
                    assert_eq!(found, expected, "{preferences:?} {asked:?}");
                    seen[match found {
                        None => 0,
                        Some(OPTED_OUT) => 1,
                        _ => 2,
                    }] += 1;
                    let elsewhere = Asked {
                        channel: Channel::Email,
                        category: None,
                        topic: None,
                        ..asked
                    };
                    let passes = is_critical || !is_muted;
                    assert_eq!(
                        consent(&preferences, elsewhere, NOW) == Ruling::Send,
                        passes,
                        "another channel"
                    );
                }
            }
        }
        assert_eq!(combinations, 27 * 8 * 8);
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
    }

    fn iproduct<A: Copy, B: Copy, C: Copy>(a: &[A], b: &[B], c: &[C]) -> Vec<(A, B, C)> {
        let mut all = Vec::new();
        for a in a {
            for b in b {
                all.extend(c.iter().map(|c| (*a, *b, *c)));
            }
        }
        all
    }

    #[test]
    fn who_has_said_nothing_agrees() {
        let asked = Asked {
            channel: Channel::Sms,
            category: None,
            kind: CategoryKind::Default,
            topic: None,
        };
        assert!(Preferences::default().are_empty());
        assert_eq!(consent(&Preferences::default(), asked, NOW), Ruling::Send);
    }
}
