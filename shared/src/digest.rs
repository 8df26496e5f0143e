//! Identifiers derived from what they name, so that every gateway and worker computes the same one.

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;
use uuid::Uuid;

/// The first 16 bytes of SHA-256 over `kind` and `parts`, as a version 8 UUID (RFC 9562 §5.8). Anybody can compute it;
/// see [`IdKey`](crate::id_key::IdKey) for ids that nobody outside a mesh may know in advance.
///
/// Each part is followed by a zero byte, which no identifier may contain, so that two different lists of parts never
/// give the same bytes.
pub fn derive(kind: &str, parts: &[&str]) -> Uuid {
    let mut hash = Context::new(&SHA256);
    each_part(kind, parts, |bytes| hash.update(bytes));
    uuid(hash.finish().as_ref())
}

/// The digest of content that is not itself to be stored.
pub fn of_content(content: &[u8]) -> Uuid {
    hash_of("content", content)
}

/// The digest of a JSON document, whatever the order of its members and its white space. The digest of other bytes is that
/// of the bytes.
pub fn of_json(document: &[u8]) -> Uuid {
    // `Value` keeps members in order of their names.
    let canonical = serde_json::from_slice::<Value>(document).map(|value| value.to_string());
    hash_of("json", canonical.as_ref().map_or(document, |text| text.as_bytes()))
}

fn hash_of(kind: &str, content: &[u8]) -> Uuid {
    let mut hash = Context::new(&SHA256);
    for part in [kind.as_bytes(), content] {
        hash.update(part);
        hash.update(&[0]);
    }
    uuid(hash.finish().as_ref())
}

/// Passes the bytes that are hashed for `kind` and `parts` to `take`.
pub(crate) fn each_part(kind: &str, parts: &[&str], mut take: impl FnMut(&[u8])) {
    for part in std::iter::once(&kind).chain(parts) {
        take(part.as_bytes());
        take(&[0]);
    }
}

/// The version 8 UUID of a hash of at least 16 bytes.
pub(crate) fn uuid(hash: &[u8]) -> Uuid {
    let mut first = [0; 16];
    first.copy_from_slice(&hash[..16]);
    Uuid::new_v8(first)
}
