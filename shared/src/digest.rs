//! Identifiers derived from what they name, so that every gateway and worker computes the same one.

use aws_lc_rs::digest::{Context, SHA256};
use uuid::Uuid;

/// The first 16 bytes of SHA-256 over `kind` and `parts`, as a version 8 UUID (RFC 9562 §5.8).
///
/// Each part is followed by a zero byte, which no identifier may contain, so that two different lists of
/// parts never give the same bytes. A service in any language can compute the value; this crate's README shows how.
pub fn derive(kind: &str, parts: &[&str]) -> Uuid {
    let bytes = std::iter::once(&kind).chain(parts).map(|part| part.as_bytes());
    uuid(bytes)
}

/// The digest of content that is not itself to be stored.
pub fn of_content(content: &[u8]) -> Uuid {
    uuid([b"content", content].into_iter())
}

fn uuid<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Uuid {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(part);
        hash.update(&[0]);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finish().as_ref()[..16]);
    Uuid::new_v8(first)
}
