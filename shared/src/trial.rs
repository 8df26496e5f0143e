//! Notifications of tests: what a test key, or the member `test` of a request, changes.

use std::borrow::Cow;

use crate::id::EventId;

/// How a notification differs from one that is meant in earnest. It travels in the body of each job, which its proof covers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trial {
    /// It takes the whole path and ends at the provider `log`.
    pub test: bool,
    /// A test key sent it: it reaches the app's test recipients only.
    pub test_key: bool,
}

impl Trial {
    /// A notification that is meant in earnest.
    pub const NONE: Self = Self {
        test: false,
        test_key: false,
    };

    /// Whether it is meant in earnest.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The name from which the ids of a notification are derived that calls its event `event`. What test keys send is apart from
    /// everything that other keys can name, so that a test key can take no event from them.
    pub fn name(self, event: &EventId) -> Cow<'_, EventId> {
        if self.test_key {
            Cow::Owned(event.of_test_key())
        } else {
            Cow::Borrowed(event)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_key_names_no_event_that_another_key_can_name() {
        let event: EventId = "order-42".parse().unwrap();
        let by_test_key = Trial {
            test_key: true,
            ..Trial::NONE
        };
        let named = by_test_key.name(&event).into_owned();
        assert!(named.as_str().parse::<EventId>().is_err(), "no caller can choose it");
        assert_ne!(named, by_test_key.name(&"order-4".parse().unwrap()).into_owned());
        let dry = Trial {
            test: true,
            ..Trial::NONE
        };
        assert_eq!(*dry.name(&event), event);
    }
}
