//! Whatever a mail server replies is judged. Only a reply of 2xx accepts, and nothing of its text is kept but a plain queue id.
#![no_main]

use edge_worker::providers::{Outcome, smtp};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for outcome in smtp::judged(data) {
        match outcome {
            Outcome::Accepted { provider_id } => {
                assert!(data.starts_with(b"2"));
                let is_plain = |id: &String| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
                assert!(provider_id.as_ref().is_none_or(|id| id.len() <= 80 && is_plain(id)));
            }
            Outcome::Ambiguous { .. } | Outcome::NotYet { .. } => panic!("a reply says what became of the mail"),
            Outcome::RetryLater { reason, .. }
            | Outcome::AddressGone { reason, .. }
            | Outcome::Rejected { reason }
            | Outcome::CredentialTrouble { reason, .. }
            | Outcome::EndpointTrouble { reason, .. } => {
                assert!(reason.len() <= 32 && reason.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte)));
            }
        }
    }
});
