//! Channels and classes.

// The words are token trees: the derived schema does not see through a `literal`, and would show the names of the variants.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $field:literal, { $($(#[$vdoc:meta])* $variant:ident = $word:tt),+ $(,)? }) => {
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize, utoipa::ToSchema,
        )]
        $(#[$doc])*
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word used on the wire, in subjects and in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

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

impl Channel {
    /// The channels that have a provider today. The others are names that preferences may already use.
    pub const CARRIED: &'static [Self] = &[Self::Push];
}

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
);

#[expect(clippy::derivable_impls, reason = "the enum is written by a macro")]
impl Default for Class {
    fn default() -> Self {
        Self::Normal
    }
}
