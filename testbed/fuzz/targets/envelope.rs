//! Whatever a service publishes is a job or is refused; a job can be parked and comes back as the same job.
#![no_main]

use async_nats::HeaderMap;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use shared::{id_key::IdKey, nats::envelope};

const NAMES: [&str; 6] = [
    "Nats-Msg-Id",
    envelope::ACCEPTED_AT,
    envelope::ORIGIN,
    envelope::EVENT_ID,
    envelope::ATTEMPT,
    envelope::ADDRESS,
];

// The subject, six headers of which empty ones are left out, and the body, a line each.
fuzz_target!(|data: &[u8]| {
    let mut lines = data.splitn(8, |byte| *byte == b'\n');
    let mut text = || lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let Some(subject) = text() else { return };
    let mut headers = HeaderMap::new();
    for name in NAMES {
        let Some(value) = text() else { return };
        if let (false, Ok(value)) = (value.is_empty(), value.parse::<async_nats::HeaderValue>()) {
            headers.insert(name, value);
        }
    }
    let payload = lines.next().unwrap_or_default();
    let (now, here) = (Timestamp::UNIX_EPOCH, "eu".parse().expect("is a valid name"));
    let Ok(job) = envelope::open(subject, &headers, payload, now, &here, &IdKey::unkeyed()) else {
        return;
    };
    assert!(job.accepted_at <= now);
    let address = shared::id::AddressId(job.id.0);
    let parked = envelope::retry_headers(&job, true, address);
    let again = envelope::open(subject, &parked, payload, now, &here, &IdKey::unkeyed()).expect("what could be read can be read again");
    assert_eq!(again.remaining, Some(vec![address]));
    assert_eq!(
        (again.id, again.notification, again.body()),
        (job.id, job.notification, job.body())
    );
    assert_eq!(
        (again.accepted_at, again.attempt, again.origin),
        (job.accepted_at, job.attempt.saturating_add(1), job.origin)
    );
});
