//! Forms as reporters send them, and signatures over them.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use url::form_urlencoded;

/// The fields of a form or of a query, in the order of their names. Of a name that is given twice the last one counts.
pub(super) type Fields = BTreeMap<String, String>;

/// Reads a form, or a query.
pub(super) fn read(bytes: &[u8]) -> Fields {
    form_urlencoded::parse(bytes).into_owned().collect()
}

/// Whether `signature` is the HMAC-SHA1 in base64, by `key`, over `url` and then the name and value of each field.
pub(super) fn is_signed(url: &str, fields: &Fields, key: &str, signature: &str) -> bool {
    let mut signed = url.to_owned();
    for (name, value) in fields {
        signed.push_str(name);
        signed.push_str(value);
    }
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    let given = STANDARD.decode(signature).unwrap_or_default();
    hmac::verify(&key, signed.as_bytes(), &given).is_ok()
}
