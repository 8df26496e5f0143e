//! Invalid input, reported so that the sender can correct it: which field, which rule.

use std::fmt;

/// One field that breaks one rule. It never carries the value: content and addresses do not belong in errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// The field: a dotted path from the top of the document, such as `push.title` or `to.recipients[3]`.
    pub field: String,
    /// The rule that was broken, as a sentence without subject: "must be 1 to 128 bytes".
    pub rule: String,
}

impl Invalid {
    /// Reports that `field` breaks `rule`.
    pub fn new(field: impl Into<String>, rule: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            rule: rule.to_string(),
        }
    }

    /// The same error with the path of its field put inside `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() {
            outer.to_owned()
        } else if self.field.starts_with('[') {
            format!("{outer}{}", self.field)
        } else {
            format!("{outer}.{}", self.field)
        };
        self
    }
}
