//! The time zone in which a notification is received: that of the device, else that of the recipient, else what the app decides
//! for those whose zone is not known.

use jiff::tz::{self, TimeZone};

use crate::{channel::words, invalid::Invalid};

/// The reason of what is not sent because there is no time zone.
pub const UNKNOWN_ZONE: &str = "unknown_zone";

/// Most bytes in the name of a zone.
const NAME_BYTES_MAX: usize = 64;

words!(
    /// What applies to those whose time zone is not known.
    UnknownZone, "unknown_zone", {
        /// The app's own zone.
        App = "app",
        /// UTC.
        Utc = "utc",
        /// No zone: what waits for a local time is sent at once.
        Send = "send",
        /// No zone: what depends on the local time is not sent.
        Drop = "drop",
    }
    default App
);

/// Where a notification is received.
#[derive(Debug, Clone, PartialEq)]
pub enum Zone {
    /// In this time zone.
    Known(TimeZone),
    /// That is not known, and the app sends at once.
    Send,
    /// That is not known, and the app does not send then.
    Drop,
}

impl Zone {
    /// The first of `named` that is known here; if none is, what `unknown` says, where `app` is the app's own zone.
    pub fn of<'a>(named: impl IntoIterator<Item = Option<&'a str>>, unknown: UnknownZone, app: Option<&str>) -> Self {
        if let Some(zone) = named.into_iter().flatten().find_map(known) {
            return Self::Known(zone);
        }
        match unknown {
            UnknownZone::App => Self::Known(app.and_then(known).unwrap_or(TimeZone::UTC)),
            UnknownZone::Utc => Self::Known(TimeZone::UTC),
            UnknownZone::Send => Self::Send,
            UnknownZone::Drop => Self::Drop,
        }
    }
}

/// The zone of this name, if it is an IANA zone that this host knows.
fn known(name: &str) -> Option<TimeZone> {
    tz::db().get(name).ok()
}

/// The time zone of this name.
///
/// # Errors
/// `timezone`, with its rule.
pub fn get(name: &str) -> Result<TimeZone, Invalid> {
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte));
    // `Etc/Unknown` is a name of jiff's, and of no zone.
    let zone = is_name.then(|| known(name)).flatten().filter(|zone| !zone.is_unknown());
    zone.ok_or_else(|| Invalid::new("timezone", "must be an IANA time zone"))
}

/// Checks the name of a time zone.
///
/// # Errors
/// As [`get`].
pub fn check(name: &str) -> Result<(), Invalid> {
    get(name).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> Zone {
        Zone::Known(TimeZone::get(name).unwrap())
    }

    #[test]
    fn the_device_is_asked_before_the_recipient() {
        let of = |device, recipient| Zone::of([device, recipient], UnknownZone::Drop, Some("Asia/Tokyo"));
        let (device, recipient) = (Some("America/New_York"), Some("Europe/Zurich"));
        assert_eq!(of(device, recipient), zone("America/New_York"));
        assert_eq!(of(None, recipient), zone("Europe/Zurich"));
        // A name of a newer list of zones than this host has.
        assert_eq!(of(Some("Mars/Olympus"), recipient), zone("Europe/Zurich"));
        assert_eq!(of(None, None), Zone::Drop);
    }

    #[test]
    fn the_app_decides_for_those_without_a_zone() {
        let of = |unknown, app| Zone::of([None, None], unknown, app);
        assert_eq!(of(UnknownZone::App, Some("Asia/Tokyo")), zone("Asia/Tokyo"));
        assert_eq!(of(UnknownZone::App, None), Zone::Known(TimeZone::UTC));
        assert_eq!(of(UnknownZone::Utc, Some("Asia/Tokyo")), Zone::Known(TimeZone::UTC));
        assert_eq!(of(UnknownZone::Send, Some("Asia/Tokyo")), Zone::Send);
        assert_eq!(of(UnknownZone::Drop, Some("Asia/Tokyo")), Zone::Drop);
    }

    #[test]
    fn a_name_must_be_that_of_a_zone() {
        for name in ["UTC", "Europe/Zurich", "America/Argentina/Buenos_Aires", "Etc/GMT+5"] {
            check(name).unwrap();
        }
        for name in [
            "",
            "Europe; drop",
            "Mars/Olympus",
            "+02:00",
            "Etc/Unknown",
            &"a".repeat(65),
        ] {
            assert_eq!(check(name).unwrap_err().field, "timezone", "{name}");
        }
    }
}
