//! Channels and classes.

use std::{fmt, str::FromStr};

use serde::de::{self, Visitor};

// The words are token trees: the derived schema does not see through a `literal`, and would show the names of the variants.
macro_rules! words {
    // `default` names the default, and `else` the value of every word that is not known.
    (
        $(#[$doc:meta])* $name:ident, $field:literal, { $($(#[$vdoc:meta])* $variant:ident = $word:tt),+ $(,)? }
        $(default $default:ident)? $(else $unknown:ident)?
    ) => {
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, utoipa::ToSchema,
        )]
        $(#[$doc])*
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word used on the wire, in subjects and in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        // The derived code would take a value of another type for broken JSON.
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let unknown = [None $(, Some(Self::$unknown))?].into_iter().next_back().flatten();
                deserializer.deserialize_str($crate::channel::Word { known: Self::WORDS, unknown })
            }
        }

        $(
            impl Default for $name {
                fn default() -> Self {
                    Self::$default
                }
            }
        )?

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::invalid::Invalid;
            fn from_str(text: &str) -> Result<Self, $crate::invalid::Invalid> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::invalid::Invalid::new($field, concat!("must be one of: " $(, $word, " ")+).trim_end())),
                }
            }
        }
    };
}
pub(crate) use words;

/// Reads one of the known words.
pub(crate) struct Word<T> {
    pub(crate) known: &'static [&'static str],
    /// The value of every other word, if it has one.
    pub(crate) unknown: Option<T>,
}

impl<T: FromStr> Visitor<'_> for Word<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.known.iter().map(|word| format!("`{word}`")).collect();
        write!(f, "one of {}", words.join(", "))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse()
            .ok()
            .or(self.unknown)
            .ok_or_else(|| E::unknown_variant(text, self.known))
    }
}

words!(
    /// The medium by which a notification reaches a recipient.
    Channel, "channel", {
        /// A push to a device, by APNs or FCM.
        Push = "push",
        /// An e-mail.
        Email = "email",
        /// A text message.
        Sms = "sms",
        /// A signed HTTP request.
        Webhook = "webhook",
    }
);

words!(
    /// How urgent a notification is. Classes do not wait for each other.
    Class, "class", {
        /// Someone waits for it: one-time codes, calls, alarms.
        Urgent = "urgent",
        /// The default.
        Normal = "normal",
        /// Campaigns: may wait, and never delay the others.
        Bulk = "bulk",
    }
    default Normal
);
