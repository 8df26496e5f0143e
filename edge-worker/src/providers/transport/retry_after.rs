//! `Retry-After` (RFC 9110, section 10.2.3).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::Timestamp;

/// How long `headers` ask to wait: whole seconds, or the distance from `now` to a date. A date in the past is zero.
pub(in crate::providers) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows still means a long wait.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::from(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn asked(value: impl AsRef<[u8]>) -> Option<Duration> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let value = HeaderValue::from_bytes(value.as_ref()).unwrap();
        retry_after(&[(RETRY_AFTER, value)].into_iter().collect(), now)
    }

    proptest! {
        #[test]
        fn any_number_of_seconds_is_parsed(seconds: u64) {
            prop_assert_eq!(asked(seconds.to_string()), Some(Duration::from_secs(seconds)));
            prop_assert_eq!(asked(format!("{seconds:030}")), Some(Duration::from_secs(seconds)));
        }

        #[test]
        fn an_overflowing_number_is_the_longest_wait(value in "[1-9][0-9]{20,39}") {
            prop_assert_eq!(asked(value), Some(Duration::from_secs(u64::MAX)));
        }

        #[test]
        fn a_date_is_the_time_from_now_or_zero_in_the_past(distance in -1_000_000_000i64..1_000_000_000) {
            let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            let date = SystemTime::from(now + jiff::SignedDuration::from_secs(distance));
            let expected = Duration::from_secs(distance.try_into().unwrap_or(0));
            prop_assert_eq!(asked(httpdate::fmt_http_date(date)), Some(expected));
        }

        #[test]
        fn any_other_value_is_ignored(value in "[+-][0-9]{1,30}|[a-zA-Z ,:-]{1,30}|[\\x80-\\xff]{1,10}") {
            prop_assert_eq!(asked(value), None);
        }
    }

    #[test]
    fn seconds_and_dates_are_parsed() {
        assert_eq!(asked("120"), Some(Duration::from_mins(2)));
        assert_eq!(asked("Thu, 01 Jan 2026 00:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(asked("Wed, 31 Dec 2025 00:00:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "-1", "soon", "1.5"] {
            assert_eq!(asked(nonsense), None, "{nonsense}");
        }
    }
}
