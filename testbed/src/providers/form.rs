//! Requests whose body is a form.

use std::collections::BTreeMap;

/// The fields of a form, as browsers encode it. Of fields with one name the last counts.
pub(crate) fn read(body: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

/// Whether `text` is a telephone number: its digits, without `+`.
pub(crate) fn is_number(digits: &str) -> bool {
    (7..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
}
