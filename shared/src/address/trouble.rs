//! The trouble of a receiver of webhooks.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// After failing for this long without one success, a receiver is disabled. The waits of ten attempts are a day and a half, so
/// that it has failed several notifications by then.
pub const DISABLED_AFTER: SignedDuration = SignedDuration::from_hours(5 * 24);

/// Shares of that time, in percent, after which the app is alerted. At the last one the receiver is disabled.
const ALERTED_AT_PERCENT: [u8; 4] = [50, 70, 90, 100];

/// Why a receiver is disabled that has failed for [`DISABLED_AFTER`].
const FAILED_FOR_DAYS: &str = "failed_for_days";

/// Since when a receiver fails, and whether it is disabled. One that works has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The first failure since the last success.
    pub since: Timestamp,
    /// The share of [`DISABLED_AFTER`] at which the app was alerted last, in percent; 0 if it was not.
    #[serde(default)]
    pub alerted_percent: u8,
    /// The reason of the last outcome that changed this, such as `http_503`.
    pub reason: String,
    /// Why nothing is posted to it any more; absent while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Disabled>,
}

/// Why nothing is posted to a receiver any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    /// Since when.
    pub at: Timestamp,
    /// `http_410`, or `failed_for_days`.
    pub reason: String,
}

/// A change of what is known of a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It has this trouble from now on.
    Becomes(Trouble),
    /// It works again.
    Ends,
}

impl Change {
    /// The trouble from now on.
    pub fn trouble(self) -> Option<Trouble> {
        match self {
            Self::Becomes(trouble) => Some(trouble),
            Self::Ends => None,
        }
    }
}

/// What an attempt at a receiver showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// It took the event.
    Success,
    /// It did not, or was not reached.
    Failure,
    /// It answered that it wants no more.
    Gone,
}

impl Trouble {
    /// What becomes of `known` after an attempt at `at`, whose outcome had this reason; `None` if nothing changes. A receiver that is disabled stays so until it is registered again.
    pub fn after(known: Option<&Self>, seen: Seen, at: Timestamp, reason: &str) -> Option<Change> {
        if known.is_some_and(|known| known.disabled.is_some()) {
            return None;
        }
        let begun = || Self {
            since: at,
            alerted_percent: 0,
            reason: reason.to_owned(),
            disabled: None,
        };
        match (seen, known) {
            (Seen::Success, None) => None,
            (Seen::Success, Some(known)) => (known.since < at).then_some(Change::Ends),
            (Seen::Gone, known) => Some(Change::Becomes(
                known.map_or_else(begun, Self::clone).disable(at, reason),
            )),
            (Seen::Failure, None) => Some(Change::Becomes(begun())),
            (Seen::Failure, Some(known)) => {
                let reached = known.percent(at);
                let passed = ALERTED_AT_PERCENT.into_iter().rev();
                let alerted_percent = passed.into_iter().find(|percent| *percent <= reached)?;
                (alerted_percent > known.alerted_percent).then(|| {
                    let next = Self {
                        alerted_percent,
                        reason: reason.to_owned(),
                        ..known.clone()
                    };
                    Change::Becomes(if alerted_percent == 100 {
                        next.disable(at, FAILED_FOR_DAYS)
                    } else {
                        next
                    })
                })
            }
        }
    }

    /// Whether the app is to be alerted to it: it has just reached another share of the time, or is disabled.
    pub fn is_alert(&self) -> bool {
        self.alerted_percent > 0
    }

    fn disable(self, at: Timestamp, reason: &str) -> Self {
        Self {
            alerted_percent: 100,
            disabled: Some(Disabled {
                at,
                reason: reason.to_owned(),
            }),
            ..self
        }
    }

    /// How much of [`DISABLED_AFTER`] has passed at `now`, in percent, at most 100.
    fn percent(&self, now: Timestamp) -> u8 {
        let passed = now.duration_since(self.since).as_secs().max(0);
        u8::try_from(passed * 100 / DISABLED_AFTER.as_secs()).map_or(100, |percent| percent.min(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    fn after(known: Option<&Trouble>, seen: Seen, hour: i64) -> Option<Change> {
        Trouble::after(known, seen, at(hour), "http_503")
    }

    #[test]
    fn a_receiver_that_fails_for_five_days_is_disabled_with_alerts_on_the_way() {
        let mut trouble = after(None, Seen::Failure, 0).unwrap().trouble().unwrap();
        assert!(!trouble.is_alert());
        let mut alerts = Vec::new();
        for hour in 1..200 {
            if let Some(next) = after(Some(&trouble), Seen::Failure, hour) {
                trouble = next.trouble().unwrap();
                assert!(trouble.is_alert());
                alerts.push((hour, trouble.alerted_percent, trouble.disabled.is_some()));
            }
        }
        assert_eq!(
            alerts,
            [(60, 50, false), (84, 70, false), (108, 90, false), (120, 100, true)]
        );
        assert_eq!(trouble.disabled.as_ref().unwrap().reason, "failed_for_days");
        for seen in [Seen::Success, Seen::Failure, Seen::Gone] {
            assert_eq!(after(Some(&trouble), seen, 500), None, "only a registration enables it");
        }
    }

    #[test]
    fn one_success_ends_the_trouble_and_a_late_one_of_before_does_not() {
        let trouble = after(None, Seen::Failure, 10).unwrap().trouble().unwrap();
        assert_eq!(after(Some(&trouble), Seen::Success, 100), Some(Change::Ends));
        assert_eq!(after(Some(&trouble), Seen::Success, 9), None);
        assert_eq!(after(None, Seen::Success, 9), None);
        // Whoever fails rarely is told once what it missed.
        let late = after(Some(&trouble), Seen::Failure, 10 + 110)
            .unwrap()
            .trouble()
            .unwrap();
        assert_eq!((late.alerted_percent, late.disabled), (90, None));
    }

    #[test]
    fn one_that_is_gone_is_disabled_at_once() {
        let gone = Trouble::after(None, Seen::Gone, at(1), "http_410")
            .unwrap()
            .trouble()
            .unwrap();
        assert!(gone.is_alert());
        assert_eq!(
            gone.disabled.unwrap(),
            Disabled {
                at: at(1),
                reason: "http_410".to_owned()
            }
        );
    }
}
