// An answer: two bytes of status, the header Retry-After up to the end of the line, the body.

use edge_worker::providers::Outcome;
use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
use jiff::Timestamp;

/// Judges `data` and checks what must hold for whatever a provider answers. Besides 200 only statuses that it `accepts` with are
/// acceptances.
pub fn check(
    data: &[u8],
    judged: fn(u16, &HeaderMap, Timestamp, &[u8]) -> Outcome,
    accepts: impl Fn(u16) -> bool,
) {
    let Some(([high, low], rest)) = data.split_first_chunk() else {
        return;
    };
    let status = 201 + u16::from_be_bytes([*high, *low]) % 399;
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (asked, body) = rest.split_at(end);
    let headers = HeaderValue::from_bytes(asked).map(|asked| (RETRY_AFTER, asked));
    let now = Timestamp::UNIX_EPOCH;
    let outcome = judged(
        status,
        &headers.into_iter().collect(),
        now,
        body.get(1..).unwrap_or_default(),
    );
    let reason = match outcome {
        Outcome::Accepted { .. } => {
            assert!(accepts(status), "{status} is no acceptance");
            return;
        }
        Outcome::RetryLater { reason, .. }
        | Outcome::AddressGone { reason, .. }
        | Outcome::Rejected { reason }
        | Outcome::Ambiguous { reason }
        | Outcome::CredentialTrouble { reason, .. }
        | Outcome::EndpointTrouble { reason, .. } => reason,
        Outcome::NotYet { .. } => panic!("an answer is no turn"),
    };
    let plain = reason.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    assert!(
        plain && (1..=64).contains(&reason.len()),
        "a reason must not be content"
    );
}
