//! Whatever a caller sends is refused or becomes jobs, and a worker can read every one of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::{id_key::IdKey, nats::envelope};

fuzz_target!(|data: &[u8]| {
    for (recipient, body) in gateway::jobs(data).into_iter().flatten() {
        let (headers, now) = (async_nats::HeaderMap::new(), jiff::Timestamp::UNIX_EPOCH);
        let here = "eu".parse().expect("is a valid name");
        let (lane, ids) = ("notify.push.eu.normal.shop", IdKey::unkeyed());
        let job = envelope::open(lane, &headers, &body, now, &here, &ids).expect("the worker reads it");
        assert_eq!(job.recipient, recipient);
    }
});
