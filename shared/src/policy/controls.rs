//! What the controls say of a piece of work: one that ends it outweighs those that hold it.

use jiff::Timestamp;

use super::Ruling;
use crate::{
    control::{Action, Control, Work},
    receipt::State,
};

/// The reason of work that a control holds.
pub const PAUSED: &str = "paused";

/// The reason of work that a control ended.
pub const KILLED: &str = "killed";

/// What `controls` say of `work` at `now`. Work that waits is decided again when the last of them that hold it ends by itself, or, if
/// one does not, whenever it comes back.
pub fn rule<'a>(controls: impl IntoIterator<Item = &'a Control>, work: Work<'_>, now: Timestamp) -> Ruling {
    let in_force = controls.into_iter().filter(|control| control.is_in_force(now));
    let mut held_until = None;
    for control in in_force.filter(|control| control.covers(work)) {
        match control.action {
            Action::Kill => {
                return Ruling::Drop {
                    state: State::Suppressed,
                    why: KILLED,
                };
            }
            Action::Pause => held_until = held_until.max(Some(control.until.unwrap_or(Timestamp::MAX))),
        }
    }
    match held_until {
        Some(until) => Ruling::Wait { until, why: PAUSED },
        None => Ruling::Send,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        channel::{Channel, Class},
        control::Scope,
        id::{AppId, Category, ControlId, Region},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn control(action: Action, scope: Scope, until: Option<i64>) -> Control {
        Control {
            id: ControlId(Uuid::nil()),
            action,
            scope,
            until: until.map(at),
            why: "an outage".into(),
            who: "0123456789abcdef".into(),
            by_operator: true,
            created_at: at(0),
        }
    }

    #[test]
    fn a_control_covers_what_matches_every_member_that_is_given() {
        let (shop, offers, eu): (AppId, Category, Region) = (
            "shop".parse().unwrap(),
            "offers".parse().unwrap(),
            "eu".parse().unwrap(),
        );
        let work = Work {
            app: &shop,
            category: Some(&offers),
            channel: Channel::Push,
            class: Class::Bulk,
            region: &eu,
        };
        let of = |right: bool, index: u32| Scope {
            app: (index & 1 > 0).then(|| if right { "shop" } else { "bank" }.parse().unwrap()),
            category: (index & 2 > 0).then(|| if right { "offers" } else { "codes" }.parse().unwrap()),
            channel: (index & 4 > 0).then_some(if right { Channel::Push } else { Channel::Sms }),
            class: (index & 8 > 0).then_some(if right { Class::Bulk } else { Class::Urgent }),
            region: (index & 16 > 0).then(|| if right { "eu" } else { "us" }.parse().unwrap()),
        };
        // Every set of members, and beside it one member that does not match.
        for index in 1..32 {
            let right = control(Action::Pause, of(true, index), None);
            assert!(right.covers(work), "{right:?}");
            for wrong in [1, 2, 4, 8, 16] {
                let one = of(false, wrong);
                let scope = of(true, index);
                let scope = Scope {
                    app: one.app.or(scope.app),
                    category: one.category.or(scope.category),
                    channel: one.channel.or(scope.channel),
                    class: one.class.or(scope.class),
                    region: one.region.or(scope.region),
                };
                assert!(!control(Action::Pause, scope.clone(), None).covers(work), "{scope:?}");
            }
        }
        let without_category = Work { category: None, ..work };
        assert!(!control(Action::Pause, of(true, 2), None).covers(without_category));
    }

    #[test]
    fn the_end_outweighs_the_wait_and_what_is_over_is_not_obeyed() {
        let (shop, eu): (AppId, Region) = ("shop".parse().unwrap(), "eu".parse().unwrap());
        let work = Work {
            app: &shop,
            category: None,
            channel: Channel::Push,
            class: Class::Normal,
            region: &eu,
        };
        let all = || Scope {
            channel: Some(Channel::Push),
            ..Scope::default()
        };
        let killed = Ruling::Drop {
            state: State::Suppressed,
            why: KILLED,
        };
        let paused = |until: Timestamp| Ruling::Wait { until, why: PAUSED };
        for (controls, expected) in [
            (vec![], Ruling::Send),
            (vec![(Action::Pause, Some(10))], Ruling::Send),
            (vec![(Action::Pause, Some(11))], paused(at(11))),
            (
                vec![(Action::Pause, Some(30)), (Action::Pause, Some(20))],
                paused(at(30)),
            ),
            (
                vec![(Action::Pause, Some(30)), (Action::Pause, None)],
                paused(Timestamp::MAX),
            ),
            (vec![(Action::Pause, None), (Action::Kill, Some(11))], killed),
            (
                vec![(Action::Pause, Some(20)), (Action::Kill, Some(10))],
                paused(at(20)),
            ),
        ] {
            let controls = controls
                .into_iter()
                .map(|(action, until)| control(action, all(), until));
            let controls: Vec<_> = controls.collect();
            assert_eq!(rule(&controls, work, at(10)), expected, "{controls:?}");
        }
    }

    #[test]
    fn a_control_says_what_it_covers_and_why() {
        let right = control(
            Action::Kill,
            Scope {
                class: Some(Class::Bulk),
                ..Scope::default()
            },
            Some(1),
        );
        right.check().unwrap();
        let field = |wrong: Control| wrong.check().unwrap_err().field;
        assert_eq!(
            field(Control {
                scope: Scope::default(),
                ..right.clone()
            }),
            "app"
        );
        assert_eq!(
            field(Control {
                until: Some(at(0)),
                ..right.clone()
            }),
            "until"
        );
        for why in ["", "a\nb", &"x".repeat(257)] {
            assert_eq!(
                field(Control {
                    why: why.into(),
                    ..right.clone()
                }),
                "why"
            );
        }
    }
}
